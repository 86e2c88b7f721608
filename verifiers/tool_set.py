"""The tools that a completion may call, and whether a call fits its tool's JSON Schema (2020-12)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, cast

import msgspec
from jsonschema.exceptions import ValidationError

from headrace.verifiers.base import nearest, printable
from headrace.verifiers.call_forms import CallFault, ToolCall, strict_json
from headrace.verifiers.errors import UserError
from headrace.verifiers.tool_schema import FORMATS, compiled, refuse_invalid

# A tool's schema that says nothing of further arguments means that there are none. Where other schemas take part, only
# `unevaluatedProperties` sees what they allow; it is slower, so that the plain case does without.
_TAKES_PART = frozenset({"$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "dependentSchemas"})
_SAYS_WHAT_ELSE = frozenset({"additionalProperties", "unevaluatedProperties", "patternProperties"})


class CallCheck(msgspec.Struct, frozen=True):
    """Whether a call fits its tool. `reason` is empty when it does, else `unknown_tool`, `missing_argument`,
    `extra_argument`, `wrong_type` or `invalid_argument`; `arguments` holds the same for each argument at fault, and
    `fitting` is the share of the arguments, given or required, that are at no fault. `raised` is the name of the exception
    that the check ended in, if it did."""

    reason: str
    message: str
    arguments: dict[str, str]
    fitting: float
    raised: str = ""


class Tool:
    """One tool, its schema compiled."""

    def __init__(self, name: str, parameters: dict[str, Any], check_formats: bool) -> None:
        self.name = name
        schema = dict(parameters)
        schema.setdefault("type", "object")
        if not _SAYS_WHAT_ELSE & schema.keys():
            schema["unevaluatedProperties" if _TAKES_PART & schema.keys() else "additionalProperties"] = False
        self._validator = compiled(schema, check_formats)

    def check(self, arguments: dict[str, Any]) -> CallCheck:
        # The completion picks the values, so that one which the schema library stumbles over is the completion's fault: as
        # an error of ours it would be neither right nor wrong, and a policy could hide in it. Only the library's work is in
        # this net; the parsing and the reward, ours, may raise and be seen. Nor is the exception lost: its name is in the
        # details, a gold call that meets it is refused with its row, and the property tests let none pass. Memory is no
        # matter of the value's worth and has its own verdict.
        try:
            errors = list(self._validator.iter_errors(arguments))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001
            name = type(error).__name__
            message = f"{printable(self.name, 80)}: the check ended in {name}: {printable(str(error))}"
            return CallCheck("invalid_argument", message, {}, fitting=0.0, raised=name)
        # Beside another fault all that this one knows is that nothing was evaluated.
        telling = [error for error in errors if error.validator != "unevaluatedProperties"] or errors
        faults = [_fault(error, arguments) for error in telling]
        if not faults:
            return CallCheck("", "", {}, fitting=1.0)
        first = min(faults, key=lambda fault: _REASONS.index(fault.reason))
        outcomes: dict[str, str] = {}
        for fault in faults:
            for argument in fault.arguments:
                outcomes.setdefault(argument, _OUTCOMES[fault.reason])
        # A fault of no argument's, such as too few of them, is one of the whole call.
        whole = any(not fault.arguments for fault in faults)
        fitting = 0.0 if whole else 1 - len(outcomes) / len(arguments.keys() | outcomes.keys())
        return CallCheck(first.reason, f"{printable(self.name, 80)}: {first.message}", outcomes, fitting)


class ToolSet:
    """Tools by name. `definitions` is what they were made of, as plain JSON."""

    def __init__(self, definitions: list[dict[str, Any]], tools: dict[str, Tool]) -> None:
        self.definitions = definitions
        self._tools = tools

    @classmethod
    def from_file(cls, path: Path, check_formats: bool = True) -> Self:
        """Raises UserError with file, tool and reason."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            told = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"tools file {path} cannot be read: {told}") from error
        try:
            definitions = strict_json(text)
        except CallFault as fault:
            raise UserError(f"tools file {path} is not valid JSON: {fault}") from fault
        return cls.from_definitions(definitions, str(path), check_formats)

    @classmethod
    def from_definitions(cls, definitions: Any, where: str, check_formats: bool = True) -> Self:
        """From a list in OpenAI's form or the bare one. Raises UserError that starts with `where` and the tool."""
        if not isinstance(definitions, list):
            raise UserError(f"{where}: the tools are {type(definitions).__name__}, not a list")
        if not definitions:
            raise UserError(f"{where}: the list of tools is empty")
        tools: dict[str, Tool] = {}
        for number, definition in enumerate(definitions, start=1):
            place = f"{where}: tool {number}"
            name, parameters = _name_and_parameters(definition, place)
            place = f"{place} ({printable(name, 80)})"
            if name in tools:
                raise UserError(f"{place}: a tool of that name stands before it")
            refuse_invalid(parameters, place)
            tools[name] = Tool(name, parameters, check_formats)
        return cls(definitions, tools)

    @property
    def names(self) -> Iterable[str]:
        return self._tools.keys()

    def check(self, call: ToolCall) -> CallCheck:
        """Whether `call` names one of the tools and its arguments fit."""
        tool = self._tools.get(call.name)
        if tool is None:
            hint = nearest(call.name[:80], self._tools)
            return CallCheck("unknown_tool", f"no tool {printable(call.name, 80)!r}{hint}", {}, fitting=0.0)
        return tool.check(call.arguments)


