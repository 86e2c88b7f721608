"""SQLite keeps an object's definition as the text that made it. Here that text loses what means nothing: comments, white
space, the case of words, quotes round plain names."""

from __future__ import annotations

from collections.abc import Sequence

_CLOSING = {"'": "'", '"': '"', "`": "`", "[": "]"}
_KEPT = frozenset({"check", "collate", "autoincrement", "as", "deferrable", "conflict"})


def tokens(sql: str) -> list[str]:
    """The words of a definition. Strings keep their quotes and their case; names lose both.

    >>> tokens("CREATE TABLE  [T] ( a\\tTEXT DEFAULT 'X' ) -- note")
    ['create', 'table', 't', '(', 'a', 'text', 'default', "'X'", ')']
    """
    found: list[str] = []
    at = 0
    while at < len(sql):
        letter = sql[at]
        if letter.isspace():
            at += 1
        elif sql.startswith("--", at):
            at = _after(sql, "\n", at)
        elif sql.startswith("/*", at):
            at = _after(sql, "*/", at + 2)
        elif letter in _CLOSING:
            end = _end_of_quoted(sql, at, _CLOSING[letter])
            quoted = sql[at:end]
            found.append(quoted if letter == "'" else _name(quoted[1:-1]))
            at = end
        elif _is_word(letter):
            end = at + 1
            while end < len(sql) and _is_word(sql[end]):
                end += 1
            found.append(sql[at:end].lower())
            at = end
        else:
            found.append(letter)
            at += 1
    return found


def hidden_clauses(words: Sequence[str]) -> list[str]:
    """The clauses of a table's definition that no pragma tells of, sorted: checks, collations, generated columns."""
    clauses = []
    for place, word in enumerate(words):
        if word not in _KEPT:
            continue
        if word in ("check", "as") and place + 1 < len(words) and words[place + 1] == "(":
            clauses.append(" ".join((word, *words[place + 1 : _end_of_group(words, place + 1)])))
        elif word in ("collate", "conflict"):
            clauses.append(" ".join(words[max(0, place - 3) : place + 2]))
        elif word != "as":
            clauses.append(word)
    return sorted(clauses)


def _end_of_group(words: Sequence[str], start: int) -> int:
    depth = 0
    for place in range(start, len(words)):
        depth += (words[place] == "(") - (words[place] == ")")
        if depth == 0:
            return place + 1
    return len(words)


def _name(inner: str) -> str:
    """A quoted name like a bare one where it could be bare."""
    return inner.lower() if inner and all(_is_word(letter) for letter in inner) else f'"{inner.lower()}"'


def _is_word(letter: str) -> bool:
    return letter.isalnum() or letter in "_$" or letter >= "\x80"


def _after(sql: str, end: str, start: int) -> int:
    found = sql.find(end, start)
    return len(sql) if found < 0 else found + len(end)


def _end_of_quoted(sql: str, start: int, closing: str) -> int:
    at = start + 1
    while at < len(sql):
        at = sql.find(closing, at)
        if at < 0:
            return len(sql)
        if closing != "]" and sql.startswith(closing, at + 1):
            at += 2
            continue
        return at + 1
    return len(sql)
