"""Tool calls out of a completion's text: the two forms that they are written in.

    hermes   <tool_call>{"name": "book_table", "arguments": {"party_size": 4}}</tool_call>, one or several
    json     {"name": "book_table", "arguments": {"party_size": 4}}, or a list of such objects; or as OpenAI's API has them,
             {"id": "1", "type": "function", "function": {"name": "book_table", "arguments": "{\"party_size\": 4}"}}, a list
             of these, or a message with the list in `tool_calls`. Here alone `arguments` may be a string that holds JSON

Text may stand around a call; whether it is allowed is decided by the caller. Braces in it that mean no call are text too.
JSON is read strictly: no key twice, no NaN, no number beyond a double's or a 64-bit integer's range, at most 32 levels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from headrace.verifiers.base import deeper_than

CallForm = Literal["hermes", "json", "any"]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CALLS = 16
MAX_DEPTH = 32
MAX_LOOKS = 64  # objects in the text round calls that are tried as another one
FENCE = "```"
_OBJECT_START = re.compile(r'\{\s*"')
_JSON_START = re.compile(r"""\{\s*["']|\[\s*["'\[{]""")
# What is no JSON, yet begins like a call: a broken one, cut off, in other quotes or in none.
_CALL_START = re.compile(
    r"""\{\s*(?:
        "(?:name|arguments|function|tool_calls)"
        |["']?arguments["']?\s*:
        |["']?name["']?\s*:[^{}]*\barguments\b
        |["']?(?:function|tool_calls)["']?\s*:\s*[\[{]
        |["']?(?:id|type|role|content)["']?\s*:[^{}]*\b(?:function|tool_calls)\b
    )""",
    re.VERBOSE,
)
_CALL_KEYS = frozenset({"name", "arguments"})
_WRAPPER_KEYS = frozenset({"id", "type", "function"})
_LLAMA_KEYS = frozenset({"name", "parameters"})  # as Llama writes calls: none of our forms, and meant as one
_MESSAGE_KEYS = frozenset({"role", "content", "tool_calls"})


class ToolCall(msgspec.Struct, frozen=True):
    name: str
    arguments: dict[str, Any]


class ParsedCalls(msgspec.Struct, frozen=True):
    """At least one call, in the order written; `extra_text` is the start of what stands around them."""

    calls: list[ToolCall]
    extra_text: str


class CallFault(Exception):
    """A text that is no call: `reason` is one of `no_call`, `malformed_call`, `code_fence`, `duplicate_key`,
    `encoded_arguments`, `not_an_object`, `extra_call`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def parse_calls(text: str, form: CallForm) -> ParsedCalls:
    """All calls in `text`. Raises CallFault; `any` is json where the text starts with that, else hermes, else json."""
    if form == "hermes":
        return _parse_hermes(text)
    first = _leading_json(text)
    if form == "any" and first is None and OPEN in text:
        return _parse_hermes(text)
    return _parse_json(text, first)


def strict_json(text: str) -> Any:
    """The value of a whole JSON text. Raises CallFault with `malformed_call` or `duplicate_key`."""
    stripped = text.strip()
    value, end = _decode(stripped, 0)
    if end != len(stripped):
        raise CallFault("malformed_call", f"text after the JSON value, at character {end}")
    return value


def _parse_hermes(text: str) -> ParsedCalls:
    calls: list[ToolCall] = []
    around: list[str] = []
    position = 0
    while (start := text.find(OPEN, position)) >= 0:
        around.append(text[position:start])
        _refuse_bare_calls(around[-1])
        inside = _skip_space(text, start + len(OPEN))
        _refuse_fence(text, inside)
        value, end = _decode(text, inside)
        end = _skip_space(text, end)
        _refuse_fence(text, end)
        if not text.startswith(CLOSE, end):
            raise CallFault("malformed_call", f"no {CLOSE} after the JSON object")
        _add(calls, as_call(value))
        position = end + len(CLOSE)
    around.append(text[position:])
    _refuse_bare_calls(around[-1])
    if not calls:
        raise CallFault("no_call", f"no {OPEN}")
    return ParsedCalls(calls, _joined(around))


def _refuse_fence(text: str, position: int) -> None:
    if text.startswith(FENCE, position):
        raise CallFault("code_fence", f"a code fence inside {OPEN}")


def _refuse_bare_calls(text: str, place: str = OPEN) -> None:
    """Raises CallFault: a call outside its place is a call too."""
    if any(_further_calls(text, 0)):
        raise CallFault("malformed_call", f"a call outside {place}")


def _leading_json(text: str) -> tuple[Any, int] | None:
    """The JSON that `text` starts with, and its end, where it is meant for calls: it holds one, or is all that there is.

    Raises CallFault where it is broken: what starts like JSON wants to be read as such.
    """
    start = _skip_space(text, 0)
    if not text.startswith(("{", "["), start):
        return None
    try:
        value, end = _decode(text, start)
    except CallFault:
        if _JSON_START.match(text, start):
            raise
        return None
    items = value if isinstance(value, list) else [value]
    meant = any(isinstance(item, dict) and _means_a_call(item) for item in items)
    return (value, end) if meant or not text[end:].strip() else None


def _parse_json(text: str, first: tuple[Any, int] | None) -> ParsedCalls:
    """The calls of `first`, which `text` starts with, and those that stand in the rest of it."""
    calls: list[ToolCall] = []
    around: list[str] = []
    value, end = first or ([], 0)
    for item in value if isinstance(value, list) else [value]:
        around += _add_json(calls, item)
    # Further calls count as well: a text that lists several must not pass for its first.
    for value, start, next_end in _further_calls(text, end):
        around += [text[end:start], *_add_json(calls, value)]
        end = next_end
    around.append(text[end:])
    if not calls and OPEN in text:
        raise CallFault("malformed_call", f"no JSON object in {OPEN}")
    if not calls:
        raise CallFault("no_call", "no JSON object that is a call")
    return ParsedCalls(calls, _joined(around))


def _further_calls(text: str, position: int) -> Iterator[tuple[Any, int, int]]:
    """The objects from `position` on that mean to be a call, each with its start and end; other braces are text.

    Raises CallFault where one that begins like a call is broken, or where there are too many objects to look at them all.
    """
    looks = 0
    while (start := text.find("{", position)) >= 0:
        begun = _CALL_START.match(text, start)
        if not begun and not _OBJECT_START.match(text, start):
            position = start + 1
            continue
        looks += 1
        if looks > MAX_LOOKS:
            raise CallFault("malformed_call", f"more than {MAX_LOOKS} objects in the text round the call")
        try:
            value, end = _decode(text, start)
        except CallFault:
            if begun:
                raise
            position = start + 1
            continue
        if isinstance(value, dict) and _means_a_call(value):
            yield value, start, end
        position = end


def _means_a_call(value: dict[str, Any]) -> bool:
    """Rightly or wrongly written: also part of a call, or one wrapped up in something else."""
    keys = value.keys()
    if isinstance(value.get("function"), dict) or "tool_calls" in keys:
        return True
    return (
        (bool(keys) and keys <= _CALL_KEYS)
        or keys == _LLAMA_KEYS
        or any(inner.keys() >= _CALL_KEYS for inner in _objects(value))
    )


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """`value` and all in it that are objects; no deeper than what `_decode` lets pass."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(inner)


def _joined(parts: list[str]) -> str:
    return " ".join(stripped for part in parts if (stripped := part.strip()))


def _add(calls: list[ToolCall], call: ToolCall) -> None:
    if len(calls) == MAX_CALLS:
        raise CallFault("extra_call", f"more than {MAX_CALLS} calls")
    calls.append(call)


def _add_json(calls: list[ToolCall], value: Any) -> list[str]:
    """Add the calls of a value in one of the json forms; the text that a message has beside them."""
    if not isinstance(value, dict) or "tool_calls" not in value:
        _add(calls, as_json_call(value))
        return []
    if value.keys() - _MESSAGE_KEYS:
        raise CallFault("malformed_call", "a message with more keys than `role`, `content` and `tool_calls`")
    if not isinstance(value["tool_calls"], list):
        raise CallFault("malformed_call", f"`tool_calls` is {_json_type(value['tool_calls'])}, not a list")
    for item in value["tool_calls"]:
        _add(calls, as_json_call(item))
    content = value.get("content")
    if content is not None and not isinstance(content, str):
        raise CallFault("malformed_call", f"`content` is {_json_type(content)}, not a string")
    _refuse_bare_calls(content or "", "`tool_calls`")
    return [content or ""]


def as_json_call(value: Any) -> ToolCall:
    """`value` as a call, bare or as OpenAI's API has it. Raises CallFault, as `as_call` does."""
    if not isinstance(value, dict) or "function" not in value or "name" in value:
        return as_call(value)
    if value.keys() - _WRAPPER_KEYS:
        raise CallFault("malformed_call", "a call with more keys than `id`, `type` and `function`")
    if value.get("type", "function") != "function":
        raise CallFault("malformed_call", "`type` of a call is not `function`")
    function = value["function"]
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        function = {**function, "arguments": strict_json(function["arguments"])}
    return as_call(function)


def as_call(value: Any) -> ToolCall:
    """`value` as a bare call. Raises CallFault with `not_an_object`, `encoded_arguments` or `malformed_call`."""
    if not isinstance(value, dict):
        raise CallFault("not_an_object", f"a call is {_json_type(value)}, not an object")
    for key in ("name", "arguments"):
        if key not in value:
            raise CallFault("malformed_call", f"a call without `{key}`")
    if len(value) > 2:
        raise CallFault("malformed_call", "a call with more keys than `name` and `arguments`")
    name, arguments = value["name"], value["arguments"]
    if not isinstance(name, str):
        raise CallFault("malformed_call", f"`name` is {_json_type(name)}, not a string")
    if isinstance(arguments, str) and arguments.lstrip().startswith("{"):
        raise CallFault("encoded_arguments", "`arguments` is a string that holds JSON, not an object")
    if not isinstance(arguments, dict):
        raise CallFault("not_an_object", f"`arguments` is {_json_type(arguments)}, not an object")
    return ToolCall(name, arguments)


def _json_type(value: Any) -> str:
    names = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "null")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _decode(text: str, position: int) -> tuple[Any, int]:
    try:
        value, end = _DECODER.raw_decode(text, position)
    except _DuplicateKey as error:
        raise CallFault("duplicate_key", f"key {str(error)[:80]!r} twice in one object") from None
    except RecursionError:
        raise CallFault("malformed_call", f"nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise CallFault("malformed_call", str(error)[:200]) from None
    if deeper_than(value, MAX_DEPTH):
        raise CallFault("malformed_call", f"nested deeper than {MAX_DEPTH}")
    return value, end


class _DuplicateKey(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKey(key)
            seen.add(key)
    return value


def _integer(digits: str) -> int:
    value = int(digits) if len(digits) <= 20 else None
    if value is None or not -(2**63) <= value < 2**64:
        raise ValueError(f"integer out of range: {digits[:24]}")
    return value


def _number(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"number out of range: {digits[:24]}")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant
)
