"""Tiny random models, and groups of random tokens; the shapes in the learner's signatures are checked while tests run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("headrace.learner", "beartype.beartype")

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM  # noqa: E402

VOCABULARY = 97


def tiny_llama() -> PreTrainedModel:
    """Tied head, grouped-query attention."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    torch.manual_seed(1)
    return LlamaForCausalLM(config)


def tiny_qwen() -> PreTrainedModel:
    """Untied head, biases in the attention's projections."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    torch.manual_seed(2)
    return Qwen2ForCausalLM(config)


def write_model(model: PreTrainedModel, folder: Path) -> Path:
    # At their initial scale all logits are nearly alike, and a wrong mask would hardly show.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8.0)
    model.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tiny_llama(), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tiny_qwen(), tmp_path_factory.mktemp("qwen"))


def find_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    return find_port()


@pytest.fixture(scope="session")
def two_rank_results(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What two ranks did in `two_ranks.py`, as rank 0 wrote it; the processes run once for all tests."""
    folder = tmp_path_factory.mktemp("two-ranks")
    port = find_port()
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("two_ranks.py")),
                str(rank),
                str(port),
                str(llama_folder),
                str(folder),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    for rank, output in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, output
    return torch.load(folder / "results.pt", weights_only=False)
