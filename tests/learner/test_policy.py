"""Packed log-probabilities and gradients against the model's own forward, one sample at a time."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from headrace.learner import packing
from headrace.learner import policy as policy_module
from headrace.learner.packing import Branch, Document, pack_documents
from headrace.learner.policy import check_packing, load_policy, naive_check_logprobs
from headrace.verifiers.errors import UserError

VOCABULARY = 97


def random_documents(seed: int = 3, prompts: int = 3, temperature: float = 0.8) -> list[Document]:
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (count,), generator=generator).tolist()

    prefix = ids(7)
    items = []
    for number in range(prompts):
        samples = [ids(length) for length in (5, 1, 9, 4)]
        items.append(
            Document(
                prefix + ids(3 + number),
                [Branch(sample, [-1.0] * len(sample), 0.3 * i - 0.5) for i, sample in enumerate(samples)],
                temperature,
            )
        )
    return items


def naive_logprobs(model, items: list[Document]) -> torch.Tensor:
    rows = []
    for document in items:
        for branch in document.branches:
            ids = torch.tensor(document.prompt + branch.token_ids)
            logits = model(input_ids=ids[None]).logits[0, len(document.prompt) - 1 : -1] / document.temperature
            rows.append(torch.log_softmax(logits, -1).gather(-1, torch.tensor(branch.token_ids)[:, None])[:, 0])
    return torch.cat(rows)


@pytest.fixture(params=["llama_folder", "qwen_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("limit", [1000, 40])
def test_packed_logprobs_equal_those_of_each_sample_alone(folder: Path, limit: int):
    policy = load_policy(str(folder), head_chunk_tokens=16)
    items = random_documents()
    packed = torch.cat([policy.logprobs(pack) for pack in pack_documents(items, limit)])
    naive = naive_logprobs(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), items)
    assert naive.std() > 0.5, "a model whose log-probabilities hardly differ would show nothing"
    assert (packed - naive).abs().max() < 1e-4


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("chunk", [16, 1000])
def test_gradients_equal_those_of_each_sample_alone(folder: Path, chunk: int, checkpointing: bool):
    policy = load_policy(str(folder), head_chunk_tokens=chunk, activation_checkpointing=checkpointing).train()
    items = random_documents()
    (pack,) = pack_documents(items, 1000)
    loss = policy(pack, lambda logprobs, entropies, rows: -(pack.advantages[rows] * logprobs.exp()).sum())
    loss.backward()

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    advantages = torch.tensor([b.advantage for d in items for b in d.branches for _ in b.token_ids])
    expected = -(advantages * naive_logprobs(model, items).exp()).sum()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    for (name, parameter), reference in zip(policy.model.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(parameter.grad, reference.grad, atol=1e-5, rtol=1e-4), name


def test_entropies_are_those_of_the_sampling_distribution(llama_folder: Path):
    policy = load_policy(str(llama_folder), head_chunk_tokens=16)
    items = [Document([1, 2, 3], [Branch([4, 5], [-1.0] * 2, 0.0)], temperature=0.5)]
    (pack,) = pack_documents(items, 100)
    with torch.no_grad():
        _, entropies = policy(pack)
        logits = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)(
            input_ids=torch.tensor([[1, 2, 3, 4]])
        ).logits[0, 2:]
    expected = torch.distributions.Categorical(logits=logits / 0.5).entropy()
    assert torch.allclose(entropies, expected, atol=1e-5)


def test_sliding_window_narrows_the_mask(tmp_path: Path):
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=6,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path), head_chunk_tokens=16)
    items = random_documents()
    packed = torch.cat([policy.logprobs(pack) for pack in pack_documents(items, 1000)])
    naive = naive_logprobs(AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager"), items)
    assert (packed - naive).abs().max() < 1e-4


def test_learned_positions_and_a_head_with_a_bias_are_served(tmp_path: Path):
    PhiForCausalLM(
        PhiConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        )
    ).save_pretrained(tmp_path / "phi")
    GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4)).save_pretrained(
        tmp_path / "gpt2"
    )
    for name in ("phi", "gpt2"):
        policy = load_policy(str(tmp_path / name), head_chunk_tokens=16)
        items = random_documents()
        packed = torch.cat([policy.logprobs(pack) for pack in pack_documents(items, 1000)])
        naive = naive_logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / name), items)
        assert (packed - naive.detach()).abs().max() < 1e-4, name


def test_an_architecture_with_a_running_state_is_refused(tmp_path: Path):
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model\.base"):
        load_policy(str(tmp_path), head_chunk_tokens=16)


def test_packing_check_sees_a_sample_that_sees_its_sibling(llama_folder: Path, monkeypatch: pytest.MonkeyPatch):
    policy = load_policy(str(llama_folder), head_chunk_tokens=16)
    policy.model.set_attn_implementation("sdpa")
    expected = naive_check_logprobs(policy.model)
    policy.model.set_attn_implementation("headrace_packed")
    check_packing(policy, expected, "a model")
    blind = lambda prefix, cuts: (packing.AttentionBlock(cuts[-1][-1], (), None),)  # noqa: E731
    monkeypatch.setattr(packing, "attention_blocks", blind)
    with pytest.raises(UserError, match="cannot be trained with shared prompts"):
        check_packing(policy, expected, "a model")


def test_packing_check_forgives_what_rounding_does_to_what_is_most_unlikely(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    policy = load_policy(str(llama_folder), head_chunk_tokens=16)
    unlikely = policy.logprobs(pack_documents(policy_module.check_documents(VOCABULARY), 1000)[0]) - 40.0
    monkeypatch.setattr(type(policy), "logprobs", lambda *_: unlikely)
    check_packing(policy, unlikely - 0.002, "a model")
    with pytest.raises(UserError, match=r"up to 0\.2"):
        check_packing(policy, unlikely - 0.2, "a model")


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load_policy(str(tmp_path), head_chunk_tokens=16)
    assert "\n" not in str(caught.value)
    assert policy_module.CHECK_TOLERANCE < 0.01
