"""Numbers with units, and lists of them, as they are written; exact, and without a library.

They are compared here, as fractions; only what is neither goes to math-verify. That is faster, and it is where form matters:
a sum that restates the question is not taken for the number that was asked for.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

import msgspec

from headrace.verifiers.math_form import FONT, split_top, without_fonts

_MOST_DIGITS = 1000
_LARGEST_EXPONENT = 1000
_DECIMALS = 6  # places to which a decimal stands for a fraction, as in math-verify


class Quantity(msgspec.Struct, frozen=True):
    """A number as written: exact value (percents not divided), decimal or not, and what stands behind it."""

    value: Fraction
    decimal: bool  # written with a point: it may stand for a fraction, rounded
    percent: bool
    unit: str  # canonical; empty where there is none
    base: int | None  # of the numeral system, where one is written


_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_PART = rf"-?{_DIGITS}(?:\.[0-9]+)?"
_POWER = r"[-+]?[0-9]{1,5}"
_NUMERAL = re.compile(
    rf"(?P<sign>[-+]?)\s*(?P<currency>(?:[$€£¥₹]|Rs\.?)?)\s*(?P<sign2>-?)\s*(?:"
    rf"(?:(?P<whole>{_DIGITS})\s*)?\\frac\s*\{{\s*(?P<top>{_PART})\s*\}}\s*\{{\s*(?P<bottom>{_PART})\s*\}}"
    rf"|(?:(?P<whole2>[0-9]+)\s+)?(?P<top2>{_DIGITS})\s*/\s*(?P<bottom2>{_DIGITS})"
    rf"|(?P<number>{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:_\{{?(?P<base>[0-9]{{1,2}})\}}?)?"
    rf"(?:\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{{\s*(?P<power>{_POWER})\s*\}}|(?P<power1>[0-9]))|[eE](?P<power2>{_POWER}))?"
    rf")(?P<rest>.*)",
    re.DOTALL,
)
_TEN_POWER = re.compile(r"(-?)10\s*\^\s*(?:\{\s*(-?[0-9]{1,4})\s*\}|([0-9]))(.*)", re.DOTALL)
_MULTIPLIERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NOT_A_UNIT = (
    "or and if not maybe perhaps either neither nor but except plus minus times over than less more most least "
    "fewer above below under between to from through pi sqrt sin cos tan log ln exp mod is was are inf infinity "
    "negative squared cubed percent percentage e i x y z n k otherwise else unless about around approximately "
    "roughly half quarter third dozen pair pairs factorial choose "
    " wrong incorrect false untrue also no never nope what which"
)
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
_NO_UNIT = frozenset(f"{_NOT_A_UNIT} {NUMBER_WORDS}".split())
_SYMBOLS = "m g l s h N J W V A K C F Hz cm mm km kg mg ml mL ft in yd mi lb oz hr kW Pa eV mol rad sr am pm "
_SHORT_UNITS = frozenset(_SYMBOLS.split())
_UNIT_NAMES = {
    "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "millimetre": "mm", "kilometer": "km", "kilometre": "km",
    "meter": "m", "metre": "m", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd", "mile": "mi",
    "gram": "g", "kilogram": "kg", "liter": "l", "litre": "l", "second": "s", "sec": "s", "minute": "min", "hour": "h",
    "hr": "h",
    "pound": "lb", "ounce": "oz", "degree": "deg", "dollar": "$", "usd": "$", "cent": "cent", "euro": "€", "unit": "",
    "radian": "rad",
}  # fmt: skip
UNIT_WORDS = _SHORT_UNITS | _UNIT_NAMES.keys() | {f"{name}s" for name in _UNIT_NAMES}
_UNIT_WORD = re.compile(r"(?P<word>[A-Za-z]+)(?:\^\{?(?P<power>-?[0-9])\}?)?")


@lru_cache(maxsize=8192)
def read_quantity(text: str) -> Quantity | None:
    """A cleaned text as a number, with the unit behind it; None for everything else, expressions included."""
    text = text.strip()
    while True:
        bare = without_fonts(text) if FONT.fullmatch(text) else _unbracketed(text)
        if bare == text:
            break
        text = bare
    if len(text) > _MOST_DIGITS + 200:
        return None
    match = _TEN_POWER.fullmatch(text)
    if match and match[4].strip() == "":
        exponent = int(match[2] or match[3])
        value = Fraction(10) ** exponent
        return Quantity(-value if match[1] else value, exponent < 0, False, "", None)
    match = _NUMERAL.fullmatch(text)
    if match is None:
        return None
    value = _value(match)
    if value is None:
        return None
    if match["sign2"] and (match["sign"] or not match["currency"]):
        return None
    negative = "-" in (match["sign"], match["sign2"])
    tail = _read_unit(match["rest"])
    if tail is None:
        return None
    factor, percent, unit = tail
    currency = "$" if match["currency"] == "$" else match["currency"]
    if currency and unit and currency != unit:
        return None
    number = match["number"] or ""
    # A power of ten that is a whole number is exact, "1.50 x 10^3"; a fraction of decimals is as rough as they are.
    decimal = ("." in number and value.denominator != 1) or "." in f"{match['top'] or ''}{match['bottom'] or ''}"
    base = int(match["base"]) if match["base"] else None
    return Quantity((-value if negative else value) * factor, decimal, percent, currency or unit, base)


def _unbracketed(text: str) -> str:
    for opening, closing in (("\\{", "\\}"), ("(", ")"), ("[", "]"), ("{", "}")):
        if text.startswith(opening) and text.endswith(closing):
            middle = text[len(opening) : -len(closing)].strip()
            if middle and not any(bracket in middle for bracket in "()[]"):
                return middle
    return text


def _value(match: re.Match[str]) -> Fraction | None:
    def number(text: str) -> Fraction:
        return Fraction(text.replace(",", "") + ("0" if text.endswith(".") else ""))

    top, bottom = match["top"] or match["top2"], match["bottom"] or match["bottom2"]
    whole = match["whole"] or match["whole2"]
    if top is not None and bottom is not None:
        if number(bottom) == 0 or (whole is not None and number(top) < 0):
            return None
        return number(top) / number(bottom) + (number(whole) if whole else 0)
    value = number(match["number"])
    power = int(match["power"] or match["power1"] or match["power2"] or 0)
    if abs(power) > _LARGEST_EXPONENT:
        return None
    return value * Fraction(10) ** power


def _read_unit(rest: str) -> tuple[int, bool, str] | None:
    """What stands behind a number: factor of a word like "million", percent or not, unit. None: it is no unit."""
    if not rest.strip():
        return 1, False, ""
    if ".." in rest:  # an ellipsis
        return None
    if rest[0].isalpha():  # 42cm is a quantity, 42x and 42m are products
        name = re.match(r"[A-Za-z]+", rest)
        if name is None or len(name.group()) < 2 or name.group() not in _SHORT_UNITS:
            return None
    in_text = "\\text" in rest or "\\mathrm" in rest or "\\mbox" in rest
    plain = without_fonts(rest).replace("\\cdot", " ").replace("\\", " \\")
    plain = re.sub(r"\s*\^\s*\\circ", " deg", plain).strip()
    percent = False
    if plain.startswith("%") or re.match(r"per\s?cent(?:age)?\b|pct\b", plain):
        percent = True
        plain = re.sub(r"^(?:%|per\s?cent(?:age)?|pct)\s*", "", plain)
    factor, powers, inverse = 1, {}, False
    for token in re.findall(r"[A-Za-z]+(?:\s*\^\s*\{?\s*-?[0-9]\s*\}?)?|\S", plain):
        if token in ("/",) or token == "per":
            inverse = True
            continue
        if token in (".", "(", ")") or plain == "$":
            continue
        match = _UNIT_WORD.fullmatch(re.sub(r"\s", "", token))
        if match is None:
            return None
        word = match["word"]
        lower = word.lower()
        if lower in _MULTIPLIERS and not powers:
            factor *= _MULTIPLIERS[lower]
            continue
        if lower in _NO_UNIT or (
            not in_text and not inverse and (len(word) < 2 or (len(word) < 3 and word not in _SHORT_UNITS))
        ):
            return None
        power = int(match["power"] or 1) * (-1 if inverse else 1)
        if lower in ("square", "sq", "cubic", "cu"):
            powers["^"] = 2 if lower in ("square", "sq") else 3
            continue
        name = _unit_name(word)
        if name:
            powers[name] = powers.get(name, 0) + power * powers.pop("^", 1)
        else:
            powers.pop("^", None)
        inverse = False
    if len(powers) > 6:
        return None
    return (
        factor,
        percent,
        " ".join(f"{name}^{power}" if power != 1 else name for name, power in sorted(powers.items())),
    )


def _unit_name(word: str) -> str:
    if word in _SHORT_UNITS:
        return _UNIT_NAMES.get(word.lower(), word) if len(word) > 2 or word == "hr" else word
    lower = word.lower()
    for form in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if form in _UNIT_NAMES:
            return _UNIT_NAMES[form]
    return lower.removesuffix("s")


_TEXT = r"\\(?:text|textrm|mathrm|mbox)\s*\{[^{}]*\}"
_POWERED = r"(?:\s*\^\s*(?:\{\s*-?[0-9]\s*\}|[0-9]))?"
_BEHIND = re.compile(rf"(?:{_TEXT}{_POWERED}(?:\s*(?:/|\\cdot)?\s*{_TEXT}{_POWERED})*|\^\s*\\circ)\s*$")
_KNOWN_UNITS = _SHORT_UNITS | set(_UNIT_NAMES.values())


def unit_behind(text: str) -> str:
    r"""The unit that ends a cleaned expression, canonical; empty where there is none, or one that is not known as such.

    >>> unit_behind(r"36\pi \text{ cubic centimeters}")
    'cm^3'
    """
    match = _BEHIND.search(text)
    found = _read_unit(match.group()) if match else None
    unit = found[2] if found is not None else ""
    return unit if all(name.partition("^")[0] in _KNOWN_UNITS for name in unit.split()) else ""


def same_quantity(gold: Quantity, given: Quantity) -> bool:
    """Equal as numbers. A decimal stands for a fraction when it is right to six places and to a millionth of its size.

    A percent sign may be missing, or be written for the quotient (50 % is 50 percent and 0.5). Units are for `same_unit`.
    A base may be missing in the answer; one that gold has not makes it another number, 42_{8} for 42.
    """
    if given.base is not None and given.base != (10 if gold.base is None else gold.base):
        return False
    if gold.percent == given.percent:
        return _close(gold, gold.value, given, given.value)
    with_sign, without = (gold, given) if gold.percent else (given, gold)
    return _close(with_sign, with_sign.value, without, without.value) or _close(
        with_sign, with_sign.value / 100, without, without.value
    )


def _close(left: Quantity, a: Fraction, right: Quantity, b: Fraction) -> bool:
    if a == b:
        return True
    if not (left.decimal or right.decimal):
        return False
    difference = abs(a - b)
    return difference <= Fraction(1, 2 * 10**_DECIMALS) and difference <= abs(a) / 10**5


def same_unit(gold: Quantity, given: Quantity) -> bool:
    """Units differ only where both have one."""
    return not gold.unit or not given.unit or gold.unit == given.unit or gold.percent


# ---------------------------------------------------------------------------------------------------- lists

_SEPARATOR = re.compile(
    r"\s*(?:(?:,|;)\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|\\mathrm\s*\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))?"
    r"|\\(?:text|mathrm|mbox)\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*"
)
_BRACKETS = {("\\{", "\\}"): "set", ("(", ")"): "()", ("[", "]"): "[]", ("(", "]"): "(]", ("[", ")"): "[)"}
_PLUS_MINUS = re.compile(r"\\pm\s*(.+)", re.DOTALL)


_BEFORE_BRACKET = re.compile(r"\s*\\?[A-Za-z]\w*\s*(?:=|\\in(?![A-Za-z]))\s*(?=\\\{|\(|\[)")


class Listing(msgspec.Struct, frozen=True):
    """A list as written: its brackets ("" for none) and its elements."""

    kind: str
    elements: tuple[str, ...]


@lru_cache(maxsize=8192)
def read_list(text: str) -> Listing | None:
    """A cleaned text as a list of at least two elements, or a set of any number; None where it is one value.

    >>> read_list(r"x = 1 \\text{ or } x = 2").elements
    ('x = 1', 'x = 2')
    """
    text = _BEFORE_BRACKET.sub("", text.strip(), count=1) if _BEFORE_BRACKET.match(text.strip()) else text.strip()
    if read_quantity(text) is not None and not text.startswith("\\{"):
        return None  # 1,234
    for (opening, closing), kind in _BRACKETS.items():
        if text.startswith(opening) and text.endswith(closing) and _one_bracket(text):
            elements = split_top(text[len(opening) : -len(closing)], _SEPARATOR)
            if len(elements) >= 2 or kind == "set":
                return Listing(kind, _expanded(elements))
            return None
    elements = _expanded(split_top(text, _SEPARATOR))
    return Listing("", elements) if len(elements) >= 2 else None


def _one_bracket(text: str) -> bool:
    """Whether the bracket at the start is the one that ends the text."""
    depth, position = 0, 0
    while position < len(text):
        escape = text[position] == "\\"
        if escape and text[position + 1 : position + 2] not in ("{", "}"):
            position += 2
            continue
        position += escape
        depth += (text[position] in "([{") - (text[position] in ")]}")
        position += 1
        if depth == 0:
            return position >= len(text)
    return False


def _expanded(elements: list[str]) -> tuple[str, ...]:
    expanded: list[str] = []
    for element in elements:
        head, _, last = element.rpartition("=")
        match = _PLUS_MINUS.fullmatch(last.strip())
        if match:
            expanded += [f"{head}={match[1]}", f"{head}=-{match[1]}"] if head else [match[1], f"-{match[1]}"]
        else:
            expanded.append(element.strip())
    return tuple(expanded)


# ------------------------------------------------------------------------------------------------- matrices

Matrix = tuple[tuple[Quantity, ...], ...]
_MATRIX = re.compile(r"\\begin\{([pbB]?|small)matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)


@lru_cache(maxsize=8192)
def read_matrix(text: str) -> Matrix | None:
    """The rows of a cleaned text that is one matrix of numbers; None for everything else, determinants included."""
    match = _MATRIX.fullmatch(text)
    if match is None or "matrix" in match[2]:
        return None
    rows = [row for row in re.split(r"\\\\", match[2]) if row.strip()]
    table = [[read_quantity(cell) for cell in row.split("&")] for row in rows]
    cells = [tuple(cell for cell in row if cell is not None) for row in table]
    if not cells or any(len(row) != len(table[0]) for row in cells):
        return None
    return tuple(cells)
