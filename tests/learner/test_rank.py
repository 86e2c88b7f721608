"""One rank by itself, and one rank against two."""

import importlib.util
import json
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from transformers import AutoModelForCausalLM

from headrace.learner import rank as rank_module
from headrace.learner.advantages import group_advantages, most_varied
from headrace.learner.checkpoint import export_checkpoint
from headrace.learner.losses import LossOptions
from headrace.learner.policy import Policy, load_policy
from headrace.learner.rank import LearnerRank
from headrace.learner.settings import LearnerSettings
from headrace.verifiers.errors import UserError

_spec = importlib.util.spec_from_file_location("two_ranks", Path(__file__).with_name("two_ranks.py"))
assert _spec is not None
assert _spec.loader is not None
scenario = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(scenario)


class Regathering(LearnerSettings, frozen=True):
    """Weights are gathered anew for each pass, as on a GPU."""

    @property
    def gathers_once(self) -> bool:
        return False


def start(settings: LearnerSettings, port: int) -> LearnerRank:
    rank = LearnerRank(settings, 0, 1)
    rank.setup("127.0.0.1", port)
    return rank


@pytest.fixture
def rank(llama_folder: Path, free_port: int) -> Iterator[LearnerRank]:
    rank = start(scenario.settings_for(llama_folder), free_port)
    yield rank
    rank.close()


@pytest.fixture
def rank_with_reference(llama_folder: Path, free_port: int) -> Iterator[LearnerRank]:
    rank = start(scenario.settings_for(llama_folder, loss=scenario.WITH_REFERENCE), free_port)
    yield rank
    rank.close()


def assert_close(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-5), name


