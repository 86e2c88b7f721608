"""What a run says of itself in the end, also when it was interrupted and taken up again."""

import io
import math
import shutil
import time
from collections.abc import Generator
from types import SimpleNamespace

import pytest
from ray.exceptions import OwnerDiedError
from rich.console import Console

from headrace.cluster import run_recorder
from headrace.cluster.display import PlainDisplay
from headrace.cluster.evaluation import EvaluationResult
from headrace.cluster.job_file import load_job
from headrace.cluster.prompt_source import PromptFormat
from headrace.cluster.queue_actor import Batch, TakenGroup
from headrace.cluster.rollout_queue import CommitRecord
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_recorder import RunRecorder
from headrace.cluster.run_records import GroupCounts, Summary
from headrace.verifiers.errors import UserError
from headrace.verifiers.records import (
    Completion,
    Group,
    Prompt,
    Sampling,
    StopReason,
    Verdict,
    VerdictKind,
    encode,
)
from tests.factories import group_numbers, step_record


@pytest.fixture
def process(letters_job, monkeypatch):
    """A process of the run that holds so much memory and has published so many versions."""

    def start(
        memory_bytes: int, syncs: int, resumed_at: int | None = None, *words: str, joined: bool = False
    ) -> RunRecorder:
        monkeypatch.setattr(run_recorder, "tree_pss_bytes", lambda: memory_bytes)
        folder = RunFolder(letters_job.parent / "run")
        folder.create(resume=resumed_at is not None)
        folder.write_job("")
        display = PlainDisplay(Console(quiet=True), lambda: 0.0)
        recorder = RunRecorder(
            load_job(letters_job, words),
            folder,
            display,
            PromptFormat("prompt", None, False),
            None if joined else str(folder.logs),
            0.0,
        )
        recorder.fleet = SimpleNamespace(publisher=SimpleNamespace(syncs=syncs))  # type: ignore[assignment]
        if resumed_at is not None:
            recorder.resume(resumed_at, elapsed_seconds=100.0)
        recorder._measure_memory()
        folder.close()  # as far as others are kept out; this process goes on writing
        return recorder

    return start


def train(recorder: RunRecorder, steps: range) -> None:
    """Each step trains two prompts, and filters one and drops one on the way."""
    for step in steps:
        ids = [f"{step}:{ordinal}" for ordinal in range(4)]
        recorder.append_ledger(CommitRecord(step, step, ids[:2], ids[2:3], [(ids[3], "infra_error")]))
        recorder.step(step_record(step, staleness_max=step, samples=30, seconds=10.0))


def summed_up(recorder: RunRecorder, step: int) -> Summary:
    return recorder.finish({}, step, "model")


def test_a_run_that_goes_through_counts_what_it_did(process):
    recorder = process(2**30, 5)
    train(recorder, range(1, 6))
    summary = summed_up(recorder, 5)
    assert (summary.steps, summary.weight_syncs, summary.peak_memory_bytes) == (5, 5, 2**30)
    assert summary.groups == GroupCounts(trained=10, filtered=5, dropped=5)


def test_a_run_on_a_joined_cluster_says_nothing_of_memory_that_it_cannot_see(process):
    assert summed_up(process(2**30, 1), 0).peak_memory_bytes == 2**30
    resumed = process(2**33, 1, 0, joined=True)
    assert summed_up(resumed, 0).peak_memory_bytes is None
    assert resumed._folder.read_peak_memory() == 2**30


@pytest.mark.parametrize(("before", "after"), [(2**33, 2**30), (2**30, 2**33)])
def test_a_resumed_run_counts_what_came_before_and_not_what_was_lost(process, before, after):
    first = process(before, 7)
    train(first, range(1, 8))  # a crash in step 8: the checkpoint is that of step 5
    second = process(after, 3, 5)
    assert second.weight_syncs == 8
    train(second, range(6, 9))
    summary = summed_up(second, 8)
    assert (summary.steps, summary.weight_syncs, summary.peak_memory_bytes) == (8, 8, 2**33)
    assert summary.groups == GroupCounts(trained=16, filtered=8, dropped=8)
    assert summary.max_staleness == 8
    assert summary.samples_per_second == pytest.approx(3.0)
    assert summary.seconds > 100.0


