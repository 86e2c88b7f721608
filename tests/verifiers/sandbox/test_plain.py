from __future__ import annotations

import collections
import enum
import fractions
import itertools
import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.verifiers.sandbox import plain

TEXT = st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, categories=None, exclude_categories=()))
HASHABLE = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.integers(-(10**400), 10**400), st.floats(), TEXT, st.binary(),
        st.complex_numbers(),
    ),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
VALUES = st.recursive(
    HASHABLE | st.binary().map(bytearray) | st.builds(range, st.integers(), st.integers(), st.integers(1)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.sets(HASHABLE, max_size=4)
        | st.lists(inner, max_size=4).map(collections.deque)
    ),
    max_leaves=20,
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["0x7", "nan", "zz", "1" * 5000]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.tuples(st.sampled_from(sorted(plain._UNPACKERS)), inner).map(lambda pair: {pair[0]: pair[1]})
    ),
    max_leaves=20,
)


def exactly(value: object) -> object:
    """The value with all its types, so that two compare as equal only if they are the same throughout."""
    kind = type(value).__name__
    if isinstance(value, dict):
        return kind, [(exactly(key), exactly(each)) for key, each in value.items()]
    if isinstance(value, list | tuple | collections.deque):
        return kind, [exactly(each) for each in value]
    if isinstance(value, set | frozenset):
        return kind, sorted((exactly(each) for each in value), key=repr)
    return kind, repr(value) if isinstance(value, float | complex) else value


def identical(left: object, right: object) -> bool:
    return exactly(left) == exactly(right)


@given(VALUES)
def test_plain_values_come_back_as_they_were(value):
    assert identical(plain.loads(plain.dumps(value)), value)


def test_two_halves_of_a_character_stay_two():
    assert plain.loads(plain.dumps("\ud83d\ude00")) == "\ud83d\ude00" != "\U0001f600"


@pytest.mark.parametrize(
    ("value", "same_as"),
    [
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.defaultdict(int, a=1), {"a": 1}),
        ({"a": 1}.keys(), ["a"]),
        ({"a": 1}.values(), [1]),
        ({"a": 1}.items(), [("a", 1)]),
        (collections.namedtuple("P", "x y")(1, 2), (1, 2)),
    ],
)  # fmt: skip
def test_what_equals_a_plain_value_travels_as_that(value, same_as):
    assert identical(plain.loads(plain.dumps(value)), same_as)


@pytest.mark.parametrize("iterator", [iter([1, 2]), (i for i in (1, 2)), map(abs, (1, 2)), itertools.chain([1], [2])])
def test_an_iterator_arrives_as_one(iterator):
    arrived = plain.loads(plain.dumps(iterator))
    assert next(arrived) == 1 and list(arrived) == [2]


class Agreeable:
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return True


class Number(int):
    pass


class Text(str):
    __slots__ = ()


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [
        Agreeable(), Number(7), Text("7"), Colour.RED, object(), len, Agreeable, fractions.Fraction(1, 2), ...,
        NotImplemented, memoryview(b"7"), slice(1),
        type("L", (list,), {})(), type("D", (dict,), {})(), type("S", (set,), {})(),
        type("T", (tuple,), {})(), type("F", (float,), {})(1), itertools.count(), math, iter("text"), open,
    ],
)  # fmt: skip
def test_what_only_looks_plain_does_not_travel(value):
    for holder in (value, [value], (1, [value]), {"a": value}):
        with pytest.raises(plain.NotPlain):
            plain.dumps(holder)


def test_an_endless_generator_is_left():
    with pytest.raises(plain.NotPlain, match="more than 100000 items"):
        plain.dumps(itertools.chain.from_iterable(itertools.repeat([1])))


def test_a_cycle_and_a_deep_nest_are_refused():
    cycle: list[object] = []
    cycle.append(cycle)
    nest: list[object] = []
    for _ in range(101):
        nest = [nest]
    for value in (cycle, nest):
        with pytest.raises(plain.NotPlain, match="nested"):
            plain.dumps(value)


@given(JSON)
@settings(max_examples=300)
def test_any_json_is_a_plain_value_or_refused(packed):
    try:
        value = plain.unpack(packed)
    except plain.NotPlain:
        return
    plain.dumps(value)


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"\xff", b'{"float": 1e999}', b"[" * 100_000, b'{"list":' * 5000 + b"1" + b"}" * 5000, b"1" * 100_000,
     json.dumps({"float": 10**400}).encode(), json.dumps({"complex": [10**400, 0]}).encode()],
)  # fmt: skip
def test_what_is_no_message_is_refused(payload):
    with pytest.raises(plain.NotPlain):
        plain.loads(payload)


@pytest.mark.parametrize("tag", ["set", "frozenset", "dict"])
def test_keys_made_to_collide_are_refused_at_once(tag):
    modulus = 2**61 - 1  # integers apart by this much have one hash
    keys = [number * modulus for number in range(20_000)]
    content = [[key, 0] for key in keys] if tag == "dict" else keys
    payload = json.dumps({tag: content}).encode()
    before = time.thread_time()
    with pytest.raises(plain.NotPlain, match="same hash"):
        plain.loads(payload)
    assert time.thread_time() - before < 1  # a set of them takes tens of seconds
