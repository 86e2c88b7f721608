"""A generator's way to the verification workers: batches, retries elsewhere, and an end to every wait."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from structlog.testing import capture_logs

from headrace.actors.verification import LOGGED_FAILURES, VerificationWorker
from headrace.actors.verification_client import BATCH, KNOWN_CALLS, UNFIT, VerificationClient
from headrace.verifiers.base import Verifier, not_run, scored
from headrace.verifiers.records import Sample, Verdict, VerdictKind

SECONDS = 5.0  # nothing here takes a tenth of it


class Remote:
    """A method of an actor handle."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.remote = call


class Worker:
    """A worker's handle. It answers with the sample's own number as the reward, once `gate` is open."""

    def __init__(self, name: str, fault: BaseException | Verdict | None = None) -> None:
        self.name = name
        self.fault = fault
        self.batches: list[int] = []
        self.short = False  # it leaves out the last verdict
        self.gate = asyncio.Event()
        self.gate.set()
        self.condemned = ""
        self.verify = Remote(self._verify)
        self.condemn = Remote(self._condemn)

    async def _condemn(self, reason: str) -> None:
        self.condemned = reason

    async def _verify(self, samples: list[Sample]) -> list[Verdict]:
        self.batches.append(len(samples))
        await self.gate.wait()
        if isinstance(self.fault, BaseException):
            raise self.fault
        return [
            self.fault or Verdict(VerdictKind.PASS, sample.row["number"] / 1000, "match", {"by": self.name})
            for sample in samples[: len(samples) - self.short]
        ]


@asynccontextmanager
async def client_of(
    *workers: Worker, attempts: int = 3, timeout: float = SECONDS, repeatable: bool = False
) -> AsyncIterator[VerificationClient]:
    client = VerificationClient(timeout, attempts, repeatable=repeatable)
    client.set_workers({worker.name: worker for worker in workers})
    try:
        yield client
    finally:
        await client.close()


def sample(number: int) -> Sample:
    return Sample("text", {"number": number})


class FastLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer as soon as nothing else is to be done."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0]._when)
        super()._run_once()


class SlowWorker(Worker):
    """Takes `once` seconds a call and `each` a sample, one call at a time, by the event loop's clock."""

    def __init__(self, name: str, once: float, each: float) -> None:
        super().__init__(name)
        self.once, self.each = once, each
        self.slowest = 0.0
        self.held = 0  # samples of the newest call
        self._free = asyncio.Lock()

    async def _verify(self, samples: list[Sample]) -> list[Verdict]:
        start, self.held = asyncio.get_running_loop().time(), len(samples)
        async with self._free:
            await asyncio.sleep(self.once + self.each * len(samples))
        self.slowest = max(self.slowest, asyncio.get_running_loop().time() - start)
        return await super()._verify(samples)


def by_the_clock(test: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=FastLoop) as runner:
        return runner.run(test)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0)


async def test_samples_that_wait_go_in_one_batch_and_each_gets_its_own_verdict():
    worker = Worker("w")
    worker.gate.clear()
    async with client_of(worker) as client:
        first = asyncio.create_task(client.verify(sample(0)))
        await until(lambda: worker.batches == [1])
        rest = [asyncio.create_task(client.verify(sample(number))) for number in range(1, 3 * BATCH)]
        await asyncio.sleep(0)
        worker.gate.set()
        verdicts = await asyncio.gather(first, *rest)
    assert worker.batches == [1, 2, 4, 8, 16, 32, BATCH, BATCH, 1]
    assert [verdict.reward for verdict in verdicts] == [number / 1000 for number in range(3 * BATCH)]


