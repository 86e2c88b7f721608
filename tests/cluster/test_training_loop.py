"""What waits for what in the training loop, with pools that are no processes."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from headrace.cluster.controller import Controller
from headrace.cluster.job_file import load_job
from headrace.cluster.publisher import PublishReport
from headrace.cluster.queue_actor import Batch, TakenGroup
from headrace.cluster.rollout_queue import CommitRecord, Ledger
from headrace.cluster.run_folder import RunFolder
from headrace.learner.worker import StepReport
from headrace.verifiers.records import Completion, Group, Prompt, Sampling, StopReason, Verdict, VerdictKind, encode
from tests.cluster.test_step_record import REPORT
from tests.factories import group_numbers

STEPS = 3
SECONDS = 10.0  # nothing here takes a tenth of it

ANSWER = Completion("hi", [1], [-0.1], [], StopReason.STOP, Verdict(VerdictKind.PASS, 1.0, "match"), 0.1, 0.1)
GROUP = encode(Group(Prompt(0, 0, [1], {"prompt": "say hi"}), [ANSWER, ANSWER], "rollout-0", Sampling(max_tokens=4)))


class Remote:
    """A method of an actor handle."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.remote = call


class FakeFleet:
    """Keeps the order of what is asked of it. A version is on its way to the generators until a little after the next step
    has come to `arrives_at`."""

    def __init__(self, arrives_at: str) -> None:
        self.events: list[str] = []
        self._reached: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._arrives_at = arrives_at
        self._taken = 0
        self.publisher = SimpleNamespace(version=0)
        self.rollout = SimpleNamespace(serving=["rollout-0"])
        self.learner = SimpleNamespace(train_step=self._train_step, save=self._save)
        self.queue = SimpleNamespace(take=Remote(self._take), commit=Remote(self._commit), ledger=Remote(self._ledger))

    def _say(self, event: str) -> None:
        self.events.append(event)
        self._reached[event].set()

    async def _take(self, timeout_seconds: float) -> Batch:
        self._taken += 1
        self._say(f"take {self._taken}")
        payload = asyncio.get_running_loop().create_future()
        payload.set_result(GROUP)
        return Batch([TakenGroup(group_numbers(), payload)], [], 0, 0, 0)

    async def _train_step(self, groups: list[TakenGroup], step: int) -> StepReport:
        self._say(f"learn {step}")
        return REPORT

    async def _commit(self, step: int) -> CommitRecord:
        return CommitRecord(step, step, [], [], [])

    async def _ledger(self) -> Ledger:
        return Ledger(cursor=0, outstanding=[], trained=STEPS, filtered=0, dropped=0, version=STEPS)

    async def _save(self, folder: str) -> float:
        return 0.0

    async def hold_snapshot(self, version: int) -> float:
        self.publisher.version = version
        self._say(f"snapshot {version}")
        return 0.0

    async def publish(self) -> PublishReport:
        version = self.publisher.version
        if version < STEPS:
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


async def learn(fleet: FakeFleet, letters_job: Path, take_turns: str) -> list[str]:
    """All steps of a run; the events in their order."""
    words = ["--placement.take-turns", take_turns, "--checkpoint.every", "0", "--job.steps", str(STEPS)]
    job, said = load_job(letters_job, words), SimpleNamespace(elapsed_seconds=1.0)
    for name in ("set_phase", "event", "append_ledger", "published", "step"):
        setattr(said, name, lambda *values, **options: None)
    prepared = SimpleNamespace(job=job, held_out=None, layout=SimpleNamespace(text=str))
    folder = RunFolder(letters_job.parent / "run")
    controller = Controller(prepared, fleet, folder, said)  # type: ignore[arg-type]
    await asyncio.wait_for(controller._learn(), SECONDS)
    return fleet.events


async def test_a_version_travels_while_the_next_step_is_taken_and_learned(letters_job):
    events = await learn(FakeFleet(arrives_at="learn"), letters_job, "false")
    assert events.index("learn 2") < events.index("published 1") < events.index("snapshot 2")
    assert events[-1] == f"published {STEPS}"
    assert "pause" not in events


async def test_in_turns_generators_stand_still_from_the_batch_to_the_snapshot(letters_job):
    events = await learn(FakeFleet(arrives_at="take"), letters_job, "true")
    steps = [event for event in events if not event.startswith("published")]
    assert steps == [
        each
        for step in range(1, STEPS + 1)
        for each in (f"take {step}", "pause", f"learn {step}", f"snapshot {step}", "resume")
    ]
    assert events[events.index("take 2") :][:3] == ["take 2", "published 1", "pause"]
