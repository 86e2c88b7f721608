"""Plain values as JSON and back, exactly: what crosses the box's wall is rebuilt from nothing but Python's own types.

An object that only looks like a number, compares equal to everything or carries code does not get through: its type is none
of these. Lists, strings, booleans, None and small numbers are JSON's own; the rest is an object with one key, its tag.

Standard library only.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

MOST_ITEMS = 100_000  # of an iterator
_MOST_DEPTH = 100
_JSON_INTEGERS = 10**300  # larger ones would be slow, or refused, as decimal text
_SOME_ITERATORS = (iter([]), map(id, ()), filter(id, ()), zip(), enumerate(()), reversed([]), iter({}), (_ for _ in ()))
_ITERATORS = (*(type(iterator) for iterator in _SOME_ITERATORS), itertools.chain, itertools.islice)


class NotPlain(ValueError):
    """The value, or something in it, is of no plain type; the message names that."""


def dumps(value: Any) -> bytes:
    """Raises NotPlain, also for what is nested too deeply."""
    return json.dumps(pack(value), separators=(",", ":"), check_circular=False).encode("ascii")


def loads(payload: bytes) -> Any:
    """Raises NotPlain for what `dumps` cannot have made."""
    try:
        return unpack(json.loads(payload))
    except (ValueError, RecursionError) as error:
        raise NotPlain(f"not a plain value: {type(error).__name__}") from error


def pack(value: Any, depth: int = 0) -> Any:
    """`value` in JSON's types. Raises NotPlain."""
    if depth > _MOST_DEPTH:
        raise NotPlain(f"nested more than {_MOST_DEPTH} deep")
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_JSON_INTEGERS < value < _JSON_INTEGERS else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if kind is list:
        return [pack(item, depth + 1) for item in value]
    if kind in _PACKERS:
        tag, to_json = _PACKERS[kind]
        return {tag: to_json(value, depth + 1)}
    if kind in _ITERATORS:
        items = list(itertools.islice(value, MOST_ITEMS + 1))
        if len(items) > MOST_ITEMS:
            raise NotPlain(f"an iterator of more than {MOST_ITEMS} items")
        return {"iterator": _items(items, depth + 1)}
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):  # a named tuple
        return {"tuple": _items(tuple.__iter__(value), depth + 1)}
    raise NotPlain(f"a value of type {kind.__name__}")


def unpack(packed: Any) -> Any:
    """The inverse of `pack`. Raises NotPlain."""
    if type(packed) is list:
        return [unpack(item) for item in packed]
    if type(packed) is not dict:
        return packed
    if len(packed) != 1:
        raise NotPlain("an object without a tag")
    ((tag, content),) = packed.items()
    if tag not in _UNPACKERS:
        raise NotPlain(f"an unknown tag {tag!r}")
    try:
        return _UNPACKERS[tag](content)
    except (TypeError, ValueError) as error:
        raise NotPlain(f"not a {tag}: {type(error).__name__}") from error


def _items(values: Iterable[Any], depth: int) -> list[Any]:
    return [pack(value, depth) for value in values]


def _pairs(values: dict[Any, Any], depth: int) -> list[Any]:
    return [[pack(key, depth), pack(value, depth)] for key, value in values.items()]


_PACKERS: dict[type, tuple[str, Callable[[Any, int], Any]]] = {
    tuple: ("tuple", _items),
    dict: ("dict", _pairs),
    set: ("set", _items),
    frozenset: ("frozenset", _items),
    bytes: ("bytes", lambda value, depth: value.hex()),
    bytearray: ("bytearray", lambda value, depth: value.hex()),
    complex: ("complex", lambda value, depth: [repr(value.real), repr(value.imag)]),
    range: ("range", lambda value, depth: _items((value.start, value.stop, value.step), depth)),
    # They equal what they are sent as.
    Counter: ("dict", _pairs),
    OrderedDict: ("dict", _pairs),
    defaultdict: ("dict", _pairs),
    deque: ("deque", _items),
    **dict.fromkeys((type({}.keys()), type({}.values())), ("list", _items)),
    type({}.items()): ("list", lambda value, depth: [{"tuple": pair} for pair in _pairs(dict(value), depth)]),
}
_UNPACKERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda content: int(content, 16),
    "float": float,
    "list": unpack,
    "tuple": lambda content: tuple(unpack(content)),
    "dict": lambda content: {unpack(key): unpack(value) for key, value in content},
    "set": lambda content: set(unpack(content)),
    "frozenset": lambda content: frozenset(unpack(content)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda content: complex(float(content[0]), float(content[1])),
    "range": lambda content: range(*unpack(content)),
    "deque": lambda content: deque(unpack(content)),
    "iterator": lambda content: iter(unpack(content)),
}
