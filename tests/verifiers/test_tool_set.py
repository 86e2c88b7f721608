import json
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.verifiers import Sample, ToolCallVerifier, UserError, VerdictKind
from headrace.verifiers.call_forms import ToolCall
from headrace.verifiers.schema_formats import FORMATS
from headrace.verifiers.schema_patterns import to_python
from headrace.verifiers.tool_set import ToolSet
from tests.verifiers.wild import HEAVY, JSON
from tests.verifiers.wild_tools import KEYWORDS


def tool(parameters, name="f"):
    return [{"name": name, "parameters": parameters}]


CHAIN = {**{str(link): {"$ref": f"#/$defs/{link + 1}"} for link in range(1200)}, "1200": {}}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[", "is not valid JSON"),
        ('{"name": "f"}', "not a list"),
        ("[]", "empty"),
        ("[1]", "tool 1 is int"),
        ("[{}]", "tool 1 has no `name`"),
        ('[{"function": 1}]', "`function` is int"),
        ('[{"name": "f", "parameters": []}]', r"tool 1 \(f\): `parameters` is list"),
        ('[{"name": "f"}, {"name": "f"}]', r"tool 2 \(f\): a tool of that name"),
        (json.dumps(tool({"type": "array"})), "always an `object`"),
        (json.dumps(tool({"properties": {"a": {"type": "int"}}})), r"not a JSON Schema at \$.properties.a"),
        (json.dumps(tool({"properties": {"a": {"pattern": "("}}})), "not a JSON Schema"),
        (json.dumps(tool({"properties": {"a": {"pattern": "a{99999999999}"}}})), r"not a JSON Schema at \$.*pattern"),
        (
            json.dumps(tool({"properties": {"a": {"pattern": "(" * 2000 + ")" * 2000}}})),
            r"not a JSON Schema at \$.*pattern",
        ),
        (
            json.dumps(tool({"patternProperties": {"a{99999999999}": {}}})),
            r"not a JSON Schema at \$.*patternProperties",
        ),
        (json.dumps(tool({"patternProperties": {"(?<n>a)": {}, "(?<n>b)": {}}})), r"`patternProperties`.*group name"),
        (json.dumps(tool({"$ref": "#/$defs/0", "$defs": CHAIN})), "nested too deeply"),
        (json.dumps(tool({"properties": {"a": {"$ref": "#/$defs/b"}}})), "leads nowhere"),
        (json.dumps(tool({"$ref": "https://example.org/schema"})), "leads nowhere"),
        (
            json.dumps(tool({"properties": {"a": {"$ref": "#/title"}}, "title": "x"})),
            "'#/title' leads to what is no JSON Schema",
        ),
        (json.dumps(tool({"properties": {"a": {"$ref": "#/$defs"}}, "$defs": {"pattern": {}}})), "no JSON Schema"),
        (json.dumps(tool({"$schema": "http://json-schema.org/draft-07/schema#"})), r"\$schema"),
    ],
)
def test_an_invalid_tools_file_is_refused_with_file_tool_and_reason(tmp_path, text, complaint):
    path = tmp_path / "tools.json"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint) as error:
        ToolCallVerifier(path, sandbox=False)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_tools_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        ToolCallVerifier(tmp_path / "none.json", sandbox=False)


@pytest.mark.parametrize(
    ("parameters", "arguments", "reason"),
    [
        ({}, {"a": 1}, "extra_argument"),
        ({"additionalProperties": True}, {"a": 1}, ""),
        ({"additionalProperties": {"type": "string"}}, {"a": 1}, "wrong_type"),
        ({"patternProperties": {"^a": {}}}, {"a": 1}, ""),
        ({"allOf": [{"properties": {"a": {}}}]}, {"a": 1}, ""),
        ({"allOf": [{"properties": {"a": {}}}]}, {"b": 1}, "extra_argument"),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"properties": {"a": {"$ref": "#/$defs/x"}}}}}, {"a": {"a": {}}}, ""),
        ({"properties": {"a": {"type": "array", "items": {"type": "integer"}}}}, {"a": [1, True]}, "wrong_type"),
        ({"properties": {"a": {"required": ["b"]}}}, {"a": {}}, "invalid_argument"),
        ({"properties": {"a": {"enum": [1]}}}, {"a": True}, "invalid_argument"),
        ({"dependentRequired": {"a": ["b"]}, "properties": {"a": {}, "b": {}}}, {"a": 1}, "invalid_argument"),
    ],
)
def test_arguments_are_judged_by_json_schema(parameters, arguments, reason):
    tools = ToolSet.from_definitions(tool(parameters), "here")
    assert tools.check(ToolCall("f", arguments)).reason == reason


