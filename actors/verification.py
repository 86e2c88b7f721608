"""The verification pool's worker: a verifier in a process of its own. Generators reach it by `verification_client.py`."""

from __future__ import annotations

import os
import time

import msgspec
import ray
import structlog

from headrace.actors.member import MemberReport
from headrace.actors.this_node import this_node
from headrace.verifiers import telemetry
from headrace.verifiers.base import Verifier
from headrace.verifiers.failed_checks import failed_check
from headrace.verifiers.records import Sample, Verdict, VerdictKind
from headrace.verifiers.soundness import judged
from headrace.verifiers.telemetry import log_stream

log = structlog.get_logger()

LOGGED_FAILURES = 5  # checks that did not run, of one worker: what is wrong with the first is wrong with the others


class WorkerStatus(msgspec.Struct, frozen=True):
    inflight: int  # samples
    done: int
    busy_seconds: float
    call_seconds: float  # how long the call under way has taken so far; 0: there is none
    condemned: str = ""  # why a generator found it unfit; empty: none has


class VerificationWorker:
    """One member of the verification pool: a shell round a verifier. `report` and `condemn` run in a thread of their own."""

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
        self._condemned = ""
        node = this_node()
        url = telemetry.metrics_url(host, port, node.address)
        self._report = MemberReport(os.getpid(), node.address, url, node.id)

    def start(self) -> MemberReport:
        try:
            self._verifier.start()
        except Exception:
            log.error("start_failed", exc_info=True)
            raise
        self._metrics.set(telemetry.VERIFICATION_DEGRADED, float(bool(self._verifier.missing_layers())))
        return self._report

    def verify(self, samples: list[Sample]) -> list[Verdict]:
        """The verdicts in the order of the samples."""
        start = self._call_start = time.monotonic()
        self._inflight = len(samples)
        self._metrics.set(telemetry.VERIFICATION_INFLIGHT, self._inflight)
        try:
            verdicts = judged(self._verifier, samples)
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
            log.warning("check_did_not_run", **msgspec.to_builtins(failure))

    @ray.method(concurrency_group="watch")
    def report(self) -> WorkerStatus:
        start = self._call_start  # read once: `verify` is in another thread
        call_seconds = time.monotonic() - start if start is not None else 0.0
        return WorkerStatus(self._inflight, self._done, self._busy_seconds, call_seconds, self._condemned)

    @ray.method(concurrency_group="watch")
    def condemn(self, reason: str) -> None:
        """A generator has found that checks fail here which run elsewhere; the pool sees it in `report` and replaces it."""
        log.error("condemned", reason=reason)
        self._condemned = reason

    def close(self) -> None:
        self._verifier.close()
        telemetry.stop_serving(self._server)
