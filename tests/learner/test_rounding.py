"""Dithered rounding to bfloat16: exact where it can be, unbiased where it cannot, the same every time."""

import math
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.learner.rounding import dithered_bfloat16, to_serving_dtype

finite_bits = st.integers(0, 0x7F7F_FFFF)  # of float32, without the sign
seeds = st.integers(0, 2**32 - 1)


def from_bits(bits: list[int]) -> torch.Tensor:
    signed = [value - 2**32 if value >= 2**31 else value for value in bits]
    return torch.tensor(signed, dtype=torch.int32).view(torch.float32)


@settings(deadline=None)
@given(st.lists(st.integers(0, 0x7F7F), min_size=1, max_size=50), st.booleans(), seeds)
def test_values_on_the_grid_stay_where_they_are(upper_halves, negative, seed):
    values = from_bits([(half << 16) | (0x8000_0000 if negative else 0) for half in upper_halves])
    assert torch.equal(dithered_bfloat16(values, seed).float(), values)


@settings(deadline=None)
@given(st.lists(st.tuples(finite_bits, st.booleans()), min_size=1, max_size=50), seeds)
def test_every_value_goes_to_one_of_its_two_neighbours_and_stays_finite(parts, seed):
    values = from_bits([bits | (0x8000_0000 if negative else 0) for bits, negative in parts])
    rounded = dithered_bfloat16(values, seed)
    assert bool(torch.isfinite(rounded.float()).all())
    upper = values.view(torch.int32).bitwise_and(-(1 << 16))
    steps = (rounded.float().view(torch.int32) - upper) >> 16
    assert set(steps.tolist()) <= {0, 1}


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-4, 0.4), st.sampled_from([0.01, 1.0, -3.0]), seeds)
def test_steps_much_smaller_than_the_grid_are_kept_in_the_mean(share_of_a_grid_step, weight, seed):
    grid_step = 2.0 ** math.floor(math.log2(abs(weight))) * 2**-7  # the distance of neighbours at this weight
    base = torch.full((20_000,), weight).bfloat16().float()
    moved = base + share_of_a_grid_step * grid_step
    true_step = (moved - base).double().mean().item()
    kept = (dithered_bfloat16(moved, seed).double() - base.double()).mean().item()
    # Standard error of a mean of 20,000 coins, five times: the dither is as even as chance, or more.
    assert abs(kept - true_step) <= 5 * grid_step * 0.5 / math.sqrt(20_000)
    assert torch.equal(moved.bfloat16().float(), base), "rounding to the nearest keeps nothing of such a step"


def test_the_same_weight_is_rounded_the_same_way_every_time_and_another_one_otherwise():
    values = torch.randn(64, 33, generator=torch.Generator().manual_seed(0))
    first = to_serving_dtype("model.norm", values, torch.bfloat16, dithered=True)
    again = to_serving_dtype("model.norm", values.clone(), torch.bfloat16, dithered=True)
    other = to_serving_dtype("model.head", values, torch.bfloat16, dithered=True)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == values.shape
    assert first.dtype == torch.bfloat16


def test_a_weight_that_does_not_move_keeps_its_value_while_its_neighbours_do():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    moved = values.clone()
    moved[::2] += 0.01
    seed = zlib.crc32(b"w")
    before, after = dithered_bfloat16(values, seed), dithered_bfloat16(moved, seed)
    assert torch.equal(before[1::2], after[1::2])


def test_infinities_and_nan_stay_what_they_are_and_the_largest_number_stays_a_number():
    largest = torch.finfo(torch.float32).max
    values = torch.tensor([math.inf, -math.inf, math.nan, -math.nan, largest, -largest, 0.0, -0.0])
    for seed in range(50):
        rounded = dithered_bfloat16(values, seed).float()
        assert rounded[:2].tolist() == [math.inf, -math.inf]
        assert bool(torch.isnan(rounded[2:4]).all())
        assert bool(torch.isfinite(rounded[4:]).all())
        assert torch.equal(rounded[6:].view(torch.int32), values[6:].view(torch.int32))


def test_the_input_is_left_as_it_is_even_when_it_is_a_view():
    values = torch.randn(8, 6, generator=torch.Generator().manual_seed(2))
    before = values.clone()
    turned = to_serving_dtype("w", values.T, torch.bfloat16, dithered=True)
    assert torch.equal(values, before)
    assert turned.shape == (6, 8)
    assert torch.equal(turned, to_serving_dtype("w", values.T.contiguous(), torch.bfloat16, dithered=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_serving_dtypes_are_rounded_to_the_nearest(dtype):
    values = torch.randn(100, generator=torch.Generator().manual_seed(3))
    assert torch.equal(to_serving_dtype("w", values, dtype, dithered=True), values.to(dtype))


def test_nearest_is_nearest_and_integers_are_left_alone():
    values = torch.randn(100, generator=torch.Generator().manual_seed(4))
    assert torch.equal(to_serving_dtype("w", values, torch.bfloat16, dithered=False), values.bfloat16())
    counts = torch.arange(5)
    assert to_serving_dtype("w", counts, torch.bfloat16, dithered=True) is counts


def test_an_empty_weight_stays_empty():
    assert to_serving_dtype("w", torch.empty(0, 4), torch.bfloat16, dithered=True).shape == (0, 4)
