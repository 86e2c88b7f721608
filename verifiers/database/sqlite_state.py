"""The whole state of a SQLite database, read from a connection that nothing else has used."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from headrace.verifiers.database.definitions import hidden_clauses, tokens
from headrace.verifiers.database.rows import Row, Rows, State

# What SQLite says of a table: name, type, not null, default, place in the primary key, hidden or generated.
_COLUMNS = 'SELECT name, type, "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(?) ORDER BY cid'
_FOREIGN_KEYS = (
    'SELECT id, seq, "table", "from", "to", on_update, on_delete, "match" FROM pragma_foreign_key_list(?) ORDER BY 1, 2'
)
_KEYS = "SELECT name, origin FROM pragma_index_list(?) WHERE origin <> 'c'"
_KEY_COLUMNS = 'SELECT name, "desc", coll FROM pragma_index_xinfo(?) WHERE key ORDER BY seqno'
_KINDS = "SELECT name, type, wr, strict FROM pragma_table_list WHERE schema = 'main'"
_OBJECTS = "SELECT type, name, sql FROM main.sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"


def read_state(
    connection: sqlite3.Connection, ignored: frozenset[str], fetched: Callable[[sqlite3.Cursor], tuple[Row, ...]]
) -> State:
    """Schema and rows, without the columns in `ignored` ("table.column", lower case). Rows go through `fetched`.

    Not compared: counters of AUTOINCREMENT, statistics of ANALYZE, what a virtual table keeps for itself.
    """
    kinds = {name: (kind, wr, strict) for name, kind, wr, strict in connection.execute(_KINDS)}
    schema: dict[str, str] = {}
    tables: dict[str, Rows] = {}
    for kind, name, sql in connection.execute(_OBJECTS).fetchall():
        table_kind = kinds.get(name, ("", 0, 0))[0] if kind == "table" else ""
        if table_kind == "shadow":
            continue
        words = tokens(sql or "")
        key = f"{kind} {name.lower()}"
        if kind == "table" and table_kind != "virtual":
            schema[key] = _table(connection, name, words, kinds[name][1:])
        else:
            schema[key] = " ".join(word for word in words if word != "asc")
        if kind == "table":
            tables[name.lower()] = _rows(connection, name, ignored, fetched)
    return State(schema, tables)


def _table(connection: sqlite3.Connection, name: str, words: list[str], flags: tuple[int, ...]) -> str:
    columns = [
        (column.lower(), kind.upper(), notnull, " ".join(tokens(default or "")), pk, hidden)
        for column, kind, notnull, default, pk, hidden in connection.execute(_COLUMNS, (name,))
    ]
    references: dict[int, list[Any]] = {}
    for number, *rest in connection.execute(_FOREIGN_KEYS, (name,)):
        references.setdefault(number, []).append([_lower(each) for each in rest])
    keys = [
        (origin, connection.execute(_KEY_COLUMNS, (index,)).fetchall())
        for index, origin in connection.execute(_KEYS, (name,)).fetchall()
    ]
    parts = (columns, sorted(map(str, references.values())), sorted(map(str, keys)), flags, hidden_clauses(words))
    return str(parts)


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _rows(
    connection: sqlite3.Connection,
    table: str,
    ignored: frozenset[str],
    fetched: Callable[[sqlite3.Cursor], tuple[Row, ...]],
) -> Rows:
    names = [column[0] for column in connection.execute(_COLUMNS, (table,)) if column[5] != 1]
    kept = [name for name in names if f"{table}.{name}".lower() not in ignored]
    if not kept:
        return Rows((), ())
    listed = ", ".join(f"main.{_quoted(table)}.{_quoted(name)}" for name in kept)
    cursor = connection.execute(f"SELECT {listed} FROM main.{_quoted(table)}")
    return Rows(tuple(kept), fetched(cursor))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
