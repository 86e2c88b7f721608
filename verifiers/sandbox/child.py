"""One run, from the fork to its end: take away what it does not need, then run the program that the host sends.

What comes back of a program is values and text, never a verdict: this process belongs to code that nobody trusts, and the
host believes nothing of what it says but the values themselves. What is expected of them is never in here.

Messages are JSON behind a length of four bytes; each answer carries the nonce of the program's own. Standard library only.
"""

from __future__ import annotations

import builtins
import json
import os
import resource
import socket
import struct
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from headrace.verifiers.sandbox import landlock, namespaces, plain, seccomp

# Made once, and used at their core: what `json.loads` and `json.dumps` do round that costs pages of memory in every child.
_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False)
_DECODER = json.JSONDecoder()
_WARM_UP = 20
_MOST_MESSAGE = 500  # characters of an exception's text


class Confinement:
    """What a child takes from itself that the server could not do for it already; made ready in the server, once."""

    def __init__(self, plan: dict[str, Any], filters: seccomp.Filter | None, rulesets: dict[bool, int]) -> None:
        self._in_namespaces: bool = plan["namespaces"]
        self._own_session: bool = plan["programs"]
        self._cpu_limit = _bounded(resource.RLIMIT_CPU, plan["cpu_seconds"])
        self._server = os.getpid()
        self._drop_privileges = namespaces.become_box_user if plan["two_users"] else namespaces.without_capabilities()
        self._rulesets = rulesets
        self._restrict = {scratch: landlock.restriction(ruleset) for scratch, ruleset in rulesets.items()}
        self._filter = filters

    def take_descriptors(self, descriptors: Sequence[int], server: int, scratch: bool) -> int:
        """Standard input, output and error become the run's; all else is closed but the way to the server, which goes last,
        what `put_on` needs, and the one that is returned: the way to the host."""
        control, *standard = descriptors
        for number, descriptor in enumerate(standard):
            os.dup2(descriptor, number)
        kept = [2, control, server, *([self._rulesets[scratch]] if self._rulesets else [])]
        kept.sort()
        for low, high in zip(kept, [*kept[1:], 1 << 16], strict=True):
            os.closerange(low + 1, high)
        return control

    def put_on(self, scratch: bool, server: int) -> None:
        """For good. Raises OSError where the kernel refuses."""
        if self._in_namespaces:
            os.chdir(namespaces.WORK if scratch else "/")
        if self._own_session:
            os.setsid()
        else:
            os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, self._cpu_limit)
        self._drop_privileges()
        if not self._in_namespaces:  # elsewhere the server's end is the end of all that is in its namespace
            namespaces.end_with_parent()
            if os.getppid() != self._server:
                os._exit(0)
        if self._rulesets:
            self._restrict[scratch]()
            os.close(self._rulesets[scratch])
        if self._filter is not None:
            self._filter.install()
        os.close(server)


def limit(kind: int, value: int) -> None:
    """A limit that cannot be raised again; never above the one that there is."""
    resource.setrlimit(kind, _bounded(kind, value))


def _bounded(kind: int, value: int) -> tuple[int, int]:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    return value, value


def run(control: int) -> int:
    """The program that the host sends; its exit status."""
    host = _Host(control)
    program = host.receive()
    host.nonce = program["nonce"]
    sys.argv[:] = ["program"]
    return _KINDS[program["kind"]](host, program)


def warm_up() -> None:
    """Do in the server, which is about to be copied, what every run does: code that has run is faster, and what it sets up
    for itself is not set up again by each child."""
    here, there = socket.socketpair()
    with here, there:
        host, other = _Host(here.fileno()), _Host(there.fileno())
        for _ in range(_WARM_UP):
            program = {"source": "def f(x):\n    return x\n", "entry_point": "f", "more": False, "nonce": ""}
            host.send(**program, calls=[[[1, [2]], []]])
            _calls(other, other.receive())
            host.receive()
            host.receive()
    del sys.modules["solution"]


class _Host:
    """The way to the host."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.nonce = ""

    def send(self, **message: Any) -> None:
        payload = _ENCODER.encode({"nonce": self.nonce, **message}).encode()
        view = memoryview(struct.pack(">I", len(payload)) + payload)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def receive(self) -> dict[str, Any]:
        """The next message; ends this process when the host has none any more."""
        (length,) = struct.unpack(">I", self._read(4))
        return _DECODER.raw_decode(self._read(length).decode())[0]

    def _read(self, count: int) -> bytes:
        parts = []
        while count:
            part = os.read(self._descriptor, min(count, 1 << 20))
            if not part:
                os._exit(0)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def _module(name: str, source: str) -> types.ModuleType:
    """A module of that name, run from its text."""
    module = types.ModuleType(name)
    module.__builtins__ = builtins  # type: ignore[attr-defined]
    sys.modules[name] = module
    exec(compile(source, f"<{name}>", "exec"), module.__dict__)
    return module


def _raised(error: BaseException) -> dict[str, Any]:
    """An exception as it travels: its type's name, and what it says, which may fail too."""
    try:
        text = str(error)[:_MOST_MESSAGE]
    except BaseException:  # noqa: BLE001 (its text is code of the program's)
        text = ""
    return {"raised": type(error).__name__, "message": text.encode("utf-8", "replace").decode()}


