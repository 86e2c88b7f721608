"""Running the tools that a completion calls: whether they run, and whether they come to what the gold calls come to.

The tools are the user's own functions. What a model gives them is data, which may yet be anything: so they run in the
sandbox, each answer in a fresh process, and the gold calls in another: what is expected is never where an argument could
reach.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from headrace.verifiers.base import not_run, printable
from headrace.verifiers.call_forms import ToolCall
from headrace.verifiers.call_reward import RewardWeights, Shares, json_equal
from headrace.verifiers.errors import UserError
from headrace.verifiers.records import Verdict, VerdictKind
from headrace.verifiers.sandbox.box import BoxFailed
from headrace.verifiers.sandbox.plain import NotPlain, pack
from headrace.verifiers.sandbox.plan import BoxPlan, Limits
from headrace.verifiers.sandbox.programs import Answer, CallsResult, call_function
from headrace.verifiers.sandbox.run import STARVED
from headrace.verifiers.sandbox.sandbox import Sandbox

SET_UP, STATE = "set_up", "state"
DIFFERING = frozenset({"wrong_argument", "wrong_tool", "extra_call", "missing_call"})
"""Reasons of calls that fit their tools and are not the gold ones."""
_ATTEMPTS = 2  # of a run whose box failed
_ENTRY = "headrace_call"
_DRIVER = f"""

def {_ENTRY}(name, positional, named, keep):
    from copy import deepcopy  # what is done to them in place would be carried back
    value = globals()[name](*deepcopy(positional), **deepcopy(named)) if name else None
    return value if keep else None
"""


class ExecutionOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    same: Literal["state", "results"] | None = None
    """Calls that are not the gold ones are right all the same when afterwards `state()` is what it is after those, or when
    they return the same, in any order. None: only the gold calls are right."""
    state_field: str = "state"
    """Row field with what `set_up` is given; a row may have none."""
    wall_seconds: float = Field(default=5.0, gt=0)
    """Of one answer's calls together."""
    cpu_seconds: int = Field(default=2, ge=1)
    memory_bytes: int = Field(default=512 << 20, ge=64 << 20)
    allow_degraded: bool = False
    """Run also where a layer of the sandbox that is needed is missing."""


class Outcome(msgspec.Struct, frozen=True):
    """What calls came to: `kept` is what is compared. Or in `reason` why they came to nothing."""

    kept: Any = None
    reason: str = ""
    message: str = ""


class ToolFileFailed(Exception):
    """The tools could not be brought to where they can be called, whatever is called."""


