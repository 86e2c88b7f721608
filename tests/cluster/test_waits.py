"""What ends a wait before that which is waited for."""

import asyncio
from types import SimpleNamespace

import pytest

from headrace.cluster import waits as module
from headrace.cluster.errors import PoolFailed
from headrace.cluster.publisher import PublishReport
from headrace.cluster.waits import Stopped, Waits

SECONDS = 10.0  # nothing here takes a tenth of it


class FakeFleet:
    """Publishes when it is told to; raises what ended a pool."""

    def __init__(self) -> None:
        self.publisher = SimpleNamespace(version=3)
        self.arrived = asyncio.Event()
        self.publish_failure: Exception | None = None
        self.pool_failure: Exception | None = None

    async def publish(self) -> PublishReport:
        await self.arrived.wait()
        if self.publish_failure is not None:
            raise self.publish_failure
        return PublishReport(3, ["rollout-0"], 1.0, 0.1, 0.0, 0.0)

    def raise_failure(self) -> None:
        if self.pool_failure is not None:
            raise self.pool_failure


class FakeRecorder:
    def __init__(self) -> None:
        self.phases: list[str] = []
        self.reports: list[PublishReport] = []

    def set_phase(self, what: str) -> None:
        self.phases.append(what)

    def published(self, report: PublishReport) -> None:
        self.reports.append(report)


class Waiting:
    def __init__(self) -> None:
        self.fleet, self.recorder = FakeFleet(), FakeRecorder()
        self.waits = Waits(self.fleet, self.recorder)  # type: ignore[arg-type]
        self.cancelled = False

    async def endless(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    async def until(self, *, stoppable: bool = True) -> None:
        async with asyncio.timeout(SECONDS):
            await self.waits.until(self.endless(), stoppable=stoppable)


@pytest.fixture
async def waiting(monkeypatch) -> Waiting:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    return Waiting()


async def test_what_is_waited_for_is_what_comes_back(waiting):
    assert await waiting.waits.until(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(KeyError):
        await waiting.waits.until(fail(KeyError("gone")))


async def fail(error: Exception) -> None:
    raise error


async def test_a_pool_that_fails_ends_every_wait_with_its_own_error(waiting):
    waiting.fleet.pool_failure = PoolFailed("rollout has no members left")
    with pytest.raises(PoolFailed, match="no members left"):
        await waiting.until(stoppable=False)
    await asyncio.sleep(0)
    assert waiting.cancelled


async def test_a_publish_that_fails_beside_it_ends_a_wait(waiting):
    waiting.fleet.publish_failure = PoolFailed("no generator could be reached")
    waiting.waits.publish_beside()
    waiting.fleet.arrived.set()
    with pytest.raises(PoolFailed, match="could be reached"):
        await waiting.until()


async def test_work_beside_it_that_fails_ends_a_wait(waiting):
    async def run() -> None:
        async with waiting.waits.beside(fail(PoolFailed("learner-0 is lost")), "warm start"):
            waiting.waits.request_stop()  # it would end the wait too, and hide why
            await waiting.until()

    with pytest.raises(PoolFailed, match="learner-0 is lost"):
        await run()
    await waiting.waits.until(asyncio.sleep(0))


async def test_work_beside_a_block_that_is_left_early_is_over_with_it(waiting):
    async def run() -> None:
        async with waiting.waits.beside(waiting.endless(), "warm start"):
            await asyncio.sleep(0)
            raise KeyError

    with pytest.raises(KeyError):
        await run()
    assert waiting.cancelled


async def test_a_stop_ends_a_wait_by_which_nothing_is_lost_and_no_other(waiting):
    waiting.waits.request_stop()
    with pytest.raises(Stopped):
        await waiting.until()
    waiting.fleet.pool_failure = PoolFailed("the end")
    with pytest.raises(PoolFailed):
        await waiting.until(stoppable=False)


async def test_a_version_on_its_way_is_waited_for_once_and_told_to_the_recorder(waiting):
    assert await waiting.waits.published() is None
    waiting.waits.publish_beside()
    waiting.fleet.arrived.set()
    report = await waiting.waits.published()
    assert waiting.recorder.reports == [report]
    what = "waiting for version 3 to reach the generators"
    assert waiting.recorder.phases == [what, f"{what}: done"]
    assert await waiting.waits.published() is None


async def test_what_fails_is_not_shown_as_done(waiting):
    with pytest.raises(KeyError), waiting.waits.phase("exporting the model"):
        raise KeyError("gone")
    assert waiting.recorder.phases == ["exporting the model"]


async def test_a_version_on_its_way_is_given_up_with_the_run(waiting):
    waiting.waits.publish_beside()
    await asyncio.sleep(0)
    await waiting.waits.forget_publishing()
    waiting.fleet.arrived.set()
    assert waiting.recorder.reports == []
