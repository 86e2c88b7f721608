"""What a model thinks before it answers is no part of its answer, whatever checks that."""

import pytest

from headrace.verifiers.base import VerifierSpec
from headrace.verifiers.records import Sample, VerdictKind
from headrace.verifiers.registry import build_verifier

TOOLS = [{"name": "book", "parameters": {"properties": {"party": {"type": "integer"}}}}]
CASES = {  # by verifier: a row, a wrong completion, a right one
    "math": ({"answer": "42"}, r"\boxed{41} and ", r"\boxed{42}"),
    "code": (
        {"entry_point": "f", "tests": [{"input": [1], "expected": 2}]},
        "def f(x): return x\n",
        "def f(x): return x + 1\n",
    ),
    "tool_call": (
        {"tools": TOOLS, "answer": [{"name": "book", "arguments": {"party": 4}}]},
        '{"name": "book", "arguments": {"party": 5}}',
        '{"name": "book", "arguments": {"party": 4}}',
    ),
    "database": (
        {"setup_sql": "CREATE TABLE t(a); INSERT INTO t VALUES (1)", "gold_sql": "SELECT a FROM t"},
        "SELECT 2;",
        "SELECT a FROM t",
    ),
    "entities": ({"answer": {"size": 4}, "fields": {"size": "party_size"}}, '{"size": 5}', '{"size": 4}'),
    "instructions": (
        {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        "well, then",
        "no comma here",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_stands_before_the_end_of_thinking_is_not_looked_at(name):
    row, wrong, right = CASES[name]
    looks, ignores = (build_verifier(VerifierSpec(name, options=options)) for options in ({"thinking_end": None}, {}))
    try:
        thought = f"{wrong}</think>{right}"
        assert ignores.verify(Sample(thought, row)).kind is VerdictKind.PASS
        assert ignores.verify(Sample(f"{wrong}</think>{wrong}</think>{right}", row)).kind is VerdictKind.PASS
        assert ignores.verify(Sample(f"{right}</think>{wrong}", row)).kind is VerdictKind.FAIL
        assert looks.verify(Sample(thought, row)).kind is VerdictKind.FAIL
    finally:
        looks.close()
        ignores.close()
