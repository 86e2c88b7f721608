"""Whether an answer is gold, by its form first and by math-verify where the form does not settle it.

Gold decides what is asked for: a number, a list of numbers, a word, or an expression. A number is compared as a fraction, a
word as a word. An expression, an interval, a matrix, an equation goes to math-verify, behind guards for what that lets
pass: see `symbolic_match`.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

import msgspec

from headrace.verifiers.math_form import (
    FONT,
    approximations,
    clean,
    compact,
    names_unknown,
    sides,
    without_fonts,
)
from headrace.verifiers.math_inside import limits_expression, limits_quantity
from headrace.verifiers.math_interval import as_interval, is_interval
from headrace.verifiers.math_names import is_name
from headrace.verifiers.math_quantity import (
    Listing,
    Matrix,
    Quantity,
    read_list,
    read_matrix,
    read_quantity,
    same_quantity,
    same_unit,
)

_WORD = re.compile(r"[A-Za-z][A-Za-z]*(?:[ '-]+[A-Za-z]+)*")
_FONTED = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mbox)\b")
_SYMBOL_WORD = re.compile(r"[A-Za-z]{1,2}|(?:sqrt|sin|cos|tan|log|ln|exp|pi|inf)")
_CHOICE = re.compile(r"\(?([A-Z])\)?[).:]?")
_HEDGES = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|either|otherwise|unless|if|else|depending|assuming|not|guess|alternatively|neither)\b"
    r"|\?|\\(?:ne|neq|not|phantom|hphantom|vphantom|cancel|bcancel|xcancel|sout|color|textcolor|mid)(?![A-Za-z])",
    re.IGNORECASE,
)
_DIGITS_IN_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|textrm)\s*\{[^{}]*[0-9][^{}]*\}")
_OPERATIONS = re.compile(
    r"\\(?:int|iint|oint|sum|prod|lim|limsup|liminf|max|min|sup|inf|binom|dbinom|tbinom|choose|gcd|lcm|det|operatorname|frac\s*\{\s*d"
    r"|bmod|pmod|mod|partial|lfloor|lceil|arg)(?![A-Za-z])|!|\bmod\b"
)


class Outcome(msgspec.Struct, frozen=True):
    """Whether an answer is right, and the verdict's reason."""

    right: bool
    reason: str


MATCH = Outcome(True, "match")
WRONG = Outcome(False, "wrong_answer")


def compare(gold: str, given: str, *, evaluated: bool, units: bool) -> Outcome:
    """The outcome of one answer against gold, both as their authors wrote them.

    `evaluated`: a number is asked for as a number. `units`: two units that differ are an error.
    """
    gold, given = clean(gold), clean(given)
    if compact(gold) == compact(given):
        return MATCH
    if is_word(gold):
        return MATCH if _same_word(gold, given) else WRONG
    if _HEDGES.search(given) and not _HEDGES.search(gold):
        return Outcome(False, "hedged")
    outcome = _compare_math(gold, given, evaluated, units)
    if outcome.right and _is_limited(gold, given):
        return Outcome(False, "hedged")
    return outcome


def _compare_math(gold: str, given: str, evaluated: bool, units: bool) -> Outcome:
    if is_interval(gold):
        given = as_interval(given) or given
    number = _value_of(gold)
    if number is not None:
        return _compare_number(number, gold, given, evaluated, units)
    listing = read_list(gold)
    if listing is not None and all(_value_of(element) is not None for element in listing.elements):
        return _compare_listing(listing, gold, given, evaluated)
    matrix, other = read_matrix(gold), read_matrix(sides(given)[-1]) if len(sides(gold)) == 1 else None
    if matrix is not None and other is not None and all(is_name(side) for side in sides(given)[:-1]):
        return MATCH if _same_matrix(matrix, other) else WRONG
    return _compare_expression(gold, given)


def _is_limited(gold: str, given: str) -> bool:
    """Whether words in a right answer are more than its units: a condition, a doubt, another answer in words."""
    listing = read_list(given)
    for element in listing.elements if listing is not None else (given,):
        for value in approximations(element if len(sides(gold)) > 1 else sides(element)[-1]):
            limits = limits_quantity if read_quantity(value) is not None else limits_expression
            if limits(gold, value):
                return True
    return False