@pytest.mark.parametrize("generators", [1, 3])
@pytest.mark.parametrize("each", [0.2, 1.0, 4.0, 12.0])
def test_slow_checks_go_in_calls_that_end_in_time_and_every_sample_has_its_turn(each, generators):
    """With the job file's defaults, and much more to check than fits in attempts x timeout."""

    async def scenario() -> None:
        worker = SlowWorker("w", once=0.0, each=each)
        clients = [VerificationClient(30.0, 3) for _ in range(generators)]
        for client in clients:
            client.set_workers({"w": worker})
        verdicts = await asyncio.gather(*[client.verify(sample(n)) for client in clients for n in range(200)])
        assert {verdict.kind for verdict in verdicts} == {VerdictKind.PASS}
        assert sum(worker.batches) == 200 * generators  # none was offered twice
        if each * generators < 30.0:
            assert worker.slowest <= 30.0
        for client in clients:
            await client.close()

    by_the_clock(scenario())


def test_checks_that_run_side_by_side_soon_fill_a_call():
    async def scenario() -> SlowWorker:
        worker = SlowWorker("w", once=9.0, each=0.0)
        async with client_of(worker, timeout=30.0) as client:
            await asyncio.gather(*[client.verify(sample(n)) for n in range(3 * BATCH)])
        return worker

    assert by_the_clock(scenario()).batches == [1, 2, 4, 8, 16, 32, BATCH, BATCH, 1]


def test_calls_become_smaller_when_checks_become_slower():
    async def scenario() -> SlowWorker:
        worker = SlowWorker("w", once=0.0, each=0.01)
        async with client_of(worker, timeout=30.0) as client:
            await asyncio.gather(*[client.verify(sample(n)) for n in range(2 * BATCH - 1)])
            worker.each = 0.4  # 26 s for a whole batch
            await asyncio.gather(*[client.verify(sample(n)) for n in range(3 * BATCH)])
        return worker

    assert by_the_clock(scenario()).batches[-5:] == [BATCH, 32, 32, 32, 32]


def test_a_sample_waits_while_the_worker_answers_others_and_no_longer():
    async def scenario() -> tuple[Verdict, float]:
        worker = SlowWorker("w", once=0.0, each=10.0)
        async with client_of(worker, timeout=15.0, attempts=2) as client:
            verdicts = [asyncio.create_task(client.verify(sample(n))) for n in range(10)]
            await verdicts[4]  # after 50 s
            worker.gate.clear()
            last = await verdicts[-1]
        return last, asyncio.get_running_loop().time()

    verdict, seconds = by_the_clock(scenario())
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "no_worker")
    assert seconds == 80.0


async def test_a_busy_worker_leaves_the_samples_to_a_free_one():
    busy, free = Worker("busy"), Worker("free")
    busy.gate.clear()
    async with client_of(busy) as client:
        first = asyncio.create_task(client.verify(sample(0)))
        await until(lambda: busy.batches == [1])
        client.set_workers({"busy": busy, "free": free})
        assert (await client.verify(sample(1))).details["by"] == "free"
        busy.gate.set()
        assert (await first).details["by"] == "busy"


async def test_samples_of_a_worker_that_dies_are_verified_elsewhere():
    dying, healthy = Worker("dying"), Worker("healthy")
    async with client_of(dying) as client:
        await client.verify(sample(0))
        dying.gate.clear()
        dying.fault = RayActorError()
        verdicts = [asyncio.create_task(client.verify(sample(number))) for number in range(3)]
        await until(lambda: dying.batches == [1, 2])
        client.set_workers({"dying": dying, "healthy": healthy})
        dying.gate.set()
        assert [verdict.details["by"] for verdict in await asyncio.gather(*verdicts)] == ["healthy"] * 3


async def test_a_worker_that_misses_the_deadline_is_given_no_more_and_its_samples_go_elsewhere():
    frozen, healthy = Worker("frozen"), Worker("healthy")
    frozen.gate.clear()
    async with client_of(frozen, timeout=0.05) as client:
        verdict = asyncio.create_task(client.verify(sample(1)))
        await until(lambda: frozen.batches == [1])
        client.set_workers({"frozen": frozen, "healthy": healthy})
        assert (await verdict).details["by"] == "healthy"
        assert (await client.verify(sample(2))).details["by"] == "healthy"
        assert frozen.batches == [1]


