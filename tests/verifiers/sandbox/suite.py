"""Runs the attacks at one level of layers, and looks afterwards at what must not have happened.

    python -m tests.verifiers.sandbox.suite LEVEL

prints what came of each as JSON: {name: {"reason": ..., "violations": [...]}}.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psutil

from headrace.verifiers.code import same_value
from headrace.verifiers.sandbox import starvation
from headrace.verifiers.sandbox.box import Box, BoxFailed
from headrace.verifiers.sandbox.layers import Layers
from headrace.verifiers.sandbox.plan import BoxPlan, Limits
from headrace.verifiers.sandbox.probe import probe
from headrace.verifiers.sandbox.programs import ScriptResult, call_function, run_command, run_script, run_test
from headrace.verifiers.sandbox.run import STARVED
from headrace.verifiers.sandbox.sandbox import Sandbox
from tests.verifiers.sandbox import escapes, exhaustion, forgeries
from tests.verifiers.sandbox.attacks import Attack

ATTACKS: list[Attack] = [
    *forgeries.FORGERY, *forgeries.TESTS,
    *escapes.FILES, *escapes.SECRETS, *escapes.NETWORK, *escapes.PROCESSES, *escapes.CALLS,
    *exhaustion.TIME, *exhaustion.MEMORY, *exhaustion.DISK, *exhaustion.MESSAGES, *exhaustion.OUTPUT,
]  # fmt: skip

LIMITS = Limits(
    wall_seconds=20, cpu_seconds=10, memory_bytes=64 << 20, processes=8, file_bytes=1 << 20, scratch_bytes=2 << 20,
    output_bytes=1 << 16,
)  # fmt: skip
SHORT = msgspec.structs.replace(LIMITS, wall_seconds=0.3)
_AT_ONCE = 8  # programs that hang
_ATTEMPTS = 3

# What the next run sees: it has to be the same whatever ran before it.
WITNESS = """
import builtins, math, os, sys
def seen(action):
    try: return action()
    except OSError as error: return type(error).__name__
def facts(path):
    status = os.stat(path)
    return status.st_mode, status.st_nlink, status.st_size, status.st_uid, status.st_atime_ns - status.st_mtime_ns
def fresh():
    with open("fresh", "w") as file: return os.fstat(file.fileno()).st_ino
def descriptors():
    return [number for number in range(64) if seen(lambda: os.fstat(number).st_mode) != "OSError"]
print(os.environ, sys.path, hasattr(builtins, "seven"), hasattr(math, "seven"), os.umask(0o22) if os.getpid() == 1 else "")
print(os.getcwd(), seen(lambda: os.listdir(".")), len(descriptors()))
if os.getcwd() == "/work/run":
    v = os.statvfs(".")
    print(facts("."), v.f_bfree, v.f_ffree, fresh(), os.stat("/dev/null").st_mode, os.getpid(), os.uname())
    print(seen(lambda: os.listdir("/")))
print(seen(lambda: os.stat("/python/os.py").st_mtime_ns))
"""


def levels() -> dict[str, Layers]:
    """The host's layers, and what is left without some of them."""
    there = probe()
    replace = msgspec.structs.replace
    wanted = {
        "all": there,
        "no_cgroup": replace(there, cgroup=False),
        "no_landlock": replace(there, landlock_abi=0),
        "no_namespaces": replace(there, namespaces=False),
        "seccomp_landlock": replace(there, namespaces=False, cgroup=False),
    }
    distinct: dict[str, Layers] = {}
    for name, layers in wanted.items():
        if layers not in distinct.values():
            distinct[name] = layers
    return distinct


class Outcome(msgspec.Struct):
    reason: str
    violations: list[str]


