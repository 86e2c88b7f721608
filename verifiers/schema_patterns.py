"""The regular expressions of JSON Schema, which are ECMAScript's, in the words of Python's `re`.

The two agree on most, and differ where it lets a wrong value pass: Python's `$` matches before a last newline too, and its
`\\d` and `\\w` match the digits and letters of every script.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_SPACE = (
    r"\t-\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"  # ECMAScript's WhiteSpace and LineTerminator
)
_LINE_ENDS = r"\n\r\u2028\u2029"
_FLAGS = re.compile(r"\(\?([ims]+)\)")  # Python's own; schemas written for it have them
_SAME_ESCAPES = frozenset("dDwWbBfnrtvxu0123456789")  # under Python's ASCII flag


def to_python(pattern: str) -> str:
    """The same expression for `re.search`. Raises ValueError for what Python cannot say.

    >>> bool(re.search(to_python("^[0-9]+$"), "12\\\\n")), bool(re.search(to_python("(?<year>[0-9]{4})"), "in 1984"))
    (False, True)
    """
    flags = _FLAGS.match(pattern)
    position = flags.end() if flags else 0
    parts: list[str] = []
    while position < len(pattern):
        part, position = _next(pattern, position)
        parts.append(part)
    return f"(?a{flags[1] if flags else ''}:{''.join(parts)})"


def _next(pattern: str, position: int) -> tuple[str, int]:
    """The translation of what begins at `position`, and where it ends."""
    match pattern[position]:
        case "\\":
            return _escape(pattern, position, in_class=False)
        case "[":
            return _character_class(pattern, position)
        case "$":
            return r"\Z", position + 1
        case ".":
            return f"[^{_LINE_ENDS}]", position + 1
        case "(" if re.match(r"\(\?<(?![=!])", pattern[position:]):
            return "(?P<", position + 3
        case other:
            return other, position + 1


def _character_class(pattern: str, position: int) -> tuple[str, int]:
    start = position + 1
    negated = pattern.startswith("^", start)
    position = start + negated
    if pattern.startswith("]", position):  # empty: nothing, or anything
        return (r"[\s\S]" if negated else "(?!)"), position + 1
    parts = ["[^" if negated else "["]
    while position < len(pattern) and pattern[position] != "]":
        if pattern[position] == "\\":
            part, position = _escape(pattern, position, in_class=True)
        else:
            # Python reserves these for set operations, and warns.
            part = f"\\{pattern[position]}" if pattern[position] in "[&|~" else pattern[position]
            position += 1
        parts.append(part)
    if position == len(pattern):
        raise ValueError(f"unterminated character class at position {start - 1}")
    return "".join([*parts, "]"]), position + 1


def _escape(pattern: str, position: int, in_class: bool) -> tuple[str, int]:
    rest = pattern[position + 1 : position + 2]
    if code := re.compile(r"\\u\{([0-9A-Fa-f]{1,6})\}").match(pattern, position):
        return _code_point(int(code[1], 16)), code.end()
    if pair := re.compile(r"\\u([dD][89abAB][0-9A-Fa-f]{2})\\u([dD][c-fC-F][0-9A-Fa-f]{2})").match(pattern, position):
        high, low = int(pair[1], 16), int(pair[2], 16)
        return _code_point(0x10000 + ((high - 0xD800) << 10) + low - 0xDC00), pair.end()
    if control := re.compile(r"\\c([A-Za-z])").match(pattern, position):
        return f"\\x{ord(control[1]) % 32:02x}", control.end()
    if name := re.compile(r"\\k<(\w+)>").match(pattern, position):
        return f"(?P={name[1]})", name.end()
    if held := re.compile(r"\\([pP])\{(?:General_Category=|gc=)?(\w+)\}").match(pattern, position):
        return _of_category(held[2], negated=held[1] == "P", in_class=in_class), held.end()
    if rest == "s":
        return (_SPACE if in_class else f"[{_SPACE}]"), position + 2
    if rest == "S" and not in_class:
        return f"[^{_SPACE}]", position + 2
    if rest == "S" or rest in _SAME_ESCAPES or (rest and not rest.isalnum()):
        return pattern[position : position + 2], position + 2
    raise ValueError(f"`\\{rest}` at position {position} is not supported")


_CATEGORIES = {
    "Letter": "L", "Uppercase_Letter": "Lu", "Lowercase_Letter": "Ll", "Titlecase_Letter": "Lt", "Modifier_Letter": "Lm",
    "Other_Letter": "Lo", "Mark": "M", "Nonspacing_Mark": "Mn", "Spacing_Mark": "Mc", "Enclosing_Mark": "Me", "Number": "N",
    "Decimal_Number": "Nd", "digit": "Nd", "Letter_Number": "Nl", "Other_Number": "No", "Punctuation": "P", "punct": "P",
    "Connector_Punctuation": "Pc", "Dash_Punctuation": "Pd", "Open_Punctuation": "Ps", "Close_Punctuation": "Pe",
    "Initial_Punctuation": "Pi", "Final_Punctuation": "Pf", "Other_Punctuation": "Po", "Symbol": "S", "Math_Symbol": "Sm",
    "Currency_Symbol": "Sc", "Modifier_Symbol": "Sk", "Other_Symbol": "So", "Separator": "Z", "Space_Separator": "Zs",
    "Line_Separator": "Zl", "Paragraph_Separator": "Zp", "Other": "C", "Control": "Cc", "cntrl": "Cc", "Format": "Cf",
    "Surrogate": "Cs", "Private_Use": "Co", "Unassigned": "Cn",
}  # fmt: skip


@lru_cache(maxsize=64)
def _of_category(name: str, negated: bool, in_class: bool) -> str:
    """A Unicode general category as ranges of characters."""
    category = _CATEGORIES.get(name, name)
    if category not in _CATEGORIES.values():
        raise ValueError(f"the Unicode property `{name}` is not supported: general categories are")
    ranges: list[list[int]] = []
    for number in range(0x110000):
        if unicodedata.category(chr(number)).startswith(category) is not negated:
            if ranges and ranges[-1][1] == number - 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
    held = "".join(f"{_code_point(first)}-{_code_point(last)}" for first, last in ranges)
    return held if in_class else f"[{held}]"


def _code_point(number: int) -> str:
    if number > 0x10FFFF:
        raise ValueError(f"there is no character {number:#x}")
    return f"\\U{number:08x}"