async def test_a_call_that_is_late_and_then_lost_offers_its_sample_again_once():
    frozen, second = Worker("frozen", RayActorError()), Worker("second")
    frozen.gate.clear()
    async with client_of(frozen, attempts=20, timeout=0.05) as client:
        verdict = asyncio.create_task(client.verify(sample(1)))
        await until(lambda: len(client._waiting) == 1 and frozen.batches == [1])  # late: offered again
        frozen.gate.set()
        await until(lambda: "frozen" not in client._tasks)
        client.set_workers({"second": second})
        assert (await verdict).kind is VerdictKind.PASS
    assert second.batches == [1]


async def test_a_call_that_is_late_and_then_fails_offers_its_sample_again_once():
    frozen = Worker("frozen", not_run("sandbox_died", message="no memory"))
    frozen.gate.clear()
    async with client_of(frozen, attempts=20, timeout=0.05) as client:
        verdict = asyncio.create_task(client.verify(sample(1)))
        await until(lambda: len(client._waiting) == 1 and frozen.batches == [1])
        frozen.gate.set()
        assert (await verdict).reason == "sandbox_died"
    assert frozen.batches == [1] * 20


@pytest.mark.parametrize("attempts", [1, 3])
async def test_a_check_that_never_runs_to_its_end_is_an_infra_error_after_the_attempts(attempts):
    worker = Worker("w", not_run("sandbox_died", message="no memory"))
    async with client_of(worker, attempts=attempts) as client:
        verdict = await client.verify(sample(1))
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "sandbox_died")
    assert sum(worker.batches) == attempts


async def test_a_check_that_fails_is_tried_with_another_worker_each_time():
    workers = [Worker(name, not_run("starved", message="no processor time")) for name in ("a", "b", "c")]
    async with client_of(*workers) as client:
        verdict = await client.verify(sample(1))
    assert verdict.reason == "starved"
    assert [worker.batches for worker in workers] == [[1], [1], [1]]


async def test_a_check_that_fails_waits_for_the_worker_that_has_not_tried_it():
    failing, busy = Worker("failing", not_run("starved", message="")), Worker("busy")
    busy.gate.clear()
    async with client_of(busy) as client:
        first = asyncio.create_task(client.verify(sample(0)))
        await until(lambda: busy.batches == [1])
        client.set_workers({"busy": busy, "failing": failing})
        second = asyncio.create_task(client.verify(sample(1)))
        await until(lambda: failing.batches == [1] and len(client._waiting) == 1)
        busy.gate.set()
        assert (await second).details["by"] == "busy"
        await first
    assert failing.batches == [1]


async def test_a_worker_whose_checks_run_elsewhere_is_told_that_it_is_unfit_and_given_no_more():
    poisoned, healthy = Worker("poisoned", not_run("sandbox_failed", message="no space left")), Worker("healthy")
    async with client_of(poisoned, healthy) as client:
        for number in range(4 * UNFIT):
            assert (await client.verify(sample(number))).kind is VerdictKind.PASS
        await until(lambda: poisoned.condemned != "")
        client.set_workers({"poisoned": poisoned, "healthy": healthy})  # as the pool does until it has looked
        for number in range(4):
            await client.verify(sample(number))
    assert len(poisoned.batches) == UNFIT
    assert f"checks failed in {UNFIT} of its last {UNFIT} calls and ran elsewhere" in poisoned.condemned
    assert "sandbox_failed" in poisoned.condemned


async def test_a_check_that_fails_everywhere_is_held_against_no_worker():
    workers = [Worker(name, not_run("exception", message="a bug in the check")) for name in ("a", "b")]
    async with client_of(*workers) as client:
        for number in range(4 * UNFIT):
            assert (await client.verify(sample(number))).kind is VerdictKind.INFRA_ERROR
    assert not any(worker.condemned for worker in workers)


