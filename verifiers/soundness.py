"""Verdicts made sound: a verifier may be anybody's, and what it gives is read by other processes and recorded as JSON."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from headrace.verifiers.base import Verifier, not_run, printable, shown
from headrace.verifiers.records import Sample, Verdict, VerdictKind, decode, encode


def judged(verifier: Verifier, samples: Sequence[Sample]) -> list[Verdict]:
    """The verifier's verdicts, each of them sound. Where they are not as many as the samples, nobody knows whose they are:
    `verdicts_missing` for each."""
    name = f"verifier {type(verifier).__name__}"
    given: Any = verifier.verify_many(samples)
    verdicts = list(given) if isinstance(given, Iterable) else None
    if verdicts is None or len(verdicts) != len(samples):
        told = _told(given) if verdicts is None else f"{len(verdicts)} verdicts"
        return [not_run("verdicts_missing", message=f"{name} gave {told} for {len(samples)} samples")] * len(samples)
    return [sound(verdict, name) for verdict in verdicts]


def sound(verdict: Any, giver: str = "the verifier") -> Verdict:
    """The verdict as another process reads it, its reward a float; `bad_reward` in place of one that is none.

    >>> sound(Verdict(VerdictKind.PASS, True, "match")).reward
    1.0
    >>> sound(Verdict(VerdictKind.PASS, 7, "match"), "mine").details
    {'message': 'mine gave a verdict whose reward is 7, not in [0, 1]'}
    """
    return verdict if _surely_sound(verdict) else _made_sound(verdict, giver)


def _surely_sound(verdict: Any) -> bool:
    """Whether nothing has to be encoded to tell: so for nearly every verdict of a cheap check."""
    return (
        type(verdict) is Verdict
        and type(verdict.kind) is VerdictKind
        and type(verdict.reward) is float
        and 0.0 <= verdict.reward <= 1.0
        and type(verdict.reason) is str
        and verdict.reason.isascii()  # no lone surrogate, which cannot be encoded
        and type(verdict.details) is dict
        and not verdict.details
    )


def _made_sound(verdict: Any, giver: str) -> Verdict:
    try:
        if not isinstance(verdict, Verdict):
            return not_run("bad_reward", message=f"{giver} gave {_told(verdict)}, not a Verdict")
        reward = 0.0 if verdict.kind == VerdictKind.INFRA_ERROR else plain_number(verdict.reward)
        if not is_reward(reward):
            message = f"{giver} gave a verdict whose reward is {shown(verdict.reward)}, not in [0, 1]"
            return not_run("bad_reward", message=message)
        read = decode(encode(msgspec.structs.replace(verdict, reward=float(reward))), Verdict)
        msgspec.json.encode(read)  # as it is recorded
    except Exception as error:  # noqa: BLE001 (its values are anybody's, with methods of their own)
        message = f"{giver} gave a verdict that cannot be read: {printable(text_of(error))}"
        return not_run("bad_reward", message=message)
    return read


def _told(value: Any) -> str:
    return f"{shown(value)} ({type(value).__name__})"


def plain_number(value: Any) -> Any:
    """A number of numpy's as Python's own. Whoever returns one has loaded numpy; nobody else needs it here."""
    numpy = sys.modules.get("numpy")
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value


def is_reward(value: Any) -> bool:
    return isinstance(value, numbers.Real) and bool(value <= 1 and not value < 0)


def text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 (an exception class of the user's may fail at its own text)
        return "(it has no text)"
