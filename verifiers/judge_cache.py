"""What a judge has answered before, by the digest of the question: in memory, or in a file that processes share."""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

import structlog

from headrace.verifiers.errors import UserError

log = structlog.get_logger()

_BUSY_SECONDS = 5.0  # how long a writer waits for another process's turn


class AnswerCache(Protocol):
    """Holds a bounded number of answers; neither call raises."""

    def get(self, key: str) -> str | None: ...

    def put(self, key: str, answer: str) -> None: ...

    def close(self) -> None: ...


class MemoryCache:
    """The `entries` answers that were used last; 0 keeps none."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._answers: OrderedDict[str, str] = OrderedDict()

    def get(self, key: str) -> str | None:
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
        return answer

    def put(self, key: str, answer: str) -> None:
        self._answers[key] = answer
        while len(self._answers) > self._entries:
            self._answers.popitem(last=False)

    def close(self) -> None:
        """Forgets everything."""
        self._answers.clear()


class DiskCache:
    """The newest `entries` answers in an SQLite file. Raises UserError where the file cannot be opened.

    A fault later on (disk full, file gone) is logged once and ends the use of the file: a grade is worth more than its copy.
    """

    def __init__(self, path: Path, entries: int) -> None:
        self._path = path
        self._entries = entries
        try:
            self._connection: sqlite3.Connection | None = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS answers (id INTEGER PRIMARY KEY, key TEXT UNIQUE, answer TEXT NOT NULL)"
            )
            self._connection.execute("SELECT id, key, answer FROM answers LIMIT 1")
        except sqlite3.Error as error:
            raise UserError(
                f"option `cache_path` of verifier `judge`: {path} cannot be used: {error}; name another file"
            ) from error

    def get(self, key: str) -> str | None:
        if self._connection is None:
            return None
        try:
            found = self._connection.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            self._give_up(error)
            return None
        return None if found is None else str(found[0])

    def put(self, key: str, answer: str) -> None:
        if self._connection is None:
            return
        try:
            self._connection.execute("INSERT OR REPLACE INTO answers (key, answer) VALUES (?, ?)", (key, answer))
            # Ids count up, so these are the oldest, found without counting the rest.
            self._connection.execute(
                "DELETE FROM answers WHERE id <= (SELECT max(id) FROM answers) - ?", (self._entries,)
            )
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _give_up(self, error: sqlite3.Error) -> None:
        log.error("judge_cache_failed", path=str(self._path), error=str(error))
        self.close()
