"""The GRPO loss as a function of one record of per-token tensors.

Follows GRPO (arXiv 2402.03300) with DAPO's two clip bounds and its sum over tokens (arXiv 2503.14476), and a truncated
importance weight between the engine that sampled and the learner that trains. docs/algorithms.md has the mathematics.

One optimizer step is taken per batch. With the learner's own as the old policy, that is the policy that the gradient is
taken at: the ratio is exactly 1, its gradient that of the log-probability, and no token is ever clipped. What the batch's
age and the engine's other arithmetic do is in the importance weight then, and only there. With the generator's as the old
policy it is the other way round: the weight is 1, and the ratio is clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LossInputs:
    """Per-token tensors of trained tokens, float32; the log-probabilities are those of the sampling distribution."""

    new_logprobs: Float[Tensor, " tokens"]  # under the weights in training; the one that has a gradient
    old_logprobs: Float[Tensor, " tokens"]  # as the generator drew the token
    advantages: Float[Tensor, " tokens"]  # the sample's, at each of its tokens
    entropies: Float[Tensor, " tokens"]  # of the learner's distribution, for the metrics only
    reference_logprobs: Float[Tensor, " tokens"] | None = None  # needed when kl_coef > 0


@dataclass(frozen=True)
class LossOptions:
    """The loss and its constants, named as in the job file's `[algorithm]`, with its defaults: a field that both have is
    carried from there by its name."""

    name: str = "grpo"  # of `LOSSES`
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    tis_cap: float = 2.0
    old_policy: Literal["learner", "generator"] = "learner"


@dataclass(frozen=True)
class LossSums:
    """Sums over tokens; divide by `tokens` for the mean. Scalars (0-d tensors or floats) throughout."""

    tokens: Tensor
    loss: Tensor
    kl: Tensor  # k3 estimate of KL(policy || reference), nats
    mismatch_kl: Tensor  # k3 estimate of KL(generator || learner), nats
    clipped: Tensor  # tokens whose ratio was cut, so that they have no gradient
    tis_truncated: Tensor  # tokens whose importance weight was capped
    weights: Tensor  # importance weights as applied
    weights_squared: Tensor
    entropy: Tensor  # nats

    @classmethod
    def zero(cls, device: torch.device | str = "cpu") -> LossSums:
        return cls(*(torch.zeros((), dtype=torch.float64, device=device) for _ in fields(cls)))

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(*(mine + theirs for mine, theirs in zip(self.scalars(), other.scalars(), strict=True)))

    def scalars(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    def as_vector(self) -> Float[Tensor, " sums"]:
        return torch.stack(self.scalars())

    @classmethod
    def from_vector(cls, vector: Float[Tensor, " sums"]) -> LossSums:
        return cls(*vector.unbind())


def k3(log_ratio: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """Schulman's low-variance estimate of KL(p || q) at a token drawn from p, from `log q - log p`; nats, never below 0."""
    return torch.expm1(log_ratio) - log_ratio


def grpo_loss(inputs: LossInputs, options: LossOptions) -> tuple[Float[Tensor, ""], LossSums]:
    """The loss summed over tokens, to be divided by the token count of the whole batch, and the sums for the metrics.

    Raises:
        ValueError: `kl_coef` is above 0 and there are no reference log-probabilities.
    """
    new = inputs.new_logprobs
    here = new.detach()
    old = here if options.old_policy == "learner" else inputs.old_logprobs

    raw_weights = torch.exp(old - inputs.old_logprobs)
    cap = options.tis_cap if options.old_policy == "learner" else float("inf")
    weights = raw_weights.clamp(max=cap)

    ratio = torch.exp(new - old)
    unclipped = ratio * inputs.advantages
    clipped = ratio.clamp(1 - options.clip_low, 1 + options.clip_high) * inputs.advantages
    loss = -(weights * torch.minimum(unclipped, clipped))

    kl = torch.zeros_like(here)
    if options.kl_coef > 0:
        if inputs.reference_logprobs is None:
            raise ValueError("kl_coef is above 0: the loss needs reference_logprobs")
        kl = k3(inputs.reference_logprobs - new)
        loss = loss + options.kl_coef * kl
    total = loss.sum()

    sums = LossSums(
        tokens=torch.tensor(float(new.numel()), dtype=torch.float64, device=new.device),
        loss=total.detach().double(),
        kl=_sum(kl),
        mismatch_kl=_sum(k3(here - inputs.old_logprobs)),
        clipped=_sum(clipped < unclipped),
        tis_truncated=_sum(raw_weights > cap),
        weights=_sum(weights),
        weights_squared=_sum(weights.square()),
        entropy=_sum(inputs.entropies),
    )
    return total, sums


def _sum(values: Tensor) -> Tensor:
    return values.detach().double().sum()


Loss = Callable[[LossInputs, LossOptions], tuple[Tensor, LossSums]]

LOSSES: dict[str, Loss] = {"grpo": grpo_loss}
"""By `algorithm.name`; a test holds the names to those that the job file may give."""
