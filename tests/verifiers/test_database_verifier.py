import doctest
import importlib
import json
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
from decimal import Decimal, localcontext

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.verifiers import Sample, UserError, VerdictKind
from headrace.verifiers.database.definitions import tokens
from headrace.verifiers.database.rows import Comparison, Rows, compare_rows, same_multiset
from headrace.verifiers.database.verifier import DatabaseVerifier

SETUP = """
CREATE TABLE guest (id INTEGER PRIMARY KEY, name TEXT NOT NULL, paid REAL, city TEXT);
INSERT INTO guest VALUES (1, 'Ada', 10.5, 'Paris'), (2, 'Bob', NULL, 'Rome'), (3, 'Cy', 7, 'Paris');
CREATE TABLE visit (guest_id INTEGER REFERENCES guest(id), day TEXT);
INSERT INTO visit VALUES (1, '2026-11-20'), (1, '2026-11-21'), (3, '2026-11-20');
"""
ENDLESS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r)"


def result_row(gold, **more):
    return {"setup_sql": SETUP, "gold_sql": gold, **more}


def state_row(gold, **more):
    return {"setup_sql": SETUP, "gold_sql": gold, "check": "state", **more}


@pytest.fixture(scope="module")
def sqlite():
    verifier = DatabaseVerifier(timeout_seconds=0.5)
    yield verifier
    verifier.close()


@pytest.fixture(scope="module")
def postgres(postgres_dsn):
    verifier = DatabaseVerifier(dialect="postgres", dsn=postgres_dsn, timeout_seconds=1.0)
    yield verifier
    verifier.close()


@pytest.fixture(params=["sqlite", "postgres"])
def either(request):
    return request.getfixturevalue(request.param)


def judge(verifier, row, completion):
    return verifier.verify(Sample(completion, row))


# Results, on both servers


@pytest.mark.parametrize(
    ("gold", "completion", "reason"),
    [
        ("SELECT name FROM guest", "SELECT name FROM guest ORDER BY name DESC", "match"),
        ("SELECT name FROM guest", "```sql\nSELECT name FROM guest;\n```", "match"),
        ("SELECT name FROM guest", "First:\n```\nSELECT 1\n```\nno:\n```sql\nselect g.name from guest g\n```", "match"),
        ("SELECT name FROM guest", "-- all\nSELECT name FROM guest; -- done", "match"),
        ("SELECT name FROM guest", "WITH g AS (SELECT * FROM guest) SELECT name FROM g", "match"),
        ("SELECT name FROM guest ORDER BY id", "SELECT name FROM guest ORDER BY id DESC", "wrong_order"),
        ("SELECT name FROM guest ORDER BY id", "SELECT name FROM guest ORDER BY name", "match"),
        ("SELECT name FROM guest", "SELECT name FROM guest WHERE id < 3", "wrong_rows"),
        ("SELECT name FROM guest", "SELECT name FROM guest UNION ALL SELECT 'Ada'", "wrong_rows"),
        ("SELECT city FROM guest", "SELECT DISTINCT city FROM guest", "wrong_rows"),
        ("SELECT name FROM guest", "SELECT name, id FROM guest", "wrong_columns"),
        ("SELECT name FROM guest WHERE id > 9", "SELECT name FROM guest WHERE id > 8", "match"),
        ("SELECT name FROM guest WHERE id > 9", "SELECT name, id FROM guest WHERE id > 8", "wrong_columns"),
        ("SELECT count(*) FROM guest", "SELECT 3", "match"),
        ("SELECT count(*) FROM guest", "SELECT 3.0", "match"),
        ("SELECT count(*) FROM guest", "SELECT '3'", "wrong_rows"),
        ("SELECT paid FROM guest WHERE id = 2", "SELECT NULL", "match"),
        ("SELECT paid FROM guest WHERE id = 2", "SELECT 0", "wrong_rows"),
        ("SELECT paid FROM guest WHERE id = 2", "SELECT ''", "wrong_rows"),
        ("SELECT avg(paid) FROM guest", "SELECT sum(paid) / 2 FROM guest", "match"),
        ("SELECT name FROM guest", "SELEC name FROM guest", "not_a_query"),
        ("SELECT name FROM guest", "SELECT nome FROM guest", "sql_error"),
        ("SELECT name FROM guest", "", "no_sql"),
        ("SELECT name FROM guest", "-- SELECT name FROM guest", "no_sql"),
        ("SELECT name FROM guest", "/* SELECT name FROM guest", "no_sql"),
        ("SELECT name FROM guest", "I would select the names.", "not_a_query"),
        ("SELECT name FROM guest", "SELECT name FROM guest\0", "sql_error"),
        ("SELECT name FROM guest", "SELECT name FROM guest -- \ud800", "sql_error"),
        ("SELECT name FROM guest", "SELECT name FROM guest" + " " * 200_000 + "-- x", "too_large"),
    ],
)  # fmt: skip
def test_rows_decide_a_result(either, gold, completion, reason):
    verdict = judge(either, result_row(gold), completion)
    assert verdict.reason == reason, verdict.details
    assert verdict.reward == float(reason == "match")


