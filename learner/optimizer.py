"""AdamW and the learning rate over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from torch.optim import AdamW

FLOOR = 0.1  # what the linear and the cosine schedule end at, as a share of the learning rate


def scheduled_rate(
    step: int,
    *,
    learning_rate: float,
    schedule: Literal["constant", "linear", "cosine"],
    warmup_steps: int,
    total_steps: int,
) -> float:
    """The learning rate of `step`, counted from 1: a linear warm-up, then the schedule down to a tenth at `total_steps`.

    >>> round(scheduled_rate(3, learning_rate=1.0, schedule="linear", warmup_steps=2, total_steps=4), 2)
    0.55
    """
    if step <= warmup_steps:
        return learning_rate * step / warmup_steps
    if schedule == "constant":
        return learning_rate
    # The first step after the warm-up has the full rate where there was none, and the last step the floor.
    first = max(warmup_steps, 1)
    progress = min(1.0, (step - first) / max(1, total_steps - first))
    if schedule == "linear":
        share = 1.0 - (1.0 - FLOOR) * progress
    else:
        share = FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return learning_rate * share


def build_optimizer(
    parameters: Iterable[nn.Parameter], *, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> AdamW:
    """AdamW whose weight decay leaves vectors (norms, biases) alone, with its state already there.

    The state is made here, not in the first step, so that a checkpoint before any step holds the same as one after.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = AdamW(
        [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=betas,
        fused=True,
    )
    for parameter in trained:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def set_learning_rate(optimizer: AdamW, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
