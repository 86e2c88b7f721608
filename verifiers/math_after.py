"""What stands after an answer: no other answer may.

A number or a formula there counts as another answer, whatever the words and the language around it, unless it is the
answer again, or belongs to what is plainly none: a calculation that has the answer in it, an approximation of it, the
number of a step, a date, a count in a sentence with "because".
"""

from __future__ import annotations

import re
from fractions import Fraction

import msgspec

from headrace.verifiers.math_compare import is_word
from headrace.verifiers.math_form import clean, sides
from headrace.verifiers.math_quantity import Quantity, read_list, read_quantity, same_quantity
from headrace.verifiers.math_text import AnswerFault, plain, sentences
from headrace.verifiers.math_words import refuse_words_after

_LONGEST_CANDIDATE = 200  # characters of a number that is compared; a longer one is another

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}\.?"
_DAY = r"(?:[12][0-9]|3[01]|0?[1-9])(?:st|nd|rd|th)?"
_NO_VALUE = re.compile(
    rf"\b{_DAY}\s(?:of\s)?{_MONTH}(?:,?\s[0-9]{{4}})?\b|\b{_MONTH}\s{_DAY}(?:,?\s[0-9]{{4}})?\b"
    r"|\b[0-9]{4}-[0-9]{2}-[0-9]{2}\b"
    r"|\b(?:steps?|equations?|eqs?\.|problem|question|exercise|part|section|chapter|page|figure|theorem|lemma|example)"
    r"\s?[#(]{0,2}[0-9]{1,3}(?:\.[0-9]{1,2})?\b\)?"
    r"|^[ \t]*[0-9]{1,2}[.)](?=[ \t]+[A-Za-z*])"
    r"|(?:\}|\b(?:cm|mm|km|m|in|ft|yd|mi|s|units?|inches|feet|meters|metres))\^\{?-?[1-4]\}?"
    r"|_\{?[0-9]{1,3}\}?",
    re.MULTILINE,
)
_VALUE = re.compile(
    r"[-−]?\\[dt]?frac\s?\{-?[0-9]{1,30}\}\s?\{[0-9]{1,30}\}"
    r"|(?<![\w.])[-−]?(?:\\?[$€£])?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:\s?\\?%)?"
    r"|[0-9]+"
)
_LINK = re.compile(
    r"(?:[\s$(){}\[\]+\-*/=×·÷−^!]|\\(?:times|cdot|div|sqrt|left|right|[,;! ])|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))*"
)
_OPERATOR = re.compile(r"[+\-*/=×·÷−^]|\\(?:times|cdot|div)")
_OPERATION = re.compile(r"[+*/×·÷^(]|\\(?:times|cdot|div|sqrt)|[\w)}$]\s*[-−]")
_ABOUT = re.compile(r"[\s$)}]*(?:\\approx(?![a-z])|≈|\(?(?:approximately|about)\b)[\s$]*(-?[0-9]+(?:\.[0-9]+)?)")
_GOES_ON = re.compile(r"[\s$]*(?:\+|\^(?!\s*\{?\s*(?:\\circ|\\text|°))|\\(?:times|cdot|pm|mp)(?![a-z]))")
_COUNTED = re.compile(r"[\s$]*(?!(?:is|are|for|when|if|and|or|else|und|sonst|wenn|but|on|in|instead)\b)[A-Za-z]{3,}")
_BECAUSE = re.compile(r"\b(?:because|since)\b", re.IGNORECASE)
_OTHER_DIGITS = re.compile(
    r"(?![0-9])\d|[½⅓⅔¼¾⅕⅛]|[一二三四五六七八九]?十[一二三四五六七八九]|[二三四五六七八九]十|[一-九]百"
)
_CONSTANT = re.compile(r"\\(?:pi|infty|emptyset|varnothing)(?![a-z])|[π∞∅]")
_PIECE_END = re.compile(r"[.,;:!?](?=\s|$)|\n|\$+|\\[()\[\]]")
_CHOICE = re.compile(r"(?<![A-Za-z'\\])(?:\(([A-Z])\)|([B-HJ-Z])(?![A-Za-z']))")
_YES_OR_NO = re.compile(r"(?:^|[.,;:!?(])\s*(yes|no|true|false)\b(?!\s+(?:doubt|need|problem))", re.IGNORECASE)

