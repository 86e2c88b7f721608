"""Instructions about the form of an answer: IFEval's 25 and IFBench's 58, each followed or not.

Here are the options, the process that the check runs in, and the loading of if-verifiable without its downloads;
`instruction_table.py` has the ids and their arguments, `instruction_checks.py` what is checked otherwise than there.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from headrace.verifiers.base import after_thinking, not_run, parse_options, printable, rebuild, scored
from headrace.verifiers.confined import ConfinedOptions, ConfinedVerifier
from headrace.verifiers.errors import UserError
from headrace.verifiers.instruction_checks import (
    ABBREVIATIONS,
    Check,
    TextTools,
    followed,
    guards,
    own_checks,
    shows_something,
)
from headrace.verifiers.instruction_table import IFEVAL, INSTRUCTIONS, Instruction, WrongInstruction, read_instruction
from headrace.verifiers.records import Sample, Verdict

_PACKAGE = "if_verifiable"
_MISSING = "verifier `instructions` needs the package if-verifiable: pip install 'headrace[instructions]'"
_CHECK_FAULTS = (ValueError, IndexError, KeyError, RecursionError, csv.Error)
"""What the library's checks raise on text they did not think of; such text follows no instruction."""


class InstructionsOptions(ConfinedOptions):
    ids_field: str = "instruction_id_list"
    """Row field with the ids of the instructions."""
    arguments_field: str = "kwargs"
    """Row field with the arguments of each, a list of objects in the same order."""
    thinking_end: str | None = "</think>"
    """What a completion says before the last of these marks is not looked at; none: all is."""
    partial_credit: bool = False
    """The reward is the share of instructions that are followed; false: all or nothing."""


class InstructionsVerifier(ConfinedVerifier):
    """The options of `InstructionsOptions` by name. Reward 1 if every instruction is followed to the letter.

    Reasons: `followed`, `not_followed`, `empty`, `timeout`, `memory`, `crash`. As infra_error: `bad_row`, `verifier_error`,
    `verifier_died`, `verifier_failed`. Details: `strict` and `loose` for the whole, and for each of the `instructions`.

    Raises UserError for a wrong option, for a missing if-verifiable, and with `sandbox` where a process cannot be confined.
    """

    def __init__(self, **options: Any) -> None:
        self.options = parse_options(InstructionsOptions, options, "instructions")
        if importlib.util.find_spec(_PACKAGE) is None:
            raise UserError(_MISSING)
        fields = (self.options.ids_field, self.options.arguments_field)
        self._set_up(self.options, load_check, self.options.model_dump(mode="json"), self._load_here, fields)

    def _load_here(self) -> Callable[[Sample], Verdict]:
        return InstructionsCheck(self.options, load_library()).verify

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (type(self), self.options.model_dump())

    def check_row(self, row: dict[str, Any]) -> str | None:
        try:
            read_row(row, self.options)
        except WrongInstruction as fault:
            return printable(str(fault), 500)
        return None


def read_row(row: dict[str, Any], options: InstructionsOptions) -> list[Instruction]:
    """The instructions of a row. Raises WrongInstruction for one that cannot be checked."""
    ids, arguments = row.get(options.ids_field), row.get(options.arguments_field)
    if not isinstance(ids, list) or not ids:
        raise WrongInstruction(f"field `{options.ids_field}` is not a list of instruction ids")
    if arguments is None:
        arguments = [None] * len(ids)
    if not isinstance(arguments, list) or len(arguments) != len(ids):
        raise WrongInstruction(
            f"field `{options.arguments_field}` is not a list of {len(ids)} objects, one an instruction"
        )
    return [read_instruction(*pair) for pair in zip(ids, arguments, strict=True)]


