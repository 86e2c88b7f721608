"""The booking example's data: reproducible, valid against its tools, and nothing shared between the splits."""

from __future__ import annotations

import doctest
import importlib.util
import json
import random
import re
import sys
import tomllib
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

BOOKING = Path(__file__).parents[2] / "examples" / "booking"
FILES = ("train.jsonl", "held_out.jsonl", "warm_start.jsonl")


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("booking_generate", BOOKING / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generator = load_generator()


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (BOOKING / name).read_text(encoding="utf-8").splitlines()]


def spoken(row: dict[str, Any]) -> str:
    """What the caller says, without the reference date."""
    return row["prompt"].partition(": ")[2]


def gold_calls(name: str) -> list[dict[str, Any]]:
    if name == "warm_start.jsonl":
        return [json.loads(row["completion"]) for row in rows(name)]
    return [call for row in rows(name) for call in row["answer"]]


def parameters_by_tool() -> dict[str, dict[str, Any]]:
    tools = json.loads((BOOKING / "tools.json").read_text())
    return {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}


def test_running_the_generator_again_gives_the_committed_bytes(tmp_path: Path) -> None:
    generator.generate(tmp_path, generator.SEED)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (BOOKING / name).read_bytes(), name


def test_another_seed_gives_other_rows(tmp_path: Path) -> None:
    generator.generate(tmp_path, generator.SEED + 1)
    for name in FILES:
        assert (tmp_path / name).read_bytes() != (BOOKING / name).read_bytes(), name


def test_files_are_large_enough() -> None:
    assert len(rows("train.jsonl")) >= 2000
    assert len(rows("held_out.jsonl")) >= 200
    assert len(rows("warm_start.jsonl")) >= 64


@pytest.mark.parametrize("name", FILES)
def test_every_gold_call_validates_against_its_tool(name: str) -> None:
    parameters = parameters_by_tool()
    for schema in parameters.values():
        Draft202012Validator.check_schema(schema)
    for call in gold_calls(name):
        Draft202012Validator(parameters[call["name"]]).validate(call["arguments"])


@pytest.mark.parametrize("name", FILES)
def test_arguments_stand_in_the_order_of_the_schema(name: str) -> None:
    parameters = parameters_by_tool()
    for call in gold_calls(name):
        assert list(call["arguments"]) == list(parameters[call["name"]]["properties"])


def test_a_call_with_a_wrong_or_extra_argument_does_not_validate() -> None:
    validator = Draft202012Validator(parameters_by_tool()["table"])
    good = {"date": "2026-11-27", "time": "19:00", "party": 4, "name": "Tom"}
    bad = [{"date": "27 Nov"}, {"date": "2026-13-01"}, {"time": "7pm"}, {"party": "4"}, {"name": ""}, {"code": "B123"}]
    assert validator.is_valid(good)
    assert not any(validator.is_valid(good | change) for change in bad)
    assert not validator.is_valid({"date": "2026-11-27"})


def test_demonstrations_are_compact_json() -> None:
    for row in rows("warm_start.jsonl"):
        assert row["completion"] == json.dumps(json.loads(row["completion"]), separators=(",", ":"))


def test_the_system_message_is_the_same_wherever_it_stands() -> None:
    message = (BOOKING / "system.txt").read_text(encoding="utf-8").strip()
    for job in (BOOKING / "job.toml", BOOKING.parents[1] / "benchmarks" / "throughput.toml"):
        assert tomllib.loads(job.read_text(encoding="utf-8"))["data"]["system"].strip() == message, job


def test_system_message_names_every_tool_with_its_arguments_in_order() -> None:
    signatures = [f"{tool}({','.join(schema['properties'])})" for tool, schema in parameters_by_tool().items()]
    assert (BOOKING / "system.txt").read_text().splitlines()[1:] == signatures


@pytest.mark.parametrize("name", FILES)
def test_tools_come_in_turn(name: str) -> None:
    tools = list(parameters_by_tool())
    calls = gold_calls(name)
    assert [call["name"] for call in calls] == [tools[number % len(tools)] for number in range(len(calls))]


@pytest.mark.parametrize("name", ["train.jsonl", "held_out.jsonl"])
def test_every_tool_is_asked_for_at_every_difficulty(name: str) -> None:
    counts = Counter((row["answer"][0]["name"], row["difficulty"]) for row in rows(name))
    assert set(counts) == {(tool, level) for tool in parameters_by_tool() for level in ("easy", "middle", "hard")}
    assert min(counts.values()) >= len(rows(name)) / 30


