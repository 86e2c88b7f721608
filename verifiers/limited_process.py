"""A check in a process of its own: few system calls, limited memory and time, no network, no files.

One child lives as long as its verifier and answers one sample after another; a batch is written to it as a whole, so that
neither side waits for the other. A sample that ends the child, by time or by a crash, fails for that reason; the child is
replaced and goes on with the next one. A child that ends for reasons of its own (killed from outside, out of step) is
replaced and the sample tried once more, then it is an infra_error.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.verifiers.base import not_run, scored
from headrace.verifiers.child_status import keep_child_statuses
from headrace.verifiers.confinement import refusal
from headrace.verifiers.errors import UserError
from headrace.verifiers.limited_child import Answer, Program
from headrace.verifiers.records import Sample, Verdict

_BOOTSTRAP = (
    "import json, sys; sys.path += [path for path in json.loads(sys.argv[1]) if path not in sys.path]; "
    "from headrace.verifiers.limited_child import main; main()"
)
_BY_THE_SAMPLE: dict[int, str] = {
    signal.SIGPROF: "timeout",
    **dict.fromkeys((signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL), "crash"),
}
_REPLY_BYTES = 1 << 20
_STDERR_BYTES = 2000


class CheckLimits(msgspec.Struct, frozen=True):
    """What one check may use. Time is the processor's: a starved machine must not fail a sample."""

    cpu_seconds: float = 2.0
    wall_seconds: float = 30.0  # beyond it the child is replaced, and the sample is not to blame
    memory_bytes: int = 512 << 20  # beyond what the loaded check holds
    start_seconds: float = 60.0


class LimitedProcessError(RuntimeError):
    """The child could not be brought up; the message holds what it said."""


