"""PostgreSQL: one template database for each setup, a fresh copy of it for each run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from headrace.verifiers.database.postgres_server import Login, PostgresServer
from headrace.verifiers.database.postgres_session import SessionLost
from headrace.verifiers.database.postgres_state import read_state
from headrace.verifiers.database.rows import Rows, State
from headrace.verifiers.database.tasks import EngineFault, RunLimits, SqlFault

T = TypeVar("T")
_STATE_SETTINGS = "-c search_path=pg_catalog -c row_security=off"


class PostgresEngine:
    """Runs on the server at `dsn` and needs nothing on this machine but the client library."""

    def __init__(self, dsn: str, limits: RunLimits, ignored: frozenset[str] = frozenset()) -> None:
        self._limits = limits
        self._ignored = ignored
        self._server = PostgresServer(dsn, limits.seconds, limits.database_bytes)
        self._left = limits.seconds

    def start(self) -> None:
        """Raises EngineFault where the server cannot be used."""
        self._server.start()

    def close(self) -> None:
        self._server.close()

    def renew(self) -> None:
        self._left = self._limits.seconds

    def query(self, setup: tuple[str, ...], sql: str) -> Rows:
        def run(login: Login) -> Rows:
            with self._server.session(login, self._limits.rows, self._limits.result_bytes) as session:
                return self._timed(lambda deadline: session.query(sql, deadline, _nothing))

        return self._on_a_copy(setup, run)

    def state(self, setup: tuple[str, ...], sql: str) -> State:
        def run(login: Login) -> State:
            watch = self._server.growth_watch(login.database)
            with self._server.session(login, self._limits.rows, self._limits.result_bytes) as session:

                def finish(deadline: float) -> None:
                    session.script(sql, deadline, watch)
                    session.roll_back(deadline, watch)

                self._timed(finish)
            watch()
            reader = self._server.reader(login.database)
            limits = self._limits
            with self._server.session(reader, limits.rows, limits.result_bytes, _STATE_SETTINGS) as session:
                deadline = time.monotonic() + limits.seconds
                return read_state(lambda query: session.read(query, deadline, _nothing), self._ignored, login.role)

        return self._on_a_copy(setup, run)

    def _timed(self, run: Callable[[float], T]) -> T:
        """`run` within what is left of the time; what copies take is not its."""
        began = time.monotonic()
        try:
            return run(began + self._left)
        finally:
            self._left -= time.monotonic() - began

    def _on_a_copy(self, setup: tuple[str, ...], run: Callable[[Login], T]) -> T:
        """Twice at most: a server that fails may have failed because of another run."""
        try:
            with self._server.copy(setup) as login:
                return run(login)
        except EngineFault:
            self.renew()
        try:
            with self._server.copy(setup) as login:
                return run(login)
        except SessionLost as lost:
            self._server.check()  # it is well, so that this SQL has ended its session twice
            raise SqlFault("crash", str(lost)) from lost


def _nothing() -> None:
    """Nothing to watch: the transaction only reads."""