def _attempt(function: Callable[[], Any]) -> dict[str, Any]:
    """What a call came to, as a message."""
    try:
        return {"value": function()}
    except plain.NotPlain as error:
        return {"not_plain": str(error)}
    except BaseException as error:  # noqa: BLE001 (SystemExit and all: whatever the program does is an answer)
        return _raised(error)


def _calls(host: _Host, program: dict[str, Any]) -> int:
    """Define functions, then call one: for each `[args, kwargs]` of `calls`, and for what the host asks after that.

    An answer holds the value and the arguments as they are afterwards, for functions that change them.
    """
    loaded: dict[str, Any] = {}

    def load() -> bool:
        loaded.update(vars(_module("solution", program["source"])))
        return program["entry_point"] in loaded

    defined = _attempt(load)
    host.send(defined=defined)
    if defined.get("value") is not True:
        return 0
    function = loaded[program["entry_point"]]

    def call(packed: list[Any]) -> dict[str, Any]:
        args, kwargs = [plain.unpack(each) for each in packed[0]], {key: plain.unpack(each) for key, each in packed[1]}

        def answer() -> list[Any]:
            value = plain.pack(function(*args, **kwargs))
            return [value, [_still(each) for each in args]]

        return _attempt(answer)

    for packed in program["calls"]:
        host.send(**call(packed))
    while program["more"]:
        host.send(**call(host.receive()["call"]))
    return 0


def _still(argument: Any) -> Any:
    """A list, dict or set as it is after the call; what cannot change, or holds by now what is not plain, is None."""
    if type(argument) not in (list, dict, set):
        return None
    try:
        return plain.pack(argument)
    except plain.NotPlain:
        return None


def _script(host: _Host, program: dict[str, Any]) -> int:
    """As `python program.py`: what it prints is its answer."""
    printed = sys.stdout
    try:
        _module("__main__", program["source"])
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()  # waits for its threads, as the interpreter would
        printed.flush()
    except SystemExit as error:
        printed.flush()
        return error.code & 0xFF if type(error.code) is int else 0 if error.code is None else 1
    except BaseException as error:  # noqa: BLE001 (as in `_attempt`)
        printed.flush()
        host.send(**_raised(error))
        return 1
    return 0


def _command(host: _Host, program: dict[str, Any]) -> int:
    """Write files, then become another program."""
    for name, text in program["files"].items():
        with open(name, "wb") as file:
            file.write(text.encode("utf-8", "surrogatepass"))
    try:
        os.execvpe(program["argv"][0], program["argv"], program["environment"])
    except OSError as error:
        host.send(**_raised(error))
        return 127


def _tests(host: _Host, program: dict[str, Any]) -> int:
    """A data set's own test of a function that lives in another box: this one has the expected values, and the host carries
    each call over to the other and its answer back."""
    candidate = _Candidate(host)

    def check() -> int:
        module = types.ModuleType("test")
        sys.modules["test"] = module
        scope = vars(module)
        if program["prelude"]:
            exec(compile(program["prelude"], "<prompt>", "exec"), scope)
        scope[program["entry_point"]] = candidate
        exec(compile(program["test"], "<test>", "exec"), scope)
        if callable(scope.get("check")):
            scope["check"](candidate)
        return candidate.calls

    host.send(tested=_attempt(check))
    return 0


class _Candidate:
    """In the place of the function under test."""

    def __init__(self, host: _Host) -> None:
        self._host = host
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        packed = [[plain.pack(each) for each in args], [[key, plain.pack(each)] for key, each in kwargs.items()]]
        self._host.send(call=packed)
        answer = self._host.receive()
        if "value" not in answer:
            raise _exception(answer)
        value, after = answer["value"]
        given = plain.unpack(value)
        # Only a function that works in place hands its arguments back: one that answers could spoil what it is compared
        # with, as `sorted(xs)` in a test is computed after the call.
        if given is None:
            for argument, changed in zip(args, after, strict=True):
                if changed is not None:
                    _change(argument, plain.unpack(changed))
        return given


def _change(argument: Any, now: Any) -> None:
    if type(argument) is list and type(now) is list:
        argument[:] = now
    elif (type(argument) is dict and type(now) is dict) or (type(argument) is set and type(now) is set):
        argument.clear()
        argument.update(now)


_ENDS_ITERATION = (StopIteration, StopAsyncIteration)


def _exception(answer: dict[str, Any]) -> Exception:
    """What the function raised, as far as it is one of Python's own: a test may want it.

    Not what ends an iteration: in `zip(map(candidate, given), wanted)` it would end the test as if all were right.
    """
    kind = getattr(builtins, str(answer.get("raised")), None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _ENDS_ITERATION):
        try:
            return kind(str(answer.get("message")))
        except TypeError:  # a few want more than a text
            return CandidateFailed(f"{kind.__name__}")
    return CandidateFailed(str(answer.get("raised") or answer.get("not_plain")))


class CandidateFailed(Exception):
    """The function under test gave no value."""


_KINDS = {"calls": _calls, "script": _script, "command": _command, "tests": _tests}
