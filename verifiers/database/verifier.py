"""The verifier `database`: its options, and which engine judges a row. See `judge.py` for the verdict."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from headrace.verifiers.base import Options, Verifier, not_run, parse_options, scored
from headrace.verifiers.confinement import require_confinement
from headrace.verifiers.database.judge import Judge, Judging, asks_for_order
from headrace.verifiers.database.rows import Comparison
from headrace.verifiers.database.sqlite_engine import RunLimits, SqliteEngine
from headrace.verifiers.database.tasks import Dialect, EngineFault, Order, parse_task
from headrace.verifiers.errors import UserError, WrongOption
from headrace.verifiers.limited_process import LimitedProcess, Limits
from headrace.verifiers.records import Sample, Verdict, VerdictKind

if TYPE_CHECKING:
    from headrace.verifiers.database.postgres_engine import PostgresEngine

_FIELDS = ("setup_sql", "gold_sql", "check", "dialect", "variants_sql")
_ROW_IS_GOOD = "row_is_good"
_ROW_ALONE = "row_alone"  # asks the confined check for the row's faults


class DatabaseOptions(Options):
    dialect: Dialect = "sqlite"
    """For rows that do not say: `sqlite` or `postgres`."""
    dsn: str | None = None
    """PostgreSQL's address, as a superuser of a server of its own; "" takes what PGHOST, PGUSER, ... and ~/.pgpass say."""
    order: Order = "auto"
    """Rows in gold's order: `always`, `never`, or where gold has an ORDER BY at its top level."""
    column_names: bool = False
    """Columns must be called as in gold, the case of letters apart."""
    exact_types: bool = False
    """1 is not 1.0. Text is never a number, true is never 1, and NULL equals NULL alone, in any case."""
    float_tolerance: float = Field(1e-9, ge=0, lt=1)
    """Relative, of numbers that are not both whole."""
    ignore_columns: list[str] = Field(default_factory=list)
    """Columns that a state is compared without, as "table.column": clocks, random keys."""
    timeout_seconds: float = Field(2.0, gt=0, le=600)
    """Of the completion's SQL; setup and gold together may take as long. Processor time with SQLite, the clock's with
    PostgreSQL."""
    max_rows: int = Field(10_000, ge=1)
    """Of a result, and of each table of a state."""
    max_result_bytes: int = Field(8 << 20, ge=1024)
    max_value_bytes: int = Field(1 << 20, ge=1024)
    """Of one value; SQLite only."""
    max_database_bytes: int = Field(32 << 20, ge=1 << 20)
    """SQLite: of a database. PostgreSQL: by how much a copy may grow."""
    memory_bytes: int = Field(1 << 30, ge=128 << 20)
    """Of SQLite's process; sandbox only."""
    sandbox: bool = True
    """Run SQLite in a process of its own, with limits and without network or files."""

    @field_validator("ignore_columns")
    @classmethod
    def _name_table_and_column(cls, names: list[str]) -> list[str]:
        for name in names:
            if not all(name.partition(".")):
                raise ValueError(f"{name!r} is not of the form table.column")
        return names

    def judging(self) -> Judging:
        comparison = Comparison(exact_types=self.exact_types, tolerance=self.float_tolerance)
        return Judging(order=self.order, column_names=self.column_names, comparison=comparison)

    def run_limits(self) -> RunLimits:
        return RunLimits(
            seconds=self.timeout_seconds,
            rows=self.max_rows,
            result_bytes=self.max_result_bytes,
            value_bytes=self.max_value_bytes,
            database_bytes=self.max_database_bytes,
        )

    def ignored(self) -> frozenset[str]:
        return frozenset(name.lower() for name in self.ignore_columns)


