"""Words that make an answer none: conditions, alternatives, doubts, denials and corrections.

English in full; of German, French, Spanish, Italian, Portuguese, Russian, Chinese and Japanese the words for "if", "else"
and "or". `math_after.py` does without words: it looks for other values.
"""

from __future__ import annotations

import re

from headrace.verifiers.math_text import MATH, NUMBER, AnswerFault, sentences

_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|might\s+be|could\s+(?:also|be)|can\s+also|may\s+be|not\s+sure|unsure|i\s+guess|either|unless|assuming"
    r"|suppose|supposing|provided\s+(?:that\b|[$\\]|[a-z]\b|\w+\s+(?:is|are)\b)|depending|depends|otherwise|alternatively|or\s+else|in\s+(?:(?:that|which|either)\s+)?case"
    r"|else|as\s+long\s+as|so\s+long\s+as|under\s+the\s+(?:condition|assumption)|on\s+condition"
    # German, French, Spanish, Italian, Portuguese, Russian. "Si" and "se" also mean other things: see _IF_BY_FORM.
    r"|wenn|falls|sofern|sonst|andernfalls|ansonsten|vielleicht|alternativ|entweder|sinon|lorsque|quand|peut-être|alternativement"
    r"|cuando|de\s+lo\s+contrario|si\s+no|quizás|alternativamente|altrimenti|oppure|quando|forse|senão|caso\s+contrário|talvez"
    r"|если|когда|иначе|либо|возможно)\b"
    r"|如果|假如|若|否则|否則|或|もし|それ以外|場合|または",
    re.IGNORECASE,
)
_IF_BY_FORM = re.compile(r"\b[Ss]i\b(?!\s+(?:units?|prefix))|\b[Ss]e\s+\\?[$(]*[A-Za-z]\b|\b(?:[Ii][Ff])\b")
_NO_CONDITION = re.compile(
    r"\bif\s+and\s+only\s+if\b|\b(?:check|see|verify|ask(?:s|ed)?|determine|know)\s+if\b|\bgenau\s+dann,?\s+wenn\b"
    r"|\bsi\s+et\s+seulement\s+si\b|\bsi\s+y\s+s[oó]lo\s+si\b|\bse\s+e\s+solo\s+se\b",
    re.IGNORECASE,
)
_KIND = (
    r"(?:even|odd|other|remaining|positive(?!\s+(?:integer|real|number))|negative(?!\s+(?:integer|real|number))|non-?zero"
    r"|non-?negative(?!\s+(?:integer|real|number))|zero|prime|composite|large|small|sufficiently|gerades?|geraden|ungerade[sn]?"
    r"|pairs?|impairs?|pares|impares|par|impar|pari|dispari|чётн\w*|нечётн\w*)"
)
_SYMBOL = r"(?:[$(\\]{1,3}[A-Za-z]|[b-zB-Z])(?![A-Za-z])[$)]{0,2}"  # "a" alone is the article
_PROPERTY = (
    r"(?:even|odd|positive|negative|prime|composite|divisible|gerade|ungerade|pair|impair|par\b|impar|pari\b|dispari"
    r"|[<>≤≥≡]|\\(?:le|ge|leq|geq|equiv|ne|neq)\b)"
)
_RELATION = rf"(?:is|are|be|ist|es|est|è)?\s*{_PROPERTY}"
_FOR_KIND = re.compile(
    rf"\b(?:for|für|pour|para|per|для)\s+(?:(?:the|all|any|every|each|some|an?|case|cases|of|alle|tous?|todos?|all\s+other)\s+){{0,3}}"
    rf"(?:{_KIND}\b|{_SYMBOL}\s*(?:that\s+)?{_RELATION})",
    re.IGNORECASE,
)
_FOR_SYMBOL = re.compile(
    rf"\b(?:for|für|pour|para|per|для)\s+(?:(?:the|some|an?|case|cases|of|integers?|values?|numbers?)\s+){{0,3}}(?:{_SYMBOL}|some\b|others?\b)"
    r"|\bfor\s+(?:all|any|every|each)\s+(?:\w+\s+){0,2}[$\\]{0,2}[A-Za-z]?\$?\s*(?:with|such|where|that|satisf)",
    re.IGNORECASE,
)
_WHEN = re.compile(r"\b(?:when|whenever|where\s+(?:\S+\s+){1,3}(?:even|odd|positive|negative))\b", re.IGNORECASE)
_HARMLESS_WHEN = re.compile(
    r"\bwhen\s+(?:we|you|they|he|she|simplified|rounded|reduced|expressed|written|evaluated|expanded|factored|\w+ing|added|multiplied"
    r"|divided)\b|\bwhen\b[^.,;:\n]{0,80}?\b(?:is|are)\s+(?:divided|rounded|simplified|expressed|written|reduced|added|multiplied"
    r"|subtracted|raised|evaluated|expanded|factored|rolled|tossed|flipped)\b"
    # "The value when $x = 3$ is": what was asked for, again.
    r"|\bwhen\s+\$?[A-Za-z]\s?=\s?-?[0-9]{1,20}\$?(?:\s?(?:,|and)\s?\$?[A-Za-z]\s?=\s?-?[0-9]{1,20}\$?){0,3}\s(?:is|equals)\b"
    r"|\b(?:occurs?|achieved|attained|happens?|reached|equality\s+holds)\s+when\b",
    re.IGNORECASE,
)
_PARITY = re.compile(
    r"\b(?:even|odd|positive|negative|gerade|ungerade|pair|impair|par|impar|pari|dispari)\b", re.IGNORECASE
)
_CASE = re.compile(
    rf"\bcases?\s*\(?\$?(?:[0-9]|[ivx]+\b|[a-d]\b)|\b(?:{_KIND}|{_KIND}\s+{_SYMBOL}|{_SYMBOL}\s*{_RELATION})\W{{0,5}}:\W*$",
    re.IGNORECASE,
)
_ONE_OF = re.compile(
    r"\b(?:one|any|some|either)\s+of\s+(?:(?:the|these|those)\s+)?(?:following|these|those|two|three|numbers?|values?|possib\w*|[0-9$\\])"
    r"|\b(?:one|any)\s+of\b[^,]{0,60}$|\bamong\b[^,]{0,60}$",
    re.IGNORECASE,
)
_FOR_VALUE = re.compile(r"\b(?:for|when)\s+[$(\\]{0,3}[A-Za-z]\s*=\s*(-?[0-9]+)", re.IGNORECASE)
_DENIAL_BEFORE = re.compile(
    r"\b(?:not|n't|never|isn't|aren't|cannot\s+be|can't\s+be)\b\W*(?:\w+\W+){0,3}$|\b(?:false|wrong|incorrect|untrue)\s+that\b",
    re.IGNORECASE,
)
_DENIAL_AFTER = re.compile(
    r"\W{0,4}(?:is|are|was|would\s+be|cannot|can't)?\W*(?:not|n't|isn't|aren't|wrong|incorrect|false|never|cannot)\b",
    re.IGNORECASE,
)
_OR_BEFORE = re.compile(r"\b(?:or|oder|ou|(?-i:o))\b\W{0,8}(?:\\text\{\W{0,8})?\W{0,8}$", re.IGNORECASE)
_SIGN_BEFORE = re.compile(r"[=$({]\s{0,8}[-−+]\s{0,8}$|\\(?:pm|mp|neg)\s{0,8}$|[0-9]$")
_ALTERNATIVE = re.compile(
    r"\bor\b(?!\s+equivalently\b)|\boder\b|\bou\b|(?-i:\bo\b)|\bversus\b|\bvs\b|\band\s+(?:also\s+)?(?:sometimes|possibly)\b",
    re.IGNORECASE,
)
_RETRACTION = re.compile(
    r"\b(?:alternative(?:ly)?|correction|corrected|actually|instead|but|however|except|sometimes|wait|sorry|oops|scratch\s+that"
    r"|on\s+second\s+thought|rather|mistake|mistaken|wrong|incorrect|false|nope|second\s+answer|other\s+answer|another\s+answer"
    r"|also\s+(?:possible|correct|valid|works)|not\s+(?:correct|right|true|valid|the\s+answer)|isn't|while|whereas"
    r"|korrektur|aber|sondern|correction|mais|pero|sino|però|mas|corrección|но)\b|但",
    re.IGNORECASE,
)
_SYMBOL_IS = re.compile(rf"(?<![A-Za-z\\'’]){_SYMBOL}\s*{_RELATION}", re.IGNORECASE)
_PARITY_AFTER = re.compile(r"\b(?:even|odd|gerade|ungerade|impair|impar|dispari)\b", re.IGNORECASE)
_GIVEN = re.compile(
    rf"^\W*(?:in\s+the\s+|the\s+)?(?:even|odd)\s+(?:{_SYMBOL}|cases?)|\bin\s+the\s+(?:even|odd)\s+case"
    rf"|\bgiven\s+(?:that\s+)?{_SYMBOL}\s*{_RELATION}|\\begin\{{[dr]?cases\}}(?!.*\\end\{{[dr]?cases\}})",
    re.IGNORECASE | re.DOTALL,
)
_FONT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox)\{|\\[,;! ]|\\q?quad\b|~")
_REASON = re.compile(r"\b(?:because|since)\b", re.IGNORECASE)
_POLITE = re.compile(
    r"\W*(?:please|feel\s+free|let\s+me\s+know|thanks|thank\s+you|i\s+hope|hope\s+this|if\s+you\s+(?:have|need|want|would|'?d)"
    r"|ask\s+(?:me\s+)?if|good\s+luck)\b",
    re.IGNORECASE,
)


def refuse_before(before: str) -> None:
    """Raises AnswerFault where the words before an answer, in its sentence, put it under a condition or in doubt."""
    before = _NO_CONDITION.sub(" ", _FONT.sub(" ", before[-400:]))
    if _CASE.search(before):
        raise AnswerFault("several_answers")
    if (
        _HEDGE.search(before)
        or _IF_BY_FORM.search(before)
        or _FOR_KIND.search(before)
        or _ONE_OF.search(before)
        or _GIVEN.search(before)
        or _conditional_when(before)
        or len(set(_FOR_VALUE.findall(before))) > 1
    ):
        raise AnswerFault("hedged")
    if _DENIAL_BEFORE.search(before) or _OR_BEFORE.search(before) or _SIGN_BEFORE.search(before):
        raise AnswerFault("hedged")


def refuse_words_after(after: str) -> None:
    """Raises AnswerFault where the words after an answer, anywhere, take it back, limit it or announce another."""
    if _DENIAL_AFTER.match(after) or re.match(r"[\s$)\]}]*\?", after):
        raise AnswerFault("hedged")
    for place, sentence in enumerate(sentences(after)):
        if place and _POLITE.match(sentence) and not (NUMBER.search(sentence) or MATH.search(sentence)):
            continue
        told = _NO_CONDITION.sub(" ", _FONT.sub(" ", sentence))
        if (
            _HEDGE.search(told)
            or _IF_BY_FORM.search(told)
            or _FOR_KIND.search(told)
            or _FOR_SYMBOL.search(told)
            or _ALTERNATIVE.search(told)
            or _RETRACTION.search(told)
            or _conditional_when(told)
            or ((_SYMBOL_IS.search(told) or _PARITY_AFTER.search(told)) and not _REASON.search(told))
        ):
            raise AnswerFault("hedged")


def _conditional_when(text: str) -> bool:
    """Whether a "when" limits the answer, and does not only tell how it is found or written."""
    rest = text if _PARITY.search(text) else _HARMLESS_WHEN.sub(" ", text)
    return _WHEN.search(rest) is not None
