"""The console of a run, which goes on when nobody reads it any more: `headrace run JOB.toml | head`, a closed terminal."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import IO, TextIO, cast

from rich.console import Console


class LeavableOutput(io.TextIOBase):
    """Standard output; once it takes nothing any more, what is written is dropped, which standard error says once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.encoding

    def write(self, text: str, /) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def _drop(self, error: OSError) -> None:
        """Python writes what it still holds when it ends, too: so the descriptor itself leads nowhere from now on."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        with suppress(OSError):  # it may have gone with the same terminal
            print(f"headrace: standard output takes no more ({error.strerror}); the run goes on", file=sys.stderr)


def run_console() -> Console:
    """Raises nothing on what becomes of standard output later."""
    return Console(file=cast("IO[str]", LeavableOutput(sys.stdout)))