def loose_variants(text: str) -> list[str]:
    """The forms of a completion that the loose measure tries: without its first line, its last, both, and each without
    asterisks (IFEval, arXiv 2311.07911, section 2.2)."""
    lines = text.split("\n")
    cut = [text, "\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1])]
    forms = [text, *(each.strip() for each in cut[1:])]
    return list(dict.fromkeys([*forms, *(each.replace("*", "") for each in forms)]))


# ------------------------------------------------------------------------------------------------ the library


class Library(msgspec.Struct, frozen=True):
    """if-verifiable's checkers by instruction id, and the checks of our own that stand in their place or beside them."""

    checkers: dict[str, Any]
    own: dict[str, Check]
    guards: dict[str, Check]


def load_check(state: dict[str, Any]) -> Callable[[Sample], Verdict]:
    """What the limited process runs: all files read, so that it can be confined."""
    return InstructionsCheck(InstructionsOptions.model_validate(state), load_library()).verify


def load_library() -> Library:
    """Load if-verifiable and what it uses, without a download. Raises UserError where it is missing."""
    try:
        with _offline():
            # Extras, and slow to load: only the process that checks does.
            import langdetect
            from nltk.tokenize import NLTKWordTokenizer
            from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

            ifeval = importlib.import_module(f"{_PACKAGE}.ifeval.instructions_registry")
            ifbench = importlib.import_module(f"{_PACKAGE}.ifbench.instructions_registry")
            utilities = importlib.import_module(f"{_PACKAGE}.ifbench.instructions_util")
    except ModuleNotFoundError as error:
        raise UserError(f"{_MISSING} ({error})") from error
    parameters = PunktParameters()
    parameters.abbrev_types = set(ABBREVIATIONS)
    langdetect.DetectorFactory.seed = 0  # it draws at random otherwise, and a verdict must not

    def language(text: str) -> str:
        try:
            return langdetect.detect(text)
        except langdetect.LangDetectException:
            return ""

    language("loads the profiles of all languages")
    split = utilities.split_into_sentences
    tools = TextTools(PunktSentenceTokenizer(parameters).tokenize, NLTKWordTokenizer().tokenize, split, language)
    return Library({**ifeval.INSTRUCTION_DICT, **ifbench.INSTRUCTION_DICT}, own_checks(tools), guards(split))


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Import if-verifiable's checkers and nothing else of it: its front page loads data sets' whole machinery, and its
    IFBench part downloads models for nltk when it is imported. What those models are for is checked by code of our own."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise UserError(_MISSING)
    known = sys.modules.get(_PACKAGE)
    if known is None:
        front = types.ModuleType(_PACKAGE)
        front.__path__ = list(spec.submodule_search_locations)
        sys.modules[_PACKAGE] = front
    import nltk  # an extra, as above

    download, nltk.download = nltk.download, lambda *_, **__: False
    try:
        yield
    finally:
        nltk.download = download
        if known is None:
            del sys.modules[_PACKAGE]


class InstructionsCheck:
    """The check itself: a pure function of the sample, without limits."""

    def __init__(self, options: InstructionsOptions, library: Library) -> None:
        self._options = options
        self._library = library

    def verify(self, sample: Sample) -> Verdict:
        try:
            instructions = read_row(sample.row, self._options)
        except WrongInstruction as fault:
            return not_run("bad_row", message=printable(str(fault), 500))
        text = after_thinking(sample.completion, self._options.thinking_end).strip()
        if not shows_something(text):
            return scored(0.0, "empty")
        variants = loose_variants(text)
        results = []
        for instruction in instructions:
            check = self._check_of(instruction)
            strict = check(text)
            results.append({"id": instruction.id, "strict": strict, "loose": strict or any(map(check, variants))})
        share = sum(result["strict"] for result in results) / len(results)
        reward = share if self._options.partial_credit or share == 1.0 else 0.0
        return scored(
            reward,
            "followed" if share == 1.0 else "not_followed",
            strict=share == 1.0,
            loose=all(result["loose"] for result in results),
            instructions=results,
        )

    def _check_of(self, instruction: Instruction) -> Callable[[str], bool]:
        own = self._library.own.get(instruction.id)
        library_check = None
        if own is None:
            checker = self._library.checkers[instruction.id](instruction.id)
            checker.build_description(**instruction.arguments)
            library_check = checker.check_following
        whole = followed(library_check, own, self._library.guards.get(instruction.id))

        def check(text: str) -> bool:
            try:
                return whole(text, **instruction.arguments)
            except _CHECK_FAULTS:
                return False

        return check


assert len(IFEVAL) == 25 and len(INSTRUCTIONS) == 83
