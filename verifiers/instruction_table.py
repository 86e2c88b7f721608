"""The instructions of IFEval (25) and IFBench (58) by id, with the arguments that each of them takes.

A missing argument is the row's fault: the library would draw one at random, and a reward would be a matter of luck.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.verifiers.base import nearest, shown


class Argument(msgspec.Struct, frozen=True):
    """A kind of argument: its Python type, and for numbers the least that makes sense."""

    kind: type
    least: int = 0
    choices: tuple[str, ...] = ()


_COUNT, _PLACE, _TEXT, _TEXTS = Argument(int), Argument(int, least=1), Argument(str), Argument(list)
_PERCENT = Argument(int)
_RELATION = Argument(str, choices=("less than", "at least"))

IFEVAL: dict[str, dict[str, Argument]] = {
    "keywords:existence": {"keywords": _TEXTS},
    "keywords:frequency": {"keyword": _TEXT, "frequency": _COUNT, "relation": _RELATION},
    "keywords:forbidden_words": {"forbidden_words": _TEXTS},
    "keywords:letter_frequency": {"letter": _TEXT, "let_frequency": _COUNT, "let_relation": _RELATION},
    "language:response_language": {"language": _TEXT},
    "length_constraints:number_sentences": {"num_sentences": _COUNT, "relation": _RELATION},
    "length_constraints:number_paragraphs": {"num_paragraphs": _PLACE},
    "length_constraints:number_words": {"num_words": _COUNT, "relation": _RELATION},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": _PLACE,
        "nth_paragraph": _PLACE,
        "first_word": _TEXT,
    },
    "detectable_content:number_placeholders": {"num_placeholders": _COUNT},
    "detectable_content:postscript": {"postscript_marker": _TEXT},
    "detectable_format:number_bullet_lists": {"num_bullets": _COUNT},
    "detectable_format:constrained_response": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": _COUNT},
    "detectable_format:multiple_sections": {"section_spliter": _TEXT, "num_sections": _COUNT},
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "combination:two_responses": {},
    "combination:repeat_prompt": {"prompt_to_repeat": _TEXT},
    "startend:end_checker": {"end_phrase": _TEXT},
    "startend:quotation": {},
    "change_case:capital_word_frequency": {"capital_frequency": _COUNT, "capital_relation": _RELATION},
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "punctuation:no_comma": {},
}

IFBENCH: dict[str, dict[str, Argument]] = {
    "count:word_count_range": {"min_words": _COUNT, "max_words": _COUNT},
    "count:unique_word_count": {"N": _COUNT},
    "count:conjunctions": {"small_n": _COUNT},
    "count:person_names": {"N": _COUNT},
    "count:numbers": {"N": _COUNT},
    "count:punctuation": {},
    "count:words_japanese": {"N": _PLACE},
    "count:pronouns": {"N": _COUNT},
    "count:keywords_multiple": {f"keyword{number}": _TEXT for number in range(1, 6)},
    "ratio:stop_words": {"percentage": _PERCENT},
    "ratio:sentence_type": {},
    "ratio:sentence_balance": {},
    "ratio:sentence_words": {},
    "ratio:overlap": {"reference_text": _TEXT, "percentage": _PERCENT},
    "words:alphabet": {},
    "words:vowel": {},
    "words:consonants": {},
    "words:palindrome": {},
    "words:prime_lengths": {},
    "words:start_verb": {},
    "words:repeats": {"small_n": _PLACE},
    "words:odd_even_syllables": {},
    "words:last_first": {},
    "words:paragraph_last_first": {},
    "words:no_consecutive": {},
    "words:keywords_specific_position": {"keyword": _TEXT, "n": _PLACE, "m": _PLACE},
    "words:words_position": {"keyword": _TEXT},
    "sentence:alliteration_increment": {},
    "sentence:keyword": {"word": _TEXT, "N": _PLACE},
    "sentence:increment": {"small_n": _PLACE},
    "format:parentheses": {},
    "format:quotes": {},
    "format:options": {"options": _TEXT},
    "format:newline": {},
    "format:emoji": {},
    "format:line_indent": {},
    "format:quote_unquote": {},
    "format:list": {"sep": _TEXT},
    "format:thesis": {},
    "format:sub-bullets": {},
    "format:no_bullets_bullets": {},
    "format:title_case": {},
    "format:output_template": {},
    "format:no_whitespace": {},
    "custom:multiples": {},
    "custom:mcq_count_length": {},
    "custom:reverse_newline": {},
    "custom:word_reverse": {},
    "custom:character_reverse": {},
    "custom:sentence_alphabet": {},
    "custom:european_capitals_sort": {},
    "custom:csv_city": {},
    "custom:csv_special_character": {},
    "custom:csv_quotes": {},
    "custom:date_format_list": {},
    "repeat:repeat_change": {"prompt_to_repeat": _TEXT},
    "repeat:repeat_simple": {},
    "repeat:repeat_span": {"prompt_to_repeat": _TEXT, "n_start": _COUNT, "n_end": _PLACE},
}

INSTRUCTIONS: Mapping[str, dict[str, Argument]] = IFEVAL | IFBENCH
_CODES = (
    "af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr ne nl no pa pl "
    "pt ro ru sk sl so sq sv sw ta te th tl tr uk ur vi zh-cn zh-tw "
)
LANGUAGES = frozenset(_CODES.split())
"""Codes of the languages that langdetect knows."""
CHARACTERS = frozenset({"letter"})  # text arguments that are one character


class Instruction(msgspec.Struct, frozen=True):
    """One instruction of a row: its id, and all the arguments that it takes."""

    id: str
    arguments: dict[str, Any]


class WrongInstruction(Exception):
    """A row's instruction cannot be checked; the message says which and why."""


