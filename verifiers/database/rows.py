"""Rows and whole states of a database as plain values, and when two of them are the same. Nothing here knows a server."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from decimal import Decimal
from functools import partial
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
    ours, golds = ([_comparable(row, how) for row in rows] for rows in (found.rows, gold.rows))
    if ordered and len(ours) == len(golds) and all(map(partial(_same_row, how=how), ours, golds)):
        return ""
    if not _same_multiset(ours, golds, how):
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
    return _same_multiset([_comparable(row, how) for row in found], [_comparable(row, how) for row in gold], how)


class _Comparable(msgspec.Struct, frozen=True):
    """A value, ready to be compared with many: to write a number out takes longer than to compare it."""

    key: tuple[str, ...] | tuple[str, Value]  # equal for equal values, and never for one of another kind
    number: float | None = None  # the nearest, where it is a number
    whole: bool = False  # an integer by its type: the tolerance is not for it, unless the other is none


_Compared = tuple[_Comparable, ...]


def _comparable(row: Row, how: Comparison) -> _Compared:
    return tuple(_value(value, how) for value in row)


def _value(value: Value, how: Comparison) -> _Comparable:
    """True is not 1, and 1 is not '1'."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return _Comparable((type(value).__name__, value))
    kind = type(value).__name__ if how.exact_types else ""
    return _Comparable(("number", kind, _digits(value)), _float(value), isinstance(value, int))


def _digits(value: int | float | Decimal) -> str:
    """The number in digits, the same for equal ones of any type. Text, since whoever chooses a number chooses its hash."""
    number = Decimal(value)
    if not number.is_finite():
        return repr(float(number))
    text = format(number, "f")  # takes as long as it is; PostgreSQL's have up to 131,072 digits before the point
    return (text.rstrip("0").rstrip(".") if "." in text else text) if number else "0"


def _float(value: int | float | Decimal) -> float:
    """The nearest float; infinite for what is beyond all of them."""
    try:
        return float(value)
    except OverflowError:  # of an integer; a Decimal gives infinity by itself
        return math.inf if value > 0 else -math.inf


def _same_multiset(found: Sequence[_Compared], gold: Sequence[_Compared], how: Comparison) -> bool:
    if len(found) != len(gold):
        return False
    counts = Counter(map(_key, found))
    counts.subtract(map(_key, gold))
    if not any(counts.values()):
        return True
    # What is left can differ in the last digits of a number only.
    groups: dict[Any, tuple[list[_Compared], list[_Compared]]] = defaultdict(lambda: ([], []))
    for row in _take(found, counts, sign=1):
        groups[_shape(row)][0].append(row)
    for row in _take(gold, counts, sign=-1):
        groups[_shape(row)][1].append(row)
    return all(_pairable(one, other, how) for one, other in groups.values())


def _take(rows: Sequence[_Compared], counts: Counter[Any], sign: int) -> list[_Compared]:
    left = {key: sign * count for key, count in counts.items() if sign * count > 0}
    taken = []
    for row in rows:
        key = _key(row)
        if left.get(key, 0):
            left[key] -= 1
            taken.append(row)
    return taken


def _pairable(found: list[_Compared], gold: list[_Compared], how: Comparison) -> bool:
    if len(found) != len(gold):
        return False
    by_numbers = sorted(found, key=_numbers), sorted(gold, key=_numbers)
    if all(map(partial(_same_row, how=how), *by_numbers)):
        return True
    # Rows whose first numbers are nearly equal may have changed places: search for another pairing.
    return len(found) <= _MOST_MATCHED and _matching(found, gold, how)


def _matching(found: list[_Compared], gold: list[_Compared], how: Comparison) -> bool:
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


def _same_row(found: _Compared, gold: _Compared, how: Comparison) -> bool:
    return len(found) == len(gold) and all(_same(*pair, how) for pair in zip(found, gold, strict=True))


def _same(found: _Comparable, gold: _Comparable, how: Comparison) -> bool:
    if found.key == gold.key:
        return True
    if found.number is None or gold.number is None or (found.whole and gold.whole):
        return False
    if how.exact_types and found.key[1] != gold.key[1]:
        return False
    if not (math.isfinite(found.number) and math.isfinite(gold.number)):
        return False  # were they the same, their keys would be
    return math.isclose(found.number, gold.number, rel_tol=how.tolerance, abs_tol=_NEAR_ZERO)


def _key(row: _Compared) -> tuple[Any, ...]:
    return tuple(value.key for value in row)


def _shape(row: _Compared) -> tuple[Any, ...]:
    """The row without what the tolerance applies to."""
    return tuple("number" if value.number is not None else value.key for value in row)


def _numbers(row: _Compared) -> tuple[float, ...]:
    numbers = (value.number for value in row if value.number is not None)
    return tuple(-math.inf if number != number else number for number in numbers)
