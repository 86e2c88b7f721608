"""What a policy may write and a row may hold: strategies of texts and of JSON values that readers trip over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

LONG = 100_000  # characters
DEEP = 5_000  # levels

HEAVY = {
    "empty": "",
    "nul": "\0",
    "half a character": "a\ud800b\udfff",
    "long word": "a" * LONG,
    "long number": "9" * LONG,
    "long exponent": "1e" + "9" * 400,
    "long blank": " " * LONG,
    "many words": "so it is. " * (LONG // 10),
    "many lines": "\n" * LONG,
    "many quotes": '"' * LONG,
    "many NULs": "\0" * 20_000,
    "many fences": "```\n" * DEEP,
    "many opened fences": "```python\nx = 1\n" * DEEP,
    "many tags": "<tool_call>" * DEEP,
    "many thoughts": "<think></think>" * DEEP,
    "many calls": '{"name": ' * DEEP,
    "many boxes": r"\boxed{" * DEEP,
    "many fractions": r"\frac{1}{" * DEEP,
    "many powers": "9^{" * DEEP,
    "deep parentheses": "(" * DEEP + ")" * DEEP,
    "deep lists": "[" * DEEP + "]" * DEEP,
    "deep objects": '{"x":' * DEEP + "1" + "}" * DEEP,
    "unclosed brackets": "([{" * DEEP,
    "digits of other scripts": "١٢٣ ४५६ ７８９ 𝟙𝟚 ² ½ Ⅷ 〇",
    "blanks of other scripts": "\u00a0\u1680\u2003\u2028\u2029\u3000\u0085\x0b\x0c\x1c\u200b\ufeff",
    "marks": "e" + "\u0301" * 2_000,
    "to the left": "\u202e\u2066abc\u2069",
    "no numbers": "NaN Infinity -Infinity -0 1e999 0x10 1_000",
    "templates": "{{completion}} {0} %s %(a)s ${a} \\1 \\g<0>",
    "control tokens": "<|im_end|><end></s>[INST]<|endoftext|>",
}
"""Texts that have broken some parser: by length, by depth, by what they are made of."""

WILD = st.one_of(
    st.text(st.characters()),
    st.text(st.characters(categories=["Cc", "Cf", "Cs", "Nd", "Nl", "No", "Zs", "Zl", "Zp", "Mn"])),
    st.text("{}[]()<>\"'`\\$^_;,.:|*+-/#@&%!?=~ \n\t01e"),
    st.sampled_from(list(HEAVY)).map(HEAVY.__getitem__),
)

_NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, 2**63, 2**64, -0.0, 1e308])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | _NUMBERS
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["", "x", "\ud800", "\0"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
"""Any value that JSON's readers give, also those that only some of them do."""


def _nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


ODD: list[Any] = [
    _nested(DEEP),
    "\ud800",
    "\0",
    "",
    "x" * LONG,
    10**400,
    float("nan"),
    -1,
    True,
    [],
    {},
    [None],
    {"\ud800": 1},
]
"""Values that no reader of JSON Lines, or no person, would put into a row."""


def completions(frames: list[str]) -> st.SearchStrategy[str]:
    """Wild texts, and wild texts where a frame has an `@`: a verifier reads on only in what is nearly of its form."""
    pieces = st.sampled_from([piece for frame in frames for piece in frame.split() or [frame]])
    return st.one_of(
        WILD,
        st.builds(filled, st.sampled_from(frames), WILD, st.booleans()),
        st.builds(_spliced, st.sampled_from(frames), st.integers(0, 200), st.integers(0, 8), WILD),
        st.lists(pieces | st.text(max_size=3), max_size=12).map(" ".join),
        st.tuples(st.sampled_from(frames), st.sampled_from(frames)).map("\n".join),
    )


def filled(frame: str, text: str, quoted: bool) -> str:
    """`quoted`: the text as it stands in a JSON string."""
    return frame.replace("@", json.dumps(text)[1:-1] if quoted else text)


def _spliced(frame: str, at: int, cut: int, text: str) -> str:
    return frame[:at] + text + frame[at + cut :]


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """Where a row can be spoilt: by keys from outside in. Of a list the first item is enough."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value[:1]):
        yield (key,)
        if isinstance(inner, dict | list):
            yield from ((key, *rest) for rest in places(inner))


def replaced(value: Any, place: tuple[Any, ...], by: Any) -> Any:
    """A copy with another value at `place`."""
    if not place:
        return by
    copy = value.copy()
    copy[place[0]] = replaced(value[place[0]], place[1:], by)
    return copy