@pytest.mark.parametrize(
    "completion",
    [
        "DELETE FROM guest",
        "SELECT name FROM guest; DELETE FROM guest",
        "SELECT name FROM guest; SELECT name FROM guest",
        "INSERT INTO guest (id, name) VALUES (9, 'x') RETURNING name",
        "UPDATE guest SET name = name RETURNING name",
        "DROP TABLE guest",
        "CREATE TABLE x AS SELECT name FROM guest",
        "WITH x AS (SELECT 1) DELETE FROM guest",
        "BEGIN",
        "COMMIT; SELECT name FROM guest",
        "VACUUM",
        "EXPLAIN SELECT name FROM guest",
    ],
)
def test_a_result_check_only_reads(either, completion):
    verdict = judge(either, result_row("SELECT name FROM guest"), completion)
    assert verdict.kind is VerdictKind.FAIL
    assert verdict.reason in ("read_only", "several_statements", "not_a_query", "sql_error")
    assert judge(either, result_row("SELECT name FROM guest"), "SELECT name FROM guest").reason == "match"


@pytest.mark.parametrize(
    ("options", "gold", "completion", "reason"),
    [
        ({"order": "always"}, "SELECT id FROM guest", "SELECT id FROM guest ORDER BY id DESC", "wrong_order"),
        ({"order": "never"}, "SELECT id FROM guest ORDER BY id", "SELECT id FROM guest ORDER BY id DESC", "match"),
        ({}, "SELECT * FROM (SELECT id FROM guest ORDER BY id)", "SELECT id FROM guest ORDER BY id DESC", "match"),
        ({}, "SELECT id FROM guest UNION SELECT 7 ORDER BY 1", "SELECT 7 UNION SELECT id FROM guest ORDER BY 1 DESC",
         "wrong_order"),
        ({"column_names": True}, "SELECT name AS who FROM guest", "SELECT name FROM guest", "wrong_columns"),
        ({"column_names": True}, "SELECT name AS who FROM guest", "SELECT name AS WHO FROM guest", "match"),
        ({"exact_types": True}, "SELECT 1", "SELECT 1.0", "wrong_rows"),
        ({"float_tolerance": 0.01}, "SELECT 100.0", "SELECT 100.5", "match"),
        ({"float_tolerance": 0.01}, "SELECT 100", "SELECT 101", "wrong_rows"),
        ({}, "SELECT 100.0", "SELECT 100.000001", "wrong_rows"),
        ({"max_rows": 2}, "SELECT id FROM guest WHERE id < 3", "SELECT id FROM guest", "too_many_rows"),
    ],
)  # fmt: skip
def test_options_decide_what_is_the_same(options, gold, completion, reason):
    assert judge(DatabaseVerifier(sandbox=False, **options), result_row(gold), completion).reason == reason


def test_a_constant_that_fits_one_database_fails_on_its_variants(either):
    row = result_row("SELECT count(*) FROM guest", variants_sql=["DELETE FROM visit", "DELETE FROM guest WHERE id = 2"])
    assert judge(either, row, "SELECT count(*) FROM guest").reason == "match"
    verdict = judge(either, row, "SELECT 3")
    assert (verdict.reason, verdict.details["database"]) == ("wrong_rows", 2)


# States, on both servers


