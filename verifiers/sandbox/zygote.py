"""The box's server: one small process that has loaded an interpreter and forks a child for each run.

It is told what to do over a socket that keeps messages apart, one JSON object each. It never sees a program, its input or
what is expected of it: those travel on descriptors that come with the request and go to the child.

    -> the plan                                   <- {"unshared": true}, when it wants users mapped
    -> {"mapped": two_users}                      <- {"ready": true} | {"failed": reason}
    -> ASK: START and 4 descriptors, or END       <- ENDED
                                                  <- REFUSED and a reason

Standard library only, and little of that: what it has loaded is copied by every fork, and so is each page of memory that it
touches between one fork and the next. For that reason what it does for each run is short and allocates little.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from typing import Any, NoReturn

from headrace.verifiers.sandbox import child, landlock, namespaces, seccomp

MESSAGE_BYTES = 1 << 16
ASK = struct.Struct("=cI?")  # START or END, the run, whether it has a folder to write to
START, END = b"s", b"e"
ENDED = struct.Struct(
    "=cIidQ"
)  # b"x", the run, its status as subprocess has it, seconds of the processor, bytes of memory
REFUSED = struct.Struct("=cI")  # b"r", the run; behind it the reason
_DESCRIPTORS = struct.Struct("=4i")
_SPACE = 64  # for these, with their header
_SET_SUBREAPER = 36
_KILL = int(signal.SIGKILL)


def main() -> None:
    """The whole life of the server; its socket is the descriptor that the command line names."""
    control = socket.socket(fileno=int(sys.argv[1]))
    os.environ.clear()
    sys.orig_argv.clear()
    os.set_inheritable(control.fileno(), False)
    for number in (signal.SIGINT, signal.SIGTERM):  # a Ctrl-C is for the host, whose end is this one's too
        signal.signal(number, signal.SIG_IGN)
    plan = json.loads(control.recv(MESSAGE_BYTES))
    try:
        if plan["namespaces"]:
            plan["two_users"] = _enter_namespaces(control)
        server = Zygote(control, plan)
    except OSError as error:
        _say(control, failed=f"{type(error).__name__}: {error}")
        return
    _say(control, ready=True)
    server.serve()


def _enter_namespaces(control: socket.socket) -> bool:
    """Returns in the first process of the new namespaces; the one before waits for its end."""
    namespaces.enter()
    _say(control, unshared=True)
    two_users = bool(json.loads(control.recv(MESSAGE_BYTES))["mapped"])
    pid = os.fork()
    if pid:
        control.close()
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    namespaces.end_with_parent()
    return two_users


def _move_modules(here: str, there: str) -> None:
    """Of what was loaded from a folder that has another name now: where its submodules are, and where it came from."""
    for module in list(sys.modules.values()):
        for name in ("__file__", "__cached__"):
            path = getattr(module, name, None)
            if isinstance(path, str) and path.startswith(here):
                setattr(module, name, there + path.removeprefix(here))
        if isinstance(paths := getattr(module, "__path__", None), list):
            paths[:] = [there + path.removeprefix(here) if path.startswith(here) else path for path in paths]
    sys.path_importer_cache.clear()


def _say(control: socket.socket, **message: Any) -> None:
    control.sendall(json.dumps(message).encode())


class Zygote:
    """Forks, ends and reaps. Raises OSError where the host refuses one of the plan's layers."""

    def __init__(self, control: socket.socket, plan: dict[str, Any]) -> None:
        self._control = control
        self._plan = plan
        self._to_host = control.fileno()
        self._in_namespaces = plan["namespaces"]
        self._runs: dict[int, _Run] = {}  # by the descriptor that tells of its end
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._preload(plan["modules"])
        sys.dont_write_bytecode = True
        builtins.exit = builtins.quit = sys.exit  # as programs know them, from a module that is not loaded here
        if self._in_namespaces:
            namespaces.build_root(plan["readable"], plan["hidden"], plan["scratch_bytes"])
            self._work = _fingerprint()
            sys.path[:] = plan["path"]
            _move_modules(*plan["readable"][0])
            readable, listed = [target for _, target in plan["readable"]], []
        else:
            parts = [landlock.parts(source, plan["hidden"].get(target, [])) for source, target in plan["readable"]]
            readable = [path for some in parts for path in some]
            listed = [plan["readable"][0][0]]  # the standard library: an import looks for names in it
            namespaces.syscalls.libc("prctl", _SET_SUBREAPER, 1, 0, 0, 0)
            os.chdir("/")
        rulesets = self._make_rulesets(readable, listed) if plan["landlock"] else {}
        self._processes = namespaces.ProcessNamespaces() if self._in_namespaces else None
        self._confinement = child.Confinement(plan, self._run_filter(), rulesets)
        seccomp.renounce_privileges()
        if plan["seccomp"]:
            seccomp.Filter(seccomp.server_program(programs=plan["programs"])).install()
        for name, value in plan["rlimits"].items():  # for this process too; what it uses is far below them
            child.limit(getattr(resource, name), value)
        child.warm_up()
        gc.collect()
        gc.freeze()  # the collector's marks would copy pages in every child

    def _run_filter(self) -> seccomp.Filter | None:
        if not self._plan["seccomp"]:
            return None
        own = self._in_namespaces
        program = seccomp.run_program(
            programs=self._plan["programs"], own_files=own, own_pid=1 if own else seccomp.OWN_PID
        )
        return seccomp.Filter(program)

    def _preload(self, modules: list[str]) -> None:
        for name in modules:
            importlib.import_module(name)

    def _make_rulesets(self, readable: list[str], listed: list[str]) -> dict[bool, int]:
        """By whether the run may write: made once, put on by each child."""
        made = {}
        for scratch in (False, True):
            rules = landlock.Ruleset()
            rules.allow_reading(readable, execute=self._plan["programs"])
            rules.allow_listing(listed)
            rules.allow_devices(namespaces.DEVICES)
            if scratch and self._in_namespaces:
                rules.allow_all(namespaces.WORK_RULE, execute=self._plan["programs"])
            made[scratch] = rules.descriptor
        return made

    def serve(self) -> NoReturn:
        """Until the host is gone."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._to_host:
                    self._obey()
                else:
                    self._reap(descriptor)

    def _obey(self) -> None:
        payload, passed, _, _ = self._control.recvmsg(ASK.size, _SPACE)
        if not payload:
            self._leave()
        kind, number, scratch = ASK.unpack(payload)
        if kind == START:
            descriptors = _DESCRIPTORS.unpack(passed[0][2])
            self._start(number, scratch, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
        else:
            for run in self._runs.values():
                if run.number == number:
                    run.kill()

    def _leave(self) -> NoReturn:
        for run in self._runs.values():
            run.kill()
        for run in self._runs.values():  # so that nobody else has to
            run.end_group()
            os.waitpid(run.pid, 0)
            run.reap_group()
        os._exit(0)

    def _start(self, number: int, scratch: bool, descriptors: tuple[int, ...]) -> None:
        try:
            pid = self._processes.fork() if self._processes else os.fork()
        except OSError as error:
            self._refuse(number, error)
            return
        if pid == 0:
            self._become_child(number, scratch, descriptors)
        if self._processes is None:
            with contextlib.suppress(OSError):  # the child does the same: whoever comes first
                os.setpgid(pid, pid)
        end = os.pidfd_open(pid)
        self._runs[end] = _Run(number, pid, end, group=self._processes is None)
        self._poll.register(end, select.POLLIN)

    def _refuse(self, number: int, error: OSError) -> None:
        self._control.send(REFUSED.pack(b"r", number) + f"{type(error).__name__}: {error}".encode())

    def _become_child(self, number: int, scratch: bool, descriptors: tuple[int, ...]) -> NoReturn:
        status = 70
        try:
            control = self._confinement.take_descriptors(descriptors, self._to_host, scratch)
            try:
                self._confinement.put_on(scratch, self._to_host)
            except OSError as error:  # nothing of the program has been read yet
                self._refuse(number, error)
                os._exit(status)
            status = child.run(control)
        finally:
            os._exit(status)

    def _reap(self, descriptor: int) -> None:
        run = self._runs.pop(descriptor)
        self._poll.unregister(descriptor)
        os.close(descriptor)
        run.end_group()
        _, status, usage = os.wait4(run.pid, 0)
        run.reap_group()
        if self._in_namespaces and _fingerprint() != self._work:  # after any run: by its path all can reach it
            namespaces.renew_work(self._plan["scratch_bytes"])
            self._work = _fingerprint()
        code = os.waitstatus_to_exitcode(status)
        self._control.send(ENDED.pack(b"x", run.number, code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024))


class _Run:
    """A child under way. Without a process namespace its process group, which it cannot leave, holds all that it starts."""

    def __init__(self, number: int, pid: int, end: int, group: bool) -> None:
        self.number = number
        self.pid = pid
        self._end = end
        self._group = group

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._end, _KILL)

    def end_group(self) -> None:
        """Before the child is reaped, so that its number is nobody else's."""
        if self._group:
            os.killpg(self.pid, signal.SIGKILL)

    def reap_group(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while self._group:
                os.waitpid(-self.pid, 0)


def _fingerprint() -> tuple[int, ...]:
    """Changes with whatever is done to `WORK` or in it. Nobody can set the time of its last change; but clocks have ticks,
    and within one of them the rest tells."""
    status = os.stat(namespaces.WORK)
    return (
        status.st_ctime_ns, status.st_mtime_ns, status.st_atime_ns, status.st_ino, status.st_mode, status.st_size,
        status.st_nlink, status.st_uid, status.st_gid,
    )  # fmt: skip
