"""From float32 weights to a serving dtype of 16 bits without losing what was learned.

A base model's weights lie exactly on the grid of its own dtype, bfloat16 as a rule. A step at the learning rates of
reinforcement learning moves a weight by less than half a grid step, so rounding to the nearest undoes it:
benchmarks/rounding.py shows how much of what a few steps have taught is left in the served model, either way. float16's
grid is eight times as fine, and still coarser than such a step at most weights.

Dithered rounding adds a fixed fraction of a grid step, another one for each weight, and truncates. In expectation over the
weights nothing is lost; a weight on the grid stays where it is; and since the dither is fixed, a weight that does not move
keeps its rounded value from version to version.

A learner that computes in 16 bits rounds too, to the nearest, in each forward pass. So its float32 weights are moved off the
grid once, when they are loaded, by the same dither (`moved_off_grid`): what is nearest is then what dithered rounding gives,
in the learner's own computation and in what it sends.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

LOW_BITS = {torch.bfloat16: 16, torch.float16: 13}  # of float32's fraction, that the dtype drops


def to_serving_dtype(name: str, tensor: Tensor, dtype: torch.dtype, *, dithered: bool) -> Tensor:
    """The tensor in `dtype`; dithered where that is asked for and drops bits of float32, to the nearest otherwise.

    Args:
        name: of the weight; it seeds the dither.
        tensor: any shape; left as it is.
    """
    if not tensor.is_floating_point():
        return tensor
    if dithered and tensor.dtype == torch.float32 and dtype in LOW_BITS:
        return round_with_dither(tensor, dtype, zlib.crc32(name.encode()))
    return tensor.to(dtype)


def round_with_dither(tensor: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """Round float32 of any shape to a dtype of 16 bits with a fixed dither. Exact values stay exact, and numbers within the
    dtype's range numbers; infinities and nan stay what they are.

    The dither of element i is the upper bits of a multiplicative hash of i + seed: cheap, and uniform over neighbours.
    """
    if not tensor.numel():
        return tensor.to(dtype)
    values, low_bits = tensor.contiguous(), LOW_BITS[dtype]
    # Below its smallest normal number float16's grid is even. Lifted by that number, values lie in the octave whose grid
    # is the same one. bfloat16's subnormals are float32's, cut off.
    lift = lift_of_subnormals(values, torch.finfo(dtype).tiny) if dtype == torch.float16 else None
    bits = (values if lift is None else values + lift).view(torch.int32)
    dither = _dither(tensor, seed, low_bits)
    kept = -(1 << low_bits)  # mask of the bits that stay
    rounded = dither.add_(bits).bitwise_and_(kept).view(torch.float32)
    largest = torch.finfo(dtype).max
    if not bool(values.abs().amax() < largest):
        # At the very end of the range the dither would make an infinity of a number: truncate there.
        truncated = torch.where(torch.isfinite(values), bits.bitwise_and(kept).view(torch.float32), values)
        rounded = torch.where(values.abs() < largest, rounded, truncated)
    if lift is not None:
        rounded = rounded.sub_(lift).copysign_(values)  # for the sign of a zero
    return rounded.to(dtype)


def moved_off_grid(name: str, tensor: Tensor) -> Tensor:
    """Float32 weights of any shape, each moved by less than half a grid step of bfloat16, so that the nearest bfloat16 is
    the dithered one. Zeros, infinities, nan and what is beyond bfloat16's range stay what they are.

    Args:
        name: of the weight; it seeds the dither.
    """
    values, low_bits = tensor.contiguous(), LOW_BITS[torch.bfloat16]
    half = 1 << (low_bits - 1)
    bits = values.view(torch.int32)
    # In the middle between two neighbours the nearest would be the even one: 1 at the least keeps clear of it.
    dither = _dither(tensor, zlib.crc32(name.encode()), low_bits).clamp_(min=1).sub_(half)
    moved = dither.add_(bits).view(torch.float32)
    tiny = torch.tensor(half, dtype=torch.int32).view(torch.float32).item()  # below it there is nothing to take away
    sizes = values.abs()
    return torch.where((sizes > tiny) & (sizes <= torch.finfo(torch.bfloat16).max), moved, values)


def dithers_what_is_sent(dithered: bool, compute_dtype: str, serving_dtype: str) -> bool:
    """Whether weights are dithered on their way out: not where they were when they were loaded."""
    return dithered and compute_dtype != serving_dtype


def _dither(tensor: Tensor, seed: int, low_bits: int) -> Tensor:
    """Fixed integers of `low_bits` bits, one for each element, int32."""
    start = (seed & 0x7FFF_FFFF) - 2**30
    dither = torch.arange(tensor.numel(), dtype=torch.int32, device=tensor.device).view(tensor.shape)
    return dither.add_(start).mul_(-1640531527).bitwise_right_shift_(32 - low_bits).bitwise_and_((1 << low_bits) - 1)


def lift_of_subnormals(values: Tensor, smallest_normal: float) -> Tensor:
    """What brings a value below the smallest normal number into the octave above it, away from zero; 0 for the others."""
    lift = torch.where(values.abs() < smallest_normal, smallest_normal, 0.0)
    return lift.copysign_(values)