@pytest.mark.parametrize(
    ("gold", "completion", "reason"),
    [
        ("DELETE FROM visit WHERE guest_id = 3", "DELETE FROM visit WHERE guest_id > 2", "match"),
        ("DELETE FROM visit WHERE guest_id = 3", "DELETE FROM visit WHERE guest_id < 2", "wrong_rows"),
        ("DELETE FROM visit WHERE guest_id = 3", "DELETE FROM visit", "wrong_rows"),
        ("DELETE FROM visit WHERE guest_id = 3", "SELECT 1", "wrong_rows"),
        ("DELETE FROM visit WHERE guest_id = 3", "", "no_sql"),
        ("DELETE FROM visit WHERE guest_id = 3", "BEGIN; DELETE FROM visit WHERE guest_id = 3; COMMIT", "match"),
        ("DELETE FROM visit WHERE guest_id = 3", "BEGIN; DELETE FROM visit WHERE guest_id = 3; ROLLBACK", "wrong_rows"),
        ("DELETE FROM visit WHERE guest_id = 3", "BEGIN; DELETE FROM visit WHERE guest_id = 3", "wrong_rows"),
        ("DELETE FROM visit WHERE guest_id = 3", "DELETE FROM visit WHERE guest_id = 3; SELEC", "sql_error"),
        ("DELETE FROM visit WHERE guest_id = 3",
         "DELETE FROM visit WHERE guest_id = 3; CREATE TABLE extra (a INTEGER)", "wrong_schema"),
        ("DELETE FROM visit WHERE guest_id = 3",
         "DELETE FROM visit WHERE guest_id = 3; UPDATE guest SET name = 'Eve' WHERE id = 1", "wrong_rows"),
        ("DELETE FROM visit", "DROP TABLE visit", "wrong_schema"),
        ("DELETE FROM visit WHERE guest_id = 3",
         "CREATE TEMPORARY TABLE visit_ AS SELECT * FROM visit WHERE guest_id <> 3", "wrong_rows"),
        ("CREATE INDEX by_day ON visit (day)", "create index  by_day on visit(day)", "match"),
        ("CREATE INDEX by_day ON visit (day)", "CREATE UNIQUE INDEX by_day ON visit (guest_id, day)", "wrong_schema"),
        ("CREATE INDEX by_day ON visit (day)", "CREATE INDEX by_day ON visit (day) WHERE day > '2'", "wrong_schema"),
        ("CREATE VIEW v AS SELECT name FROM guest", "CREATE VIEW v AS SELECT name FROM guest -- all", "match"),
        ("CREATE VIEW v AS SELECT name FROM guest", "CREATE VIEW v AS SELECT city FROM guest", "wrong_schema"),
        ("CREATE TABLE t (a INTEGER CHECK (a > 0))", "CREATE TABLE t (a INTEGER, CHECK (a > 0))", "match"),
        ("CREATE TABLE t (a INTEGER CHECK (a > 0))", "CREATE TABLE t (a INTEGER CHECK (a > 1))", "wrong_schema"),
        ("CREATE TABLE t (a INTEGER CHECK (a > 0))", "CREATE TABLE t (a INTEGER)", "wrong_schema"),
        ("CREATE TABLE t (a INTEGER NOT NULL)", "CREATE TABLE t (a INTEGER)", "wrong_schema"),
        ("CREATE TABLE t (a INTEGER DEFAULT 1)", "CREATE TABLE t (a INTEGER DEFAULT 2)", "wrong_schema"),
        ("CREATE TABLE t (a INTEGER UNIQUE)", "CREATE TABLE t (a INTEGER)", "wrong_schema"),
        ("CREATE TABLE t (a INTEGER REFERENCES guest (id))", "CREATE TABLE t (a INTEGER)", "wrong_schema"),
        ("CREATE TABLE t (a INTEGER REFERENCES guest (id))",
         "CREATE TABLE t (a INTEGER, FOREIGN KEY (a) REFERENCES guest (id))", "match"),
        ("ALTER TABLE guest ADD COLUMN vip INTEGER", "ALTER TABLE guest ADD vip INTEGER", "match"),
        ("ALTER TABLE guest ADD COLUMN vip INTEGER", "ALTER TABLE guest ADD vip TEXT", "wrong_schema"),
        ("ALTER TABLE guest RENAME TO client", 'ALTER TABLE guest RENAME TO "client"', "match"),
    ],
)  # fmt: skip
def test_the_whole_state_decides(either, gold, completion, reason):
    verdict = judge(either, state_row(gold), completion)
    assert verdict.reason == reason, verdict.details


def test_a_column_that_is_ignored_may_differ():
    row = state_row("INSERT INTO visit VALUES (2, '1999-01-01')")
    completion = "INSERT INTO visit VALUES (2, '2000-01-01')"
    assert judge(DatabaseVerifier(sandbox=False), row, completion).reason == "wrong_rows"
    assert judge(DatabaseVerifier(sandbox=False, ignore_columns=["visit.DAY"]), row, completion).reason == "match"


def test_runs_leave_nothing_to_the_next(either):
    row = state_row("UPDATE guest SET city = 'Oslo'")
    assert judge(either, row, "DROP TABLE visit").reason == "wrong_schema"
    assert judge(either, row, "CREATE TEMPORARY TABLE guest AS SELECT 1 AS city").kind is VerdictKind.FAIL
    assert judge(either, row, "UPDATE guest SET city = 'Oslo'").reason == "match"


# Attacks on SQLite


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        (f"{ENDLESS} SELECT count(*) FROM r", "timeout"),
        (f"{ENDLESS} SELECT x FROM r", "too_many_rows"),
        (f"{ENDLESS} SELECT 1 FROM r a, r b, r c WHERE a.x + b.x + c.x < 0", "timeout"),
        ("SELECT zeroblob(1000000000)", "too_large"),
        ("SELECT printf('%.*c', 2000000000, 'x')", "timeout"),  # one instruction of the virtual machine
        ("SELECT replace(printf('%.*c', 900000, 'x'), 'x', 'xxxxxxxxxx')", "too_large"),
        (
            f"{ENDLESS} SELECT group_concat(y) FROM (SELECT printf('%.*c', 1000 + x, 'x') AS y FROM r)",
            "too_large|timeout",
        ),
        (f"{ENDLESS} SELECT printf('%.*c', 900000, 'x') FROM r", "too_large"),
        ("SELECT load_extension('x')", "forbidden"),
        ("SELECT fts3_tokenizer('simple')", "forbidden"),
        ("SELECT * FROM pragma_database_list", "forbidden"),
        ("SELECT name FROM dbstat", "forbidden"),
        ("SELECT " + "(" * 5000 + "1" + ")" * 5000, "sql_error"),
        ("SELECT 1" + " UNION SELECT 1" * 6000, "sql_error"),
    ],
)
def test_a_hostile_query_fails_for_its_reason(sqlite, completion, reason):
    start = time.monotonic()
    verdict = judge(sqlite, result_row("SELECT name FROM guest"), completion)
    assert verdict.kind is VerdictKind.FAIL
    assert verdict.reason in reason.split("|")
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("ATTACH '{file}' AS out; CREATE TABLE out.t (a)", "forbidden"),
        ("VACUUM INTO '{file}'", "forbidden"),
        ("DETACH main", "forbidden"),
        ("PRAGMA writable_schema = ON", "forbidden"),
        ("PRAGMA max_page_count = 1000000000", "forbidden"),
        ("PRAGMA temp_store_directory = '/'", "forbidden"),
        ("SELECT load_extension('{file}')", "forbidden"),
        ("CREATE VIRTUAL TABLE f USING fts5(a)", "forbidden"),
        (f"{ENDLESS} INSERT INTO visit SELECT x, x FROM r", "too_large|timeout"),  # whichever this machine reaches first
        (f"CREATE TABLE t AS {ENDLESS} SELECT printf('%.*c', 900000, 'x') FROM r", "too_large"),
        ("CREATE TABLE t (a); CREATE TRIGGER loop AFTER INSERT ON t BEGIN INSERT INTO t SELECT a FROM t; END; "
         "INSERT INTO t VALUES (1)", "*"),
        ("CREATE VIEW guest_ AS SELECT * FROM guest; DROP TABLE guest; ALTER TABLE guest_ RENAME TO guest", "*"),
        ("DROP TABLE guest; CREATE TABLE guest (id INTEGER PRIMARY KEY, name TEXT NOT NULL, paid REAL, city TEXT "
         "GENERATED ALWAYS AS ('Oslo'))", "*"),
    ],
)  # fmt: skip
def test_a_hostile_script_fails_and_touches_no_file(sqlite, tmp_path, completion, reason):
    file = tmp_path / "out.db"
    verdict = judge(sqlite, state_row("UPDATE guest SET city = 'Oslo'"), completion.replace("{file}", str(file)))
    assert verdict.kind is VerdictKind.FAIL
    assert reason == "*" or verdict.reason in reason.split("|")
    assert not file.exists()