class LimitedProcess:
    """Runs the check that `target` makes of `state` under `limits`.

    `target` is "module:function"; the child imports it and calls it with `state` (plain JSON values), which gives a
    function from Sample to Verdict. Thread-safe; nothing is started before `start` or the first sample.
    """

    def __init__(self, target: str, state: dict[str, Any], limits: CheckLimits) -> None:
        self._target = target
        self._state = state
        self._limits = limits
        self._lock = threading.Lock()
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return None if self._child is None else self._child.process.pid

    def start(self) -> None:
        """Start the child. Raises UserError where the host cannot confine it, LimitedProcessError where it fails."""
        with self._lock:
            self._running()

    def close(self) -> None:
        """End the child, at once."""
        with self._lock:
            self._end()

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        """One verdict a sample, in order. Raises UserError where the host cannot confine the child."""
        encoded = [_encode(sample) for sample in samples]
        verdicts = iter(self._exchange([frame for frame in encoded if isinstance(frame, bytes)]))
        return [next(verdicts) if isinstance(frame, bytes) else frame for frame in encoded]

    def _exchange(self, frames: list[bytes]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        failures = 0
        with self._lock:
            while len(verdicts) < len(frames):
                try:
                    child = self._running()
                except LimitedProcessError as error:
                    failed = not_run("verifier_failed", message=str(error))
                    return verdicts + [failed] * (len(frames) - len(verdicts))
                before = len(verdicts)
                died_of = child.exchange(frames[before:], verdicts, self._limits)
                failures = 0 if len(verdicts) > before else failures
                if died_of is None:
                    continue
                self._child = None
                if died_of.by_the_sample:
                    verdicts.append(scored(0.0, died_of.reason))
                    failures = 0
                    continue
                failures += 1
                if failures == 2:
                    verdicts.append(not_run("verifier_died", message=died_of.reason))
                    failures = 0
        return verdicts

    def _running(self) -> _Child:
        if self._child is not None and self._child.process.poll() is not None:
            self._end()
        if self._child is None:
            try:
                self._child = _start(self._target, self._state, self._limits)
            except _StartedBadly:
                # Once more: a signal from outside may have met it.
                try:
                    self._child = _start(self._target, self._state, self._limits)
                except _StartedBadly as error:
                    raise LimitedProcessError(str(error)) from error
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


class _Death(msgspec.Struct, frozen=True):
    by_the_sample: bool
    reason: str


class _StartedBadly(Exception):
    """The child ended, or said nothing, before it was ready."""


class _Child:
    """A running child and its two pipes; every wait has a deadline."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin and process.stdout and process.stderr
        self.process = process
        self._to = process.stdin.fileno()
        self._from = process.stdout.fileno()
        self._stderr = process.stderr.fileno()
        for pipe in (self._to, self._from, self._stderr):
            os.set_blocking(pipe, False)
        self._received = bytearray()

    def exchange(self, frames: list[bytes], verdicts: list[Verdict], limits: CheckLimits) -> _Death | None:
        """Send all frames and append the verdicts as they come; None when all are there, else why the child ended."""
        unsent = memoryview(b"".join(frames))
        missing = len(frames)
        while missing:
            try:
                unsent, payloads = self.step(unsent, time.monotonic() + limits.wall_seconds)
                for payload in payloads:
                    verdicts.append(msgspec.json.decode(payload, type=Verdict))
                    missing -= 1
            except EOFError:
                return self.death()
            except TimeoutError:
                self.end()
                return _Death(by_the_sample=False, reason=f"no answer within {limits.wall_seconds:g} s")
            except (msgspec.DecodeError, _OutOfStep) as error:
                self.end()
                return _Death(by_the_sample=False, reason=f"its answer cannot be read: {error}")
        return None

    def step(self, unsent: memoryview, deadline: float) -> tuple[memoryview, list[bytes]]:
        """Wait until the child answers; meanwhile send what it takes. Raises TimeoutError, and EOFError at its end."""
        poll = select.poll()
        poll.register(self._from, select.POLLIN)
        if unsent:
            poll.register(self._to, select.POLLOUT)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            ready = dict(poll.poll(left * 1000))
            if self._to in ready:
                try:
                    unsent = unsent[os.write(self._to, unsent) :]
                except BrokenPipeError:
                    unsent = memoryview(b"")  # what it has answered before its end is read below
                if not unsent:
                    poll.unregister(self._to)
            if self._from in ready:
                chunk = os.read(self._from, 1 << 18)
                if not chunk:
                    raise EOFError
                self._received += chunk
                payloads = self._take_frames()
                if payloads:
                    return unsent, payloads

    def _take_frames(self) -> list[bytes]:
        payloads = []
        start = 0
        while len(self._received) >= start + 4:
            length = struct.unpack_from(">I", self._received, start)[0]
            if length > _REPLY_BYTES:
                raise _OutOfStep(f"{length} bytes long")
            if len(self._received) < start + 4 + length:
                break
            payloads.append(bytes(self._received[start + 4 : start + 4 + length]))
            start += 4 + length
        del self._received[:start]
        return payloads

    def death(self) -> _Death:
        """Why it ended, once its pipe is closed."""
        how = self.end()
        reason = _BY_THE_SAMPLE.get(-self.process.returncode)
        return _Death(by_the_sample=reason is not None, reason=reason or how)

    def end(self) -> str:
        """Kill it, take its exit status and close its pipes; how it ended and what it said, as one clause."""
        # A closed pipe means that it is ending by itself: its own status says more than our signal would.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=1 if self._hung_up() else 0)
        self.process.kill()
        code = self.process.wait()
        said = b""
        with contextlib.suppress(BlockingIOError):
            said = os.read(self._stderr, 1 << 16)[-_STDERR_BYTES:]
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        how = f"{signal.strsignal(-code)} (signal {-code})" if code < 0 else f"status {code}"
        return " ".join(f"ended with {how} {said.decode(errors='replace')}".split())

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._from, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))


class _OutOfStep(Exception):
    """The child does not keep to the protocol."""


def _start(target: str, state: dict[str, Any], limits: CheckLimits) -> _Child:
    """A child that has loaded its check and confined itself. Raises UserError, LimitedProcessError, _StartedBadly."""
    folders = [folder for folder in sys.path if os.path.isabs(folder)]
    keep_child_statuses()  # how it ends tells what the sample did
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOTSTRAP, json.dumps(folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            bufsize=0,
            start_new_session=True,
        )
    except OSError as error:
        raise _StartedBadly(f"cannot be started: {error}") from error
    child = _Child(process)
    program = Program(target, state, limits.cpu_seconds, limits.memory_bytes, os.getpid())
    deadline = time.monotonic() + limits.start_seconds
    try:
        _, payloads = child.step(memoryview(_frame(msgspec.json.encode(program))), deadline)
        answer = msgspec.json.decode(payloads[0], type=Answer)
    except TimeoutError:
        raise _StartedBadly(f"not ready within {limits.start_seconds:g} s; {child.end()}") from None
    except (EOFError, msgspec.DecodeError, _OutOfStep):
        raise _StartedBadly(child.end()) from None
    if answer.missing:
        child.end()
        raise UserError(refusal(answer.missing))
    if answer.failed:
        child.end()
        raise LimitedProcessError(f"the check did not load: {answer.failed}")
    return child


def _encode(sample: Sample) -> bytes | Verdict:
    """A sample's frame, or why there is none."""
    try:
        return _frame(json.dumps([sample.completion, sample.row]).encode())
    except (TypeError, ValueError, RecursionError) as error:
        return not_run("bad_row", message=f"the row is not JSON: {error}")


def _frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload
