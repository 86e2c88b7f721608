"""Rows and whole states of a database as plain values, and when two of them are the same. Nothing here knows a server."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec

_NEAR_ZERO = 1e-12  # two sums that cancel out differ by about this
_MOST_MATCHED = 300  # rows that one search for a pairing within the tolerance may hold


class Typed(msgspec.Struct, frozen=True):
    """A value of a type that Python has no equal of, in the server's own notation."""

    type: str
    text: str


Value = None | bool | int | float | Decimal | str | bytes | Typed
Row = tuple[Value, ...]


class Rows(msgspec.Struct, frozen=True):
    """What a query returned."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


class State(msgspec.Struct, frozen=True):
    """A whole database: the definition of each of its objects by kind and name, and each table's rows."""

    schema: dict[str, str]
    tables: dict[str, Rows]


class Comparison(msgspec.Struct, frozen=True):
    """When two values are equal."""

    exact_types: bool = False
    tolerance: float = 1e-9  # relative, of numbers that are not both whole


def compare_rows(found: Rows, gold: Rows, *, ordered: bool, names: bool, how: Comparison) -> str:
    """Why `found` is not `gold`: `wrong_columns`, `wrong_rows`, `wrong_order`; empty when it is."""
    if len(found.columns) != len(gold.columns):
        return "wrong_columns"
    if names and [name.lower() for name in found.columns] != [name.lower() for name in gold.columns]:
        return "wrong_columns"
    if ordered:
        same_length = len(found.rows) == len(gold.rows)
        if same_length and all(_same_row(*pair, how) for pair in zip(found.rows, gold.rows, strict=True)):
            return ""
    if not same_multiset(found.rows, gold.rows, how):
        return "wrong_rows"
    return "wrong_order" if ordered else ""


def compare_states(found: State, gold: State, how: Comparison) -> tuple[str, str]:
    """Why `found` is not `gold` (`wrong_schema`, `wrong_rows`, or nothing) and the first object that differs."""
    for name in sorted(found.schema.keys() | gold.schema.keys()):
        if found.schema.get(name) != gold.schema.get(name):
            return "wrong_schema", name
    for name in sorted(found.tables.keys() | gold.tables.keys()):
        one, other = found.tables.get(name), gold.tables.get(name)
        if one is None or other is None:
            return "wrong_schema", name
        if compare_rows(one, other, ordered=False, names=True, how=how):
            return "wrong_rows", name
    return "", ""


def same_multiset(found: Sequence[Row], gold: Sequence[Row], how: Comparison) -> bool:
    """Whether there is a pairing of all rows in which both of each pair are the same."""
    if len(found) != len(gold):
        return False
    counts = Counter(_key(row, how) for row in found)
    counts.subtract(_key(row, how) for row in gold)
    if not any(counts.values()):
        return True
    # What is left can differ in the last digits of a number only.
    groups: dict[Any, tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for row in _take(found, counts, how, sign=1):
        groups[_shape(row, how)][0].append(row)
    for row in _take(gold, counts, how, sign=-1):
        groups[_shape(row, how)][1].append(row)
    return all(_pairable(one, other, how) for one, other in groups.values())


def _take(rows: Sequence[Row], counts: Counter[Any], how: Comparison, sign: int) -> list[Row]:
    left = {key: sign * count for key, count in counts.items() if sign * count > 0}
    taken = []
    for row in rows:
        key = _key(row, how)
        if left.get(key, 0):
            left[key] -= 1
            taken.append(row)
    return taken


def _pairable(found: list[Row], gold: list[Row], how: Comparison) -> bool:
    if len(found) != len(gold):
        return False
    by_numbers = sorted(found, key=_numbers), sorted(gold, key=_numbers)
    if all(_same_row(*pair, how) for pair in zip(*by_numbers, strict=True)):
        return True
    # Rows whose first numbers are nearly equal may have changed places: search for another pairing.
    return len(found) <= _MOST_MATCHED and _matching(found, gold, how)


def _matching(found: list[Row], gold: list[Row], how: Comparison) -> bool:
    """Kuhn's algorithm: a perfect matching of a bipartite graph by augmenting paths."""
    fits = [[place for place, other in enumerate(gold) if _same_row(row, other, how)] for row in found]
    partner: dict[int, int] = {}

    def place(row: int, seen: set[int]) -> bool:
        for candidate in fits[row]:
            if candidate not in seen:
                seen.add(candidate)
                if candidate not in partner or place(partner[candidate], seen):
                    partner[candidate] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(found)))


def _same_row(found: Row, gold: Row, how: Comparison) -> bool:
    return len(found) == len(gold) and all(_same(*pair, how) for pair in zip(found, gold, strict=True))


def _same(found: Value, gold: Value, how: Comparison) -> bool:
    if _value_key(found, how) == _value_key(gold, how):
        return True
    if not (_is_number(found) and _is_number(gold)) or (isinstance(found, int) and isinstance(gold, int)):
        return False
    if how.exact_types and type(found) is not type(gold):
        return False
    one, other = _float(found), _float(gold)
    if not (math.isfinite(one) and math.isfinite(other)):
        return False  # were they the same, their keys would be
    return math.isclose(one, other, rel_tol=how.tolerance, abs_tol=_NEAR_ZERO)


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _key(row: Row, how: Comparison) -> tuple[Any, ...]:
    return tuple(_value_key(value, how) for value in row)


def _value_key(value: Value, how: Comparison) -> Any:
    """Equal for equal values, and never for one of another kind: True is not 1, and 1 is not '1'."""
    if not _is_number(value):
        return type(value).__name__, value
    return ("number", type(value).__name__ if how.exact_types else "", _digits(value))


def _digits(value: Any) -> str:
    """The number in digits, the same for equal ones of any type. Text, since whoever chooses a number chooses its hash."""
    if isinstance(value, int):
        return hex(value)  # no limit on its length, unlike decimal digits
    if value != value or value in (math.inf, -math.inf):
        return repr(float(value))
    if value == (whole := int(value)):
        return hex(whole)
    return format(Decimal(value), "f").rstrip("0")


def _shape(row: Row, how: Comparison) -> tuple[Any, ...]:
    """The row without what the tolerance applies to."""
    return tuple("number" if _is_number(value) else _value_key(value, how) for value in row)


def _numbers(row: Row) -> tuple[float, ...]:
    numbers = (_float(value) for value in row if _is_number(value))
    return tuple(-math.inf if number != number else number for number in numbers)


def _float(value: Any) -> float:
    """The nearest float; infinite for what is beyond all of them."""
    try:
        return float(value)
    except OverflowError:  # of an integer; a Decimal gives infinity by itself
        return math.inf if value > 0 else -math.inf
