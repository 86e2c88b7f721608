"""Float32 matrix products on CPUs through oneDNN.

PyTorch gives float32 products to MKL, which does not use AVX-512 on processors of other makers than its own. oneDNN does.
PyTorch reaches oneDNN by itself in bfloat16 only, and has the operator for float32 without a gradient; this adds one.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def served(left: Tensor) -> bool:
    """Whether products of this tensor go through oneDNN: float32, on a CPU, and PyTorch was built with it."""
    return left.device.type == "cpu" and left.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def product(
    left: Float[Tensor, "rows inner"],
    right: Float[Tensor, "columns inner"],
    bias: Float[Tensor, " columns"] | None = None,
) -> Float[Tensor, "rows columns"]:
    """`left @ right.T + bias`, without a gradient; transposed views are read in place."""
    if served(left):
        return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return nn.functional.linear(left, right, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(inputs, weight)
        return product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(upstream, weight.T) if needs_inputs else None,
            product(upstream.T, inputs.T) if needs_weight else None,
            upstream.sum(0) if needs_bias else None,
        )


class OneDnnLinear(nn.Linear):
    """`nn.Linear` by oneDNN in float32 on a CPU, and as ever otherwise."""

    def forward(self, input: Tensor) -> Tensor:
        if not served(input):
            return super().forward(input)
        rows = input.reshape(-1, self.in_features)
        return _Linear.apply(rows, self.weight, self.bias).view(*input.shape[:-1], self.out_features)


def use_onednn(model: nn.Module) -> None:
    """Let all of the model's plain linear layers compute by `OneDnnLinear`."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
