"""Tool calls, checked against the tools' JSON Schemas and, where a row has one, against its gold answer.

Here are the options, the process that the check runs in, and what a row brings; `call_forms.py` parses, `tool_set.py`
knows the schemas, `call_reward.py` gives the verdict.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from headrace.verifiers.base import after_thinking, not_run, parse_options, printable
from headrace.verifiers.call_forms import CallFault, CallForm, ParsedCalls, as_json_call, parse_calls
from headrace.verifiers.call_reward import GoldCall, RewardWeights, judge
from headrace.verifiers.confined import ConfinedOptions, ConfinedVerifier
from headrace.verifiers.errors import UserError, WrongOption
from headrace.verifiers.records import Sample, Verdict, VerdictKind
from headrace.verifiers.tool_execution import ExecutionOptions, ToolExecution, ToolFile
from headrace.verifiers.tool_set import ToolSet, canonical, warm_up

MAX_GOLD_CALLS = 8


class ToolCallOptions(ConfinedOptions):
    schema_path: str | None = None
    """Tools as JSON, in OpenAI's form or bare; None: every row brings its own."""
    form: CallForm = "any"
    """How calls are written: `hermes` tags, `json` objects, or `any` of the two."""
    allow_text: bool = False
    """Text around the calls is fine."""
    thinking_end: str | None = "</think>"
    """What a completion says before the last of these marks is not looked at; none: all is."""
    check_formats: bool = True
    """A schema's `format` (date, email, ...) is binding."""
    weights: RewardWeights = RewardWeights()
    """What the reward pays for."""
    gold_field: str = "answer"
    """Row field with the expected calls, a list of {name, arguments} or one of them; a row may have none."""
    alternatives_field: str = "answer_alternatives"
    """Row field with further answers that are as good, a list of such lists; or with one answer as BFCL has it, a list of
    {name: {argument: [allowed values]}}, where "" among the values means that the argument may be absent."""
    tools_field: str = "tools"
    """Row field with the row's own tools, in place of the file's."""
    code_path: str | None = None
    """A Python file with a function for each tool, at its top level; what is neither letter nor digit in a tool's name is
    `_` in the function's. The tools are run, in the sandbox, where that decides: without gold they must run, and with
    `execution.same` what they come to counts beside it. `set_up(state)` in the file is called before, `state()` tells what
    is left after."""
    execution: ExecutionOptions = ExecutionOptions()
    """How `code_path` is run, and what counts of it."""