def test_two_ranks_take_the_same_steps_as_one(rank_with_reference: LearnerRank, two_rank_results: dict):
    rank = rank_with_reference
    before = scenario.weights(rank)
    metrics = rank.train_step(scenario.random_groups(1), 1)
    assert scenario.comparable(metrics) == pytest.approx(two_rank_results["uneven"], abs=1e-5)
    after = scenario.weights(rank)
    assert any(not torch.allclose(after[name], before[name], atol=1e-4) for name in after)
    assert_close(after, two_rank_results["weights after 1"])
    metrics = rank.train_step(scenario.random_groups(2), 2)
    assert metrics.learner_tokens > rank.settings.max_tokens_per_pack, "several passes"
    assert metrics.kl > 0
    assert scenario.comparable(metrics) == pytest.approx(two_rank_results["alone"], abs=1e-5)
    assert_close(scenario.weights(rank), two_rank_results["weights after 2"])
    for mine, theirs in zip(rank.probe(scenario.PROBES), two_rank_results["probe"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_a_rank_counts_its_own_tokens_and_all_know_the_sum(two_rank_results: dict):
    (first, all_tokens), (second, also_all) = two_rank_results["tokens of each rank, and of all"]
    assert 0 < first < second
    assert first + second == all_tokens == also_all


def test_one_rank_continues_a_checkpoint_of_two(rank_with_reference: LearnerRank, two_rank_results: dict):
    rank = rank_with_reference
    assert rank.load(two_rank_results["checkpoint"]) == 2
    assert_close(scenario.weights(rank), two_rank_results["weights after 2"])
    metrics = rank.train_step(scenario.random_groups(3), 3)
    assert scenario.comparable(metrics) == pytest.approx(two_rank_results["after the checkpoint"], abs=1e-5)
    assert_close(scenario.weights(rank), two_rank_results["weights after 3"])


def test_load_forgets_what_was_learned_since_and_probes_see_it(two_rank_results: dict):
    assert two_rank_results["probe after load"] == two_rank_results["probe"]


def test_supervised_steps_are_the_same_with_two_ranks(rank_with_reference: LearnerRank, two_rank_results: dict):
    rank = rank_with_reference
    rank.load(two_rank_results["checkpoint"])
    loss = rank.supervised_step(scenario.random_examples(4, 5), 1e-3)
    assert loss == pytest.approx(two_rank_results["supervised"], abs=1e-5)
    assert_close(scenario.weights(rank), two_rank_results["weights after supervised"])


def test_a_saved_run_continues_bit_for_bit(rank: LearnerRank, llama_folder: Path, free_port: int, tmp_path: Path):
    rank.train_step(scenario.random_groups(1), 1)
    rank.save(tmp_path / "checkpoint")
    drawn = torch.rand(3)
    rank.train_step(scenario.random_groups(2), 2)
    expected = scenario.weights(rank)
    rank.close()

    again = start(scenario.settings_for(llama_folder, seed=5), free_port)
    assert again.load(tmp_path / "checkpoint") == 1
    assert torch.rand(3).equal(drawn)
    again.train_step(scenario.random_groups(2), 2)
    found = scenario.weights(again)
    again.close()
    assert all(found[name].equal(expected[name]) for name in expected)


def test_a_checkpoint_before_any_step_changes_nothing(
    rank: LearnerRank, llama_folder: Path, free_port: int, tmp_path: Path
):
    rank.save(tmp_path / "checkpoint")
    rank.train_step(scenario.random_groups(1), 1)
    after_saving = scenario.weights(rank)
    rank.close()
    other = start(scenario.settings_for(llama_folder), free_port)
    other.train_step(scenario.random_groups(1), 1)
    found = scenario.weights(other)
    other.close()
    assert all(found[name].equal(after_saving[name]) for name in found)


def test_gradient_does_not_depend_on_packing_or_on_computing_flat_groups(
    rank: LearnerRank, llama_folder: Path, free_port: int
):
    metrics = rank.train_step(scenario.random_groups(1), 1)
    expected = scenario.weights(rank)
    rank.close()
    settings = scenario.settings_for(
        llama_folder, max_tokens_per_pack=1000, head_chunk_tokens=1000, loss=LossOptions(kl_coef=1e-30),
        activation_checkpointing=True,
    )  # fmt: skip
    other = start(Regathering(**msgspec.structs.asdict(settings)), free_port)
    packed = other.train_step(scenario.random_groups(1), 1)
    found = scenario.weights(other)
    other.close()
    assert metrics.learner_tokens > 40, "several passes"
    assert packed.learner_tokens <= 1000, "one pass"
    assert (metrics.groups_without_gradient, packed.groups_without_gradient) == (1, 0)
    assert packed.trained_tokens == metrics.trained_tokens
    assert packed.grad_norm == pytest.approx(metrics.grad_norm, abs=1e-5)
    assert_close(expected, found)


def test_a_step_matches_the_formula_on_the_plain_model(rank: LearnerRank, llama_folder: Path):
    """The gradient's norm from the loss written out for each sample alone, with transformers' own forward."""
    groups = scenario.random_groups(1)
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    total, tokens = torch.zeros(()), 0
    for group in groups:
        kept = [c for c in group.completions if c.verdict.kind != "infra_error"]
        advantages = group_advantages(torch.tensor([c.verdict.reward for c in kept]), True)
        for completion, advantage in zip(kept, advantages, strict=True):
            ids = torch.tensor(group.prompt.token_ids + completion.token_ids)
            logits = model(input_ids=ids[None]).logits[0, len(group.prompt.token_ids) - 1 : -1] / 0.9
            logprobs = torch.log_softmax(logits, -1).gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            weights = (logprobs.detach() - torch.tensor(completion.logprobs)).exp().clamp(max=2.0)
            total = total - (weights * advantage * logprobs).sum()
            tokens += len(completion.token_ids)
    (total / tokens).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    metrics = rank.train_step(groups, 1)
    assert metrics.trained_tokens == tokens
    assert metrics.grad_norm == pytest.approx(norm, rel=1e-4)


def test_a_step_trains_on_the_samples_of_a_group_that_vary_most_and_on_no_others(
    rank: LearnerRank, llama_folder: Path, free_port: int
):
    groups = scenario.random_groups(1)
    whole = rank.train_step(groups, 1)
    rank.close()
    other = start(scenario.settings_for(llama_folder, trained_samples=2), free_port)
    few = other.train_step(groups, 1)
    other.close()
    trained = 0
    for group in groups:
        kept = [c for c in group.completions if c.verdict.kind != "infra_error"]
        chosen = most_varied(torch.tensor([c.verdict.reward for c in kept]), 2)
        trained += sum(len(kept[place].token_ids) for place in chosen)
    assert few.trained_tokens == trained < whole.trained_tokens
    assert few.learner_tokens < whole.learner_tokens
    assert few.grad_norm > 0


def test_a_batch_without_a_gradient_leaves_the_weights_alone(rank: LearnerRank):
    before = scenario.weights(rank)
    flat = scenario.random_groups(1)[2:3]
    metrics = rank.train_step(flat, 1)
    assert (metrics.grad_norm, metrics.loss, metrics.learner_tokens) == (0.0, 0.0, 0)
    assert metrics.trained_tokens == 18
    assert rank.train_step([], 2).trained_tokens == 0
    after = scenario.weights(rank)
    assert all(after[name].equal(before[name]) for name in before)


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_forgotten(
    rank: LearnerRank, llama_folder: Path, free_port: int
):
    before = scenario.weights(rank)
    broken = scenario.random_groups(1)
    broken[0].completions[0].logprobs[0] = float("nan")
    with pytest.raises(FloatingPointError, match="the gradient of step 1 is not finite"):
        rank.train_step(broken, 1)
    after = scenario.weights(rank)
    assert rank.step == 0
    assert all(after[name].equal(before[name]) for name in before)
    assert rank.train_step(scenario.random_groups(1), 1).grad_norm > 0, "nothing is left of it"


def test_gradient_is_clipped_to_the_norm(llama_folder: Path, free_port: int):
    # With plain momentum-free moments the first AdamW step does not show the gradient's size; its moments do.
    rank = start(scenario.settings_for(llama_folder, grad_clip=1e-3), free_port)
    metrics = rank.train_step(scenario.random_groups(1), 1)
    moments = [state["exp_avg"].full_tensor() for state in rank.optimizer.state.values()]
    rank.close()
    assert metrics.grad_norm > 0.01
    norm = torch.stack([moment.norm() for moment in moments]).norm().item() / (1 - 0.9)
    assert norm == pytest.approx(1e-3, rel=0.01)


def test_probe_gives_logprobs_at_temperature_one(rank: LearnerRank, llama_folder: Path):
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    for sequence, found in zip(scenario.PROBES, rank.probe(scenario.PROBES), strict=True):
        ids = torch.tensor(sequence)
        logprobs = torch.log_softmax(model(input_ids=ids[None]).logits[0, :-1], -1)
        assert found == pytest.approx(logprobs.gather(-1, ids[1:, None])[:, 0].tolist(), abs=1e-4)


def test_warm_start_learns_and_its_optimizer_is_dropped(rank: LearnerRank):
    examples = scenario.random_examples(4, 5)
    losses = [rank.supervised_step(examples, 1e-2) for _ in range(8)]
    assert losses[-1] < losses[0] - 1.0
    rank.finish_supervised()
    assert all(not bool(state["exp_avg"].full_tensor().any()) for state in rank.optimizer.state.values())


def test_reference_is_the_policy_after_the_warm_start_and_stays_so_in_a_checkpoint(
    rank_with_reference: LearnerRank, llama_folder: Path, free_port: int, tmp_path: Path
):
    rank = rank_with_reference
    rank.supervised_step(scenario.random_examples(4, 5), 1e-2)
    rank.train_step(scenario.random_groups(1), 1)  # gathers the reference once, under the base model's weights
    rank.finish_supervised()
    first = rank.train_step(scenario.random_groups(2), 2)
    second = rank.train_step(scenario.random_groups(3), 3)
    assert first.kl == pytest.approx(0.0, abs=1e-6)
    assert second.kl > 1e-6
    rank.save(tmp_path / "checkpoint")
    expected = rank.train_step(scenario.random_groups(1), 4)
    rank.close()
    again = start(scenario.settings_for(llama_folder, loss=scenario.WITH_REFERENCE), free_port)
    again.train_step(scenario.random_groups(1), 1)
    again.load(tmp_path / "checkpoint")
    found = again.train_step(scenario.random_groups(1), 4)
    again.close()
    assert found.kl == expected.kl


@pytest.mark.parametrize(("kl_coef", "policies"), [(0.0, 1), (0.05, 2)])
def test_a_reference_policy_is_loaded_only_for_a_kl_term(
    kl_coef: float, policies: int, llama_folder: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
):
    loaded: list[str] = []

    def load(model: str, **options: bool | int) -> Policy:
        loaded.append(model)
        return load_policy(model, **options)

    monkeypatch.setattr(rank_module, "load_policy", load)
    rank = start(scenario.settings_for(llama_folder, loss=LossOptions(kl_coef=kl_coef)), free_port)
    rank.close()
    assert loaded == [str(llama_folder)] * policies
    assert (rank.reference is not None) == (policies == 2)


def test_a_checkpoint_without_the_reference_policy_is_refused(
    rank: LearnerRank, llama_folder: Path, free_port: int, tmp_path: Path
):
    rank.save(tmp_path / "checkpoint")
    rank.close()
    other = start(scenario.settings_for(llama_folder, loss=scenario.WITH_REFERENCE), free_port)
    with pytest.raises(UserError, match="no reference policy"):
        other.load(tmp_path / "checkpoint")
    other.close()


def test_full_tensors_have_the_names_of_the_model_file(rank: LearnerRank, llama_folder: Path):
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    found = dict(rank.named_full_tensors(torch.bfloat16))
    assert found.keys() == dict(model.named_parameters()).keys()
    assert "lm_head.weight" not in found
    assert all(tensor.dtype == torch.bfloat16 for tensor in found.values())


@pytest.mark.parametrize("model", ["llama_folder", "qwen_folder"])
def test_exported_model_loads_in_transformers_with_equal_logits(
    model: str, request: pytest.FixtureRequest, free_port: int, tmp_path: Path
):
    folder = request.getfixturevalue(model)
    rank = start(scenario.settings_for(folder, serving_dtype="float32"), free_port)
    rank.train_step(scenario.random_groups(1), 1)
    rank.export(tmp_path / "model")
    probes = rank.probe(scenario.PROBES)
    rank.close()
    exported, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert exported.dtype == torch.float32
    for sequence, expected in zip(scenario.PROBES, probes, strict=True):
        ids = torch.tensor(sequence)
        logprobs = torch.log_softmax(exported(input_ids=ids[None]).logits[0, :-1], -1)
        assert expected == pytest.approx(logprobs.gather(-1, ids[1:, None])[:, 0].tolist(), abs=1e-4)
    assert (tmp_path / "model" / "tokenizer_config.json").is_file()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_checkpoint_is_exported_as_its_rank_exports_it_and_only_its_weights_are_read(
    dtype: str, qwen_folder: Path, free_port: int, tmp_path: Path
):
    checkpoint = tmp_path / "checkpoint"
    rank = start(scenario.settings_for(qwen_folder, serving_dtype=dtype, loss=scenario.WITH_REFERENCE), free_port)
    rank.train_step(scenario.random_groups(1), 1)
    rank.save(checkpoint)
    rank.export(tmp_path / "by the rank")
    damage(checkpoint, ("optimizer.", "reference.", "rng."))
    with pytest.raises((CheckpointException, UserError)):
        rank.load(checkpoint)
    rank.close()
    output = tmp_path / "alone"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a user would see it
        step = export_checkpoint(checkpoint, output, base=str(qwen_folder), dtype=dtype, dithered=True)
    assert step == 1
    expected, found = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (tmp_path / "by the rank", output)
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert next(iter(found.values())).dtype == getattr(torch, dtype)


def damage(checkpoint: Path, prefixes: tuple[str, ...]) -> None:
    """Overwrite what a checkpoint holds under names that begin so."""
    for index, place in FileSystemReader(checkpoint).read_metadata().storage_data.items():
        if index.fqn.startswith(prefixes):
            with (checkpoint / place.relative_path).open("r+b") as file:
                file.seek(place.offset)
                file.write(b"\xff" * place.length)


def test_exported_config_names_the_serving_dtype_and_others_may_read_it(rank: LearnerRank, tmp_path: Path):
    rank.export(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.bfloat16
    for file in (tmp_path / "model").iterdir():
        assert file.stat().st_mode & stat.S_IRGRP, file.name


def test_computing_in_bfloat16_keeps_float32_weights(llama_folder: Path, free_port: int):
    rank = start(scenario.settings_for(llama_folder, dtype="bfloat16", learning_rate=1e-7), free_port)
    before = scenario.weights(rank)
    metrics = rank.train_step(scenario.random_groups(1), 1)
    after = scenario.weights(rank)
    rank.close()
    assert metrics.grad_norm > 0
    moved = after["model.embed_tokens.weight"] != before["model.embed_tokens.weight"]
    assert moved.any(), "a step of 1e-7 is lost in bfloat16, not in float32"


@pytest.mark.parametrize(("dithered", "least", "most"), [(True, 0.5, 1.5), (False, 0.0, 0.2)])
def test_a_learner_that_computes_in_bfloat16_sees_its_own_small_steps(
    llama_folder: Path, tmp_path: Path, free_port: int, dithered: bool, least: float, most: float
):
    AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    settings = scenario.settings_for(
        tmp_path, dtype="bfloat16", learning_rate=1e-5, weight_decay=0.0, dithered_rounding=dithered
    )
    name = "model.layers.0.mlp.up_proj.weight"
    rank = start(settings, free_port)
    base = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()[name]
    first, computed = scenario.weights(rank)[name], dict(rank.named_full_tensors(torch.bfloat16))[name].clone()
    rank.train_step(scenario.random_groups(1), 1)
    then, sent = scenario.weights(rank)[name], dict(rank.named_full_tensors(torch.bfloat16))[name].clone()
    rank.close()
    assert torch.equal(computed, base)
    assert torch.equal(sent, then.to(torch.bfloat16)), "what is sent is what the learner computes with"
    step = then - first
    kept = ((sent.float() - computed.float()) * step.sign()).sum() / step.abs().sum()
    assert least < kept < most


def test_a_folder_without_a_checkpoint_is_one_line(rank: LearnerRank, tmp_path: Path):
    with pytest.raises(UserError, match="no complete learner checkpoint"):
        rank.load(tmp_path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: os.truncate(folder / ".metadata", 40), r"damaged \(\.metadata: "),
        (lambda folder: os.truncate(folder / "__0_0.distcp", 40), r"__0_0\.distcp has 40 bytes of \d+"),
        (lambda folder: (folder / "__0_0.distcp").unlink(), r"__0_0\.distcp is missing"),
    ],
)
def test_a_damaged_checkpoint_is_one_line_with_the_file(rank: LearnerRank, tmp_path: Path, damage, says):
    rank.save(tmp_path / "checkpoint")
    damage(tmp_path / "checkpoint")
    with pytest.raises(UserError, match=says):
        rank.load(tmp_path / "checkpoint")


def test_another_models_checkpoint_is_refused(rank: LearnerRank, qwen_folder: Path, free_port: int, tmp_path: Path):
    rank.save(tmp_path / "checkpoint")
    rank.close()
    other = start(scenario.settings_for(qwen_folder), free_port)
    with pytest.raises(UserError, match="not this model's"):
        other.load(tmp_path / "checkpoint")
    other.close()


@pytest.mark.parametrize("dtype", ["float12", "float16"])
def test_a_dtype_that_cannot_be_trained_in_is_refused_before_anything_starts(
    dtype: str, llama_folder: Path, free_port: int
):
    with pytest.raises(UserError, match=r"learner\.dtype"):
        start(scenario.settings_for(llama_folder, dtype=dtype), free_port)
    assert not torch.distributed.is_initialized()
