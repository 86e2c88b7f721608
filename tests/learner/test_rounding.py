"""Dithered rounding to 16 bits: exact where it can be, unbiased where it cannot, the same every time."""

import math
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.learner.rounding import moved_off_grid, round_with_dither, to_serving_dtype

finite_bits = st.integers(0, 0x7F7F_FFFF)  # of float32, without the sign
bits_in_float16s_range = st.integers(0, 0x477F_FFFF)  # below 65536; those below 2**-14 are its subnormals
seeds = st.integers(0, 2**32 - 1)
DTYPES = [torch.bfloat16, torch.float16]


def from_bits(bits: list[int]) -> torch.Tensor:
    signed = [value - 2**32 if value >= 2**31 else value for value in bits]
    return torch.tensor(signed, dtype=torch.int32).view(torch.float32)


def neighbours(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each finite value the next of the dtype towards zero, and the next away from it."""
    nearest = values.to(dtype)
    zero, far = torch.zeros_like(nearest), torch.full_like(nearest, math.inf).copysign(nearest)
    inner = torch.where(nearest.float().abs() > values.abs(), nearest.nextafter(zero), nearest)
    exact = inner.float() == values
    return inner, torch.where(exact, inner, inner.nextafter(far))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None)
@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=50), seeds)
def test_values_on_the_grid_stay_where_they_are(dtype, patterns, seed):
    signed = torch.tensor([bits - 2**16 if bits >= 2**15 else bits for bits in patterns], dtype=torch.int16)
    values = signed.view(dtype)
    values = values[values.isfinite()]
    assert torch.equal(round_with_dither(values.float(), dtype, seed).view(torch.int16), values.view(torch.int16))


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, finite_bits), (torch.float16, bits_in_float16s_range)])
@settings(deadline=None)
@given(st.data(), seeds)
def test_every_value_goes_to_one_of_its_two_neighbours_and_stays_finite(dtype, bits, data, seed):
    parts = data.draw(st.lists(st.tuples(bits, st.booleans()), min_size=1, max_size=50))
    values = from_bits([bits | (0x8000_0000 if negative else 0) for bits, negative in parts])
    rounded = round_with_dither(values, dtype, seed)
    assert bool(torch.isfinite(rounded).all())
    inner, outer = neighbours(values, dtype)
    assert bool(((rounded == inner) | (rounded == outer)).all())


@pytest.mark.parametrize(
    ("dtype", "weight", "grid_step"),
    [
        (torch.bfloat16, 0.01, 2.0**-14),
        (torch.bfloat16, -3.0, 2.0**-6),
        (torch.float16, 0.01, 2.0**-17),
        (torch.float16, -3.0, 2.0**-9),
        (torch.float16, 1e-5, 2.0**-24),
    ],
)
@settings(max_examples=20, deadline=None)
@given(st.floats(1e-3, 0.4), seeds)
def test_steps_much_smaller_than_the_grid_are_kept_in_the_mean(dtype, weight, grid_step, share_of_a_grid_step, seed):
    """`grid_step`: the distance of neighbours at this weight."""
    base = torch.full((20_000,), weight).to(dtype).float()
    moved = base + share_of_a_grid_step * grid_step
    true_step = (moved - base).double().mean().item()
    kept = (round_with_dither(moved, dtype, seed).double() - base.double()).mean().item()
    # Standard error of a mean of 20,000 coins, five times: the dither is as even as chance, or more.
    assert abs(kept - true_step) <= 5 * grid_step * 0.5 / math.sqrt(20_000)
    assert torch.equal(moved.to(dtype).float(), base), "rounding to the nearest keeps nothing of such a step"


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
    before, after = round_with_dither(values, torch.bfloat16, seed), round_with_dither(moved, torch.bfloat16, seed)
    assert torch.equal(before[1::2], after[1::2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_nan_stay_what_they_are_and_the_largest_number_stays_a_number(dtype):
    # What a GPU makes of 0/0 has all bits set, so that any addition to them ends among the numbers.
    odd = from_bits([0x7FFF_FFFF, 0xFFFF_FFFF, 0x7F80_0001])
    largest = torch.nextafter(torch.tensor(torch.finfo(dtype).max), torch.tensor(math.inf)).item()
    values = torch.tensor([math.inf, -math.inf, math.nan, -math.nan, largest, -largest, 0.0, -0.0])
    for seed in range(50):
        assert bool(round_with_dither(odd, dtype, seed).isnan().all())
        rounded = round_with_dither(values, dtype, seed)
        assert rounded[:2].tolist() == [math.inf, -math.inf]
        assert bool(torch.isnan(rounded[2:4]).all())
        assert rounded[4:6].tolist() == [torch.finfo(dtype).max, -torch.finfo(dtype).max]
        assert torch.equal(rounded[6:].view(torch.int16), values[6:].to(dtype).view(torch.int16))


def test_a_number_beyond_float16_is_infinite_in_it_as_it_is_without_a_dither():
    values = torch.tensor([1e5, -1e5, 1.0])
    assert round_with_dither(values, torch.float16, 0).tolist() == [math.inf, -math.inf, 1.0]


def test_the_input_is_left_as_it_is_even_when_it_is_a_view():
    values = torch.randn(8, 6, generator=torch.Generator().manual_seed(2))
    before = values.clone()
    turned = to_serving_dtype("w", values.T, torch.bfloat16, dithered=True)
    assert torch.equal(values, before)
    assert turned.shape == (6, 8)
    assert torch.equal(turned, to_serving_dtype("w", values.T.contiguous(), torch.bfloat16, dithered=True))


def test_weights_served_in_float32_are_not_rounded():
    values = torch.randn(100, generator=torch.Generator().manual_seed(3))
    assert torch.equal(to_serving_dtype("w", values, torch.float32, dithered=True), values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_16_bit_dtypes_are_dithered(dtype):
    values = torch.randn(100, generator=torch.Generator().manual_seed(3))
    served = to_serving_dtype("w", values, dtype, dithered=True)
    assert served.dtype == dtype
    assert not torch.equal(served, values.to(dtype))


def test_nearest_is_nearest_and_integers_are_left_alone():
    values = torch.randn(100, generator=torch.Generator().manual_seed(4))
    assert torch.equal(to_serving_dtype("w", values, torch.bfloat16, dithered=False), values.bfloat16())
    counts = torch.arange(5)
    assert to_serving_dtype("w", counts, torch.bfloat16, dithered=True) is counts


def test_an_empty_weight_stays_empty():
    assert to_serving_dtype("w", torch.empty(0, 4), torch.bfloat16, dithered=True).shape == (0, 4)
    assert moved_off_grid("w", torch.empty(0, 4)).shape == (0, 4)


@settings(deadline=None)
@given(st.lists(st.tuples(finite_bits, st.booleans()), min_size=1, max_size=50))
def test_off_the_grid_the_nearest_value_is_the_dithered_one(parts):
    values = from_bits([bits | (0x8000_0000 if negative else 0) for bits, negative in parts])
    values = values[(values.abs() > 1e-40) & (values.abs() <= torch.finfo(torch.bfloat16).max)]
    nearest = moved_off_grid("w", values).to(torch.bfloat16)
    dithered = to_serving_dtype("w", values, torch.bfloat16, dithered=True)
    # One dither in 65,536 has no place in the middle between two neighbours.
    assert int((nearest != dithered).sum()) <= 1


def test_off_the_grid_a_base_models_weights_are_still_its_own():
    values = torch.randn(200, 50, generator=torch.Generator().manual_seed(5)).to(torch.bfloat16).float()
    values[0, :4] = torch.tensor([0.0, -0.0, math.inf, -math.inf])
    moved = moved_off_grid("w", values)
    assert torch.equal(moved.to(torch.bfloat16).float(), values)
    assert torch.equal(moved[0, :4], values[0, :4])
    assert (moved != values).float().mean() > 0.99