def warm_up() -> None:
    """Use every part of the schema library once, so that nothing is left to import: a confined process cannot."""
    schema = {"properties": {"day": {"type": "string", "format": "date"}}, "required": ["day"]}
    tools = ToolSet.from_definitions([{"name": "warm_up", "parameters": schema}], "warm-up")
    tools.check(ToolCall("warm_up", {"day": "never", "year": 1}))
    for name in FORMATS.checkers:
        for text in ("2000-01-01T00:00:00Z", "\u00fc.example", "http://\u00fc.example/{a}"):
            FORMATS.conforms(text, name)


class _Fault(msgspec.Struct, frozen=True):
    reason: str
    message: str
    arguments: list[str]


# In this order the first is a call's reason.
_REASONS = ("missing_argument", "extra_argument", "wrong_type", "invalid_argument")
_OUTCOMES: dict[str, str] = dict(zip(_REASONS, ("missing", "extra", "wrong_type", "invalid"), strict=True))


def _fault(error: ValidationError, arguments: dict[str, Any]) -> _Fault:
    """One of the schema library's errors in our terms: by keyword at the top, by type anywhere, the rest as invalid."""
    message = printable(error.message)
    if error.path:
        reason = "wrong_type" if _is_of_type(error) else "invalid_argument"
        return _Fault(reason, f"`{printable(str(error.path[0]), 80)}`: {message}", [str(error.path[0])])
    if error.validator == "required":
        required = cast("list[str]", error.validator_value)
        # One error for each argument that is missing, told apart by the message alone.
        missing = [name for name in required if error.message.startswith(repr(name))]
        return _Fault("missing_argument", message, missing)
    if error.validator in ("additionalProperties", "unevaluatedProperties"):
        schema = error.schema if isinstance(error.schema, dict) else {}
        known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        extra = [name for name in arguments if name not in known and not any(re.search(p, name) for p in patterns)]
        return _Fault("extra_argument", message, extra)
    return _Fault("invalid_argument", message, [])


def _is_of_type(error: ValidationError) -> bool:
    """Whether it is the type that does not fit, an optional one (`anyOf` of types) included."""
    if error.validator in ("anyOf", "oneOf") and error.context:
        return all(inner.validator == "type" and not inner.relative_path for inner in error.context)
    return error.validator == "type"


def _name_and_parameters(definition: Any, place: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(definition, dict):
        raise UserError(f"{place} is {type(definition).__name__}, not an object")
    body = definition.get("function", definition)
    if not isinstance(body, dict):
        raise UserError(f"{place}: `function` is {type(body).__name__}, not an object")
    if not isinstance(body.get("name"), str) or not body["name"]:
        raise UserError(f"{place} has no `name`")
    parameters = body.get("parameters", {})
    if not isinstance(parameters, dict):
        raise UserError(f"{place} ({body['name']}): `parameters` is {type(parameters).__name__}, not an object")
    return body["name"], parameters


def canonical(definitions: Any) -> str:
    """One text for equal definitions, to find them again by. Raises TypeError, ValueError or RecursionError for what is no
    JSON."""
    return json.dumps(definitions, sort_keys=True, allow_nan=False)
