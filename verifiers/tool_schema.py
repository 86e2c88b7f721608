"""A tool's JSON Schema (2020-12), read for good: what is wrong with it is found here, and not when a call is checked."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Self

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from jsonschema_specifications import REGISTRY
from referencing import Resource
from referencing.exceptions import NoSuchResource, Unresolvable
from referencing.jsonschema import DRAFT202012

from headrace.verifiers.base import printable
from headrace.verifiers.errors import UserError
from headrace.verifiers.schema_formats import FORMATS
from headrace.verifiers.schema_patterns import to_python

DIALECT = "https://json-schema.org/draft/2020-12/schema"

# Where another schema is for the same value, so that a way back along these alone never ends.
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE = ("not", "if", "then", "else")


def compiled(schema: dict[str, Any], check_formats: bool) -> Draft202012Validator:
    """A validator of a schema that `refuse_invalid` has let pass."""
    made = _with_python_patterns(schema)
    # The registry has to know of documents inside the schema before the library meets them in a dynamic scope.
    root = Resource.from_contents(made, default_specification=DRAFT202012)
    registry = REGISTRY.with_resource(root.id() or "", root).crawl()
    return _Validator(made, registry=registry, format_checker=FORMATS if check_formats else None)


def refuse_invalid(schema: dict[str, Any], place: str) -> None:
    """Raises UserError, with `place` in front, for what is no schema of a tool's arguments."""
    if schema.get("$schema", DIALECT) != DIALECT:
        raise UserError(f"{place}: `$schema` is {schema['$schema']!r}; tools are read as {DIALECT}")
    if schema.get("type", "object") != "object":
        raise UserError(f"{place}: `type` of `parameters` is {schema['type']!r}; arguments are always an `object`")
    try:
        Draft202012Validator.check_schema(schema, format_checker=FORMATS)
        made = _with_python_patterns(schema)
        _refuse_clashing_patterns(made, place)
        _refuse_loops(made)
    except SchemaError as error:
        raise UserError(f"{place}: not a JSON Schema at {error.json_path}: {printable(error.message)}") from error
    except RecursionError as error:
        raise UserError(f"{place}: the schema is nested too deeply, or one `$ref` leads to too many others") from error
    except (Unresolvable, NoSuchResource) as error:
        reference = printable(str(error.ref))
        raise UserError(f"{place}: `$ref` {reference!r} leads nowhere; nothing is fetched from afar") from error
    except _WrongReference as error:
        raise UserError(f"{place}: `$ref` {error}") from error


class _WrongReference(Exception):
    """The message says which one, and where it leads."""


def _refuse_clashing_patterns(schema: dict[str, Any], place: str) -> None:
    """The library asks all of an object's patterns at once, so that each alone being right is not enough."""
    for contents, _ in _walk(schema):
        try:
            re.compile("|".join(contents.get("patternProperties", ())))
        except re.error as error:
            raise UserError(f"{place}: `patternProperties` do not go together: {error}") from error


def _refuse_loops(schema: dict[str, Any]) -> None:
    """Raises _WrongReference, and Unresolvable for a reference that leads nowhere."""
    nodes = {id(contents): (contents, resolver) for contents, resolver in _walk(schema)}
    settled: set[int] = set()

    def visit(contents: Any, resolver: Any, above: frozenset[int], by: str) -> None:
        if not isinstance(contents, dict) or id(contents) in settled:
            return
        if id(contents) in above:
            raise _WrongReference(f"{printable(by)!r} leads back to itself")
        inside = above | {id(contents)}
        for key in ("$ref", "$dynamicRef"):
            if key in contents:
                found = resolver.lookup(contents[key])
                if id(found.contents) not in nodes:
                    _refuse_no_schema(found.contents, contents[key])
                visit(found.contents, found.resolver, inside, contents[key])
        for part in _same_value(contents):
            visit(part, nodes[id(part)][1] if id(part) in nodes else resolver, inside, by)
        settled.add(id(contents))

    for contents, resolver in nodes.values():
        visit(contents, resolver, frozenset(), "")


def _refuse_no_schema(contents: Any, reference: str) -> None:
    """A pointer may lead to where no keyword has a schema. Formats are left out: patterns are Python's by now."""
    try:
        Draft202012Validator.check_schema(contents, format_checker=FormatChecker(()))
    except SchemaError as error:
        told = printable(error.message)
        raise _WrongReference(f"{printable(reference)!r} leads to what is no JSON Schema: {told}") from error


def _same_value(schema: dict[str, Any]) -> Iterator[Any]:
    for key in _IN_PLACE_LISTS:
        yield from schema.get(key, ())
    for key in _IN_PLACE:
        if key in schema:
            yield schema[key]
    yield from schema.get("dependentSchemas", {}).values()


def _walk(schema: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Every schema in `schema`, itself included, with what resolves its references."""
    root = Resource.from_contents(schema, default_specification=DRAFT202012)
    left = [(root, REGISTRY.resolver_with_root(root))]
    while left:
        resource, resolver = left.pop()
        if isinstance(resource.contents, dict):
            yield resource.contents, resolver
        left += [(inner, resolver.in_subresource(inner)) for inner in resource.subresources()]


class _Pattern(str):
    """One of Python's, which messages tell as the schema has it."""

    own: str

    def __new__(cls, own: str) -> Self:
        pattern = super().__new__(cls, to_python(own))
        pattern.own = own
        return pattern

    def __repr__(self) -> str:
        return repr(self.own)


def _with_python_patterns(schema: dict[str, Any]) -> dict[str, Any]:
    """A copy in which every pattern is one of Python's."""
    made = copy.deepcopy(schema)
    for contents, _ in list(_walk(made)):
        if isinstance(contents.get("pattern"), str):
            contents["pattern"] = _Pattern(contents["pattern"])
        if isinstance(contents.get("patternProperties"), dict):
            contents["patternProperties"] = {
                _Pattern(pattern): inner for pattern, inner in contents["patternProperties"].items()
            }
    return made


def _multiple_of(validator: Any, factor: float, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """As they are written: 19.99 is a multiple of 0.01, whatever their doubles are. A fraction is exact at any size, where
    decimals have digits for some."""
    if validator.is_type(instance, "number") and Fraction(repr(instance)) % Fraction(repr(factor)):
        yield ValidationError(f"{instance!r} is not a multiple of {factor}")


_Validator = extend(Draft202012Validator, {"multipleOf": _multiple_of})
