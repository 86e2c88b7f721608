"""The host's side of one box: starts its server, gives it runs, and hears of their ends.

A run's program, its input and its answers travel between here and the run's own process; the server only forks and reaps.
Everything that comes out of a run is bounded and is data: JSON values and text.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from headrace.verifiers.child_status import keep_child_statuses
from headrace.verifiers.sandbox import namespaces
from headrace.verifiers.sandbox.cgroup import Cgroup
from headrace.verifiers.sandbox.layers import Layers

START_SECONDS = 30.0
END_SECONDS = 10.0  # from a kill to the word that everything of the run is gone
_SERVER_BYTES = 64 << 20  # what the server and the interpreter's own pages take of a box's memory
_SERVER_TASKS = 4
_MESSAGE_BYTES = 1 << 16

MODULES = (
    "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq",
    "itertools", "json", "math", "operator", "re", "string", "typing",
)  # fmt: skip
"""Loaded before the first run, so that none has to; the rest of the standard library is read when it is wanted.

Not `threading` and what needs it, nor `random`: what they do after each fork costs a run a third of its time.
"""

# The server's modules without being installed and without the packages round them: the box has the standard library only.
_BOOTSTRAP = """
import sys, types
for name, path in (("headrace", []), ("headrace.verifiers", []), ("headrace.verifiers.sandbox", [sys.argv.pop()])):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = path
from headrace.verifiers.sandbox.zygote import main
main()
"""


class Limits(msgspec.Struct, frozen=True):
    """What one run may use. Sizes are bytes, times seconds."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 5  # of the processor, whole ones
    memory_bytes: int = 512 << 20  # address space of a process, beyond the interpreter's own
    processes: int = 16  # threads count
    file_bytes: int = 16 << 20  # one file
    scratch_bytes: int = 32 << 20  # all files together
    open_files: int = 64
    output_bytes: int = 1 << 20  # of each: what it prints, and what it answers


class BoxPlan(msgspec.Struct, frozen=True):
    """What a box is for. `programs`: runs may start other programs; `readable`: host paths that they see, read-only."""

    limits: Limits = Limits()
    programs: bool = False
    readable: tuple[str, ...] = ()
    modules: tuple[str, ...] = MODULES


class BoxFailed(Exception):
    """The box could not be brought up, or is gone; what ran in it has no answer."""


class Ended(msgspec.Struct, frozen=True):
    """How a run ended. `status` as subprocess has it: negative is a signal."""

    status: int
    cpu_seconds: float
    memory_bytes: int


class Run:
    """One run: what is sent to it, and what has come of it so far. Made by `Box.start_run`."""

    def __init__(
        self, number: int, control: socket.socket, out: int, err: int, deadline: float, most_bytes: int
    ) -> None:
        self.number = number
        self.deadline = deadline
        self.nonce = secrets.token_hex(8)
        self.answers: deque[dict[str, Any]] = deque()
        self.ended: Ended | None = None
        self.ended_by_itself = False
        self.fault = ""  # why the host ended it: "timeout", "output_flood", "bad_answer"
        self._control = control
        self._most_bytes = most_bytes
        self._texts = {out: bytearray(), err: bytearray()}
        self._out, self._err = out, err
        self._received = bytearray()
        self._received_bytes = 0
        self._unsent = bytearray()
        self._open = {control.fileno(), out, err}

    @property
    def out(self) -> bytes:
        """What it has printed."""
        return bytes(self._texts[self._out])

    @property
    def err(self) -> bytes:
        return bytes(self._texts[self._err])

    def send(self, **message: Any) -> None:
        """Queue a message; it leaves while the box is waited for."""
        payload = json.dumps(message, separators=(",", ":")).encode()
        self._unsent += struct.pack(">I", len(payload)) + payload

    def events(self) -> dict[int, int]:
        """What to poll for, by descriptor."""
        wanted = dict.fromkeys(self._open, select.POLLIN)
        if self._unsent and self._control.fileno() in wanted:
            wanted[self._control.fileno()] |= select.POLLOUT
        return wanted

    def handle(self, descriptor: int, event: int) -> None:
        """Take what has come, and send what can go."""
        if event & select.POLLOUT and self._unsent:
            try:
                del self._unsent[: self._control.send(self._unsent)]
            except (BrokenPipeError, ConnectionResetError):
                self._unsent.clear()  # it has closed its end: what it says, or how it ends, tells
            except BlockingIOError:
                return
        if event & ~select.POLLOUT:
            self._read(descriptor)

    def _read(self, descriptor: int) -> None:
        try:
            chunk = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            self._open.discard(descriptor)
        elif descriptor in self._texts:
            self._texts[descriptor] += chunk
            if len(self._texts[descriptor]) > self._most_bytes:
                self._stop_for("output_flood", descriptor)
        else:
            self._received += chunk
            self._received_bytes += len(chunk)
            if self._received_bytes > self._most_bytes:
                self._stop_for("output_flood", descriptor)
            else:
                self._take_answers(descriptor)

    def _take_answers(self, descriptor: int) -> None:
        while len(self._received) >= 4:
            (length,) = struct.unpack_from(">I", self._received)
            if len(self._received) < 4 + length:
                return
            payload = bytes(self._received[4 : 4 + length])
            del self._received[: 4 + length]
            try:
                answer = json.loads(payload)
            except (ValueError, RecursionError):
                answer = None
            if not isinstance(answer, dict) or answer.pop("nonce", None) != self.nonce:
                self._stop_for("bad_answer", descriptor)
                return
            self.answers.append(answer)

    def _stop_for(self, fault: str, descriptor: int) -> None:
        self.fault = self.fault or fault
        self._open.discard(descriptor)

    def drain(self) -> None:
        """What is left in the pipes of a run that is over: nobody writes to them any more."""
        for descriptor in list(self._open):
            os.set_blocking(descriptor, False)
            while descriptor in self._open:
                before = self._size()
                self._read(descriptor)
                if self._size() == before:
                    break

    def _size(self) -> int:
        return self._received_bytes + sum(len(text) for text in self._texts.values())

    def close(self) -> None:
        self._control.close()
        os.close(self._out)
        os.close(self._err)


