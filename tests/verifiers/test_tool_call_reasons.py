"""Every reason of the tool-call verifier, from the outside."""

import json

import pytest

from headrace.verifiers import Sample, ToolCallVerifier, VerdictKind

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "table",
            "description": "Book a table.",
            "parameters": {
                "type": "object",
                "properties": {
                    "date": {"type": "string", "format": "date"},
                    "time": {"type": "string", "pattern": "^[0-2][0-9]:[0-5][0-9]$"},
                    "party": {"type": "integer", "minimum": 1},
                    "area": {"enum": ["inside", "terrace"]},
                    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                },
                "required": ["date", "party"],
            },
        },
    },
    {"name": "cancel", "parameters": {"properties": {"id": {"type": "string"}}, "required": ["id"]}},
    {"name": "hang_up"},
]
GOLD = {"name": "table", "arguments": {"date": "2026-03-01", "party": 4}}
CANCEL = {"name": "cancel", "arguments": {"id": "7"}}


def call(name="table", **arguments):
    return json.dumps({"name": name, "arguments": arguments})


def tagged(*texts):
    return "".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts)


def encoded():
    return json.dumps({"name": "table", "arguments": json.dumps(GOLD["arguments"])})


def wrapped(arguments, **more):
    """A call as OpenAI's API has it."""
    return json.dumps({"id": "1", "type": "function", "function": {"name": "table", "arguments": arguments}, **more})


RIGHT = call(date="2026-03-01", party=4)


@pytest.fixture(scope="module")
def tools_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tools") / "tools.json"
    path.write_text(json.dumps(TOOLS))
    return path


@pytest.fixture(scope="module")
def verifier(tools_file):
    return ToolCallVerifier(tools_file, sandbox=False)


CASES = [
    ("match", RIGHT),
    ("match", tagged(RIGHT)),
    ("match", f" \n{RIGHT}\n"),
    ("match", f"[{RIGHT}]"),
    ("match", call(date="2026-03-01", party=4.0)),
    ("no_call", ""),
    ("no_call", "A table for four, gladly."),
    ("no_call", "[]"),
    ("malformed_call", RIGHT[:-1]),
    ("malformed_call", RIGHT.replace('"', "'")),
    ("malformed_call", f"<tool_call>{RIGHT}"),
    ("code_fence", f"<tool_call>```json\n{RIGHT}\n```</tool_call>"),
    ("code_fence", f"<tool_call>\n```\n{RIGHT}\n```\n</tool_call>"),
    ("code_fence", f"<tool_call>{RIGHT}```</tool_call>"),
    ("malformed_call", '{"name": "table"}'),
    ("malformed_call", '{"arguments": {}}'),
    ("malformed_call", '{"name": 7, "arguments": {}}'),
    ("malformed_call", '{"name": "table", "arguments": {}, "id": 1}'),
    ("malformed_call", '{"name": "table", "arguments": {"party": NaN}}'),
    ("malformed_call", '{"name": "table", "arguments": {"party": 1e999}}'),
    ("malformed_call", '{"name": "table", "arguments": {"party": ' + "9" * 5000 + "}}"),
    ("malformed_call", '{"name": "table", "arguments": ' + '{"a":' * 40 + "1" + "}" * 40 + "}"),
    ("malformed_call", "[" * 100_000),
    ("duplicate_key", '{"name": "table", "arguments": {"party": 4, "party": 4, "date": "2026-03-01"}}'),
    ("not_an_object", "[1]"),
    ("not_an_object", tagged('"table"')),
    ("encoded_arguments", encoded()),
    ("encoded_arguments", tagged(encoded())),
    ("not_an_object", '{"name": "table", "arguments": "party"}'),
    ("match", wrapped(json.dumps(GOLD["arguments"]))),
    ("match", wrapped(GOLD["arguments"])),
    ("match", f"[{wrapped(json.dumps(GOLD['arguments']))}]"),
    ("match", json.dumps({"tool_calls": [json.loads(wrapped(json.dumps(GOLD["arguments"])))]})),
    (
        "match",
        json.dumps({"role": "assistant", "content": None, "tool_calls": [json.loads(wrapped(GOLD["arguments"]))]}),
    ),
    ("extra_text", json.dumps({"content": "Sure!", "tool_calls": [json.loads(wrapped(GOLD["arguments"]))]})),
    ("no_call", json.dumps({"role": "assistant", "content": "Sure!", "tool_calls": []})),
    ("malformed_call", json.dumps({"tool_calls": {}})),
    ("malformed_call", json.dumps({"tool_calls": [GOLD], "content": 7})),
    ("malformed_call", json.dumps({"tool_calls": [GOLD], "answer": 7})),
    ("malformed_call", wrapped("{'party': 4}")),
    ("malformed_call", wrapped("")),
    ("malformed_call", wrapped("{}", type="code")),
    ("malformed_call", wrapped("{}", index=0)),
    ("duplicate_key", wrapped('{"party": 4, "party": 4, "date": "2026-03-01"}')),
    ("not_an_object", wrapped("[4]")),
    ("encoded_arguments", wrapped(json.dumps(json.dumps(GOLD["arguments"])))),
    ("wrong_type", wrapped('{"date": "2026-03-01", "party": "4"}')),
    ("malformed_call", tagged(wrapped(json.dumps(GOLD["arguments"])))),
    ("not_an_object", '{"name": "table", "arguments": null}'),
    ("unknown_tool", call("tables", party=4)),
    ("missing_argument", call(date="2026-03-01")),
    ("extra_argument", call(date="2026-03-01", party=4, wine="red")),
    ("wrong_type", call(date="2026-03-01", party="4")),
    ("wrong_type", call(date="2026-03-01", party=True)),
    ("wrong_type", call(date="2026-03-01", party=4.5)),
    ("wrong_type", call(date="2026-03-01", party=4, note=7)),
    ("invalid_argument", call(date="2026-02-30", party=4)),
    ("invalid_argument", call(date="2026-03-01", party=0)),
    ("invalid_argument", call(date="2026-03-01", party=4, area="roof")),
    ("invalid_argument", call(date="2026-03-01", party=4, time="25h")),
    ("extra_text", f"Sure! {RIGHT}"),
    ("extra_text", f"{RIGHT} Done."),
    ("extra_text", f"```json\n{RIGHT}\n```"),
    ("extra_text", f"Booked: {tagged(RIGHT)}"),
    ("extra_call", tagged(RIGHT, RIGHT)),
    ("extra_call", f"{RIGHT}{RIGHT}"),
    ("extra_call", tagged(*[RIGHT] * 17)),
    ("wrong_tool", call("cancel", id="7")),
    ("wrong_argument", call(date="2026-03-01", party=5)),
    ("wrong_argument", call(date="2026-03-01", party=4, note=None)),
]


