"""The whole state of a PostgreSQL database, read by a role that may only read, in a session that trusts no name of its."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace.verifiers.database.rows import Rows, State

_OURS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
_ACL = "array(SELECT x::text FROM unnest({}) AS x ORDER BY 1)::text"
_RELATION = "format('%I.%I', n.nspname, c.relname)"
_SPACE = "JOIN pg_namespace n ON n.oid = c.relnamespace"
_PARENTS = """SELECT string_agg(i.inhparent::regclass::text, ',' ORDER BY i.inhseqno)
          FROM pg_inherits i WHERE i.inhrelid = c.oid"""
_LABELS = """SELECT string_agg(quote_literal(e.enumlabel), ',' ORDER BY e.enumsortorder)
          FROM pg_enum e WHERE e.enumtypid = t.oid"""
# What is told apart by name alone; hardly any script makes one.
_OTHERS = " UNION ALL ".join(
    f"SELECT '{catalog}'::regclass, oid FROM {catalog}"
    for catalog in (
        "pg_operator", "pg_opclass", "pg_opfamily", "pg_cast", "pg_collation", "pg_conversion", "pg_statistic_ext",
        "pg_ts_config", "pg_ts_dict", "pg_default_acl", "pg_publication", "pg_foreign_server", "pg_event_trigger",
    )
)  # fmt: skip

# Each gives kind, name, definition. The names in the definitions are complete: nothing but pg_catalog is searched.
# Not compared: owners, how far sequences have counted, statistics, large objects.
_CATALOG = (
    f"SELECT 'schema', n.nspname, {_ACL.format('n.nspacl')} FROM pg_namespace n WHERE {_OURS}",
    f"""SELECT 'relation', {_RELATION}, concat_ws(' ', c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity,
          c.reloptions::text, {_ACL.format("c.relacl")}, pg_get_partkeydef(c.oid), pg_get_expr(c.relpartbound, c.oid),
          ({_PARENTS}),
          CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END)
        FROM pg_class c {_SPACE}
        WHERE {_OURS} AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c')""",
    f"""SELECT 'column', {_RELATION} || format('.%I', a.attname), concat_ws(' ',
          row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum), format_type(a.atttypid, a.atttypmod), a.attnotnull,
          nullif(a.attcollation, 100)::regcollation, a.attidentity, a.attgenerated,
          pg_get_expr(d.adbin, d.adrelid), {_ACL.format("a.attacl")})
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid {_SPACE}
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE {_OURS} AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c')""",
    f"""SELECT 'constraint', format('%s.%I',
          coalesce(nullif(k.conrelid, 0)::regclass::text, k.contypid::regtype::text), k.conname),
          concat_ws(' ', pg_get_constraintdef(k.oid), k.convalidated)
        FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace WHERE {_OURS}""",
    f"""SELECT 'index', {_RELATION}, concat_ws(' ', pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisclustered)
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid {_SPACE} WHERE {_OURS}""",
    f"""SELECT 'sequence', {_RELATION},
          concat_ws(' ', s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcycle, s.seqcache)
        FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid {_SPACE} WHERE {_OURS}""",
    f"""SELECT 'trigger', {_RELATION} || format('.%I', t.tgname), concat_ws(' ', pg_get_triggerdef(t.oid), t.tgenabled)
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid {_SPACE}
        WHERE {_OURS} AND NOT t.tgisinternal""",
    f"""SELECT 'rule', {_RELATION} || format('.%I', r.rulename), pg_get_ruledef(r.oid)
        FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class {_SPACE}
        WHERE {_OURS} AND r.rulename <> '_RETURN'""",
    f"""SELECT 'policy', {_RELATION} || format('.%I', p.polname), concat_ws(' ', p.polcmd, p.polpermissive,
          p.polroles::regrole[]::text, pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
        FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid {_SPACE} WHERE {_OURS}""",
    f"""SELECT 'function', p.oid::regprocedure::text,
          concat_ws(' ',
          CASE WHEN p.prokind IN ('f', 'p', 'w') THEN pg_get_functiondef(p.oid) END, {_ACL.format("p.proacl")})
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {_OURS}""",
    f"""SELECT 'type', format('%I.%I', n.nspname, t.typname), concat_ws(' ', t.typtype, t.typnotnull, t.typdefault,
          nullif(t.typbasetype, 0)::regtype, {_ACL.format("t.typacl")},
          ({_LABELS}))
        FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
        WHERE {_OURS} AND t.typtype IN ('e', 'd', 'r', 'm')""",
    "SELECT 'extension', extname, extversion FROM pg_extension",
    f"""SELECT 'other', pg_describe_object(k.kind, k.id, 0),
          CASE WHEN k.kind = 'pg_statistic_ext'::regclass THEN pg_get_statisticsobjdef(k.id) END
        FROM ({_OTHERS}) AS k (kind, id) WHERE k.id >= 16384""",
    """SELECT 'comment', pg_describe_object(classoid, objoid, objsubid), description
        FROM pg_description WHERE objoid >= 16384""",
)
_TABLES = f"""SELECT n.nspname, c.relname, c.relkind::text, a.attname
    FROM pg_class c {_SPACE}
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE {_OURS} AND (c.relkind = 'r' OR c.relkind = 'm' AND c.relispopulated)
    ORDER BY c.oid, a.attnum"""


def read_state(read: Callable[[str], Rows], ignored: frozenset[str], runner: str) -> State:
    """Schema and rows, without the columns in `ignored` ("table.column" or "schema.table.column", lower case).

    `runner` is the name of the role that ran the script: what it owns is the same whatever it was called.
    """
    read("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    schema: dict[str, str] = {}
    for query in _CATALOG:
        for kind, name, definition in read(query).rows:
            schema[f"{kind} {name}".replace(runner, "runner")] = str(definition).replace(runner, "runner")
    columns: dict[tuple[str, str], list[str]] = {}
    materialized: set[tuple[str, str]] = set()
    for space, table, kind, column in _texts(read(_TABLES)):
        kept = columns.setdefault((space, table), [])
        if kind == "m":
            materialized.add((space, table))
        name = f"{table}.{column}".lower()
        if column and name not in ignored and f"{space}.{name}".lower() not in ignored:
            kept.append(column)
    tables = {
        f"{_quoted(space)}.{_quoted(table)}": _rows(read, space, table, kept, only=(space, table) not in materialized)
        for (space, table), kept in columns.items()
    }
    return State(schema, tables)


def _rows(read: Callable[[str], Rows], space: str, table: str, columns: list[str], *, only: bool) -> Rows:
    listed = ", ".join(map(_quoted, columns)) or "1"
    return read(f"SELECT {listed} FROM {'ONLY ' if only else ''}{_quoted(space)}.{_quoted(table)}")


def _texts(rows: Rows) -> list[Any]:
    return list(rows.rows)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
