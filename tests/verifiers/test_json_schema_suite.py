"""JSON Schema 2020-12, keyword by keyword, as the arguments of a tool meet it. Verdicts by the specification's text.

So also of the official suite's cases (tests/suites.py), those apart that fetch a schema from a server.
"""

import json

import pytest

from headrace.verifiers import UserError
from headrace.verifiers.call_forms import ToolCall
from headrace.verifiers.tool_set import ToolSet
from tests.suites import JSON_SCHEMA, MISSING

TREE = {
    "$id": "urn:test:tree",
    "$dynamicAnchor": "node",
    "type": "object",
    "properties": {"data": True, "children": {"type": "array", "items": {"$dynamicRef": "#node"}}},
}
STRICT_TREE = {
    "$id": "urn:test:strict-tree",
    "$dynamicAnchor": "node",
    "$ref": "urn:test:tree",
    "unevaluatedProperties": False,
    "$defs": {"tree": TREE},
}
LIST_OF_STRINGS = {
    "$id": "urn:test:strings",
    "$ref": "urn:test:list",
    "$defs": {
        "strings": {"$dynamicAnchor": "item", "type": "string"},
        "list": {
            "$id": "urn:test:list",
            "type": "array",
            "items": {"$dynamicRef": "#item"},
            "$defs": {"any": {"$dynamicAnchor": "item"}},
        },
    },
}
POINT = {"$defs": {"x": {"type": "integer"}, "a/b": {"const": 1}, "a~b": {"const": 2}, "a%b": {"const": 3}}}

