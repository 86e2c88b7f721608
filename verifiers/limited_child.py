"""The other end of `limited_process.py`: loads one check, confines itself, then answers one sample after another.

Nothing of the parent's is here but two pipes and the folders to import from: the environment is empty, other descriptors
are closed. Frames are JSON behind a length of four bytes, so that nothing that is read can run.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import struct
from collections.abc import Callable
from typing import Any

import msgspec

from headrace.verifiers.base import not_run, printable, scored
from headrace.verifiers.confinement import ConfinementMissing, confine
from headrace.verifiers.records import Sample, Verdict

_REPLIES = 3  # descriptor of the pipe to the parent
_PARENT_CHECK_MILLISECONDS = 5000


class Program(msgspec.Struct, frozen=True):
    """The first frame: what to load, and within which limits."""

    target: str  # "module:function": called with `state`, gives a function from Sample to Verdict
    state: dict[str, Any]
    cpu_seconds: float
    memory_bytes: int
    parent: int


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The reply to the first frame: all empty when the child is ready."""

    missing: str = ""  # the host lacks this
    failed: str = ""  # the check did not load


def main() -> None:
    # What a module prints while it is imported must not get between the frames.
    os.dup2(1, _REPLIES)
    os.dup2(2, 1)
    # Ctrl-C is for the parent, whose end this process notices by itself; CPU time ends a check by the kernel's hand.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    parent = os.getppid()
    frames = _Frames(parent)
    program = msgspec.json.decode(frames.next(), type=Program)
    if program.parent != parent:  # it died before this process could look
        os._exit(0)
    try:
        check = _load(program)
        confine(program.memory_bytes)
    except ConfinementMissing as error:
        _write(msgspec.json.encode(Answer(missing=str(error))))
        return
    except Exception as error:  # noqa: BLE001 (it goes on as the parent's error)
        _write(msgspec.json.encode(Answer(failed=printable(f"{type(error).__name__}: {error}", 1000))))
        return
    gc.collect()
    gc.freeze()
    _write(msgspec.json.encode(Answer()))
    while True:
        _write(_answer(check, frames.next(), program.cpu_seconds))


def _load(program: Program) -> Callable[[Sample], Verdict]:
    module, _, name = program.target.partition(":")
    check = getattr(importlib.import_module(module), name)(program.state)
    # From here on nobody reads what it prints, and a full pipe would stop it.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.closerange(_REPLIES + 1, 1024)
    return check


def _answer(check: Callable[[Sample], Verdict], frame: bytes, cpu_seconds: float) -> bytes:
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        completion, row = json.loads(frame)
        verdict = msgspec.json.encode(check(Sample(completion=completion, row=row)))
    except MemoryError:
        verdict = msgspec.json.encode(scored(0.0, "memory"))
    except Exception as error:  # noqa: BLE001 (a bug of the verifier's becomes a verdict at the process's border)
        message = printable(f"{type(error).__name__}: {error}", 500)
        verdict = msgspec.json.encode(not_run("verifier_error", message=message))
    signal.setitimer(signal.ITIMER_PROF, 0)
    return verdict


class _Frames:
    """Frames from standard input, each a length of four bytes, big-endian, and as many bytes."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)

    def next(self) -> bytes:
        while len(self._buffer) < 4 or len(self._buffer) < 4 + struct.unpack_from(">I", self._buffer)[0]:
            self._fill()
        end = 4 + struct.unpack_from(">I", self._buffer)[0]
        frame = bytes(self._buffer[4:end])
        del self._buffer[:end]
        return frame

    def _fill(self) -> None:
        # The pipe's end tells that the parent is gone, unless a fork of the parent's still holds it open: then this does.
        while not self._poll.poll(_PARENT_CHECK_MILLISECONDS):
            if os.getppid() != self._parent:
                os._exit(0)
        received = os.read(0, 1 << 18)
        if not received:
            os._exit(0)
        self._buffer += received


def _write(payload: bytes) -> None:
    view = memoryview(struct.pack(">I", len(payload)) + payload)
    while view:
        view = view[os.write(_REPLIES, view) :]
