"""The training loop with pools that are no processes: what waits for what, for how long, and what is kept when it fails."""

import asyncio
import io
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog.testing
from ray.exceptions import RayTaskError
from rich.console import Console

from headrace.cluster.checkpoint import CheckpointStore
from headrace.cluster.display import PlainDisplay
from headrace.cluster.errors import PoolFailed
from headrace.cluster.job_file import load_job
from headrace.cluster.prompt_source import PromptFormat
from headrace.cluster.publisher import PublishReport
from headrace.cluster.queue_actor import Batch, ChecksFailed, TakenGroup, TakeTimeout
from headrace.cluster.rollout_queue import CommitRecord, Ledger
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_recorder import RunRecorder
from headrace.cluster.run_records import QueueStatus, StepRecord
from headrace.cluster.training_loop import StalledError, TrainingLoop
from headrace.cluster.waits import Stopped, Waits
from headrace.learner.worker import StepReport
from headrace.verifiers.records import Completion, Group, Prompt, Sampling, StopReason, Verdict, VerdictKind, encode
from tests.cluster.test_step_record import REPORT
from tests.factories import group_numbers, queue_status

STEPS = 3
SECONDS = 10.0  # nothing here takes a tenth of it
LEASE_SECONDS = 10.0  # of the queue's own clock

ANSWER = Completion("hi", [1], [-0.1], [], StopReason.STOP, Verdict(VerdictKind.PASS, 1.0, "match"), 0.1)
GROUP = encode(Group(Prompt(0, 0, [1], {"prompt": "say hi"}), [ANSWER, ANSWER], "rollout-0", Sampling(max_tokens=4)))