def read_instruction(instruction_id: Any, given: Any) -> Instruction:
    """An instruction of a row, its arguments checked. None stands for "not given", as data sets of one table have it.

    Raises WrongInstruction, naming the argument.
    """
    if not isinstance(instruction_id, str) or instruction_id not in INSTRUCTIONS:
        hint = nearest(instruction_id[:80], INSTRUCTIONS) if isinstance(instruction_id, str) else ""
        told = instruction_id[:80] if isinstance(instruction_id, str) else shown(instruction_id, 80)
        raise WrongInstruction(f"unknown instruction `{told}`{hint}")
    if given is not None and not isinstance(given, Mapping):
        raise WrongInstruction(f"the arguments of `{instruction_id}` are {type(given).__name__}, not an object")
    takes = INSTRUCTIONS[instruction_id]
    values = {name: value for name, value in (given or {}).items() if value is not None}
    for name in values:
        if name not in takes:
            raise WrongInstruction(f"`{instruction_id}` takes no argument `{name}`{nearest(str(name), takes)}")
    arguments = {}
    for name, argument in takes.items():
        if name not in values:
            raise WrongInstruction(f"`{instruction_id}` needs the argument `{name}`")
        arguments[name] = _read(argument, values[name], f"argument `{name}` of `{instruction_id}`", name)
    if "language" in arguments and arguments["language"] not in LANGUAGES:
        raise WrongInstruction(f"argument `language` of `{instruction_id}`: unknown code `{arguments['language']}`")
    if "n_end" in arguments and arguments["n_start"] >= arguments["n_end"]:
        raise WrongInstruction(f"`{instruction_id}`: `n_start` is not below `n_end`")
    if "nth_paragraph" in arguments and arguments["nth_paragraph"] > arguments["num_paragraphs"]:
        raise WrongInstruction(f"`{instruction_id}`: `nth_paragraph` is above `num_paragraphs`")
    return Instruction(instruction_id, arguments)


def _read(argument: Argument, value: Any, where: str, name: str) -> Any:
    if argument.kind is int:
        if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
            raise WrongInstruction(f"{where} is {shown(value, 80)}, not a whole number")
        if value < argument.least:
            raise WrongInstruction(f"{where} is {value:g}; it must be at least {argument.least}")
        return int(value)
    if argument.kind is list:
        words = value if isinstance(value, list) else []
        if not words or not all(isinstance(word, str) and word.strip() for word in words):
            raise WrongInstruction(f"{where} is not a list of words")
        return words
    if not isinstance(value, str) or not value.strip():
        raise WrongInstruction(f"{where} is not text")
    if argument.choices and value not in argument.choices:
        raise WrongInstruction(f"{where} is `{value}`; there are: {', '.join(argument.choices)}")
    if name in CHARACTERS and len(value.strip()) != 1:
        raise WrongInstruction(f"{where} is `{value}`, not one character")
    return value
