"""Where a completion's final answer is, and whether it is one: the part that math-verify is too kind about.

A box (`\\boxed`, `\\fbox`) is preferred; without one, what follows the last "answer is" or "####"; without that, the last
number. The choice depends on the text alone, never on gold: a completion cannot offer two values and be paid for the better
one. What is offered with an alternative ("41 or 42") or under a condition ("if x > 0, then 42") is no answer:
`math_words.py` and `math_after.py` say which.
"""

from __future__ import annotations

import re

import msgspec

from headrace.verifiers.base import after_thinking
from headrace.verifiers.math_after import only_punctuation, refuse_after
from headrace.verifiers.math_form import clean
from headrace.verifiers.math_quantity import read_quantity
from headrace.verifiers.math_text import MATH, NUMBER, SENTENCE_END, AnswerFault, content, plain, sentence_before
from headrace.verifiers.math_words import refuse_before, refuse_words_after

MOST_BOXES = 20
_DEEPEST_BOX = 8  # boxes in one another
LONGEST_ANSWER = 2000  # characters


class FoundAnswer(msgspec.Struct, frozen=True):
    """`values` are what the completion gives as its answer: one, or the distinct contents of several boxes."""

    values: tuple[str, ...]
    boxed: bool


_BOX = re.compile(r"\\(?:boxed|fbox)\b\s*")
_CUE = re.compile(
    r"####[ \t]*|\banswers?\b(?!\s+(?:key|choice|the|this|to\s+(?:be|get)\b))[^.\n:=$\\0-9]{0,60}?"
    r"(?:\b(?:is|are|be|equals)\b|:|=)[ \t:=]*",
    re.IGNORECASE,
)
_BOUND = re.compile(
    r"\b(?:at\s+(?:most|least)|(?:less|more|greater|fewer|other|rather|smaller|larger|bigger|higher|lower)\s+than|between|above"
    r"|below|under|over|up\s+to|near)\b|[<>≤≥]",
    re.IGNORECASE,
)
# What is asked for, named again before the answer: "for $n=3$", and "$n$" in "$n$ is 42". A relation is no name.
_FOR_VALUE = re.compile(r"\bfor\s(?:\$?[A-Za-z]\s?=\s?-?[0-9]{1,20}\$?)(?=,?\s)", re.IGNORECASE)
_NAMED = re.compile(
    r"(?<!\\)\$(?=[^$]{0,40}?[A-Za-z])(?:(?!\\(?:le|ge|leq|geq|ne|neq|equiv|in|text|lor|mid)\b)[^$=<>,;\n]){1,40}\$"
    r"(?=\s{0,3}(?:is|are|be|equals|=|must\s(?:be|equal))\s{1,3}(?:(?:equal\sto|exactly|thus|therefore|then)\s){0,2}[-−]?[0-9$\\])"
)
_ONLY_SEPARATOR = re.compile(r"(?:[\s*,;/&|()•?-]|\bor\b|\band\b)+", re.IGNORECASE)


def find_answer(completion: str, *, require_box: bool, thinking_end: str | None, box_last: bool = False) -> FoundAnswer:
    """The final answer. Raises AnswerFault with `no_answer`, `unfinished_box`, `several_answers`, `hedged`, `too_long`,
    and with `box_last` also with `text_after`.

    >>> find_answer(r"So $x = \\boxed{42}$.", require_box=True, thinking_end=None).values
    ('42',)
    """
    text = after_thinking(completion, thinking_end)
    found = _boxed(text, box_last)
    if found is None:
        if require_box or box_last:
            raise AnswerFault("no_answer")
        found = FoundAnswer((_stated(text),), boxed=False)
    if any(len(value) > LONGEST_ANSWER for value in found.values):
        raise AnswerFault("too_long")
    if not all(value.strip() for value in found.values):
        raise AnswerFault("no_answer")
    return found


def boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of each box that is not inside another. Raises AnswerFault for one without its end."""
    found, position = [], 0
    while (match := _BOX.search(text, position)) is not None:
        if match.end() >= len(text) or text[match.end()] != "{":
            raise AnswerFault("unfinished_box")
        end = _closing_brace(text, match.end())
        if end is None:
            raise AnswerFault("unfinished_box")
        found.append((match.start(), end + 1, text[match.end() + 1 : end].strip()))
        position = end + 1
    return found


def _closing_brace(text: str, start: int) -> int | None:
    depth, position = 0, start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1  # an escaped brace does not count
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None


def _boxed(text: str, box_last: bool) -> FoundAnswer | None:
    found = boxes(text)
    if not found:
        return None
    last_places = {_unwrapped(inside): start for start, _, inside in found}
    values = tuple(last_places)
    if len(values) > MOST_BOXES:
        raise AnswerFault("several_answers")
    if any(len(value) > LONGEST_ANSWER for value in values):
        raise AnswerFault("too_long")
    end = found[-1][1]
    if box_last and not only_punctuation(text[end:]):
        raise AnswerFault("text_after")
    # Of boxes that say the same only the last has to stand alone: the others may have been cases.
    for start in last_places.values():
        refuse_before(sentence_before(text, start))
    later = [plain(value) for value in _statements(text[end:])]
    if any(value != plain(values[-1]) for value in later):
        raise AnswerFault("several_answers")
    refuse_after(text[end:], values)
    return FoundAnswer(values, boxed=True)


def _unwrapped(inside: str) -> str:
    """A box in a box is one box."""
    for _ in range(_DEEPEST_BOX):
        inner = boxes(inside)
        if not inner:
            return inside
        if len(inner) > 1 or inner[0][:2] != (0, len(inside)):
            break
        inside = inner[0][2]
    raise AnswerFault("several_answers")


def _stated(text: str) -> str:
    """The answer of a text without a box."""
    text = text.replace("**", "").replace("__", "")
    # Blanks in place of names: places in both texts are the same, and what the words say is read in the whole one.
    bare = _NAMED.sub(_blanks, _FOR_VALUE.sub(_blanks, text))
    cues = list(_CUE.finditer(bare))
    if not cues:
        return _last_number(text, bare)
    start = cues[-1].end()
    refuse_before(sentence_before(text, cues[-1].start()) + text[cues[-1].start() : start])
    value, end = _first_value(bare, start)
    said = text[start:end].removesuffix(value)
    refuse_before(said)
    if _BOUND.search(bare[start:end].removesuffix(value)):
        raise AnswerFault("hedged")
    refuse_after(text[end:], (value,))
    another = NUMBER.search(text, end)
    if another and _ONLY_SEPARATOR.fullmatch(text[end : another.start()]):
        raise AnswerFault("several_answers")
    # The last cue's own number may be the beginning of the value where that is a quantity: "42 cm".
    whole = len(value) <= LONGEST_ANSWER and read_quantity(clean(value)) is not None
    if any(plain(each) != plain(value) for each in _statements(bare[: cues[-1].start()] if whole else bare)):
        raise AnswerFault("several_answers")
    return value


def _blanks(match: re.Match[str]) -> str:
    return " " * len(match.group())


def _statements(text: str) -> list[str]:
    """What each "answer is" of a text names, where that is a number or in dollars."""
    values = []
    for cue in _CUE.finditer(text):
        match = MATH.match(text, cue.end()) or NUMBER.match(text, cue.end())
        if match:
            values.append(content(match))
    return values


def _first_value(text: str, start: int) -> tuple[str, int]:
    """What is named from `start` on, and where it ends: formula, bare expression, number, or words."""
    while start < len(text) and text[start].isspace():
        start += 1
    end = SENTENCE_END.search(text, start)
    newline = text.find("\n", start)
    stop = min(end.start() if end else len(text), newline if newline >= 0 else len(text))
    clause = text[start:stop]
    math = list(MATH.finditer(text, start, max(stop, start)))
    display = MATH.match(text, start)
    if display:
        math = [display, *[each for each in math if each.start() >= display.end()]]
    if math:
        if len({plain(content(each)) for each in math}) > 1:
            raise AnswerFault("several_answers")
        return content(math[0]), math[-1].end()
    if not re.search(r"[A-Za-z]{3,}", re.sub(r"\\[A-Za-z]+|\b(?:sqrt|sin|cos|tan|log|exp|inf|and|pi)\b", "", clause)):
        return clause.strip(), stop
    number = NUMBER.search(clause)
    if number:
        return number.group(), start + number.end()
    return clause.strip(), stop


def _last_number(text: str, bare: str) -> str:
    """The last number or formula, unless it stands in a list or under a hedge. `bare` is the text without names."""
    stop = len(text.rstrip())
    ends = [end for end in SENTENCE_END.finditer(bare, 0, stop) if end.end() < stop]
    start = ends[-1].end() if ends else 0
    math = list(MATH.finditer(bare, start))
    matches = math or list(NUMBER.finditer(bare, start))
    only = text.strip()
    if not matches:
        only = text[start:].strip().rstrip(".")
        if start == 0 and 0 < len(only) <= 100 and "\n" not in only:
            refuse_before(only)
            refuse_words_after(only)
            return only
        raise AnswerFault("no_answer")
    if bare == text and not math and start == 0 and "\n" not in only and not _has_words(only):
        return only.rstrip(".")  # nothing but an expression
    last = matches[-1]
    if len(matches) > 1:
        between = bare[matches[-2].end() : last.start()]
        if _ONLY_SEPARATOR.fullmatch(between) and plain(content(matches[-2])) != plain(content(last)):
            raise AnswerFault("several_answers")
        if re.search(r"\bor\b", between, re.IGNORECASE):
            raise AnswerFault("hedged")
    refuse_before(sentence_before(text, last.start()))
    refuse_after(text[last.end() :], (content(last),))
    return content(last)


def _has_words(text: str) -> bool:
    return re.search(r"[A-Za-z]{3,}", re.sub(r"\\[A-Za-z]+", "", text)) is not None
