"""Types that are text: free text, addresses, insurance providers and ids, sizes of parties."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from headrace.verifiers.entities.kinds import Context, EntityType, NotUnderstood
from headrace.verifiers.entities.vocabulary import ABBREVIATIONS, GUESTS, NUMBERS, ORDINALS, STATES

_WORDS = re.compile(r"[^\W_]+|#")
# Two capitals at the end, before a ZIP code or not. "NE" without one is a part of town.
_STATE = re.compile(r"\b(?!NE\s*$)[A-Z]{2}\b(?=[\s,.]*(?:\d{5}(?:-\d{4})?)?[\s,.]*$)")
_MAX_PARTY = 999


def folded(text: str) -> str:
    """One spelling for texts that look the same: compatibility forms, case, white space.

    >>> folded("  Ｍain  STRAẞE ")
    'main strasse'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def without_accents(text: str) -> str:
    """`text` without the marks on its letters: é is e, ü is u."""
    return "".join(letter for letter in unicodedata.normalize("NFD", text) if not unicodedata.combining(letter))


def words_of(text: str) -> list[str]:
    """Its words and numbers without what stands between them, except the sign for a number."""
    return [str(word) for word in _WORDS.findall(without_accents(folded(text)))]


class Text(EntityType):
    """Free text: the same but for case, white space and punctuation at its ends."""

    def canonical(self, text: str, context: Context) -> str:
        plain = folded(text).strip(" .,;:!?\"'“”„«»()")
        if not plain:
            raise NotUnderstood
        return plain


class Address(EntityType):
    """A postal address: the same words in the same order, abbreviated or not."""

    def canonical(self, text: str, context: Context) -> str:
        words = self._words(text, context)
        if not words:
            raise NotUnderstood
        return " ".join(min(meanings) for meanings in words)

    def same(self, found: str, gold: str, context: Context) -> bool:
        one, other = self._words(found, context), self._words(gold, context)
        if not one:
            raise NotUnderstood
        return len(one) == len(other) and all(left & right for left, right in zip(one, other, strict=True))

    def _words(self, text: str, context: Context) -> list[frozenset[str]]:
        """What each word may stand for: "St." is a street or a saint."""
        states = STATES if context.region == "US" else {}
        text = unicodedata.normalize("NFKC", text)
        text = _STATE.sub(lambda found: states.get(found[0], found[0]), text)
        text = re.sub(r"(?<=\w)['’](?=s\b)", "", text)
        table = ABBREVIATIONS.get(context.language, {})
        words: list[frozenset[str]] = []
        for word in words_of(text):
            word = ORDINALS.get(word, word) if context.language == "en" else word
            if context.language == "de" and len(word) > 3 and word.endswith("str"):
                word += "asse"
            meanings = table.get(word, (word,))
            if meanings:
                words.append(frozenset(meanings))
        return words


class InsuranceProvider(EntityType):
    """A company by its name, without legal form and the word for insurance; the common short names are known."""

    def canonical(self, text: str, context: Context) -> str:
        words = words_of(text.replace("&", " and "))
        while words and words[-1] in _COMPANY:
            words.pop()
        spelled: list[str] = []
        for word in words:
            spelled += _SHORT_NAMES.get(word, word).split()
        name = "".join(word for word in spelled if word not in ("and", "the", "und", "et", "y"))
        if not name:
            raise NotUnderstood
        return name


class InsuranceId(EntityType):
    """A policy or member number: letters and digits, however grouped."""

    def canonical(self, text: str, context: Context) -> str:
        number = re.sub(r"[\s.\-]", "", unicodedata.normalize("NFKC", text)).upper()
        if not re.fullmatch(r"[A-Z0-9]{2,40}", number):
            raise NotUnderstood
        return number


class PartySize(EntityType):
    """How many people: a number, in digits or in words, alone or with a word for guests."""

    def canonical(self, text: str, context: Context) -> str:
        before, after = GUESTS.get(context.language, GUESTS["en"])
        words = re.sub(r"(?<=[^\W\d_])-(?=[^\W\d_])", " ", folded(text).rstrip(".!")).split()
        words = _without(words, before, front=True)
        words = _without(words, after, front=False)
        return str(_number(words, context.language))


def _without(words: list[str], phrases: Iterable[str], *, front: bool) -> list[str]:
    """`words` without one of the phrases at its front or its end, the longest that fits."""
    for phrase in sorted(phrases, key=len, reverse=True):
        parts = phrase.split()
        if len(words) > len(parts) and (words[: len(parts)] if front else words[-len(parts) :]) == parts:
            return words[len(parts) :] if front else words[: -len(parts)]
    return words


def _number(words: list[str], language: str) -> int:
    table = NUMBERS.get(language, NUMBERS["en"])
    if len(words) == 1 and re.fullmatch(r"[0-9]{1,3}", words[0]):
        number = int(words[0])
    elif " ".join(words) in table:
        number = table[" ".join(words)]
    elif len(words) == 2 and table.get(words[0], 0) in range(20, 100, 10) and table.get(words[1], 0) in range(1, 10):
        number = table[words[0]] + table[words[1]]
    else:
        raise NotUnderstood
    if not 1 <= number <= _MAX_PARTY:
        raise NotUnderstood
    return number


_COMPANY = frozenset(
    re.findall(
        r"\w+",
        "inc incorporated llc ltd limited corp corporation co company plc ag se gmbh kg ev vvag sa sas sl sarl "
        "insurance insurances versicherung versicherungen krankenversicherung krankenkasse assurance assurances "
        "seguros seguro mutuelle",
    )
)
_SHORT_NAMES = {
    "bcbs": "blue cross blue shield",
    "uhc": "united healthcare",
    "tk": "techniker",
    "gehc": "group health cooperative",
    "hcsc": "health care service",
}
