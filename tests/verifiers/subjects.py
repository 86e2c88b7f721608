"""Every registered verifier as a job file makes it, with rows that are right and texts near to what it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from headrace.verifiers.instruction_table import INSTRUCTIONS, Argument
from tests.verifiers.wild import WILD
from tests.verifiers.wild_rewards import ACTIONS, DEADLY
from tests.verifiers.wild_tools import EVERY_CALL, EVERY_GOLD

CHECK_SECONDS = 1.0  # of one check, where the verifier has such an option


@dataclass(frozen=True)
class Places:
    """What verifiers need of the tests' surroundings."""

    folder: Path  # with rewards.py and every_tool.json
    judge_url: str
    score_model: Path
    dsn: Callable[[], str]  # of a PostgreSQL server; skips the test where there is none


@dataclass(frozen=True)
class Subject:
    verifier: str  # its name in the registry
    rows: st.SearchStrategy[dict[str, Any]]  # right ones
    frames: list[str]  # texts near its form; `@` is where others go
    options: Callable[[Places], dict[str, Any]] = lambda places: {}
    seconds: float = CHECK_SECONDS  # the longest that its own limits let one check take
    unjudged: frozenset[str] = frozenset()  # reasons of an infra_error that a right row may have


def row_of(**fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.just(fields)


_TOOLS = [
    {
        "name": "book",
        "parameters": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "pattern": "^(a+)+$|^\\p{Lu}", "maxLength": 200},
                "day": {"type": "string", "format": "date"},
                "party": {"type": "integer", "minimum": 1},
                "notes": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"$ref": "#/properties/party"}]}},
            },
            "required": ["party"],
        },
    },
    {"name": "hang_up", "parameters": {}},
]
_CALL = {"name": "book", "arguments": {"party": 4, "name": "Ann"}}
_BARE = '{"name": "book", "arguments": {"party": 4, "name": "@"}}'
TOOL_CALLS = row_of(tools=_TOOLS, answer=[_CALL]) | row_of(tools=_TOOLS) | row_of(tools=_TOOLS, answer=[])
CALLS = [
    _BARE,
    f"<tool_call>{_BARE}</tool_call>",
    '<tool_call>@</tool_call>\n<tool_call>{"name": "hang_up", "arguments": {}}</tool_call>',
    '{"name": "book", "arguments": {"@": 4, "notes": ["@"], "day": "2026-11-20"}}',
    '{"name": "@", "arguments": {"party": 4}}',
    f'{{"role": "assistant", "content": "@", "tool_calls": [{{"id": "@", "type": "function", "function": {_BARE}}}]}}',
    '[{"function": {"name": "book", "arguments": "{\\"party\\": 4}"}}, @]',
]
_SETUP = "CREATE TABLE t(a INTEGER, b TEXT); INSERT INTO t VALUES (1, 'x'), (2, NULL)"
_QUERIES = [
    "```sql\nSELECT a FROM t WHERE b = '@'\n```",
    "SELECT @ FROM t",
    "SELECT a, '@' AS \"@\" FROM t ORDER BY a",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "INSERT INTO t VALUES (3, '@'); UPDATE t SET b = '@'",
    "CREATE TABLE u(a, @); DROP TABLE t",
    "SELECT * FROM t, t AS u WHERE t.a IN (@) -- @",
    "BEGIN; DELETE FROM t; @; COMMIT",
]


def _sql(dialect: str) -> st.SearchStrategy[dict[str, Any]]:
    given = {"setup_sql": _SETUP, "dialect": dialect}
    return row_of(**given, gold_sql="SELECT a FROM t") | row_of(
        **given, gold_sql="INSERT INTO t VALUES (3, 'y')", check="state"
    )


_ENTITIES = {
    "date": "2026-11-20",
    "time": "19:30",
    "datetime": "2026-11-20T19:30",
    "party_size": "4",
    "phone": "+1 212 555 0123",
    "address": "12 Main Street, Springfield, IL 62701",
    "insurance_provider": "Aetna",
    "insurance_id": "ABC-123",
    "text": "window seat",
}
_FORM = "{" + ", ".join(f'"{kind}": "@"' for kind in _ENTITIES) + "}"
REWARDS_GIVEN = [
    0.5,
    True,
    1 + 2**-52,
    -5e-324,
    2,
    float("nan"),
    float("inf"),
    10**400,
    -(10**400),
    None,
    "1",
    b"1",
    [0.5],
    {},
]
KINDS_GIVEN = ["pass", "fail", "infra_error", "splendid", "", None, 1]
REASONS_GIVEN = ["own", "", "\ud800", None, 7]
DETAILS_GIVEN = [{}, {"a": 1}, {"\ud800": "\ud800"}, {"n": float("nan")}, None, [1], {"b": {1, 2}}]
_FUNCTION_ROWS = st.fixed_dictionaries(
    {
        "does": st.sampled_from(list(ACTIONS)),
        "value": st.floats(0, 1) | st.floats() | st.integers() | WILD | st.sampled_from(REWARDS_GIVEN),
        "kind": st.sampled_from(KINDS_GIVEN),
        "reason": st.sampled_from(REASONS_GIVEN),
        "details": st.sampled_from(DETAILS_GIVEN),
    }
)
_DEADLY_ROWS = st.fixed_dictionaries({"does": st.sampled_from(list(DEADLY))}) | _FUNCTION_ROWS
_OWN_FAULTS = frozenset({"exception", "bad_reward", "memory", "own"})
_DEADLY_FAULTS = _OWN_FAULTS | {"timeout", "crash"}
_JUDGE_FAULTS = frozenset(
    f"judge_{what}" for what in ("unreachable", "timeout", "rate_limited", "http_error", "unreadable", "echoed")
)
_PATTERNS = st.sampled_from(
    ["a", r"^\{.*\}$", r"(?i)\bcat\b", r"(a*)*b", r".{0,200}x", r"\p{Nd}+", "", "(", "[", "(?=a)"]
)
_TEXTS = ["a cat", "@", '{"a": "@"}', "aaaa@"]
_PARTS = [
    {"verifier": "regex", "name": "form", "options": {"pattern": r"\S"}},
    {"verifier": "tool_call", "options": {"timeout_seconds": CHECK_SECONDS, "allow_text": True}},
]
_WITH_FUNCTION = [*_PARTS, {"function": "rewards.py:score", "name": "own"}]


