r"""Words that stand inside an answer: a unit or a noun may, a condition, a doubt or a second answer may not.

What the algebra and the reader of units do not look at, the words of `\text{...}`, is where "42 \text{ when even}" would
hide one. The words that gold has too are gold's own and say nothing against the answer.
"""

from __future__ import annotations

import re

from headrace.verifiers.math_form import FONT
from headrace.verifiers.math_quantity import NUMBER_WORDS, UNIT_WORDS
from headrace.verifiers.math_text import AnswerFault
from headrace.verifiers.math_words import refuse_before, refuse_words_after

_COMMAND = re.compile(r"\\(?:begin|end)\s*\{[A-Za-z*]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]+")

_TENS = "twenty|thirty|forty|fourty|fifty|sixty|seventy|eighty|ninety"
# Without those that are common English nouns or units: German "elf", French "cent" and "six", Italian "due".
_FOREIGN_NUMBERS = (
    "null eins zwei drei vier sechs sieben acht neun zehn un deux trois quatre cinq sept huit neuf dix onze douze treize"
    " quatorze quinze seize vingt trente quarante cinquante soixante uno dos tres cuatro cinco seis siete ocho nueve diez"
    " once doce trece catorce quince veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa cien ciento tre"
    " quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici diciassette diciotto"
    " diciannove venti trenta quaranta cinquanta sessanta settanta ottanta novanta um dois quatro sete oito dez doze treze"
    " vinte quarenta cinquenta setenta oitenta"
)
_NUMBER_WORD = re.compile(
    rf"(?:{_TENS})?(?:{'|'.join(NUMBER_WORDS.split())})|fourty|{'|'.join(_FOREIGN_NUMBERS.split())}"
    r"|(?:ein|zwei|drei|vier|sechs|sieben|acht|neun)(?:und[a-z]+|hundert|tausend)"
    r"|(?:drei|vier|sech|sieb|acht|neun)zehn|(?:zwan|vier|sech|sieb|acht|neun)zig",
    re.IGNORECASE,
)
_ROMAN = re.compile(r"(?=[IVXLCDM]{2})M{0,3}(?:C[MD]|D?C{0,3})(?:X[CL]|L?X{0,3})(?:I[XV]|V?I{0,3})", re.IGNORECASE)
_WORDS_LIKE_ROMANS = "mix mm ml mi mc cl cc cd cm dc di md mci"
_NOT_ROMAN = frozenset(_WORDS_LIKE_ROMANS.split())
# What sets an answer aside or makes it one of several, in a place where only a unit is expected.
_SET_ASIDE = re.compile(
    r"\b(?:iff|providing|granted|whichever|whatever|wherever|where|then|hypothetical|doubtful|tentative|guess|alternate|another|xor"
    r"|except|excepting|excluding|barring|once|bzw|beziehungsweise|nur|vorausgesetzt|sauf|soit|salvo|ovvero|vel|aut|als|tenzij|eller"
    r"|lub|albo|veya|jika|atau)\b|\b(?:provided|given)\s+(?!away\b|out\b|to\b|by\b)\w"
    # "42 batteries replaced" is a count.
    r"|(?:^|\b(?:answer|solution|value|result|this|that|it|was|is)\s+)(?:provided|given|supposed|assumed|presumed|rejected|discarded"
    r"|excluded|dismissed|retracted|withdrawn|revoked|refuted|disproved|denied|superseded|replaced|outdated|fake|invalid"
    r"|extraneous|impossible|unlikely|unverified|guessed|uncertain|disputed|ignored|unsupported)\b",
    re.IGNORECASE,
)
_ADVERB = re.compile(
    r"\b(?!(?:exactly|precisely|only|daily|weekly|monthly|yearly|hourly|quarterly|annually|altogether|totally|respectively|family"
    r"|butterfly|dragonfly|assembly|supply|jelly|belly|lily|fly|ply|ally|rally|reply|lively|early|elderly|friendly)\b)[a-z]{2,}ly\b",
    re.IGNORECASE,
)
_LONE_KIND = re.compile(
    r"even|odd|positive|negative|nonzero|nonnegative|nonpositive|prime|composite|gerade|ungerade|pair|impair|par|impar|pari|dispari",
    re.IGNORECASE,
)
_KIND_OF_THING = re.compile(
    r"(?:^|\bof\s+|\bdistinct\s+|\b(?:positive|two\W?digit|three\W?digit)\s+)(?:even|odd)\s+"
    r"(?:(?:positive|natural|whole|perfect|prime)\s+)?"
    r"(?:numbers?|integers?|divisors?|factors?|digits?|terms?|functions?|primes?|squares?|permutations?|multiples?|vertices|entries)\b",
    re.IGNORECASE,
)
_PER = re.compile(r"\bper\b(?!\s+(?:pari|dispari)\b)", re.IGNORECASE)  # Italian: for even
# Behind an expression the algebra skips a text; only units, and the names of functions, may be what is skipped.
_MORE_UNITS = "square squared cubic sq cu per units radian radians rad percent way ways infinity inf"
_FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp lg max min gcd lcm det dim deg mod"
_BEHIND_EXPRESSION = UNIT_WORDS | frozenset(f"{_MORE_UNITS} {_FUNCTIONS}".split())
_CONSTANTS = frozenset("eid")
_PROSE = re.compile(r"\\(?:text[a-z]*|mbox)\s*\{([^{}]*)\}")
_NESTED_PROSE = re.compile(r"\\(?:text[a-z]*|mbox)\s*\{[^{}]*\{")


