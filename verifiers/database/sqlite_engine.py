"""SQLite in memory: one image for each setup, a fresh copy of it for each run.

What a statement may do is decided where SQLite compiles it (its authorizer), so that no way of writing it gets round that.
Time is counted by the virtual machine's progress; what a single instruction of it takes is for the process's limits.
"""

from __future__ import annotations

import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from headrace.verifiers.database.rows import Row, Rows, State
from headrace.verifiers.database.sqlite_state import read_state
from headrace.verifiers.database.tasks import RunLimits, SetupFault, SqlFault

_INSTRUCTIONS = 2000  # of the virtual machine, between two looks at the clock
_KEPT_IMAGES = 4
_PAGE_BYTES = 4096

_READS = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_TRANSACTIONS = frozenset({sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT})
_NEVER = frozenset({sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH})  # VACUUM attaches, too
_ONLY_IN_SETUP = frozenset({sqlite3.SQLITE_CREATE_VTABLE, sqlite3.SQLITE_DROP_VTABLE})
_NEVER_CALLED = frozenset({"load_extension", "fts3_tokenizer"})
_NEVER_READ = frozenset({"dbstat", "sqlite_dbpage", "sqlite_stmt", "bytecode", "tables_used"})
_SETUP_PRAGMAS = frozenset(
    {"foreign_keys", "encoding", "user_version", "application_id", "journal_mode", "synchronous", "defer_foreign_keys",
     "legacy_alter_table", "ignore_check_constraints"}
)  # fmt: skip


class _Image(msgspec.Struct, frozen=True):
    content: bytes | None  # None: nothing was made
    foreign_keys: bool


class Budget:
    """Processor time that several runs share."""

    def __init__(self, seconds: float) -> None:
        self._end = time.process_time() + seconds

    def spent(self) -> bool:
        return time.process_time() >= self._end


class SqliteEngine:
    """`budget` is what the runs draw on; whoever calls gives a new one before each task."""

    def __init__(self, limits: RunLimits, ignored: frozenset[str] = frozenset()) -> None:
        self._limits = limits
        self._ignored = ignored
        self._images: OrderedDict[tuple[str, ...], _Image] = OrderedDict()
        self.budget = Budget(limits.seconds)

    def renew(self) -> None:
        self.budget = Budget(self._limits.seconds)

    def query(self, setup: tuple[str, ...], sql: str) -> Rows:
        with self._copy(setup) as connection, self._guarded(connection, _read_only) as guard:
            connection.execute("PRAGMA query_only = ON")
            guard.on()
            cursor = connection.execute(sql)
            if cursor.description is None:
                raise SqlFault("not_a_query", "the statement returns no rows")
            columns = tuple(column[0] for column in cursor.description)
            return Rows(columns, self._fetched(cursor))

    def state(self, setup: tuple[str, ...], sql: str) -> State:
        with self._copy(setup) as connection:
            with self._guarded(connection, _may_write) as guard:
                guard.on()
                connection.executescript(sql)
            if connection.in_transaction:
                connection.rollback()
            image = _serialized(connection)
        # In a connection of its own, where no temporary table stands before a table of the same name.
        with self._opened(image) as fresh, self._guarded(fresh, _anything):
            fresh.execute("PRAGMA trusted_schema = OFF")
            return read_state(fresh, self._ignored, self._fetched)

    def _fetched(self, cursor: sqlite3.Cursor) -> tuple[Row, ...]:
        rows: list[Row] = []
        size = 0
        for row in cursor:
            rows.append(row)
            size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
            if len(rows) > self._limits.rows:
                raise SqlFault("too_many_rows", f"more than {self._limits.rows} rows")
            if size > self._limits.result_bytes:
                raise SqlFault("too_large", f"more than {self._limits.result_bytes} bytes of rows")
        return tuple(rows)

    @contextmanager
    def _copy(self, setup: tuple[str, ...]) -> Iterator[sqlite3.Connection]:
        image = self._images.get(setup)
        if image is None:
            image = self._images[setup] = self._made(setup)
            while len(self._images) > _KEPT_IMAGES:
                self._images.popitem(last=False)
        self._images.move_to_end(setup)
        with self._opened(image.content) as connection:
            if image.foreign_keys:
                connection.execute("PRAGMA foreign_keys = ON")
            yield connection

    def _made(self, setup: tuple[str, ...]) -> _Image:
        with self._opened(None) as connection:
            for script in setup:
                try:
                    with self._guarded(connection, _may_set_up) as guard:
                        guard.on()
                        connection.executescript(script)
                except SqlFault as fault:
                    raise SetupFault(f"the database cannot be set up ({fault.reason}): {fault.message}") from fault
            if connection.in_transaction:
                connection.commit()
            foreign_keys = bool(connection.execute("PRAGMA foreign_keys").fetchone()[0])
            return _Image(_serialized(connection), foreign_keys)

    @contextmanager
    def _opened(self, content: bytes | None) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=0)
        try:
            connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
            if content is not None:
                connection.deserialize(content)
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute(f"PRAGMA max_page_count = {self._limits.database_bytes // _PAGE_BYTES}")
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, self._limits.value_bytes)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000)
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            yield connection
        finally:
            connection.close()

    @contextmanager
    def _guarded(self, connection: sqlite3.Connection, rule: _Rule) -> Iterator[_Guard]:
        """Turns what SQLite raises into SqlFault."""
        guard = _Guard(connection, rule)
        connection.set_progress_handler(self.budget.spent, _INSTRUCTIONS)
        try:
            yield guard
        except sqlite3.Warning as error:  # Python 3.11 warns of a second statement, and runs none
            raise SqlFault("several_statements", str(error)) from error
        except MemoryError as error:
            raise SqlFault("memory", "out of memory") from error
        except RecursionError as error:
            raise SqlFault("sql_error", "nested too deeply") from error
        except sqlite3.Error as error:
            raise SqlFault(_reason(error, guard.refused), str(error)) from error
        finally:
            connection.set_progress_handler(None, 0)
            connection.set_authorizer(None)