async def test_one_sample_that_breaks_its_whole_call_is_held_against_no_worker():
    class Breaking(Worker):
        async def _verify(self, samples: list[Sample]) -> list[Verdict]:
            await super()._verify(samples)
            if any(each.row["number"] == 7 for each in samples):
                raise RayTaskError("verify", "Traceback\nKeyError: 7", KeyError(7))
            return [Verdict(VerdictKind.PASS, 1.0, "match")] * len(samples)

    workers = [Breaking("a"), Breaking("b")]
    async with client_of(*workers) as client:
        for _ in range(2 * UNFIT):
            asked = [client.verify(sample(number)) for number in range(BATCH)]
            verdicts = await asyncio.gather(*asked)
            assert [each.kind for each in verdicts].count(VerdictKind.INFRA_ERROR) == 1
    assert not any(worker.condemned for worker in workers)


class Service:
    """What the checks of all workers need."""

    down = False


class Depending(SlowWorker):
    def __init__(self, name: str, service: Service, each: float) -> None:
        super().__init__(name, once=1.0, each=each)
        self.service = service

    async def _verify(self, samples: list[Sample]) -> list[Verdict]:
        verdicts = await super()._verify(samples)
        return [not_run("no_answer", message="")] * len(samples) if self.service.down else verdicts


@pytest.mark.parametrize("seconds", [3.0, 10.0, 60.0])
def test_an_outage_that_all_workers_see_is_held_against_none(seconds):
    async def scenario() -> list[Depending]:
        service = Service()
        workers = [Depending(name, service, each) for name, each in (("a", 0.01), ("b", 0.03), ("c", 0.1))]
        async with client_of(*workers, timeout=600.0, attempts=1000) as client:
            for _ in range(4):
                asked = [asyncio.create_task(client.verify(sample(n))) for n in range(2 * BATCH)]
                await asyncio.sleep(0.5)
                service.down = True
                await asyncio.sleep(seconds)
                service.down = False
                verdicts = await asyncio.gather(*asked)
                assert {verdict.kind for verdict in verdicts} == {VerdictKind.PASS}
        return workers

    assert not any(worker.condemned for worker in by_the_clock(scenario()))


def test_a_worker_that_is_late_again_and_again_where_others_are_not_is_unfit():
    async def scenario() -> SlowWorker:
        slow, quick = SlowWorker("slow", once=40.0, each=0.0), SlowWorker("quick", once=1.0, each=0.0)
        async with client_of(slow, quick, timeout=30.0) as client:
            for number in range(10 * UNFIT):
                assert (await client.verify(sample(number))).kind is VerdictKind.PASS
        return slow

    assert "worker_late" in by_the_clock(scenario()).condemned


def test_a_sample_is_not_left_to_a_worker_that_has_become_late():
    class FailsOnce(SlowWorker):
        async def _verify(self, samples: list[Sample]) -> list[Verdict]:
            verdicts = await super()._verify(samples)
            return [not_run("starved", message="")] if len(self.batches) == 2 else verdicts

    async def scenario() -> float:
        hung, other = SlowWorker("hung", once=1.0, each=0.0), FailsOnce("other", once=1.0, each=0.0)
        async with client_of(hung, timeout=30.0, repeatable=True) as client:
            (first,) = await slow_call(client, hung, 1, seconds=1000.0)
            client.set_workers({"hung": hung, "other": other})
            assert (await first).details["by"] == "other"
            begun = asyncio.get_running_loop().time()
            assert (await client.verify(sample(2))).details["by"] == "other"
            assert len(other.batches) == 3
        return asyncio.get_running_loop().time() - begun

    assert 1.0 < by_the_clock(scenario()) < 35.0, "as soon as the other worker is late"


def test_a_worker_that_cannot_be_reached_for_a_moment_is_used_again():
    class Away(Worker):
        async def _verify(self, samples: list[Sample]) -> list[Verdict]:
            verdicts = await super()._verify(samples)
            if len(self.batches) <= 2:
                raise ActorUnavailableError("away", None)
            return verdicts

    async def scenario() -> Verdict:
        async with client_of(Away("w"), attempts=3) as client:
            return await client.verify(sample(1))

    assert by_the_clock(scenario()).details["by"] == "w"