_SMALL = ["zero", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_TEENS = ["eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORD_VALUES = {
    **{word: number for number, word in enumerate(_SMALL, 1) if word != "zero"},
    "zero": 0, "one": 1,
    **{word: number for number, word in enumerate(_TEENS, 11)},
    **{word: number * 10 for number, word in enumerate(_TENS, 2)},
}  # fmt: skip
_NUMBER_WORD = re.compile(
    rf"\b(?P<tens>{'|'.join(_TENS)})(?:[ -](?P<ones>one|{'|'.join(_SMALL[1:-1])}))?\b|\b(?P<teen>{'|'.join(_TEENS)})\b"
    rf"|(?:\b(?:is|be|are|also)\s|[:;=—])\s?(?P<small>one|{'|'.join(_SMALL)})\b(?!\s(?:of|can|could|may|has|way)\b)",
    re.IGNORECASE,
)


class _Answer(msgspec.Struct, frozen=True):
    """An answer in the forms in which it may be said again."""

    texts: frozenset[str]
    quantities: tuple[Quantity, ...]
    raw: tuple[str, ...]
    numeric: bool
    word: bool

    def has(self, text: str) -> bool:
        if plain(text) in self.texts:
            return True
        if len(text) > _LONGEST_CANDIDATE:
            return False
        quantity = read_quantity(clean(text))
        return quantity is not None and any(same_quantity(each, quantity) for each in self.quantities)


def refuse_after(after: str, values: tuple[str, ...]) -> None:
    """Raises AnswerFault where a text after an answer limits it, takes it back, or holds another."""
    answer = _answer(values)
    after = after.replace("**", "")
    if _GOES_ON.match(after):
        raise AnswerFault("several_answers")
    for raw in answer.raw:
        after = _without(after, raw)
    refuse_words_after(after)
    if answer.word:
        _refuse_other_words(after, answer)
        return
    after = _without_approximation(after, answer)
    for sentence in sentences(_NO_VALUE.sub(" ", after)):
        _refuse_other_values(sentence, answer)


def only_punctuation(after: str) -> bool:
    r"""Whether nothing that says anything is in a text: spaces, punctuation, what ends a formula.

    >>> only_punctuation("$.\n\\]"), only_punctuation(". Thanks")
    (True, False)
    """
    return re.search(r"[^\W_]", re.sub(r"\\end\{[a-z]{1,12}\*?\}|\\blacksquare|\\square", "", after)) is None


def _answer(values: tuple[str, ...]) -> _Answer:
    forms: set[str] = set()
    for value in values:
        text = clean(value)
        listing = read_list(text)
        elements = (text, *(listing.elements if listing else ()))
        forms.update(form for element in elements for form in (element, sides(element)[-1]))
    quantities = [read_quantity(form) for form in forms]
    return _Answer(
        texts=frozenset(plain(form) for form in (*values, *forms)),
        quantities=tuple(quantity for quantity in quantities if quantity is not None),
        raw=tuple(value for value in values if len(value) > 1 and read_quantity(clean(value)) is None),
        numeric=any(quantity is not None for quantity in quantities),
        word=all(is_word(clean(value)) for value in values),
    )


def _without(text: str, raw: str) -> str:
    """A text without the answer as it was written, where that stands for itself."""
    return re.sub(rf"(?<![\w+\-*/^.]){re.escape(raw)}(?![\w+\-*/^])", " ", text)


def _without_approximation(after: str, answer: _Answer) -> str:
    """A text without the decimal that an answer is about, where it begins with that; a number must be its rounding."""
    match = _ABOUT.match(after)
    if match is None or len(match[1]) > _LONGEST_CANDIDATE:
        return after
    places = len(match[1].partition(".")[2])
    given = Fraction(match[1])
    if answer.numeric and not any(round(each.value, places) == given for each in answer.quantities):
        raise AnswerFault("several_answers")
    return after[match.end() :]


def _refuse_other_words(after: str, answer: _Answer) -> None:
    """For an answer that is a word: no other choice's letter, and neither yes after no nor no after yes."""
    if any(len(text) == 1 for text in answer.texts):
        others = {match[1] or match[2] for match in _CHOICE.finditer(after)}
    else:
        others = {match[1].lower() for match in _YES_OR_NO.finditer(after)}
        if not {text.lower() for text in answer.texts} & {"yes", "no", "true", "false"}:
            return
    if others - answer.texts - {text.lower() for text in answer.texts}:
        raise AnswerFault("several_answers")


def _refuse_other_values(sentence: str, answer: _Answer) -> None:
    because = _BECAUSE.search(sentence)
    for run in _runs(sentence):
        if not _is_harmless(sentence, run, answer, because is not None and because.end() <= run[0].start()):
            raise AnswerFault("several_answers")
    if _OTHER_DIGITS.search(sentence):
        raise AnswerFault("several_answers")
    if any(not answer.has(str(_spoken(match))) for match in _NUMBER_WORD.finditer(sentence)):
        raise AnswerFault("several_answers")
    for piece in _PIECE_END.split(sentence):
        if not _is_harmless_formula(piece, answer):
            raise AnswerFault("several_answers")


def _runs(sentence: str) -> list[list[re.Match[str]]]:
    """The numbers of a sentence; those that operators join, together."""
    runs: list[list[re.Match[str]]] = []
    for number in _VALUE.finditer(sentence):
        if runs:
            between = sentence[runs[-1][-1].end() : number.start()]
            joined = between + number.group()[0]  # a minus may have been read as a sign
            if _LINK.fullmatch(between) and _OPERATOR.search(joined):
                runs[-1].append(number)
                continue
        runs.append([number])
    return runs


def _is_harmless(sentence: str, run: list[re.Match[str]], answer: _Answer, explained: bool) -> bool:
    if len(run) == 1:
        if answer.has(run[0].group()):
            return True
        return explained and _COUNTED.match(sentence, run[0].end()) is not None
    if not any(answer.has(number.group()) for number in run):
        return explained and "=" not in sentence[run[0].start() : run[-1].end()]
    parts = sentence[run[0].start() : run[-1].end()].split("=")
    calculation = len(parts) > 1 and any(_OPERATION.search(part) for part in parts)
    # "41 + 1 = 42" is a check; "42 = 41" and "42, n = 41" are not.
    if calculation:
        return not any(re.fullmatch(r"[\s$(]*[A-Za-z][\s$)]*", part) for part in parts) or answer.has(parts[-1])
    return all(answer.has(number.group()) for number in run)


def _spoken(match: re.Match[str]) -> int:
    words = [match[name].lower() for name in ("tens", "ones", "teen", "small") if match[name]]
    return sum(_WORD_VALUES[word] for word in words)


def _is_harmless_formula(piece: str, answer: _Answer) -> bool:
    """Whether a piece of a sentence is prose, a bare symbol, or the answer, and no other formula."""
    bare = piece.strip()
    if not bare or plain(bare) in answer.texts:
        return True
    if _CONSTANT.search(bare) and not any(_CONSTANT.search(raw) for raw in answer.raw):
        return False
    if answer.numeric or len(bare) > _LONGEST_CANDIDATE:
        return True
    letters = re.sub(r"\\[A-Za-z]+", "", bare).rstrip(" =")  # the answer behind "x =" has been taken out
    if re.search(r"[A-Za-z]{3,}", letters) or not re.search(r"[A-Za-z]", letters):
        return True
    return re.search(r"[-+*/=^<>−]", letters) is None or any(plain(side) in answer.texts for side in sides(clean(bare)))
