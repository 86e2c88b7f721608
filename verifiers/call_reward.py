"""The verdict on calls that parse: what is right about them, beside their schemas and a gold answer, and what that is worth.

The reward is shaped: a weighted sum of what is right about the completion, so that a policy that gets nothing whole yet
still has a gradient. Only an answer that is right in everything passes.
"""

from __future__ import annotations

from typing import Any, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace.verifiers.base import printable
from headrace.verifiers.call_forms import ParsedCalls, ToolCall
from headrace.verifiers.records import Verdict, VerdictKind
from headrace.verifiers.tool_set import CallCheck


class RewardWeights(BaseModel):
    """What the shaped reward pays for, relative to each other: it is divided by their sum."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    format: float = Field(default=0.1, ge=0)
    """It parses as a call, with no text around it that is not allowed."""
    schema_: float = Field(default=0.1, ge=0, alias="schema")
    """Share of the arguments that fit their tool's schema; missing and extra ones count against it. Beside a gold answer
    only those of calls that name the gold tool: to call whatever is easily valid is worth nothing."""
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


class GoldCall(msgspec.Struct, frozen=True):
    """A call as it should be. For each argument the values of which any is right; those in `optional` may be absent."""

    name: str
    arguments: dict[str, list[Any]]
    optional: frozenset[str] = frozenset()
    choices: bool = False  # objects inside the values hold lists of values as well

    def allows(self, argument: str, value: Any) -> bool:
        allowed = self.arguments.get(argument, [])
        return any(_fits(value, each) if self.choices else json_equal(value, each) for each in allowed)

    def example(self) -> ToolCall:
        """One of the calls that are right."""
        if not self.choices:
            return ToolCall(self.name, {name: values[0] for name, values in self.arguments.items()})
        picked = {name: _picked(values) for name, values in self.arguments.items()}
        return ToolCall(self.name, {name: value for name, value in picked.items() if value is not _ABSENT})


_ABSENT: Any = object()


def _fits(value: Any, allowed: Any) -> bool:
    """Whether `value` is one that `allowed` stands for, in which an object's values are lists of what may be there."""
    if not _holds_choices(allowed):
        if isinstance(allowed, list) and isinstance(value, list):
            return len(value) == len(allowed) and all(map(_fits, value, allowed))
        return json_equal(value, allowed)
    if not isinstance(value, dict) or value.keys() - allowed.keys():
        return False
    return all(
        any(_fits(value[key], each) for each in choices) if key in value else "" in choices
        for key, choices in allowed.items()
    )


def _holds_choices(allowed: Any) -> bool:
    return isinstance(allowed, dict) and bool(allowed) and all(isinstance(each, list) for each in allowed.values())


def _picked(values: list[Any]) -> Any:
    """The first value that is one, as it would be written."""
    value = next((value for value in values if value != ""), _ABSENT)
    if _holds_choices(value):
        picked = {key: _picked(choices) for key, choices in value.items()}
        return {key: each for key, each in picked.items() if each is not _ABSENT}
    return [each if each == "" else _picked([each]) for each in value] if isinstance(value, list) else value


class _Pair(msgspec.Struct, frozen=True):
    """A call beside the gold call it is compared with."""

    same_tool: bool
    share: float  # of the arguments in either of the two, how many are equal
    arguments: dict[str, str]

    @property
    def exact(self) -> bool:
        return self.same_tool and self.share == 1.0


def judge(
    parsed: ParsedCalls,
    checks: list[CallCheck],
    answers: list[list[GoldCall]] | None,
    weights: RewardWeights,
    allow_text: bool,
) -> Verdict:
    """The verdict on calls that parse. With several right answers, the one that is kindest to the sample counts."""
    clean = allow_text or not parsed.extra_text
    valid = [not check.reason for check in checks]
    form_reason, message = _form_fault(parsed, checks, clean)
    if answers is None:
        right = clean and all(valid)
        fitting = sum(check.fitting for check in checks) / len(checks)
        shares = Shares(float(clean), fitting, *((float(right),) * 3))
        pairs: list[_Pair | None] = [None] * len(checks)
        reason = form_reason or "valid"
    else:
        judged = [_against(answer, parsed.calls, checks, clean, weights) for answer in answers]
        shares, pairs, gold_reason = max(judged, key=lambda one: (one[0].exact, one[0].reward(weights)))
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
    return Verdict(VerdictKind.FAIL, shares.reward(weights), reason, details)


def _form_fault(parsed: ParsedCalls, checks: list[CallCheck], clean: bool) -> tuple[str, str]:
    if not clean:
        return "extra_text", f"text around the call: {printable(parsed.extra_text, 80)!r}"
    for check in checks:
        if check.reason:
            return check.reason, check.message
    return "", ""


def _against(
    answer: list[GoldCall], calls: list[ToolCall], checks: list[CallCheck], clean: bool, weights: RewardWeights
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
    valid = all(not check.reason for check in checks)
    fitting = [check.fitting for check, pair in zip(checks, pairs, strict=True) if pair is not None and pair.same_tool]
    shares = Shares(
        format=float(clean),
        schema=sum(fitting) / most,
        tool=sum(pair.same_tool for pair in matched) / most,
        arguments=sum(pair.share for pair in matched) / most,
        exact=float(equal and clean and valid),
    )
    return shares, pairs, reason


def _pair_up(answer: list[GoldCall], calls: list[ToolCall], weights: RewardWeights) -> list[_Pair | None]:
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


def _compare(call: ToolCall, gold: GoldCall) -> _Pair:
    if call.name != gold.name:
        return _Pair(False, 0.0, {})
    absent = gold.arguments.keys() - call.arguments.keys() - gold.optional
    outcomes = {name: "missing" for name in gold.arguments if name in absent}
    for name, value in call.arguments.items():
        if name not in gold.arguments:
            outcomes[name] = "extra"
        else:
            outcomes[name] = "match" if gold.allows(name, value) else "wrong"
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
    details = {"name": printable(call.name, 80), "schema": check.reason or "valid", "arguments": shown}
    return {**details, "raised": check.raised} if check.raised else details