def test_the_publishing_of_the_warm_start_is_counted_once_for_a_resumed_run(process):
    words = ("--warm-start.data", "warm.jsonl")
    train(process(2**30, 3, None, *words), range(1, 3))
    assert process(2**30, 0, 2, *words).weight_syncs == 3


def test_what_left_no_checkpoint_does_not_count(process):
    train(process(2**33, 2), range(1, 3))
    again = process(2**30, 1, -1)
    train(again, range(1, 2))
    summary = summed_up(again, 1)
    assert (summary.weight_syncs, summary.peak_memory_bytes) == (1, 2**30)
    assert summary.groups == GroupCounts(trained=2, filtered=1, dropped=1)


def test_the_seconds_of_a_run_count_from_the_start_of_its_processes(process):
    for before, resumed_at in ((0.0, -1), (100.0, 5)):
        recorder = process(2**30, 1)
        recorder._started = time.time() - 50.0  # what came up before the recorder
        recorder.resume(resumed_at, before)
        assert recorder.elapsed_seconds == pytest.approx(before + 50.0, abs=10.0)
        shutil.rmtree(recorder._folder.path)


class Payload:
    """A reference to a group, or to one whose node is gone."""

    def __init__(self, content: bytes | None) -> None:
        self._content = content

    def __await__(self) -> Generator[None, None, bytes]:
        yield
        if self._content is None:
            raise OwnerDiedError("", None, "")
        return self._content


async def test_a_step_keeps_a_sample_of_some_of_its_groups_and_does_without_where_they_are_lost(process):
    recorder = process(2**30, 1)
    await recorder.keep_samples(1, Batch([TakenGroup(group_numbers(), Payload(None))], [], 0, 0, 0))
    assert recorder._folder.read_samples() == []
    groups = [TakenGroup(group_numbers(), Payload(encode(group(f"say {index}")))) for index in range(3)]
    await recorder.keep_samples(2, Batch(groups, [], 0, 0, 0))
    samples = recorder._folder.read_samples()
    assert [(sample.label, sample.step, sample.prompt) for sample in samples] == [
        ("train", 2, "say 0"),
        ("train", 2, "say 1"),
    ]


def group(prompt: str) -> Group:
    verdict = Verdict(VerdictKind.PASS, 1.0, "match")
    answer = Completion("hi", [1], [-0.1], [], StopReason.STOP, verdict, 0.1)
    return Group(Prompt(0, 0, [1], {"prompt": prompt}), [answer, answer], "rollout-0", Sampling(max_tokens=4))


def test_an_evaluation_with_a_prompt_of_which_no_check_ran_is_read_back(process):
    recorder = process(2**30, 1)
    result = EvaluationResult([0.5, math.nan], [1.0, math.nan], 0.25, math.nan, [], 1.5, 4, 2, "no_worker: none serves")
    recorder.evaluated("before", 0, result, 1)
    (stored,) = recorder.load_results().items()
    assert stored[0] == "before"
    assert stored[1].sampled == [0.5, pytest.approx(math.nan, nan_ok=True)]
    assert math.isnan(stored[1].greedy_pass_rate)


def test_a_damaged_line_of_the_ledger_is_named(process):
    recorder = process(2**30, 2)
    train(recorder, range(1, 3))
    with recorder._folder.ledger.open("ab") as ledger:
        ledger.write(b"\0\0\0\n")
    with pytest.raises(UserError, match=r"ledger\.jsonl:3: not a record .*; remove the line$"):
        process(2**30, 2, 2)


def test_a_line_of_the_ledger_that_a_killed_process_left_half_written_is_dropped(process):
    recorder = process(2**30, 2)
    train(recorder, range(1, 3))
    lines = recorder._folder.ledger.read_bytes()
    recorder._folder.ledger.write_bytes(lines + b'{"step":3,"ver')
    process(2**30, 2, 2)
    assert recorder._folder.ledger.read_bytes() == lines


def test_where_memory_is_not_measured_neither_report_nor_display_names_it(process):
    for joined, named in ((False, True), (True, False)):
        recorder = process(2**30, 1, None, joined=joined)
        recorder.finish({}, 0, "model")
        recorder.report()
        summary = recorder.summary
        assert summary is not None
        assert ("peak memory" in recorder._folder.report.read_text()) == named
        console = Console(record=True, quiet=False, file=io.StringIO())
        PlainDisplay(console, lambda: 0.0).close(summary)
        assert ("peak memory" in console.export_text()) == named
        shutil.rmtree(recorder._folder.path)