def words(text: str) -> list[str]:
    r"""The words and bare letters of a formula, without the names of commands.

    >>> words(r"42 \text{ cm}^2 \times\mathrm{if}")
    ['cm', 'if']
    """
    previous = ""
    while previous != text:
        previous, text = text, FONT.sub(r" \1 ", text)
    return _WORD.findall(_COMMAND.sub(" ", text))


def is_refused(said: list[str]) -> bool:
    """Whether words beside a value, or in the name of one, limit it, doubt it, or name another."""
    if any(_is_number(word) for word in said):
        return True
    text = _PER.sub(" ", " ".join(said))
    if _SET_ASIDE.search(text) or _ADVERB.search(text) or _LONE_KIND.fullmatch(text):
        return True
    try:
        refuse_before(text)
        refuse_words_after(_KIND_OF_THING.sub(" ", text))
    except AnswerFault:
        return True
    return False


def _is_number(word: str) -> bool:
    roman = _ROMAN.fullmatch(word) is not None and (word.isupper() or word.islower())
    return _NUMBER_WORD.fullmatch(word) is not None or (roman and word.lower() not in _NOT_ROMAN)


def limits_quantity(gold: str, value: str) -> bool:
    """Whether the words behind a number are more than its unit; any noun may be one."""
    known = {word.lower() for word in words(gold)}
    return is_refused([word for word in words(value) if word.lower() not in known])


def limits_expression(gold: str, value: str) -> bool:
    """Whether an expression, an interval or a matrix holds words that neither gold has nor are a unit."""
    known = words(gold)
    spoken = {word.lower() for word in known if len(word) > 1}
    symbols = {word for word in known if len(word) == 1} | {
        letter for word in known if len(word) < 4 for letter in word
    }
    prose = {word for match in _PROSE.finditer(value) for word in words(match[1])}
    if _NESTED_PROSE.search(value):
        return True
    for match in (*FONT.finditer(value), *_PROSE.finditer(value)):
        for word in words(match[1]):
            # A bold or upright letter is a symbol; a letter in a text is a word: "o" is Spanish for "or".
            if word not in prose and (len(word) == 1 or symbols.issuperset(word)):
                continue
            if len(word) == 1 and word in symbols | _CONSTANTS:
                continue
            if word.lower() not in spoken and word not in _BEHIND_EXPRESSION and word.lower() not in _BEHIND_EXPRESSION:
                return True
    return False
