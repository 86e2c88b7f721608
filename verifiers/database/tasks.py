"""What a row asks for, the SQL in a completion, and the faults that running SQL can have."""

from __future__ import annotations

import re
from typing import Any, Literal, Protocol

import msgspec

from headrace.verifiers.base import printable, shown
from headrace.verifiers.database.rows import Rows, State

Dialect = Literal["sqlite", "postgres"]
Check = Literal["result", "state"]
Order = Literal["auto", "always", "never"]

_DIALECTS: dict[str, Dialect] = {
    "sqlite": "sqlite",
    "sqlite3": "sqlite",
    "postgres": "postgres",
    "postgresql": "postgres",
}
MAX_VARIANTS = 8
MAX_SQL = 100_000  # characters of a completion's SQL


class Task(msgspec.Struct, frozen=True):
    """A row, read. `setups` are the databases to judge on, each a list of scripts that make it."""

    setups: tuple[tuple[str, ...], ...]
    gold: str
    check: Check
    dialect: Dialect


class RunLimits(msgspec.Struct, frozen=True):
    """What one run of SQL may use."""

    seconds: float
    rows: int
    result_bytes: int
    value_bytes: int
    database_bytes: int


class SqlFault(Exception):
    """The SQL that was run is at fault; `reason` is the verdict's."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = printable(" ".join(message.split()), 300)


class SetupFault(Exception):
    """The database to run it on cannot be made: the row's fault."""


class EngineFault(Exception):
    """The database server is at fault, or not there."""


class Engine(Protocol):
    """Runs SQL on a fresh copy of what `setup` makes. Raises SqlFault, SetupFault, EngineFault."""

    def query(self, setup: tuple[str, ...], sql: str) -> Rows:
        """The rows of one query that reads and does nothing else."""
        ...

    def state(self, setup: tuple[str, ...], sql: str) -> State:
        """The state that a script leaves; what it has not committed does not count."""
        ...


def parse_task(row: dict[str, Any], dialect: Dialect) -> Task | str:
    """The task, or what is wrong with the row in one clause. `dialect` is for rows that do not say."""
    for field in ("setup_sql", "gold_sql"):
        if not isinstance(row.get(field), str):
            return f"field `{field}` is {'missing' if row.get(field) is None else 'not a string'}"
        if not _can_be_sent(row[field]):
            return f"field `{field}` holds a NUL character or half a character"
    if not row["gold_sql"].strip():
        return "field `gold_sql` is empty"
    check = row.get("check") or "result"
    if check not in ("result", "state"):
        return f"field `check` is {shown(check, 40)}, not `result` or `state`"
    named = row.get("dialect") or dialect
    if not isinstance(named, str) or named.lower() not in _DIALECTS:
        return f"field `dialect` is {shown(named, 40)}, not `sqlite` or `postgres`"
    variants = row.get("variants_sql") or []
    if not isinstance(variants, list) or not all(isinstance(each, str) and _can_be_sent(each) for each in variants):
        return "field `variants_sql` is not a list of SQL scripts"
    if len(variants) > MAX_VARIANTS:
        return f"field `variants_sql` has {len(variants)} scripts; at most {MAX_VARIANTS} are run"
    setups = ((row["setup_sql"],), *((row["setup_sql"], each) for each in variants))
    return Task(setups, row["gold_sql"], check, _DIALECTS[named.lower()])


def extract_sql(completion: str) -> str:
    """The completion's SQL: its last fenced block, else all of it. Linear in the text, which a pattern would not be.

    >>> extract_sql("Here it is:\\n```sql\\nSELECT 1\\n```\\nDone.")
    'SELECT 1'
    """
    block: list[str] | None = None
    last: list[str] | None = None
    for line in completion.split("\n"):
        if not line.lstrip().startswith("```"):
            if block is not None:
                block.append(line)
        elif block is None:
            block = []
        else:
            last, block = block, None
    return (completion if last is None else "\n".join(last)).strip()


def refuse_what_cannot_run(sql: str) -> None:
    """Raises SqlFault for a text that no server is asked about."""
    if len(sql) > MAX_SQL:
        raise SqlFault("too_large", f"the SQL has {len(sql)} characters; at most {MAX_SQL} are run")
    if not _can_be_sent(sql):
        raise SqlFault("sql_error", "the SQL holds a NUL character or half a character")
    if _first_word_at(sql) == len(sql):
        raise SqlFault("no_sql", "there is no SQL")


def refuse_what_is_no_query(sql: str) -> None:
    """A plain word for a plain case: the database refuses it as well, by less plain ones."""
    word = re.compile(r"\w*").match(sql, _first_word_at(sql))
    if word is None or word[0].lower() not in ("select", "with", "values", "table"):
        raise SqlFault("not_a_query", "a result is asked for, and this statement is no query")


def _first_word_at(sql: str) -> int:
    """Where the first statement begins: behind white space, comments, semicolons and parentheses."""
    at = 0
    while at < len(sql):
        if sql[at].isspace() or sql[at] in ";(":
            at += 1
        elif sql.startswith("--", at):
            end = sql.find("\n", at)
            at = len(sql) if end < 0 else end + 1
        elif sql.startswith("/*", at):
            end = sql.find("*/", at + 2)
            at = len(sql) if end < 0 else end + 2
        else:
            return at
    return at


def _can_be_sent(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
