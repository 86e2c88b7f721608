"""Checks of instructions that are this project's own, beside those of if-verifiable.

`own_checks` replace the library's: where it needs data that is only to be had by download (models of sentences and parts of
speech, stop words), where it takes a keyword for a regular expression, and where it passes what it cannot judge. `guards`
stand beside the library's check, which must pass too: they refuse what follows an instruction only because nothing is there.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

Check = Callable[..., bool]  # the completion, then the instruction's arguments by name

_ABBREVIATED = (
    "mr mrs ms dr prof st jr sr gen col capt lt sgt rev hon gov sen rep inc ltd co corp dept est fig no vol vs "
    "etc e.g i.e a.m p.m u.s u.k u.n p.s p.p.s ph.d m.d b.a m.a jan feb mar apr jun jul aug sep sept oct nov dec "
    "mt ave blvd rd approx cf al pp ed eds "
)
ABBREVIATIONS = frozenset(_ABBREVIATED.split())
_FUNCTION_WORDS = (
    "a about above after again against all am an and any are aren as at be because been before being below "
    "between both but by can couldn d did didn do does doesn doing don down during each few for from further had "
    "hadn has hasn have haven having he her here hers herself him himself his how i if in into is isn it its "
    "itself just ll m ma me mightn more most mustn my myself needn no nor not now o of off on once only or other "
    "our ours ourselves out over own re s same shan she should shouldn so some such t than that the their theirs "
    "them themselves then there these they this those through to too under until up ve very was wasn we were "
    "weren what when where which while who whom why will with won wouldn y you your yours yourself yourselves ain "
)
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
_COMMON_VERBS = (
    "accept achieve act adapt add address adjust admit adopt advise agree aim allow analyze announce answer apply "
    "appreciate approach approve argue arrange arrive ask assess assign assist assume attend avoid bake balance "
    "be bear beat become beg begin believe bend bet bind bite bless blow boil borrow break breathe bring build "
    "burn buy calculate call carry cast catch celebrate challenge change charge chase check choose chop clean "
    "clear climb close collect combine come compare compete complete compose compute concentrate connect consider "
    "construct contact contain continue contribute convert convince cook cope copy correct count create cross cut "
    "dance dare deal decide declare decorate define deliver demand demonstrate describe design detect determine "
    "develop dig discover discuss display divide do double draft drag draw dream dress drink drive drop earn eat "
    "edit eliminate embrace employ enable encourage engage enjoy ensure enter establish estimate evaluate examine "
    "exercise expand expect explain explore express extend extract face fall feed feel fetch fight figure fill "
    "find finish fit fix fly focus fold follow forget forgive form gather generate get give go grab grant grasp "
    "grow guarantee guess guide handle hang happen harvest hear help hide highlight hire hit hold hope hurry "
    "identify ignore illustrate imagine implement improve include increase indicate inform insert inspect install "
    "integrate introduce invent invest investigate invite involve join judge jump justify keep kick kill kneel "
    "knit know lay lead lean leap learn leave lend let lie lift light limit list listen live locate look lose "
    "love maintain make manage mark match mean measure meet mention mind minimize mix modify monitor move "
    "multiply name navigate need note notice observe obtain occur offer open operate order organize outline "
    "overcome pack paint participate pass pause pay perform pick place plan plant play please point practice "
    "praise prefer prepare present preserve press pretend prevent print proceed produce promise promote protect "
    "prove provide publish pull push put raise reach read realize receive recognize recommend record reduce refer "
    "reflect refuse register regard relate relax release rely remain remember remind remove repair repeat replace "
    "reply report represent request require research resist resolve respect respond rest return reveal review "
    "revise rewrite ride ring rise roll run save say scan schedule search season secure see seek select sell send "
    "separate serve set settle shake shape share shift shine shoot show shut simplify sing sit skip sleep slice "
    "slide smile solve sort speak specify spend spin split spread stand start state stay steal step stick stir "
    "stop store strengthen strike strive study submit succeed suggest summarize supply support suppose surround "
    "survive swap swim switch take talk taste teach tear tell test thank think throw tie touch track train "
    "transform translate transport travel treat trust try turn type understand update upgrade use utilize value "
    "verify view visit vote wait wake walk want warm warn wash waste watch wear weigh welcome win wish wonder "
    "work worry wrap write yield "
)
_BASE_VERBS = frozenset(_COMMON_VERBS.split())
_IRREGULAR_VERBS = (
    "is are was were am has had does did can could will would shall should may might must became began bought "
    "brought built came caught chose dealt drank drew drove ate fell fed felt fought found flew forgot gave got "
    "grew heard held hid kept knew laid led learned left lent lost made meant met paid ran said sang sat saw sent "
    "shook shone showed slept sold spoke spent stood stole struck swam taught thought threw told took understood "
    "went woke won wore wrote "
)
_VERB_FORMS = frozenset(_IRREGULAR_VERBS.split())


class TextTools(msgspec.Struct, frozen=True):
    """What an own check takes from libraries, loaded before the process is confined."""

    sentences: Callable[[str], list[str]]  # Punkt, with the abbreviations above in place of a trained model
    words: Callable[[str], list[str]]  # Penn Treebank's tokens of one sentence
    simple_sentences: Callable[[str], list[str]]  # IFBench's own splitter
    language: Callable[[str], str]  # the language's code, "" where there is nothing to tell it from


def followed(library_check: Callable[[str], bool] | None, own: Check | None, guard: Check | None) -> Check:
    """The whole check of an instruction: its own or the library's, and what stands beside it."""

    def check(text: str, **arguments: Any) -> bool:
        if not shows_something(text):
            return False
        if guard is not None and not guard(text, **arguments):
            return False
        return own(text, **arguments) if own is not None else library_check is not None and bool(library_check(text))

    return check


