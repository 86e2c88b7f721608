"""The box's server: one small process that has loaded an interpreter and forks a child for each run.

It is told what to do over a socket that keeps messages apart, one JSON object each. It never sees a program, its input or
what is expected of it: those travel on descriptors that come with the request and go to the child.

    -> the plan                                   <- {"unshared": true}, when it wants users mapped
    -> {"mapped": two_users}                      <- {"ready": true} | {"failed": reason}
    -> {"run": n, "scratch": bool} + 4 descriptors
    -> {"end": n}                                 <- {"ended": n, "status": ..., "cpu": seconds, "memory": bytes}

Standard library only, and little of that: what it has loaded is copied by every fork.
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
import sys
from typing import Any, NoReturn

from headrace.verifiers.sandbox import child, landlock, namespaces, seccomp

MESSAGE_BYTES = 1 << 16
_SET_SUBREAPER = 36


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
        self._plan = {**plan, "server": os.getpid()}
        self._in_namespaces = plan["namespaces"]
        self._runs: dict[int, _Run] = {}  # by the descriptor that tells of its end
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._preload(plan["modules"])
        sys.dont_write_bytecode = True
        builtins.exit = builtins.quit = sys.exit  # as programs know them, from a module that is not loaded here
        readable = [target for _, target in plan["readable"]]
        if self._in_namespaces:
            namespaces.build_root(plan["readable"], plan["scratch_bytes"])
            self._work = _fingerprint()
            sys.path[:] = plan["path"]
            _move_modules(*plan["readable"][0])
        else:
            readable = [source for source, _ in plan["readable"]]
            namespaces.syscalls.libc("prctl", _SET_SUBREAPER, 1, 0, 0, 0)
            os.chdir("/")
        self._rulesets = self._make_rulesets(readable) if plan["landlock"] else {}
        self._processes = namespaces.ProcessNamespaces() if self._in_namespaces else None
        self._filter = self._run_filter(own_pid=1)
        seccomp.renounce_privileges()
        if plan["seccomp"]:
            seccomp.Filter(seccomp.server_program(programs=plan["programs"])).install()
        for name, value in plan["rlimits"].items():  # for this process too; what it uses is far below them
            child.limit(getattr(resource, name), value)
        child.warm_up()
        gc.collect()
        gc.freeze()  # the collector's marks would copy pages in every child

    def _run_filter(self, own_pid: int) -> seccomp.Filter | None:
        if not self._plan["seccomp"]:
            return None
        return seccomp.Filter(
            seccomp.run_program(programs=self._plan["programs"], own_files=self._in_namespaces, own_pid=own_pid)
        )

    def _preload(self, modules: list[str]) -> None:
        for name in modules:
            importlib.import_module(name)

    def _make_rulesets(self, readable: list[str]) -> dict[bool, int]:
        """By whether the run may write: made once, put on by each child."""
        made = {}
        for scratch in (False, True):
            rules = landlock.Ruleset()
            rules.allow_reading(readable, execute=self._plan["programs"])
            rules.allow_devices(namespaces.DEVICES)
            if scratch and self._in_namespaces:
                rules.allow_all(namespaces.WORK_RULE, execute=self._plan["programs"])
            made[scratch] = rules.descriptor
        return made

    def serve(self) -> NoReturn:
        """Until the host is gone."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._control.fileno():
                    self._obey()
                else:
                    self._reap(descriptor)

    def _obey(self) -> None:
        payload, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 4)
        if not payload:
            self._leave()
        message = json.loads(payload)
        if "run" in message:
            self._start(message["run"], message["scratch"], descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
        else:
            for run in self._runs.values():
                if run.number == message["end"]:
                    run.kill()

    def _leave(self) -> NoReturn:
        for run in self._runs.values():
            run.kill()
        for run in self._runs.values():  # so that nobody else has to
            run.end_group()
            os.waitpid(run.pid, 0)
            run.reap_group()
        os._exit(0)

    def _start(self, number: int, scratch: bool, descriptors: list[int]) -> None:
        try:
            pid = self._processes.fork() if self._processes else os.fork()
        except OSError as error:
            _say(self._control, ended=number, failed=str(error))
            return
        if pid == 0:
            self._become_child(number, scratch, descriptors)
        if self._processes is None:
            with contextlib.suppress(OSError):  # the child does the same: whoever comes first
                os.setpgid(pid, pid)
        end = os.pidfd_open(pid)
        self._runs[end] = _Run(number, pid, end, scratch, group=self._processes is None)
        self._poll.register(end, select.POLLIN)

    def _become_child(self, number: int, scratch: bool, descriptors: list[int]) -> NoReturn:
        status = 70
        try:
            own = self._control.fileno()
            ruleset = self._rulesets.get(scratch)
            control = child.take_descriptors(descriptors, keep={own} if ruleset is None else {own, ruleset})
            try:
                if self._processes is None:  # elsewhere it is process 1
                    self._filter = self._run_filter(own_pid=os.getpid())
                child.confine(self._plan, self._filter, ruleset, scratch, close=own)
            except OSError as error:  # nothing of the program has been read yet
                _say(self._control, ended=number, failed=f"{type(error).__name__}: {error}")
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
        if self._in_namespaces and run.scratch and _fingerprint() != self._work:
            namespaces.renew_work(self._plan["scratch_bytes"])
            self._work = _fingerprint()
        _say(
            self._control,
            ended=run.number,
            status=os.waitstatus_to_exitcode(status),
            cpu=usage.ru_utime + usage.ru_stime,
            memory=usage.ru_maxrss * 1024,
        )


class _Run:
    """A child under way. Without a process namespace its process group, which it cannot leave, holds all that it starts."""

    def __init__(self, number: int, pid: int, end: int, scratch: bool, group: bool) -> None:
        self.number = number
        self.pid = pid
        self.scratch = scratch
        self._end = end
        self._group = group

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._end, signal.SIGKILL)

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