@pytest.mark.parametrize(("reason", "completion"), CASES)
def test_reason(verifier, reason, completion):
    verdict = verifier.verify(Sample(completion, {"answer": [GOLD]}))
    assert verdict.reason == reason
    assert (verdict.kind is VerdictKind.PASS) == (reason == "match")
    assert (verdict.reward == 1.0) == (reason == "match")


@pytest.mark.parametrize(
    ("reason", "completion", "answer"),
    [
        ("match", tagged(RIGHT, call("cancel", id="7")), [GOLD, CANCEL]),
        ("match", tagged(call("cancel", id="7"), RIGHT), [GOLD, CANCEL]),
        ("match", f"[{RIGHT}, {call('cancel', id='7')}]", [GOLD, CANCEL]),
        ("missing_call", RIGHT, [GOLD, CANCEL]),
        ("wrong_tool", tagged(RIGHT, RIGHT), [GOLD, CANCEL]),
        ("match", RIGHT, GOLD),
        ("match", call("hang_up"), [{"name": "hang_up", "arguments": {}}]),
        ("match", "I cannot do that.", []),
        ("extra_call", RIGHT, []),
        ("match", "I love {curly} braces.", []),
        ("match", "{curly} braces, I love them.", []),
        ("match", "[1] says so, and [note] as well.", []),
        ("match", 'Your data: {"day": "2026-03-01"}', []),
        ("match", "{" * 1000, []),
        ("malformed_call", RIGHT[:-1], []),
        ("malformed_call", "So: " + RIGHT[:-1], []),
        ("malformed_call", "So: " + RIGHT.replace('"', "'"), []),
        ("malformed_call", 'So: {name: "table", arguments: {}}', []),
        ("malformed_call", "So: " + wrapped("{}")[:-1], []),
        ("malformed_call", '{"tool": "table"}', []),
        ("malformed_call", '{"tool": "table", "input": {', []),
        ("malformed_call", f'So: {{"call": {RIGHT}}}', []),
        ("malformed_call", "<tool_call>table(party=4)</tool_call>", []),
        ("malformed_call", "[] <tool_call>table(party=4)</tool_call>", []),
        ("extra_text", f"[] {RIGHT}", []),
        ("extra_call", json.dumps({"tool_calls": []}) + RIGHT, []),
        ("malformed_call", json.dumps({"content": f"So: {RIGHT}", "tool_calls": []}), []),
    ],
)
def test_reason_against_other_answers(verifier, reason, completion, answer):
    assert verifier.verify(Sample(completion, {"answer": answer})).reason == reason


