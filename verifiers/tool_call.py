"""Tool calls, checked against the tools' JSON Schemas and, where a row has one, against its gold answer.

The reward is shaped: a weighted sum of what is right about the completion, so that a policy that gets nothing whole yet
still has a gradient. Only an answer that is right in everything passes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace.verifiers.base import Options, Verifier, not_run, parse_options, printable
from headrace.verifiers.call_forms import CallFault, CallForm, ParsedCalls, ToolCall, as_call, parse_calls
from headrace.verifiers.confinement import require_confinement
from headrace.verifiers.errors import UserError
from headrace.verifiers.limited_process import LimitedProcess, Limits
from headrace.verifiers.records import Sample, Verdict, VerdictKind
from headrace.verifiers.tool_set import CallCheck, ToolSet, canonical, warm_up

MAX_GOLD_CALLS = 8


class RewardWeights(BaseModel):
    """What the shaped reward pays for, relative to each other: it is divided by their sum."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    format: float = Field(default=0.1, ge=0)
    """It parses as a call, with no text around it that is not allowed."""
    schema_: float = Field(default=0.1, ge=0, alias="schema")
    """Share of the calls that fit their tool's schema."""
    tool: float = Field(default=0.2, ge=0)
    """Share of the calls that name the gold tool."""
    arguments: float = Field(default=0.4, ge=0)
    """Share of the arguments that equal gold's; missing and extra ones count against it."""
    exact: float = Field(default=0.2, ge=0)
    """Everything is right."""

    @model_validator(mode="after")
    def pays_for_something(self) -> Self:
        if self.total <= 0:
            raise ValueError("at least one weight must be above 0")
        return self

    @property
    def total(self) -> float:
        return self.format + self.schema_ + self.tool + self.arguments + self.exact


class ToolCallOptions(Options):
    schema_path: str | None = None
    """Tools as JSON, in OpenAI's form or bare; None: every row brings its own."""
    sandbox: bool = True
    """Check in a process of its own, with little memory and time and without network or files."""
    form: CallForm = "any"
    """How calls are written: `hermes` tags, `json` objects, or `any` of the two."""
    allow_text: bool = False
    """Text around the calls is fine."""
    check_formats: bool = True
    """A schema's `format` (date, email, ...) is binding."""
    weights: RewardWeights = RewardWeights()
    """What the reward pays for."""
    gold_field: str = "answer"
    """Row field with the expected calls, a list of {name, arguments} or one of them; a row may have none."""
    alternatives_field: str = "answer_alternatives"
    """Row field with further answers that are as good, a list of such lists."""
    tools_field: str = "tools"
    """Row field with the row's own tools, in place of the file's."""
    timeout_seconds: float = Field(2.0, gt=0, le=3600)
    """Processor time of one check; sandbox only."""
    memory_bytes: int = Field(512 << 20, ge=64 << 20)
    """Memory of one check; sandbox only."""