class ToolFile:
    """The source of a file of tools, and the names that it binds at its top level."""

    def __init__(self, source: str, path: str) -> None:
        self.source = source
        self.path = path
        try:
            self._names = frozenset(_bound(ast.parse(source)))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UserError(f"tools' code {path} is not Python: {printable(str(error))}") from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises UserError with the file and what is wrong with it."""
        try:
            return cls(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            told = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"tools' code {path} cannot be read: {told}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def fault(self, tools: Iterable[str]) -> str | None:
        """What keeps it from serving tools of these names."""
        functions: dict[str, str] = {}
        for tool in tools:
            function = function_of(tool)
            if function not in self or function in (SET_UP, STATE):
                return f"{self.path} has no function `{printable(function, 80)}` for the tool {printable(tool, 80)}"
            if function in functions:
                both = f"{printable(functions[function], 80)} and {printable(tool, 80)}"
                return f"the tools {both} have the same function `{printable(function, 80)}`"
            functions[function] = tool
        return None


class ToolExecution:
    """Runs calls of the tools in `file`. Thread-safe; nothing is started before `start` or the first run.

    Raises UserError where `same` asks for a `state()` that the file does not have.
    """

    def __init__(self, options: ExecutionOptions, file: ToolFile) -> None:
        if options.same == STATE and STATE not in file:
            raise UserError(f'{file.path} has no function `{STATE}`, which `same = "{STATE}"` compares')
        self.options = options
        self.file = file
        limits = Limits(
            wall_seconds=options.wall_seconds, cpu_seconds=options.cpu_seconds, memory_bytes=options.memory_bytes
        )
        self._sandbox = Sandbox(BoxPlan(limits), allow_degraded=options.allow_degraded)

    def start(self) -> None:
        """Raises UserError where this host lacks a layer, and for a file that fails when it is run."""
        self._sandbox.start()
        try:
            self.outcome([], None)
        except ToolFileFailed as error:
            raise UserError(f"tools' code {self.file.path} fails when it is run: {error}") from error

    @property
    def missing_layers(self) -> str:
        return self._sandbox.missing

    def close(self) -> None:
        self._sandbox.close()

    def check_row(self, row: dict[str, Any]) -> str | None:
        """What is wrong with a row's state, or None."""
        state = row.get(self.options.state_field)
        if state is None:
            return None
        if SET_UP not in self.file:
            return f"it has a `{self.options.state_field}`, and {self.file.path} no function `{SET_UP}`"
        try:
            pack(state)
        except NotPlain as error:
            return f"field `{self.options.state_field}` is not plain: {printable(str(error))}"
        return None

    def decides(self, verdict: Verdict) -> bool:
        """Whether what the calls come to can change the verdict on what they are."""
        if not verdict.details.get("valid_schema"):
            return False
        return verdict.reason == "valid" or (self.options.same is not None and verdict.reason in DIFFERING)

    def judge(
        self,
        verdict: Verdict,
        calls: Sequence[ToolCall],
        gold: Sequence[ToolCall],
        row: dict[str, Any],
        weights: RewardWeights,
    ) -> Verdict:
        """The verdict on calls that were judged by what they are, once they have run. Where there is no gold they have to
        run; where there is, calls that differ from it pass when they come to the same."""
        against_gold = verdict.reason in DIFFERING
        if against_gold and not gold:  # then nothing was to be called, whatever it comes to
            return verdict
        state = row.get(self.options.state_field)
        try:
            wanted = self.outcome(gold, state) if against_gold else Outcome()
            came = self.outcome(calls, state) if not wanted.reason else wanted
        except ToolFileFailed as error:
            return not_run("bad_tools", message=printable(f"{self.file.path}: {error}", 500))
        except BoxFailed as error:
            return not_run("sandbox_failed", message=printable(str(error)))
        if STARVED in (wanted.reason, came.reason):
            return not_run(STARVED)
        if wanted.reason:
            told = f"the gold calls cannot be run: {wanted.reason} {wanted.message}"
            return not_run("bad_row", message=printable(told.rstrip(), 500))
        details = {**verdict.details, "executed": not came.reason}
        if came.reason:
            reward = verdict.reward
            if not against_gold:
                shares = Shares(format=1.0, schema=1.0, tool=0.0, arguments=0.0, exact=0.0)
                reward, details["shares"] = shares.reward(weights), msgspec.structs.asdict(shares)
            return Verdict(VerdictKind.FAIL, reward, came.reason, {**details, "message": printable(came.message)})
        if not against_gold:
            return Verdict(VerdictKind.PASS, 1.0, "executed", details)
        if self.same(came, wanted):
            return Verdict(VerdictKind.PASS, 1.0, "same_outcome", details)
        return Verdict(verdict.kind, verdict.reward, verdict.reason, details)

    def outcome(self, calls: Sequence[ToolCall], state: Any) -> Outcome:
        """What `calls`, one after the other, come to from `state`; the first that raises ends them.

        Raises ToolFileFailed where it does not come to the calls, and BoxFailed.
        """
        results = self.options.same == "results"
        steps: list[list[Any]] = [["", [], {}, False] if state is None else [SET_UP, [state], {}, False]]
        steps += [[function_of(call.name), [], call.arguments, results] for call in calls]
        if self.options.same == STATE:
            steps.append([STATE, [], {}, True])
        run = self._run(steps)
        first = run.answers[0] if run.answers else Answer(reason=run.reason, message=run.message)
        if STARVED in (run.reason, first.reason):
            return Outcome(reason=STARVED)
        if first.reason:
            raise ToolFileFailed(f"{first.reason} {first.message}".strip())
        for answer in run.answers:
            if answer.reason:
                reason = "tool_failed" if answer.reason == "exception" else answer.reason
                return Outcome(reason=reason, message=answer.message)
        if len(run.answers) < len(steps):
            return Outcome(reason=run.reason, message=run.message)
        values = [answer.value for answer in run.answers[1:]]
        return Outcome(values if results else values[len(calls) :])

    def _run(self, steps: list[list[Any]]) -> CallsResult:
        for attempt in range(_ATTEMPTS):
            try:
                with self._sandbox.box() as box:
                    return call_function(box, self.file.source + _DRIVER, _ENTRY, steps)
            except BoxFailed:
                if attempt + 1 == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def same(self, one: Outcome, other: Outcome) -> bool:
        """Whether two outcomes without a reason are the same, as the options have it."""
        rest = list(other.kept)
        for value in one.kept:
            found = next((index for index, each in enumerate(rest) if json_equal(value, each)), None)
            if found is None:
                return False
            del rest[found]
        return not rest


def function_of(tool: str) -> str:
    """The name of a tool's function.

    >>> function_of("calendar.create-event")
    'calendar_create_event'
    """
    return re.sub(r"\W", "_", tool)


def _bound(module: ast.Module) -> Iterable[str]:
    for node in module.body:
        match node:
            case ast.FunctionDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.ImportFrom(names=names):
                yield from (alias.asname or alias.name for alias in names)
            case _:
                pass