class ToolCallVerifier(ConfinedVerifier):
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
        given = {"schema_path": schema_path, **options}
        given = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
        parsed = parse_options(ToolCallOptions, given, "tool_call")
        path = parsed.schema_path
        try:
            tools = None if path is None else ToolSet.from_file(Path(path), parsed.check_formats)
        except UserError as error:
            raise WrongOption("schema_path", str(error)) from error
        if parsed.code_path is None and parsed.execution != ExecutionOptions():
            raise WrongOption("execution", "`execution` says how `code_path` is run, and there is none")
        try:
            self._with(parsed, tools, None if parsed.code_path is None else ToolFile.read(Path(parsed.code_path)))
        except UserError as error:
            raise WrongOption("code_path", str(error)) from error

    @classmethod
    def from_options(cls, options: dict[str, Any], base_dir: Path) -> Self:
        named = {key: options[key] for key in ("schema_path", "code_path") if isinstance(options.get(key), str)}
        return cls(**{**options, **{key: str(base_dir / path) for key, path in named.items()}})

    def _with(self, options: ToolCallOptions, tools: ToolSet | None, code: ToolFile | None) -> None:
        self.options = options
        self._tools = tools
        self._execution = None
        if code is not None:
            if tools is not None and (fault := code.fault(tools.names)):
                raise UserError(fault)
            self._execution = ToolExecution(options.execution, code)
        check = self._rows = ToolCallCheck(options, tools)
        fields = (options.gold_field, options.alternatives_field, options.tools_field)
        self._set_up(options, load_check, self._state(), lambda: check.verify, fields)

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        verdicts = super().verify_many(samples)
        execution = self._execution
        if execution is None:
            return verdicts
        return [
            self._after_running(execution, sample, verdict) if execution.decides(verdict) else verdict
            for sample, verdict in zip(samples, verdicts, strict=True)
        ]

    def _after_running(self, execution: ToolExecution, sample: Sample, verdict: Verdict) -> Verdict:
        fault = execution.check_row(sample.row)
        if fault is not None:
            return not_run("bad_row", message=fault)
        calls = self._rows.parsed(
            sample.completion
        ).calls  # once more, now that they are known to parse within the limits
        [first, *_] = self._rows.answers_of(sample.row) or [[]]
        gold = [call.example() for call in first]
        return execution.judge(verdict, calls, gold, sample.row, self.options.weights)

    def check_row(self, row: dict[str, Any]) -> str | None:
        fault = self._rows.check_row(row)
        if fault is None and self._execution is not None:
            tools = self._rows.tools_of(row)
            fault = self._execution.file.fault(tools.names) or self._execution.check_row(row)
        return None if fault is None else printable(fault, 500)

    def start(self) -> None:
        super().start()
        if self._execution is not None:
            self._execution.start()

    def missing_layers(self) -> str:
        return "" if self._execution is None else self._execution.missing_layers

    def close(self) -> None:
        super().close()
        if self._execution is not None:
            self._execution.close()

    def _state(self) -> dict[str, Any]:
        definitions = None if self._tools is None else self._tools.definitions
        return {"options": self.options.model_dump(mode="json", by_alias=True), "tools": definitions}

    def __getstate__(self) -> dict[str, Any]:
        code = None if self._execution is None else self._execution.file.source
        return {**self._state(), "code": code}

    def __setstate__(self, state: dict[str, Any]) -> None:
        options, tools = _parsed_state(state)
        code = state["code"]
        self._with(options, tools, None if code is None else ToolFile(code, str(options.code_path)))


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
            tools = self.tools_of(sample.row)
            answers = self.answers_of(sample.row)
        except _BadRow as fault:
            return not_run("bad_row", message=printable(str(fault), 500))
        try:
            parsed = self.parsed(sample.completion)
        except CallFault as fault:
            if fault.reason == "no_call" and answers is not None and [] in answers:
                return Verdict(VerdictKind.PASS, 1.0, "match", {"valid_schema": True, "matches_gold": True})
            matches = None if answers is None else False
            details = {"valid_schema": False, "matches_gold": matches, "message": printable(str(fault))}
            return Verdict(VerdictKind.FAIL, 0.0, fault.reason, details)
        checks = [tools.check(call) for call in parsed.calls]
        return judge(parsed, checks, answers, self._options.weights, self._options.allow_text)

    def parsed(self, completion: str) -> ParsedCalls:
        """Raises CallFault."""
        return parse_calls(after_thinking(completion, self._options.thinking_end), self._options.form)

    def check_row(self, row: dict[str, Any]) -> str | None:
        try:
            tools = self.tools_of(row)
            answers = self.answers_of(row)
        except _BadRow as fault:
            return str(fault)
        for answer in answers or []:
            for call in answer:
                try:
                    json.dumps(call.arguments, allow_nan=False)
                except (TypeError, ValueError, RecursionError) as error:  # Parquet has types that JSON has not
                    return f"the arguments of the gold call are not JSON: {error}"
                check = tools.check(call.example())
                if check.reason:
                    return f"the gold call does not fit its tool ({check.reason}): {check.message}"
        return None

    def tools_of(self, row: dict[str, Any]) -> ToolSet:
        field = self._options.tools_field
        if row.get(field) is None:
            if self._tools is None:
                raise _BadRow(f"field `{field}` is missing, and the verifier has no `schema_path`")
            return self._tools
        try:
            return _row_tools(canonical(row[field]), field, self._options.check_formats)
        except UserError as error:
            raise _BadRow(f"field {error}") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise _BadRow(f"field `{field}` is not JSON: {error}") from error

    def answers_of(self, row: dict[str, Any]) -> list[list[GoldCall]] | None:
        """Every answer that is right, gold first; None where the row has none."""
        gold, alternatives = row.get(self._options.gold_field), row.get(self._options.alternatives_field)
        answers = [] if gold is None else [_gold_calls(gold, self._options.gold_field)]
        if alternatives is not None:
            field = self._options.alternatives_field
            if not isinstance(alternatives, list):
                raise _BadRow(f"field `{field}` is {type(alternatives).__name__}, not a list")
            if any(map(_has_choices, alternatives)):
                answers.append(_gold_calls(alternatives, field))
            else:
                answers += [_gold_calls(alternative, field) for alternative in alternatives]
        return answers or None


class _BadRow(Exception):
    """The row cannot be checked against; the message says which field and why."""


@lru_cache(maxsize=256)
def _row_tools(definitions: str, field: str, check_formats: bool) -> ToolSet:
    return ToolSet.from_definitions(json.loads(definitions), f"`{field}`", check_formats)


def _gold_calls(value: Any, field: str) -> list[GoldCall]:
    calls = value if isinstance(value, list) else [value]
    if len(calls) > MAX_GOLD_CALLS:
        raise _BadRow(f"field `{field}` has {len(calls)} calls; at most {MAX_GOLD_CALLS} are compared")
    try:
        return [_choices(call, field) if _has_choices(call) else _gold_call(call) for call in calls]
    except CallFault as fault:
        raise _BadRow(f"field `{field}`: {fault}") from fault


def _gold_call(value: Any) -> GoldCall:
    call = as_json_call(value)
    return GoldCall(call.name, {name: [value] for name, value in call.arguments.items()})


def _has_choices(value: Any) -> bool:
    """Whether it is a call as BFCL has it: {name: {argument: [allowed values]}}."""
    if not isinstance(value, dict) or len(value) != 1:
        return False
    [(name, arguments)] = value.items()
    return isinstance(arguments, dict) and not (name == "function" and isinstance(arguments.get("name"), str))


def _choices(value: dict[str, dict[str, Any]], field: str) -> GoldCall:
    [(name, arguments)] = value.items()
    for argument, allowed in arguments.items():
        if not isinstance(allowed, list) or not allowed:
            where = f"`{printable(argument, 80)}` of {printable(name, 80)}"
            raise _BadRow(f"field `{field}`: {where} has no list of allowed values")
    optional = frozenset(argument for argument, allowed in arguments.items() if "" in allowed)
    return GoldCall(name, arguments, optional, choices=True)
