"""What an evaluation makes of its groups, and what it does when a generator or a check fails."""

import asyncio
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from ray.exceptions import RayActorError, RayTaskError

from headrace.actors.engine import EngineDied
from headrace.actors.generator import group_numbers
from headrace.cluster.evaluation import (
    EvaluationFailed,
    EvaluationResult,
    Evaluator,
    evaluation_record,
    gain,
    sample_record,
)
from headrace.cluster.prompt_source import PromptFormat
from headrace.cluster.queue_actor import ATTEMPTS
from headrace.cluster.report import write_report
from headrace.cluster.run_folder import RunFolder
from headrace.verifiers.base import not_run, scored
from headrace.verifiers.records import (
    Completion,
    Group,
    Lease,
    Prompt,
    Sampling,
    StopReason,
    Verdict,
    WeightSpan,
    encode,
)
from tests.factories import EndlessPrompts

SECONDS = 5.0  # nothing here takes a tenth of it
SAMPLES = 2
NOT_IN_RANGE = not_run("bad_reward", message="returned -1.0 (float), not a number in [0, 1]")
GOOD = scored(1.0, "scored")


class TenPrompts(EndlessPrompts):
    def __len__(self) -> int:
        return 10


class Generator:
    """A member and its handle; scores the samples of each lease by `score(lease, index)`."""

    def __init__(self, name: str, score: Callable[[Lease, int], Verdict]) -> None:
        self.name = name
        self.score = score
        self.handle = SimpleNamespace(
            generate=SimpleNamespace(remote=self._generate), slots=SimpleNamespace(remote=self._slots)
        )
        self.faults: dict[str, Exception] = {}  # by prompt id
        self.silent: set[str] = set()  # prompts, by id, that it never answers
        self.asked: list[str] = []
        self.failed: list[str] = []
        self.mends = False  # a fault happens once
        self.version = 0

    async def _slots(self) -> int:
        return 4

    def fail(self, reason: str) -> None:
        self.failed.append(reason)

    async def _generate(self, lease: Lease) -> tuple[bytes, bytes]:
        self.asked.append(lease.prompt.id)
        await asyncio.sleep(0)
        if lease.prompt.id in self.silent:
            await asyncio.Event().wait()
        fault = self.faults.get(lease.prompt.id)
        if fault is not None:
            if self.mends:
                del self.faults[lease.prompt.id]
            raise fault
        completions = [
            Completion("x", [1], [-0.1], [WeightSpan(0, 0, 1)], StopReason.STOP, self.score(lease, index), 0.1)
            for index in range(lease.group_size)
        ]
        group = Group(lease.prompt, completions, self.name, lease.sampling)
        return encode(group_numbers(group)), encode(group)


class Serving:
    """A rollout pool whose members that are not failed serve; `spare` comes when one more is waited for."""

    def __init__(self, *members: Generator) -> None:
        self.members = list(members)
        self.spare: list[Generator] = []

    @property
    def serving(self) -> list[Generator]:
        return [member for member in self.members if not member.failed]

    async def wait_serving(self, count: int, deadline_seconds: float) -> None:
        while len(self.serving) < count:
            if not self.spare:
                raise TimeoutError("no member serves")
            self.members.append(self.spare.pop())


async def evaluate(
    *members: Generator,
    spare: Sequence[Generator] = (),
    lease_seconds: float = SECONDS,
    cancel: Callable[[Any], None] = lambda call: None,
) -> EvaluationResult:
    evaluator = Evaluator(TenPrompts(), None, SAMPLES, Sampling(max_tokens=4), lease_seconds, cancel)  # type: ignore[arg-type]
    pool = Serving(*members)
    pool.spare = list(spare)
    async with asyncio.timeout(SECONDS):
        return await evaluator.run(pool, lambda done, total: None)  # type: ignore[arg-type]


def record_of(result: EvaluationResult) -> Any:
    return evaluation_record("before", 0, 0.0, result, SAMPLES, seed=0)


async def test_an_evaluation_in_which_all_checks_ran_has_scored_them_all():
    record = record_of(await evaluate(Generator("g", lambda lease, index: GOOD)))
    assert (record.checks, record.scored_samples, record.not_scored) == (30, 30, "")
    assert (record.samples, record.sampled.reward, record.greedy_pass_rate) == (20, 1.0, 1.0)


async def test_checks_that_did_not_run_are_counted_and_told_and_the_rest_is_averaged():
    def score(lease: Lease, index: int) -> Verdict:
        if lease.prompt.ordinal < 4:
            return NOT_IN_RANGE if lease.prompt.ordinal else not_run("exception", type="KeyError", message="'answer'")
        return scored(0.5 * index, "scored")

    record = record_of(await evaluate(Generator("g", score)))
    assert (record.checks, record.scored_samples) == (30, 18)
    assert record.not_scored == "bad_reward: returned -1.0 (float), not a number in [0, 1]"
    assert record.sampled.reward == pytest.approx(0.25)
    assert record.sampled_pass_rate == 0.0


@pytest.mark.parametrize("greedy_only", [False, True])
async def test_more_than_half_of_the_checks_that_did_not_run_end_the_run_with_the_reason(greedy_only):
    def score(lease: Lease, index: int) -> Verdict:
        greedy = lease.sampling.temperature == 0
        return (
            not_run("no_worker", message="none serves") if lease.prompt.ordinal < 6 and greedy >= greedy_only else GOOD
        )

    says = "^4 of 10 checks ran; no_worker: none serves$" if greedy_only else "^8 of 20 checks ran; no_worker: "
    with pytest.raises(EvaluationFailed, match=says):
        await evaluate(Generator("g", score))