class Remote:
    """A method of an actor handle."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.remote = call


def over_ray(error: Exception) -> Exception:
    """As Ray raises it in the caller."""
    name = type(error).__name__
    return RayTaskError("take", f"Traceback\n{name}: {error}", error).as_instanceof_cause()


class FakeQueue:
    """A batch is ready at each take, which costs a second of the clock, unless `answers` has an error for that second, or
    `silent_until` is later. `arrivals`: seconds at which a group comes back, for a step or, with `filtered`, of no use."""

    def __init__(self) -> None:
        self.now = 0
        self.silent_until = 0
        self.answers: dict[int, Exception] = {}
        self.arrivals: set[int] = set()
        self.filtered = False
        self.committed = 0
        self.took: Callable[[], None] = lambda: None
        self.take, self.commit = Remote(self._take), Remote(self._commit)
        self.status, self.ledger = Remote(self._status), Remote(self._ledger)

    async def _take(self, timeout_seconds: float) -> Batch:
        self.now += 1
        if self.now in self.answers:
            raise over_ray(self.answers[self.now])
        if self.now < self.silent_until:
            raise over_ray(TakeTimeout("0 of 2 groups ready"))
        self.took()
        payload = asyncio.get_running_loop().create_future()
        payload.set_result(GROUP)
        return Batch([TakenGroup(group_numbers(), payload)], [], 0, 0, 0)

    async def _commit(self, step: int) -> CommitRecord:
        self.committed = step
        return CommitRecord(step, step, [f"0:{step}"], [], [])

    async def _status(self) -> QueueStatus:
        arrived = sum(arrival <= self.now for arrival in self.arrivals)
        return queue_status(filtered=arrived) if self.filtered else queue_status(ready=arrived)

    async def _ledger(self) -> Ledger:
        return Ledger(
            cursor=10, outstanding=[(0, 8)], trained=self.committed, filtered=0, dropped=1, version=self.committed
        )


class FakeFleet:
    """Keeps the order of what is asked of it. A version is on its way to the generators until a little after the next step
    has come to `arrives_at`, but for that of `steps`, which none follows. `failures`: what happens at that event."""

    def __init__(self, arrives_at: str = "take", steps: int = STEPS) -> None:
        self.events: list[str] = []
        self.failures: dict[str, BaseException] = {}
        self._reached: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._arrives_at = arrives_at
        self._steps = steps
        self._taken = 0
        self.publisher = SimpleNamespace(version=0, syncs=0)
        self.rollout = SimpleNamespace(serving=["rollout-0"])
        self.learner = SimpleNamespace(steps=0, settled=True, train_step=self._train_step, save=self._save)

    def _say(self, event: str) -> None:
        self.events.append(event)
        self._reached[event].set()
        if event in self.failures:
            raise self.failures[event]

    def took(self) -> None:
        self._taken += 1
        self._say(f"take {self._taken}")

    async def _train_step(self, groups: list[TakenGroup], step: int) -> StepReport:
        self._say(f"learn {step}")
        self.learner.steps = step
        return REPORT

    async def _save(self, folder: str) -> float:
        self._say(f"save {self.learner.steps}")
        return 0.0

    async def hold_snapshot(self, version: int) -> float:
        self.publisher.version = version
        self._say(f"snapshot {version}")
        return 0.0

    async def publish(self) -> PublishReport:
        version = self.publisher.version
        if version < self._steps:
            await self._reached[f"{self._arrives_at} {version + 1}"].wait()
            for _ in range(50):  # so that nothing is in time without waiting for it
                await asyncio.sleep(0)
        self._say(f"published {version}")
        return PublishReport(version, ["rollout-0"], 0.1, 0.1, 0.0, 0.0)

    async def pause_generators(self) -> None:
        self._say("pause")

    async def resume_generators(self) -> None:
        self._say("resume")

    async def busy_seconds(self) -> dict[str, float]:
        return {}

    def raise_failure(self) -> None:
        """None of the pools fails."""


class Trial:
    """A loop whose folder, recorder and checkpoints are real."""

    def __init__(self, job_file: Path, fleet: FakeFleet, queue: FakeQueue, words: dict[str, str]) -> None:
        given = {"checkpoint.every": "0", "job.steps": str(STEPS), "rollout.lease-seconds": str(LEASE_SECONDS)} | words
        job = load_job(job_file, [word for name, value in given.items() for word in (f"--{name}", value)])
        self.fleet, self.queue = fleet, queue
        queue.took = fleet.took
        self.folder = RunFolder(job_file.parent / "run")
        self.folder.create()
        self.checkpoints = CheckpointStore(self.folder.checkpoints, 2)
        self._screen = io.StringIO()
        display = PlainDisplay(Console(file=self._screen), lambda: 0.0)
        self.recorder = RunRecorder(job, self.folder, display, PromptFormat("prompt", None, False), None, 0.0)
        self.waits = Waits(fleet, self.recorder)  # type: ignore[arg-type]
        self.evaluated: list[tuple[str, int]] = []
        self.loop = TrainingLoop(
            job,
            fleet,  # type: ignore[arg-type]
            queue,
            self.recorder,
            self.checkpoints,
            self.waits,
            self._evaluate,
            take_turns=words.get("placement.take-turns") == "true",
            clock=lambda: queue.now,
        )

    async def _evaluate(self, label: str, step: int) -> None:
        self.evaluated.append((label, step))

    async def run(self) -> None:
        async with asyncio.timeout(SECONDS):
            await self.loop.run()

    @property
    def last_line(self) -> str:
        """What the run said last, without its time."""
        return self._screen.getvalue().splitlines()[-1].split(maxsplit=1)[1]

    def recorded(self) -> list[int]:
        return [record.step for record in self.folder.read_metrics() if isinstance(record, StepRecord)]

    def saved(self) -> int | None:
        newest = self.checkpoints.newest()
        return None if newest is None else newest.state.step


@pytest.fixture
def trial(letters_job):
    def make(fleet: FakeFleet | None = None, queue: FakeQueue | None = None, **words: str) -> Trial:
        given = {name.replace("__", ".").replace("_", "-"): value for name, value in words.items()}
        return Trial(letters_job, fleet or FakeFleet(), queue or FakeQueue(), given)

    return make


async def test_a_version_travels_while_the_next_step_is_taken_and_learned(trial):
    made = trial(FakeFleet(arrives_at="learn"))
    await made.run()
    events = made.fleet.events
    assert events.index("learn 2") < events.index("published 1") < events.index("snapshot 2")
    assert {f"save {STEPS}", f"published {STEPS}"} == set(events[-2:])
    assert "pause" not in events


async def test_what_the_learner_does_in_a_step_is_said_by_name(trial):
    made = trial()
    with structlog.testing.capture_logs() as logs:
        await made.run()
    said = [entry["what"] for entry in logs if entry["event"] == "phase" and entry["what"].startswith("step 2: ")]
    learning, snapshot = (
        "step 2: learning from 1 group(s) with variance of 1",
        "step 2: making the snapshot of its weights",
    )
    assert said == [learning, f"{learning}: done", snapshot, f"{snapshot}: done"]


async def test_in_turns_generators_stand_still_from_the_batch_to_the_snapshot(trial):
    made = trial(placement__take_turns="true")
    await made.run()
    events = made.fleet.events
    steps = [event for event in events if not event.startswith(("published", "save"))]
    assert steps == [
        each
        for step in range(1, STEPS + 1)
        for each in (f"take {step}", "pause", f"learn {step}", f"snapshot {step}", "resume")
    ]
    assert events[events.index("take 2") :][:3] == ["take 2", "published 1", "pause"]


async def test_every_step_has_its_line_its_sample_and_its_entry_in_the_ledger(trial):
    made = trial()
    await made.run()
    assert made.loop.step == STEPS
    assert made.recorded() == [1, 2, 3]
    assert [(sample.step, sample.prompt, sample.completion) for sample in made.folder.read_samples()] == [
        (step, "say hi", "hi") for step in (1, 2, 3)
    ]
    assert (made.folder.path / "ledger.jsonl").read_bytes().count(b"\n") == STEPS
    assert made.saved() == STEPS


async def test_evaluations_and_checkpoints_come_between_steps_as_often_as_the_job_says(trial):
    made = trial(FakeFleet(steps=5), job__steps="5", evaluation__every="2", checkpoint__every="3")
    await made.run()
    assert made.evaluated == [("step 2", 2), ("step 4", 4)]
    assert [event for event in made.fleet.events if event.startswith("save")] == ["save 3", "save 5"]


async def test_a_run_that_is_told_to_stop_ends_after_the_step_under_way_with_a_checkpoint(trial):
    made = trial(FakeFleet(steps=2))

    def took() -> None:
        made.fleet.took()
        if made.queue.now == 2:
            made.waits.request_stop()

    made.queue.took = took
    with pytest.raises(Stopped):
        await made.run()
    assert (made.recorded(), made.saved()) == ([1, 2], 2)


async def test_a_run_that_is_told_to_stop_does_not_wait_for_groups_that_do_not_come(trial):
    made = trial()
    made.queue.silent_until = 10**9
    made.waits.request_stop()
    with pytest.raises(Stopped):
        await made.run()
    assert (made.queue.now, made.saved()) == (1, None)


LOST = PoolFailed("learner-0 is lost")


@pytest.mark.parametrize(
    ("at", "turns"), [("snapshot 2", "false"), ("published 1", "false"), ("snapshot 2", "true"), ("resume", "true")]
)
async def test_a_step_that_fails_after_its_commit_is_recorded_before_it_is_saved(trial, at, turns):
    made = trial(placement__take_turns=turns)
    made.fleet.failures[at] = LOST
    with pytest.raises(PoolFailed, match="learner-0 is lost"):
        await made.run()
    step = 1 if at == "resume" else 2
    assert made.recorded() == list(range(1, step + 1))
    assert made.saved() == made.queue.committed == step


async def test_a_step_that_is_broken_off_after_its_commit_is_recorded(trial):
    made = trial()
    made.fleet.failures["snapshot 2"] = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await made.run()
    assert (made.recorded(), made.saved()) == ([1, 2], None)


async def test_a_step_whose_line_cannot_be_written_is_not_saved(trial, monkeypatch):
    made = trial(checkpoint__every="1")
    append = made.folder.append_metrics

    def append_until_full(record: StepRecord) -> None:
        if record.step == 2:
            raise OSError(28, "No space left on device")
        append(record)

    monkeypatch.setattr(made.folder, "append_metrics", append_until_full)
    with pytest.raises(OSError, match="No space left"):
        await made.run()
    assert (made.recorded(), made.saved()) == ([1], 1)
    assert made.last_line == "step 2 was not finished, so that nothing after step 1 is saved"


async def test_a_step_whose_groups_arrive_slowly_is_waited_for(trial):
    made = trial()
    made.queue.arrivals, made.queue.silent_until = {18, 36, 54}, 70
    await made.run()
    assert made.recorded() == [1, 2, 3]


@pytest.mark.parametrize("filtered", [False, True])
async def test_a_step_whose_groups_stop_arriving_is_given_up_with_what_the_queue_waits_for(trial, filtered):
    made = trial()
    queue = made.queue
    queue.arrivals, queue.silent_until, queue.filtered = ({18, 36} if filtered else {18}), 70, filtered
    with pytest.raises(StalledError) as stalled:
        await made.run()
    assert str(stalled.value) == "no group for step 1 within twice rollout.lease_seconds: 0 of 2 groups ready"
    # Groups that are filtered are of no use: only the first look, at second 1, begins the time anew.
    assert queue.now == (1 if filtered else 18) + 2 * LEASE_SECONDS + 1


async def test_while_no_generator_serves_the_wait_is_the_pools(trial):
    made = trial()
    made.queue.silent_until = 70
    made.fleet.rollout.serving = []
    await made.run()
    assert made.loop.step == STEPS


OUT = "4 groups in a row were dropped"


async def test_checks_that_are_out_end_the_run_with_the_queues_own_line_and_what_is_learned_is_saved(trial):
    made = trial()
    failure = made.queue.answers[3] = ChecksFailed(OUT)
    with pytest.raises(ChecksFailed) as raised:
        await made.run()
    assert raised.value is failure
    checkpoint = made.checkpoints.newest()
    assert checkpoint is not None
    assert (checkpoint.state.step, checkpoint.state.ledger.dropped) == (2, 1)
    assert made.last_line == "step 2 is saved: go on with --resume when the cause is mended"


@pytest.mark.parametrize("wrong", [LOST, OSError(28, "No space left on device")])
async def test_a_learner_that_cannot_save_hides_nothing_of_the_failure(trial, wrong):
    made = trial()
    made.queue.answers[3] = ChecksFailed(OUT)
    made.fleet.failures["save 2"] = wrong
    with pytest.raises(ChecksFailed, match=OUT):
        await made.run()
    assert made.saved() is None
    assert made.last_line == f"step 2 is not saved: {type(wrong).__name__}: {wrong}"


@pytest.mark.parametrize("unsettled", [False, True])
async def test_a_step_that_the_learner_may_have_taken_and_nobody_counted_is_not_saved_as_the_one_before(
    trial, unsettled
):
    made = trial()
    made.fleet.failures["take 3"] = LOST

    def took() -> None:
        if made.queue.now == 3:
            made.fleet.learner.settled = not unsettled
            made.fleet.learner.steps += not unsettled
        made.fleet.took()

    made.queue.took = took
    with pytest.raises(PoolFailed):
        await made.run()
    assert made.saved() is None
    assert made.last_line == "step 3 was not finished, so that nothing after step 0 is saved"
