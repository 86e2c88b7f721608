"""A generator's way to the verification workers: batches, retries elsewhere, and a second worker for what is slow.

Samples are many and small, calls are dear: `VerificationClient` keeps one queue of samples, and for each worker one task
that takes what is waiting, up to a batch, whenever the worker is free. That is the backpressure, the balancing and the
retry in one: a sample that a worker could not check goes back into the queue, and another worker's task takes it.

A call has a deadline, by which a worker that hangs is told from one that works. So a batch is only as large as leaves a
call well within it: the first call has one sample, and the next one twice as many while calls are quick.

Where a check may be repeated, a worker that has nothing to do takes samples of calls that are slower than most, and the
first verdict counts. A worker with which checks fail again and again that run elsewhere is given no more, and told so: the
pool replaces it.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import structlog
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from headrace.verifiers.base import not_run
from headrace.verifiers.errors import cause_line
from headrace.verifiers.records import Sample, Verdict, VerdictKind

log = structlog.get_logger()

BATCH = 64  # samples in one call, at most
QUICK = 1 / 3  # share of the timeout below which a full call is followed by a larger one: twice the samples still fit
SLOW = 2 / 3  # share of the timeout above which calls become smaller

KNOWN_CALLS = 16  # calls of about the same size whose times are known before one can be called slower than most
RECENT_CALLS = 128  # newest calls that a slow one is compared with
HEDGED_FACTOR = 2.0  # times the 95th percentile of their seconds
HEDGED_SECONDS = 0.5  # a call that has taken less is not worth a second one

RECORD = 32  # newest calls of a worker by which it is judged
UNFIT = 5  # of these, with a sample that failed and ran elsewhere; and they must be most
AWAY_SECONDS = 1.0  # before a worker that could not be reached is tried again
NO_EVIDENCE = (
    "worker_lost",
    "verifier_raised",
    "verdicts_missing",
)  # in a call of several: one sample may have caused it


@dataclass(frozen=True)
class _Failure:
    reason: str
    start: float  # of the call, by the event loop's clock
    alone: bool  # the call had no other sample


@dataclass(eq=False)
class _Pending:
    sample: Sample
    verdict: asyncio.Future[Verdict]
    holders: set[str] = field(default_factory=set)  # workers that are checking it
    failed_with: dict[str, _Failure] = field(default_factory=dict)  # the newest, by worker
    failures: int = 0


@dataclass(eq=False)
class _Worker:
    """What the client knows of one of the pool's members."""

    name: str
    handle: Any
    batch: list[_Pending] = field(default_factory=list)  # of the call under way
    start: float = math.inf  # of that call, by the event loop's clock
    late: bool = False  # it has missed the deadline, or could not be reached, and has not answered since
    retired: bool = False
    unfit: str = ""  # why, once it is
    record: deque[bool] = field(default_factory=lambda: deque(maxlen=RECORD))  # of its calls: whether their checks ran
    blamed: float = -math.inf  # when a failure of its was last held against it

    @property
    def usable(self) -> bool:
        return not (self.late or self.retired or self.unfit)