def test_without_gold_a_call_that_fits_its_schema_passes(verifier):
    verdict = verifier.verify(Sample(call(date="2026-12-31", party=2), {}))
    assert (verdict.kind, verdict.reason, verdict.reward) == (VerdictKind.PASS, "valid", 1.0)
    assert verdict.details["matches_gold"] is None


def test_an_alternative_answer_is_as_good_as_gold(verifier):
    row = {"answer": [GOLD], "answer_alternatives": [[CANCEL]]}
    assert verifier.verify(Sample(call("cancel", id="7"), row)).reason == "match"


ALLOWED = {"table": {"date": ["2026-03-01", "2026-03-02"], "party": [4], "area": ["", "terrace"]}}


@pytest.mark.parametrize(
    ("reason", "completion", "alternatives"),
    [
        ("match", RIGHT, [ALLOWED]),
        ("match", call(date="2026-03-02", party=4.0, area="terrace"), [ALLOWED]),
        ("wrong_argument", call(date="2026-03-02", party=4, area="inside"), [ALLOWED]),
        ("wrong_argument", call(date="2026-03-03", party=4), [ALLOWED]),
        ("wrong_argument", call(date="2026-03-01", party=4, note="x"), [ALLOWED]),
        ("missing_argument", call(date="2026-03-01"), [ALLOWED]),
        ("missing_call", RIGHT, [ALLOWED, {"cancel": {"id": ["7"]}}]),
        ("match", tagged(call("cancel", id="7"), RIGHT), [ALLOWED, {"cancel": {"id": ["7"]}}]),
        ("match", call("cancel", id="7"), [[ALLOWED], [{"cancel": {"id": ["7", "8"]}}]]),
        ("match", call("cancel", id="7"), [CANCEL, GOLD]),
        ("match", call("hang_up"), [{"hang_up": {}}]),
        # The first call fits both, the second only one: to give the first away to what it resembles first is wrong.
        (
            "match",
            tagged(call("cancel", id="7"), call("cancel", id="8")),
            [{"cancel": {"id": ["7", "8"]}}, {"cancel": {"id": ["7"]}}],
        ),
    ],
)
def test_allowed_values_stand_for_every_answer_that_is_made_of_them(verifier, reason, completion, alternatives):
    row = {"answer_alternatives": alternatives}
    assert verifier.check_row(row) is None
    verdict = verifier.verify(Sample(completion, row))
    assert verdict.reason == reason
    assert verdict.details["matches_gold"] == (reason == "match")


def test_gold_counts_beside_allowed_values(verifier):
    row = {"answer": [CANCEL], "answer_alternatives": [ALLOWED]}
    for completion in (call("cancel", id="7"), RIGHT):
        assert verifier.verify(Sample(completion, row)).reason == "match"


def test_an_argument_that_may_be_absent_is_no_fault_and_no_merit(verifier):
    row = {"answer_alternatives": [ALLOWED]}
    without = verifier.verify(Sample(call(date="2026-03-01", party=5), row)).details["shares"]["arguments"]
    assert without == 0.5


def test_allowed_values_inside_an_object_are_lists_as_well():
    parameters = {"properties": {"guest": {"type": "object"}, "days": {"type": "array"}}}
    verifier = ToolCallVerifier(sandbox=False)
    row = {
        "tools": [{"name": "book", "parameters": parameters}],
        "answer_alternatives": [
            {"book": {"guest": [{"name": ["Dana", "D."], "vip": ["", True]}], "days": [[1, 2], ["x"]]}}
        ],
    }
    assert verifier.check_row(row) is None
    for arguments, reason in (
        ({"guest": {"name": "D."}, "days": [1, 2]}, "match"),
        ({"guest": {"name": "Dana", "vip": True}, "days": ["x"]}, "match"),
        ({"guest": {"name": "Dana", "vip": 1}, "days": [1, 2]}, "wrong_argument"),
        ({"guest": {"vip": True}, "days": [1, 2]}, "wrong_argument"),
        ({"guest": {"name": "Dana", "age": 7}, "days": [1, 2]}, "wrong_argument"),
        ({"guest": {"name": ["Dana", "D."]}, "days": [1, 2]}, "wrong_argument"),
        ({"guest": {"name": "Dana"}, "days": [2, 1]}, "wrong_argument"),
    ):
        assert verifier.verify(Sample(call("book", **arguments), row)).reason == reason


