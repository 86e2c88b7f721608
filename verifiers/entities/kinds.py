"""What a type of entity is, and which types there are: the built-in ones and those that installed packages offer.

A package adds one in its pyproject.toml:

    [project.entry-points."headrace.entity_types"]
    license_plate = "my_package.entities:LicensePlate"
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, tzinfo
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

import msgspec

from headrace.verifiers.errors import UserError

ENTRY_POINT_GROUP = "headrace.entity_types"


class NotUnderstood(Exception):
    """A text that is no value of the type, or more than one. `reason`: `not_understood`, `ambiguous`, `contradiction`."""

    def __init__(self, reason: str = "not_understood") -> None:
        super().__init__(reason)
        self.reason = reason


class Context(msgspec.Struct, frozen=True):
    """What a text is read under. `reference` is "now" where the text was said, without an offset."""

    language: str
    region: str  # ISO 3166, upper case
    reference: datetime | None = None
    zone: tzinfo | None = None


@runtime_checkable
class EntityType(Protocol):
    """One type of entity. Subclass it and write `canonical`.

    >>> class Plate(EntityType):
    ...     def canonical(self, text, context):
    ...         return text.replace(" ", "").upper()
    >>> Plate().same("b ab 12", "B AB12", Context("de", "DE"))
    True
    """

    def canonical(self, text: str, context: Context) -> str:
        """The one spelling of what `text` means, all of it. Raises NotUnderstood where it does not mean one thing."""
        raise NotUnderstood

    def same(self, found: str, gold: str, context: Context) -> bool:
        """Whether two texts mean the same. Raises NotUnderstood, as `canonical` does."""
        return self.canonical(found, context) == self.canonical(gold, context)

    def warm_up(self, context: Context) -> None:
        """Read every file that `canonical` will want under `context`: it runs where none can be opened."""


def load_types(built_in: Mapping[str, EntityType]) -> dict[str, EntityType]:
    """All types by name. Raises UserError for an entry point that cannot be loaded or is no EntityType."""
    types = dict(built_in)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            loaded = entry.load()
        except (ImportError, AttributeError) as error:
            raise UserError(f"entity type `{entry.name}` ({entry.value}) cannot be loaded: {error}") from error
        if not (isinstance(loaded, type) and issubclass(loaded, EntityType)):
            raise UserError(f"entity type `{entry.name}` ({entry.value}) is no subclass of EntityType")
        types[entry.name] = loaded()
    return types
