"""The checks as they run in whatever process: a judge on its engine, asked by samples.

Besides a completion to judge, a sample may ask for the faults of its row alone, or that the check be closed.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from headrace.verifiers.base import Verifier, not_run, printable, scored
from headrace.verifiers.database.judge import UNAVAILABLE, Judge
from headrace.verifiers.database.options import DatabaseOptions
from headrace.verifiers.database.sqlite_engine import SqliteEngine
from headrace.verifiers.database.tasks import Dialect, EngineFault, parse_task
from headrace.verifiers.errors import UserError
from headrace.verifiers.records import Sample, Verdict

if TYPE_CHECKING:
    from headrace.verifiers.database.postgres_engine import PostgresEngine

PURPOSE = "headrace_purpose"  # a field beside the row's own
ROW, CLOSE = "row", "close"
GOOD_ROW, CLOSED = "good_row", "closed"

__all__ = ["CLOSE", "CLOSED", "GOOD_ROW", "PURPOSE", "ROW", "UNAVAILABLE", "PostgresCheck", "SqliteCheck"]


class SqliteCheck(Verifier):
    """Judges on SQLite, in this process."""

    def __init__(self, options: DatabaseOptions) -> None:
        self._judge = Judge(SqliteEngine(options.run_limits(), options.ignored()), options.judging())
        self._lock = threading.Lock()

    def verify(self, sample: Sample) -> Verdict:
        with self._lock:
            return _answer(self._judge, sample, "sqlite")


class PostgresCheck(Verifier):
    """Judges on PostgreSQL, from this process. One connection, whoever calls."""

    def __init__(self, options: DatabaseOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._engine: PostgresEngine | None = None
        self._judge: Judge | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PostgresCheck, (self._options,)

    def verify(self, sample: Sample) -> Verdict:
        if sample.row.get(PURPOSE) == CLOSE:
            self.close()
            return scored(1.0, CLOSED)
        with self._lock:
            self._running()
            assert self._judge is not None
            return _answer(self._judge, sample, "postgres")

    def start(self) -> None:
        """Raises UserError where the server cannot be used."""
        with self._lock:
            try:
                self._running().start()
            except EngineFault as fault:
                raise UserError(f"option `dsn` of verifier `database`: {fault}") from fault

    def close(self) -> None:
        with self._lock:
            if self._engine is not None:
                self._engine.close()

    def _running(self) -> PostgresEngine:
        if self._engine is None:
            # Optional; the verifier has seen to it that it is there.
            from headrace.verifiers.database.postgres_engine import PostgresEngine

            given = self._options
            self._engine = PostgresEngine(given.dsn or "", given.run_limits(), given.ignored())
            self._judge = Judge(self._engine, given.judging())
        return self._engine


def _answer(judge: Judge, sample: Sample, dialect: Dialect) -> Verdict:
    task = parse_task(sample.row, dialect)
    if isinstance(task, str):
        return not_run("bad_row", message=task)
    if sample.row.get(PURPOSE) != ROW:
        return judge.verify(task, sample.completion)
    try:
        fault = judge.row_fault(task)
    except EngineFault as unavailable:
        return not_run(UNAVAILABLE, message=printable(str(unavailable)))
    return scored(1.0, GOOD_ROW) if fault is None else not_run("bad_row", message=fault)
