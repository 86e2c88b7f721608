"""The verification pool's worker, and the generators' way to it.

Samples are many and small, calls are dear: `VerificationClient` keeps one queue of samples, and for each worker one task
that takes what is waiting, up to a batch, whenever the worker is free. That is the backpressure, the balancing and the
retry in one: a sample whose worker died goes back into the queue, and another worker's task takes it.

A call has a deadline, by which a worker that hangs is told from one that works. So a batch is only as large as leaves a
call well within it: the first call has one sample, and the next one twice as many while calls are quick.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import ray
import structlog
from ray.exceptions import RayActorError, RayError

from headrace.actors.this_node import this_node
from headrace.verifiers import telemetry
from headrace.verifiers.base import Verifier, printable
from headrace.verifiers.records import Completion, Sample, StopReason, Verdict, VerdictKind
from headrace.verifiers.telemetry import log_stream

log = structlog.get_logger()

BATCH = 64  # samples in one call, at most
QUICK = 1 / 3  # share of the timeout below which a full call is followed by a larger one: twice the samples still fit
SLOW = 2 / 3  # share of the timeout above which calls become smaller
LOGGED_FAILURES = 5  # checks that did not run, of one worker: what is wrong with the first is wrong with the others


class MemberReport(msgspec.Struct, frozen=True):
    """What a pool member says of itself when it is up."""

    pid: int
    node: str
    metrics_url: str
    node_id: str = ""
    shared_memory: list[str] = []  # segments that its processes hold, by name: to be released if it is killed


class WorkerStatus(msgspec.Struct, frozen=True):
    inflight: int  # samples
    done: int
    busy_seconds: float
    call_seconds: float  # how long the call under way has taken so far; 0: there is none


class VerificationWorker:
    """One member of the verification pool: a shell round a verifier. `report` runs in a thread of its own."""

    def __init__(self, run: str, name: str, host: str, verifier: Verifier, log_dir: str | None = None) -> None:
        telemetry.configure_logging(run, name, log_stream(log_dir, name))
        self._verifier = verifier
        self._metrics = telemetry.Telemetry(telemetry.VERIFICATION_METRICS, run, name)
        self._server, port = telemetry.serve_metrics([self._metrics.registry], host)
        self._inflight = 0
        self._done = 0
        self._failures = 0
        self._busy_seconds = 0.0
        self._call_start: float | None = None
        node = this_node().address
        self._report = MemberReport(os.getpid(), node, telemetry.metrics_url(host, port, node))

    def start(self) -> MemberReport:
        try:
            self._verifier.start()
        except Exception:
            log.error("start_failed", exc_info=True)
            raise
        return self._report

    def verify(self, samples: list[Sample]) -> list[Verdict]:
        """The verdicts in the order of the samples."""
        start = self._call_start = time.monotonic()
        self._inflight = len(samples)
        self._metrics.set(telemetry.VERIFICATION_INFLIGHT, self._inflight)
        try:
            verdicts = self._verifier.verify_many(samples)
        finally:
            self._call_start = None
            self._inflight = 0
            self._metrics.set(telemetry.VERIFICATION_INFLIGHT, 0)
            self._busy_seconds += time.monotonic() - start
        self._done += len(verdicts)
        seconds = (time.monotonic() - start) / max(1, len(samples))
        for verdict in verdicts:
            self._metrics.add(
                telemetry.VERIFICATION_VERDICTS, kind=verdict.kind, reason=telemetry.reason_label(verdict.reason)
            )
            self._metrics.observe(telemetry.VERIFICATION_SECONDS, seconds)
            if verdict.kind is VerdictKind.INFRA_ERROR:
                self._log_failure(verdict)
        return verdicts

    def _log_failure(self, verdict: Verdict) -> None:
        self._failures += 1
        if self._failures <= LOGGED_FAILURES:
            failure = failed_check(verdict)
            where = str(verdict.details.get("where", ""))
            log.warning("check_did_not_run", reason=failure.reason, message=failure.message, where=where)

    @ray.method(concurrency_group="watch")
    def report(self) -> WorkerStatus:
        start = self._call_start  # read once: `verify` is in another thread
        call_seconds = time.monotonic() - start if start is not None else 0.0
        return WorkerStatus(self._inflight, self._done, self._busy_seconds, call_seconds)

    def close(self) -> None:
        self._verifier.close()
        self._server.shutdown()


class _Pending(msgspec.Struct):
    sample: Sample
    verdict: asyncio.Future[Verdict]
    attempt: int


class VerificationClient:
    """Gives samples to whichever worker is free. Lives in the generator's event loop."""

    def __init__(self, timeout_seconds: float, attempts: int) -> None:
        """`timeout_seconds`: for one call of a worker, its wait behind those of other generators included."""
        self._timeout_seconds = timeout_seconds
        self._attempts = attempts
        self._batch = 1  # samples in the next call, at most
        self._answered = 0.0  # when a worker last answered, by the event loop's clock
        self._waiting: asyncio.Queue[_Pending] = asyncio.Queue()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._retired: set[str] = set()

    def set_workers(self, workers: dict[str, Any]) -> None:
        """The pool's serving members of the moment, actor handles by name. Those no longer named finish what they hold."""
        for name in self._tasks.keys() - workers.keys():
            self._retired.add(name)
        for name, handle in workers.items():
            self._retired.discard(name)
            if name not in self._tasks:
                task = self._tasks[name] = asyncio.create_task(self._serve(name, handle), name=f"verify with {name}")
                task.add_done_callback(log_bug)

    async def verify(self, sample: Sample) -> Verdict:
        """The verdict; `infra_error` once every attempt has failed, or when no worker has answered anything, this sample or
        another, for attempts x timeout. While they answer, it waits for its turn."""
        loop = asyncio.get_running_loop()
        patience = self._timeout_seconds * self._attempts
        pending = _Pending(sample, loop.create_future(), 1)
        self._waiting.put_nowait(pending)
        start = loop.time()
        try:
            while (left := max(start, self._answered) + patience - loop.time()) > 0:
                if (await asyncio.wait({pending.verdict}, timeout=left))[0]:
                    return pending.verdict.result()
        finally:
            pending.verdict.cancel()  # nobody waits for it any more: it is not offered again
        return infra_error("no_worker", f"no verification worker has answered for {patience:g} s")

    async def _serve(self, name: str, handle: Any) -> None:
        """Feed one worker until it dies or is retired."""
        batch: list[_Pending] = []
        try:
            while name not in self._retired:
                batch = [await self._waiting.get()]
                if name in self._retired:  # it was, while it waited: the sample is another worker's
                    self._waiting.put_nowait(batch[0])
                    return
                # A sample that is offered again goes alone: whatever was wrong is its own, and not its neighbours'.
                while batch[-1].attempt == 1 and len(batch) < self._batch and not self._waiting.empty():
                    batch.append(self._waiting.get_nowait())
                if len(batch) > 1 and batch[-1].attempt > 1:
                    self._waiting.put_nowait(batch.pop())
                batch = [pending for pending in batch if not pending.verdict.done()]
                if batch and not await self._verify_batch(name, handle, batch):
                    return
        except Exception as error:
            # A bug of ours: the worker is taken for lost, and what it held goes to the others.
            self._settle_all(batch, infra_error("worker_lost", f"{name}: {error!r}"))
            raise
        finally:
            self._tasks.pop(name, None)
            self._retired.discard(name)

    async def _verify_batch(self, name: str, handle: Any, batch: list[_Pending]) -> bool:
        """Whether the worker can go on."""
        late = False
        start = asyncio.get_running_loop().time()
        call = asyncio.ensure_future(handle.verify.remote([pending.sample for pending in batch]))
        try:
            done, _ = await asyncio.wait({call}, timeout=self._timeout_seconds)
            if not done:
                late = True
                self._resize(len(batch), self._timeout_seconds)
                log.warning("verification_worker_late", worker=name, samples=len(batch))
                self._settle_all(
                    batch, infra_error("worker_late", f"{name}: no verdict in {self._timeout_seconds:g} s")
                )
                await asyncio.wait({call})  # it gets nothing more before it is free again
            verdicts = call.result()
        except RayActorError as error:
            log.warning("verification_worker_lost", worker=name, samples=len(batch), error=type(error).__name__)
            if not late:
                self._settle_all(batch, infra_error("worker_lost", f"{name}: {type(error).__name__}"))
            return False
        except RayError as error:  # the verifier raised: a bug in it, which another worker has too
            log.error("verification_failed", worker=name, samples=len(batch), error=str(error))
            self._answered = asyncio.get_running_loop().time()
            if not late:
                self._settle_all(batch, infra_error("verifier_raised", str(error).strip().splitlines()[-1]))
            return True
        finally:
            call.cancel()
        self._answered = asyncio.get_running_loop().time()
        if not late:
            self._resize(len(batch), self._answered - start)
        if len(verdicts) != len(batch):
            wrong = infra_error("verdicts_missing", f"{name}: {len(verdicts)} verdicts for {len(batch)} samples")
            verdicts = [wrong] * len(batch)
            log.error("verdicts_missing", worker=name, message=wrong.details["message"])
        for pending, verdict in zip(batch, verdicts, strict=True):
            # A late call has cost its attempt already; only an answer still counts.
            if not late or verdict.kind is not VerdictKind.INFRA_ERROR:
                self._settle(pending, verdict)
        return True

    def _resize(self, samples: int, seconds: float) -> None:
        """What a call of so many samples has taken decides how many the next ones have."""
        if seconds > SLOW * self._timeout_seconds:
            self._batch = max(1, min(self._batch, samples // 2))
        elif seconds < QUICK * self._timeout_seconds and samples == self._batch:
            self._batch = min(BATCH, 2 * samples)

    def _settle_all(self, batch: list[_Pending], verdict: Verdict) -> None:
        for pending in batch:
            self._settle(pending, verdict)

    def _settle(self, pending: _Pending, verdict: Verdict) -> None:
        """Answer, or offer the sample again when the check itself failed."""
        if pending.verdict.done():
            return
        if verdict.kind is VerdictKind.INFRA_ERROR and pending.attempt < self._attempts:
            pending.attempt += 1
            self._waiting.put_nowait(pending)
        else:
            pending.verdict.set_result(verdict)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def log_bug(task: asyncio.Task[None]) -> None:
    """Nobody waits for the task, which fails by a bug of ours only: its trace is in the log."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("verification_task_failed", task=task.get_name(), exc_info=error)


def infra_error(reason: str, message: str) -> Verdict:
    return Verdict(VerdictKind.INFRA_ERROR, 0.0, reason, {"message": message})


class FailedCheck(msgspec.Struct, frozen=True):
    """Why a sample has no reward."""

    reason: str  # the verdict's, or the type of what the verifier raised
    message: str


def failed_check(verdict: Verdict) -> FailedCheck:
    """What an `infra_error` says, on one line."""
    details = verdict.details
    message = " ".join(str(details.get("message", "")).split())
    return FailedCheck(str(details.get("type", verdict.reason)), printable(message))


def failed_checks(completions: Iterable[Completion]) -> list[FailedCheck]:
    """One for each sample without a reward."""
    return [
        FailedCheck("aborted", "the engine gave the sample up")
        if completion.stop_reason is StopReason.ABORTED
        else failed_check(completion.verdict)
        for completion in completions
        if not completion.counts
    ]


def most_common_failure(failures: Sequence[FailedCheck]) -> str:
    """The most common reason, with the message that it came with first; empty when there is none.

    >>> most_common_failure([FailedCheck("late", ""), FailedCheck("KeyError", "'a'"), FailedCheck("KeyError", "'b'")])
    "KeyError: 'a'"
    """
    for reason, _ in Counter(failure.reason for failure in failures).most_common(1):
        message = next(failure.message for failure in failures if failure.reason == reason)
        return f"{reason}: {message}" if message else reason
    return ""
