"""What every verifier keeps to, whatever it is given: it returns a verdict, in time, with a reward in [0, 1].

HYPOTHESIS_EXAMPLES=500 searches longer than the few examples that are always the same.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, Phase, currently_in_test_context, find, given, note, settings
from hypothesis import strategies as st
from jsonschema_specifications import REGISTRY
from safetensors.torch import load_file, save_file

from headrace.verifiers import Sample, Verdict, VerdictKind, Verifier, VerifierSpec, build_verifier
from headrace.verifiers.instruction_table import INSTRUCTIONS
from headrace.verifiers.records import decode, encode
from headrace.verifiers.registry import BUILT_IN
from headrace.verifiers.schema_formats import FORMATS
from headrace.verifiers.tool_schema import DIALECT
from tests.verifiers import wild_rewards
from tests.verifiers.subjects import (
    DETAILS_GIVEN,
    KINDS_GIVEN,
    REASONS_GIVEN,
    REWARDS_GIVEN,
    SUBJECTS,
    Places,
    Subject,
)
from tests.verifiers.wild import DEEP, HEAVY, JSON, ODD, completions, filled, places, replaced
from tests.verifiers.wild_judge import GRADE, REPLIES, WildJudge, grade, wild_judge
from tests.verifiers.wild_tools import EVERY_KEYWORD, EVERY_TOOL

SLACK_SECONDS = 10.0  # for a machine that is busy with other things; a hang is longer
_LONGER = "HYPOTHESIS_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "12"))
SEARCH = settings(
    max_examples=EXAMPLES,
    derandomize=not _LONGER,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SIMPLEST_ROW = settings(SEARCH, max_examples=1, phases=[Phase.generate])


@pytest.fixture(scope="module")
def judge() -> Iterator[WildJudge]:
    with wild_judge() as judge:
        yield judge


@pytest.fixture(scope="module")
def score_model(tiny_model, tmp_path_factory) -> Path:
    """The tiny model with a head that gives one score."""
    folder = tmp_path_factory.mktemp("score") / "model"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = torch.randn(1, 32, generator=torch.Generator().manual_seed(7))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def built(request, judge, score_model, tmp_path_factory) -> Iterator[Callable[[Subject], Verifier]]:
    """The verifier of a subject, made once, as a job file names it."""
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "every_tool.json").write_text(json.dumps([EVERY_TOOL]))
    shutil.copy(wild_rewards.__file__, folder / "rewards.py")
    places = Places(folder, judge.url, score_model, lambda: request.getfixturevalue("postgres_dsn"))
    verifiers: dict[int, Verifier] = {}
    with contextlib.ExitStack() as stack:

        def build(subject: Subject) -> Verifier:
            if id(subject) not in verifiers:
                spec = VerifierSpec(subject.verifier, subject.options(places), base_dir=str(folder))
                verifiers[id(subject)] = build_verifier(spec)
                stack.callback(verifiers[id(subject)].close)
            return verifiers[id(subject)]

        yield build


def checked(verifier: Verifier, subject: Subject, completion: str, row: dict[str, Any]) -> Verdict:
    """The verdict, which came in time and is sound. What hangs does so again; a busy machine has a second try."""
    limit = subject.seconds + SLACK_SECONDS
    verdict, elapsed = timed(verifier, Sample(completion, row))
    if elapsed > limit:
        verdict, elapsed = timed(verifier, Sample(completion, row))
    if currently_in_test_context():
        note(f"{verdict.kind} {verdict.reason} {str(verdict.details)[:500]} after {elapsed:.2f} s")
    assert elapsed <= limit
    assert_sound(verdict)
    return verdict


def timed(verifier: Verifier, sample: Sample) -> tuple[Verdict, float]:
    verifier.start()  # what the sample before has ended is brought up outside the time
    started = time.monotonic()
    return verifier.verify(sample), time.monotonic() - started


def assert_sound(verdict: Verdict) -> None:
    assert type(verdict) is Verdict and type(verdict.kind) is VerdictKind
    assert type(verdict.reward) is float and math.isfinite(verdict.reward) and 0.0 <= verdict.reward <= 1.0
    if verdict.kind is VerdictKind.INFRA_ERROR:
        assert verdict.reward == 0.0
    assert isinstance(verdict.reason, str)
    assert decode(encode(verdict), Verdict).kind is verdict.kind
    assert msgspec.json.encode(verdict)


def assert_judged(verdict: Verdict, subject: Subject) -> None:
    """No text makes the check of a right row an infra_error: a policy could hide in it."""
    assert verdict.kind is not VerdictKind.INFRA_ERROR or verdict.reason in subject.unjudged, verdict
    if subject.verifier == "tool_call":  # which makes a fail of what the schema library raises
        assert not any("raised" in call for call in verdict.details.get("calls", ())), verdict


def test_no_registered_verifier_is_left_out():
    assert {subject.verifier for subject in SUBJECTS.values()} == set(BUILT_IN)


def test_no_keyword_format_or_instruction_is_left_out():
    vocabularies = [
        REGISTRY.contents(uri) for uri in REGISTRY if uri.startswith(DIALECT.removesuffix("schema") + "meta/")
    ]
    keywords = {keyword for each in vocabularies if isinstance(each, dict) for keyword in each["properties"]}
    assert {"$dynamicRef", "contains", "unevaluatedItems", "format", "multipleOf"} < keywords
    assert keywords - set(_keys(EVERY_KEYWORD)) == set()
    assert set(FORMATS.checkers) <= set(EVERY_KEYWORD["properties"])
    rows = [find(SUBJECTS[name].rows, lambda row: True) for name in SUBJECTS if name.startswith("instructions")]
    assert {each for row in rows for each in row["instruction_id_list"]} == set(INSTRUCTIONS)


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(inner)


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_rows_that_are_called_right_are(built, name):
    subject = SUBJECTS[name]
    if "bad_row" not in subject.unjudged:
        row = find(subject.rows, lambda row: True)
        assert built(subject).check_row(row) is None


@pytest.mark.parametrize("name", SUBJECTS)
@SEARCH
@given(data=st.data())
def test_whatever_a_completion_holds_there_is_a_sound_verdict_in_time(built, judge, name, data):
    subject = SUBJECTS[name]
    verifier = built(subject)
    completion = data.draw(completions(subject.frames), "completion")
    row = data.draw(subject.rows, "row")
    if subject.verifier == "judge":
        judge.answer(data.draw(REPLIES, "the judge's reply"))
    try:
        assert_judged(checked(verifier, subject, completion, row), subject)
    finally:
        judge.let_go()


# What functions do is the row's affair: to them completions are all the same.
READERS = [name for name in SUBJECTS if SUBJECTS[name].verifier != "python"]


@pytest.mark.parametrize("name", READERS)
@SIMPLEST_ROW
@given(data=st.data())
def test_texts_that_break_parsers_break_no_verifier(built, judge, name, data):
    subject = SUBJECTS[name]
    verifier = built(subject)
    judge.answer(GRADE)
    row = data.draw(subject.rows)
    framed = [filled(frame, "a\ud800\0", quoted) for frame in subject.frames for quoted in (True, False)]
    frame = subject.frames[0]
    nested = [filled(frame, text, quoted=True) for text in HEAVY.values() if frame != "@"]
    for completion in (*HEAVY.values(), *nested, *framed):
        assert_judged(checked(verifier, subject, completion, row), subject)


@pytest.mark.parametrize("name", READERS)
@SEARCH
@given(data=st.data())
def test_a_row_that_is_wrong_is_said_to_be(built, judge, name, data):
    subject = SUBJECTS[name]
    verifier = built(subject)
    judge.answer(GRADE)
    row = data.draw(subject.rows, "right row")
    place = data.draw(st.sampled_from(list(places(row))), "place")
    assert_fault_is_told(verifier, subject, replaced(row, place, data.draw(JSON | st.just({1: (2,)}), "value")))


def assert_fault_is_told(verifier: Verifier, subject: Subject, row: dict[str, Any]) -> None:
    fault = verifier.check_row(row)
    assert fault is None or msgspec.json.encode(fault)
    verdict = checked(verifier, subject, subject.frames[0], row)
    if verdict.kind is VerdictKind.INFRA_ERROR:
        assert verdict.reason in {"bad_row", "bad_test"} | subject.unjudged, verdict


@pytest.mark.parametrize("name", READERS)
@SIMPLEST_ROW
@given(data=st.data())
def test_values_that_no_row_should_have_get_a_verdict(built, judge, name, data):
    subject = SUBJECTS[name]
    judge.answer(GRADE)
    row = data.draw(subject.rows)
    for place, value in itertools.product(places(row), ODD):
        assert_fault_is_told(built(subject), subject, replaced(row, place, value))
    for field in row:
        left = {name: value for name, value in row.items() if name != field}
        assert_fault_is_told(built(subject), subject, left)


FUNCTIONS = [name for name in SUBJECTS if SUBJECTS[name].verifier == "python"]
GIVEN = {"value": 0.5, "kind": VerdictKind.PASS, "reason": "own", "details": {}}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_whatever_a_function_does_it_has_a_verdict(built, name):
    subject = SUBJECTS[name]
    deadly = wild_rewards.DEADLY if "limited" in name else {}
    for does in [*wild_rewards.ACTIONS, *deadly]:
        verdict = checked(built(subject), subject, "text", {**GIVEN, "does": does})
        assert_judged(verdict, subject)
        assert does not in deadly or verdict.kind is VerdictKind.INFRA_ERROR


@pytest.mark.parametrize("name", FUNCTIONS)
def test_whatever_a_function_returns_it_has_a_verdict(built, name):
    subject = SUBJECTS[name]
    values = [{"value": value, "does": does} for value in REWARDS_GIVEN for does in ("value", "coroutine", "verdict")]
    fields = {"kind": KINDS_GIVEN, "reason": REASONS_GIVEN, "details": DETAILS_GIVEN}
    verdicts = [{"does": "verdict", field: value} for field, values in fields.items() for value in values]
    for answer in [*values, *verdicts]:
        assert_judged(checked(built(subject), subject, "text", {**GIVEN, **answer}), subject)


SCORES = ["-1", "10.5", "1e999", "-0.0", "NaN", "true", '"7"', "null", "[7]", "9" * 400, "[" * DEEP, '10, "score": 0']


@pytest.mark.parametrize("score", SCORES, ids=range(len(SCORES)))
def test_whatever_a_judge_scores_there_is_a_verdict(built, judge, score):
    judge.answer(grade(f'{{"reason": "so", "score": {score}}}'))
    verdict = checked(built(SUBJECTS["judge"]), SUBJECTS["judge"], "There, there.", {"prompt": "My cat died."})
    assert verdict.reason == ("scored" if score == "-0.0" else "judge_unreadable")


def test_what_cannot_be_checked_is_scored_by_a_reward_model(score_model):
    parts = [
        {"verifier": "math", "when": "answer"},
        {"verifier": "reward_model", "options": {"model": str(score_model), "device": "cpu"}},
    ]
    whole = build_verifier(VerifierSpec("first_applicable", {"parts": parts}))
    rows = [{"prompt": "2 + 2?", "answer": "4"}, {"prompt": "A poem, please."}, {"prompt": "2 + 3?", "answer": "5"}]
    assert [whole.check_row(row) for row in rows] == [None] * 3
    verdicts = whole.verify_many([Sample("The answer is 4.", row) for row in rows])
    whole.close()
    assert [verdict.reason for verdict in verdicts] == ["match", "scored", "wrong_answer"]
    assert [list(verdict.details["parts"]) for verdict in verdicts] == [["math"], ["reward_model"], ["math"]]
    assert 0.0 < verdicts[1].reward < 1.0
    assert whole.check_row({"answer": None}) is not None