@pytest.mark.parametrize(
    "completion",
    [f"{ENDLESS} INSERT INTO visit SELECT x, x FROM r", f"CREATE TABLE t AS {ENDLESS} SELECT x, hex(x) FROM r"],
)
def test_a_database_grows_no_further_than_it_may_whatever_the_time(completion):
    verifier = DatabaseVerifier(timeout_seconds=60, max_database_bytes=4 << 20)
    verdict = judge(verifier, state_row("UPDATE guest SET city = 'Oslo'"), completion)
    verifier.close()
    assert (verdict.kind, verdict.reason) == (VerdictKind.FAIL, "too_large")


def test_time_is_limited_without_a_process_of_its_own():
    verifier = DatabaseVerifier(sandbox=False, timeout_seconds=0.2)
    for row in (result_row("SELECT 1"), state_row("DELETE FROM visit")):
        assert judge(verifier, row, f"{ENDLESS} SELECT count(*) FROM r").reason == "timeout"


def test_memory_is_limited():
    verifier = DatabaseVerifier(timeout_seconds=20, memory_bytes=128 << 20)
    sql = f"{ENDLESS} SELECT count(DISTINCT printf('%.*c', 900000 + x, 'x')) FROM r"
    verdict = judge(verifier, result_row("SELECT name FROM guest"), sql)
    verifier.close()
    assert (verdict.kind, verdict.reason) == (VerdictKind.FAIL, "memory")


PIECES = ["SELECT", "FROM", "guest", "name", "*", ",", "(", ")", "'", '"', "--", "/*", "*/", ";", "WITH", "AS", "1", "NULL",
          "DROP TABLE", "UNION", "ATTACH"]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.text(st.characters(codec=None), max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join)
    ),
    st.sampled_from(["result", "state"]),
)
def test_no_text_raises_or_passes(completion, check):
    gold = "SELECT name, city, id, 17 FROM guest" if check == "result" else "DELETE FROM guest"
    verdict = judge(_UNCONFINED, {**state_row(gold), "check": check}, completion)
    assert verdict.kind is VerdictKind.FAIL
    assert verdict.reward == 0.0
    json.dumps(verdict.details).encode()


_UNCONFINED = DatabaseVerifier(sandbox=False)


