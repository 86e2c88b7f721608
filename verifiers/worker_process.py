"""A verifier in a process of its own, which may hang, crash or take all memory without harm to whoever asks.

The verifier is trusted, and so is the process: it is not confined (see `limited_process.py` and `sandbox/` for what is not
trusted). One process answers batch after batch; one that ends, or is late, is replaced at the next call.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import msgspec

from headrace.verifiers.child_status import keep_child_statuses
from headrace.verifiers.records import Sample, Verdict
from headrace.verifiers.worker_child import HEADER, ChildFault, Reply, Setting

_BOOTSTRAP = (
    "import json, sys; sys.path += [path for path in json.loads(sys.argv[1]) if path not in sys.path]; "
    "from headrace.verifiers.worker_child import main; main()"
)

_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT


class WorkerFailed(RuntimeError):
    """The process could not be brought up; the message says why."""


class _Unreadable(Exception):
    """What the process sent is no reply."""


class Outcome(msgspec.Struct, frozen=True):
    """The verdicts that came, in order; in `fault` why the next one did not."""

    verdicts: list[Verdict]
    fault: ChildFault | None = None
    message: str = ""


class WorkerProcess:
    """Runs the verifier that `payload` is the pickle of. Thread-safe; nothing is started before `start` or the first
    call."""

    def __init__(
        self,
        payload: bytes,
        *,
        one_by_one: bool = False,
        memory_bytes: int | None = None,
        start_seconds: float = 120.0,
    ) -> None:
        """
        Args:
            one_by_one: each sample's verdict is sent, and waited for, by itself; false: a batch goes through the verifier's
                `verify_many` as a whole.
            memory_bytes: address space beyond what the process holds once the verifier is loaded; None: no limit.
            start_seconds: for the process to load the verifier and to start it.
        """
        self._payload = payload
        self._one_by_one = one_by_one
        self._memory_bytes = memory_bytes
        self._start_seconds = start_seconds
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._retired = False

    @property
    def pid(self) -> int | None:
        """The process's id, None while there is none."""
        child = self._child
        return None if child is None else child.process.pid

    def start(self) -> None:
        """Bring the process up. Raises WorkerFailed."""
        with self._lock:
            self._running()

    def call(self, samples: Sequence[Sample], seconds: float) -> Outcome:
        """Judge `samples`. `seconds`: for the whole batch, or one by one for each sample. Raises WorkerFailed."""
        with self._lock:
            child = self._running()
            verdicts: list[Verdict] = []
            unsent = memoryview(_frame(pickle.dumps(list(samples))))
            try:
                while len(verdicts) < len(samples):
                    reply = child.reply(unsent, time.monotonic() + seconds)
                    unsent = memoryview(b"")
                    if reply.fault:
                        return Outcome(verdicts, reply.fault, reply.message)
                    verdicts += reply.verdicts
            except TimeoutError:
                self._end()
                return Outcome(verdicts, ChildFault.TIMEOUT, f"no answer within {seconds:g} s")
            except EOFError:
                return Outcome(verdicts, ChildFault.CRASH, self._end())
            except _Unreadable as error:
                self._end()
                return Outcome(verdicts, ChildFault.CRASH, f"its reply cannot be read: {error}")
            return Outcome(verdicts)

    def close(self) -> None:
        """End the process and those that it started, at once."""
        with self._lock:
            self._end()

    def retire(self) -> None:
        """End the process for good, also while another thread waits in `call`, which then has a crash for its outcome."""
        self._retired = True
        child = self._child
        if child is not None:
            child.kill()

    def _running(self) -> _Child:
        if self._child is not None and self._child.ended:
            self._end()
        if self._child is None:
            child = self._child = _Child()
            if self._retired:  # looked at once there is something that `retire` would have to end
                self._end()
                raise WorkerFailed("it has been retired")
            setting = Setting(os.getpid(), self._one_by_one, self._memory_bytes)
            head = _frame(msgspec.msgpack.encode(setting)) + _frame(self._payload)
            try:
                reply = child.reply(memoryview(head), time.monotonic() + self._start_seconds)
            except TimeoutError:
                self._end()
                raise WorkerFailed(f"not ready within {self._start_seconds:g} s") from None
            except EOFError:
                raise WorkerFailed(f"while it loaded, it {self._end()}") from None
            except _Unreadable as error:
                self._end()
                raise WorkerFailed(f"its first reply cannot be read: {error}") from error
            if reply.fault:
                self._end()
                raise WorkerFailed(reply.message)
        return self._child

    def _end(self) -> str:
        child, self._child = self._child, None
        return "" if child is None else child.end()


class _Child:
    """A running process and its two pipes; every wait has a deadline."""

    def __init__(self) -> None:
        """Raises WorkerFailed."""
        keep_child_statuses()  # how it ends is part of the outcome
        try:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-c",
                    _BOOTSTRAP,
                    json.dumps([path for path in sys.path if os.path.isabs(path)]),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerFailed(f"cannot be started: {error}") from error
        assert self.process.stdin and self.process.stdout
        self._to, self._from = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._to, False)
        self._received = bytearray()

    def reply(self, unsent: memoryview, deadline: float) -> Reply:
        """Send, then wait for the next reply. Raises TimeoutError, EOFError where it has ended, _Unreadable."""
        poll = select.poll()
        poll.register(self._from, select.POLLIN)
        if unsent:
            poll.register(self._to, select.POLLOUT)
        while (payload := self._take()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            ready = dict(poll.poll(left * 1000))
            if self._to in ready:
                try:
                    unsent = unsent[os.write(self._to, unsent) :]
                except BrokenPipeError:
                    raise EOFError from None
                if not unsent:
                    poll.unregister(self._to)
            if self._from in ready:
                chunk = os.read(self._from, 1 << 18)
                if not chunk:
                    raise EOFError
                self._received += chunk
        try:
            return msgspec.msgpack.decode(payload, type=Reply)
        except msgspec.DecodeError as error:  # its subclass ValidationError too
            raise _Unreadable(str(error)) from error

    def _take(self) -> bytes | None:
        if len(self._received) < HEADER.size:
            return None
        end = HEADER.size + HEADER.unpack_from(self._received)[0]
        if len(self._received) < end:
            return None
        payload = bytes(self._received[HEADER.size : end])
        del self._received[:end]
        return payload

    @property
    def ended(self) -> bool:
        return os.waitid(os.P_PID, self.process.pid, _LOOK) is not None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> str:
        """Kill it with all that it started, and take its status; how it ended, as one clause."""
        # A closed pipe means that it is ending by itself: its own status says more than our signal would. Its status is
        # left where it is until the group is killed: so long nobody else can have its number.
        if self._hung_up():
            self._wait_ended(1.0)
        self.kill()
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return f"ended with {signal.strsignal(-code)} (signal {-code})" if code < 0 else f"ended with status {code}"

    def _wait_ended(self, seconds: float) -> None:
        descriptor = os.pidfd_open(self.process.pid)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(seconds * 1000)
        os.close(descriptor)

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._from, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))


def _frame(payload: bytes) -> bytes:
    return HEADER.pack(len(payload)) + payload
