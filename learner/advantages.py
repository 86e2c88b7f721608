"""Group-relative advantages: how much better a sample is than its siblings (GRPO, arXiv 2402.03300, eq. 4.1.2).

Differs from the paper: a sample without a reward takes no part in the group's statistics, and the division by the
standard deviation, which weighs easy and hard prompts up (Dr. GRPO, arXiv 2503.20783), can be left out.

Where the learner is what a run waits for, a group may be generated larger than it is trained on (`most_varied`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

STD_FLOOR = 1e-6  # added to the standard deviation


def group_advantages(rewards: Float[Tensor, " samples"], normalize: bool) -> Float[Tensor, " samples"]:
    """Advantages of one group's samples, float32, 0 where there is none.

    Args:
        rewards: in [0, 1]; nan for a sample that has none (its check did not run, or it was given up).
        normalize: divide by the group's standard deviation (that of a sample: `n - 1`).

    A group with fewer than two rewards has no baseline, and a group whose rewards agree nothing to tell: all zero.
    """
    rewards = rewards.float()
    scored = ~rewards.isnan()
    if int(scored.sum()) < 2:
        return torch.zeros_like(rewards)
    known = rewards[scored]
    # Exactly equal rewards must give exactly zero: their mean may round to something else.
    if bool((known == known[0]).all()):
        return torch.zeros_like(rewards)
    centred = known - known.mean()
    if normalize:
        centred = centred / (known.std() + STD_FLOOR)
    return torch.zeros_like(rewards).masked_scatter(scored, centred)


def most_varied(rewards: Float[Tensor, " samples"], count: int) -> list[int]:
    """Places, ascending, of the `count` samples whose rewards have the largest variance (PODS, arXiv 2504.13818, section 3).

    Such a choice is always the k highest and the `count - k` lowest for some k; of equally good ones it is that with most of
    the highest. All places where there are no more than `count`.

    Args:
        rewards: without nan.

    >>> most_varied(torch.tensor([0.0, 1.0, 0.5, 0.5, 0.0]), 3)
    [0, 1, 4]
    """
    if len(rewards) <= count:
        return list(range(len(rewards)))
    descending = rewards.double().argsort(descending=True, stable=True).tolist()
    choices = [descending[:high] + descending[len(descending) - (count - high) :] for high in range(count, -1, -1)]
    return sorted(max(choices, key=lambda choice: float(rewards[choice].double().var(correction=0))))