def test_no_text_of_a_caller_stands_twice() -> None:
    texts = [spoken(row).lower() for name in FILES for row in rows(name)]
    assert len(set(texts)) == len(texts)


# ---------------------------------------------------------------------------------------------------------------------
# Wordings: the splits share none, judged by the texts and not by the ids
# ---------------------------------------------------------------------------------------------------------------------

NUMBER_WORD = "|".join(generator.NUMBERS)
DIGIT_WORD = "|".join(generator.DIGITS)
SLOT_PATTERNS = {
    "date": rf"(?:today|tomorrow|on [\d-]+|on the \d+\w\w|on [A-Z]\w+ \d+\w\w|this [A-Z]\w+day|in (?:{NUMBER_WORD}) days)",
    "time": rf"at (?:\d\d:\d\d|\d+(?::\d\d)?[ap]m|(?:half past |quarter past |quarter to )?(?:{NUMBER_WORD}) in the \w+)",
    "count": rf"(?:\d+|{NUMBER_WORD})",
    "party": rf"(?:\d+|{NUMBER_WORD}|[Mm]y .*? me|[Mm]e and \w+ \w+)",
    "name": r"[A-Z]\w+",
    "insurance": r"(?:[A-Z]\w+|[Nn]o) insurance",
    "address": r"(?:\d+ [A-Z]\w+ [A-Z]\w+|[A-Z]\w+ [A-Z]\w+, number \d+)",
    "code": rf"[A-Z](?: ?\d{{3}}| (?:{DIGIT_WORD})(?: (?:{DIGIT_WORD})){{2}})",
    "phone": rf"555(?:[- ]\d{{4}}| (?:{DIGIT_WORD})(?: (?:{DIGIT_WORD})){{3}})",
}


def pattern_of(wording: str) -> re.Pattern[str]:
    """What the wording's texts look like, whatever its slots hold, in either case of the first letter."""
    parts = re.split(r"\{(?:not_)?(\w+)\}", wording)
    pieces = [SLOT_PATTERNS[part] if number % 2 else re.escape(part) for number, part in enumerate(parts)]
    return re.compile("".join(pieces), re.IGNORECASE)


def wordings_of(split: str) -> dict[str, str]:
    return {wording.id: wording.text for tool in generator.read_wordings(split).values() for wording in tool}


def bare(wording: str) -> str:
    """The wording's own words: no slots, punctuation or case."""
    return " ".join(re.findall(r"[a-z0-9']+", re.sub(r"\{\w+\}", " ", wording).lower()))


def test_no_wording_is_shared_between_the_splits_or_written_twice() -> None:
    texts = [bare(text) for split in ("train", "held_out") for text in wordings_of(split).values()]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", ["train.jsonl", "held_out.jsonl"])
def test_a_row_reads_as_its_own_wording_and_as_none_of_the_other_split(name: str) -> None:
    split = name.removesuffix(".jsonl")
    own = {id_: pattern_of(text) for id_, text in wordings_of(split).items()}
    others = [pattern_of(text) for text in wordings_of("held_out" if split == "train" else "train").values()]
    for row in rows(name):
        assert own[row["template"]].fullmatch(spoken(row)), row
        assert not any(pattern.fullmatch(spoken(row)) for pattern in others), row


def test_demonstrations_read_as_training_wordings_only() -> None:
    train = [pattern_of(text) for text in wordings_of("train").values()]
    held_out = [pattern_of(text) for text in wordings_of("held_out").values()]
    for row in rows("warm_start.jsonl"):
        assert any(pattern.fullmatch(spoken(row)) for pattern in train), row
        assert not any(pattern.fullmatch(spoken(row)) for pattern in held_out), row


def test_wordings_are_used() -> None:
    assert {row["template"] for row in rows("train.jsonl")} == set(wordings_of("train"))
    assert len({row["template"] for row in rows("held_out.jsonl")}) >= 0.9 * len(wordings_of("held_out"))


