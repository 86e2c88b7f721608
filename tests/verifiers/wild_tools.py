"""A tool whose schema has every keyword of the dialect and every format, and values that such checks trip over."""

from __future__ import annotations

import json
from typing import Any

from headrace.verifiers.schema_formats import FORMATS
from headrace.verifiers.tool_schema import DIALECT

_LEVELS = 28  # that a call may hold, beside its own
_NUMBER, _TEXT = {"type": "number"}, {"type": "string"}
_KEYWORDS: dict[str, Any] = {
    "type": {"type": ["integer", "string", "null"]},
    "const": {"const": 1e300},
    "enum": {"enum": [1, "a", None, True, [1], {"a": 5e-324}]},
    "multipleOf": {"multipleOf": 0.01},
    "multiple of the least": {"multipleOf": 5e-324},
    "multiple of the most": {"multipleOf": 1e308},
    "maximum": {"maximum": 1e300, "exclusiveMaximum": 2**63},
    "minimum": {"minimum": -1e300, "exclusiveMinimum": -5e-324},
    "maxLength": {"minLength": 1, "maxLength": 5},
    "pattern": {"pattern": r"^[\p{L}\s]*$|a{2,3}"},
    "items": {
        "prefixItems": [{}, _TEXT],
        "items": {"multipleOf": 3},
        "minItems": 1,
        "maxItems": 3,
        "uniqueItems": True,
    },
    "contains": {"contains": _NUMBER, "minContains": 1, "maxContains": 2},
    "unevaluatedItems": {"allOf": [{"prefixItems": [{}]}], "unevaluatedItems": _TEXT},
    "properties": {
        "properties": {"x": _NUMBER},
        "patternProperties": {r"^\w$": _TEXT, r"\d$": {}},
        "additionalProperties": False,
        "propertyNames": {"maxLength": 3},
        "minProperties": 1,
        "maxProperties": 2,
        "required": ["x"],
    },
    "dependentSchemas": {"dependentSchemas": {"x": {"required": ["y"]}}, "dependentRequired": {"x": ["y"]}},
    "unevaluatedProperties": {"anyOf": [{"properties": {"x": _NUMBER}}, _TEXT], "unevaluatedProperties": {"not": {}}},
    "allOf": {
        "allOf": [_NUMBER, {"multipleOf": 7}],
        "oneOf": [{"minimum": 3}, {"maximum": 3}],
        "not": {"const": 2**63},
    },
    "if": {"if": _NUMBER, "then": {"multipleOf": 0.1}, "else": {"format": "regex"}},
    "$ref": {"$ref": "#/$defs/tree"},
    "$dynamicRef": {"$dynamicRef": "#node"},
    "$anchor": {"$ref": "#plain"},
    "contentSchema": {"contentEncoding": "base64", "contentMediaType": "application/json", "contentSchema": _NUMBER},
    "title": {"title": "t", "description": "d", "default": 1, "examples": [1], "deprecated": True},
    "readOnly": {"readOnly": True, "writeOnly": True},
}
EVERY_KEYWORD: dict[str, Any] = {
    "$schema": DIALECT,
    "$id": "urn:test:every",
    "$comment": "as long as a dialect's list",
    "$vocabulary": {"urn:test:words": False},
    "$defs": {
        "tree": {
            "$dynamicAnchor": "node",
            "properties": {"x": {"$dynamicRef": "#node"}},
            "items": {"$dynamicRef": "#node"},
        },
        "plain": {"$anchor": "plain", "maximum": 3},
    },
    "properties": {**_KEYWORDS, **{name: {"format": name} for name in FORMATS.checkers}},
}
KEYWORDS = sorted({*EVERY_KEYWORD, *(keyword for each in _KEYWORDS.values() for keyword in each), "$anchor"})
"""All that stand in it, but in what is nested deeper."""
EVERY_TOOL = {"name": "every", "parameters": EVERY_KEYWORD}

_EDGES = [
    "1e300",
    "-1e300",
    "1.7976931348623157e308",
    "5e-324",
    "1e22",
    "1e30",
    str(2**63),
    str(2**64 - 1),
    str(-(2**63)),
    "-0.0",
    "0.07",
    "true",
    "null",
    '""',
    '"a{99999999999}"',
    '"' + "(" * 3_000 + '"',
    '"' + "(" * 3_000 + ")" * 3_000 + '"',
    '"' + "9" * 5_000 + '"',
    "[1e300, 1, 1.0, true, [1e300], [1], {}, 5e-324]",
    '{"x": 1e300, "": 5e-324, "@": 1, "y": "@"}',
    "[" * _LEVELS + "]" * _LEVELS,
    '{"x":' * _LEVELS + "1e300" + "}" * _LEVELS,
    '[{"x":' * (_LEVELS // 2) + "5e-324" + "}]" * (_LEVELS // 2),
]


def _with_all(value: str) -> str:
    """A call that gives every argument the same."""
    given = ", ".join(f"{json.dumps(name)}: {value}" for name in EVERY_KEYWORD["properties"])
    return f'{{"name": "every", "arguments": {{{given}}}}}'


EVERY_CALL = [
    '{"name": "every", "arguments": {"pattern": "@", "iri": "@", "idn-hostname": "@", "$ref": "@", "@": 1}}',
    _with_all('"@"'),
    *map(_with_all, _EDGES),
]
EVERY_GOLD = {"name": "every", "arguments": {"multipleOf": 1e300, "regex": "(a|b)+"}}