def is_word(gold: str) -> bool:
    """Whether gold is a word or the letter of a choice, so that math has no say in it."""
    bare = without_fonts(gold).strip("() .")
    if not _WORD.fullmatch(bare):
        return False
    if _FONTED.search(gold) or (len(bare) == 1 and bare.isupper()):
        return True
    words = bare.split()
    spoken = _SYMBOL_WORD.fullmatch(bare) is None and re.search("[aeiouy]", bare, re.IGNORECASE) is not None
    return len(words) > 1 or spoken or bare.lower() == "no"


def _same_word(gold: str, given: str) -> bool:
    wanted, offered = without_fonts(gold).strip("() ."), without_fonts(given).strip(" .")
    if len(wanted) == 1:
        match = _CHOICE.match(offered)
        if match is None or match[1] != wanted:
            return False
        rest = offered[match.end() :]
        if not rest:
            return True
        ended = match.group()[-1] in ").:" and rest[0] in " $\\"
        return ended and not re.search(r"\([A-Z]\)|\b[B-Z]\)|\bor\b|\band\b|(?<![A-Za-z$])[B-HJ-Z](?![A-Za-z])", rest)
    fold = lambda text: " ".join(re.sub(r"[^A-Za-z0-9]+", " ", text).lower().split())  # noqa: E731
    return fold(wanted) == fold(offered) and re.search(r"[0-9^_=+*/<>]", offered) is None


def _value_of(text: str) -> Quantity | None:
    """The number that a gold text, or an element of it, is: as it stands or behind the name of the unknown."""
    parts = sides(text)
    if len(parts) > 1 and not all(is_name(part) for part in parts[:-1]):
        return None
    return read_quantity(parts[-1])


def _final_side(gold: str, given: str) -> str | Outcome:
    """The last side of a chain of equations whose other sides say nothing else."""
    parts, own = sides(given), {compact(side) for side in sides(gold)}
    for part in parts[:-1]:
        if is_name(part) or compact(part) in own:
            continue
        quantity, wanted = read_quantity(part), _value_of(gold)
        if quantity is not None and wanted is not None:
            if not same_quantity(wanted, quantity):
                return Outcome(False, "several_answers")
        elif not _is_calculation(sides(gold)[-1], part):
            return Outcome(False, "several_answers")
    return parts[-1]


def _is_calculation(gold: str, side: str) -> bool:
    """Whether a side works the answer out: 6 \\cdot 7, 6 boxes times 7 eggs; not what it says of an unknown, 2x."""
    bare = side if limits_quantity(gold, side) else FONT.sub(" ", side)
    if names_unknown(bare) and not _OPERATIONS.search(bare):
        return False
    return symbolic_match(gold, bare).right


def _compare_number(number: Quantity, gold: str, given: str, evaluated: bool, units: bool) -> Outcome:
    if (listing := read_list(given)) is not None and not (listing.kind == "set" and len(listing.elements) == 1):
        return Outcome(False, "several_answers")
    about = approximations(given)
    if len(about) > 1 and is_name(about[0]):  # x is about 42: one value
        about = about[1:]
        given = r"\approx ".join(about)
    if len(about) > 1:
        return _compare_approximation(number, about, units)
    side = _final_side(gold, given)
    if isinstance(side, Outcome):
        return side
    quantity = read_quantity(side)
    if quantity is None:
        if evaluated or _DIGITS_IN_TEXT.search(side):
            return Outcome(False, "not_a_number")
        return symbolic_match(sides(gold)[-1], side)
    if not same_quantity(number, quantity):
        return WRONG
    return MATCH if not units or same_unit(number, quantity) else Outcome(False, "wrong_unit")


