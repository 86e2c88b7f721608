r"""Sides of an equation that only name what is asked for: x, a_1, f(3), |A|, \angle ABC, the area, m+n.

A side that says something about an unknown instead, "2x", "x-1", "-x", "x^2", gives it a value of its own beside the one on
the last side. A digit may stand in a subscript or an argument, nowhere else.
"""

from __future__ import annotations

import re
from functools import lru_cache

from headrace.verifiers.math_form import FONT, without_fonts
from headrace.verifiers.math_inside import is_refused, words

_GREEK = (
    r"\\(?:alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|upsilon|phi"
    r"|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega|ell|hbar)(?![A-Za-z])"
)
_FUNCTION = (
    r"\\(?:sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|lg|exp|det|dim|deg|ker|arg|gcd|lcm|max|min|sup|inf|Pr"
    r"|Re|Im|operatorname\s*\{[A-Za-z]+\})(?![A-Za-z])"
)
_SUBSCRIPT = r"(?:_(?:\{[^{}]*\}|[A-Za-z0-9]|\\[A-Za-z]+))?"
_MARKS = r"(?:'|\^\{?\s*(?:\\prime|\*|\\circ)\s*\}?)*"
_SYMBOL = rf"(?:{_GREEK}|[A-Za-z])"
_NUMBER = r"(?:[0-9]+(?:\.[0-9]+)?(?:/[0-9]+)?|\\frac\{[0-9]+\}\{[0-9]+\})"
_POINT = rf"(?:[A-Z]{{2,6}}|{_SYMBOL}{_SUBSCRIPT}|{_NUMBER})"
# An argument: a point, or a symbol moved by one; "2k" is a case and no point.
_ARGUMENT = rf"\s*-?\s*{_POINT}(?:\s*[-+]\s*{_POINT})?\s*"
_PLAIN_ARGUMENTS = rf"\({_ARGUMENT}(?:[,;]{_ARGUMENT})*\)"
_ARGUMENTS = rf"\((?:{_ARGUMENT}|[A-Za-z]{_PLAIN_ARGUMENTS})(?:[,;]{_ARGUMENT})*\)"
_EVENT = r"\([A-Za-z ,|=<>]{1,60}(?:\\(?:cap|cup|mid|le|ge|leq|geq)\s[A-Za-z ]{1,20}|\s?[0-9]{1,9})?\)"
_APPLIED = re.compile(
    rf"(?:(?P<head>[A-Za-z])|{_GREEK}|{_FUNCTION}|[A-Za-z]{{2,10}}){_SUBSCRIPT}{_MARKS}(?:\^\{{-1\}}|\^\{{\([0-9a-z]\)\}})?\s*"
    rf"(?P<arguments>{_ARGUMENTS})|[Pn]{_SUBSCRIPT}{_EVENT}|{_FUNCTION}{_SUBSCRIPT}\s*(?:{_SYMBOL}|{_NUMBER}(?:\s*\^\s*\\circ)?)"
)
_PLACE = re.compile(
    r"(?:m\s*)?\\(?:angle|measuredangle|triangle|overline|overrightarrow|vec|hat|bar|widehat|tilde|dot|ddot)(?![A-Za-z])\s*"
    rf"(?:\{{\s*[A-Za-z ]{{1,8}}\s*\}}|{_GREEK}|[A-Za-z ]{{1,8}})|\[[A-Z]{{3,8}}\]"
    r"|(?:E|\\mathbb\s*\{E\})\s*\[[A-Za-z]\]|\\\|\s*\\?[A-Za-z]{1,10}\s*\\\|"
    # Not |x|: that gives x two values.
    r"|\\?\|\s*(?:\\vec\s*\{?[a-z]\}?|[A-Z]{1,4}(?:\s*\\(?:cap|cup|setminus|times)\s*[A-Z])?|[zw])\s*\\?\||\\lvert\s*(?:[A-Z]{1,4}|[zw])\s*\\rvert"
    r"|\\frac\s*\{d\^?[0-9]?[a-z]*\}\s*\{d[a-z]\^?[0-9]?\}"
)
_NOUN = re.compile(r"(?!([A-Za-z])\1)[A-Za-z]{4,20}")  # "xx" is a square
_TERM = re.compile(rf"{_SYMBOL}{_SUBSCRIPT}{_MARKS}")
_KINDS = (_APPLIED, _PLACE, _NOUN, _TERM)
_JOIN = re.compile(r"\s*(?:[-+*/]|\\(?:cdot|times|div)(?![A-Za-z]))?\s*")
_QUOTIENT = re.compile(r"\\frac\s*\{([^{}\\0-9^]{1,20})\}\s*\{([^{}\\0-9^]{1,20})\}")
_PHRASE = re.compile(r"[A-Za-z][A-Za-z ,'-]{1,80}(?:\([A-Za-z ]{1,30}\))?")
_SO = re.compile(r"^\\(?:therefore|implies|Rightarrow)(?![A-Za-z])\s*")
_CONSTANTS = frozenset("ei")  # with one other symbol beside them numbers, else symbols like any


@lru_cache(maxsize=8192)
def is_name(side: str) -> bool:
    r"""Whether a side only names the unknown, without words that limit it.

    >>> is_name(r"f(3)"), is_name("m+n"), is_name(r"\text{Area}"), is_name("2x"), is_name(r"\text{odd case}")
    (True, True, True, False, False)
    """
    bare = without_fonts(side)
    said = words(side)
    # Only words can limit: the "o" and the "c" of a sum of symbols are none.
    if any(len(word) > 2 for word in said) and is_refused(said):
        return False
    if any(len(word) > 1 for word in _in_fonts(side)) and is_refused(_in_fonts(side)):
        return False
    label, colon, rest = bare.rpartition(":")
    if colon and _is_phrase(label):
        bare = rest.strip()
    bare = _SO.sub("", bare)
    return _is_term(bare) or _is_phrase(bare) or _is_combination(bare)


def _in_fonts(side: str) -> list[str]:
    return [word for match in FONT.finditer(side) for word in words(match[1])]


def _is_phrase(bare: str) -> bool:
    """Whether a side is words: the area, the length of AB."""
    text = re.sub(r"\\(?:triangle|angle|overline)(?![A-Za-z])\s*|[{}]", "", bare)
    return _PHRASE.fullmatch(text) is not None and re.search(r"(?!([A-Za-z])\1\1)[A-Za-z]{3}", text) is not None


def _is_term(bare: str) -> bool:
    """Whether a side is one symbol, place, or function at a point."""
    if _TERM.fullmatch(bare) or _PLACE.fullmatch(bare) or re.fullmatch(rf"[A-Z]{{2,8}}{_SUBSCRIPT}", bare):
        return True
    match = _APPLIED.fullmatch(bare)
    if match is None:
        return False
    # x(x+1) is a product.
    return match["head"] is None or match["head"] not in re.findall(r"[A-Za-z](?!\()", match["arguments"])


def _is_combination(bare: str) -> bool:
    """Whether a side is a sum, product or quotient of different symbols: nothing but a name for what they make together."""
    bare = _QUOTIENT.sub(r"\1 / \2", bare)
    terms, position = [], 0
    while position < len(bare):
        if terms:
            joined = _JOIN.match(bare, position)
            position = joined.end() if joined else position
        match = next((each for kind in _KINDS if (each := kind.match(bare, position)) is not None), None)
        if match is None or match.end() == position:
            return False
        terms.append(match.group().strip())
        position = match.end()
    if len(terms) < 2 or len(terms) != len(set(terms)):
        return False
    return len(terms) > 2 or not _CONSTANTS & set(terms)
