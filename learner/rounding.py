"""From float32 weights to a serving dtype of 16 bits without losing what was learned.

A base model's weights lie exactly on the grid of its own dtype, bfloat16 as a rule. A step at the learning rates of
reinforcement learning moves a weight by less than half a grid step, so rounding to the nearest undoes it:
benchmarks/rounding.py shows how much of what a few steps have taught is left in the served model, either way. float16's
grid is eight times as fine, and still coarser than such a step at most weights.

Dithered rounding adds a fixed fraction of a grid step, another one for each weight, and truncates. In expectation over the
weights nothing is lost; a weight on the grid stays where it is; and since the dither is fixed, a weight that does not move
keeps its rounded value from version to version.
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
    start = (seed & 0x7FFF_FFFF) - 2**30
    dither = torch.arange(tensor.numel(), dtype=torch.int32, device=tensor.device).view(tensor.shape)
    dither.add_(start).mul_(-1640531527).bitwise_right_shift_(32 - low_bits).bitwise_and_((1 << low_bits) - 1)
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


def lift_of_subnormals(values: Tensor, smallest_normal: float) -> Tensor:
    """What brings a value below the smallest normal number into the octave above it, away from zero; 0 for the others."""
    lift = torch.where(values.abs() < smallest_normal, smallest_normal, 0.0)
    return lift.copysign_(values)