async def test_a_worker_that_does_not_take_the_news_is_told_again():
    poisoned, healthy = Worker("poisoned", not_run("sandbox_failed", message="no space left")), Worker("healthy")
    told: list[str] = []

    async def deaf(reason: str) -> None:
        told.append(reason)
        if len(told) == 1:
            await asyncio.Event().wait()

    poisoned.condemn = Remote(deaf)
    async with client_of(poisoned, healthy, timeout=0.05, attempts=100) as client:
        for number in range(4 * UNFIT):
            await client.verify(sample(number))
        await until(lambda: len(told) == 2)
    assert told[0] == told[1] and "sandbox_failed" in told[0]


async def test_a_worker_that_fails_now_and_then_is_not_unfit():
    class Flaky(Worker):
        async def _verify(self, samples: list[Sample]) -> list[Verdict]:
            verdicts = await super()._verify(samples)
            return [not_run("starved", message="")] * len(samples) if len(self.batches) % 3 == 0 else verdicts

    flaky, healthy = Flaky("flaky"), Worker("healthy")
    async with client_of(flaky, healthy) as client:
        for number in range(20 * UNFIT):
            assert (await client.verify(sample(number))).kind is VerdictKind.PASS
    assert len(flaky.batches) > 3 * UNFIT
    assert not flaky.condemned


async def slow_call(
    client: VerificationClient, worker: SlowWorker, samples: int, seconds: float = 20.0
) -> list[asyncio.Task[Verdict]]:
    """A call that takes far longer than those of its size before it."""
    await asyncio.gather(*[client.verify(sample(n)) for n in range(2 * BATCH)])  # calls are as large as they may be now
    for _ in range(KNOWN_CALLS):
        await asyncio.gather(*[client.verify(sample(n)) for n in range(samples)])
    worker.once, worker.held = seconds, 0
    held = [asyncio.create_task(client.verify(sample(n))) for n in range(samples)]
    await until(lambda: worker.held == samples)
    return held


@pytest.mark.parametrize("repeatable", [False, True])
def test_a_slow_check_has_a_second_worker_where_it_may_be_repeated(repeatable):
    async def scenario() -> tuple[Verdict, float, SlowWorker]:
        slow, quick = SlowWorker("slow", once=0.01, each=0.0), SlowWorker("quick", once=0.01, each=0.0)
        async with client_of(slow, timeout=30.0, repeatable=repeatable) as client:
            (held,) = await slow_call(client, slow, 1)
            begun = asyncio.get_running_loop().time()
            client.set_workers({"slow": slow, "quick": quick})
            verdict = await held
        return verdict, asyncio.get_running_loop().time() - begun, quick

    verdict, seconds, quick = by_the_clock(scenario())
    assert verdict.details["by"] == ("quick" if repeatable else "slow")
    assert quick.batches == ([1] if repeatable else [])
    assert seconds < 1.0 if repeatable else seconds > 19.0


def test_of_a_slow_batch_the_samples_go_one_by_one_and_none_is_checked_by_three():
    async def scenario() -> list[SlowWorker]:
        workers = [SlowWorker(name, once=0.01, each=0.0) for name in ("a", "b", "c")]
        async with client_of(workers[0], timeout=30.0, repeatable=True) as client:
            held = await slow_call(client, workers[0], 6)
            client.set_workers({worker.name: worker for worker in workers})
            verdicts = await asyncio.gather(*held)
        assert [verdict.reward for verdict in verdicts] == [number / 1000 for number in range(6)]
        return workers

    _, second, third = by_the_clock(scenario())
    assert second.batches + third.batches == [1] * 6
    assert second.batches
    assert third.batches


def test_a_second_check_that_fails_leaves_the_sample_to_the_first():
    async def scenario() -> Verdict:
        slow, failing = SlowWorker("slow", once=0.01, each=0.0), Worker("failing", not_run("starved", message=""))
        async with client_of(slow, attempts=1, timeout=30.0, repeatable=True) as client:
            (held,) = await slow_call(client, slow, 1)
            client.set_workers({"slow": slow, "failing": failing})
            verdict = await held
            assert failing.batches == [1]
        return verdict

    assert by_the_clock(scenario()).details["by"] == "slow"


