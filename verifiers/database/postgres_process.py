"""PostgreSQL's check in a process of its own, so that what the server sends may take all of its memory and no other's."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Sequence

from headrace.verifiers.base import not_run, scored
from headrace.verifiers.database.checks import CLOSE, PURPOSE, UNAVAILABLE, PostgresCheck
from headrace.verifiers.database.options import DatabaseOptions
from headrace.verifiers.errors import UserError
from headrace.verifiers.records import Sample, Verdict, VerdictKind
from headrace.verifiers.worker_process import WorkerFailed, WorkerProcess

_CLOSE_SECONDS = 30.0


class PostgresProcess:
    """A process that holds a PostgresCheck. A sample that ends it twice has done so itself, and fails."""

    def __init__(self, options: DatabaseOptions) -> None:
        # Copies, templates and a server that restarts come on top of what SQL may take.
        self._seconds = 120 + 10 * options.timeout_seconds
        payload = pickle.dumps(PostgresCheck(options))
        self._process = WorkerProcess(payload, one_by_one=True, memory_bytes=options.memory_bytes)

    def start(self) -> None:
        """Raises UserError where the server cannot be used."""
        try:
            self._process.start()
        except WorkerFailed as failed:
            raise UserError(str(failed)) from failed

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        ended_by = -1  # the sample that ended the process
        while len(verdicts) < len(samples):
            try:
                outcome = self._process.call(samples[len(verdicts) :], self._seconds)
            except WorkerFailed as failed:
                return verdicts + [not_run(UNAVAILABLE, message=str(failed))] * (len(samples) - len(verdicts))
            verdicts += [_by_the_sample(verdict) for verdict in outcome.verdicts]
            if not outcome.fault:
                continue
            place = len(verdicts)
            if outcome.fault == "timeout":
                verdicts.append(not_run(UNAVAILABLE, message=outcome.message))
            elif place == ended_by:
                verdicts.append(scored(0.0, "crash", message=outcome.message))
            ended_by = place
        return verdicts

    def close(self) -> None:
        """End the process, once it has cleared away what it made on the server."""
        if self._process.pid is not None:
            # Where it had ended before, the next start of any clears away what it left.
            with contextlib.suppress(WorkerFailed):
                self._process.call([Sample("", {PURPOSE: CLOSE})], _CLOSE_SECONDS)
        self._process.close()


def _by_the_sample(verdict: Verdict) -> Verdict:
    """Memory that the check ran out of was taken by what the sample's SQL returned."""
    if verdict.kind is VerdictKind.INFRA_ERROR and verdict.reason == "memory":
        return scored(0.0, "memory", **verdict.details)
    return verdict
