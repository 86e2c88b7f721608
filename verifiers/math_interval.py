r"""Inequalities as the intervals that they are: 1 < x \le 2 is (1,2]."""

from __future__ import annotations

import re

from headrace.verifiers.math_form import split_top

_RELATION = re.compile(r"\s*(?:\\(?P<named>leq?|geq?|lt|gt|leqslant|geqslant)(?![A-Za-z])|(?P<sign>[<>]=?))\s*")
_OR = re.compile(
    r"\s*(?:\\(?:text|mathrm|mbox)\s*\{\s*,?\s*or\s*\}|(?<![A-Za-z\\])or(?![A-Za-z])|\\cup(?![A-Za-z]))\s*"
)
_VARIABLE = re.compile(r"\\(?:theta|alpha|beta|lambda|mu|phi|varphi|omega)|[A-Za-z](?:_\{?[0-9A-Za-z]\}?)?")
_UNION = re.compile(r"\s*\\cup(?![A-Za-z])\s*")
_INTERVAL = re.compile(r"[(\[].+,.+[)\]]", re.DOTALL)


def is_interval(text: str) -> bool:
    """Whether a cleaned text is written as an interval or a union of them."""
    return all(_INTERVAL.fullmatch(part.strip()) for part in split_top(text, _UNION))


def as_interval(text: str) -> str | None:
    r"""The interval, or union of them, that the inequalities of a cleaned text are; None where it is not that.

    >>> as_interval(r"1 < x \le 2"), as_interval(r"x < 1 \text{ or } 3 \le x"), as_interval("2x < 1")
    ('(1,2]', '(-\\infty,1) \\cup [3,\\infty)', None)
    """
    read = [_read(part) for part in split_top(text, _OR)]
    intervals = [each[1] for each in read if each is not None]
    if len(intervals) != len(read) or len({each[0] for each in read if each is not None}) != 1:
        return None
    return r" \cup ".join(intervals)


def _read(text: str) -> tuple[str, str] | None:
    """The unknown of one chain of inequalities and the interval that it lies in."""
    signs = [(match["named"] or match["sign"]) for match in _RELATION.finditer(text)]
    parts = [part.strip() for part in split_top(text, _RELATION)]
    if len(signs) not in (1, 2) or len(parts) != len(signs) + 1 or not all(parts) or any("," in part for part in parts):
        return None
    if len({sign[0] in "g>" for sign in signs}) != 1:
        return None
    if signs[0][0] in "g>":
        parts, signs = parts[::-1], signs[::-1]
    closed = ["e" in sign or "=" in sign for sign in signs]
    places = range(2) if len(parts) == 2 else (1,)
    place = next((at for at in places if _VARIABLE.fullmatch(parts[at])), None)
    if place is None:
        return None
    low = ("[" if closed[0] else "(") + parts[place - 1] if place else r"(-\infty"
    high = parts[place + 1] + ("]" if closed[place] else ")") if place + 1 < len(parts) else r"\infty)"
    return parts[place], f"{low},{high}"
