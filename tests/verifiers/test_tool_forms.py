"""What begins like a call and is none, in the middle of a text, and what only looks a little like one."""

import pytest

from headrace.verifiers.call_forms import MAX_LOOKS, CallFault, parse_calls

BROKEN = [
    '{"name": "f", "arg',
    "{'name': 'f', 'arguments': {}}",
    '{name: "f", arguments: {}}',
    "{'arguments': {}, 'name': 'f'}",
    "{arguments: {}}",
    "{'function': {'name': 'f'}}",
    "{tool_calls: [{}]}",
    '{"id": 1, "type": "function", "function": {"na',
    "{'role': 'assistant', 'tool_calls': []}",
    '{\n\t"arguments" : {"n": 1}, "name": }',
]
TEXT = [
    "{name}",
    "{}",
    "{name: Dana}",
    "{'name': 'Dana', 'party': 4}",
    "{id: 7, type: 'guest'}",
    "{ function(x) }",
    "function f(a) { return {a: a}; }",
    '{"a", "b"}',
    '{"day": {"month": [{"name": "May"}]}}',
    r"\frac{1}{2}",
    "{" * 10_000,
    "{ " * 10_000,
]


def reason(text, form):
    with pytest.raises(CallFault) as fault:
        parse_calls(text, form)
    return fault.value.reason


@pytest.mark.parametrize("form", ["hermes", "json", "any"])
@pytest.mark.parametrize("text", BROKEN)
def test_what_begins_like_a_call_is_a_broken_one(form, text):
    # After what begins it the text goes on in prose, so that nothing but the beginning tells.
    assert reason(f"So: {text}, and so on.", form) == "malformed_call"


@pytest.mark.parametrize("form", ["hermes", "json", "any"])
@pytest.mark.parametrize("text", TEXT, ids=range(len(TEXT)))
def test_other_braces_are_text(form, text):
    assert reason(f"So: {text}, and so on.", form) == "no_call"


def test_more_objects_than_are_looked_at_are_refused():
    assert reason("So: " + '{"a": 1} ' * MAX_LOOKS, "any") == "no_call"
    assert reason("So: " + '{"a": 1} ' * (MAX_LOOKS + 1), "any") == "malformed_call"