def _compare_approximation(number: Quantity, about: list[str], units: bool) -> Outcome:
    """`a \\approx b`, where b must be a's rounding: otherwise they are two answers."""
    exact = sides(about[0])[-1]
    first, last = read_quantity(exact), read_quantity(about[-1])
    if len(about) > 2 or first is None or last is None or isinstance(_final_side(exact, about[0]), Outcome):
        return Outcome(False, "several_answers")
    places = len(str(about[-1]).partition(".")[2].rstrip())
    if round(first.value, places) != last.value:
        return Outcome(False, "several_answers")
    right = any(same_quantity(number, each) and (not units or same_unit(number, each)) for each in (first, last))
    return MATCH if right else WRONG


def _compare_listing(listing: Listing, gold: str, given: str, evaluated: bool) -> Outcome:
    """Numbers in a list: in order where gold has brackets that order, else as a set."""
    others = read_list(given)
    if others is None and listing.kind != "set":
        return WRONG
    offered = others.elements if others is not None else (given,)
    values = [_value_of(element) for element in offered]
    if any(value is None for value in values):
        return Outcome(False, "not_a_number") if evaluated else symbolic_match(gold, given)
    kind = others.kind if others is not None else ""
    ordered = listing.kind not in ("", "set")
    if ordered and kind not in (listing.kind, ""):
        return WRONG
    if not ordered and kind in ("[]", "(]", "[)"):
        return WRONG
    wanted = [(_name_of(element), _value_of(element)) for element in listing.elements]
    pairs = [(_name_of(element), value) for element, value in zip(offered, values, strict=True)]
    named = all(name for name, _ in wanted)
    if named and len({name for name, _ in wanted}) > 1 and not all(name for name, _ in pairs):
        ordered = True  # x = 1, y = 2 against 1, 2
    if (ordered or kind == "()") and len(pairs) == len(wanted):
        right = all(_same_element(*both) for both in zip(wanted, pairs, strict=True))
        return MATCH if right else WRONG
    if ordered:
        return WRONG
    inside = all(any(_same_element(each, other) for other in pairs) for each in wanted)
    covered = all(any(_same_element(each, other) for each in wanted) for other in pairs)
    return MATCH if inside and covered else WRONG


def _same_matrix(wanted: Matrix, offered: Matrix) -> bool:
    if [len(row) for row in wanted] != [len(row) for row in offered]:
        return False
    pairs = [pair for rows in zip(wanted, offered, strict=True) for pair in zip(*rows, strict=True)]
    return all(same_quantity(*pair) for pair in pairs)


def _name_of(element: str) -> str:
    parts = sides(element)
    return compact(parts[0]) if len(parts) > 1 else ""


def _same_element(wanted: tuple[str, Quantity | None], offered: tuple[str, Quantity | None]) -> bool:
    if wanted[0] and offered[0] and wanted[0] != offered[0]:
        return False
    return wanted[1] is not None and offered[1] is not None and same_quantity(wanted[1], offered[1])


# ------------------------------------------------------------------------------------------------ math-verify


def _compare_expression(gold: str, given: str) -> Outcome:
    asked = set(_OPERATIONS.findall(gold))
    if any(operation not in asked for operation in _OPERATIONS.findall(given)):
        return Outcome(False, "unevaluated")
    if _DIGITS_IN_TEXT.search(given):
        return Outcome(False, "hedged")
    about = approximations(given)
    if len(about) > 1 and len(approximations(gold)) == 1:
        if len(about) > 2 or not _is_rounding(about[1], sides(about[0])[-1]):
            return Outcome(False, "several_answers")
        given = about[0]
    if len(sides(gold)) == 1:
        parts = sides(given)
        for part in parts[:-1]:
            if not is_name(part) and not symbolic_match(gold, part).right:
                return Outcome(False, "several_answers")
        given = parts[-1]
    elif len(sides(given)) == 1 and is_name(sides(gold)[0]):
        gold = sides(gold)[-1]
    return symbolic_match(gold, given)


def _is_rounding(rounded: str, exact: str) -> bool:
    """Whether a decimal is an expression's value to as many places as it has."""
    number, expression = read_quantity(rounded), _parsed(exact)
    if (
        number is None
        or expression is None
        or not getattr(expression, "is_number", False)
        or expression.is_real is not True
    ):
        return False
    places = len(rounded.partition(".")[2].strip())
    return bool(
        abs(expression.evalf(places + 20) - number.value.numerator / _library().sympy.Integer(number.value.denominator))
        <= _library().sympy.Rational(1, 2 * 10**places)
    )


