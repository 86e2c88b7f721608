"""The shaped reward: bounds for every input, and never less for more that is right."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.verifiers import RewardWeights, Sample, ToolCallVerifier, UserError, VerdictKind
from headrace.verifiers.records import Verdict, decode, encode

ARGUMENTS = {"a": 1, "b": "x", "c": True, "d": [1, 2]}
TOOLS = [
    {
        "name": "f",
        "parameters": {
            "properties": {
                "a": {"type": "integer", "multipleOf": 0.5},
                "b": {"type": "string", "format": "hostname"},
                "c": {"type": "boolean"},
                "d": {"type": "array", "uniqueItems": True},
            },
            "required": ["a", "b", "c", "d"],
        },
    },
    {"name": "g", "parameters": {"$ref": "#/$defs/node", "$defs": {"node": {"additionalProperties": True}}}},
]
GOLD = {"name": "f", "arguments": ARGUMENTS}
VERIFIER = ToolCallVerifier(sandbox=False)
ROW = {"tools": TOOLS, "answer": [GOLD]}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
call_values = st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "g", "h"]), "arguments": st.dictionaries(st.sampled_from("abcde"), json_values)}
)
wrapped_values = st.fixed_dictionaries(
    {"function": call_values.map(lambda value: value | {"arguments": json.dumps(value["arguments"])})},
    optional={"id": st.text(max_size=3), "type": st.sampled_from(["function", "code"])},
)
messages = st.fixed_dictionaries(
    {"tool_calls": st.lists(wrapped_values | call_values, max_size=3)},
    optional={"content": st.none() | st.text(max_size=3)},
)
pieces = st.sampled_from(["<tool_call>", "</tool_call>", "{", "}", "[", '"', ":", ",", "\\", "\ud800", " "])
completions = st.one_of(
    st.text(st.characters()),
    json_values.map(json.dumps),
    call_values.map(json.dumps),
    wrapped_values.map(json.dumps),
    messages.map(json.dumps),
    call_values.map(lambda value: f"<tool_call>{json.dumps(value)}</tool_call>"),
    st.lists(pieces | call_values.map(json.dumps), max_size=12).map("".join),
)


@given(completions, st.sampled_from(["hermes", "json", "any"]), st.booleans())
def test_no_completion_raises_or_leaves_the_bounds(completion, form, allow_text):
    verifier = ToolCallVerifier(sandbox=False, form=form, allow_text=allow_text)
    choices = [{"f": {name: [value, ""] for name, value in ARGUMENTS.items()}}]
    for row in (ROW, {"tools": TOOLS}, {"tools": TOOLS, "answer_alternatives": choices}):
        verdict = verifier.verify(Sample(completion, row))
        assert verdict.kind is not VerdictKind.INFRA_ERROR
        assert 0.0 <= verdict.reward <= 1.0
        assert (verdict.kind is VerdictKind.PASS) == (verdict.reward == 1.0)
        assert decode(encode(verdict), Verdict) == verdict


weights = st.builds(
    lambda values: dict(zip(("format", "schema", "tool", "arguments", "exact"), values, strict=True)),
    st.lists(st.floats(0.01, 10), min_size=5, max_size=5),
)
wrong = {"a": 2, "b": "y", "c": False, "d": []}
attempts = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from([ARGUMENTS[name], wrong[name]]) for name in ARGUMENTS} | {"e": st.just(0)}
)


def reward(verifier, arguments):
    text = json.dumps({"name": "f", "arguments": arguments})
    return verifier.verify(Sample(text, ROW)).reward


@given(attempts, weights)
def test_each_argument_put_right_earns_more(attempt, weights):
    verifier = ToolCallVerifier(sandbox=False, weights=weights)
    before = reward(verifier, attempt)
    for name, value in ARGUMENTS.items():
        if attempt.get(name) != value:
            assert reward(verifier, attempt | {name: value}) > before


@given(attempts, weights)
def test_an_extra_argument_left_out_earns_more_where_another_is_right(attempt, weights):
    verifier = ToolCallVerifier(sandbox=False, weights=weights)
    without = {name: value for name, value in attempt.items() if name != "e"}
    if any(without.get(name) == value for name, value in ARGUMENTS.items()):
        assert reward(verifier, without) > reward(verifier, without | {"e": 0})
    else:
        assert reward(verifier, without) >= reward(verifier, without | {"e": 0})


@given(st.permutations([0, 1, 2]), st.integers(0, 3), weights)
def test_each_further_right_call_earns_more(order, right, weights):
    gold = [{"name": "f", "arguments": ARGUMENTS | {"a": number}} for number in range(3)]
    verifier = ToolCallVerifier(sandbox=False, weights=weights)

    def reward_of(count):
        calls = [gold[index] for index in order[:count]] + [{"name": "h", "arguments": {}}] * (3 - count)
        return verifier.verify(Sample(json.dumps(calls), {"tools": TOOLS, "answer": gold})).reward

    assert reward_of(3) == 1.0
    if right < 3:
        assert reward_of(right) < reward_of(right + 1)


def test_a_wrong_tool_earns_less_than_the_right_one_with_every_argument_wrong():
    other = VERIFIER.verify(Sample('{"name": "g", "arguments": {}}', ROW))
    assert other.reason == "wrong_tool"
    assert other.reward <= reward(VERIFIER, {"a": "wrong"})


def test_what_is_right_is_paid_by_the_weights():
    verifier = ToolCallVerifier(
        sandbox=False, weights={"format": 1, "schema": 2, "tool": 3, "arguments": 4, "exact": 10}
    )
    arguments = ARGUMENTS | {"a": 2, "b": "y"}
    assert reward(verifier, arguments) == pytest.approx((1 + 2 + 3 + 4 * 0.5) / 20)


def test_garbage_earns_nothing():
    assert VERIFIER.verify(Sample("no idea", ROW)).reward == 0.0


def test_text_around_a_right_call_costs_the_format_and_the_exact_share():
    text = "Here: " + json.dumps(GOLD)
    assert VERIFIER.verify(Sample(text, ROW)).reward == pytest.approx(0.7)


def test_only_an_exact_answer_passes_even_if_exactness_is_not_paid_for():
    verifier = ToolCallVerifier(sandbox=False, weights=RewardWeights(format=1, schema=0, tool=0, arguments=0, exact=0))
    verdict = verifier.verify(Sample('{"name": "g", "arguments": {}}', ROW))
    assert verdict.kind is VerdictKind.FAIL


def test_weights_that_pay_for_nothing_are_refused():
    with pytest.raises(UserError, match="at least one weight"):
        ToolCallVerifier(sandbox=False, weights=dict.fromkeys(("format", "schema", "tool", "arguments", "exact"), 0))


SCHEMA_ONLY = {"format": 0, "schema": 1, "tool": 0, "arguments": 0, "exact": 0}


@pytest.mark.parametrize(
    ("call", "share"),
    [
        ({"name": "f", "arguments": ARGUMENTS}, 1.0),
        ({"name": "f", "arguments": {**ARGUMENTS, "a": "no number"}}, 0.75),
        ({"name": "f", "arguments": {"a": 1, "b": "x"}}, 0.5),
        ({"name": "f", "arguments": {**ARGUMENTS, "e": 0}}, 0.8),
        ({"name": "g", "arguments": {}}, 0.0),
        ({"name": "nobody", "arguments": ARGUMENTS}, 0.0),
    ],
)
def test_the_schema_share_is_of_the_gold_tools_arguments_that_fit(call, share):
    verdict = ToolCallVerifier(sandbox=False, weights=SCHEMA_ONLY).verify(Sample(json.dumps(call), ROW))
    assert verdict.details["shares"]["schema"] == pytest.approx(share)