# Attacks on PostgreSQL


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("SELECT pg_sleep(60)", "timeout"),
        ("SELECT set_config('statement_timeout', '0', false), pg_sleep(60)", "timeout"),
        ("SELECT count(*) FROM pg_proc a, pg_proc b, pg_proc c", "timeout"),
        (f"{ENDLESS} SELECT count(*) FROM r", "too_large|timeout"),  # what it works on is a temporary file
        (f"{ENDLESS} SELECT x FROM r", "too_many_rows"),
        ("SELECT generate_series(1, 100000000000)", "too_many_rows"),
        ("SELECT * FROM generate_series(1, 100000000000)", "too_large|timeout"),
        ("SELECT repeat('x', 200000000)", "too_large|timeout"),
        ("SELECT repeat('x', 100000) FROM generate_series(1, 9999)", "too_large"),
        ("SELECT repeat('x', 2000000000)", "too_large"),
        ("SELECT set_config('role', 'postgres', false)", "forbidden"),
        ("SELECT set_config('session_authorization', 'postgres', false)", "forbidden"),
        ("SELECT set_config('transaction_read_only', 'off', false)", "sql_error"),
        ("SELECT pg_read_file('/etc/passwd')", "forbidden"),
        ("SELECT pg_ls_dir('/')", "forbidden"),
        ("SELECT lo_import('/etc/passwd')", "forbidden"),
        ("SELECT lo_create(0)", "forbidden"),
        ("SELECT pg_advisory_lock(x) FROM generate_series(1, 1000000) x", "forbidden"),
        ("SELECT pg_logical_emit_message(false, 'a', repeat('x', 1000000)) FROM generate_series(1, 1000)", "forbidden"),
        ("SELECT pg_notify('a', 'b')", "forbidden"),
        ("SELECT dblink('dbname=postgres', 'SELECT 1')", "sql_error"),
        ("SELECT query_to_xml('DELETE FROM guest', true, true, '')", "sql_error"),
        ("SELECT query_to_xml('SET ROLE postgres', true, true, '')", "*"),
        ("WITH d AS (DELETE FROM guest RETURNING name) SELECT name FROM d", "read_only"),
        ("SELECT name FROM guest FOR UPDATE", "read_only"),
        ("SELECT name INTO taken FROM guest", "*"),
        ("SELECT pg_terminate_backend(pg_backend_pid())", "crash"),
        ("SELECT pg_cancel_backend(pg_backend_pid())", "timeout"),
        ("SELECT rolpassword FROM pg_authid", "forbidden"),
        ("SELECT name FROM guest WHERE $1", "*"),
    ],
)
def test_a_hostile_query_fails_on_the_server(postgres, completion, reason):
    start = time.monotonic()
    verdict = judge(postgres, result_row("SELECT name FROM guest"), completion)
    assert verdict.kind is VerdictKind.FAIL, verdict
    assert reason == "*" or verdict.reason in reason.split("|"), verdict
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("SET statement_timeout = 0; SELECT pg_sleep(60)", "timeout"),
        ("BEGIN; SET LOCAL statement_timeout = 0; COMMIT; SELECT count(*) FROM pg_proc a, pg_proc b, pg_proc c", "timeout"),
        ("COPY guest TO '{file}'", "forbidden"),
        ("COPY guest TO PROGRAM 'cat > {file}'", "forbidden"),
        ("COPY guest FROM '/etc/passwd'", "forbidden"),
        ("COPY guest TO STDOUT", "forbidden"),
        ("COPY guest FROM STDIN", "forbidden"),
        ("SET ROLE postgres", "forbidden"),
        ("SET SESSION AUTHORIZATION postgres", "forbidden"),
        ("RESET SESSION AUTHORIZATION; COPY guest TO '{file}'", "forbidden"),
        ("ALTER ROLE CURRENT_USER SUPERUSER", "forbidden"),
        ("ALTER ROLE postgres PASSWORD 'x'", "forbidden"),
        ("ALTER SYSTEM SET fsync = on", "forbidden"),
        ("CREATE ROLE evil", "forbidden"),
        ("CREATE DATABASE evil", "forbidden"),
        ("CREATE SCHEMA evil", "forbidden"),
        ("CREATE EXTENSION hstore", "*"),
        ("LOAD 'auto_explain'", "forbidden"),
        ("DO $$ BEGIN LOOP END LOOP; END $$", "forbidden"),
        ("DO $$ BEGIN COMMIT; END $$", "forbidden"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "forbidden"),
        ("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'", "forbidden"),
        ("SET temp_file_limit = -1", "forbidden"),
        ("SET session_replication_role = replica", "forbidden"),
        ("PREPARE TRANSACTION 'stays'", "*"),
        ("SELECT lo_create(0)", "forbidden"),
        ("INSERT INTO visit SELECT 1, repeat('x', 1000) FROM generate_series(1, 100000000)", "too_large|timeout"),
        ("CREATE TEMP TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 100000000)", "too_large|timeout"),
        ("SELECT * FROM generate_series(1, 100000000000)", "too_large|timeout"),
        ("ALTER TABLE guest ENABLE ROW LEVEL SECURITY", "wrong_schema"),
        ("CREATE TABLE kid () INHERITS (guest)", "wrong_schema"),
        ("CREATE RULE r AS ON INSERT TO visit DO INSTEAD NOTHING", "wrong_schema"),
        ("ALTER TABLE guest RENAME TO g; CREATE VIEW guest AS SELECT id, name, paid, 'Oslo' AS city FROM g", "wrong_schema"),
        ("GRANT ALL ON guest TO PUBLIC", "wrong_schema"),
        ("COMMENT ON TABLE guest IS 'x'", "wrong_schema"),
        ("CREATE TYPE mood AS ENUM ('a')", "wrong_schema"),
        ("CREATE SEQUENCE s", "wrong_schema"),
        ("CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq)", "wrong_schema"),
        ("CREATE STATISTICS s ON id, city FROM guest", "wrong_schema"),
        ("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC", "wrong_schema"),
        ("CREATE COLLATION c FROM \"C\"", "wrong_schema"),
        ("SELECT pg_terminate_backend(pg_backend_pid())", "crash"),
    ],
)  # fmt: skip
def test_a_hostile_script_fails_on_the_server(postgres, tmp_path_factory, completion, reason):
    file = f"/tmp/headrace-{tmp_path_factory.getbasetemp().name}"
    verdict = judge(postgres, state_row("UPDATE guest SET city = 'Oslo'"), completion.replace("{file}", file))
    assert verdict.kind is VerdictKind.FAIL, verdict
    assert reason == "*" or verdict.reason in reason.split("|"), verdict


@pytest.fixture(scope="module")
def patient(postgres_dsn):
    """Much time and little room."""
    verifier = DatabaseVerifier(
        dialect="postgres", dsn=postgres_dsn, timeout_seconds=60, max_result_bytes=1 << 20, max_database_bytes=4 << 20
    )
    yield verifier
    verifier.close()


