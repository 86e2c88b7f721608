"""The one JSON object in a completion's text."""

from __future__ import annotations

import json
import re
from typing import Any

from headrace.verifiers.call_forms import CallFault, strict_json

MAX_TEXT = 50_000  # characters
MAX_LOOKS = 64  # braces that are tried as the start of an object
_STARTS = re.compile(r'\{\s*"')


class NoObject(Exception):
    """`reason`: `no_object`, `several_objects`, `malformed`, `duplicate_key`, `too_large`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_object(text: str) -> dict[str, Any]:
    """The text's JSON object, whatever stands around it. Raises NoObject where there is none, or more than one.

    >>> read_object('They want {"date": "2026-11-20"}.')
    {'date': '2026-11-20'}
    """
    if len(text) > MAX_TEXT:
        raise NoObject("too_large", f"the text has {len(text)} characters; at most {MAX_TEXT} are read")
    found: list[str] = []
    at, looks = text.find("{"), 0
    while at >= 0:
        looks += 1
        if looks > MAX_LOOKS:
            raise NoObject("malformed", f"more than {MAX_LOOKS} braces")
        end = _end_of_object(text, at)
        if end is not None:
            found.append(text[at:end])
        elif _STARTS.match(text, at):  # what begins like an object is an answer too
            raise NoObject("malformed", f"what begins at character {at} is no JSON object")
        at = text.find("{", at + 1 if end is None else end)
    if len(found) > 1:
        raise NoObject("several_objects", f"{len(found)} objects")
    if not found:
        raise NoObject("no_object", "no JSON object")
    try:
        value = strict_json(found[0])
    except CallFault as fault:
        raise NoObject("duplicate_key" if fault.reason == "duplicate_key" else "malformed", str(fault)) from fault
    return value


def _end_of_object(text: str, start: int) -> int | None:
    """Where the object that starts at `start` ends; None where there is none that reads as JSON of any kind."""
    try:
        _, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return end


_DECODER = json.JSONDecoder()
