"""The options of the verifier `database`."""

from __future__ import annotations

from pydantic import Field, field_validator

from headrace.verifiers.base import Options
from headrace.verifiers.database.judge import Judging
from headrace.verifiers.database.rows import Comparison
from headrace.verifiers.database.tasks import Dialect, Order, RunLimits


class DatabaseOptions(Options):
    dialect: Dialect = "sqlite"
    """For rows that do not say: `sqlite` or `postgres`."""
    dsn: str | None = None
    """PostgreSQL's address, as a superuser of a server of its own; "" takes what PGHOST, PGUSER, ... and ~/.pgpass say."""
    thinking_end: str | None = "</think>"
    """What a completion says before the last of these marks is not looked at; none: all is."""
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
    """Of a process that checks; sandbox only."""
    sandbox: bool = True
    """Check in processes of their own with limited memory; SQLite's has limited time and neither network nor files."""

    @field_validator("ignore_columns")
    @classmethod
    def _name_table_and_column(cls, names: list[str]) -> list[str]:
        for name in names:
            if not all(name.partition(".")):
                raise ValueError(f"{name!r} is not of the form table.column")
        return names

    def judging(self) -> Judging:
        comparison = Comparison(exact_types=self.exact_types, tolerance=self.float_tolerance)
        return Judging(self.thinking_end, self.order, self.column_names, comparison)

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