# keyword, schema, what it accepts, what it refuses
TABLE = [
    # the whole schema
    ("boolean", True, [None, 1, {}, "x"], []),
    ("boolean", False, [], [None, 1, {}, "x"]),
    ("boolean", {}, [None, 1, {}], []),
    # type
    ("type", {"type": "integer"}, [1, -3, 0, 1.0, 2**53], [1.5, "1", True, None, [], {}]),
    ("type", {"type": "number"}, [1, 1.5, -0.0], ["1", True, None]),
    ("type", {"type": "string"}, ["", "1"], [1, None, ["a"]]),
    ("type", {"type": "boolean"}, [True, False], [0, 1, "true", None]),
    ("type", {"type": "null"}, [None], [0, "", False, "null"]),
    ("type", {"type": "array"}, [[], [1]], [{}, "[]"]),
    ("type", {"type": "object"}, [{}, {"a": 1}], [[], "{}"]),
    ("type", {"type": ["string", "null"]}, ["a", None], [1, False]),
    # enum, const
    ("enum", {"enum": [1, "a", None, [1], {"a": 1}]}, [1, 1.0, "a", None, [1], {"a": 1}], [2, "b", False, [2], {"a": 2}]),
    ("enum", {"enum": [True]}, [True], [1, 1.0, "true"]),
    ("enum", {"enum": [0]}, [0, 0.0, -0.0], [False, None, ""]),
    ("enum", {"enum": [[False]]}, [[False]], [[0], [0.0], [None]]),
    ("const", {"const": 1}, [1, 1.0], [True, "1", 2]),
    ("const", {"const": None}, [None], [0, False, ""]),
    ("const", {"const": {"a": False}}, [{"a": False}], [{"a": 0}, {}, {"a": False, "b": 1}]),
    ("const", {"const": [1, 2]}, [[1, 2]], [[2, 1], [1], [1, 2, 3]]),
    # numbers
    ("multipleOf", {"multipleOf": 2}, [0, 4, -6, 4.0, "no number"], [7, 1.5]),
    ("multipleOf", {"multipleOf": 0.01}, [0.75, 19.99, 4.02], [0.755]),
    ("multipleOf", {"multipleOf": 1.5}, [4.5, 0], [35]),
    ("maximum", {"maximum": 3}, [3, 2.9, "4", None], [3.1, 4]),
    ("exclusiveMaximum", {"exclusiveMaximum": 3}, [2.9, "3"], [3, 3.0, 4]),
    ("minimum", {"minimum": -2}, [-2, 0, "x"], [-2.1, -3]),
    ("exclusiveMinimum", {"exclusiveMinimum": 1.1}, [1.2, "x"], [1.1, 1]),
    ("minimum", {"minimum": 1, "maximum": 2}, [1, 1.5, 2], [0.99, 2.01]),
    # strings
    ("maxLength", {"maxLength": 2}, ["", "ab", "\U0001f4a9\U0001f4a9", 100], ["abc"]),
    ("minLength", {"minLength": 2}, ["ab", "éé", 1], ["", "a", "\U0001f4a9"]),
    ("maxLength", {"maxLength": 2.0}, ["ab"], ["abc"]),
    ("pattern", {"pattern": "^a*$"}, ["", "aaa", 1, None, {}], ["abc", "b", "aa\n"]),
    ("pattern", {"pattern": "a+"}, ["xxaayy"], ["xx", ""]),
    ("pattern", {"pattern": "^\\d+$"}, ["12"], ["1a", "\u0663", "12\n"]),
    ("pattern", {"pattern": "^\\w$"}, ["a", "_", "9"], ["é", "-"]),
    ("pattern", {"pattern": "^\\s$"}, [" ", "\u00a0", "\ufeff", "\u2028"], ["a", ""]),
    ("pattern", {"pattern": "^.$"}, ["a", "\t"], ["\n", "\r", "\u2028"]),
    ("pattern", {"pattern": "^(?<a>x)\\k<a>$"}, ["xx"], ["x"]),
    ("pattern", {"pattern": "^\\u{1F4A9}\\uD83D\\uDCA9$"}, ["\U0001f4a9\U0001f4a9"], ["\U0001f4a9"]),
    ("pattern", {"pattern": "^\\p{Letter}\\P{L}[\\p{Lu}\\p{Nd}]$"}, ["ä-Ä", "x1\u0663"], ["1-A", "ab1", "x-a"]),
    ("pattern", {"pattern": "^[^]$"}, ["\n", "a"], ["", "ab"]),
    ("pattern", {"pattern": "[]"}, [1], ["", "a"]),
    ("pattern", {"pattern": "^\\cM$"}, ["\r"], ["M", "\\cM"]),
    ("pattern", {"pattern": "^[[&&\\d]$"}, ["[", "&", "7"], ["a"]),
    ("pattern", {"pattern": "^(?!no)\\w+(?<!x)$"}, ["yes"], ["nope", "box"]),
    # arrays
    ("items", {"items": {"type": "integer"}}, [[], [1, 2], {"0": "x"}, "x"], [[1, "x"], [None]]),
    ("items", {"items": False}, [[]], [[1], [None]]),
    ("prefixItems", {"prefixItems": [{"type": "integer"}, {"type": "string"}]},
     [[], [1], [1, "a"], [1, "a", None]], [["a"], [1, 2]]),
    ("prefixItems", {"prefixItems": [{"type": "integer"}], "items": False}, [[], [1]], [[1, 2], ["a"]]),
    ("prefixItems", {"prefixItems": [{}], "items": {"type": "string"}}, [[1, "a", "b"]], [[1, 2]]),
    ("contains", {"contains": {"const": 5}}, [[5], [1, 5], "no array"], [[], [1]]),
    ("contains", {"contains": False}, ["no array"], [[], [1]]),
    ("minContains", {"contains": {"const": 1}, "minContains": 2}, [[1, 1], [1, 2, 1]], [[], [1], [2, 2]]),
    ("minContains", {"contains": {"const": 1}, "minContains": 0}, [[], [2]], []),
    ("minContains", {"minContains": 3}, [[], [1]], []),
    ("maxContains", {"contains": {"const": 1}, "maxContains": 1}, [[1], [1, 2]], [[], [1, 1], [2]]),
    ("maxContains", {"contains": {"const": 1}, "minContains": 0, "maxContains": 1}, [[], [1]], [[1, 1]]),
    ("maxContains", {"maxContains": 0}, [[1, 2]], []),
    ("maxItems", {"maxItems": 1}, [[], [1], "ab"], [[1, 2]]),
    ("minItems", {"minItems": 1}, [[None], ""], [[]]),
    ("uniqueItems", {"uniqueItems": True},
     [[], [1, 2], [1, True], [0, False], [[1], [True]], ["a", "b"], [{"a": 1}, {"a": True}], "aa"],
     [[1, 1], [1, 1.0], [{"a": 1, "b": 2}, {"b": 2, "a": 1}], [[1], [1]], ["a", "a"], [None, None]]),
    ("uniqueItems", {"uniqueItems": False}, [[1, 1]], []),
    # objects
    ("properties", {"properties": {"a": {"type": "integer"}}}, [{}, {"a": 1}, {"b": "x"}, []], [{"a": "x"}]),
    ("properties", {"properties": {"a": False}}, [{}, {"b": 1}], [{"a": 1}]),
    ("properties", {"properties": {"__proto__": {"type": "number"}}}, [{}], [{"__proto__": "x"}]),
    ("required", {"required": ["a"]}, [{"a": None}, [], "a"], [{}, {"b": 1}]),
    ("required", {"required": []}, [{}], []),
    ("patternProperties", {"patternProperties": {"^f": {"type": "integer"}, "o$": {"maximum": 2}}},
     [{}, {"fa": 9}, {"fo": 2}, {"b": "x"}, []], [{"fa": "x"}, {"fo": 3}, {"o": 3}]),
    ("patternProperties", {"patternProperties": {"^a$": False}}, [{"a\n": 1}, {"b": 1}], [{"a": 1}]),
    ("additionalProperties", {"properties": {"a": {}}, "patternProperties": {"^v": {}}, "additionalProperties": False},
     [{}, {"a": 1}, {"vv": 1}, [], "b"], [{"b": 1}, {"a": 1, "b": 1}]),
    ("additionalProperties", {"additionalProperties": {"type": "boolean"}}, [{}, {"a": True}], [{"a": 1}]),
    ("additionalProperties", {"allOf": [{"properties": {"a": {}}}], "additionalProperties": False}, [{}], [{"a": 1}]),
    ("propertyNames", {"propertyNames": {"maxLength": 2}}, [{}, {"ab": 1}, []], [{"abc": 1}]),
    ("propertyNames", {"propertyNames": False}, [{}], [{"a": 1}]),
    ("minProperties", {"minProperties": 1}, [{"a": 1}, []], [{}]),
    ("maxProperties", {"maxProperties": 1}, [{}, {"a": 1}, [1, 2]], [{"a": 1, "b": 2}]),
    ("dependentRequired", {"dependentRequired": {"a": ["b", "c"]}},
     [{}, {"b": 1}, {"a": 1, "b": 1, "c": 1}, []], [{"a": 1}, {"a": 1, "b": 1}]),
    ("dependentSchemas", {"dependentSchemas": {"a": {"properties": {"b": {"type": "integer"}}, "required": ["b"]}}},
     [{}, {"b": "x"}, {"a": 1, "b": 2}, "a"], [{"a": 1}, {"a": 1, "b": "x"}]),
    ("dependentSchemas", {"dependentSchemas": {"a": True, "b": False}}, [{"a": 1}, {}], [{"b": 1}, {"a": 1, "b": 1}]),
    # in place
    ("allOf", {"allOf": [{"minimum": 2}, {"maximum": 4}]}, [2, 3, 4], [1, 5]),
    ("allOf", {"allOf": [True, False]}, [], [1]),
    ("anyOf", {"anyOf": [{"type": "string"}, {"minimum": 2}]}, ["a", 2, None], [1]),
    ("anyOf", {"anyOf": [False, False]}, [], [1]),
    ("oneOf", {"oneOf": [{"type": "integer"}, {"minimum": 2}]}, [1, 2.5], [3, 1.5]),
    ("oneOf", {"oneOf": [True, True]}, [], [1]),
    ("oneOf", {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"a": 1}, {"b": 1}], [{}, {"a": 1, "b": 1}]),
    ("not", {"not": {"type": "integer"}}, ["a", 1.5], [1]),
    ("not", {"not": {}}, [], [1, None]),
    ("not", {"not": {"not": {"type": "string"}}}, ["a"], [1]),
    ("if", {"if": {"exclusiveMaximum": 0}, "then": {"minimum": -10}, "else": {"multipleOf": 2}},
     [-1, -10, 0, 4], [-100, 3]),
    ("if", {"if": {"const": 0}}, [0, "x"], []),
    ("if", {"then": {"const": 0}}, [1], []),
    ("if", {"else": {"const": 0}}, [1], []),
    ("if", {"if": {"required": ["card"]}, "then": {"required": ["address"]}},
     [{}, {"card": 1, "address": 2}], [{"card": 1}]),
    ("if", {"if": True, "then": {"const": 1}, "else": {"const": 2}}, [1], [2]),
    ("if", {"if": False, "then": {"const": 1}, "else": {"const": 2}}, [2], [1]),
    # references
    ("$ref", {**POINT, "$ref": "#/$defs/x"}, [1], ["1", 1.5]),
    ("$ref", {**POINT, "$ref": "#/$defs/a~1b"}, [1], [2]),
    ("$ref", {**POINT, "$ref": "#/$defs/a~0b"}, [2], [1]),
    ("$ref", {**POINT, "$ref": "#/$defs/a%25b"}, [3], [1]),
    ("$ref", {**POINT, "$ref": "#/$defs/x", "maximum": 5}, [5], [6]),
    ("$ref", {"properties": {"a": {"$ref": "#"}}, "additionalProperties": False},
     [{}, {"a": {"a": {}}}], [{"b": 1}, {"a": {"b": 1}}]),
    ("$ref", {"prefixItems": [{"type": "integer"}, {"$ref": "#/prefixItems/0"}]}, [[1, 2]], [[1, "x"]]),
    ("$ref", {"properties": {"$ref": {"type": "string"}}}, [{"$ref": "a"}], [{"$ref": 2}]),
    ("$ref", {"$ref": "https://json-schema.org/draft/2020-12/schema"},
     [{"minLength": 1}, True, {}, {"$defs": {"a": {"type": "string"}}}],
     [{"minLength": -1}, {"type": "nothing"}, 7, {"$defs": {"a": {"type": 1}}}]),
    ("$defs", {"$defs": {"n": {"$id": "urn:test:n", "type": "number"}}, "$ref": "urn:test:n"}, [1.5], ["x"]),
    ("$defs", {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": {"const": 1}},
               "$ref": "#/$defs/a"}, [1], [2]),
    ("$anchor", {"$defs": {"a": {"$anchor": "foo", "type": "integer"}}, "$ref": "#foo"}, [1], ["x"]),
    ("$anchor", {"$defs": {"a": {"$id": "urn:test:in", "$defs": {"b": {"$anchor": "foo", "const": 1}}}},
                 "$ref": "urn:test:in#foo"}, [1], [2]),
    ("$id", {"$defs": {"item": {"$id": "urn:test:item", "type": "array", "items": {"$ref": "#/$defs/i"},
                                "$defs": {"i": {"type": "integer"}}}, "i": {"type": "string"}},
             "$ref": "#/$defs/item"}, [[1]], [["x"]]),
    ("$id", {"$id": "https://headrace.test/base/", "$defs": {"a": {"$id": "inner", "const": 1}}, "$ref": "inner"}, [1], [2]),
    ("$dynamicRef", TREE, [{"children": [{"daat": 1}]}], [{"children": 1}, {"children": [1]}]),
    ("$dynamicRef", STRICT_TREE, [{"children": [{"data": 1}]}], [{"daat": 1}, {"children": [{"daat": 1}]}]),
    ("$dynamicRef", LIST_OF_STRINGS, [["a", "b"], []], [["a", 1], "a"]),
    ("$dynamicRef", {"$defs": {"a": {"$anchor": "items", "type": "string"}}, "items": {"$dynamicRef": "#items"}},
     [["a"]], [[1]]),
    ("$vocabulary", {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "integer"}, [1], ["x"]),
    ("$comment", {"$comment": "type: string", "type": "integer"}, [1], ["x"]),
    # what nobody has looked at
    ("unevaluatedProperties", {"properties": {"a": {}}, "unevaluatedProperties": False}, [{}, {"a": 1}], [{"b": 1}]),
    ("unevaluatedProperties", {"allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False},
     [{"a": 1}], [{"b": 1}, {"a": 1, "b": 1}]),
    ("unevaluatedProperties", {"unevaluatedProperties": {"type": "string"}}, [{"a": "x"}], [{"a": 1}]),
    ("unevaluatedProperties",
     {"anyOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]},
                {"properties": {"b": {"const": 1}}, "required": ["b"]}],
      "unevaluatedProperties": False}, [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}], [{"a": 1, "b": 2}, {"a": 1, "c": 1}]),
    ("unevaluatedProperties",
     {"if": {"properties": {"a": {"const": 1}}, "required": ["a"]}, "then": {"properties": {"b": {}}},
      "else": {"properties": {"c": {}}}, "unevaluatedProperties": False},
     [{"a": 1, "b": 1}, {"c": 1}], [{"a": 1, "c": 1}, {"b": 1}]),
    ("unevaluatedProperties", {"dependentSchemas": {"a": {"properties": {"b": {}}}}, "properties": {"a": {}},
                               "unevaluatedProperties": False}, [{"a": 1, "b": 1}], [{"b": 1}]),
    ("unevaluatedProperties", {"$ref": "#/$defs/o", "$defs": {"o": {"properties": {"a": {}}}},
                               "unevaluatedProperties": False}, [{"a": 1}], [{"b": 1}]),
    ("unevaluatedProperties", {"not": {"not": {"properties": {"a": {}}}}, "unevaluatedProperties": False}, [{}], [{"a": 1}]),
    ("unevaluatedProperties", {"patternProperties": {"^a": {}}, "unevaluatedProperties": False}, [{"ab": 1}], [{"b": 1}]),
    ("unevaluatedProperties", {"allOf": [{"additionalProperties": True}], "unevaluatedProperties": False}, [{"b": 1}], []),
    ("unevaluatedProperties", {"properties": {"o": {"properties": {"a": {}}}}, "unevaluatedProperties": False},
     [{"o": {"z": 1}}], [{"z": 1}]),
    ("unevaluatedItems", {"unevaluatedItems": False}, [[], {}], [[1]]),
    ("unevaluatedItems", {"prefixItems": [{}], "unevaluatedItems": False}, [[1]], [[1, 2]]),
    ("unevaluatedItems", {"items": {}, "unevaluatedItems": False}, [[1, 2]], []),
    ("unevaluatedItems", {"allOf": [{"prefixItems": [{}, {}]}], "unevaluatedItems": False}, [[1, 2]], [[1, 2, 3]]),
    ("unevaluatedItems", {"contains": {"type": "string"}, "unevaluatedItems": False}, [["a"]], [["a", 1], [1]]),
    ("unevaluatedItems", {"anyOf": [{"prefixItems": [{"const": 1}]}, {"prefixItems": [True, {"const": 2}]}],
                          "unevaluatedItems": False}, [[1], [1, 2], [0, 2]], [[1, 3], [1, 2, 3]]),
    # what says nothing about a value
    ("annotations", {"title": "t", "description": "d", "default": 1, "deprecated": True, "readOnly": True,
                     "writeOnly": True, "examples": [1]}, ["x", None], []),
    ("annotations", {"default": [], "type": "integer"}, [1], [[]]),
    ("contentEncoding", {"contentEncoding": "base64", "contentMediaType": "application/json"}, ["{:x", 1], []),
    ("contentSchema", {"contentMediaType": "application/json", "contentSchema": {"required": ["a"]}}, ["{}"], []),
    ("unknown", {"dependencies2": {"a": ["b"]}, "foo": {"type": "integer"}}, [{"a": 1}, "x"], []),
    # format, as an assertion
    ("format", {"format": "date"}, ["2026-02-28", "2024-02-29", 1, None],
     ["2026-02-29", "2026-2-28", "20260228", "2026-02-28 ", "2026-02-28\n", "\u0662026-02-28"]),
    ("format", {"format": "time"}, ["19:05:00Z", "23:59:60Z", "19:05:00.25+01:00"],
     ["19:05:00", "24:00:00Z", "9:05:00Z", "19:05", "19:05:00 CET", "19:05:00Z\n"]),
    ("format", {"format": "date-time"}, ["2026-11-20T19:05:00.5Z", "2026-11-20T19:05:00-08:00"],
     ["2026-02-31T19:05:00Z", "2026-11-20T19:05:00", "20/11/2026 19:05", "2026-324T19:05:00Z", "2026-11-20T19:05:00Z\n"]),
    ("format", {"format": "duration"}, ["P3DT4H", "P1M", "PT1M", "P2W"], ["PT1D", "3DT4H", "P", "P1YT", "P1Y2W"]),
    ("format", {"format": "email"}, ["joe@headrace.test", "a.b+c@x.test"], ["2962", "@", "a@", "@b", "a b@x.test", "a@b@c"]),
    ("format", {"format": "hostname"}, ["www.headrace.test", "a-1.test"], ["-a.test", "a_b", "a..b", "x" * 64 + ".test"]),
    ("format", {"format": "ipv4"}, ["192.168.0.1"], ["10.0.0.0.1", "256.1.1.1", "10.1", "0x0a000001", "010.10.0.1"]),
    ("format", {"format": "ipv6"}, ["::1", "2001:db8::ff00:42:8329"],
     ["12345::", "1::2::3", "::table", "10.0.0.1", "::1%eth0"]),
    ("format", {"format": "uuid"}, ["0f8fad5b-d9cb-469f-a165-70867728950e", "0F8FAD5B-D9CB-469F-A165-70867728950E"],
     ["0f8fad5b-d9cb-469f-a165-70867728950", "0f8fad5bd9cb469fa16570867728950e", "x"]),
    ("format", {"format": "uri"}, ["https://headrace.test/a?b#c", "urn:isbn:1"], ["//headrace.test", "a b", "\\\\x", "abc"]),
    ("format", {"format": "uri-reference"}, ["/a/b", "#part", "//x/y"], ["\\\\x", "#a\\b"]),
    ("format", {"format": "uri-template"}, ["http://x.test/{id}/{?a,b}"], ["http://x.test/{id"]),
    ("format", {"format": "iri"}, ["https://bücher.test/ä?ö=ü#ß"], ["/abc", "größe"]),
    ("format", {"format": "json-pointer"}, ["", "/a/b~0~1", "/"], ["a", "/a~", "/~2", "#/a"]),
    ("format", {"format": "relative-json-pointer"}, ["1", "0/a/b", "2#"], ["/a", "-1/a", "01/a"]),
    ("format", {"format": "regex"}, ["^a(?<n>b)$", "\\d"], ["(a", "[b", "\\q"]),
    ("format", {"format": "idn-hostname"}, ["bücher.test", "a.test"], ["\u302ea.test", "a..b"]),
    ("format", {"format": "no-such-format"}, ["anything", 1], []),
]  # fmt: skip
CASES = [
    pytest.param(schema, value, expected, id=f"{number}-{keyword}-{expected}-{place}")
    for number, (keyword, schema, accepts, refuses) in enumerate(TABLE)
    for expected, values in ((True, accepts), (False, refuses))
    for place, value in enumerate(values)
]