class World:
    """What there is on the host to be hurt, and whether it was."""

    def __init__(self, level: str) -> None:
        self.marker = f"HRMARK-{secrets.token_hex(16)}"
        self.signals: list[int] = []
        self._folder = Path(tempfile.mkdtemp(prefix="headrace-canary-"))
        self._folder.chmod(0o777)
        canary = self._folder / "canary"
        canary.write_text(self.marker)
        canary.chmod(0o666)
        abstract = f"headrace-{secrets.token_hex(8)}"
        by_path, by_name = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        self._listeners = [socket.create_server(("127.0.0.1", 0)), by_path, by_name]
        port = self._listeners[0].getsockname()[1]
        by_path.bind(str(self._folder / "listener"))
        by_name.bind("\0" + abstract)
        for listener in self._listeners:
            listener.listen()
            listener.setblocking(False)
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("127.0.0.1", port))
        abstract_datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        abstract_datagrams.bind(f"\0{abstract}-datagrams")
        self._mailboxes = [datagrams, abstract_datagrams]
        for mailbox in self._mailboxes:
            mailbox.setblocking(False)
        self._victim = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._handlers = {
            each: signal.signal(each, self._note) for each in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
        }
        os.environ["HEADRACE_CANARY"] = self.marker
        self.names = {
            "FOLDER": self._folder, "PORT": port, "ABSTRACT": abstract, "ABSTRACT_DATAGRAMS": f"{abstract}-datagrams",
            "HOST": os.getpid(), "VICTIM": self._victim.pid, "PROJECT": Path(__file__).parents[3], "LEVEL": level,
            **_packages(),
        }  # fmt: skip
        self._before = self._facts()

    def _note(self, number: int, frame: Any) -> None:
        self.signals.append(number)

    def _facts(self) -> dict[str, Any]:
        """All that has to stay as it is."""
        files = {}
        for path in (self._folder, *sorted(self._folder.iterdir()), Path(json.__file__)):
            status = path.stat()
            files[str(path)] = (status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns)
        breaches = [
            place for place in ("/tmp", "/var/tmp", "/dev/shm", "/", "/run", "/root")
            if os.path.exists(f"{place}/headrace-breach") or os.path.exists(f"{place}/main.sh")
        ]  # fmt: skip
        return {
            "files": files,
            "canary": (self._folder / "canary").read_text(),
            "files made": breaches,
            "victim": self._victim.poll(),
            "signals": list(self.signals),
            "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
        }

    def violations(self) -> list[str]:
        now = self._facts()
        found = [f"{key} changed: {now[key]}" for key in now if now[key] != self._before[key]]
        for listener in self._listeners:
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                found.append(f"connected to {listener.getsockname()!r}")
        for mailbox in self._mailboxes:
            with contextlib.suppress(BlockingIOError):
                found.append(f"datagram {mailbox.recv(100)!r}")
        return found

    def close(self) -> None:
        for each, handler in self._handlers.items():
            signal.signal(each, handler)
        self._victim.kill()
        self._victim.wait()
        for listener in (*self._listeners, *self._mailboxes):
            listener.close()
        del os.environ["HEADRACE_CANARY"]
        shutil.rmtree(self._folder)

    def filled(self, attack: Attack) -> Attack:
        source = attack.source
        for name, value in self.names.items():
            source = source.replace(f"@{name}@", str(value))
        return msgspec.structs.replace(attack, source=source)


def run_attack(box: Box, attack: Attack, marker: str) -> Outcome:
    """One program, and whether it was paid, or has seen what it must not see."""
    try:
        reason, paid, said = _RUNNERS[attack.how](box, attack.source, marker)
    except BoxFailed:
        raise
    except Exception as error:  # noqa: BLE001 (that is what is tested: no program makes the host raise)
        return Outcome("raised", [f"raised {type(error).__name__}: {error}"])
    violations = ["paid"] if paid else []
    if marker in said or "BREACH" in said:
        violations.append(f"said {said[:300]}")
    if reason not in attack.reasons:
        violations.append(f"reason {reason}, not {' or '.join(sorted(attack.reasons))}: {said[:300]}")
    return Outcome(reason, violations)


_TEST = """
MARK = {marker!r}
def check(candidate):
    for _ in range(3):
        value = candidate(7)
        print(value)
        assert value == MARK
"""


def _run_calls(box: Box, source: str, marker: str) -> tuple[str, bool, str]:
    result = call_function(box, source, "f", [[7]])
    if not result.answers:
        return result.reason, False, result.message
    answer = result.answers[0]
    paid = not answer.reason and same_value(answer.value, marker, exact=True, tolerance=1e-9)
    return answer.reason or "wrong_answer", paid, f"{_shown(answer.value)} {answer.message}"


def _run_test(box: Box, source: str, marker: str) -> tuple[str, bool, str]:
    result = run_test(box, source, "f", "", _TEST.format(marker=marker))
    # What the test says is not for the code: its message may show anything.
    return result.reason or "test_fault", result.passed, result.test_fault


def _run_script(box: Box, source: str, marker: str) -> tuple[str, bool, str]:
    return _printed(run_script(box, source, "7\n"), marker)