def test_what_a_caller_takes_back_is_not_in_the_call() -> None:
    train = generator.read_wordings("train")
    corrections = {wording.id: wording.text for wording in train["cancel"] if "{not_code}" in wording.text}
    for row in rows("train.jsonl"):
        if row["template"] in corrections:
            codes = re.findall(SLOT_PATTERNS["code"], spoken(row))
            place = re.findall(r"\{(not_)?code\}", corrections[row["template"]]).index("")
            assert read_digits(codes[place]) == row["answer"][0]["arguments"]["code"], row


# ---------------------------------------------------------------------------------------------------------------------
# Values: what a phrase says is what the call holds, read back by other means than those that wrote it
# ---------------------------------------------------------------------------------------------------------------------


def read_date(text: str, today: date) -> date:
    """The first day from today on that the phrase fits, found by trying days."""
    if text in ("today", "tomorrow"):
        return today + timedelta(days=text == "tomorrow")
    if match := re.fullmatch(r"in (\w+) days", text):
        return today + timedelta(days=generator.NUMBERS.index(match[1]))
    formats = {"on the": "on the {0.day}", "this": "this {0:%A}", "on 20": "on {0:%Y-%m-%d}"}
    form = next((form for start, form in formats.items() if text.startswith(start)), "on {0:%B} {0.day}")
    plain = re.sub(r"(\d)(st|nd|rd|th)$", r"\1", text)
    return next(day for day in (today + timedelta(days=ahead) for ahead in range(1, 28)) if form.format(day) == plain)


def read_time(text: str) -> str:
    """The time as HH:MM."""
    if match := re.fullmatch(r"at (\d\d:\d\d)", text):
        return match[1]
    if match := re.fullmatch(r"at (\d+)(?::(\d\d))?(am|pm)", text):
        hour, minute, afternoon = int(match[1]), int(match[2] or 0), match[3] == "pm"
    else:
        match = re.fullmatch(r"at (?:(half|quarter) (past|to) )?(\w+) in the (\w+)", text)
        assert match is not None, text
        hour, afternoon = generator.NUMBERS.index(match[3]), match[4] != "morning"
        minute = {None: 0, "half": 30, "quarter": 15}[match[1]]
        if match[2] == "to":
            # No wrap of the half day: "quarter to one in the afternoon" is 12:45, and nothing is open at midnight.
            hour, minute = (hour - 1) or 12, 60 - minute
    return f"{hour % 12 + 12 * afternoon:02}:{minute:02}"


def read_digits(text: str) -> str:
    """A code or phone number as the call holds it."""
    prefix, _, rest = text.replace("-", " ").partition(" ")
    digits = "".join(str(generator.DIGITS.index(word)) if word.isalpha() else word for word in rest.split())
    return f"{prefix}-{digits}" if prefix == "555" else f"{prefix}{digits}"


scenes = st.builds(
    generator.Scene,
    rng=st.builds(random.Random, st.integers(0, 2**32)),
    tool=st.sampled_from(["table", "clinic"]),
    today=st.dates(generator.FIRST_TODAY, generator.LAST_TODAY),
    hardest=st.just(generator.Difficulty.HARD),
)


on_a_busy_machine = settings(deadline=None)  # where one of many examples may well take long


@on_a_busy_machine
@given(scenes)
def test_dates_mean_what_is_said(scene: Any) -> None:
    phrase = generator.draw_date(scene)
    assert read_date(phrase.text, scene.today).isoformat() == phrase.value


@on_a_busy_machine
@given(scenes)
def test_times_mean_what_is_said(scene: Any) -> None:
    phrase = generator.draw_time(scene)
    assert read_time(phrase.text) == phrase.value


@on_a_busy_machine
@given(scenes)
def test_codes_and_phone_numbers_mean_what_is_said(scene: Any) -> None:
    for phrase in (generator.draw_code(scene), generator.draw_phone(scene)):
        assert read_digits(phrase.text) == phrase.value


@on_a_busy_machine
@given(scenes)
def test_every_slot_can_be_said_plainly_and_never_harder_than_allowed(scene: Any) -> None:
    for slot in generator.SLOTS:
        easy = generator.Scene(scene.rng, scene.tool, scene.today, generator.Difficulty.EASY)
        assert generator.draw_phrase(easy, slot).difficulty == generator.Difficulty.EASY


def test_examples_in_the_docstrings_hold() -> None:
    results = doctest.testmod(generator)
    assert results.attempted >= 4
    assert results.failed == 0
