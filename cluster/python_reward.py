"""The `[reward]` section of a job whose reward was given in Python: by name where it has one, else by a fingerprint."""

from __future__ import annotations

import copyreg
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

from headrace.cluster.config import RewardSection
from headrace.verifiers.base import Options, Verifier
from headrace.verifiers.registry import BUILT_IN, ENTRY_POINT_GROUP

CODE = (FunctionType, staticmethod, classmethod, property)  # in a class
PLAIN = (str, bytes, int, float, complex, type(None), type(...))


def reward_section(reward: Verifier | Callable[..., Any]) -> RewardSection:
    """What says the same in a job file.

    A registered verifier whose `options` are typed becomes `verifier` and `options` (those that end in `_path` absolute), a
    function at the top of a module's file `function`. Anything else is in no file that could be loaded: it becomes
    `python`, and the job runs from Python alone.
    """
    name = registered_name(type(reward))
    options = getattr(reward, "options", None)
    if name is not None and isinstance(options, Options):
        values = options.model_dump(mode="json", by_alias=True, exclude_none=True)
        anchored = {key: _absolute(value) if key.endswith("_path") else value for key, value in values.items()}
        return RewardSection(verifier=name, options=anchored)
    if place := place_in_file(reward):
        return RewardSection(function=place)
    shown = getattr(reward, "__qualname__", type(reward).__qualname__)
    return RewardSection(python=f"{shown} {fingerprint(reward)}")


def _absolute(path: Any) -> Any:
    return str(Path(path).absolute()) if isinstance(path, str) else path


def registered_name(kind: type) -> str | None:
    """The name under which the registry has exactly this class."""
    found = [name for name, built_in in BUILT_IN.items() if built_in is kind]
    value = f"{kind.__module__}:{kind.__qualname__}"
    found += [entry.name for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.value == value]
    return found[0] if found else None


def place_in_file(function: Any) -> str | None:
    """`file.py:name` of a function that can be loaded from there alone."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    # A script would run as a whole to be loaded, the training included; a package's module needs its package.
    if not inspect.isfunction(function) or module is None or module.__name__ == "__main__" or module.__package__:
        return None
    file = getattr(module, "__file__", None)
    if file is None or getattr(module, function.__name__, None) is not function:
        return None
    return f"{Path(file).absolute()}:{function.__name__}"


def fingerprint(reward: Any) -> str:
    """Twelve hexadecimal digits: the same in every process for the same code with the same plain values in it.

    Sees a function's own code, its defaults and its closure; of an object, and of the one that a method is bound to, the
    methods of its class and of those above it, and its public attributes. Not what these call elsewhere.
    """
    parts = [_described(reward, set())]
    # What begins with an underscore is state, and may differ each time; unless it is code.
    parts += [
        f"{name}={_described(value, set())}"
        for name, value in getattr(_owner(reward), "__dict__", {}).items()
        if not name.startswith("_") or isinstance(value, FunctionType | MethodType | partial)
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _owner(reward: Any) -> Any:
    """The object whose attributes decide what the reward is; None for a function."""
    while isinstance(reward, partial):
        reward = reward.func
    if isinstance(reward, MethodType):
        return reward.__self__
    return None if isinstance(reward, FunctionType) else reward


def _described(value: Any, above: set[int]) -> str:
    """`above`: the values that this one is in, by `id`."""
    if isinstance(value, PLAIN):
        return repr(value)
    if id(value) in above:
        return "itself"
    parts = [_described(part, above | {id(value)}) for part in _parts(value)]
    # A set has another order in every process.
    shown = sorted(parts) if isinstance(value, set | frozenset) else parts
    return f"{type(value).__qualname__}({', '.join(shown)})"


def _parts(value: Any) -> Iterable[Any]:
    """What counts of a value that is not plain."""
    match value:
        case CodeType():
            return value.co_code, value.co_names, value.co_consts
        case FunctionType():
            # A cell is empty while what it names is not assigned yet.
            cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
            return value.__code__, value.__defaults__, value.__kwdefaults__, cells
        case MethodType():
            return value.__func__, value.__self__
        case partial():
            return value.func, value.args, value.keywords
        case dict():
            return value.items()
        case list() | tuple() | set() | frozenset():
            return value
        case staticmethod() | classmethod():
            return [value.__func__]
        case property():
            return [value.fget]
        case _:
            members = [member for kind in type(value).__mro__ for member in vars(kind).values()]
            return [*(member for member in members if isinstance(member, CODE)), *_held(value)]


def _held(value: Any) -> list[Any]:
    """What an object holds: what it would be made of again, but for what begins with an underscore."""
    try:
        reduce = copyreg.dispatch_table.get(type(value))  # for patterns of `re`, for one
        _, arguments, *rest = reduce(value) if reduce else value.__reduce_ex__(2)
    except (TypeError, ValueError, NotImplementedError):  # such as a lock: it holds nothing that could be compared
        return []
    states = rest[0] if rest and isinstance(rest[0], tuple) else rest[:1]  # with slots there are two
    public = [
        (name, held) for state in states if isinstance(state, dict) for name, held in state.items() if name[:1] != "_"
    ]
    return [*arguments, *public]
