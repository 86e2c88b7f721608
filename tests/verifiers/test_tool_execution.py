"""Tool calls that are run: whether they run, and whether they come to what the gold calls come to."""

import json
import pickle
from pathlib import Path

import pytest

from headrace.verifiers import Sample, ToolCallVerifier, VerdictKind
from headrace.verifiers.errors import UserError

CODE = """
BOOKINGS = {}

def set_up(state):
    BOOKINGS.update(state)

def state():
    return BOOKINGS

def book_table(name, party=2):
    if party > 12:
        raise ValueError(f"no table for {party}")
    BOOKINGS[name] = party

def find(name):
    return [each for each in BOOKINGS if each.startswith(name)]

def cancel(name=None, number=None):
    names = list(BOOKINGS)
    del BOOKINGS[names[number - 1] if name is None else name]

def calendar_add(expression):
    BOOKINGS[expression] = eval(expression)
    return BOOKINGS[expression]
"""
TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
TOOLS = [
    {"name": "book_table", "parameters": {"properties": {"name": TEXT, "party": NUMBER}, "required": ["name"]}},
    {"name": "find", "parameters": {"properties": {"name": TEXT}, "required": ["name"]}},
    {"name": "cancel", "parameters": {"properties": {"name": TEXT, "number": NUMBER}}},
    {"name": "calendar.add", "parameters": {"properties": {"expression": TEXT}, "required": ["expression"]}},
]


def call(tool: str, **arguments):
    return {"name": tool, "arguments": arguments}


BOOK = call("book_table", name="Dana", party=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("execution")
    (path / "tools.json").write_text(json.dumps(TOOLS))
    (path / "tools.py").write_text(CODE)
    return path


@pytest.fixture(scope="module")
def verifiers(folder):
    made = {same: made_in(folder, same=same, wall_seconds=2.0) for same in (None, "state", "results")}
    yield made
    for verifier in made.values():
        verifier.close()


def made_in(folder: Path, **execution) -> ToolCallVerifier:
    options = {"schema_path": "tools.json", "code_path": "tools.py", "execution": execution}
    return ToolCallVerifier.from_options(options, folder)


def judge(verifier: ToolCallVerifier, *calls, gold=None, **row):
    answer = {} if gold is None else {"answer": gold}
    return verifier.verify(Sample(json.dumps(list(calls)), {**answer, **row}))


def test_without_gold_calls_have_to_run(verifiers):
    verdict = judge(verifiers[None], BOOK)
    assert (verdict.kind, verdict.reward, verdict.reason) == (VerdictKind.PASS, 1.0, "executed")


def test_a_call_that_raises_earns_what_its_form_is_worth(verifiers):
    verdict = judge(verifiers[None], BOOK, call("book_table", name="Ed", party=13))
    assert (verdict.kind, verdict.reason) == (VerdictKind.FAIL, "tool_failed")
    assert verdict.details["message"] == "ValueError: no table for 13"
    assert verdict.reward == pytest.approx(0.2)
    assert verdict.details["shares"] == {"format": 1.0, "schema": 1.0, "tool": 0.0, "arguments": 0.0, "exact": 0.0}


def test_what_the_state_is_called_by_does_not_matter(verifiers):
    gold, state = [call("cancel", name="Ed")], {"Dana": 4, "Ed": 2}
    verdict = judge(verifiers["state"], call("cancel", number=2), gold=gold, state=state)
    assert (verdict.kind, verdict.reward, verdict.reason) == (VerdictKind.PASS, 1.0, "same_outcome")
    assert verdict.details["matches_gold"] is False
    other = judge(verifiers["state"], call("cancel", number=1), gold=gold, state=state)
    assert (other.kind, other.reason) == (VerdictKind.FAIL, "wrong_argument")
    assert 0 < other.reward < 1


def test_a_look_before_the_deed_leaves_the_state_as_it_should_be(verifiers):
    verdict = judge(verifiers["state"], call("find", name="D"), BOOK, gold=[BOOK])
    assert verdict.reason == "same_outcome"
    assert judge(verifiers["state"], call("find", name="D"), gold=[BOOK]).reason == "wrong_tool"


def test_a_default_that_is_written_out_is_the_same(verifiers):
    verdict = judge(verifiers["state"], call("book_table", name="Ed", party=2), gold=[call("book_table", name="Ed")])
    assert verdict.reason == "same_outcome"


def test_results_are_compared_in_any_order(verifiers):
    state = {"Dana": 4, "Ed": 2}
    gold = [call("find", name="Dana"), call("find", name="Ed")]
    same = judge(verifiers["results"], call("find", name="E"), call("find", name="D"), gold=gold, state=state)
    assert same.reason == "same_outcome"
    twice = judge(verifiers["results"], call("find", name="E"), call("find", name="Ed"), gold=gold, state=state)
    assert twice.reason == "wrong_argument"
    less = judge(verifiers["results"], call("find", name="E"), gold=gold, state=state)
    assert less.reason == "missing_call"


def test_only_gold_is_right_where_nothing_says_what_counts_as_the_same(verifiers):
    verdict = judge(verifiers[None], call("book_table", name="Ed", party=2), gold=[call("book_table", name="Ed")])
    assert (verdict.kind, verdict.reason) == (VerdictKind.FAIL, "wrong_argument")


def test_where_nothing_is_to_be_called_nothing_that_is_called_is_right(verifiers):
    assert judge(verifiers["state"], call("find", name="D"), gold=[]).reason == "extra_call"


def test_calls_that_do_not_fit_their_tools_are_not_run(verifiers):
    verdict = judge(verifiers["state"], call("book_table", name="Dana", party="4"), gold=[BOOK])
    assert (verdict.reason, "executed" in verdict.details) == ("wrong_type", False)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("open('/etc/passwd').read()", "tool_failed"),
        ("__import__('socket').socket()", "forbidden_call"),
        ("__import__('os')._exit(0)", "early_exit"),
        ("exit()", "early_exit"),
        ("[0] * 10**10", "memory"),
        ("9**9**9", "timeout"),
        ("print('x' * 10**7)", "output_flood"),
        ("object()", "not_plain"),
        ("type('Any', (int,), {'__eq__': lambda *_: True})(1)", "not_plain"),
        ("__import__('gc').get_objects() and None", "wrong_argument"),
        ("str([each for each in __import__('gc').get_objects() if 'Dana' in str(each)[:100]])", "wrong_argument"),
    ],
)
def test_what_an_argument_can_do_to_a_careless_tool_gains_nothing(verifiers, expression, reason):
    gold = [call("calendar.add", expression="'Dana'")]
    verdict = judge(verifiers["results"], call("calendar.add", expression=expression), gold=gold)
    assert verdict.kind is VerdictKind.FAIL
    assert verdict.reason == reason, verdict.details
    after = judge(verifiers["results"], call("calendar.add", expression="'Da' + 'na'"), gold=gold)
    assert after.reason == "same_outcome"