async def test_a_worker_lost_at_the_last_attempt_is_named_in_the_verdict():
    async with client_of(Worker("w", RayActorError()), attempts=1) as client:
        verdict = await client.verify(sample(1))
    assert verdict.kind is VerdictKind.INFRA_ERROR
    assert verdict.reason == "worker_lost"
    assert verdict.details["message"].startswith("w: ")


async def test_a_verifier_that_raises_is_an_infra_error_with_its_last_line_and_the_worker_goes_on():
    worker = Worker("w", RayTaskError("verify", "Traceback\nValueError: broken check", ValueError("broken check")))
    async with client_of(worker, attempts=2) as client:
        verdict = await client.verify(sample(1))
        assert verdict.reason == "verifier_raised"
        assert "broken check" in verdict.details["message"]
        worker.fault = None
        assert (await client.verify(sample(2))).kind is VerdictKind.PASS


async def test_samples_that_are_offered_again_go_one_by_one():
    class Picky(Worker):
        async def _verify(self, samples: list[Sample]) -> list[Verdict]:
            verdicts = await super()._verify(samples)
            return [not_run("slow", message="")] * len(samples) if len(samples) > 1 else verdicts

    worker = Picky("w")
    worker.gate.clear()
    async with client_of(worker) as client:
        asked = [asyncio.create_task(client.verify(sample(number))) for number in range(3)]
        await until(lambda: worker.batches == [1])
        worker.gate.set()
        verdicts = await asyncio.gather(*asked)
    assert worker.batches == [1, 2, 1, 1]
    assert [verdict.kind for verdict in verdicts] == [VerdictKind.PASS] * 3


async def test_a_worker_with_too_few_verdicts_gives_infra_errors_and_goes_on():
    worker = Worker("w")
    worker.short = True
    async with client_of(worker, attempts=2) as client:
        verdict = await client.verify(sample(1))
        assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "verdicts_missing")
        assert verdict.details["message"] == "w: 0 verdicts for 1 samples"
        worker.short = False
        assert (await client.verify(sample(2))).kind is VerdictKind.PASS


async def test_a_worker_whose_answer_breaks_the_client_is_lost_and_its_samples_go_elsewhere():
    strange, healthy = Worker("strange"), Worker("healthy")
    strange.fault = "no verdict"  # type: ignore[assignment]
    with capture_logs() as lines:
        async with client_of(strange) as client:
            verdict = asyncio.create_task(client.verify(sample(1)))
            await until(lambda: client._tasks == {})
            client.set_workers({"healthy": healthy})
            assert (await verdict).details["by"] == "healthy"
    assert strange.batches == [1]
    assert [line["task"] for line in lines if line["event"] == "verification_task_failed"] == ["verify with strange"]


async def test_without_a_worker_a_sample_ends_as_an_infra_error_at_the_deadline():
    async with client_of(timeout=0.02, attempts=2) as client:
        verdict = await client.verify(sample(1))
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "no_worker")


async def test_samples_wait_for_the_first_worker():
    async with client_of() as client:
        verdict = asyncio.create_task(client.verify(sample(1)))
        await asyncio.sleep(0)
        client.set_workers({"w": Worker("w")})
        assert (await verdict).kind is VerdictKind.PASS


async def test_a_retired_worker_finishes_what_it_holds_and_gets_no_more():
    old, new = Worker("old"), Worker("new")
    old.gate.clear()
    async with client_of(old) as client:
        held = asyncio.create_task(client.verify(sample(0)))
        await until(lambda: old.batches == [1])
        client.set_workers({"new": new})
        later = await client.verify(sample(1))
        old.gate.set()
        assert (await held).details["by"] == "old"
        assert later.details["by"] == "new"
        assert (await client.verify(sample(2))).details["by"] == "new"
        assert old.batches == [1]


async def test_a_worker_that_is_retired_while_idle_gets_no_more():
    old, new = Worker("old"), Worker("new")
    async with client_of(old) as client:
        await client.verify(sample(0))
        await asyncio.sleep(0)  # it waits for the next sample
        client.set_workers({"new": new})
        for number in range(1, 4):
            assert (await client.verify(sample(number))).details["by"] == "new"
    assert old.batches == [1]


