"""From float32 weights to a serving dtype without losing what was learned.

A base model's weights lie exactly on bfloat16's grid. A step at the learning rates of reinforcement learning moves a weight
by less than half a grid step, so rounding to the nearest undoes it: benchmarks/rounding.py shows how much of what a few
steps have taught is left in the served model, either way.

Dithered rounding adds a fixed fraction of a grid step, another one for each weight, and truncates. In expectation over the
weights nothing is lost; a weight on the grid stays where it is; and since the dither is fixed, a weight that does not move
keeps its rounded value from version to version.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

LOW_BITS = 16  # of float32 that bfloat16 drops
KEPT = -(1 << LOW_BITS)  # mask of the bits that it keeps


def to_serving_dtype(name: str, tensor: Tensor, dtype: torch.dtype, *, dithered: bool) -> Tensor:
    """The tensor in `dtype`; dithered where that is asked for and drops bits of float32 (bfloat16), nearest otherwise.

    Args:
        name: of the weight; it seeds the dither.
        tensor: any shape; left as it is.
    """
    if not tensor.is_floating_point():
        return tensor
    if dithered and tensor.dtype == torch.float32 and dtype == torch.bfloat16:
        return dithered_bfloat16(tensor, zlib.crc32(name.encode()))
    return tensor.to(dtype)


def dithered_bfloat16(tensor: Tensor, seed: int) -> Tensor:
    """Round float32 of any shape to bfloat16 with a fixed dither; finite values stay finite and exact ones exact.

    The dither of element i is the upper half of a multiplicative hash of i + seed: cheap, and uniform over neighbours.
    """
    bits = tensor.contiguous().view(torch.int32)
    start = (seed & 0x7FFF_FFFF) - 2**30
    dither = torch.arange(tensor.numel(), dtype=torch.int32, device=tensor.device).view(tensor.shape)
    dither.add_(start).mul_(-1640531527).bitwise_right_shift_(LOW_BITS).bitwise_and_(0xFFFF)
    rounded = dither.add_(bits).bitwise_and_(KEPT).view(torch.float32)
    if not bool(torch.isfinite(rounded).all()):
        # At the very end of the range the dither would make an infinity of a number: truncate there.
        rounded = torch.where(torch.isfinite(rounded), rounded, bits.bitwise_and(KEPT).view(torch.float32))
    return rounded.to(torch.bfloat16)