def shows_something(text: str) -> bool:
    """Whether a text has a character that is neither white space nor invisible."""
    return any(unicodedata.category(character)[0] not in "CZ" for character in text)


def own_checks(tools: TextTools) -> dict[str, Check]:
    """The checks in place of the library's, by instruction id."""

    def tokens(text: str) -> list[str]:
        return [token for sentence in tools.sentences(text) for token in tools.words(sentence)]

    def keyword_position(text: str, keyword: str, n: int, m: int) -> bool:
        sentences = tools.simple_sentences(text)
        words = tools.words(sentences[n - 1]) if len(sentences) >= n else []
        return len(words) >= m and words[m - 1] == keyword.strip()

    def words_position(text: str, keyword: str) -> bool:
        words = tokens(text)
        return len(words) >= 2 and words[1] == words[-2] == keyword.strip()

    def start_verb(text: str) -> bool:
        words = tokens(text)
        return bool(words) and is_verb(words[0])

    def title_case(text: str) -> bool:
        words = [word for word in tokens(text) if word[0].isalpha()]
        return bool(words) and not any(_lower_word(word) for word in words)

    def english(text: str) -> bool:
        return tools.language(text) == "en"

    return {
        "keywords:existence": lambda text, keywords: all(_occurrences(word, text) for word in keywords),
        "keywords:frequency": lambda text, keyword, frequency, relation: _holds(
            _occurrences(keyword, text), relation, frequency
        ),
        "keywords:forbidden_words": lambda text, forbidden_words: (
            not any(_whole(word, text) for word in forbidden_words)
        ),
        "keywords:letter_frequency": lambda text, letter, let_frequency, let_relation: _holds(
            text.lower().count(letter.strip().lower()), let_relation, let_frequency
        ),
        "language:response_language": lambda text, language: tools.language(text) == language,
        "length_constraints:number_sentences": lambda text, num_sentences, relation: _holds(
            len(tools.sentences(text)), relation, num_sentences
        ),
        "change_case:capital_word_frequency": lambda text, capital_frequency, capital_relation: _holds(
            sum(word.isupper() for word in tokens(text)), capital_relation, capital_frequency
        ),
        "change_case:english_capital": lambda text: text.isupper() and english(text),
        "change_case:english_lowercase": lambda text: text.islower() and english(text),
        "ratio:stop_words": _stop_words,
        "words:start_verb": start_verb,
        "words:keywords_specific_position": keyword_position,
        "words:words_position": words_position,
        "format:title_case": title_case,
        "repeat:repeat_span": lambda text, prompt_to_repeat, n_start, n_end: (
            text.lower().split() == prompt_to_repeat.lower().split()[n_start:n_end]
        ),
    }


def is_verb(word: str) -> bool:
    """Whether a word is a form of a common English verb, by a list: the tagger's model would have to be downloaded.

    >>> is_verb("Running"), is_verb("carries"), is_verb("table")
    (True, True, False)
    """
    lower = word.lower()
    if lower in _BASE_VERBS or lower in _VERB_FORMS:
        return True
    for ending, back in (
        ("ies", "y"),
        ("ied", "y"),
        ("es", ""),
        ("s", ""),
        ("ing", ""),
        ("ing", "e"),
        ("ed", ""),
        ("ed", "e"),
    ):
        if lower.endswith(ending):
            stem = lower.removesuffix(ending) + back
            if stem in _BASE_VERBS or (len(stem) > 3 and stem[-1] == stem[-2] and stem[:-1] in _BASE_VERBS):
                return True
    return False


def _holds(count: int, relation: str, threshold: int) -> bool:
    return count < threshold if relation == "less than" else count >= threshold


def _occurrences(keyword: str, text: str) -> int:
    return len(re.findall(re.escape(keyword.strip()), text, flags=re.IGNORECASE))


def _whole(word: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, flags=re.IGNORECASE) is not None


def _stop_words(text: str, percentage: int) -> bool:
    words = re.findall(r"\w+", text.lower())
    return bool(words) and 100 * sum(word in STOP_WORDS for word in words) <= percentage * len(words)


def _lower_word(word: str) -> bool:
    return word[0].islower() and len(word) > 1 and (word[1:].islower() or word[1:].isupper())


# ----------------------------------------------------------------------------------------------------- guards


