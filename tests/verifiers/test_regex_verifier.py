import pickle
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.verifiers import RegexVerifier, Sample, UserError, VerdictKind


@pytest.mark.parametrize(
    ("options", "completion", "matches"),
    [
        ({"pattern": "[0-9]{4}"}, "in 1984", True),
        ({"pattern": "[0-9]{4}"}, "in 84", False),
        ({"pattern": "[0-9]{4}", "full_match": True}, "in 1984", False),
        ({"pattern": "[0-9]{4}", "full_match": True}, " 1984\n", True),
        ({"pattern": "(?i)YES"}, "yes", True),
        ({"pattern": "(?s)a.b"}, "a\nb", True),
        ({"pattern": "ü+"}, "üü", True),
    ],
)
def test_a_match_earns_all_and_no_match_nothing(options, completion, matches):
    verdict = RegexVerifier(**options).verify(Sample(completion, {}))
    assert verdict.reason == ("match" if matches else "no_match")
    assert verdict.reward == float(matches)
    assert verdict.kind is (VerdictKind.PASS if matches else VerdictKind.FAIL)


def test_a_rows_own_pattern_goes_first():
    verifier = RegexVerifier(pattern="a")
    assert verifier.verify(Sample("b", {"pattern": "b"})).reason == "match"
    assert verifier.verify(Sample("b", {"pattern": None})).reason == "no_match"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [({}, "`want` is missing"), ({"want": 7}, "`want` is int"), ({"want": "("}, "not a valid RE2 pattern")],
)
def test_a_bad_row_is_named_and_never_scored(row, complaint):
    verifier = RegexVerifier(pattern_field="want")
    assert complaint in verifier.check_row(row)
    verdict = verifier.verify(Sample("x", row))
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "bad_row")


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "(?=a)", "\ud800"])
def test_a_pattern_that_re2_refuses_is_refused_at_once(pattern):
    with pytest.raises(UserError, match="option `pattern` of verifier `regex`"):
        RegexVerifier(pattern=pattern)


def test_a_pattern_that_backtracks_elsewhere_takes_linear_time():
    verifier = RegexVerifier(pattern="^(a+)+$")
    start = time.perf_counter()
    assert verifier.verify(Sample("a" * 100_000 + "!", {})).reason == "no_match"
    assert time.perf_counter() - start < 5


@given(st.text(st.characters()), st.text(st.characters(), max_size=20))
def test_no_text_and_no_pattern_raises(completion, pattern):
    verdict = RegexVerifier().verify(Sample(completion, {"pattern": pattern}))
    assert 0.0 <= verdict.reward <= 1.0


def test_it_can_be_shipped():
    verifier = pickle.loads(pickle.dumps(RegexVerifier(pattern="a")))
    assert verifier.verify(Sample("a", {})).reason == "match"
