"""Verifiers made of verifiers: what the whole says for what its parts say."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.verifiers import (
    AllOf,
    ByRow,
    CallableVerifier,
    FirstApplicable,
    Part,
    RegexVerifier,
    Sample,
    UserError,
    Verdict,
    VerdictKind,
    Verifier,
    VerifierSpec,
    WeightedSum,
    build_verifier,
    not_run,
    scored,
)
from headrace.verifiers.errors import WrongOption
from headrace.verifiers.failed_checks import FailedCheck, failed_check
from headrace.verifiers.records import decode, encode

BROKEN = not_run("exception", type="KeyError", message="no such key", where="rewards.py:3")
TOOLS = [{"name": "hang_up", "parameters": {}}]


class Says(Verifier):
    """Gives the same verdict always, keeps what it was asked, and wants a field where it is told one."""

    def __init__(self, verdict: Verdict, field: str | None = None) -> None:
        self.verdict = verdict
        self.field = field
        self.batches: list[list[str]] = []
        self.running = False

    def verify(self, sample: Sample) -> Verdict:
        return self.verify_many([sample])[0]

    def verify_many(self, samples):
        self.batches.append([sample.completion for sample in samples])
        return [self.verdict] * len(samples)

    def check_row(self, row):
        return None if self.field is None or self.field in row else f"field `{self.field}` is missing"

    def start(self):
        self.running = True

    def close(self):
        self.running = False


def parts(*verdicts: Verdict, weights=None) -> list[Part]:
    return [
        Part(f"part{number}", Says(verdict), weight)
        for number, (verdict, weight) in enumerate(zip(verdicts, weights or [1.0] * len(verdicts), strict=True))
    ]


def only(verifier: Verifier, row=None) -> Verdict:
    verdict = verifier.verify(Sample("text", row or {}))
    assert decode(encode(verdict), Verdict) == verdict
    return verdict


GOOD, BAD, HALF = scored(1.0, "match"), scored(0.0, "no_match"), scored(0.5, "partial")


def test_a_weighted_sum_is_divided_by_the_weights():
    verdict = only(WeightedSum(parts(GOOD, HALF, BAD, weights=[1, 2, 5])))
    assert (verdict.kind, verdict.reason) == (VerdictKind.FAIL, "partial")
    assert verdict.reward == pytest.approx((1 + 2 * 0.5) / 8)


def test_a_weighted_sum_passes_when_every_part_does():
    verdict = only(WeightedSum(parts(GOOD, GOOD, GOOD, weights=[0.1, 0.2, 0.7])))
    assert (verdict.kind, verdict.reward, verdict.reason) == (VerdictKind.PASS, 1.0, "all_passed")


def test_a_weight_that_rounds_away_buys_no_pass():
    verdict = only(WeightedSum(parts(GOOD, BAD, weights=[1.0, 1e-30])))
    assert verdict.kind is VerdictKind.FAIL
    assert verdict.reward < 1.0


@pytest.mark.parametrize(("verdicts", "reward"), [((GOOD, GOOD), 1.0), ((GOOD, HALF), 0.0), ((BAD, GOOD), 0.0)])
def test_all_of_earns_all_or_nothing(verdicts, reward):
    verdict = only(AllOf(parts(*verdicts)))
    assert verdict.reward == reward
    assert (verdict.kind is VerdictKind.PASS) == (reward == 1.0)


def test_the_reason_is_that_of_the_first_part_that_does_not_pass():
    assert only(AllOf(parts(GOOD, HALF, BAD))).reason == "partial"
    assert only(WeightedSum(parts(GOOD, BAD, HALF))).reason == "no_match"


def test_details_hold_each_parts_verdict():
    shown = only(WeightedSum(parts(GOOD, scored(0.5, "partial", right=3)))).details["parts"]
    assert shown["part0"] == {"verdict": "pass", "reward": 1.0, "reason": "match", "details": {}}
    assert shown["part1"] == {"verdict": "fail", "reward": 0.5, "reason": "partial", "details": {"right": 3}}


@pytest.mark.parametrize("kind", [WeightedSum, AllOf, FirstApplicable])
@pytest.mark.parametrize("verdicts", [(BROKEN, GOOD), (BROKEN, BAD)])
def test_a_part_that_does_not_run_makes_the_whole_an_infra_error(kind, verdicts):
    verdict = only(kind(parts(*verdicts)))
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "exception")
    assert failed_check(verdict) == FailedCheck("KeyError", "no such key", "rewards.py:3")


@pytest.mark.parametrize("reward", [7.0, -3.0, float("nan"), "1"])
@pytest.mark.parametrize("kind", [AllOf, WeightedSum, FirstApplicable])
def test_a_part_whose_reward_is_none_is_an_infra_error(kind, reward):
    verdict = only(kind(parts(Verdict(VerdictKind.PASS, reward, "odd"), GOOD)))
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "bad_reward")


@pytest.mark.parametrize("part", [0.5, None, Verdict(VerdictKind.PASS, 1.0, "odd", {"share": np.float64(1)})])
@pytest.mark.parametrize("kind", [AllOf, WeightedSum, FirstApplicable])
def test_a_part_without_a_sound_verdict_is_an_infra_error_that_names_it(kind, part):
    verdict = only(kind(parts(part, GOOD)))
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "bad_reward")
    assert "Says" in verdict.details["message"]


@pytest.mark.parametrize("reward", [np.float64(0.5), np.float32(0.5)])
@pytest.mark.parametrize("kind", [WeightedSum, FirstApplicable])
def test_a_parts_reward_may_be_a_number_of_numpys(kind, reward):
    assert only(kind(parts(scored(reward, "half")))).reward == 0.5


@pytest.mark.parametrize("kind", [AllOf, WeightedSum, FirstApplicable])
def test_a_part_that_answers_with_another_number_of_verdicts_is_an_infra_error(kind):
    class Miscounts(Says):
        def verify_many(self, samples):
            return [GOOD] * 3

    verdicts = kind([Part("odd", Miscounts(GOOD))]).verify_many([Sample("a", {}), Sample("b", {})])
    assert [verdict.reason for verdict in verdicts] == ["verdicts_missing"] * 2
    assert all("Miscounts" in verdict.details["message"] for verdict in verdicts)


def test_a_later_part_that_does_not_run_leaves_no_partial_reward():
    assert only(WeightedSum(parts(HALF, GOOD, BROKEN))).kind is VerdictKind.INFRA_ERROR
    assert only(AllOf(parts(GOOD, BROKEN))).kind is VerdictKind.INFRA_ERROR


def test_all_of_shows_the_next_part_only_what_has_passed():
    expensive = Says(GOOD)
    verifier = AllOf([Part("cheap", RegexVerifier(pattern="a")), Part("expensive", expensive)])
    verdicts = verifier.verify_many([Sample(text, {}) for text in ("a", "b", "aa", "c")])
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 1.0, 0.0]
    assert expensive.batches == [["a", "aa"]]


def test_each_part_has_its_samples_as_one_batch_and_verdicts_keep_their_order():
    numbers, words = Says(GOOD), Says(BAD)
    verifier = ByRow([Part("numbers", numbers), Part("words", words)])
    kinds = ["words", "numbers", "words", "numbers", "numbers"]
    verdicts = verifier.verify_many([Sample(str(place), {"verifier": kind}) for place, kind in enumerate(kinds)])
    assert [verdict.reason for verdict in verdicts] == ["no_match", "match", "no_match", "match", "match"]
    assert (numbers.batches, words.batches) == ([["1", "3", "4"]], [["0", "2"]])


def test_the_first_part_without_a_complaint_about_the_row_judges_it():
    verifier = FirstApplicable([Part("gold", Says(GOOD, "answer")), Part("rest", Says(HALF))])
    assert only(verifier, {"answer": 4}).reason == "match"
    assert only(verifier, {}).reason == "partial"
    assert list(only(verifier, {}).details["parts"]) == ["rest"]


def test_a_part_with_when_is_for_the_rows_that_have_the_field_and_then_speaks_of_their_faults():
    verifier = FirstApplicable([Part("gold", Says(GOOD, "unit"), when="answer"), Part("rest", Says(HALF))])
    assert verifier.check_row({"answer": 4}) == "gold: field `unit` is missing"
    assert verifier.check_row({"answer": None}) is None
    assert only(verifier, {}).reason == "partial"


def test_a_row_that_no_part_is_for_is_bad():
    verifier = FirstApplicable([Part("gold", Says(GOOD, "answer")), Part("pattern", Says(GOOD, "pattern"))])
    fault = verifier.check_row({})
    assert fault == "no part is for this row (gold: field `answer` is missing; pattern: field `pattern` is missing)"
    assert (only(verifier).kind, only(verifier).reason) == (VerdictKind.INFRA_ERROR, "bad_row")


def test_every_part_of_a_sum_is_asked_about_a_row():
    for kind in (WeightedSum, AllOf):
        verifier = kind([Part("free", Says(GOOD)), Part("gold", Says(GOOD, "answer"))])
        assert verifier.check_row({"answer": 1}) is None
        assert verifier.check_row({}) == "gold: field `answer` is missing"


def by_row(**options) -> Verifier:
    return build_verifier(VerifierSpec(verifier="by_row", options=options))


def test_a_row_names_a_part_or_a_registered_verifier():
    verifier = by_row(parts=[{"verifier": "regex", "name": "number", "options": {"pattern": "^[0-9]+$"}}])
    samples = [
        Sample("7", {"verifier": "number"}),
        Sample("seven", {"verifier": "number"}),
        Sample("seven", {"verifier": "regex", "pattern": "seven"}),
        Sample('{"name": "hang_up", "arguments": {}}', {"verifier": "tool_call", "tools": TOOLS}),
    ]
    for row in (sample.row for sample in samples):
        assert verifier.check_row(row) is None
    shipped = pickle.loads(pickle.dumps(verifier))
    shipped.start()
    assert [verdict.reason for verdict in shipped.verify_many(samples)] == ["match", "no_match", "match", "valid"]
    shipped.close()
    verifier.close()


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({}, "field `verifier` is missing"),
        ({"verifier": 7}, "field `verifier` is int"),
        ({"verifier": "numbr"}, "unknown verifier `numbr`.*did you mean `number`"),
        ({"verifier": "tool_cal"}, "did you mean `tool_call`"),
        ({"verifier": "python"}, "option `function`"),
        ({"verifier": "all_of"}, "option `parts`"),
        ({"verifier": "by_row"}, "is the one that chooses"),
        ({"verifier": "regex"}, "regex: field `pattern` is missing"),
    ],
)
def test_a_row_that_names_no_verifier_is_bad(row, complaint):
    verifier = by_row(parts=[{"verifier": "regex", "name": "number", "options": {"pattern": "^[0-9]+$"}}])
    for _ in range(2):
        with pytest.raises(UserError, match=complaint):
            raise UserError(verifier.check_row(row))
    assert (only(verifier, row).kind, only(verifier, row).reason) == (VerdictKind.INFRA_ERROR, "bad_row")


def test_a_verifier_that_rows_name_is_built_once_and_started_with_the_others():
    built = []

    def build(spec):
        built.append(spec)
        return Says(GOOD)

    verifier = ByRow(build=build)
    for _ in range(3):
        assert only(verifier, {"verifier": "anything"}).reason == "match"
    assert built == [VerifierSpec(verifier="anything")]
    verifier.start()
    assert verifier.parts[0].verifier.running


def test_rows_without_the_field_have_the_default():
    verifier = by_row(
        field="task", default="yes", parts=[{"verifier": "regex", "name": "yes", "options": {"pattern": "y"}}]
    )
    assert verifier.verify(Sample("y", {})).reason == "match"
    with pytest.raises(WrongOption, match=r"option `default`.*unknown verifier `no`"):
        by_row(default="no")


def test_they_nest(tmp_path):
    (tmp_path / "rewards.py").write_text("def short(completion, row): return len(completion) < 9\n")
    spec = VerifierSpec(
        verifier="all_of",
        base_dir=str(tmp_path),
        options={
            "parts": [
                {"function": "rewards.py:short"},
                {
                    "verifier": "weighted_sum",
                    "options": {
                        "parts": [
                            {"verifier": "regex", "name": "a", "options": {"pattern": "a"}, "weight": 3},
                            {"verifier": "regex", "name": "b", "options": {"pattern": "b"}},
                        ]
                    },
                },
            ]
        },
    )
    verifier = pickle.loads(pickle.dumps(build_verifier(spec)))
    verdict = verifier.verify(Sample("a", {}))
    assert (verdict.kind, verdict.reward, verdict.reason) == (VerdictKind.FAIL, 0.0, "no_match")
    inner = verdict.details["parts"]["weighted_sum"]
    assert inner["reward"] == 0.75
    assert inner["details"]["parts"]["b"]["verdict"] == "fail"
    assert verifier.verify(Sample("ab", {})).kind is VerdictKind.PASS
    assert verifier.verify(Sample("a long one", {})).details["parts"].keys() == {"short"}


REGEX = {"verifier": "regex", "options": {"pattern": "a"}}


@pytest.mark.parametrize(
    ("verifier", "options", "option", "complaint"),
    [
        ("all_of", {}, "parts", "`parts` of verifier `all_of` is empty"),
        ("all_of", {"parts": []}, "parts", "is empty"),
        ("all_of", {"parts": [7]}, "parts.0", "valid dictionary"),
        ("all_of", {"part": []}, "part", "did you mean `parts`"),
        ("all_of", {"parts": [{}]}, "parts.0", "part 1 of `all_of`: .*neither a `verifier`"),
        ("all_of", {"parts": [REGEX, {"verifier": "regx"}]}, "parts.1", "part 2 .*did you mean `regex`"),
        ("all_of", {"parts": [REGEX, REGEX]}, "parts.1", "two parts .*`regex`; give one of them another `name`"),
        ("all_of", {"parts": [{**REGEX, "weight": 1}]}, "parts.0.weight", "unknown option `weight`"),
        ("all_of", {"parts": [{**REGEX, "option": {}}]}, "parts.0.option", "did you mean `options`"),
        (
            "all_of",
            {"parts": [{"verifier": "regex", "options": {"patern": "a"}}]},
            "parts.0.options.patern",
            "`pattern`",
        ),
        ("all_of", {"parts": [{"function": "f"}]}, "parts.0", "file.py:name"),
        ("weighted_sum", {"parts": [{**REGEX, "weight": 0}]}, "parts.0.weight", "greater than 0"),
        ("weighted_sum", {"parts": [{**REGEX, "weight": float("inf")}]}, "parts.0.weight", "finite"),
        ("first_applicable", {"parts": [{**REGEX, "when": 7}]}, "parts.0.when", "valid string"),
        (
            "all_of",
            {"parts": [{"verifier": "all_of", "options": {"parts": [{"verifier": "regex", "options": {"x": 1}}]}}]},
            "parts.0.options.parts.0.options.x",
            "part 1 of `all_of`: part 1 of `all_of`: unknown option `x`",
        ),
    ],
)
def test_a_wrong_part_is_refused_by_its_place(verifier, options, option, complaint):
    with pytest.raises(WrongOption, match=complaint) as error:
        build_verifier(VerifierSpec(verifier=verifier, options=options))
    assert error.value.option == option
    assert "\n" not in str(error.value)


def test_parts_are_started_and_every_one_is_closed():
    class Stubborn(Says):
        def close(self):
            super().close()
            raise OSError("still busy")

    first, second = Says(GOOD), Stubborn(GOOD)
    verifier = AllOf([Part("first", first), Part("second", second)])
    verifier.start()
    assert first.running and second.running
    with pytest.raises(OSError, match="still busy"):
        verifier.close()
    assert not first.running and not second.running


kinds = st.sampled_from(VerdictKind)
verdicts = st.builds(
    lambda kind, reward: Verdict(kind, {"pass": 1.0, "fail": reward, "infra_error": 0.0}[kind], str(kind)),
    kinds,
    st.floats(0, 1, exclude_max=True),
)
weighted = st.lists(st.tuples(verdicts, st.floats(1e-9, 1e9)), min_size=1, max_size=5)


@given(weighted)
def test_the_whole_keeps_the_bounds_and_passes_for_what_is_all_right(drawn):
    found, weights = [verdict for verdict, _ in drawn], [weight for _, weight in drawn]
    for kind in (WeightedSum, AllOf):
        verdict = only(kind(parts(*found, weights=weights)))
        assert 0.0 <= verdict.reward <= 1.0
        passed = all(each.kind is VerdictKind.PASS for each in found)
        assert (verdict.kind is VerdictKind.PASS) == passed == (verdict.reward == 1.0)
        if kind is WeightedSum:
            broken = any(each.kind is VerdictKind.INFRA_ERROR for each in found)
            assert (verdict.kind is VerdictKind.INFRA_ERROR) == broken


def test_a_function_is_a_part_as_it_is():
    verifier = AllOf([Part("own", CallableVerifier(lambda completion, row: completion == "text"))])
    assert only(verifier).kind is VerdictKind.PASS


def test_a_whole_may_be_checked_twice_where_each_part_may():
    regex = Part("regex", build_verifier(VerifierSpec("regex", {"pattern": "x"})))
    assert AllOf([regex]).repeatable()
    assert not AllOf([regex, Part("own", Says(GOOD))]).repeatable()


def test_a_whole_lacks_what_its_parts_lack():
    class Degraded(Says):
        def missing_layers(self) -> str:
            return "no seccomp"

    assert AllOf([Part("a", Says(GOOD)), Part("b", Degraded(GOOD))]).missing_layers() == "b: no seccomp"
    assert AllOf(parts(GOOD, GOOD)).missing_layers() == ""
