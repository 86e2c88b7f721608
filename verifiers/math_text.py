"""What the search for an answer shares: numbers, formulas and sentences in running text.

Every pattern here and in the modules that use it reads a text in linear time: a completion may be long and hostile.
"""

from __future__ import annotations

import re


class AnswerFault(Exception):
    """There is no single answer in the completion; `reason` is the verdict's."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# A formula holds no second opening of its kind: without that rule a thousand openings without an end would each be
# followed to the end of the text.
MATH = re.compile(
    r"\$\$((?:(?!\$\$).)+)\$\$|(?<!\\)\\\[((?:(?!(?<!\\)\\[\[\]]).)+)\\\]|(?<!\\)\\\(((?:(?!(?<!\\)\\[()]).)+)\\\)"
    r"|(?<!\\)\$((?:[^$\\\n]|\\.)+?)(?<!\\)\$",
    re.DOTALL,
)
NUMBER = re.compile(
    r"(?<![\w.^])[-−]?(?:\\[$])?[$€£]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?"
    r"(?:\s*/\s*[0-9]+(?![\w/]))?(?:\s*\\?%)?"
)
SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n\s*\n")
_GOES_ON = re.compile(r"[:,;]\s*$")
_WINDOW = 400  # characters of a sentence that are looked at before an answer


def sentence_before(text: str, position: int) -> str:
    """What stands in the answer's sentence before it. A paragraph that ends with a colon or a comma goes on in the next."""
    before = text[max(0, position - _WINDOW) : position]
    start = 0
    for end in SENTENCE_END.finditer(before):
        if end.group()[0] in ".!?" or not _GOES_ON.search(before[max(0, end.start() - 20) : end.start()]):
            start = end.end()
    return before[start:]


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order, with what ends them."""
    found, start = [], 0
    for end in SENTENCE_END.finditer(text):
        found.append(text[start : end.end()])
        start = end.end()
    return [*found, text[start:]]


def content(match: re.Match[str]) -> str:
    """What a formula's dollars hold, or a number."""
    return next((group for group in match.groups() if group), match.group()).strip().rstrip(".").strip()


def plain(value: str) -> str:
    """A value without spaces, dollars and braces, for comparison as text."""
    return re.sub(r"[\s$,{}*]|\\[,!;: ]|\.$|\\left|\\right", "", value)