def call_error(error: Exception) -> Exception:
    """As Ray raises it in the caller."""
    return RayTaskError("generate", f"Traceback\n{error!r}", error).as_instanceof_cause()


@pytest.mark.parametrize("death", [RayActorError(), call_error(EngineDied("killed"))], ids=["process", "engine"])
async def test_prompts_of_a_generator_that_died_go_to_the_others(death: Exception):
    dying, other = Generator("dying", lambda lease, index: GOOD), Generator("other", lambda lease, index: GOOD)
    dying.faults = dict.fromkeys([f"0:{ordinal}" for ordinal in range(10)], death)
    record = record_of(await evaluate(dying, other))
    assert record.scored_samples == 30
    assert dying.failed
    assert not other.failed


def at_version(name: str, version: int) -> Generator:
    generator = Generator(name, lambda lease, index: GOOD)
    generator.version = version
    return generator


async def test_a_generator_with_older_weights_is_not_asked():
    behind, newest = at_version("behind", 6), at_version("newest", 7)
    assert record_of(await evaluate(behind, newest)).scored_samples == 30
    assert not behind.asked


async def test_where_all_with_the_newest_weights_are_lost_another_one_is_waited_for():
    behind, dying, late = at_version("behind", 6), at_version("dying", 7), at_version("late", 7)
    dying.faults = {"0:3": RayActorError()}
    assert record_of(await evaluate(behind, dying, spare=[late])).scored_samples == 30
    assert dying.failed
    assert "0:3" in late.asked
    assert not behind.asked


async def test_nobody_else_is_asked_where_no_other_one_with_the_newest_weights_comes():
    behind, dying = at_version("behind", 6), at_version("dying", 7)
    dying.faults = {"0:3": RayActorError()}
    with pytest.raises(TimeoutError):
        await evaluate(behind, dying)
    assert not behind.asked


async def test_a_prompt_that_fails_every_time_ends_the_run_with_the_error_and_costs_no_generator():
    generators = [Generator(name, lambda lease, index: GOOD) for name in ("a", "b")]
    for generator in generators:
        generator.faults = {"0:7": call_error(KeyError("a bug"))}
    with pytest.raises(EvaluationFailed, match=r"^prompt 0:7 failed 5 times: KeyError\('a bug'\)$"):
        await evaluate(*generators)
    assert sum(generator.asked.count("0:7") for generator in generators) >= ATTEMPTS
    assert not any(generator.failed for generator in generators)


async def test_a_prompt_that_fails_once_is_asked_again():
    generator = Generator("g", lambda lease, index: GOOD)
    generator.faults = {"0:7": call_error(KeyError("a bug"))}
    generator.mends = True
    assert record_of(await evaluate(generator)).scored_samples == 30
    assert not generator.failed


async def test_a_call_that_outlasts_its_lease_is_cancelled_and_the_prompt_asked_again():
    generator = Generator("g", lambda lease, index: GOOD)
    generator.silent = {"0:7"}
    cancelled: list[Any] = []
    with pytest.raises(EvaluationFailed, match=r"^prompt 0:7 failed 5 times: no answer in 0\.05 s$"):
        await evaluate(generator, lease_seconds=0.05, cancel=cancelled.append)
    assert len(cancelled) >= ATTEMPTS
    assert not generator.failed


@pytest.mark.parametrize(("row", "answer"), [({"answer": ["a", 1]}, '["a",1]'), ({}, "")])
def test_a_sample_is_kept_with_its_rows_answer(row, answer):
    prompt = Prompt(0, 1, [1], {"prompt": "say a", **row})
    completion = Completion("a", [2], [0.0], [WeightSpan(3, 0, 1)], StopReason.STOP, GOOD, 0.1)
    layout = cast(PromptFormat, SimpleNamespace(text=lambda row: row["prompt"]))
    record = sample_record("after", 3, prompt, "g", completion, layout)
    assert (record.prompt, record.answer) == ("say a", answer)


@pytest.mark.parametrize(
    ("verdict", "stop"),
    [(not_run("timeout", message=""), StopReason.STOP), (GOOD, StopReason.ABORTED)],
    ids=["its check did not run", "the engine gave it up"],
)
def test_a_sample_without_a_reward_has_none_in_the_runs_files_either(verdict, stop, tmp_path):
    completion = Completion("a", [2], [0.0], [WeightSpan(3, 0, 1)], stop, verdict, 0.1)
    layout = cast(PromptFormat, SimpleNamespace(text=lambda row: row["prompt"]))
    record = sample_record("after", 3, Prompt(0, 1, [1], {"prompt": "say a"}), "g", completion, layout)
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.write_job('[job]\nname = "letters"\n')
    folder.append_samples([record])
    assert msgspec.json.decode(folder.samples.read_bytes())["reward"] is None
    [read] = folder.read_samples()
    assert math.isnan(read.reward)
    assert verdict.kind in write_report(folder.path).read_text()
    folder.close()


def result(sampled: list[float], greedy: list[float]) -> EvaluationResult:
    return EvaluationResult(sampled, greedy, 0.0, 0.0, [], 1.0, 4, 4, "")


def test_the_gain_is_after_minus_before_for_both_decodings():
    before, after = result([0.1, 0.3], [0.5, 0.7]), result([0.4, 0.6], [0.6, 0.8])
    scores = gain(after, before, seed=0)
    assert scores.sampled.reward == pytest.approx(0.3)
    assert scores.greedy.reward == pytest.approx(0.1)
