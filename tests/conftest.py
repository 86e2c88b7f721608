"""Fixtures that several floors share: a tiny model with a tokenizer, made here, no hub and no download."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder with a random Llama of two layers and a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0, **{letter: index for index, letter in enumerate(alphabet, 1)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the smallest that vLLM's CPU attention has, so that the real engine serves it too
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def letters_job(tiny_model, tmp_path) -> Path:
    """A job file on the tiny model: sixteen prompts, and a reward for the share of small letters in the answer."""
    rows = [{"prompt": f"say {index}"} for index in range(16)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rewards.py").write_text(
        "def score(completion, row):\n    return sum(c.islower() for c in completion) / max(1, len(completion))\n"
    )
    job = tmp_path / "job.toml"
    job.write_text(
        f"""
[job]
name = "letters"
steps = 3
run_dir = "{tmp_path / "run"}"
[model]
base = "{tiny_model}"
max_length = 96
[data]
train = "train.jsonl"
held_out = "train.jsonl"
[reward]
function = "rewards.py:score"
[algorithm]
group_size = 4
groups_per_step = 4
[rollout]
max_tokens = 8
dtype = "float32"
cpus = 0.5
engine = {{ slots = 16 }}
[learner]
learning_rate = 1e-3
threads = 1
cpus = 0.5
[verification]
workers = 1
[evaluation]
prompts = 4
[checkpoint]
every = 2
"""
    )
    return job
