"""How long the training loop waits for its groups, and with what it ends."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from headrace.cluster import controller
from headrace.cluster.checkpoint import CheckpointStore
from headrace.cluster.controller import Controller, StalledError
from headrace.cluster.pool import PoolFailed, RunFailed
from headrace.cluster.queue_actor import ChecksFailed, TakeTimeout
from headrace.cluster.rollout_queue import Ledger
from headrace.cluster.run_records import QueueStatus
from tests.factories import queue_status

LEASE_SECONDS = 10.0


class Remote:
    """A method of an actor handle."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.remote = call


def over_ray(error: Exception) -> Exception:
    """As Ray raises it in the caller."""
    name = type(error).__name__
    return RayTaskError("take", f"Traceback\n{name}: {error}", error).as_instanceof_cause()


class FakeQueue:
    """Each take costs a second of `now`; a group comes back at each second in `arrivals`, for a step or, with
    `filtered`, of no use."""

    def __init__(self, arrivals: set[int], answers: dict[int, Any], *, filtered: bool = False) -> None:
        self.now = 0
        self.filtered = filtered
        self.arrivals = arrivals
        self.answers = answers
        self.take, self.status, self.ledger = Remote(self._take), Remote(self._status), Remote(self._ledger)

    def monotonic(self) -> float:
        return self.now

    async def _take(self, timeout_seconds: float) -> Any:
        self.now += 1
        answer = self.answers.get(self.now, TakeTimeout("0 of 2 groups ready"))
        if isinstance(answer, Exception):
            raise over_ray(answer)
        return answer

    async def _status(self) -> QueueStatus:
        arrived = sum(arrival <= self.now for arrival in self.arrivals)
        return queue_status(filtered=arrived) if self.filtered else queue_status(ready=arrived)

    async def _ledger(self) -> Ledger:
        return Ledger(cursor=10, outstanding=[(0, 8)], trained=8, filtered=0, dropped=1, version=4)


class FakeLearner:
    """Writes its one file, unless there is something wrong with it."""

    def __init__(self, failure: Exception | None = None, steps: int = 4) -> None:
        self.failure = failure
        self.steps = steps
        self.settled = True

    async def save(self, folder: str) -> float:
        if self.failure is not None:
            raise self.failure
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "weights").write_text("of step 4")
        return 1.0


class FakeFleet:
    def __init__(self, queue: FakeQueue) -> None:
        self.queue = queue
        self.rollout = SimpleNamespace(serving=["rollout-0"])

    def raise_failure(self) -> None: ...

    async def busy_seconds(self) -> dict[str, float]:
        return {}


async def learn(queue: FakeQueue, learner: FakeLearner, folder: Path) -> tuple[Exception, list[str]]:
    """What step 5 fails with, and what the run says of it. Checkpoints go to `folder`, whose newest is of step 3."""
    said: list[str] = []
    waiting = whole_controller(queue)
    waiting._fleet.learner = learner  # type: ignore[assignment]
    waiting._prepared = SimpleNamespace(job=waiting._job)  # type: ignore[assignment]
    waiting._checkpoints, waiting._saved_step = CheckpointStore(folder, 2), 3
    waiting._recorder = SimpleNamespace(set_phase=said.append, event=said.append, elapsed_seconds=60.0)  # type: ignore[assignment]
    with pytest.raises(RunFailed) as raised:
        await waiting._learn()
    return raised.value, said


def whole_controller(queue: FakeQueue) -> Controller:
    """One that waits for step 5; the fleet of a real one is of processes."""
    waiting = Controller.__new__(Controller)
    waiting._fleet = FakeFleet(queue)  # type: ignore[assignment]
    waiting._job = SimpleNamespace(  # type: ignore[assignment]
        job=SimpleNamespace(steps=9),
        rollout=SimpleNamespace(lease_seconds=LEASE_SECONDS),
        algorithm=SimpleNamespace(groups_per_step=2),
        placement=SimpleNamespace(take_turns=False),
    )
    waiting._publishing, waiting._step, waiting._stop = None, 4, asyncio.Event()
    return waiting


async def take(queue: FakeQueue, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(controller, "time", queue)
    return await whole_controller(queue)._take()


async def test_a_step_whose_groups_arrive_slowly_is_waited_for(monkeypatch):
    queue = FakeQueue(arrivals={18, 36, 54}, answers={70: "batch"})
    assert await take(queue, monkeypatch) == "batch"


async def test_a_step_whose_groups_stop_arriving_is_given_up_with_what_the_queue_waits_for(monkeypatch):
    queue = FakeQueue(arrivals={18}, answers={70: "batch"})
    with pytest.raises(StalledError) as stalled:
        await take(queue, monkeypatch)
    assert str(stalled.value) == "no group for step 5 within twice rollout.lease_seconds: 0 of 2 groups ready"
    assert queue.now == 18 + 2 * LEASE_SECONDS + 1


async def test_a_step_whose_groups_are_all_filtered_is_given_up(monkeypatch):
    queue = FakeQueue(arrivals={18, 36, 54}, answers={70: "batch"}, filtered=True)
    with pytest.raises(StalledError):
        await take(queue, monkeypatch)


async def test_checks_that_all_fail_end_the_run_with_the_queues_own_line(monkeypatch):
    failure = ChecksFailed("4 groups in a row were dropped")
    with pytest.raises(ChecksFailed) as raised:
        await take(FakeQueue(set(), {3: failure}), monkeypatch)
    assert raised.value is failure


OUT = "4 groups in a row were dropped"


async def test_what_is_learned_is_saved_before_checks_that_are_out_end_the_run(tmp_path):
    failure, said = await learn(FakeQueue(set(), {1: ChecksFailed(OUT)}), FakeLearner(), tmp_path)
    checkpoint = CheckpointStore(tmp_path, 2).newest()
    assert str(failure) == OUT
    assert checkpoint is not None
    assert (checkpoint.state.step, checkpoint.state.ledger.dropped) == (4, 1)
    assert said[-1] == "step 4 is saved: go on with --resume when the cause is mended"


@pytest.mark.parametrize("wrong", [PoolFailed("learner-0 is lost"), OSError(28, "No space left on device")])
async def test_a_learner_that_cannot_save_hides_nothing_of_the_failure(wrong, tmp_path):
    failure, said = await learn(FakeQueue(set(), {1: ChecksFailed(OUT)}), FakeLearner(wrong), tmp_path)
    assert str(failure) == OUT
    assert CheckpointStore(tmp_path, 2).newest() is None
    assert said[-1] == f"step 4 is not saved: {type(wrong).__name__}: {wrong}"


@pytest.mark.parametrize("unsettled", [False, True])
async def test_a_step_that_the_learner_may_have_taken_and_nobody_counted_is_not_saved_as_the_one_before(
    unsettled, tmp_path
):
    learner = FakeLearner() if unsettled else FakeLearner(steps=5)
    learner.settled = not unsettled
    failure, said = await learn(FakeQueue(set(), {1: ChecksFailed(OUT)}), learner, tmp_path)
    assert str(failure) == OUT
    assert CheckpointStore(tmp_path, 2).newest() is None
    assert said[-1] == "step 5 was not finished, so that nothing after step 3 is saved"


async def test_while_no_generator_serves_the_wait_is_the_pools(monkeypatch):
    queue = FakeQueue(arrivals=set(), answers={70: "batch"})
    monkeypatch.setattr(controller, "time", queue)
    waiting = whole_controller(queue)
    waiting._fleet.rollout.serving = []  # type: ignore[misc]
    assert await waiting._take() == "batch"
