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
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from headrace.verifiers.child_status import keep_child_statuses
from headrace.verifiers.sandbox import namespaces, starvation, zygote
from headrace.verifiers.sandbox.cgroup import Cgroup, CgroupMissing
from headrace.verifiers.sandbox.layers import Layers
from headrace.verifiers.sandbox.plan import BoxPlan, cgroup_limits, server_plan
from headrace.verifiers.sandbox.run import STARVED, Ended, Run

log = structlog.get_logger()

START_SECONDS = 30.0
_LEAVE_SECONDS = 2.0  # for a server to end by itself
END_SECONDS = 10.0  # from a kill to the word that everything of the run is gone
_MESSAGE_BYTES = 1 << 16

# The server's modules without being installed and without the packages round them: the box has the standard library only.
_BOOTSTRAP = """
import sys, types
for name, path in (("headrace", []), ("headrace.verifiers", []), ("headrace.verifiers.sandbox", [sys.argv.pop()])):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = path
from headrace.verifiers.sandbox.zygote import main
main()
"""


class BoxFailed(Exception):
    """The box could not be brought up, or is gone; what ran in it has no answer."""


class Box:
    """One server and its runs. For one thread at a time. Raises BoxFailed where it cannot be brought up."""

    def __init__(self, plan: BoxPlan, layers: Layers) -> None:
        self.plan = plan
        self.layers = layers
        self._runs: dict[int, Run] = {}
        self._ending: set[int] = set()  # runs that were told to end
        self._serial = 0
        self._kills_told = 0
        self._control, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process: subprocess.Popen[bytes] | None = None
        self._cgroup: Cgroup | None = None
        keep_child_statuses()
        try:
            with there:
                self._cgroup = Cgroup.create(secrets.token_hex(4)) if layers.cgroup else None
                self._process = _start_server(there.fileno())
            self._bring_up(self._process.pid)
        except (OSError, CgroupMissing, BoxFailed) as error:
            self.close()
            raise BoxFailed(f"the box did not come up: {error}") from error

    @property
    def pid(self) -> int:
        """Of the server's first process: with it everything in the box ends."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether its server is there."""
        return self._process is not None and self._process.poll() is None

    def _bring_up(self, server: int) -> None:
        if self._cgroup is not None:
            self._cgroup.limit(*cgroup_limits(self.plan))
            self._cgroup.add(server)
        self._control.settimeout(START_SECONDS)
        self._tell(**server_plan(self.plan, self.layers))
        if self.layers.namespaces:
            self._hear("unshared")
            self._tell(mapped=namespaces.map_users(server))
        self._hear("ready")
        self._control.setblocking(False)

    def _tell(self, **message: Any) -> None:
        self._control.sendall(json.dumps(message).encode())

    def _hear(self, expected: str) -> None:
        payload = self._control.recv(_MESSAGE_BYTES)
        if not payload:
            raise BoxFailed("its server ended while it started")
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
        run = Run(self._serial, here, out, err, limits.wall_seconds, limits.output_bytes)
        try:
            request = zygote.ASK.pack(zygote.START, run.number, scratch)
            socket.send_fds(self._control, [request], [there.fileno(), source, out_end, err_end])
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
        in_time = True
        while not until():
            if any(run.fault for run in self._runs.values()):
                return
            if not in_time:
                self._time_out()
                return
            left = min(run.deadline for run in self._runs.values()) - time.monotonic()
            in_time = left > 0  # if not: once more, for what had come before this process looked again
            self._serve(max(left, 0))

    def _time_out(self) -> None:
        now = time.monotonic()
        tasks = starvation.tasks_below(self.pid, nested=self.layers.namespaces)
        for run in self._runs.values():
            if run.deadline <= now:
                since_start = now - run.started
                waited = 0.0 if tasks is None else starvation.waited_seconds(tasks, since_start)
                run.fault = STARVED if waited > since_start / 2 else "timeout"

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
        if len(payload) != zygote.ENDED.size or payload[:1] != b"x":
            raise BoxFailed(f"a run could not be started: {payload[zygote.REFUSED.size :].decode()}")
        _, number, *ended = zygote.ENDED.unpack(payload)
        run = self._runs[number]
        run.ended = Ended(*ended)
        run.ended_by_itself = run.number not in self._ending
        run.drain()

    def end(self, run: Run, patience: float = 0.0) -> Ended:
        """Kill the run with all that it has started, unless it ends by itself in so many seconds, and wait until all that is
        gone. Raises BoxFailed."""
        until = time.monotonic() + patience
        while run.ended is None and (left := until - time.monotonic()) > 0:
            self._serve(left)
        if run.ended is None:
            try:
                self._control.send(zygote.ASK.pack(zygote.END, run.number, False))
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
        """Processes of the box that the kernel has ended for want of memory since this was last asked."""
        if self._cgroup is None:
            return 0
        before, self._kills_told = self._kills_told, self._cgroup.kills()
        return self._kills_told - before

    def close(self) -> None:
        """End everything in the box, at once."""
        self._control.close()  # the server ends the runs, and then itself, so that nothing is left for others to reap
        if self._process is not None:
            try:
                self._process.wait(_LEAVE_SECONDS)
            except subprocess.TimeoutExpired:
                self._kill_server(self._process)
        for run in self._runs.values():
            run.close()
        self._runs.clear()
        if self._cgroup is not None:
            try:
                self._cgroup.remove()
            except OSError as error:
                log.warning("sandbox_cgroup_left", folder=error.filename, error=error.strerror)
            self._cgroup = None

    def _kill_server(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("sandbox_server_left", pid=process.pid)


def _start_server(control: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, str(control), str(Path(__file__).parent)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"LD_BIND_NOW": "1"},  # symbols are looked up once here, and not in every child
        cwd="/",
        pass_fds=[control],
        start_new_session=True,
    )


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