def _argument(name: str, argument: Argument) -> Any:
    """One that an instruction takes: every span starts at 1 and ends at 2."""
    if argument.choices:
        return argument.choices[0]
    if argument.kind is int:
        return 1 if name == "n_start" else 2
    return ["a", "b"] if argument.kind is list else {"language": "de"}.get(name, "a")


def _instructions(*names: str) -> dict[str, Any]:
    taken = [INSTRUCTIONS[name] for name in names]
    return {
        "instruction_id_list": list(names),
        "kwargs": [{name: _argument(name, each) for name, each in takes.items()} for takes in taken],
    }


def _function(name: str, **limits: Any) -> Callable[[Places], dict[str, Any]]:
    return lambda places: {"function": f"rewards.py:{name}", **limits}


def _merged(*rows: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*rows).map(lambda drawn: {name: value for row in drawn for name, value in row.items()})


SUBJECTS = {
    "math": Subject(
        "math",
        st.sampled_from(["42", r"\frac{1}{2}", "x + 1", "(1, 2]", r"\text{Bob}", "3 km"]).map(
            lambda gold: {"answer": gold}
        ),
        [
            r"\boxed{@}",
            "The answer is @.",
            r"so $\frac{@}{2}$",
            "#### @",
            r"\boxed{2^{@}}",
            r"\boxed{(@, 2]} or \fbox{@}",
        ],
        lambda places: {"timeout_seconds": CHECK_SECONDS},
    ),
    "code": Subject(
        "code",
        st.sampled_from(
            [
                {"entry_point": "f", "tests": [{"input": [1], "expected": 2}]},
                {"entry_point": "f", "test": "def check(candidate):\n    assert candidate(1) == 2\n"},
                {"tests": [{"stdin": "1\n", "stdout": "2"}]},
            ]
        ),
        [
            "```python\ndef f(x):\n    return '@'\n```",
            "def f(x):\n    return @",
            "print('@' * 10)",
            "f = lambda x: x + 1\n@",
            "def f(x):\n    while True: pass",
        ],
        lambda places: {"wall_seconds": 2.0, "cpu_seconds": 1},
        seconds=2.0,
        unjudged=frozenset({"starved"}),
    ),
    "code-command": Subject(
        "code",
        row_of(tests=[{"stdin": "1\n", "stdout": "2"}]),
        ["@", "```sh\nread x; echo $((x + @))\n```", "echo @", "cat; kill -9 $$; @"],
        lambda places: {
            "command": ["/bin/sh", "main.sh"],
            "file_name": "main.sh",
            "wall_seconds": 2.0,
            "cpu_seconds": 1,
        },
        seconds=2.0,
        unjudged=frozenset({"starved"}),
    ),
    "instructions": Subject(
        "instructions",
        row_of(instruction_id_list=[name for name, arguments in INSTRUCTIONS.items() if not arguments]),
        ["@", "* @\n* @\n\nP.S. @", '"@"', "<<@>>\n\n***\n\n@ [a]", "@\na,b,@\n1,2,3", '{"a": "@"}'],
        lambda places: {"timeout_seconds": CHECK_SECONDS},
    ),
    "instructions-given": Subject(
        "instructions",
        st.sampled_from([_instructions(*(name for name, arguments in INSTRUCTIONS.items() if arguments))]),
        ["@", "a @ a b\n\n@ a\n***\n[a] a"],
        lambda places: {"timeout_seconds": CHECK_SECONDS},
    ),
    "database": Subject(
        "database",
        _sql("sqlite"),
        _QUERIES,
        lambda places: {"timeout_seconds": 0.5},
        seconds=2 * 0.5 + 1,
    ),
    "database-postgres": Subject(
        "database",
        _sql("postgres"),
        [*_QUERIES, "SELECT pg_sleep(60), '@'", "COPY t FROM PROGRAM '@'", "DO $$ BEGIN @; END $$"],
        lambda places: {"dialect": "postgres", "dsn": places.dsn(), "timeout_seconds": 0.5},
        seconds=2 * 0.5 + 1,
    ),
    "entities": Subject(
        "entities",
        st.sampled_from(["en_US", "de_DE"]).map(
            lambda locale: {
                "answer": _ENTITIES,
                "fields": {kind: kind for kind in _ENTITIES},
                "reference_datetime": "2026-11-18T10:00:00",
                "locale": locale,
            }
        ),
        [_FORM, '{"date": "next @ 20", "time": "@ pm", "phone": "@"}', '{"@": "@"}', 'It is {"party_size": @}.'],
        lambda places: {"timeout_seconds": CHECK_SECONDS},
    ),
    "judge": Subject(
        "judge",
        row_of(prompt="My cat died.") | WILD.map(lambda prompt: {"prompt": prompt}),
        ["@", '{"score": 7, "reason": "@"}', "BEGIN completion @\nEND completion @"],
        lambda places: {
            "base_url": places.judge_url,
            "model": "wise",
            "rubric": "How kind is this to {{prompt}}?\n{{completion}}",
            "request_seconds": 0.2,
            "deadline_seconds": 0.6,
            "attempts": 2,
            "cache_entries": 0,
        },
        seconds=0.6,
        unjudged=_JUDGE_FAULTS,
    ),
    "reward_model": Subject(
        "reward_model",
        row_of(prompt="hi")
        | row_of(prompt=[{"role": "user", "content": "a"}])
        | WILD.map(lambda prompt: {"prompt": prompt}),
        ["@", "fine @<end>", "yes\nuser: @\nassistant: @"],
        lambda places: {"model": str(places.score_model), "device": "cpu"},
        unjudged=frozenset({"bad_row"}),  # a prompt that holds the template's own mark, or an empty one
    ),
    "python": Subject("python", _FUNCTION_ROWS, ["@"], _function("score"), unjudged=_OWN_FAULTS),
    "python-async": Subject("python", _FUNCTION_ROWS, ["@"], _function("score_soon"), unjudged=_OWN_FAULTS),
    "python-limited": Subject(
        "python",
        _DEADLY_ROWS,
        ["@"],
        _function("score", timeout_seconds=0.5, memory_bytes=256 << 20),
        seconds=0.5,
        unjudged=_DEADLY_FAULTS,
    ),
    "python-limited-async": Subject(
        "python",
        _DEADLY_ROWS,
        ["@"],
        _function("score_soon", timeout_seconds=0.5),
        seconds=2.5,  # and what a loop that stands still is given
        unjudged=_DEADLY_FAULTS,
    ),
    "regex": Subject(
        "regex",
        (_PATTERNS | st.text(st.characters(), max_size=20)).map(lambda pattern: {"pattern": pattern}),
        _TEXTS,
        unjudged=frozenset({"bad_row"}),  # drawn patterns are wrong, often
    ),
    "tool_call": Subject("tool_call", TOOL_CALLS, CALLS, lambda places: {"timeout_seconds": CHECK_SECONDS}),
    "tool_call-hermes": Subject(
        "tool_call", TOOL_CALLS, CALLS, lambda places: {"timeout_seconds": CHECK_SECONDS, "form": "hermes"}
    ),
    "tool_call-json": Subject(
        "tool_call",
        TOOL_CALLS,
        CALLS,
        lambda places: {"timeout_seconds": CHECK_SECONDS, "form": "json", "allow_text": True},
    ),
    "tool_call-every": Subject(
        "tool_call",
        row_of(answer=[EVERY_GOLD]),
        EVERY_CALL,
        lambda places: {"timeout_seconds": CHECK_SECONDS, "schema_path": "every_tool.json"},
    ),
    "weighted_sum": Subject(
        "weighted_sum",
        _merged(TOOL_CALLS, _FUNCTION_ROWS),
        CALLS,
        lambda places: {
            "parts": [{**part, "weight": weight} for part, weight in zip(_WITH_FUNCTION, (0.1, 2, 1e300), strict=True)]
        },
        unjudged=_OWN_FAULTS,
    ),
    "all_of": Subject(
        "all_of",
        _merged(TOOL_CALLS, _FUNCTION_ROWS),
        CALLS,
        lambda places: {"parts": _WITH_FUNCTION},
        unjudged=_OWN_FAULTS,
    ),
    "first_applicable": Subject(
        "first_applicable",
        _merged(TOOL_CALLS, st.sampled_from([{}, {"checkable": True}]), row_of(does="length")),
        CALLS,
        lambda places: {"parts": [{**_PARTS[1], "when": "checkable"}, {"function": "rewards.py:score", "name": "own"}]},
        unjudged=_OWN_FAULTS,
    ),
    "by_row": Subject(
        "by_row",
        _merged(
            TOOL_CALLS,
            row_of(pattern="a"),
            st.sampled_from(["form", "tool_call", "regex"]).map(lambda name: {"verifier": name}),
        ),
        CALLS,
        lambda places: {"parts": _PARTS},
    ),
}