def symbolic_match(gold: str, given: str) -> Outcome:
    """What math-verify says of two expressions, less what it says too easily.

    That is: equations without unknowns, empty intervals, lists for a value, what has no value. Its time limits are off:
    they work by signals and do not stop C code; the process has one that does.
    """
    wanted, offered = _parsed(gold), _parsed(given)
    if wanted is None or offered is None:
        return WRONG
    sympy = _library().sympy
    relation, empty = sympy.core.relational.Relational, sympy.S.EmptySet
    listed = (sympy.FiniteSet, sympy.Tuple)
    if offered in (sympy.nan, sympy.zoo):
        return WRONG
    if isinstance(wanted, relation) and isinstance(offered, relation) and wanted.free_symbols != offered.free_symbols:
        return WRONG
    if isinstance(offered, listed) and not isinstance(wanted, (*listed, sympy.Set)) and len(offered.args) != 1:
        return Outcome(False, "several_answers")
    if (wanted == empty) != (offered == empty) or (wanted == empty and not _EMPTY.search(gold)):
        return WRONG
    right = _library().verify(wanted, offered, timeout_seconds=None)
    return MATCH if right else WRONG


_EMPTY = re.compile(r"\\emptyset|\\\{\s*\\\}")


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Any | None:
    """The expression that a text is, None where it cannot be read as one."""
    library = _library()
    # Dollars would end the formula; a currency sign says nothing here.
    formula = text.replace("$", "")
    found = library.parse(f"${formula}$", extraction_config=library.config, parsing_timeout=None)
    return found[0] if found and not isinstance(found[0], str) else None


class _Library(msgspec.Struct, frozen=True):
    parse: Any
    verify: Any
    config: Any
    sympy: Any


@lru_cache(maxsize=1)
def _library() -> _Library:
    # The package is an extra, and takes seconds to load: only the process that checks does.
    import math_verify
    import sympy

    # It warns of the very thing that is done on purpose here, time limits switched off, and logs each text it cannot read.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    config = [math_verify.LatexExtractionConfig(boxed_match_priority=-1)]  # boxes are opened before
    return _Library(math_verify.parse, math_verify.verify, config, sympy)


def warm_up() -> None:
    """Load all that a check may load while it runs; a confined process cannot open files."""
    _library()
    for gold, given in _WARM_UP:
        symbolic_match(gold, given)
    _parsed.cache_clear()


_WARM_UP = (
    (r"\frac{1}{3}+\sqrt{2}", r"\sqrt{2}+1/3"), ("x^2-1", "(x-1)(x+1)"), (r"\{1,x\}", r"\{x,1\}"),
    ("(1,2]", "[1,2]"), ("x<2", "2>x"), (r"(-\infty,0)\cup(1,\infty)", r"(1,\infty)\cup(-\infty,0)"),
    ("y=2x+1", "2y=4x+2"), ("x^2=4", "x^2-4=0"), ("x^2>4", "4<x^2"),
    (r"\begin{pmatrix}1&x\\0&1\end{pmatrix}", r"\begin{bmatrix}1&x\\0&2\end{bmatrix}"), (r"\sin^2 x+\cos^2 x", "1"),
    (r"e^{i\pi}", "-1"), (r"\log_2 8", "3"), (r"\int_0^1 x^2 dx", r"\frac{1}{3}"),
    (r"\sum_{i=1}^{n} i", r"\frac{n(n+1)}{2}"), (r"\lim_{x\to 0}\frac{\sin x}{x}", "1"),
    (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"), ("5!", "120"), (r"|x|", r"\sqrt{x^2}"), ("x<2", r"(-\infty,2)"),
    ("1<x<2", "(1,2)"), (r"\frac{d}{dx}x^2", "2x"), (r"\arctan 1", r"\frac{\pi}{4}"), (r"\lfloor 3.5\rfloor", "3"),
    (r"\prod_{i=1}^{3} i", "6"), ("0.5x", r"\frac{x}{2}"), (r"\sqrt[3]{2}", "2^{1/3}"),
)  # fmt: skip