@pytest.mark.parametrize(
    ("check", "completion"),
    [
        ("result", "SELECT repeat('x', 20000) FROM generate_series(1, 100)"),
        ("result", f"{ENDLESS} SELECT count(*) FROM r"),
        ("state", "INSERT INTO visit SELECT 1, repeat('x', 1000) || generate_series(1, 100000000)"),
        ("state", "CREATE TEMP TABLE t AS SELECT repeat('x', 1000), generate_series(1, 100000000)"),
        ("state", "SELECT repeat('x', 1000), generate_series(1, 100000000)"),
    ],
)
def test_room_is_limited_whatever_the_time(patient, check, completion):
    start = time.monotonic()
    row = result_row("SELECT 1") if check == "result" else state_row("UPDATE guest SET city = 'Oslo'")
    assert judge(patient, row, completion).reason == "too_large"
    assert time.monotonic() - start < 30


def test_a_huge_value_takes_the_memory_of_no_other_process(postgres_dsn):
    verifier = DatabaseVerifier(dialect="postgres", dsn=postgres_dsn, timeout_seconds=20, memory_bytes=256 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = state_row("UPDATE guest SET city = 'Oslo'")
    verdicts = verifier.verify_many([Sample(f"SELECT repeat('x', {size})", row) for size in (30_000_000, 400_000_000)])
    right = judge(verifier, row, "UPDATE guest SET city = 'Oslo'")
    verifier.close()
    assert [verdict.kind for verdict in verdicts] == [VerdictKind.FAIL] * 2
    assert verdicts[0].reason == "too_large"
    assert verdicts[1].reason in ("memory", "crash")  # by who notices first, Python or libpq
    assert right.reason == "match"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize(
    "completion",
    [
        "ALTER ROLE CURRENT_USER SET search_path = nowhere; ALTER ROLE CURRENT_USER PASSWORD 'x'",
        "SET search_path = nowhere",
        "CREATE TEMP TABLE guest (city TEXT)",
        "LISTEN a; NOTIFY a, 'b'",
        "ALTER TABLE guest OWNER TO CURRENT_USER; GRANT ALL ON guest TO PUBLIC",
    ],
)
def test_what_a_script_sets_does_not_reach_the_next(postgres, completion):
    row = state_row("UPDATE guest SET city = 'Oslo'")
    assert judge(postgres, row, completion).kind is VerdictKind.FAIL
    assert judge(postgres, row, "UPDATE guest SET city = 'Oslo'").reason == "match"


@pytest.mark.parametrize(
    ("gold", "completion", "same"),
    [
        ("SELECT true", "SELECT 1 = 1", True),
        ("SELECT true", "SELECT 1", False),
        ("SELECT true", "SELECT 't'", False),
        ("SELECT 1.50::numeric", "SELECT 1.5::float8", True),
        ("SELECT 'NaN'::numeric", "SELECT 'NaN'::float8", True),
        ("SELECT 'a'::char(5)", "SELECT 'a'", True),
        ("SELECT DATE '2026-11-20'", "SELECT DATE '2026-11-20'", True),
        ("SELECT DATE '2026-11-20'", "SELECT '2026-11-20'", False),
        ("SELECT DATE '2026-11-20'", "SELECT set_config('DateStyle', 'SQL', false)::text || ''", False),
        ("SELECT ARRAY[1, 2]", "SELECT ARRAY[1] || 2", True),
        ("SELECT '{\"a\": 1}'::jsonb", "SELECT jsonb_build_object('a', 1)", True),
        ("SELECT '\\x00'::bytea", "SELECT decode('00', 'hex')", True),
        ("SELECT NULL::int", "SELECT NULL", True),
    ],
)
def test_types_of_the_server_are_told_apart(postgres, gold, completion, same):
    assert judge(postgres, result_row(gold), completion).reason == ("match" if same else "wrong_rows")


def test_a_setup_may_have_functions_triggers_and_schemas(postgres):
    setup = """
        CREATE SCHEMA shop; CREATE TYPE shop.size AS ENUM ('s', 'l');
        CREATE TABLE shop.item (id SERIAL PRIMARY KEY, size shop.size, total INT);
        CREATE FUNCTION shop.doubled() RETURNS trigger LANGUAGE plpgsql
          AS 'BEGIN NEW.total := NEW.total * 2; RETURN NEW; END';
        CREATE TRIGGER doubling BEFORE INSERT ON shop.item FOR EACH ROW EXECUTE FUNCTION shop.doubled();
    """
    row = {"setup_sql": setup, "gold_sql": "INSERT INTO shop.item (size, total) VALUES ('s', 2)", "check": "state"}
    assert postgres.check_row(row) is None
    assert judge(postgres, row, "INSERT INTO shop.item (total, size) SELECT 1 + 1, 's'").reason == "match"
    assert judge(postgres, row, "INSERT INTO shop.item VALUES (1, 's', 4)").reason == "wrong_rows"
    dropped = "DROP TRIGGER doubling ON shop.item; INSERT INTO shop.item (size, total) VALUES ('s', 4)"
    assert judge(postgres, row, dropped).reason == "wrong_schema"


@pytest.mark.parametrize(
    "setup",
    [
        "RESET ROLE; COPY (SELECT 1) TO '/tmp/x'",
        "CREATE ROLE evil",
        "ALTER SYSTEM SET fsync = on",
        "SELECT pg_sleep(60)",
    ],
)
def test_a_setup_has_no_privileges_either(postgres, setup):
    assert "cannot be set up" in postgres.check_row({"setup_sql": setup, "gold_sql": "SELECT 1"})


def made_on(dsn):
    with psycopg.connect(dsn) as connection:
        return connection.execute(
            "SELECT datname FROM pg_database WHERE datname ~ '^headrace_' UNION ALL "
            "SELECT rolname FROM pg_roles WHERE rolname ~ '^headrace_'"
        ).fetchall()


def locks(dsn):
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()[0]


def await_locks(dsn, at_most):
    """Until the server has noticed that a client is gone."""
    deadline = time.monotonic() + 10
    while locks(dsn) > at_most:
        assert time.monotonic() < deadline


def test_closing_leaves_nothing_on_the_server(postgres, postgres_dsn):
    before = made_on(postgres_dsn)
    verifier = DatabaseVerifier(dialect="postgres", dsn=postgres_dsn, timeout_seconds=1.0)
    for completion in ("SELECT 1", "SELECT pg_sleep(60)", "SELECT pg_terminate_backend(pg_backend_pid())"):
        judge(verifier, result_row("SELECT 1"), completion)
    assert len(made_on(postgres_dsn)) == len(before) + 3  # a template, an owner, a reader
    verifier.close()
    assert made_on(postgres_dsn) == before


def test_what_a_killed_process_left_is_cleared_by_the_next(postgres, postgres_dsn):
    before, held = len(made_on(postgres_dsn)), locks(postgres_dsn)
    script = (
        "import os, signal, sys; from headrace.verifiers import Sample\n"
        "from headrace.verifiers.database.verifier import DatabaseVerifier\n"
        "verifier = DatabaseVerifier(dialect='postgres', dsn=sys.argv[1])\n"
        "print(verifier.verify(Sample('SELECT 1', {'setup_sql': '', 'gold_sql': 'SELECT 1'})).reason, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    left = subprocess.run([sys.executable, "-c", script, postgres_dsn], capture_output=True, text=True, check=False)
    assert (left.returncode, left.stdout) == (-signal.SIGKILL, "match\n"), left.stderr
    assert len(made_on(postgres_dsn)) > before
    await_locks(postgres_dsn, held)
    verifier = DatabaseVerifier(dialect="postgres", dsn=postgres_dsn)
    verifier.start()
    verifier.close()
    assert len(made_on(postgres_dsn)) <= before


def test_a_lost_connection_is_made_anew(postgres, postgres_dsn):
    assert judge(postgres, result_row("SELECT 1"), "SELECT 1").reason == "match"
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'postgres' AND "
                           "pid <> pg_backend_pid()")  # fmt: skip
    assert judge(postgres, result_row("SELECT 1"), "SELECT 1").reason == "match"


def test_a_server_that_is_not_there_is_no_fault_of_the_samples(tmp_path):
    verifier = DatabaseVerifier(dialect="postgres", dsn=f"postgresql://me:secret@/x?host={tmp_path}")
    verdict = judge(verifier, result_row("SELECT 1"), "SELECT 1")
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "database_unavailable")
    with pytest.raises(UserError, match="option `dsn`") as error:
        verifier.start()
    assert "secret" not in str(error.value) + str(verdict.details)