async def test_a_worker_that_comes_back_under_its_name_is_used_again():
    worker, other = Worker("w"), Worker("other")
    async with client_of(worker) as client:
        client.set_workers({"other": other})
        client.set_workers({"w": worker})
        other.gate.clear()
        assert (await client.verify(sample(1))).details["by"] == "w"


class Broken(Verifier):
    def verify(self, sample: Sample) -> Verdict:
        return not_run("exception", type="KeyError", message="'answer'", where="rewards.py:3")


def test_the_worker_logs_its_first_failed_checks_with_their_message(tmp_path):
    worker = VerificationWorker("run", "verification-0", "127.0.0.1", Broken(), str(tmp_path))
    worker.verify([Sample("", {})] * (LOGGED_FAILURES + 3))
    worker.close()
    lines = [json.loads(line) for line in (tmp_path / "verification-0.jsonl").read_text().splitlines()]
    assert len(lines) == LOGGED_FAILURES
    assert (lines[0]["reason"], lines[0]["message"], lines[0]["where"]) == ("KeyError", "'answer'", "rewards.py:3")


class Degraded(Broken):
    def missing_layers(self) -> str:
        return "the sandbox has no seccomp here"


@pytest.mark.parametrize(("verifier", "value"), [(Broken(), 0), (Degraded(), 1)])
def test_a_worker_whose_sandbox_lacks_a_layer_says_so(tmp_path, verifier, value):
    worker = VerificationWorker("run", "verification-0", "127.0.0.1", verifier, str(tmp_path))
    worker.start()
    worker.close()
    labels = {"run": "run", "member": "verification-0"}
    assert worker._metrics.registry.get_sample_value("headrace_verification_sandbox_degraded", labels) == value


class Shouting(Verifier):
    started = closed = False

    def verify(self, sample: Sample) -> Verdict:
        return scored(float(sample.completion.isupper()), "case")

    def start(self) -> None:
        self.started = True

    def close(self) -> None:
        self.closed = True


class Raising(Verifier):
    def verify(self, sample: Sample) -> Verdict:
        raise NotImplementedError

    def verify_many(self, samples: list[Sample]) -> list[Verdict]:
        raise ZeroDivisionError("a bug")


class Chatty(Verifier):
    def verify(self, sample: Sample) -> Verdict:
        return scored(0.0, f"expected 4, got {sample.row['number']}")


def test_reasons_that_are_texts_make_one_series_and_not_one_each(tmp_path):
    worker = VerificationWorker("run", "verification-0", "127.0.0.1", Chatty(), str(tmp_path))
    worker.verify([sample(number) for number in range(3)])
    worker.close()
    labels = {"run": "run", "member": "verification-0", "kind": "fail", "reason": "other"}
    assert worker._metrics.registry.get_sample_value("headrace_verification_verdicts_total", labels) == 3


def test_a_worker_whose_verifier_raised_holds_no_samples_any_more(tmp_path):
    worker = VerificationWorker("run", "verification-0", "127.0.0.1", Raising(), str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        worker.verify([sample(0)])
    worker.close()
    labels = {"run": "run", "member": "verification-0"}
    assert worker._metrics.registry.get_sample_value("headrace_verification_inflight_samples", labels) == 0


def test_the_worker_starts_its_verifier_answers_in_order_and_counts(tmp_path):
    verifier = Shouting()
    worker = VerificationWorker("run", "verification-0", "127.0.0.1", verifier, str(tmp_path))
    report = worker.start()
    assert verifier.started
    assert report.metrics_url.startswith("http://127.0.0.1:")
    verdicts = worker.verify([Sample("YES", {}), Sample("no", {})])
    assert [verdict.kind for verdict in verdicts] == [VerdictKind.PASS, VerdictKind.FAIL]
    worker.condemn("its checks fail")
    status = worker.report()
    assert status.condemned == "its checks fail"
    assert (status.inflight, status.done, status.call_seconds) == (0, 2, 0.0)
    assert status.busy_seconds > 0
    worker.close()
    assert verifier.closed
