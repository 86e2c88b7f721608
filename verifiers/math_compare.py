"""Whether an answer is gold, by its form first and by math-verify where the form does not settle it.

Gold decides what is asked for: a number, a list of numbers, a word, or an expression. A number is compared as a fraction, a
word as a word. An expression, an interval, a matrix, an equation goes to math-verify, behind guards for what that lets
pass: see `symbolic_match`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

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
from headrace.verifiers.math_library import MATCH, WRONG, Outcome, library, parsed, symbolic_match
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
    unit_behind,
)

WRONG_UNIT = Outcome(False, "wrong_unit")
_Element = tuple[str, Quantity | None]  # of a list: the name that it is given, and its value

_WORD = re.compile(r"[A-Za-z][A-Za-z]*(?:[ '-]+[A-Za-z]+)*")
_FONTED = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mbox)\b")
_SYMBOL_WORD = re.compile(r"[A-Za-z]{1,2}|(?:sqrt|sin|cos|tan|log|ln|exp|pi|inf)")
_CHOICE = re.compile(r"\(?([A-Z])\)?[).:]?")
_HEDGES = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|either|otherwise|unless|if|else|depending|assuming|not|guess|alternatively|neither)\b"
    r"|\?|\\(?:ne|neq|not|phantom|hphantom|vphantom|cancel|bcancel|xcancel|sout|color|textcolor|mid)(?![A-Za-z])",
    re.IGNORECASE,
)
_INEQUALITY = re.compile(r"[<>]|\\(?:l|g)(?:t|e|eq|eqslant|eqq)(?![A-Za-z])|\\(?:ne|neq)(?![A-Za-z])")
_JOINED = re.compile(r"(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])")
_DIGITS_IN_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|textrm)\s*\{[^{}]*[0-9][^{}]*\}")
_OPERATIONS = re.compile(
    r"\\(?:int|iint|oint|sum|prod|lim|limsup|liminf|max|min|sup|inf|binom|dbinom|tbinom|choose|gcd|lcm|det|operatorname|frac\s*\{\s*d"
    r"|bmod|pmod|mod|partial|lfloor|lceil|arg)(?![A-Za-z])|!|\bmod\b"
)


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
    if outcome.right and units and _differ(unit_behind(gold), unit_behind(given)):
        return WRONG_UNIT
    return outcome


def _differ(unit: str, other: str) -> bool:
    """Whether both are there, and not the same."""
    return bool(unit and other and unit != other)


def _compare_math(gold: str, given: str, evaluated: bool, units: bool) -> Outcome:
    if is_interval(gold):
        given = as_interval(given) or given
    number = _value_of(gold)
    if number is not None:
        return _compare_number(number, gold, given, evaluated, units)
    listing = read_list(gold)
    if listing is not None and all(_value_of(element) is not None for element in listing.elements):
        return _compare_listing(listing, gold, given, evaluated, units)
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
    return MATCH if not units or same_unit(number, quantity) else WRONG_UNIT


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


def _compare_listing(listing: Listing, gold: str, given: str, evaluated: bool, units: bool) -> Outcome:
    """Numbers in a list: in order where gold has brackets that order, else as a set."""
    outcome = _compare_elements(listing, gold, given, evaluated, _same_element)
    if outcome.right and units and not _compare_elements(listing, gold, given, evaluated, _same_with_unit).right:
        return WRONG_UNIT
    return outcome


def _compare_elements(
    listing: Listing, gold: str, given: str, evaluated: bool, same: Callable[[_Element, _Element], bool]
) -> Outcome:
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
        right = all(same(*both) for both in zip(wanted, pairs, strict=True))
        return MATCH if right else WRONG
    if ordered:
        return WRONG
    inside = all(any(same(each, other) for other in pairs) for each in wanted)
    covered = all(any(same(each, other) for each in wanted) for other in pairs)
    return MATCH if inside and covered else WRONG


def _same_matrix(wanted: Matrix, offered: Matrix) -> bool:
    if [len(row) for row in wanted] != [len(row) for row in offered]:
        return False
    pairs = [pair for rows in zip(wanted, offered, strict=True) for pair in zip(*rows, strict=True)]
    return all(same_quantity(*pair) for pair in pairs)


def _name_of(element: str) -> str:
    parts = sides(element)
    return compact(parts[0]) if len(parts) > 1 else ""


def _same_element(wanted: _Element, offered: _Element) -> bool:
    if wanted[0] and offered[0] and wanted[0] != offered[0]:
        return False
    return wanted[1] is not None and offered[1] is not None and same_quantity(wanted[1], offered[1])


def _same_with_unit(wanted: _Element, offered: _Element) -> bool:
    gold, given = wanted[1], offered[1]
    return _same_element(wanted, offered) and gold is not None and given is not None and same_unit(gold, given)


def _compare_expression(gold: str, given: str) -> Outcome:
    asked = set(_OPERATIONS.findall(gold))
    if any(operation not in asked for operation in _OPERATIONS.findall(given)):
        return Outcome(False, "unevaluated")
    if _DIGITS_IN_TEXT.search(given):
        return Outcome(False, "hedged")
    if _joins_otherwise(gold, given):
        return WRONG
    ordered = _in_order(gold, given)
    if ordered is None:
        return WRONG
    given = ordered
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


def _joins_otherwise(gold: str, given: str) -> bool:
    """Whether one has inequalities of which any may hold, and the other some that all must: the library lists both."""
    if not (_INEQUALITY.search(gold) and _INEQUALITY.search(given)):
        return False
    joined, otherwise = (set(_JOINED.findall(without_fonts(text))) for text in (gold, given))
    return bool(joined and otherwise and joined != otherwise)


def _in_order(gold: str, given: str) -> str | None:
    """The answer with the brackets that order gold, which it may leave out; None where it has those of a set."""
    wanted, offered = read_list(gold), read_list(given)
    if wanted is None or offered is None or wanted.kind in ("", "set"):
        return given
    if offered.kind == "set":
        return None
    return given if offered.kind or "=" in given else f"{wanted.kind[0]}{given}{wanted.kind[1]}"


def _is_rounding(rounded: str, exact: str) -> bool:
    """Whether a decimal is an expression's value to as many places as it has."""
    number, expression = read_quantity(rounded), parsed(exact)
    if (
        number is None
        or expression is None
        or not getattr(expression, "is_number", False)
        or expression.is_real is not True
    ):
        return False
    places = len(rounded.partition(".")[2].strip())
    return bool(
        abs(expression.evalf(places + 20) - number.value.numerator / library().sympy.Integer(number.value.denominator))
        <= library().sympy.Rational(1, 2 * 10**places)
    )