class Box:
    """One server and its runs. For one thread at a time. Raises BoxFailed where it cannot be brought up."""

    def __init__(self, plan: BoxPlan, layers: Layers) -> None:
        self.plan = plan
        self._layers = layers
        self._runs: dict[int, Run] = {}
        self._ending: set[int] = set()  # runs that were told to end
        self._serial = 0
        self._cgroup = Cgroup.create(secrets.token_hex(4)) if layers.cgroup else None
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keep_child_statuses()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, str(there.fileno()), str(Path(__file__).parent)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"LD_BIND_NOW": "1"},  # symbols are looked up once here, and not in every child
                cwd="/",
                pass_fds=[there.fileno()],
                start_new_session=True,
            )
        finally:
            there.close()
        self._control = here
        try:
            self._bring_up()
        except (OSError, BoxFailed) as error:
            self.close()
            raise BoxFailed(f"the box did not come up: {error}") from error

    @property
    def pid(self) -> int:
        """Of the server's first process: with it everything in the box ends."""
        return self._process.pid

    def _bring_up(self) -> None:
        if self._cgroup is not None:
            limits = self.plan.limits
            # A run and the test that calls it may be in the box at once.
            self._cgroup.limit(2 * (limits.memory_bytes + limits.scratch_bytes) + _SERVER_BYTES,
                               2 * limits.processes + _SERVER_TASKS)  # fmt: skip
            self._cgroup.add(self._process.pid)
        self._control.settimeout(START_SECONDS)
        self._tell(**server_plan(self.plan, self._layers))
        if self._layers.namespaces:
            self._hear("unshared")
            self._tell(mapped=namespaces.map_users(self._process.pid))
        self._hear("ready")
        self._control.setblocking(False)

    def _tell(self, **message: Any) -> None:
        self._control.sendall(json.dumps(message).encode())

    def _hear(self, expected: str) -> None:
        payload = self._control.recv(_MESSAGE_BYTES)
        if not payload:
            raise BoxFailed(f"its server ended with status {self._process.wait(END_SECONDS)}")
        message = json.loads(payload)
        if expected not in message:
            raise BoxFailed(str(message.get("failed")))

    def start_run(self, *, scratch: bool = False, stdin: bytes = b"") -> Run:
        """A child that waits for its program; `scratch` gives it an empty folder, and the box has one of these."""
        limits = self.plan.limits
        here, there = socket.socketpair()
        out, out_end = os.pipe2(os.O_CLOEXEC)
        err, err_end = os.pipe2(os.O_CLOEXEC)
        source = _file_of(stdin)
        here.setblocking(False)
        self._serial += 1
        run = Run(self._serial, here, out, err, time.monotonic() + limits.wall_seconds, limits.output_bytes)
        try:
            message = json.dumps({"run": run.number, "scratch": scratch}).encode()
            socket.send_fds(self._control, [message], [there.fileno(), source, out_end, err_end])
        except OSError as error:
            run.close()
            raise BoxFailed(f"its server is gone: {error}") from error
        finally:
            there.close()
            for descriptor in (source, out_end, err_end):
                os.close(descriptor)
        self._runs[run.number] = run
        return run

    def wait(self, until: Callable[[], bool]) -> None:
        """Serve all runs until `until()`, or until one of them has to be ended: then its `fault` says why.

        Raises BoxFailed when the server is gone.
        """
        while not until():
            if any(run.fault for run in self._runs.values()):
                return
            left = min(run.deadline for run in self._runs.values()) - time.monotonic()
            if left <= 0:
                for run in self._runs.values():
                    if run.deadline <= time.monotonic():
                        run.fault = "timeout"
                return
            self._serve(left)

    def _serve(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        owners = {}
        for run in self._runs.values():
            for descriptor, events in run.events().items():
                owners[descriptor] = run
                poll.register(descriptor, events)
        for descriptor, event in poll.poll(seconds * 1000):
            if descriptor in owners:
                owners[descriptor].handle(descriptor, event)
            else:
                self._note_end()

    def _note_end(self) -> None:
        try:
            payload = self._control.recv(_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise BoxFailed(f"its server is gone: {error}") from error
        if not payload:
            raise BoxFailed("its server has ended")
        message = json.loads(payload)
        run = self._runs[message["ended"]]
        if "failed" in message:
            raise BoxFailed(f"it cannot start a run: {message['failed']}")
        run.ended = Ended(message["status"], message["cpu"], message["memory"])
        run.ended_by_itself = run.number not in self._ending
        run.drain()

    def end(self, run: Run) -> Ended:
        """Kill the run with all that it has started, and wait until that is gone. Raises BoxFailed."""
        if run.ended is None:
            try:
                self._tell(end=run.number)
            except OSError as error:
                raise BoxFailed(f"its server is gone: {error}") from error
            self._ending.add(run.number)
            deadline = time.monotonic() + END_SECONDS
            while run.ended is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise BoxFailed(f"a run was not gone {END_SECONDS:g} s after it was killed")
                self._serve(left)
        del self._runs[run.number]
        self._ending.discard(run.number)
        run.close()
        return run.ended

    def memory_kills(self) -> int:
        """Processes of the box that the kernel has ended for want of memory, since it is there."""
        return self._cgroup.kills() if self._cgroup else 0

    def close(self) -> None:
        """End everything in the box, at once."""
        self._control.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for run in self._runs.values():
            run.close()
        self._runs.clear()
        if self._cgroup is not None:
            self._cgroup.remove()


def server_plan(plan: BoxPlan, layers: Layers) -> dict[str, Any]:
    """What the server is told at its start, in JSON's types."""
    limits = plan.limits
    library = sysconfig.get_path("stdlib")
    readable = [(library, "/python"), *((path, path) for path in (*_system_paths(), *plan.readable))]
    rlimits = {
        "RLIMIT_AS": limits.memory_bytes + _address_space_bytes(),
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
    }
    if layers.namespaces:  # elsewhere it would count all processes of the user
        rlimits["RLIMIT_NPROC"] = 2 * limits.processes + _SERVER_TASKS
    return {
        "namespaces": layers.namespaces,
        "two_users": False,
        "landlock": layers.landlock_abi > 0,
        "readable": readable,
        "path": ["/python", "/python/lib-dynload"],
        "modules": list(plan.modules),
        "programs": plan.programs,
        "scratch_bytes": limits.scratch_bytes,
        "rlimits": rlimits,
        "cpu_seconds": limits.cpu_seconds,
    }


def _system_paths() -> list[str]:
    """Shared libraries that the interpreter's modules load, and time zones."""
    paths = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")
    return [path for path in paths if os.path.isdir(path)]


def _address_space_bytes() -> int:
    """What a bare interpreter has of it; more than that is the program's own."""
    return 64 << 20


def _file_of(content: bytes) -> int:
    """A descriptor that reads `content`, from memory."""
    if not content:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