def guards(simple_sentences: Callable[[str], list[str]]) -> dict[str, Check]:
    """What the library's check takes for granted, by instruction id."""

    def at_least_sentences(count: int) -> Check:
        return lambda text, **_: len([each for each in simple_sentences(text) if re.search(r"\w", each)]) >= count

    def at_least_words(count: int) -> Check:
        return lambda text, **_: len(re.findall(r"\w+", text)) >= count

    def different_words(text: str) -> bool:
        words = re.findall(r"[\w']+", text.lower())
        return len(words) == len(set(words)) and at_least_words(3)(text)

    return {
        "detectable_content:number_placeholders": lambda text, num_placeholders: (
            len(re.findall(r"\[[^\[\]\n]*\w[^\[\]\n]*\]", text)) >= num_placeholders
        ),
        "detectable_content:postscript": lambda text, postscript_marker: _after(text, postscript_marker),
        "detectable_format:constrained_response": lambda text: (
            sum(text.count(f"My answer is {each}.") for each in ("yes", "no", "maybe")) == 1
        ),
        "detectable_format:json_format": _json_container,
        "combination:repeat_prompt": lambda text, prompt_to_repeat: (
            re.search(r"\w", text.strip()[len(prompt_to_repeat.strip()) :]) is not None
        ),
        "combination:two_responses": lambda text: all(
            re.search(r"\w", part) for part in text.strip().strip("*").split("******")
        ),
        "length_constraints:number_paragraphs": lambda text, num_paragraphs: (
            sum(re.search(r"\w", part) is not None for part in text.split("***")) == num_paragraphs
        ),
        "startend:quotation": at_least_words(1),
        "punctuation:no_comma": at_least_words(1),
        "ratio:sentence_type": lambda text: at_least_sentences(3)(text) and "?" in text,
        "ratio:sentence_balance": lambda text: all(mark in text for mark in ".?!") and at_least_sentences(3)(text),
        "ratio:sentence_words": different_words,
        "count:words_japanese": lambda text, N: len(text.split()) >= N,
        "words:alphabet": at_least_words(2),
        "words:vowel": at_least_words(3),
        "words:consonants": at_least_words(1),
        "words:palindrome": lambda text: len(_palindromes(text)) >= 10,
        "words:prime_lengths": at_least_words(1),
        "words:repeats": at_least_words(1),
        "words:odd_even_syllables": at_least_words(2),
        "words:last_first": at_least_sentences(2),
        "words:paragraph_last_first": lambda text: all(
            len(part.split()) >= 2 for part in text.split("\n") if part.strip()
        ),
        "words:no_consecutive": at_least_words(2),
        "sentence:alliteration_increment": at_least_sentences(2),
        "sentence:increment": at_least_sentences(2),
        "format:emoji": at_least_words(1),
        "format:newline": at_least_words(2),
        "format:line_indent": lambda text: sum(bool(line.strip()) for line in text.split("\n")) >= 2,
        "format:quote_unquote": lambda text: re.search('["“][^"“”]*\\w[^"“”]*["”]', text) is not None,
        "format:list": lambda text, sep: sum(line.strip().startswith(sep) for line in text.split("\n")) >= 2,
        "format:sub-bullets": _sub_bullets,
        "format:output_template": lambda text: all(
            _after(text, mark) for mark in ("My Answer:", "My Conclusion:", "Future Outlook:")
        ),
        "format:no_whitespace": at_least_words(1),
        "custom:reverse_newline": lambda text: (
            len({line.strip().lower() for line in text.split("\n") if line.strip()}) >= 52
        ),
        "custom:date_format_list": lambda text: all(
            int(month) >= 1 and int(day) >= 1 for month, day in re.findall(r"[0-9]{4}-([0-9]{2})-([0-9]{2})", text)
        ),
        "custom:csv_city": _filled_rows(","),
        "custom:csv_special_character": _filled_rows(","),
        "custom:csv_quotes": _filled_rows("\t"),
    }


def _after(text: str, mark: str) -> bool:
    """Whether something stands behind the last of these marks."""
    position = text.lower().rfind(mark.strip().lower())
    return position < 0 or re.search(r"\w", text[position + len(mark.strip()) :]) is not None


def _json_container(text: str) -> bool:
    """An object or a list: a lone number or string is JSON, too, and no format."""
    body = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    return isinstance(json.loads(body, parse_constant=_no_constant), dict | list)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _palindromes(text: str) -> set[str]:
    words = text.lower().translate(str.maketrans("", "", string.punctuation)).split()
    return {
        word for word in words if len(word) >= 5 and word.isalpha() and word == word[::-1] and len(Counter(word)) > 1
    }


def _sub_bullets(text: str) -> bool:
    """Bullets at the start of lines, each with a sub-bullet before the next."""
    kinds = [line.strip()[0] for line in text.split("\n") if re.match(r"[*-]\s*\w", line.strip())]
    joined = "".join(kinds)
    return re.fullmatch(r"(?:\*-+)+", joined) is not None


def _filled_rows(separator: str) -> Check:
    return lambda text: all(
        all(field.strip(' "') for field in row.split(separator)) for row in text.strip().split("\n") if row.strip()
    )