def test_a_role_that_is_no_superuser_is_refused(postgres_dsn):
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE plain LOGIN CREATEDB")
    with pytest.raises(UserError, match="no superuser"):
        DatabaseVerifier(dsn=psycopg.conninfo.make_conninfo(postgres_dsn, user="plain")).start()


# Rows of the user's


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"gold_sql": "SELECT 1"}, "`setup_sql` is missing"),
        ({"setup_sql": "", "gold_sql": 7}, "`gold_sql` is not a string"),
        ({"setup_sql": "", "gold_sql": " "}, "`gold_sql` is empty"),
        (result_row("SELECT 1", check="rows"), "`check` is 'rows'"),
        (result_row("SELECT 1", dialect="oracle"), "`dialect` is 'oracle'"),
        (result_row("SELECT 1", variants_sql="x"), "`variants_sql` is not a list"),
        (result_row("SELECT 1", variants_sql=["SELEC"]), "cannot be set up"),
        (result_row("SELECT nome FROM guest"), "`gold_sql` .*nome"),
        (result_row("DELETE FROM guest"), "`gold_sql` .*read_only"),
        ({"setup_sql": "CREATE TABL t", "gold_sql": "SELECT 1"}, "cannot be set up"),
        ({"setup_sql": "ATTACH 'x' AS y", "gold_sql": "SELECT 1"}, "cannot be set up .forbidden"),
        (state_row("UPDATE guest SET name = name"), "changes nothing"),
        (state_row("UPDATE gast SET name = 1"), "`gold_sql` .*gast"),
        (result_row("SELECT 1", dialect="postgres"), "no `dsn`"),
    ],
)
def test_a_row_that_cannot_be_judged_is_named_and_never_scored(sqlite, row, complaint):
    assert re.search(complaint, sqlite.check_row(row))
    if "changes nothing" not in complaint:
        verdict = judge(sqlite, row, "SELECT 1")
        assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "bad_row")


