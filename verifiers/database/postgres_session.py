"""SQL that is not to be trusted, run on one connection to PostgreSQL within limits that it cannot lift.

The server's own `statement_timeout` is a setting that a script may change. So the clock is kept here: nothing waits for the
server without a deadline, and rows are counted as they come. libpq takes a row as a whole, which may have a gigabyte: the
process's own limit is for that.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import psycopg
from psycopg import pq

from headrace.verifiers.base import printable
from headrace.verifiers.database.rows import Row, Rows, Typed, Value
from headrace.verifiers.database.tasks import EngineFault, SqlFault

_TICK = 0.2  # seconds between two looks at what the script does to the server
_CURSOR = "headrace_result"
_MULTIPLE = "cannot insert multiple commands"
_WRITES = "data-modifying"  # a WITH that writes, under a cursor

_WHOLE = frozenset({20, 21, 23, 26})  # int8, int2, int4, oid
_FLOATS = frozenset({700, 701})
_TEXTS = frozenset({18, 19, 25, 1042, 1043})  # "char", name, text, bpchar, varchar
_BOOL, _BYTEA, _NUMERIC, _BPCHAR = 16, 17, 1700, 1042

_REASONS = {
    "57014": "timeout",  # query_canceled
    "42501": "forbidden",  # insufficient_privilege
    "25006": "read_only",  # read_only_sql_transaction
    "53400": "too_large",  # configuration_limit_exceeded: temp_file_limit
}
_CLASSES = {"54": "too_large"}  # program_limit_exceeded
_SERVERS_OWN = ("08", "53", "57P", "58", "XX")  # connection, resources, shutdown, system, corruption


class SessionLost(EngineFault):
    """The server ended the connection, or had no resources, while the script ran: perhaps by the script's own doing."""


class Session:
    """One connection as a role without privileges. `watch` is called now and then while a script runs and may raise."""

    def __init__(self, connection: psycopg.Connection[Any], max_rows: int, max_bytes: int) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._kept = 0  # bytes of values

    def query(self, sql: str, deadline: float, watch: Callable[[], None]) -> Rows:
        """The rows of one query, in a transaction that only reads. A cursor takes nothing but a query, and the extended
        protocol takes one statement, so that the server itself refuses everything else."""
        self.script("BEGIN READ ONLY", deadline, watch)
        self._send(f"DECLARE {_CURSOR} NO SCROLL CURSOR FOR {sql}", extended=True)
        for result in self._results(deadline, watch):
            _refuse(result)
        return self.read(f"FETCH FORWARD {self._max_rows + 1} FROM {_CURSOR}", deadline, watch)

    def read(self, sql: str, deadline: float, watch: Callable[[], None]) -> Rows:
        """The rows of one statement."""
        self._kept = 0
        self._send(sql, extended=True)
        return self._rows(deadline, watch)

    def script(self, sql: str, deadline: float, watch: Callable[[], None]) -> None:
        """Run a script of any number of statements and throw away what it returns."""
        self._send(sql, extended=False)
        for result in self._results(deadline, watch):
            _refuse(result)
            self._count(result)

    def commit(self, deadline: float, watch: Callable[[], None]) -> None:
        """End the transaction that a script has left open, if it has, and keep what it did."""
        if self._pg.transaction_status != pq.TransactionStatus.IDLE:
            self.script("COMMIT", deadline, watch)

    def roll_back(self, deadline: float, watch: Callable[[], None]) -> None:
        """End the transaction that a script has left open, if it has."""
        if self._pg.transaction_status != pq.TransactionStatus.IDLE:
            self.script("ROLLBACK", deadline, watch)

    def _rows(self, deadline: float, watch: Callable[[], None]) -> Rows:
        columns: tuple[str, ...] = ()
        rows: list[Row] = []
        for result in self._results(deadline, watch):
            _refuse(result)
            columns = tuple((result.fname(place) or b"").decode() for place in range(result.nfields))
            self._count(result)
            rows += [_row(result, place) for place in range(result.ntuples)]
            if len(rows) > self._max_rows:
                raise SqlFault("too_many_rows", f"more than {self._max_rows} rows")
        return Rows(columns, tuple(rows))

    def _send(self, sql: str, *, extended: bool) -> None:
        try:
            if extended:
                self._pg.send_query_params(sql.encode(), None)
            else:
                self._pg.send_query(sql.encode())
            self._pg.set_single_row_mode()
        except psycopg.OperationalError as error:
            raise SessionLost(_one_line(str(error))) from error

    def _results(self, deadline: float, watch: Callable[[], None]) -> Iterator[pq.abc.PGresult]:
        """Every result of what was sent, as it comes."""
        next_look = time.monotonic() + _TICK
        try:
            while True:
                unsent = self._pg.flush() == 1
                while unsent or self._pg.is_busy():
                    if time.monotonic() >= next_look:
                        watch()
                        next_look = time.monotonic() + _TICK
                    if time.monotonic() >= deadline:
                        raise SqlFault("timeout", "the time limit")
                    if self._wait(unsent, min(deadline, next_look)):
                        self._pg.consume_input()
                    unsent = unsent and self._pg.flush() == 1
                result = self._pg.get_result()
                if result is None:
                    return
                yield result
        except psycopg.OperationalError as error:
            raise SessionLost(_one_line(str(error))) from error

    def _wait(self, writing: bool, until: float) -> bool:
        """Whether there is something to read."""
        poll = select.poll()
        poll.register(self._pg.socket, select.POLLIN | (select.POLLOUT if writing else 0))
        ready = poll.poll(max(0.0, until - time.monotonic()) * 1000)
        return any(event & ~select.POLLOUT for _, event in ready)

    def _count(self, result: pq.abc.PGresult) -> None:
        cells = ((row, column) for row in range(result.ntuples) for column in range(result.nfields))
        self._kept += sum(len(result.get_value(*cell) or b"") for cell in cells)
        if self._kept > self._max_bytes:
            raise SqlFault("too_large", f"more than {self._max_bytes} bytes of rows")


def _refuse(result: pq.abc.PGresult) -> None:
    """Raises what an error, or the start of a COPY, means."""
    status = result.status
    if status in (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH):
        raise SqlFault("forbidden", "COPY is refused")
    if status not in (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE):
        return
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    message = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message).decode(errors="replace")
    if not state or (state.startswith(_SERVERS_OWN) and state not in _REASONS):
        raise SessionLost(_one_line(message))
    if state == "42601" and _MULTIPLE in message:
        raise SqlFault("several_statements", message)
    if state == "0A000" and _WRITES in message:
        raise SqlFault("read_only", message)
    raise SqlFault(_REASONS.get(state) or _CLASSES.get(state[:2], "sql_error"), message)


def _row(result: pq.abc.PGresult, row: int) -> Row:
    return tuple(_value(result.get_value(row, column), result.ftype(column)) for column in range(result.nfields))


def _value(raw: bytes | None, kind: int) -> Value:
    if raw is None:
        return None
    text = raw.decode("utf-8", "surrogateescape")
    if kind == _BOOL:
        return text == "t"
    if kind in _WHOLE:
        return int(text)
    if kind in _FLOATS:
        return float(text)
    if kind == _NUMERIC:
        return Decimal(text) if text.lstrip("-") not in ("NaN", "Infinity") else float(text)
    if kind == _BYTEA:
        return bytes.fromhex(text[2:])
    if kind in _TEXTS:
        return text.rstrip(" ") if kind == _BPCHAR else text
    return Typed(str(kind), text)


def _one_line(message: str) -> str:
    return printable(" ".join(message.split()), 300)
