"""A rank's state on disk: checkpoints that any world size can continue from, and the model for others to load."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.optim import AdamW

from headrace.learner.policy import Policy, load_policy
from headrace.learner.settings import torch_dtype
from headrace.verifiers.errors import UserError, cause_line

# What a model folder holds beside its weights and configuration.
SIDE_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "generation_config.json",
)


def save(folder: Path, policy: Policy, optimizer: AdamW, reference: Policy | None, *, step: int, rank: int) -> None:
    """Write a `torch.distributed.checkpoint` into `folder`. Collective; the metadata file is written last.

    The reference policy is a part of it: after a warm start it is no longer the base model.
    """
    state = _state(policy, optimizer, reference)
    state |= {"step": step, f"rng.{rank}": random_state()}
    save_distributed(state, checkpoint_id=folder)


def load(
    folder: Path,
    policy: Policy,
    optimizer: AdamW,
    reference: Policy | None,
    *,
    rank: int,
    seed: int,
) -> int:
    """Read what `save` wrote, from any world size; the step it was written after. Collective.

    A rank that was not there when the checkpoint was written starts its random state from (seed, step, rank).

    Raises:
        UserError: no complete checkpoint in `folder`, or one of another model, or none of the reference policy.
    """
    held = check_whole(folder).state_dict_metadata
    if reference is not None and not any(name.startswith("reference.") for name in held):
        raise UserError(
            f"{folder}: the checkpoint has no reference policy: algorithm.kl_coef was 0 when it was written"
        )
    key = f"rng.{rank}"
    state = _state(policy, optimizer, reference)
    state["step"] = 0
    if any(name.startswith(f"{key}.") for name in held):
        state[key] = random_state()
    _read(state, folder)
    set_state_dict(policy, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    if reference is not None:
        set_model_state_dict(reference, state["reference"])
    step = state["step"]
    if key in state:
        set_random_state(state[key])
    else:
        torch.manual_seed((seed * 1_000_003 + step) * 1_009 + rank)
    return step


def load_weights(folder: Path, policy: Policy) -> int:
    """Of what `save` wrote, the weights and nothing else, into a policy that need not be sharded; the step.

    Raises:
        UserError: no complete checkpoint in `folder`, or one of another model.
    """
    check_whole(folder)
    state = {"model": get_model_state_dict(policy), "step": 0}
    with warnings.catch_warnings():
        # As it is meant to be, where nothing is sharded.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        _read(state, folder)
    set_model_state_dict(policy, state["model"])
    return state["step"]


def check_whole(folder: Path) -> Metadata:
    """What `save` wrote in `folder`, by name: every rank's file is there in its full length.

    Raises:
        UserError: there is no complete checkpoint; names the first file that is missing or cut.
    """
    try:
        metadata = FileSystemReader(folder).read_metadata()
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no complete learner checkpoint there (.metadata is missing)") from error
    except (EOFError, pickle.UnpicklingError, AttributeError, ValueError) as error:
        raise UserError(f"{folder}: the learner's checkpoint is damaged (.metadata: {cause_line(error)})") from error
    lengths: dict[str, int] = {}
    for part in metadata.storage_data.values():
        end = part.offset + part.length
        lengths[part.relative_path] = max(end, lengths.get(part.relative_path, 0))
    for name, length in sorted(lengths.items()):
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found is None or found < length:
            wrong = "is missing" if found is None else f"has {found} bytes of {length}"
            raise UserError(f"{folder}: no complete learner checkpoint there ({name} {wrong})")
    return metadata


def _read(state: dict[str, Any], folder: Path) -> None:
    """Fill `state` in place with what the checkpoint has under the same names."""
    try:
        load_distributed(state, checkpoint_id=folder)
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise UserError(f"{folder}: the checkpoint is not this model's: {reason}") from error


def _state(policy: Policy, optimizer: AdamW, reference: Policy | None) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(policy, optimizer)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    if reference is not None:
        state["reference"] = get_model_state_dict(reference)
    return state


def random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def export_checkpoint(folder: Path, output: Path, *, base: str, dtype: str, dithered: bool) -> int:
    """From what `save` wrote in `folder` to a Hugging Face folder in `dtype`, without other ranks; the step it was written
    after. It holds the weights once in float32 and once in `dtype`; the optimizer's state is not read.

    Raises:
        UserError: no complete checkpoint in `folder`, or one of another model; or the base model cannot be loaded.
    """
    policy = load_policy(base, head_chunk_tokens=1)  # the head computes nothing here
    step = load_weights(folder, policy)
    tensors = policy.served_tensors(torch_dtype(dtype, "rollout.dtype"), dithered=dithered)
    export(output, tensors, base=base, dtype=dtype, rank=0)
    return step


def export(folder: Path, tensors: Iterable[tuple[str, Tensor]], *, base: str, dtype: str, rank: int) -> None:
    """Write the model as a Hugging Face folder. Every rank iterates over `tensors`, which gathers them; rank 0 writes.

    `config.json` is written last: a folder that has one is whole.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if rank == 0:
            # Gathered over ranks that divide it unevenly, a tensor is a view into a padded buffer, which cannot be saved.
            state[name] = tensor.cpu().clone(memory_format=torch.contiguous_format)
    if rank == 0:
        source = model_files(base)
        folder.mkdir(parents=True, exist_ok=True)
        save_torch_state_dict(state, folder)
        for file in folder.glob("*.safetensors"):
            file.chmod(0o644)  # safetensors writes for the owner alone; a server may run as somebody else
        for pattern in SIDE_FILES:
            for file in sorted(source.glob(pattern)):
                shutil.copy2(file, folder / file.name)
        config = json.loads((source / "config.json").read_text())
        # `torch_dtype` is the older name of the same key; both would contradict each other.
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def model_files(name: str) -> Path:
    """The folder with the base model's configuration and tokenizer files; of a hub id, its cached snapshot."""
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else Path(snapshot_download(name, allow_patterns=["config.json", *SIDE_FILES]))