def test_good_rows_have_no_fault(either):
    assert either.check_row(result_row("SELECT name FROM guest")) is None
    assert either.check_row(state_row("UPDATE guest SET city = 'Oslo'")) is None


def test_a_setup_that_enforces_foreign_keys_does_so_for_the_completion(sqlite):
    row = {**state_row("DELETE FROM visit; DELETE FROM guest"), "setup_sql": "PRAGMA foreign_keys = ON;" + SETUP}
    assert judge(sqlite, row, "DELETE FROM guest").reason == "sql_error"
    assert judge(sqlite, row, "PRAGMA foreign_keys = OFF; DELETE FROM guest; DELETE FROM visit").reason == "forbidden"
    assert judge(sqlite, row, "DELETE FROM visit; DELETE FROM guest").reason == "match"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"dialect": "postgres"}, "`dsn` .* is missing"),
        ({"dialect": "mysql"}, "option `dialect`"),
        ({"ordr": "auto"}, "did you mean `order`"),
        ({"ignore_columns": ["day"]}, "table.column"),
    ],
)
def test_a_wrong_option_is_refused(options, complaint):
    with pytest.raises(UserError, match=complaint):
        DatabaseVerifier(**options)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'headrace\[database\]'"):
        DatabaseVerifier()


def test_it_can_be_shipped(sqlite):
    copy = pickle.loads(pickle.dumps(sqlite))
    assert judge(copy, result_row("SELECT 1"), "SELECT 1").reason == "match"
    copy.close()


def test_a_batch_of_both_dialects_keeps_its_order(postgres):
    samples = [
        Sample("SELECT 1", result_row("SELECT 1", dialect=dialect)) for dialect in ("sqlite", "postgresql", "sqlite")
    ]
    samples.insert(1, Sample("SELECT 2", result_row("SELECT 1", dialect="sqlite")))
    samples.append(Sample("SELECT 1", {}))
    assert [each.reason for each in postgres.verify_many(samples)] == [
        "match",
        "wrong_rows",
        "match",
        "match",
        "bad_row",
    ]


# Rows as values

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, 1.0, float("nan")]), st.sampled_from(["", "1", "a"]),
    st.sampled_from([Decimal("0.5"), Decimal(1)]), st.binary(max_size=1),
)  # fmt: skip
ROWS = st.lists(st.tuples(VALUES, VALUES), max_size=6)


@given(ROWS, st.randoms())
def test_rows_are_the_same_multiset_in_any_order(rows, random):
    shuffled = random.sample(rows, len(rows))
    assert same_multiset(shuffled, rows, Comparison())
    assert not same_multiset([*shuffled, (None, None)], rows, Comparison())


@given(ROWS, ROWS)
def test_sameness_has_no_direction(one, other):
    assert same_multiset(one, other, Comparison()) == same_multiset(other, one, Comparison())


@pytest.mark.parametrize(
    ("found", "gold", "same"),
    [
        (1, 1.0, True), (1, Decimal("1.00"), True), (0.1 + 0.2, 0.3, True), (0.1 + 0.2, Decimal("0.3"), True),
        (2**53, 2**53 + 1, False), (10**400, 1e308, False), (1, True, False), (0, False, False), (1, "1", False),
        ("a", b"a", False), (None, 0, False), (None, "", False), (float("nan"), float("nan"), True),
        (1.0, 1.000001, False), (Decimal("1E400"), Decimal("2E400"), False),
        (Decimal("1.10"), 1.1, True), (0.0, 1e-17, True), (float("inf"), float("inf"), True), (float("inf"), 1e308, False),
    ],
)  # fmt: skip
def test_values_of_another_kind_are_never_the_same(found, gold, same):
    rows = Rows(("a",), ((found,),)), Rows(("a",), ((gold,),))
    assert (compare_rows(*rows, ordered=False, names=False, how=Comparison()) == "") is same


def test_rows_within_the_tolerance_are_paired_whatever_their_order():
    gold = [(0.3, "b"), (0.3, "a"), (1.0, "b")]
    assert same_multiset([(1.0 + 1e-12, "b"), (0.1 + 0.2, "a"), (0.3, "b")], gold, Comparison())
    one, other = [(1.0, 5.0), (1.0 + 1e-10, 4.0)], [(1.0 + 2e-10, 5.0), (1.0, 4.0)]
    assert same_multiset(one, other, Comparison())
    assert not same_multiset(one, [(1.0, 5.0), (1.0, 5.0)], Comparison())


@given(st.text("aA'\"`[]-/*\n .x1", max_size=40))
def test_any_definition_has_words(text):
    assert all(tokens(text))


@pytest.mark.parametrize("module", ["definitions", "judge", "tasks", "verifier"])
def test_the_examples_in_the_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(f"headrace.verifiers.database.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_numbers_of_many_digits_are_compared_in_little_time():
    # As many digits as PostgreSQL's numeric may have before its point; to make integers of them takes minutes.
    with localcontext() as context:
        context.prec = 131_072
        found, gold = ([(Decimal(10) ** 131_000 + start + i,) for i in range(100)] for start in (0, 100))
    started = time.monotonic()
    assert not same_multiset(found, gold, Comparison())
    assert same_multiset(found, found[::-1], Comparison())
    assert time.monotonic() - started < 10
