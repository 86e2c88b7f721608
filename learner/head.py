"""The language-model head, a chunk of positions at a time: log-probabilities without the [tokens, vocabulary] matrix.

A loss that is a sum over tokens has a slope at each token that is known as soon as the token's log-probability is. So the
backward pass of a chunk's logits is done while they are still there: nothing of the vocabulary's size outlives its chunk,
and nothing is computed twice. (The idea is that of Liger Kernel's fused linear cross-entropy, arXiv 2410.10989, here for
any loss of the target's log-probability.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headrace.learner.matmul import product

TokenLoss = Callable[[Tensor, Tensor, slice], Tensor]
"""Called as `loss(logprobs, entropies, rows)` for the chunk `rows`, [chunk] both: their summed loss, a function of
`logprobs` alone (the entropies carry no gradient)."""


@dataclass(frozen=True)
class HeadWeights:
    """The head's projection."""

    weight: Float[Tensor, "vocabulary hidden"]
    bias: Float[Tensor, " vocabulary"] | None


@torch.no_grad()
def token_logprobs(
    hidden: Float[Tensor, "responses hidden"],
    head: HeadWeights,
    targets: Int[Tensor, " responses"],
    temperatures: Float[Tensor, " responses"],
    chunk: int,
) -> tuple[Float[Tensor, " responses"], Float[Tensor, " responses"]]:
    """Log-probabilities of the targets after temperature, and the entropies in nats, float32; without a gradient."""
    scaled, inverse = _scale(hidden, temperatures)
    logprobs, entropies = torch.empty_like(temperatures), torch.empty_like(temperatures)
    for rows in _chunks(len(targets), chunk):
        logits = _logits(scaled[rows], head.weight, head.bias, inverse[rows])
        logprobs[rows], entropies[rows], _, _ = _softmax(logits, targets[rows])
    return logprobs, entropies


def token_loss(
    hidden: Float[Tensor, "responses hidden"],
    head: HeadWeights,
    targets: Int[Tensor, " responses"],
    temperatures: Float[Tensor, " responses"],
    chunk: int,
    loss: TokenLoss,
) -> Float[Tensor, ""]:
    """The sum of `loss` over all targets, differentiable in `hidden` and the head's weights, once."""
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
        scaled, inverse = _scale(hidden, temperatures)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight: Tensor | None = None
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for rows in _chunks(len(targets), chunk):
            logits = _logits(scaled[rows], weight, bias, inverse[rows])
            logprobs, entropies, weights, totals = _softmax(logits, targets[rows])
            with torch.enable_grad():
                leaf = logprobs.requires_grad_()
                value = loss(leaf, entropies, rows)
                (slope,) = torch.autograd.grad(value, leaf)
            total += value.detach()
            # d logprob / d logits = onehot - p, and p = weights / totals
            grad_logits = weights.mul_((-slope / totals)[:, None])
            grad_logits.scatter_add_(1, targets[rows][:, None], slope[:, None])
            if grad_bias is not None:
                grad_bias += inverse[rows] @ grad_logits
            grad_logits = grad_logits.to(weight.dtype)
            grad_hidden[rows] = product(grad_logits, weight.T) * inverse[rows, None].to(weight.dtype)
            part = product(grad_logits.T, scaled[rows].T)
            # Sums over chunks stay in float32 when the computation is in bfloat16.
            grad_weight = part.float() if grad_weight is None else grad_weight.add_(part)
        ctx.gradients = (grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        # Scaled in place: a second backward would find them gone, which is louder than scaled twice.
        grad_hidden, grad_weight, grad_bias = ctx.gradients
        del ctx.gradients
        if grad_bias is not None:
            grad_bias = (grad_bias * upstream).to(ctx.weight_dtype)
        return (
            grad_hidden.mul_(upstream),
            grad_weight.mul_(upstream).to(ctx.weight_dtype),
            grad_bias,
            None,
            None,
            None,
            None,
        )


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def _scale(hidden: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states over temperature, which spares dividing the logits, and the temperatures' inverses."""
    inverse = temperatures.reciprocal()
    return hidden * inverse[:, None].to(hidden.dtype), inverse


def _logits(scaled: Tensor, weight: Tensor, bias: Tensor | None, inverse: Tensor) -> Tensor:
    """float32 logits over temperature, [chunk, vocabulary]."""
    logits = product(scaled, weight).float()
    return logits if bias is None else logits.addr_(inverse, bias.float())


def _softmax(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The targets' log-probabilities, the entropies, and the probabilities as weights and their totals.

    The logits' memory is used up; probabilities are not divided out, for that would be one more pass.
    """
    logits -= logits.amax(-1, keepdim=True)
    target_logits = logits.gather(1, targets[:, None])[:, 0]
    weights = logits.exp()
    totals = weights.sum(-1)
    log_totals = totals.log()
    # A batched product sums weight * logit without writing the product out.
    expected = torch.bmm(weights[:, None], logits[:, :, None])[:, 0, 0] / totals
    return target_logits - log_totals, log_totals - expected, weights, totals