class ToolCallVerifier(Verifier):
    """The options of `ToolCallOptions` by name; relative paths start at the working directory.

    Raises UserError for a wrong option, for a tools file with something wrong in it (file, tool and reason), and with
    `sandbox` on a host that cannot confine a process. A pickled one carries the tools, so that it is good on a node that
    does not have the file.

    >>> verifier = ToolCallVerifier(sandbox=False)
    >>> tools = [{"name": "hang_up", "parameters": {}}]
    >>> verifier.verify(Sample('{"name": "hang_up", "arguments": {}}', {"tools": tools})).reason
    'valid'
    """

    def __init__(self, schema_path: str | Path | None = None, **options: Any) -> None:
        path = str(schema_path) if isinstance(schema_path, Path) else schema_path
        parsed = parse_options(ToolCallOptions, {"schema_path": path, **options}, "tool_call")
        tools = None if path is None else ToolSet.from_file(Path(path), parsed.check_formats)
        self._set_up(parsed, tools)

    @classmethod
    def from_options(cls, options: dict[str, Any], base_dir: Path) -> Self:
        path = options.get("schema_path")
        return cls(**{**options, "schema_path": str(base_dir / path)} if isinstance(path, str) else options)

    def _set_up(self, options: ToolCallOptions, tools: ToolSet | None) -> None:
        self.options = options
        self._tools = tools
        self._check = ToolCallCheck(options, tools)
        self._process: LimitedProcess | None = None
        if options.sandbox:
            require_confinement()
            limits = Limits(cpu_seconds=options.timeout_seconds, memory_bytes=options.memory_bytes)
            self._process = LimitedProcess(f"{__name__}:load_check", self._state(), limits)

    def verify(self, sample: Sample) -> Verdict:
        return self.verify_many([sample])[0]

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        if self._process is None:
            return [self._check.verify(sample) for sample in samples]
        fields = (self.options.gold_field, self.options.alternatives_field, self.options.tools_field)
        needed = [
            Sample(sample.completion, {field: sample.row[field] for field in fields if field in sample.row})
            for sample in samples
        ]
        return self._process.verify_many(needed)

    def check_row(self, row: dict[str, Any]) -> str | None:
        return self._check.check_row(row)

    def start(self) -> None:
        if self._process is not None:
            self._process.start()

    def close(self) -> None:
        if self._process is not None:
            self._process.close()

    def _state(self) -> dict[str, Any]:
        definitions = None if self._tools is None else self._tools.definitions
        return {"options": self.options.model_dump(mode="json", by_alias=True), "tools": definitions}

    def __getstate__(self) -> dict[str, Any]:
        return self._state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set_up(*_parsed_state(state))


def load_check(state: dict[str, Any]) -> Callable[[Sample], Verdict]:
    """What the limited process runs: the check of a verifier's pickled state, all imports done."""
    options, tools = _parsed_state(state)
    warm_up()
    return ToolCallCheck(options, tools).verify


def _parsed_state(state: dict[str, Any]) -> tuple[ToolCallOptions, ToolSet | None]:
    options = ToolCallOptions.model_validate(state["options"])
    if state["tools"] is None:
        return options, None
    return options, ToolSet.from_definitions(state["tools"], str(options.schema_path), options.check_formats)


class ToolCallCheck:
    """The check itself: a pure function of the sample."""

    def __init__(self, options: ToolCallOptions, tools: ToolSet | None) -> None:
        self._options = options
        self._tools = tools

    def verify(self, sample: Sample) -> Verdict:
        try:
            tools = self._tools_of(sample.row)
            answers = self._answers_of(sample.row)
        except _BadRow as fault:
            return not_run("bad_row", message=str(fault))
        try:
            parsed = parse_calls(sample.completion, self._options.form)
        except CallFault as fault:
            if fault.reason == "no_call" and answers is not None and [] in answers:
                return Verdict(VerdictKind.PASS, 1.0, "match", {"matches_gold": True})
            return Verdict(VerdictKind.FAIL, 0.0, fault.reason, {"message": printable(str(fault))})
        checks = [tools.check(call) for call in parsed.calls]
        return judge(parsed, checks, answers, self._options)

    def check_row(self, row: dict[str, Any]) -> str | None:
        try:
            tools = self._tools_of(row)
            answers = self._answers_of(row)
        except _BadRow as fault:
            return str(fault)
        for answer in answers or []:
            for call in answer:
                try:
                    json.dumps(call.arguments)
                except TypeError as error:  # Parquet has types that JSON has not
                    return f"the arguments of the gold call are not JSON: {error}"
                check = tools.check(call)
                if check.reason:
                    return f"the gold call does not fit its tool ({check.reason}): {check.message}"
        return None

    def _tools_of(self, row: dict[str, Any]) -> ToolSet:
        field = self._options.tools_field
        if row.get(field) is None:
            if self._tools is None:
                raise _BadRow(f"field `{field}` is missing, and the verifier has no `schema_path`")
            return self._tools
        try:
            return _row_tools(canonical(row[field]), field, self._options.check_formats)
        except UserError as error:
            raise _BadRow(f"field {error}") from error
        except TypeError as error:
            raise _BadRow(f"field `{field}` is not JSON: {error}") from error

    def _answers_of(self, row: dict[str, Any]) -> list[list[ToolCall]] | None:
        """Every answer that is right, gold first; None where the row has none."""
        gold, alternatives = row.get(self._options.gold_field), row.get(self._options.alternatives_field)
        if gold is None:
            return None
        answers = [_gold_calls(gold, self._options.gold_field)]
        if alternatives is not None:
            field = self._options.alternatives_field
            if not isinstance(alternatives, list):
                raise _BadRow(f"field `{field}` is {type(alternatives).__name__}, not a list")
            answers += [_gold_calls(alternative, field) for alternative in alternatives]
        return answers


