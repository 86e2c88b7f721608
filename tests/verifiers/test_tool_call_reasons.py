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
    ("malformed_call", f"<tool_call>```json\n{RIGHT}\n```</tool_call>"),
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
    ("not_an_object", '{"name": "table", "arguments": "{\\"party\\": 4}"}'),
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
        ("malformed_call", RIGHT + "{" * 1000),
        ("extra_call", RIGHT + " {see above} " + call("cancel", id="7")),
        ("extra_call", f"[{RIGHT}] {RIGHT}"),
        ("match", RIGHT + ' {see above}, as {"a": 1}'),
        ("match", RIGHT + ' for {"name": "Dana", "party": 4}'),
    ],
)
def test_no_second_call_hides_in_allowed_text(tools_file, reason, completion):
    verifier = ToolCallVerifier(tools_file, sandbox=False, allow_text=True)
    assert verifier.verify(Sample(completion, {"answer": [GOLD]})).reason == reason


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
        ({"answer": {"name": "table", "arguments": {"date": object()}}}, "not JSON"),
        ({"tools": [{"name": object()}]}, "`tools`"),
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
    assert "no `schema_path`" in ToolCallVerifier(sandbox=False).check_row({})
