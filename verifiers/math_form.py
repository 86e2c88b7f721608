"""How an answer is written: its text in one spelling, and chains of equations; `math_quantity.py` has numbers and lists."""

from __future__ import annotations

import re
from functools import lru_cache

_PAIRS = (
    ("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("\\cfrac", "\\frac"), ("\\displaystyle", " "), ("\\!", ""),
    ("{,}", ","), ("\\lbrace", "\\{"), ("\\rbrace", "\\}"), ("\\lbrack", "["), ("\\rbrack", "]"), ("−", "-"), ("–", "-"),
    ("×", "\\times "), ("÷", "/"), ("·", "\\cdot "), ("π", "\\pi "), ("∞", "\\infty "), ("≤", "\\le "), ("≥", "\\ge "),
    ("°", "^\\circ "), ("√", "\\sqrt "), ("∪", "\\cup "), ("∩", "\\cap "), ("∈", "\\in "), ("∅", "\\emptyset "),
    ("≈", "\\approx "), ("≠", "\\ne "), ("±", "\\pm "), ("\\%", "%"), ("\\degree", "^\\circ "), ("^{\\circ}", "^\\circ "),
    ("\\lor", "\\text{ or }"), ("\\vee", "\\text{ or }"), ("∨", "\\text{ or }"), ("\\land", "\\text{ and }"),
    ("\\wedge", "\\text{ and }"), ("\\$", "$"), ("\\varnothing", "\\emptyset"),
)  # fmt: skip
_COMMAND_PAIRS = tuple(
    # A command's name ends where letters do, and a double backslash ends a row.
    (
        re.compile(
            (r"(?<!\\)" if old[0] == "\\" else "") + re.escape(old) + (r"(?![A-Za-z])" if old[-1].isalpha() else "")
        ),
        new,
    )
    for old, new in _PAIRS
)
_SIZES = re.compile(
    r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr|mleft|mright)(?![A-Za-z])\s*\.?(?=[\\()\[\]{}|.]|$)"
)
_SPACES = re.compile(r"(?<!\\)\\(?:[;: ]|quad|qquad|hspace\{[^{}]*\}|newline)|~|\s+")
_THOUSANDS = re.compile(r"(?<=[0-9]),\\! ?(?=[0-9]{3}(?![0-9]))")
_FRACTION_DIGITS = re.compile(r"\\frac\s*([0-9])\s*([0-9])(?![0-9])")
_FRACTION_HALF = re.compile(r"\\frac\s*([0-9])\s*\{")
FONT = re.compile(
    r"\\(?:mathbf|mathit|mathrm|mathsf|boldsymbol|bm|textbf|textit|textrm|text|mbox|operatorname)\s*\{([^{}]*)\}"
)


@lru_cache(maxsize=8192)
def clean(text: str) -> str:
    """LaTeX with one spelling for each thing: no sizes, no dollars around, single spaces, ASCII for Unicode's signs.

    >>> clean(r"$\\left( \\dfrac12,\\; 3\\right)$.")
    '( \\\\frac{1}{2}, 3)'
    """
    text = _THOUSANDS.sub(",", text.strip())
    for old, new in _COMMAND_PAIRS:
        text = old.sub(lambda _, new=new: new, text)
    text = _SIZES.sub("", text)
    text = re.sub(r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))", ",", text).replace("\\,", " ")
    text = re.sub(" +", " ", _SPACES.sub(" ", text))
    text = _FRACTION_DIGITS.sub(r"\\frac{\1}{\2}", text)
    text = _FRACTION_HALF.sub(r"\\frac{\1}{", text).strip()
    text = text.rstrip(".").strip() if not text.endswith("..") else text
    while (inner := _inside(text)) is not None:
        text = inner.strip()
    return text


def _inside(text: str) -> str | None:
    """What is in the dollars, parentheses of math mode, or braces that hold all of the text."""
    for opening, closing in (("$$", "$$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if len(text) > len(opening) * 2 and text.startswith(opening) and text.endswith(closing):
            middle = text[len(opening) : -len(closing)]
            if opening not in middle and closing not in middle:
                return middle
    if len(text) > 2 and text[0] == text[-1] == "$" and "$" not in text[1:-1]:
        return text[1:-1]
    if len(text) > 2 and text[0] == "{" and text[-1] == "}" and "{" not in text[1:-1] and "}" not in text[1:-1]:
        return text[1:-1]
    return None


def compact(text: str) -> str:
    """A cleaned text without its spaces, for comparison as text; spaces between digits and letters stay."""
    return re.sub(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])", "", text)


def without_fonts(text: str) -> str:
    r"""The text of `\text{...}` and its like, bare.

    >>> without_fonts(r"\text{(A)}")
    '(A)'
    """
    previous = ""
    while previous != text:
        previous, text = text, FONT.sub(r"\1", text)
    return text.strip()


def split_top(text: str, separator: re.Pattern[str]) -> list[str]:
    """The parts of a text between separators that are in no bracket."""
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        if depth <= 0 and (match := separator.match(text, position)) and match.end() > position:
            parts.append(text[start:position])
            start = position = match.end()
            continue
        character = text[position]
        if character == "\\" and text[position + 1 : position + 2] not in ("{", "}"):
            position += 2
            continue
        if character == "\\":
            position += 1
            character = text[position]
        depth += (character in "([{") - (character in ")]}")
        position += 1
    return [*parts, text[start:]]


# ------------------------------------------------------------------------------------------------ equations

_EQUALS = re.compile(r"(?<![<>!])=")
_ABOUT = re.compile(r"\\(?:approx|simeq|doteq)(?![A-Za-z])")
_IN = re.compile(r"^\s*\\?[A-Za-z]\w*\s*\\in(?![A-Za-z])")


def sides(text: str) -> list[str]:
    """The sides of a chain of equations, left to right; the text alone where it is none."""
    return [part.strip() for part in split_top(_IN.sub("", text), _EQUALS)]


def approximations(text: str) -> list[str]:
    r"""What stands on the sides of `\approx`."""
    return [part.strip() for part in split_top(text, _ABOUT)]


def names_unknown(side: str) -> bool:
    """Whether a side holds an unknown, so that it says something about it and gives no value."""
    return re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", without_fonts(side))) is not None