class _BadRow(Exception):
    """The row cannot be checked against; the message says which field and why."""


@lru_cache(maxsize=256)
def _row_tools(definitions: str, field: str, check_formats: bool) -> ToolSet:
    return ToolSet.from_definitions(json.loads(definitions), f"`{field}`", check_formats)


def _gold_calls(value: Any, field: str) -> list[ToolCall]:
    calls = value if isinstance(value, list) else [value]
    if len(calls) > MAX_GOLD_CALLS:
        raise _BadRow(f"field `{field}` has {len(calls)} calls; at most {MAX_GOLD_CALLS} are compared")
    try:
        return [as_call(call) for call in calls]
    except CallFault as fault:
        raise _BadRow(f"field `{field}`: {fault}") from fault


class Shares(msgspec.Struct, frozen=True):
    """How much is right, each in [0, 1]: the terms that the weights multiply."""

    format: float
    schema: float
    tool: float
    arguments: float
    exact: float

    def reward(self, weights: RewardWeights) -> float:
        """In [0, 1], and 1 exactly when every term that is paid for is 1."""
        earned = (
            weights.format * self.format
            + weights.schema_ * self.schema
            + weights.tool * self.tool
            + weights.arguments * self.arguments
            + weights.exact * self.exact
        )
        return min(1.0, earned / weights.total)


class _Pair(msgspec.Struct, frozen=True):
    """A call beside the gold call it is compared with."""

    same_tool: bool
    share: float  # of the arguments in either of the two, how many are equal
    arguments: dict[str, str]

    @property
    def exact(self) -> bool:
        return self.same_tool and self.share == 1.0


def judge(
    parsed: ParsedCalls, checks: list[CallCheck], answers: list[list[ToolCall]] | None, options: ToolCallOptions
) -> Verdict:
    """The verdict on calls that parse. With several right answers, the one that is kindest to the sample counts."""
    clean = options.allow_text or not parsed.extra_text
    valid = [not check.reason for check in checks]
    form_reason, message = _form_fault(parsed, checks, clean)
    if answers is None:
        right = clean and all(valid)
        shares = Shares(float(clean), sum(valid) / len(valid), *((float(right),) * 3))
        pairs: list[_Pair | None] = [None] * len(checks)
        reason = form_reason or "valid"
    else:
        judged = [_against(answer, parsed.calls, valid, clean, options.weights) for answer in answers]
        shares, pairs, gold_reason = max(judged, key=lambda one: (one[0].exact, one[0].reward(options.weights)))
        reason = form_reason or gold_reason
    passed = shares.exact == 1.0
    details: dict[str, Any] = {
        "valid_schema": all(valid),
        "matches_gold": None if answers is None else passed,
        "shares": msgspec.structs.asdict(shares),
        "calls": [
            _call_details(call, check, pair) for call, check, pair in zip(parsed.calls, checks, pairs, strict=True)
        ],
    }
    if message and not passed:
        details["message"] = message
    if passed:
        return Verdict(VerdictKind.PASS, 1.0, reason, details)
    return Verdict(VerdictKind.FAIL, shares.reward(options.weights), reason, details)


def _form_fault(parsed: ParsedCalls, checks: list[CallCheck], clean: bool) -> tuple[str, str]:
    if not clean:
        return "extra_text", f"text around the call: {printable(parsed.extra_text, 80)!r}"
    for check in checks:
        if check.reason:
            return check.reason, check.message
    return "", ""