class DatabaseVerifier(Verifier):
    """The options of `DatabaseOptions` by name. A row has `setup_sql`, `gold_sql` and, as it likes, `check`, `dialect` and
    `variants_sql`.

    Raises UserError for a wrong option, where sqlglot (or psycopg, with `dsn`) is not installed, and with `sandbox` on a
    host that cannot confine a process.

    >>> row = {"setup_sql": "CREATE TABLE t(a); INSERT INTO t VALUES (1), (2)", "gold_sql": "SELECT sum(a) FROM t"}
    >>> DatabaseVerifier(sandbox=False).verify(Sample("SELECT 2 + 1", row)).reason
    'match'
    """

    def __init__(self, **options: Any) -> None:
        _require("sqlglot")
        self.options = given = parse_options(DatabaseOptions, options, "database")
        if given.dsn is not None:
            _require("psycopg")
        elif given.dialect == "postgres":
            raise WrongOption(
                "dsn", "option `dsn` of verifier `database` is missing; dialect `postgres` needs a server"
            )
        self._sqlite = None if given.sandbox else _sqlite_judge(given)
        self._process: LimitedProcess | None = None
        if given.sandbox:
            require_confinement()
            limits = Limits(
                cpu_seconds=2 * given.timeout_seconds + 1,  # gold's, the completion's, and to compare
                wall_seconds=max(30.0, 20 * given.timeout_seconds),
                memory_bytes=given.memory_bytes,
            )
            state = given.model_dump(mode="json", exclude={"dsn"})
            self._process = LimitedProcess(f"{__name__}:load_check", {**state, "dialect": "sqlite"}, limits)
        self._lock = threading.Lock()  # one connection to PostgreSQL, whoever calls
        self._server: PostgresEngine | None = None
        self._postgres: Judge | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.options.model_dump())

    def verify(self, sample: Sample) -> Verdict:
        return self.verify_many([sample])[0]

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        verdicts: dict[int, Verdict] = {}
        for_sqlite: dict[int, Sample] = {}
        for place, sample in enumerate(samples):
            task = parse_task(sample.row, self.options.dialect)
            if isinstance(task, str):
                verdicts[place] = not_run("bad_row", message=task)
            elif task.dialect == "sqlite":
                for_sqlite[place] = Sample(sample.completion, _needed(sample.row))
            elif self.options.dsn is None:
                verdicts[place] = not_run("bad_row", message=_NO_SERVER)
            else:
                with self._lock:
                    verdicts[place] = self._on_postgres().verify(task, sample.completion)
        verdicts |= zip(for_sqlite, self._judge_on_sqlite(list(for_sqlite.values())), strict=True)
        return [verdicts[place] for place in range(len(samples))]

    def check_row(self, row: dict[str, Any]) -> str | None:
        """Runs setup and gold. Raises UserError where the PostgreSQL server cannot be used."""
        task = parse_task(row, self.options.dialect)
        if isinstance(task, str):
            return task
        if task.dialect == "sqlite":
            verdict = self._judge_on_sqlite([Sample("", {**_needed(row), _ROW_ALONE: True})])[0]
            return None if verdict.reason == _ROW_IS_GOOD else _row_message(verdict)
        if self.options.dsn is None:
            return _NO_SERVER
        try:
            with self._lock:
                return self._on_postgres().row_fault(task)
        except EngineFault as fault:
            raise UserError(f"option `dsn` of verifier `database`: {fault}") from fault

    def start(self) -> None:
        if self._process is not None:
            self._process.start()
        if self.options.dsn is not None:
            try:
                with self._lock:
                    self._running_server().start()
            except EngineFault as fault:
                raise UserError(f"option `dsn` of verifier `database`: {fault}") from fault

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
        with self._lock:
            if self._server is not None:
                self._server.close()

    def _judge_on_sqlite(self, samples: list[Sample]) -> list[Verdict]:
        if self._process is not None:
            return self._process.verify_many(samples) if samples else []
        judge = self._sqlite or _sqlite_judge(self.options)
        return [_check(judge, sample) for sample in samples]

    def _on_postgres(self) -> Judge:
        if self._postgres is None:
            self._postgres = Judge(self._running_server(), self.options.judging())
        return self._postgres

    def _running_server(self) -> PostgresEngine:
        if self._server is None:
            # Optional, and __init__ has seen to it that it is there.
            from headrace.verifiers.database.postgres_engine import PostgresEngine

            given = self.options
            self._server = PostgresEngine(given.dsn or "", given.run_limits(), given.ignored())
        return self._server


def load_check(state: dict[str, Any]) -> Callable[[Sample], Verdict]:
    """What the limited process runs."""
    judge = _sqlite_judge(DatabaseOptions.model_validate(state))
    asks_for_order("SELECT 1", "sqlite")  # nothing may be left to import
    return lambda sample: _check(judge, sample)


def _check(judge: Judge, sample: Sample) -> Verdict:
    task = parse_task(sample.row, "sqlite")
    if isinstance(task, str):
        return not_run("bad_row", message=task)
    if not sample.row.get(_ROW_ALONE):
        return judge.verify(task, sample.completion)
    fault = judge.row_fault(task)
    return scored(1.0, _ROW_IS_GOOD) if fault is None else not_run("bad_row", message=fault)


def _sqlite_judge(options: DatabaseOptions) -> Judge:
    return Judge(SqliteEngine(options.run_limits(), options.ignored()), options.judging())


def _needed(row: dict[str, Any]) -> dict[str, Any]:
    return {field: row[field] for field in _FIELDS if field in row} | {"dialect": "sqlite"}


def _row_message(verdict: Verdict) -> str:
    if verdict.kind is VerdictKind.FAIL:  # the process met one of its own limits
        return f"`setup_sql` and `gold_sql` exceed the limits of the verifier ({verdict.reason})"
    return str(verdict.details.get("message", verdict.reason))


_NO_SERVER = "its dialect is `postgres`, and the verifier has no `dsn`"


def _require(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        raise UserError(f"verifier `database` needs {library}: pip install 'headrace[database]'")


def _rebuild(kind: type[DatabaseVerifier], options: dict[str, Any]) -> DatabaseVerifier:
    return kind(**options)
