"""Plain values as JSON and back, exactly: what crosses the box's wall is rebuilt from nothing but Python's own types.

An object that only looks like a number, compares equal to everything or carries code does not get through: its type is none
of these. Lists, strings, booleans, None and small numbers are JSON's own; the rest is an object with one key, its tag.

Standard library only.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

MOST_ITEMS = 100_000  # of an iterator
_MOST_DEPTH = 100
_MOST_ALIKE = 50  # keys with one hash
_SURROGATE = re.compile("[\ud800-\udfff]")
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
        packed = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise NotPlain(f"not a plain value: {type(error).__name__}") from error
    return unpack(packed)


def pack(value: Any, depth: int = 0) -> Any:
    """`value` in JSON's types. Raises NotPlain."""
    if depth > _MOST_DEPTH:
        raise NotPlain(f"nested more than {_MOST_DEPTH} deep")
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        if value.isascii() or not _SURROGATE.search(value):
            return value
        return {"str": value.encode("utf-32-be", "surrogatepass").hex()}  # JSON would make one character of two halves
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


def unpack(packed: Any, depth: int = 0) -> Any:
    """The inverse of `pack`. Raises NotPlain, also for sets and dictionaries made to be slow."""
    if depth > _MOST_DEPTH:
        raise NotPlain(f"nested more than {_MOST_DEPTH} deep")
    if type(packed) is list:
        return [unpack(item, depth + 1) for item in packed]
    if type(packed) is not dict:
        return packed
    if len(packed) != 1:
        raise NotPlain("an object without a tag")
    ((tag, content),) = packed.items()
    if tag not in _UNPACKERS:
        raise NotPlain(f"an unknown tag {tag[:20]!r}")
    kind, from_json = _UNPACKERS[tag]
    if type(content) is not kind:
        raise NotPlain(f"not a {tag}: it holds {type(content).__name__}")
    try:
        return from_json(content, depth + 1)
    except NotPlain:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise NotPlain(f"not a {tag}: {type(error).__name__}") from error


def _list(content: list[Any], depth: int) -> list[Any]:
    return [unpack(item, depth) for item in content]


def _keys(keys: list[Any]) -> list[Any]:
    """As they are. Python's tables get slow with the square of how many keys share a hash, and whoever wants to can make
    numbers and tuples that do."""
    if len(keys) > _MOST_ALIKE and max(Counter(map(hash, keys)).values()) > _MOST_ALIKE:
        raise NotPlain(f"more than {_MOST_ALIKE} keys with the same hash")
    return keys


def _dict(content: list[Any], depth: int) -> dict[Any, Any]:
    keys = _keys([unpack(key, depth) for key, _ in content])
    return dict(zip(keys, [unpack(value, depth) for _, value in content], strict=True))


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
# By tag: what JSON has for it, and what makes the value of that.
_UNPACKERS: dict[str, tuple[type, Callable[[Any, int], Any]]] = {
    "int": (str, lambda content, depth: int(content, 16)),
    "float": (str, lambda content, depth: float(content)),
    "str": (str, lambda content, depth: bytes.fromhex(content).decode("utf-32-be", "surrogatepass")),
    "list": (list, _list),
    "tuple": (list, lambda content, depth: tuple(_list(content, depth))),
    "dict": (list, _dict),
    "set": (list, lambda content, depth: set(_keys(_list(content, depth)))),
    "frozenset": (list, lambda content, depth: frozenset(_keys(_list(content, depth)))),
    "bytes": (str, lambda content, depth: bytes.fromhex(content)),
    "bytearray": (str, lambda content, depth: bytearray.fromhex(content)),
    "complex": (list, lambda content, depth: complex(*map(float, content))),
    "range": (list, lambda content, depth: range(*_list(content, depth))),
    "deque": (list, lambda content, depth: deque(_list(content, depth))),
    "iterator": (list, lambda content, depth: iter(_list(content, depth))),
}
