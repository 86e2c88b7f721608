"""A rank's state on disk: checkpoints that any world size can continue from, and the model for others to load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import AdamW

from headrace.learner.policy import Policy, model_files
from headrace.learner.settings import torch_dtype
from headrace.verifiers.errors import UserError

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


def save(folder: Path, policy: Policy, optimizer: AdamW, *, step: int, rank: int) -> None:
    """Write a `torch.distributed.checkpoint` into `folder`. Collective; the metadata file is written last."""
    model_state, optimizer_state = get_state_dict(policy, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state, "step": step, f"rng.{rank}": random_state()}
    dcp.save(state, checkpoint_id=folder)


def load(folder: Path, policy: Policy, optimizer: AdamW, *, rank: int, seed: int, device: torch.device) -> int:
    """Read what `save` wrote, from any world size; the step it was written after. Collective.

    A rank that was not there when the checkpoint was written starts its random state from (seed, step, rank).

    Raises:
        UserError: no complete checkpoint in `folder`, or one of another model.
    """
    try:
        metadata = dcp.FileSystemReader(folder).read_metadata()
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no complete learner checkpoint there (.metadata is missing)") from error
    model_state, optimizer_state = get_state_dict(policy, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state, "step": 0}
    key = f"rng.{rank}"
    if any(name.startswith(key) for name in metadata.state_dict_metadata):
        state[key] = random_state()
    try:
        dcp.load(state, checkpoint_id=folder)
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise UserError(f"{folder}: the checkpoint is not this model's: {reason}") from error
    set_state_dict(policy, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    step = state["step"]
    if key in state:
        set_random_state(state[key])
    else:
        torch.manual_seed((seed * 1_000_003 + step) * 1_009 + rank)
    return step


def random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def export(
    folder: Path, tensors: Callable[[torch.dtype], Iterator[tuple[str, Tensor]]], *, base: str, dtype: str, rank: int
) -> None:
    """Write the model as a Hugging Face folder. Collective: every rank gathers, rank 0 writes, all return together.

    `config.json` is written last: a folder that has one is whole.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in tensors(torch_dtype(dtype, "rollout.dtype")):
        if rank == 0:
            state[name] = tensor.cpu().contiguous()
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
    dist.barrier()