def test_what_cannot_be_read_has_no_valid_schema(verifier):
    for row, matches in (({"answer": [GOLD]}, False), ({}, None)):
        details = verifier.verify(Sample("no call", row)).details
        assert (details["valid_schema"], details["matches_gold"]) == (False, matches)


def test_details_tell_the_outcome_of_each_argument(verifier):
    completion = call(date="2026-03-02", party="4", wine="red")
    answer = [{"name": "table", "arguments": {"date": "2026-03-01", "party": 4, "time": "19:00"}}]
    [outcome] = verifier.verify(Sample(completion, {"answer": answer})).details["calls"]
    assert outcome["arguments"] == {"date": "wrong", "party": "wrong_type", "wine": "extra", "time": "missing"}


def test_a_rows_own_tools_go_before_the_files(verifier):
    row = {"tools": [{"name": "ring", "parameters": {}}]}
    assert verifier.verify(Sample(call("ring"), row)).reason == "valid"
    assert verifier.verify(Sample(RIGHT, row)).reason == "unknown_tool"


def test_text_around_a_call_can_be_allowed(tools_file):
    verifier = ToolCallVerifier(tools_file, sandbox=False, allow_text=True)
    for completion in (f"Sure! {RIGHT}", f"Booked: {tagged(RIGHT)} Bye."):
        assert verifier.verify(Sample(completion, {"answer": [GOLD]})).reason == "match"


def test_a_call_hidden_in_allowed_text_counts(tools_file):
    verifier = ToolCallVerifier(tools_file, sandbox=False, allow_text=True)
    completion = f"{RIGHT} or rather {call('cancel', id='7')}"
    assert verifier.verify(Sample(completion, {"answer": [GOLD]})).reason == "extra_call"


@pytest.mark.parametrize(
    ("reason", "completion"),
    [
        ("not_an_object", RIGHT + ' {"name": "cancel", "arguments": "all"}'),
        ("malformed_call", RIGHT + ' {"name": "cancel", "arguments": {"id": "7"}, "x": 1}'),
        ("malformed_call", RIGHT + ' or {"name": "cancel", "argum'),
        ("malformed_call", tagged(RIGHT) + " " + call("cancel", id="7")),
        ("extra_call", call("cancel", id="7") + " " + tagged(RIGHT)),
        ("malformed_call", RIGHT + '{"' * 1000),
        ("match", RIGHT + "{" * 1000),
        ("match", "In {short}: " + RIGHT),
        ("match", "{In short}: " + RIGHT),
        ("match", "[note] " + RIGHT),
        ("match", r"As \frac{1}{2} + {1} = {x | x > 0}, " + tagged(RIGHT)),
        ("match", "{In short}: " + tagged(RIGHT)),
        ("match", 'Of {"day": 1}: ' + RIGHT),
        ("match", '{"day": 1} it is: ' + RIGHT),
        ("match", "for {'name': 'Dana', 'party': 4}: " + RIGHT),
        ("malformed_call", RIGHT[:-1] + " or rather " + RIGHT),
        ("malformed_call", "So: " + RIGHT[:-1] + " or rather " + RIGHT),
        ("malformed_call", "So: " + RIGHT.replace('"', "'") + " or rather " + RIGHT),
        ("malformed_call", "So: " + wrapped("{}").replace("}", "", 1) + RIGHT),
        ("malformed_call", f'So: {{"call": {RIGHT}}}, or rather {RIGHT}'),
        ("code_fence", f"{{x}} <tool_call>```json\n{RIGHT}\n```</tool_call>"),
        ("malformed_call", f"{{x}} <tool_call>{RIGHT}"),
        ("extra_call", RIGHT + " {see above} " + call("cancel", id="7")),
        ("extra_call", f"[{RIGHT}] {RIGHT}"),
        ("match", RIGHT + ' {see above}, as {"a": 1}'),
        ("match", RIGHT + ' for {"name": "Dana", "party": 4}'),
        ("extra_call", RIGHT + " or " + wrapped(json.dumps(GOLD["arguments"]))),
        ("extra_call", RIGHT + ' or {"tool_calls": [' + RIGHT + "]}"),
        ("malformed_call", RIGHT + ' or {"function": {"na'),
        ("malformed_call", tagged(RIGHT) + " " + wrapped("{}")),
        ("malformed_call", RIGHT + ' {"name": "cancel", "parameters": {"id": "7"}}'),
        ("match", 'I have {"name": "cancel", "description": "...", "parameters": {}}: ' + RIGHT),
    ],
)
def test_no_second_call_hides_in_allowed_text(tools_file, reason, completion):
    verifier = ToolCallVerifier(tools_file, sandbox=False, allow_text=True)
    assert verifier.verify(Sample(completion, {"answer": [GOLD]})).reason == reason