def test_a_gold_call_that_does_not_run_is_the_rows_fault(verifiers):
    verdict = judge(verifiers["state"], BOOK, gold=[call("cancel", name="nobody")])
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "bad_row")
    assert "KeyError" in verdict.details["message"]


def test_a_pickled_one_has_no_need_of_the_file(folder, tmp_path):
    (tmp_path / "tools.py").write_text(CODE)
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    payload = pickle.dumps(made_in(tmp_path, same="state"))
    (tmp_path / "tools.py").unlink()
    verifier = pickle.loads(payload)
    try:
        verifier.start()
        assert judge(verifier, call("find", name="D"), BOOK, gold=[BOOK]).reason == "same_outcome"
    finally:
        verifier.close()


@pytest.mark.parametrize(
    ("code", "execution", "told"),
    [
        ("def book_table(", {}, "tools.py is not Python"),
        ("def find(name): ...", {}, "no function `book_table` for the tool book_table"),
        (CODE.replace("def state", "def status"), {"same": "state"}, "no function `state`"),
        (None, {}, "cannot be read: No such file"),
        (CODE, {"sam": "state"}, "did you mean `same`"),
    ],
)
def test_a_file_that_cannot_serve_is_refused_when_it_is_loaded(tmp_path, code, execution, told):
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    if code is not None:
        (tmp_path / "tools.py").write_text(code)
    with pytest.raises(UserError, match=told):
        made_in(tmp_path, **execution)


def test_a_file_that_fails_when_it_is_run_is_refused_when_the_pool_starts(tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    (tmp_path / "tools.py").write_text("import nothing_of_that_name\n" + CODE)
    verifier = made_in(tmp_path)
    try:
        with pytest.raises(UserError, match=r"tools.py fails when it is run: exception ModuleNotFoundError"):
            verifier.start()
        assert judge(verifier, BOOK).reason == "bad_tools"
    finally:
        verifier.close()


def test_how_to_run_what_is_not_there_is_refused(folder):
    with pytest.raises(UserError, match="`execution` says how `code_path` is run, and there is none"):
        ToolCallVerifier(schema_path=folder / "tools.json", execution={"same": "state"})


def test_a_row_whose_state_nobody_takes_is_refused(folder, tmp_path, verifiers):
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    (tmp_path / "tools.py").write_text(CODE.replace("def set_up", "def begin"))
    fault = made_in(tmp_path).check_row({"state": {"Dana": 4}})
    assert fault is not None
    assert "no function `set_up`" in fault
    assert verifiers["state"].check_row({"state": {"Dana": 4}}) is None
    own = verifiers["state"].check_row({"tools": [{"name": "sing"}]})
    assert own is not None
    assert "no function `sing`" in own