def test_a_missing_argument_goes_before_an_extra_one_and_that_before_a_type():
    parameters = {"properties": {"a": {"type": "integer"}, "b": {}}, "required": ["b"]}
    tools = ToolSet.from_definitions(tool(parameters), "here")
    check = tools.check(ToolCall("f", {"a": "x", "c": 1}))
    assert check.reason == "missing_argument"
    assert check.arguments == {"b": "missing", "c": "extra", "a": "wrong_type"}
    assert tools.check(ToolCall("f", {"a": "x", "b": 1, "c": 1})).reason == "extra_argument"


def test_an_unknown_tool_is_told_its_nearest_neighbour():
    tools = ToolSet.from_definitions(tool({}, name="book_table"), "here")
    assert "`book_table`" in tools.check(ToolCall("book_tabel", {})).message


@pytest.mark.parametrize(
    ("schema", "value", "reason"),
    [
        ({"multipleOf": 0.01}, 1e300, ""),
        ({"multipleOf": 0.01}, 1e30, ""),
        ({"multipleOf": 0.01}, 2**63, ""),
        ({"multipleOf": 0.01}, 5e-324, "invalid_argument"),
        ({"multipleOf": 0.01}, 1e22 + 0.005, ""),  # the double is 1e22
        ({"multipleOf": 7}, 1e300, "invalid_argument"),
        ({"multipleOf": 5e-324}, 1.7976931348623157e308, ""),
        ({"multipleOf": 1e308}, 1, "invalid_argument"),
        ({"multipleOf": 0.1}, 12345678901234567890, ""),
        ({"format": "regex"}, "a{99999999999}", "invalid_argument"),
        ({"format": "regex"}, "(" * 3000, "invalid_argument"),
        ({"format": "regex"}, "(" * 3000 + ")" * 3000, "invalid_argument"),
        ({"format": "regex"}, "a{3}", ""),
    ],
)
def test_a_value_at_the_end_of_the_range_is_judged_and_raises_nothing(schema, value, reason):
    check = ToolSet.from_definitions(tool({"properties": {"a": schema}}), "here").check(ToolCall("f", {"a": value}))
    assert (check.reason, check.raised) == (reason, "")


# Every level of a value costs the schema library this many calls of itself; it gives up at some depth.
STAIRS = {
    **{str(step): {"allOf": [{"$ref": f"#/$defs/{step + 1}"}]} for step in range(30)},
    "30": {"properties": {"a": {"$ref": "#/$defs/0"}}},
}


def test_a_value_that_the_check_raises_over_is_invalid_and_the_exception_is_named():
    tools = ToolSet.from_definitions(tool({"properties": {"a": {"$ref": "#/$defs/0"}}, "$defs": STAIRS}), "here")
    assert tools.check(ToolCall("f", {"a": {"a": 1}})).reason == ""
    value = 1
    for _ in range(25):
        value = {"a": value}
    check = tools.check(ToolCall("f", {"a": value}))
    assert (check.reason, check.raised, check.fitting) == ("invalid_argument", "RecursionError", 0.0)
    assert "RecursionError" in check.message


def test_the_verdict_names_the_exception_and_the_row_of_such_a_gold_call_is_refused(monkeypatch):
    def raising(*arguments):
        raise ZeroDivisionError("of the library")

    verifier = ToolCallVerifier(sandbox=False)
    row = {"tools": tool({"properties": {"a": {"format": "regex"}}})}
    call = {"name": "f", "arguments": {"a": "b"}}
    monkeypatch.setattr("headrace.verifiers.schema_formats.to_python", raising)
    verdict = verifier.verify(Sample(json.dumps(call), row))
    assert (verdict.kind, verdict.reason) == (VerdictKind.FAIL, "invalid_argument")
    assert verdict.details["calls"][0]["raised"] == "ZeroDivisionError"
    assert "ZeroDivisionError" in str(verifier.check_row({**row, "answer": call}))


def test_a_shortage_of_memory_is_nobodys_invalid_argument(monkeypatch):
    def short(*arguments):
        raise MemoryError

    tools = ToolSet.from_definitions(tool({"properties": {"a": {"format": "regex"}}}), "here")
    monkeypatch.setattr("headrace.verifiers.schema_formats.to_python", short)
    with pytest.raises(MemoryError):
        tools.check(ToolCall("f", {"a": "b"}))


