"""The math verifier beside math-verify's own cases: where it says otherwise it is meant to, and says why.

Its test file (tests/suites.py) is read, never run.
"""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from headrace.verifiers import Sample, VerdictKind
from headrace.verifiers.math import MathVerifier
from tests.suites import MATH_VERIFY, MISSING

Case = tuple[str, str, bool]

# (whether the library takes the answer for right, our reason): how many cases
DIFFERENCES = {
    (True, "several_answers"): 14,  # two values, or prose with numbers behind the answer; a decimal comma is a list
    (True, "hedged"): 11,  # "not", "if", "for all" and the like round the answer; x \ne 3 for gold x != 3
    (True, "not_a_number"): 2,  # 9+1 for 10, and a space in a number
    (True, "wrong_answer"): 2,  # a decimal comma
    (True, "no_answer"): 3,  # a chat template's mark for the last sentence
    (True, "unevaluated"): 1,  # "!=" is a factorial
    (False, "match"): 2,  # a formula in single dollars over several lines
}


def read_cases(source: str) -> list[Case]:
    """The (gold, prediction, expected) of each parametrized test; those that must be run, or have options, are left."""
    found: list[Case] = []
    for test in ast.parse(source).body:
        for mark in test.decorator_list if isinstance(test, ast.FunctionDef) else ():
            if isinstance(mark, ast.Call) and len(mark.args) == 2 and isinstance(mark.args[1], ast.List):
                found += [case for node in mark.args[1].elts if (case := _case(node)) is not None]
    return found


def _case(node: ast.expr) -> Case | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:  # a formatted string
        return None
    if not isinstance(value, tuple) or len(value) != 3 or value[2] not in (0, 1):
        return None
    gold, prediction, expected = value
    return (gold, prediction, bool(expected)) if isinstance(gold, str) and isinstance(prediction, str) else None


def test_cases_are_read_and_not_run():
    source = """
import nowhere_to_be_found

@pytest.mark.parametrize("gold,pred,expected", [("1", "$1$", 1), ("1", "2", 0), (f"{1}", "1", 1), ("1", "1", 1, 6)])
def test_some(gold, pred, expected):
    raise SystemExit

@pytest.mark.parametrize("gold", ["1"])
def test_other(gold):
    pass
"""
    assert read_cases(source) == [("1", "$1$", True), ("1", "2", False)]


@pytest.mark.skipif(not MATH_VERIFY.exists(), reason=MISSING)
def test_only_intended_differences_from_the_library():
    cases = read_cases(MATH_VERIFY.read_text())
    assert len(cases) >= 150
    with_limits = MathVerifier()
    try:
        verdicts = with_limits.verify_many([Sample(prediction, {"answer": gold}) for gold, prediction, _ in cases])
    finally:
        with_limits.close()
    differences = Counter(
        (expected, verdict.reason)
        for (_, _, expected), verdict in zip(cases, verdicts, strict=True)
        if (verdict.kind is VerdictKind.PASS) is not expected
    )
    assert dict(differences) == DIFFERENCES