def _run_command(box: Box, source: str, marker: str) -> tuple[str, bool, str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/work/run"}
    return _printed(run_command(box, ["/bin/sh", "main.sh"], {"main.sh": source}, "7\n", environment), marker)


def _printed(result: ScriptResult, marker: str) -> tuple[str, bool, str]:
    reason = result.reason or ("exception" if result.status else "wrong_answer")
    return reason, not result.reason and result.out.strip() == marker, f"{result.out} {result.err} {result.message}"


_RUNNERS = {"calls": _run_calls, "test": _run_test, "script": _run_script, "command": _run_command}


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # an integer of too many digits
        return "(a large integer)"


def _packages() -> dict[str, object]:
    """The interpreter's folder of packages, and a file in there that says what it is; the project's own are elsewhere."""
    folder = Path(sysconfig.get_path("stdlib")) / "site-packages"
    return {"PACKAGES": folder, "PACKAGE_FILE": next(iter(sorted(folder.rglob("METADATA"))), folder / "METADATA")}


def run_suite(level: str) -> dict[str, Outcome]:
    """Every attack that this level is for."""
    layers = levels()[level]
    before = _held()
    world = World(level)
    outcomes: dict[str, Outcome] = {}
    with contextlib.closing(world), _sandboxes(layers) as sandboxes:
        witnesses = {kind: _witness_in(sandbox) for kind, sandbox in sandboxes.items()}
        chosen = [world.filled(attack) for attack in ATTACKS if layers.namespaces or not attack.needs_namespaces]
        for attack in chosen:
            if not attack.hangs:
                outcomes[attack.name] = _observed(sandboxes, attack, world, witnesses)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            hanging = [attack for attack in chosen if attack.hangs]
            results = threads.map(lambda each: _alone(sandboxes, each, world.marker, witnesses), hanging)
            outcomes |= {attack.name: outcome for attack, outcome in zip(hanging, results, strict=True)}
        outcomes["all that hang"] = Outcome("", world.violations())
    left = [f"{key}: {value}, not {before[key]}" for key, value in _held().items() if value != before[key]]
    outcomes["the whole suite"] = Outcome("", left)
    return outcomes


def _held() -> dict[str, Any]:
    """What this process has of the host's, and would still have if the suite had left something."""
    own = os.getpid()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "control groups": sorted(map(str, Path("/sys/fs/cgroup").glob(f"**/headrace-{own}-*"))),
        "processes": sorted(child.pid for child in psutil.Process().children(recursive=True)),
    }


@contextlib.contextmanager
def _sandboxes(layers: Layers) -> Iterator[dict[str, Sandbox]]:
    programs = {"programs": True, "readable": ("/usr", "/bin")}
    made = {
        "python": Sandbox(BoxPlan(LIMITS), layers=layers),
        "python_short": Sandbox(BoxPlan(SHORT), layers=layers, boxes=_AT_ONCE),
    }
    if layers.namespaces:
        made["command"] = Sandbox(BoxPlan(LIMITS, **programs), layers=layers)
        made["command_short"] = Sandbox(BoxPlan(SHORT, **programs), layers=layers, boxes=_AT_ONCE)
    try:
        yield made
    finally:
        for sandbox in made.values():
            sandbox.close()


def _alone(sandboxes: dict[str, Sandbox], attack: Attack, marker: str, witnesses: dict[str, str]) -> Outcome:
    """The attack, again where other work of this machine left it no processor: one that starves itself does so each time."""
    for _ in range(_ATTEMPTS):
        outcome = _once(sandboxes, attack, marker, witnesses)
        if outcome.reason != STARVED:
            break
    return outcome


def _once(sandboxes: dict[str, Sandbox], attack: Attack, marker: str, witnesses: dict[str, str]) -> Outcome:
    """The attack by itself; then what is left of it in its box, and what the next run there sees."""
    kind = ("command" if attack.how == "command" else "python") + ("_short" if attack.hangs else "")
    try:
        with sandboxes[kind].box() as box:
            outcome = run_attack(box, attack, marker)
            tasks = starvation.tasks_below(box.pid, nested=box.layers.namespaces)
            found = [f"left {task}" for task in tasks or ()]
            if (seen := _witness(box)) != witnesses[kind]:
                found.append(f"the next run saw {seen!r}, not {witnesses[kind]!r}")
            return msgspec.structs.replace(outcome, violations=outcome.violations + found)
    except BoxFailed as error:
        return Outcome("box_failed", [f"the box failed: {error}"])


def _observed(sandboxes: dict[str, Sandbox], attack: Attack, world: World, witnesses: dict[str, str]) -> Outcome:
    """The same; then the world."""
    outcome = _alone(sandboxes, attack, world.marker, witnesses)
    return msgspec.structs.replace(outcome, violations=outcome.violations + world.violations())


def _witness_in(sandbox: Sandbox) -> str:
    with sandbox.box() as box:
        return _witness(box)


def _witness(box: Box) -> str:
    """What the next run in this box sees; it has time enough, whatever the attack had."""
    plan = box.plan
    box.plan = msgspec.structs.replace(plan, limits=LIMITS)
    try:
        result = run_script(box, WITNESS, "")
    finally:
        box.plan = plan
    assert result.status == 0 and not result.reason, result
    return result.out


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(run_suite(sys.argv[1])))