def _against(
    answer: list[ToolCall], calls: list[ToolCall], valid: list[bool], clean: bool, weights: RewardWeights
) -> tuple[Shares, list[_Pair | None], str]:
    """Shares, each call's partner, and the reason, against one right answer."""
    pairs = _pair_up(answer, calls, weights)
    matched = [pair for pair in pairs if pair is not None]
    most = max(len(answer), len(calls))
    equal = len(answer) == len(calls) and all(pair.exact for pair in matched)
    if len(calls) != len(answer):
        reason = "extra_call" if len(calls) > len(answer) else "missing_call"
    elif not all(pair.same_tool for pair in matched):
        reason = "wrong_tool"
    else:
        reason = "match" if equal else "wrong_argument"
    shares = Shares(
        format=float(clean),
        schema=sum(valid) / most,
        tool=sum(pair.same_tool for pair in matched) / most,
        arguments=sum(pair.share for pair in matched) / most,
        exact=float(equal and clean and all(valid)),
    )
    return shares, pairs, reason


def _pair_up(answer: list[ToolCall], calls: list[ToolCall], weights: RewardWeights) -> list[_Pair | None]:
    """The pairing of calls with gold calls, in any order, that is right in most: parallel calls have no order.

    Exact, by dynamic programming over the set of gold calls that are taken, [calls x 2^gold]; both are few.
    """
    table = [[_compare(call, gold) for gold in answer] for call in calls]
    # What is not paid for still counts a little, so that an exact pairing is found under all weights.
    tool, arguments = max(weights.tool, 1e-9), max(weights.arguments, 1e-9)
    best: dict[int, tuple[float, tuple[int | None, ...]]] = {0: (0.0, ())}
    for row in table:
        following: dict[int, tuple[float, tuple[int | None, ...]]] = {}
        for taken, (value, partners) in best.items():
            for index in (None, *range(len(answer))):
                if index is None:
                    step = (taken, value, (*partners, None))
                elif taken & (1 << index):
                    continue
                else:
                    gain = tool * row[index].same_tool + arguments * row[index].share
                    step = (taken | 1 << index, value + gain, (*partners, index))
                if step[0] not in following or step[1] > following[step[0]][0]:
                    following[step[0]] = step[1:]
        best = following
    # The fullest pairing among the best: a gold call that nothing resembles still has its wrong partner.
    _, partners = max(best.items(), key=lambda item: (item[1][0], item[0].bit_count()))[1]
    return [None if index is None else table[place][index] for place, index in enumerate(partners)]


def _compare(call: ToolCall, gold: ToolCall) -> _Pair:
    if call.name != gold.name:
        return _Pair(False, 0.0, {})
    outcomes = {name: "missing" for name in gold.arguments if name not in call.arguments}
    for name, value in call.arguments.items():
        if name not in gold.arguments:
            outcomes[name] = "extra"
        else:
            outcomes[name] = "match" if json_equal(value, gold.arguments[name]) else "wrong"
    right = sum(outcome == "match" for outcome in outcomes.values())
    return _Pair(True, right / len(outcomes) if outcomes else 1.0, outcomes)


def json_equal(left: Any, right: Any) -> bool:
    """Equal as JSON values: 7 and 7.0 are, true and 1 are not.

    >>> json_equal(7, 7.0), json_equal(True, 1), json_equal([1], [True])
    (True, False, False)
    """
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(json_equal(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(json_equal, left, right))
    return left == right


def _call_details(call: ToolCall, check: CallCheck, pair: _Pair | None) -> dict[str, Any]:
    """A call's outcome, argument by argument: what the schema says first, then what gold says."""
    outcomes = dict.fromkeys(call.arguments, "valid")
    if pair is not None:
        outcomes.update(pair.arguments)
    outcomes.update(check.arguments)
    shown = {printable(name, 80): outcome for name, outcome in list(outcomes.items())[:32]}
    return {"name": printable(call.name, 80), "schema": check.reason or "valid", "arguments": shown}