def test_a_pattern_is_told_as_the_schema_has_it():
    parameters = {
        "properties": {"a": {"pattern": r"^\s\p{Lu}$"}},
        "patternProperties": {r"^x.\d$": {}},
        "additionalProperties": False,
    }
    tools = ToolSet.from_definitions(tool(parameters), "here")
    assert repr(r"^\s\p{Lu}$") in tools.check(ToolCall("f", {"a": "b"})).message
    assert repr(r"^x.\d$") in tools.check(ToolCall("f", {"b": 1})).message
    assert tools.check(ToolCall("f", {"x-1": 1, "a": " Ä"})).reason == ""


def test_formats_bind_only_where_asked():
    definitions = tool({"properties": {"day": {"format": "date"}}})
    call = ToolCall("f", {"day": "tomorrow"})
    assert ToolSet.from_definitions(definitions, "here").check(call).reason == "invalid_argument"
    assert ToolSet.from_definitions(definitions, "here", check_formats=False).check(call).reason == ""


@pytest.mark.parametrize(
    ("parameters", "arguments", "reason", "fitting"),
    [
        (
            {"patternProperties": {"^p_": {}}, "additionalProperties": False},
            ["p_1", "p_2", "bad"],
            "extra_argument",
            2 / 3,
        ),
        (
            {"allOf": [{"properties": {"a": {"type": "integer"}, "b": {}, "c": {}}}]},
            ["a", "b", "c"],
            "wrong_type",
            2 / 3,
        ),
        ({"properties": {"a": {}}, "required": ["a", "b"]}, ["a"], "missing_argument", 1 / 2),
        ({"properties": {"a": {}}, "minProperties": 2}, ["a"], "invalid_argument", 0),
    ],
)
def test_the_arguments_that_fit_are_a_share_of_all_that_are_given_or_required(parameters, arguments, reason, fitting):
    check = ToolSet.from_definitions(tool(parameters), "here").check(ToolCall("f", dict.fromkeys(arguments, "x")))
    assert (check.reason, check.fitting) == (reason, pytest.approx(fitting))


# Texts near to what formats mean, so that checks get past their first letter.
near = st.lists(
    st.sampled_from(
        [
            *[*"0123456789-:.+TZtzPYMDHSW/@#~%[]{}", "xn--", "\u0663", "\n", "\0", "\ud800", "\u302e", "ä"],
            *["a{99999999999}", "(" * 3_000, "9" * 5_000, "::"],
        ]
    )
)
texts = st.text(st.characters()) | near.map("".join)


@given(texts, st.sampled_from(sorted(FORMATS.checkers)))
def test_no_text_makes_a_format_raise_or_pass_with_a_line_end_behind_it(text, name):
    FORMATS.conforms(text, name)
    if name not in ("regex", "json-pointer", "relative-json-pointer"):
        assert not FORMATS.conforms(text + "\n", name)


@pytest.mark.parametrize("name", FORMATS.checkers)
def test_texts_that_break_parsers_break_no_format(name):
    for text in HEAVY.values():
        FORMATS.conforms(text[:5_000], name)  # it is the depth that counts; more only takes time


# Where a keyword's value is wrong it is refused; where it is right it judges whatever comes.
keywords = st.dictionaries(
    st.sampled_from([*KEYWORDS, "definitions", "dependencies"]), JSON | st.just({"a": {}}), max_size=3
)
addresses = st.sampled_from(["http://[", "urn:x", "#", "#/$defs/a", "x:y", "//[", "%", "", "#a", "http://[::1]/%zz#é"])


@given(keywords | st.dictionaries(st.sampled_from(["$id", "$ref", "$dynamicRef", "$schema", "$anchor"]), addresses))
@settings(max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "150")), deadline=None)
def test_a_schema_is_refused_or_judges_every_value(schema):
    try:
        tools = ToolSet.from_definitions(tool({"properties": {"a": schema}, "$defs": {"a": schema}}), "here")
    except UserError:
        return
    for value in (1e300, 5e-324, 2**63, "a{99999999999}", [1, 1.0, {}], {"a": [1]}, None):
        assert tools.check(ToolCall("f", {"a": value})).raised == ""


@given(
    st.lists(st.sampled_from([*"()[]{}^$.*+?|\\dDwWsSbBpPuxck<>:=!-,012aA& ", "(?", "\ud800", "\u2028"])).map("".join)
)
def test_a_pattern_is_translated_or_refused(pattern):
    try:
        compiled = re.compile(to_python(pattern))
    except (ValueError, re.error):
        return
    compiled.search("")
