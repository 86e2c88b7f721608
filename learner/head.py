"""The language-model head, a chunk of positions at a time: log-probabilities without the [tokens, vocabulary] matrix.

A loss that is a sum over tokens has a slope at each token that is known as soon as the token's log-probability is. So the
backward pass of a chunk's logits is done while they are still there: nothing of the vocabulary's size outlives its chunk,
and nothing is computed twice. (The idea is that of Liger Kernel's fused linear cross-entropy, arXiv 2410.10989, here for
any loss of the target's log-probability.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

TokenLoss = Callable[[Tensor, Tensor, slice], Tensor]
"""Called as `loss(logprobs, entropies, rows)` for the chunk `rows`, [chunk] both: their summed loss, a function of
`logprobs` alone (the entropies carry no gradient)."""


class HeadWeights:
    """The head's projection: `weight` [vocabulary, hidden], `bias` [vocabulary] or None."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias


@torch.no_grad()
def token_logprobs(
    hidden: Float[Tensor, "responses hidden"],
    head: HeadWeights,
    targets: Int[Tensor, " responses"],
    temperatures: Float[Tensor, " responses"],
    chunk: int,
) -> tuple[Float[Tensor, " responses"], Float[Tensor, " responses"]]:
    """Log-probabilities of the targets after temperature, and the entropies in nats, float32; without a gradient."""
    parts = []
    for rows in _chunks(len(targets), chunk):
        logits = _scaled_logits(hidden[rows], head.weight, head.bias, temperatures[rows])
        logprobs, entropies, _ = _softmax_(logits, targets[rows])
        parts.append((logprobs, entropies))
    if not parts:
        return temperatures.new_zeros(0), temperatures.new_zeros(0)
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def token_loss(
    hidden: Float[Tensor, "responses hidden"],
    head: HeadWeights,
    targets: Int[Tensor, " responses"],
    temperatures: Float[Tensor, " responses"],
    chunk: int,
    loss: TokenLoss,
) -> Float[Tensor, ""]:
    """The sum of `loss` over all targets, differentiable in `hidden` and the head's weights."""
    return _ChunkedLoss.apply(hidden, head.weight, head.bias, targets, temperatures, chunk, loss)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperatures: Tensor,
        chunk: int,
        loss: TokenLoss,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        # Sums over chunks stay in float32 when the computation is in bfloat16.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for rows in _chunks(len(targets), chunk):
            logits = _scaled_logits(hidden[rows], weight, bias, temperatures[rows])
            logprobs, entropies, probabilities = _softmax_(logits, targets[rows])
            with torch.enable_grad():
                leaf = logprobs.requires_grad_()
                value = loss(leaf, entropies, rows)
                (slope,) = torch.autograd.grad(value, leaf)
            total += value.detach()
            # d logprob / d logits = (onehot - p) / temperature
            slope = slope / temperatures[rows]
            grad_logits = probabilities.mul_(-slope[:, None])
            grad_logits.scatter_add_(1, targets[rows][:, None], slope[:, None])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(weight.dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[rows])
            if weight.dtype == torch.float32:
                grad_weight.addmm_(grad_logits.T, hidden[rows])
            else:
                grad_weight += grad_logits.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        scaled_bias = None if grad_bias is None else (grad_bias * upstream).to(ctx.weight_dtype)
        return (
            grad_hidden * upstream.to(grad_hidden.dtype),
            (grad_weight * upstream).to(ctx.weight_dtype),
            scaled_bias,
            None,
            None,
            None,
            None,
        )


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def _scaled_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperatures: Tensor) -> Tensor:
    """float32 logits over temperature, [chunk, vocabulary]."""
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    return logits.div_(temperatures[:, None])


def _softmax_(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The targets' log-probabilities, the entropies and the probabilities; the logits' memory is used up."""
    logits -= logits.amax(-1, keepdim=True)
    target_logits = logits.gather(1, targets[:, None])[:, 0]
    weights = logits.exp()
    totals = weights.sum(-1)
    log_totals = totals.log()
    # A batched product sums weight * logit without writing the product out.
    expected = torch.bmm(weights[:, None], logits[:, :, None])[:, 0, 0] / totals
    return target_logits - log_totals, log_totals - expected, weights.div_(totals[:, None])