def fits(schema, value) -> bool:
    """Whether a tool whose one argument has this schema takes the value."""
    # With an identifier of its own the schema is a document of its own, and `#` in it is its root.
    own = schema if isinstance(schema, bool) or "$id" in schema else {"$id": "urn:test:case", **schema}
    definition = {"name": "f", "parameters": {"properties": {"v": own}, "required": ["v"]}}
    check = ToolSet.from_definitions([definition], "here").check(ToolCall("f", {"v": value}))
    return not check.reason


@pytest.mark.parametrize(("schema", "value", "expected"), CASES)
def test_a_value_is_judged_as_the_specification_has_it(schema, value, expected):
    assert fits(schema, value) is expected


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ({"type": "strin"}, "not a JSON Schema"),
        ({"minimum": "1"}, "not a JSON Schema"),
        ({"maxLength": -1}, "not a JSON Schema"),
        ({"required": "a"}, "not a JSON Schema"),
        ({"required": ["a", "a"]}, "not a JSON Schema"),
        ({"allOf": []}, "not a JSON Schema"),
        ({"items": [{"type": "string"}]}, "not a JSON Schema"),
        ({"pattern": "a{2,1}"}, "not a JSON Schema"),
        ({"pattern": "\\p{Script=Greek}"}, "not a JSON Schema"),
        ({"pattern": "\\p{Greek}"}, "not a JSON Schema"),
        ({"pattern": "[a"}, "not a JSON Schema"),
        ({"patternProperties": {"(": {}}}, "not a JSON Schema"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"properties": {"a": {"$id": "urn:test:b", "$ref": "#/$defs/none"}}}, "leads nowhere"),
        ({"items": {"$dynamicRef": "#none"}}, "leads nowhere"),
        ({"$ref": "https://headrace.test/schema"}, "leads nowhere"),
        ({"$ref": "#"}, "leads back to itself"),
        ({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}}, "leads back to itself"),
        ({"$defs": {"a": {"if": {"not": {"$ref": "#/$defs/a"}}}}}, "leads back to itself"),
    ],
)
def test_what_is_no_schema_is_refused_when_it_is_read(schema, complaint):
    with pytest.raises(UserError, match=complaint):
        fits(schema, 1)


