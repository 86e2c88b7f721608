"""Rewards for benchmarks, as plain functions of a completion and its row: Headrace and TRL are given the same file.

[reward]
function = "benchmarks/rewards.py:booking"
"""

from __future__ import annotations

import hashlib
import json
from typing import Any


def booking(completion: str, row: dict[str, Any]) -> float:
    """The booking task: 0.2 for a call, 0.2 for the right tool, 0.6 by the share of gold arguments that are right.

    Lengths are fixed in a benchmark, so a model cannot stop after its call: what follows the call is not looked at.
    """
    try:
        call, _ = json.JSONDecoder().raw_decode(completion[completion.index("{") :])
    except ValueError:
        return 0.0
    if not isinstance(call.get("name"), str) or not isinstance(call.get("arguments"), dict):
        return 0.0
    gold = row["answer"][0]
    if call["name"] != gold["name"]:
        return 0.2
    right = sum(call["arguments"].get(name) == value for name, value in gold["arguments"].items())
    return 0.4 + 0.6 * right / len(gold["arguments"])


def distinct(completion: str, row: dict[str, Any]) -> float:
    """A number in [0, 1) drawn from the completion's hash: no two samples of a group agree, so none can be skipped."""
    return int.from_bytes(hashlib.sha256(completion.encode()).digest()[:6], "big") / 2**48
