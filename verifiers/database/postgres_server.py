"""What a superuser does on the PostgreSQL server that the user names: roles without privileges, templates, copies.

No SQL of a row's or a completion's runs as the superuser, and none in a session that ever was one: each runs on a
connection of its own, as a role that is made for it and dropped afterwards, so that nothing that a role can be given
(settings, a password) reaches the next run.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, LiteralString, cast

import msgspec
import psycopg
import structlog
from psycopg.conninfo import make_conninfo

from headrace.verifiers.base import printable
from headrace.verifiers.database.postgres_session import Session
from headrace.verifiers.database.tasks import EngineFault, SetupFault, SqlFault

_OLDEST = 140000
_LOCK = 0x4845_4144  # the class of our advisory locks; the number within it is a verifier's own
_NAMES = r"^headrace_([0-9a-f]{8})_"
_KEPT_TEMPLATES = 16
_COMMAND_SECONDS = 60  # of one of the superuser's own commands
_RESTART_SECONDS = 15  # that a server may take to recover from a crash

# What anyone may call and what reaches beyond a session: locks fill a table that all databases share, messages the log,
# snapshots and notifications files of the server's.
_REVOKED = (
    "SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', oid::regprocedure) FROM pg_catalog.pg_proc "
    "WHERE pronamespace = 'pg_catalog'::regnamespace AND (proname ~ '^pg_(try_)?advisory' OR proname ~ '^lo_' "
    "OR proname IN ('lowrite', 'pg_logical_emit_message', 'pg_notify', 'pg_export_snapshot'))"
)


class Login(msgspec.Struct, frozen=True):
    """A role that may log in to `database`."""

    database: str
    role: str
    password: str


class PostgresServer:
    """One superuser's connection and what it has made. Every method may raise EngineFault; nothing is kept after one.

    Several processes may use one server: each names what it makes by a number that it holds a lock on, and clears away what
    has a number that nobody holds.
    """

    def __init__(self, dsn: str, seconds: float, growth_bytes: int) -> None:
        self._dsn = dsn
        self._seconds = seconds
        self._growth_bytes = growth_bytes
        self._admin: psycopg.Connection[Any] | None = None
        self._prefix = ""
        self._counter = 0
        self._templates: OrderedDict[tuple[str, ...], str] = OrderedDict()
        self._was_connected = False
        self._reader_password = ""

    def start(self) -> None:
        """Connect, and make the roles. Does nothing while there is a connection."""
        if self._admin is not None:
            return
        with self._errors():
            self._admin = self._connect_admin()
            self._was_connected = True
            self._refuse_unfit()
            number = secrets.randbits(31)
            self._prefix = f"headrace_{number:08x}"
            self._run(f"SELECT pg_advisory_lock({_LOCK}, {number})")
            self._sweep()
            self._run(f"CREATE ROLE {self._prefix}_owner NOLOGIN")
            self._reader_password = self._make_role(f"{self._prefix}_reader", "BYPASSRLS IN ROLE pg_read_all_data")

    def close(self) -> None:
        """Drop what was made, and disconnect."""
        if self._admin is None:
            return
        try:
            with self._errors():
                self._drop_all(self._prefix)
        except EngineFault as fault:
            # Whoever closes has no use for it, and the next start clears away what is left.
            structlog.get_logger().warning("database_not_cleared", reason=str(fault))
        self._forget()

    def check(self) -> None:
        """Raises EngineFault where the server does not answer."""
        self.start()
        with self._errors():
            self._run("SELECT 1")

    @contextmanager
    def copy(self, setup: tuple[str, ...]) -> Iterator[Login]:
        """A fresh copy of what `setup` makes, and a role that owns all in it; both are dropped afterwards.

        Raises SetupFault where `setup` fails.
        """
        self.start()
        template = self._template(setup)
        self._counter += 1
        name, role = f"{self._prefix}_c{self._counter}", f"{self._prefix}_r{self._counter}"
        with self._errors():
            password = self._make_role(role, f"CONNECTION LIMIT 1 IN ROLE {self._prefix}_owner")
            self._run(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield Login(name, role, password)
        finally:
            self._drop(name, role)

    def reader(self, database: str) -> Login:
        """A role that may read all of a database and whose session resolves no name to what others have made."""
        return Login(database, f"{self._prefix}_reader", self._reader_password)

    @contextmanager
    def session(self, login: Login, max_rows: int, max_bytes: int, settings: str = "") -> Iterator[Session]:
        with self._errors():
            connection = psycopg.connect(
                make_conninfo(
                    self._dsn,
                    dbname=login.database,
                    user=login.role,
                    password=login.password,
                    connect_timeout=10,
                    application_name="headrace",
                    client_encoding="UTF8",
                    options=f"-c TimeZone=UTC -c DateStyle=ISO {settings}",
                )
            )
        try:
            yield Session(connection, max_rows, max_bytes)
        finally:
            connection.close()

    def growth_watch(self, database: str) -> Callable[[], None]:
        """A function that raises SqlFault once the database has grown by more than it may."""
        before = self._size(database)

        def watch() -> None:
            if self._size(database) - before > self._growth_bytes:
                raise SqlFault("too_large", f"the database has grown by more than {self._growth_bytes} bytes")

        return watch

    def _drop(self, database: str, role: str) -> None:
        """Does nothing where the connection is lost: what was made is then cleared away by the next start."""
        if self._admin is not None:
            with self._errors():
                self._run(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
                self._run(f"DROP ROLE IF EXISTS {role}")

    def _size(self, database: str) -> int:
        with self._errors():
            return int(self._run(f"SELECT pg_database_size('{database}')")[0][0])

    def _template(self, setup: tuple[str, ...]) -> str:
        name = self._templates.get(setup)
        if name is None:
            self._counter += 1
            name = f"{self._prefix}_t{self._counter}"
            try:
                self._make_template(name, setup)
            except SqlFault as fault:
                self._drop(name, f"{name}_setup")
                raise SetupFault(f"the database cannot be set up ({fault.reason}): {fault.message}") from fault
            self._templates[setup] = name
            while len(self._templates) > _KEPT_TEMPLATES:
                _, oldest = self._templates.popitem(last=False)
                with self._errors():
                    self._run(f"DROP DATABASE IF EXISTS {oldest} WITH (FORCE)")
        self._templates.move_to_end(setup)
        return name

    def _make_template(self, name: str, setup: tuple[str, ...]) -> None:
        role, owner = f"{name}_setup", f"{self._prefix}_owner"
        with self._errors():
            password = self._make_role(role, "CONNECTION LIMIT 1")
            self._run(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
            with self._superuser_in(name) as connection:
                revoked = [row[0] for row in connection.execute(_literal(_REVOKED)).fetchall()]
                for command in (
                    *revoked,
                    "REVOKE USAGE ON LANGUAGE plpgsql, sql FROM PUBLIC",
                    f"GRANT USAGE ON LANGUAGE plpgsql, sql TO {role}",
                    f"GRANT CREATE ON DATABASE {name} TO {role}",
                    f"GRANT ALL ON SCHEMA public TO {owner}, {role}",
                ):
                    connection.execute(_literal(command))
        watch = self.growth_watch(name)
        deadline = time.monotonic() + self._seconds
        with self.session(Login(name, role, password), max_rows=1, max_bytes=1 << 20) as session:
            for script in setup:
                session.script(script, deadline, watch)
            session.commit(deadline, watch)
        with self._errors(), self._superuser_in(name) as connection:
            connection.execute(_literal(f"REASSIGN OWNED BY {role} TO {owner}"))
            connection.execute(_literal(f"DROP OWNED BY {role}"))
        with self._errors():
            self._run(f"DROP ROLE {role}")

    def _make_role(self, role: str, attributes: str) -> str:
        """Make a role that may log in, and do nothing else; its password."""
        password = secrets.token_urlsafe(24)
        if self._admin is None:
            raise EngineFault("PostgreSQL: the connection is lost")
        hidden = self._admin.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
        kilobytes = max(1, self._growth_bytes >> 10)
        timeout = round(1000 * self._seconds) + 1000  # ours comes first; this one works where ours cannot
        self._run(
            f"CREATE ROLE {role} LOGIN PASSWORD '{hidden}' {attributes}; "
            f"ALTER ROLE {role} SET temp_file_limit = {kilobytes}; "
            f"ALTER ROLE {role} SET lc_messages = 'C'; "
            f"ALTER ROLE {role} SET statement_timeout = {timeout}"
        )
        return password

    def _connect_admin(self) -> psycopg.Connection[Any]:
        until = time.monotonic() + (_RESTART_SECONDS if self._was_connected else 0)
        while True:
            try:
                return self._superuser()
            except psycopg.OperationalError:
                if time.monotonic() >= until:
                    raise
                time.sleep(0.5)

    def _superuser(self, **where: str) -> psycopg.Connection[Any]:
        options = f"-c search_path=pg_catalog -c statement_timeout={1000 * _COMMAND_SECONDS} -c synchronous_commit=off"
        conninfo = make_conninfo(
            self._dsn, connect_timeout=10, tcp_user_timeout=1000 * _COMMAND_SECONDS, options=options, **where
        )
        return psycopg.connect(conninfo, autocommit=True)

    @contextmanager
    def _superuser_in(self, database: str) -> Iterator[psycopg.Connection[Any]]:
        connection = self._superuser(dbname=database)
        try:
            yield connection
        finally:
            connection.close()

    def _refuse_unfit(self) -> None:
        version, superuser, prepared = self._run(
            "SELECT current_setting('server_version_num')::int, rolsuper, current_setting('max_prepared_transactions')::int "
            "FROM pg_roles WHERE rolname = current_user"
        )[0]
        unfit = ""
        if version < _OLDEST:
            unfit = f"the server is PostgreSQL {version // 10000}; it must be {_OLDEST // 10000} or newer"
        elif not superuser:
            unfit = "the role is no superuser; give one, of a server that holds nothing else"
        elif prepared:
            unfit = "max_prepared_transactions is above 0; set it to 0: a prepared one keeps a copy from being dropped"
        if unfit:
            self._forget()
            raise EngineFault(unfit)

    def _sweep(self) -> None:
        """Drop what processes that are gone have left."""
        rows = self._run(
            f"SELECT DISTINCT substring(name FROM '{_NAMES}') FROM (SELECT datname::text FROM pg_database UNION "
            f"SELECT rolname::text FROM pg_roles) AS found(name) WHERE name ~ '{_NAMES}'"
        )
        for (number,) in rows:
            if f"headrace_{number}" == self._prefix:
                continue
            key = f"{_LOCK}, {int(number, 16)}"
            if self._run(f"SELECT pg_try_advisory_lock({key})")[0][0]:
                self._drop_all(f"headrace_{number}")
                self._run(f"SELECT pg_advisory_unlock({key})")

    def _drop_all(self, prefix: str) -> None:
        for (name,) in self._run(f"SELECT datname FROM pg_database WHERE starts_with(datname::text, '{prefix}_')"):
            self._run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        for (name,) in self._run(f"SELECT rolname FROM pg_roles WHERE starts_with(rolname::text, '{prefix}_')"):
            self._run(f"DROP ROLE IF EXISTS {name}")

    def _run(self, command: str) -> list[tuple[Any, ...]]:
        if self._admin is None:
            raise EngineFault("PostgreSQL: the connection is lost")
        cursor = self._admin.execute(_literal(command))
        return cursor.fetchall() if cursor.description else []

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """The driver's errors in our own; afterwards nothing is known of the server any more."""
        try:
            yield
        except psycopg.Error as error:
            self._forget()
            raise EngineFault(f"PostgreSQL: {printable(' '.join(str(error).split()), 300)}") from error

    def _forget(self) -> None:
        if self._admin is not None:
            self._admin.close()
        self._admin = None
        self._templates.clear()


def _literal(command: str) -> LiteralString:
    """psycopg takes literals only, against injection; what goes into ours is names and numbers made here."""
    return cast("LiteralString", command)