# Formats as mere annotations and other drafts' words; and some formats whose finer points the libraries do not know.
NOT_HERE = {
    *("format.json", "optional/dependencies-compatibility.json", "optional/format-assertion.json"),
    *("optional/cross-draft.json", "optional/no-schema.json"),
    *(f"optional/format/{name}.json" for name in ("ecmascript-regex", "idn-email", "idn-hostname")),
    *(f"optional/format/{name}.json" for name in ("iri", "uri", "uri-reference", "uri-template")),
}


def official_files():
    return [path for path in sorted(JSON_SCHEMA.rglob("*.json")) if str(path.relative_to(JSON_SCHEMA)) not in NOT_HERE]


@pytest.mark.skipif(not JSON_SCHEMA.exists(), reason=MISSING)
def test_the_official_suite_is_there():
    assert len(official_files()) >= 60


@pytest.mark.skipif(not JSON_SCHEMA.exists(), reason=MISSING)
@pytest.mark.parametrize("path", official_files(), ids=lambda path: path.stem)
def test_the_official_suite(path):
    wrong = [
        f"{group['description']}: {case['description']}"
        for group in json.loads(path.read_text())
        if "localhost" not in json.dumps(group["schema"])
        for case in group["tests"]
        if fits(group["schema"], case["data"]) is not case["valid"]
    ]
    assert wrong == []