_Rule = Callable[[int, str | None, str | None], str]


class _Guard:
    """Asks `rule` about every step that SQLite compiles, once it is on."""

    def __init__(self, connection: sqlite3.Connection, rule: _Rule) -> None:
        self.refused = ""
        self._connection = connection
        self._rule = rule

    def on(self) -> None:
        self._connection.set_authorizer(self._authorize)

    def _authorize(self, action: int, first: str | None, second: str | None, _: str | None, __: str | None) -> int:
        reason = self._rule(action, first, second)
        if not reason:
            return sqlite3.SQLITE_OK
        self.refused = self.refused or reason
        return sqlite3.SQLITE_DENY


def _anything(action: int, first: str | None, second: str | None) -> str:
    return ""


def _may_set_up(action: int, first: str | None, second: str | None) -> str:
    if action == sqlite3.SQLITE_PRAGMA:
        return "" if (first or "").lower() in _SETUP_PRAGMAS else "forbidden"
    called = action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _NEVER_CALLED
    return "forbidden" if action in _NEVER or called else ""


def _may_write(action: int, first: str | None, second: str | None) -> str:
    if action == sqlite3.SQLITE_PRAGMA or action in _ONLY_IN_SETUP:
        return "forbidden"
    if action == sqlite3.SQLITE_READ and (first or "").lower() in _NEVER_READ:
        return "forbidden"
    return _may_set_up(action, first, second)


def _read_only(action: int, first: str | None, second: str | None) -> str:
    refused = _may_write(action, first, second)
    if refused or action in _READS:
        return refused
    if action in _TRANSACTIONS:
        return "forbidden"
    # A table-valued function declares itself by this step. It writes nothing: `query_only` sees to that.
    declares = action == sqlite3.SQLITE_UPDATE and first == "sqlite_master"
    return "" if declares else "read_only"


def _reason(error: sqlite3.Error, refused: str) -> str:
    name = str(getattr(error, "sqlite_errorname", "") or "")
    if name.startswith("SQLITE_INTERRUPT"):
        return "timeout"
    if name.startswith(("SQLITE_FULL", "SQLITE_TOOBIG")):
        return "too_large"
    if refused:
        return refused
    if isinstance(error, sqlite3.ProgrammingError) and "one statement" in str(error):
        return "several_statements"
    return "read_only" if name.startswith("SQLITE_READONLY") else "sql_error"


def _serialized(connection: sqlite3.Connection) -> bytes | None:
    """The main database's image, None while it has no page."""
    if connection.execute("PRAGMA page_count").fetchone()[0] == 0:
        return None
    return connection.serialize()