@pytest.mark.parametrize(
    ("form", "completion", "reason"),
    [
        ("hermes", RIGHT, "malformed_call"),
        ("hermes", f"[{RIGHT}]", "malformed_call"),
        ("hermes", f"So: {wrapped('{}')}", "malformed_call"),
        ("hermes", RIGHT[:-1], "malformed_call"),
        ("hermes", "I love {curly} braces.", "match"),
        ("hermes", 'Your data: {"day": 1}', "match"),
        ("json", tagged(RIGHT), "extra_text"),
        ("json", "<tool_call>table(party=4)</tool_call>", "malformed_call"),
        ("json", "I love {curly} braces.", "match"),
    ],
)
def test_a_call_in_another_form_is_not_none(tools_file, form, completion, reason):
    verifier = ToolCallVerifier(tools_file, sandbox=False, form=form)
    assert verifier.verify(Sample(completion, {"answer": []})).reason == reason


@pytest.mark.parametrize(("form", "completion"), [("hermes", RIGHT), ("json", tagged(RIGHT))])
def test_one_form_does_not_accept_the_other(tools_file, form, completion):
    verifier = ToolCallVerifier(tools_file, sandbox=False, form=form)
    assert verifier.verify(Sample(completion, {"answer": [GOLD]})).kind is VerdictKind.FAIL


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"answer": "table"}, "`answer`: a call is a string"),
        ({"answer": [{"name": "table"}]}, "`answer`: a call without `arguments`"),
        ({"answer": [{"name": "tabel", "arguments": {}}]}, "unknown_tool"),
        ({"answer": [{"name": "table", "arguments": {"date": "2026-03-01"}}]}, "missing_argument"),
        ({"answer": [GOLD], "answer_alternatives": GOLD}, "`answer_alternatives` is dict"),
        ({"answer": [GOLD] * 9}, "at most 8"),
        ({"answer_alternatives": [{"table": {"party": 4}}]}, "`party` of table has no list of allowed values"),
        ({"answer_alternatives": [{"table": {"party": []}}]}, "`party` of table has no list of allowed values"),
        ({"answer_alternatives": [{"tabel": {"party": [4]}}]}, "unknown_tool"),
        ({"answer_alternatives": [{"table": {"party": [4]}}]}, "missing_argument"),
        ({"answer": {"name": "table", "arguments": {"date": object()}}}, "not JSON"),
        ({"answer": {"name": "table", "arguments": {"party": 10**5000}}}, "not JSON"),
        ({"answer": {"name": "table", "arguments": {"party": float("nan")}}}, "not JSON"),
        ({"tools": [{"name": object()}]}, "`tools`"),
        ({"tools": [{"name": "f", "parameters": {"properties": {"n": {"multipleOf": float("inf")}}}}]}, "not JSON"),
        ({"tools": [{"name": "f", "parameters": {"minProperties": 10**5000}}]}, "not JSON"),
        ({"tools": [{"name": "f", "parameters": {"properties": {"n": {"pattern": "a{99999999999}"}}}}]}, "tool 1 (f)"),
        ({"tools": "all"}, "`tools`: the tools are str"),
        ({"tools": [{"name": "f", "parameters": {"type": "nothing"}}]}, "tool 1 (f)"),
    ],
)
def test_a_bad_row_is_named_and_never_scored(verifier, row, complaint):
    assert complaint in verifier.check_row(row)


def test_a_bad_row_is_an_infra_error(verifier):
    verdict = verifier.verify(Sample(RIGHT, {"answer": "table"}))
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "bad_row")


def test_a_good_row_is_not_complained_of(verifier):
    assert verifier.check_row({"answer": [GOLD], "answer_alternatives": [[CANCEL]]}) is None
    assert verifier.check_row({"prompt": "no gold"}) is None
    assert "no `schema_path`" in str(ToolCallVerifier(sandbox=False).check_row({}))
