"""Where a completion's final answer is, and whether it is one: the part that math-verify is too kind about.

A box (`\\boxed`, `\\fbox`) is preferred; without one, what follows the last "answer is" or "####"; without that, the last
number. The choice depends on the text alone, never on gold: a completion cannot offer two values and be paid for the better
one. What is offered with an alternative ("41 or 42") or under a condition ("if x > 0, then 42") is no answer.
"""

from __future__ import annotations

import re

import msgspec

MOST_BOXES = 20
LONGEST_ANSWER = 2000  # characters


class AnswerFault(Exception):
    """There is no single answer in the completion; `reason` is the verdict's."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n\s*\n")
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|might\s+be|could\s+be|may\s+be|not\s+sure|unsure|i\s+guess|either|unless|assuming"
    r"|suppose|supposing|provided\s+that|depending|depends|otherwise|alternatively|or\s+else|in\s+case|else)\b",
    re.IGNORECASE,
)
_CONDITION = re.compile(r"\bif\b(?!\s+and\s+only\s+if\b)", re.IGNORECASE)
_NO_CONDITION = re.compile(
    r"\bif\s+and\s+only\s+if\b|\b(?:check|see|verify|ask(?:s|ed)?|determine|know)\s+if\b", re.IGNORECASE
)
_DENIAL_BEFORE = re.compile(
    r"\b(?:not|n't|never|isn't|aren't|cannot\s+be|can't\s+be)\b\W*(?:\w+\W+){0,3}$|\b(?:false|wrong|incorrect|untrue)\s+that\b",
    re.IGNORECASE,
)
_DENIAL_AFTER = re.compile(
    r"\W{0,4}(?:is|are|was|would\s+be|cannot|can't)?\W*(?:not|n't|isn't|aren't|wrong|incorrect|false|never|cannot)\b",
    re.IGNORECASE,
)
_BOUND = re.compile(
    r"\b(?:at\s+(?:most|least)|(?:less|more|greater|fewer|other|rather|smaller|larger|bigger|higher|lower)\s+than|between|above"
    r"|below|under|over|up\s+to|near)\b|[<>≤≥]",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(r"\bor\b(?!\s+equivalently\b)|\bversus\b|\bvs\b", re.IGNORECASE)
_MATH = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$((?:[^$\\\n]|\\.)+?)(?<!\\)\$", re.DOTALL)
_NUMBER = re.compile(
    r"(?<![\w.^])[-−]?(?:\\[$])?[$€£]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?"
    r"(?:\s*/\s*[0-9]+(?![\w/]))?(?:\s*\\?%)?"
)
_ONLY_SEPARATOR = re.compile(r"(?:[\s*,;/&|()•?-]|\bor\b|\band\b)+", re.IGNORECASE)


def find_answer(completion: str, *, require_box: bool, thinking_end: str | None) -> FoundAnswer:
    """The final answer. Raises AnswerFault with `no_answer`, `unfinished_box`, `several_answers`, `hedged`, `too_long`.

    >>> find_answer(r"So $x = \\boxed{42}$.", require_box=True, thinking_end=None).values
    ('42',)
    """
    text = completion
    if thinking_end and thinking_end in text:
        text = text[text.rindex(thinking_end) + len(thinking_end) :]
    found = _boxed(text)
    if found is None:
        if require_box:
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


def _boxed(text: str) -> FoundAnswer | None:
    found = boxes(text)
    if not found:
        return None
    values = tuple(dict.fromkeys(_unwrapped(content) for _, _, content in found))
    if len(values) > MOST_BOXES:
        raise AnswerFault("several_answers")
    start, end, _ = found[-1]
    _refuse_hedge(_sentence_before(text, start), _sentence_after(text, end))
    later = [_plain(value) for value in _statements(text[end:])]
    if any(value != _plain(values[-1]) for value in later):
        raise AnswerFault("several_answers")
    return FoundAnswer(values, boxed=True)


def _unwrapped(content: str) -> str:
    """A box in a box is one box."""
    inner = boxes(content)
    if len(inner) == 1 and inner[0][:2] == (0, len(content)):
        return _unwrapped(inner[0][2])
    if inner:
        raise AnswerFault("several_answers")
    return content


def _sentence_before(text: str, position: int) -> str:
    before = text[max(0, position - 400) : position]
    ends = list(_SENTENCE_END.finditer(before))
    return before[ends[-1].end() :] if ends else before


def _sentence_after(text: str, position: int) -> str:
    after = text[position : position + 400]
    end = _SENTENCE_END.search(after)
    return after[: end.end()] if end else after


def _refuse_hedge(before: str, after: str) -> None:
    """Raises AnswerFault where the words around an answer take it back or set another beside it."""
    before, after = _NO_CONDITION.sub(" ", before), _NO_CONDITION.sub(" ", after)
    if _HEDGE.search(before) or _HEDGE.search(after) or _CONDITION.search(before) or _CONDITION.search(after):
        raise AnswerFault("hedged")
    if _DENIAL_BEFORE.search(before) or _DENIAL_AFTER.match(after) or re.match(r"[\s$)\]}]*\?", after):
        raise AnswerFault("hedged")
    if re.search(r"\bor\b\W*(?:\\text\{\W*)?\W*$", before, re.IGNORECASE) or _ALTERNATIVE.search(after):
        raise AnswerFault("hedged")


def _stated(text: str) -> str:
    """The answer of a text without a box."""
    text = text.replace("**", "").replace("__", "")
    cues = list(_CUE.finditer(text))
    if not cues:
        return _last_number(text)
    start = cues[-1].end()
    _refuse_hedge(_sentence_before(text, cues[-1].start()) + cues[-1].group(), "")
    value, end = _first_value(text, start)
    said = text[start:end].removesuffix(value)
    _refuse_hedge(said, _sentence_after(text, end))
    if _BOUND.search(said):
        raise AnswerFault("hedged")
    another = _NUMBER.search(text, end)
    if another and _ONLY_SEPARATOR.fullmatch(text[end : another.start()]):
        raise AnswerFault("several_answers")
    others = {_plain(each) for each in _statements(text)}
    if others - {_plain(value)}:
        raise AnswerFault("several_answers")
    return value


def _statements(text: str) -> list[str]:
    """What each "answer is" of a text names, where that is a number or in dollars."""
    values = []
    for cue in _CUE.finditer(text):
        match = _MATH.match(text, cue.end()) or _NUMBER.match(text, cue.end())
        if match:
            values.append(_content(match))
    return values


def _first_value(text: str, start: int) -> tuple[str, int]:
    """What is named from `start` on, and where it ends: formula, bare expression, number, or words."""
    while start < len(text) and text[start].isspace():
        start += 1
    end = _SENTENCE_END.search(text, start)
    newline = text.find("\n", start)
    stop = min(end.start() if end else len(text), newline if newline >= 0 else len(text))
    clause = text[start:stop]
    math = list(_MATH.finditer(text, start, max(stop, start)))
    display = _MATH.match(text, start)
    if display:
        math = [display, *[each for each in math if each.start() >= display.end()]]
    if math:
        if len({_plain(_content(each)) for each in math}) > 1:
            raise AnswerFault("several_answers")
        return _content(math[0]), math[-1].end()
    if not re.search(r"[A-Za-z]{3,}", re.sub(r"\\[A-Za-z]+|\b(?:sqrt|sin|cos|tan|log|exp|inf|and|pi)\b", "", clause)):
        return clause.strip(), stop
    number = _NUMBER.search(clause)
    if number:
        return number.group(), start + number.end()
    return clause.strip(), stop


def _last_number(text: str) -> str:
    """The last number or formula, unless it stands in a list or under a hedge."""
    text = text.strip()
    ends = [end for end in _SENTENCE_END.finditer(text) if text[end.end() :].strip()]
    start = ends[-1].end() if ends else 0
    math = list(_MATH.finditer(text, start))
    matches = math or list(_NUMBER.finditer(text, start))
    if not matches:
        bare = text[start:].strip().rstrip(".")
        if start == 0 and 0 < len(bare) <= 100 and "\n" not in bare:
            _refuse_hedge("", bare)
            return bare
        raise AnswerFault("no_answer")
    if (
        not math
        and start == 0
        and "\n" not in text
        and not re.search(r"[A-Za-z]{3,}", re.sub(r"\\[A-Za-z]+", "", text))
    ):
        return text.rstrip(".")  # nothing but an expression
    last = matches[-1]
    _refuse_hedge(text[start : last.start()], text[last.end() :])
    if len(matches) > 1:
        between = text[matches[-2].end() : last.start()]
        if _ONLY_SEPARATOR.fullmatch(between) and _plain(_content(matches[-2])) != _plain(_content(last)):
            raise AnswerFault("several_answers")
        if re.search(r"\bor\b", between, re.IGNORECASE):
            raise AnswerFault("hedged")
    return _content(last)


def _content(match: re.Match[str]) -> str:
    return next((group for group in match.groups() if group), match.group()).strip().rstrip(".").strip()


def _plain(value: str) -> str:
    return re.sub(r"[\s$,{}*]|\\[,!;: ]|\.$|\\left|\\right", "", value)
