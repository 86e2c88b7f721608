r"""Marks that math-verify reads over, put where it sees them: y', A^T, f^{-1}(x), f^{(3)}(x).

What is marked becomes another symbol: the same mark on both sides is the same symbol, and a missing one another. Not every
name is one that the library reads; "transpose" is none.
"""

from __future__ import annotations

import re

_PRIMED = re.compile(r"(?<![A-Za-z\\])([A-Za-z])\s*(?:('+)|\^\s*\{?\s*((?:\\prime\s*)+)\}?)")
_DERIVED = re.compile(r"(?<![A-Za-z\\])([A-Za-z])\s*\^\s*\{\s*\(\s*([1-9]|[kmnr])\s*\)\s*\}")
_INVERSE = re.compile(r"(?<![A-Za-z\\])([fghFGH])\s*\^\s*\{\s*-\s*1\s*\}(?=\s*\()")
_TOP = r"\\(?:top|intercal)(?![A-Za-z])|\\(?:mathsf|mathrm|text)\s*\{\s*T\s*\}"
_T = rf"\^\s*(?:T|\{{\s*T\s*\}}|\{{\s*(?:{_TOP})\s*\}}|{_TOP})"
_TRANSPOSED = re.compile(rf"(?<![A-Za-z\\])([A-Z]|[uvwxy])\s*{_T}")
_ANY_MARK = re.compile(rf"'|\\prime(?![A-Za-z])|\^\s*\{{?\s*(?:{_TOP})")


def marked(text: str) -> str:
    r"""The text with each marked symbol under a name of its own.

    >>> marked("f'(x) + A^T")
    'f_{prime}(x) + A_{flipped}'
    >>> marked("f^{(2)}(x)") == marked("f''(x)")
    True
    """
    text = _PRIMED.sub(lambda match: _primes(match[1], len(match[2]) if match[2] else match[3].count("prime")), text)
    text = _DERIVED.sub(_derivative, text)
    text = _INVERSE.sub(r"\1_{inverse}", text)
    return _TRANSPOSED.sub(r"\1_{flipped}", text)


def lost_marks(text: str) -> int:
    """How many marks are left that nobody would see, such as the prime of (fg)'."""
    return len(_ANY_MARK.findall(marked(text)))


def _primes(symbol: str, count: int) -> str:
    return f"{symbol}_{{{'prime' * count}}}"


def _derivative(match: re.Match[str]) -> str:
    if match[2].isdigit():
        return _primes(match[1], int(match[2]))
    return f"{match[1]}_{{derivative{match[2]}}}"