class VerificationClient:
    """Gives samples to whichever worker is free. Lives in the generator's event loop."""

    def __init__(self, timeout_seconds: float, attempts: int, *, repeatable: bool = False) -> None:
        """`timeout_seconds`: for one call of a worker, its wait behind those of other generators included. `attempts`: how
        often a sample is offered, to another worker each time while there is one. `repeatable`: a second check of a sample
        costs time and nothing else, so a slow one may have it."""
        self._timeout_seconds = timeout_seconds
        self._attempts = attempts
        self._repeatable = repeatable
        self._batch = 1  # samples in the next call, at most
        self._answered = 0.0  # when a worker last answered, by the event loop's clock
        self._call_seconds: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT_CALLS))  # by size
        self._waiting: list[_Pending] = []
        self._workers: dict[str, _Worker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._unfit: set[str] = set()  # of the workers that the pool still lists
        self._news = asyncio.Event()  # for workers with nothing to do: look again

    def set_workers(self, workers: dict[str, Any]) -> None:
        """The pool's serving members of the moment, actor handles by name. Those no longer named finish what they hold."""
        self._unfit &= workers.keys()
        for name, worker in self._workers.items():
            worker.retired = name not in workers
        for name, handle in workers.items():
            if name not in self._workers and name not in self._unfit:
                worker = self._workers[name] = _Worker(name, handle)
                task = self._tasks[name] = asyncio.create_task(self._serve(worker), name=f"verify with {name}")
                task.add_done_callback(log_bug)
        self._tell_news()

    async def verify(self, sample: Sample) -> Verdict:
        """The verdict; `infra_error` once every attempt has failed, or when no worker has answered anything, this sample or
        another, for attempts x timeout. While they answer, it waits for its turn."""
        loop = asyncio.get_running_loop()
        patience = self._timeout_seconds * self._attempts
        pending = _Pending(sample, loop.create_future())
        self._offer(pending)
        start = loop.time()
        try:
            while (left := max(start, self._answered) + patience - loop.time()) > 0:
                if (await asyncio.wait({pending.verdict}, timeout=left))[0]:
                    return pending.verdict.result()
        finally:
            pending.verdict.cancel()  # nobody waits for it any more: it is not offered again
        return not_run("no_worker", message=f"no verification worker has answered for {patience:g} s")

    def _offer(self, pending: _Pending) -> None:
        self._waiting.append(pending)
        self._tell_news()

    def _tell_news(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _serve(self, worker: _Worker) -> None:
        """Feed one worker until it dies, is retired or is found unfit."""
        try:
            while not worker.retired and not worker.unfit:
                worker.batch = self._take(worker) or self._take_slow(worker)
                if not worker.batch:
                    await self._wait_for_news()
                elif not await self._verify_batch(worker):
                    return
            while worker.unfit and not worker.retired and not await self._condemn(worker):
                log.warning("verification_worker_not_told", worker=worker.name)
        except Exception as error:
            # A bug of ours: the worker is taken for lost, and what it held goes to the others.
            self._fail_batch(worker, "worker_lost", f"{worker.name}: {error!r}")
            raise
        finally:
            del self._workers[worker.name], self._tasks[worker.name]
            self._tell_news()

    async def _wait_for_news(self) -> None:
        now = asyncio.get_running_loop().time()
        waits = [slow - now for each in self._workers.values() if now < (slow := self._slow_at(each)) < math.inf]
        news = self._news
        try:
            async with asyncio.timeout(min(waits, default=None)):
                await news.wait()
        except TimeoutError:
            return  # a call has become slow

    def _take(self, worker: _Worker) -> list[_Pending]:
        """The next samples that wait. One that is offered again goes alone: whatever was wrong is its own, and not its
        neighbours'."""
        self._waiting = [pending for pending in self._waiting if not pending.verdict.done()]
        usable = {each.name for each in self._workers.values() if each.usable}
        batch: list[_Pending] = []
        for pending in self._waiting:
            if pending.failures and (
                batch or (worker.name in pending.failed_with and usable - pending.failed_with.keys())
            ):
                continue
            batch.append(pending)
            if pending.failures or len(batch) == self._batch:
                break
        taken = set(batch)
        self._waiting = [pending for pending in self._waiting if pending not in taken]
        return batch

    def _take_slow(self, worker: _Worker) -> list[_Pending]:
        """A sample of a call that is slower than most: the last one, since the other worker goes from first to last."""
        now = asyncio.get_running_loop().time()
        slow = [each for each in self._workers.values() if self._slow_at(each) <= now]
        for other in sorted(slow, key=lambda each: each.start):
            for pending in reversed(other.batch):
                alone = pending.holders == {other.name} and worker.name not in pending.failed_with
                if alone and not pending.verdict.done():
                    log.info(
                        "verification_hedged", slow=other.name, by=worker.name, seconds=round(now - other.start, 2)
                    )
                    return [pending]
        return []

    def _slow_at(self, worker: _Worker) -> float:
        """When the call that the worker is busy with will be slower than most, by the event loop's clock."""
        if not self._repeatable or not worker.batch:
            return math.inf
        seconds = sorted(self._call_seconds[_size(worker.batch)])
        if len(seconds) < KNOWN_CALLS:
            return math.inf
        return worker.start + max(HEDGED_SECONDS, HEDGED_FACTOR * seconds[int(0.95 * len(seconds))])

    async def _verify_batch(self, worker: _Worker) -> bool:
        """Whether the worker can go on."""
        loop = asyncio.get_running_loop()
        batch, worker.start = worker.batch, loop.time()
        for pending in batch:
            pending.holders.add(worker.name)
        self._tell_news()  # those who wait look when this call becomes slow
        call = asyncio.ensure_future(worker.handle.verify.remote([pending.sample for pending in batch]))
        try:
            done, _ = await asyncio.wait({call}, timeout=self._timeout_seconds)
            if not done:
                worker.late = True
                self._tell_news()  # those who left a sample to it do so no more
                self._resize(len(batch), self._timeout_seconds)
                log.warning("verification_worker_late", worker=worker.name, samples=len(batch))
                self._fail_batch(worker, "worker_late", f"{worker.name}: no verdict in {self._timeout_seconds:g} s")
                await asyncio.wait({call})  # it gets nothing more before it is free again
            verdicts = call.result()
        except RayActorError as error:
            log.warning("verification_worker_lost", worker=worker.name, samples=len(batch), error=type(error).__name__)
            worker.late = True
            self._fail_batch(worker, "worker_lost", f"{worker.name}: {type(error).__name__}")
            if not isinstance(error, ActorUnavailableError):
                return False
            await asyncio.sleep(AWAY_SECONDS)
            return True
        except RayError as error:  # the verifier raised: a bug in it, which another worker has too
            log.error("verification_failed", worker=worker.name, samples=len(batch), error=str(error))
            self._answered = loop.time()
            self._fail_batch(worker, "verifier_raised", cause_line(error) or type(error).__name__)
            return True
        finally:
            call.cancel()
            worker.late = False
        self._answered = loop.time()
        if worker.batch:  # not late
            seconds = self._answered - worker.start
            self._resize(len(batch), seconds)
            self._call_seconds[_size(batch)].append(seconds)
            if any(verdict.kind is not VerdictKind.INFRA_ERROR for verdict in verdicts):
                worker.record.append(True)
        self._settle_all(worker, batch, verdicts)
        worker.batch = []
        return True

    def _settle_all(self, worker: _Worker, batch: list[_Pending], verdicts: list[Verdict]) -> None:
        if len(verdicts) != len(batch):
            message = f"{worker.name}: {len(verdicts)} verdicts for {len(batch)} samples"
            verdicts = [not_run("verdicts_missing", message=message)] * len(batch)
            log.error("verdicts_missing", worker=worker.name, message=message)
        for pending, verdict in zip(batch, verdicts, strict=True):
            self._settle(worker, pending, verdict, alone=len(batch) == 1)

    def _resize(self, samples: int, seconds: float) -> None:
        """What a call of so many samples has taken decides how many the next ones have."""
        if seconds > SLOW * self._timeout_seconds:
            self._batch = max(1, min(self._batch, samples // 2))
        elif seconds < QUICK * self._timeout_seconds and samples == self._batch:
            self._batch = min(BATCH, 2 * samples)

    def _fail_batch(self, worker: _Worker, reason: str, message: str) -> None:
        """What the worker holds is not checked by it. A late call has cost its samples their attempt already."""
        batch, worker.batch = worker.batch, []
        for pending in batch:
            self._settle(worker, pending, not_run(reason, message=message), alone=len(batch) == 1)

    def _settle(self, worker: _Worker, pending: _Pending, verdict: Verdict, *, alone: bool) -> None:
        """Answer, or offer the sample again when the check itself failed."""
        ran, held = verdict.kind is not VerdictKind.INFRA_ERROR, worker.name in pending.holders
        pending.holders.discard(worker.name)
        if ran:
            if not pending.verdict.done():
                pending.verdict.set_result(verdict)
                self._judge_others(worker, pending)
            return
        if pending.verdict.done() or not held:  # of a late call only an answer still counts
            return
        pending.failures += 1
        pending.failed_with[worker.name] = _Failure(verdict.reason, worker.start, alone)
        if pending.holders:
            return  # another worker has it, too
        if pending.failures < self._attempts:
            self._offer(pending)
        else:
            pending.verdict.set_result(verdict)

    def _judge_others(self, worker: _Worker, pending: _Pending) -> None:
        """This worker has checked what others could not: theirs is the fault, not the sample's.

        A failure counts only if its call began after the last one that counted, and that is known when the sample has run
        elsewhere. So whatever fails everywhere for a while, such as a service that is down, counts once, and not for each
        sample that ran when it was over.
        """
        now = asyncio.get_running_loop().time()
        for name, failure in pending.failed_with.items():
            other = self._workers.get(name)
            if other is None or other is worker or failure.start <= other.blamed:
                continue
            if failure.reason in NO_EVIDENCE and not failure.alone:
                continue
            other.record.append(False)
            other.blamed = now
            failed, calls = other.record.count(False), len(other.record)
            if failed >= UNFIT and 2 * failed > calls:
                other.unfit = f"checks failed in {failed} of its last {calls} calls and ran elsewhere: {failure.reason}"
                self._tell_news()

    async def _condemn(self, worker: _Worker) -> bool:
        """Tell the worker, and by it the pool; whether it is told, or gone."""
        log.error("verification_worker_unfit", worker=worker.name, reason=worker.unfit)
        self._unfit.add(worker.name)
        telling = asyncio.ensure_future(worker.handle.condemn.remote(worker.unfit))
        try:
            done, _ = await asyncio.wait({telling}, timeout=self._timeout_seconds)
            if done:
                telling.result()
            return bool(done)
        except RayActorError:
            return True
        finally:
            telling.cancel()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _size(batch: list[_Pending]) -> int:
    """Calls of about the same size: 1, 2 to 3, 4 to 7 samples, and so on."""
    return len(batch).bit_length()


def log_bug(task: asyncio.Task[None]) -> None:
    """Nobody waits for the task, which fails by a bug of ours only: its trace is in the log."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("verification_task_failed", task=task.get_name(), exc_info=error)
