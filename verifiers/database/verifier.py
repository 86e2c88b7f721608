"""The verifier `database`: which check judges a row, and the process that it runs in. See `judge.py` for the verdict."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from headrace.verifiers.base import Verifier, not_run, parse_options, rebuild
from headrace.verifiers.confinement import require_confinement
from headrace.verifiers.database.checks import GOOD_ROW, PURPOSE, ROW, UNAVAILABLE, PostgresCheck, SqliteCheck
from headrace.verifiers.database.judge import asks_for_order
from headrace.verifiers.database.options import DatabaseOptions
from headrace.verifiers.database.postgres_process import PostgresProcess
from headrace.verifiers.database.tasks import Dialect, parse_task
from headrace.verifiers.errors import UserError, WrongOption
from headrace.verifiers.limited_process import CheckLimits, LimitedProcess
from headrace.verifiers.records import Sample, Verdict, VerdictKind

_FIELDS = ("setup_sql", "gold_sql", "check", "dialect", "variants_sql")


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
        if given.sandbox:
            require_confinement()
        self._sqlite = _Confined(given) if given.sandbox else SqliteCheck(given)
        self._postgres: PostgresProcess | PostgresCheck | None = None
        if given.dsn is not None:
            self._postgres = PostgresProcess(given) if given.sandbox else PostgresCheck(given)

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (type(self), self.options.model_dump())

    def verify(self, sample: Sample) -> Verdict:
        return self.verify_many([sample])[0]

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        verdicts: dict[int, Verdict] = {}
        for_sqlite: dict[int, Sample] = {}
        for_postgres: dict[int, Sample] = {}
        for place, sample in enumerate(samples):
            task = parse_task(sample.row, self.options.dialect)
            if isinstance(task, str):
                verdicts[place] = not_run("bad_row", message=task)
            elif task.dialect == "postgres" and self._postgres is None:
                verdicts[place] = not_run("bad_row", message=_NO_SERVER)
            else:
                given = for_sqlite if task.dialect == "sqlite" else for_postgres
                given[place] = Sample(sample.completion, _needed(sample.row, task.dialect))
        for check, given in ((self._sqlite, for_sqlite), (self._postgres, for_postgres)):
            if check is not None and given:
                verdicts |= zip(given, check.verify_many(list(given.values())), strict=True)
        return [verdicts[place] for place in range(len(samples))]

    def repeatable(self) -> bool:
        return True

    def check_row(self, row: dict[str, Any]) -> str | None:
        """Runs setup and gold. Raises UserError where the PostgreSQL server cannot be used."""
        task = parse_task(row, self.options.dialect)
        if isinstance(task, str):
            return task
        check = self._sqlite if task.dialect == "sqlite" else self._postgres
        if check is None:
            return _NO_SERVER
        verdict = check.verify_many([Sample("", {**_needed(row, task.dialect), PURPOSE: ROW})])[0]
        if verdict.reason == UNAVAILABLE:
            raise UserError(f"option `dsn` of verifier `database`: {verdict.details.get('message')}")
        if verdict.kind is VerdictKind.FAIL:  # a process met one of its own limits
            return f"`setup_sql` and `gold_sql` exceed the limits of the verifier ({verdict.reason})"
        return None if verdict.reason == GOOD_ROW else str(verdict.details.get("message", verdict.reason))

    def start(self) -> None:
        self._sqlite.start()
        if self._postgres is not None:
            self._postgres.start()

    def close(self) -> None:
        self._sqlite.close()
        if self._postgres is not None:
            self._postgres.close()


class _Confined:
    """SQLite's check in a process that can do nothing but compute."""

    def __init__(self, options: DatabaseOptions) -> None:
        limits = CheckLimits(
            cpu_seconds=2 * options.timeout_seconds + 1,  # gold's, the completion's, and to compare
            wall_seconds=max(30.0, 20 * options.timeout_seconds),
            memory_bytes=options.memory_bytes,
        )
        state = {**options.model_dump(mode="json", exclude={"dsn"}), "dialect": "sqlite"}
        self._process = LimitedProcess(f"{__name__}:load_check", state, limits)
        self.verify_many = self._process.verify_many
        self.start = self._process.start
        self.close = self._process.close


def load_check(state: dict[str, Any]) -> Callable[[Sample], Verdict]:
    """What the limited process runs."""
    check = SqliteCheck(DatabaseOptions.model_validate(state))
    asks_for_order("SELECT 1", "sqlite")  # nothing may be left to import
    return check.verify


def _needed(row: dict[str, Any], dialect: Dialect) -> dict[str, Any]:
    return {field: row[field] for field in _FIELDS if field in row} | {"dialect": dialect}


_NO_SERVER = "its dialect is `postgres`, and the verifier has no `dsn`"


def _require(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        raise UserError(f"verifier `database` needs {library}: pip install 'headrace[database]'")
