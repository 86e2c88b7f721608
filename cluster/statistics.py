"""Intervals of mean rewards, by the percentile bootstrap over prompts.

Prompts are what an evaluation draws at random; samples of one prompt depend on each other. So a prompt's samples are
averaged first and prompts are drawn with replacement (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapters 13 and 16). Simplified: plain percentiles, without bias correction; at an evaluation's hundred prompts the
coverage of the nominal 95 % lies within about a percent of it (tests/cluster/test_statistics.py measures it).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.cluster.run_records import Interval

RESAMPLES = 2000
LEVEL = 0.95


def mean_interval(
    rewards: Sequence[float] | NDArray[np.float64], *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """The mean of `rewards` [prompts] and its bootstrap interval; the same seed gives the same interval.

    Each entry is the mean over one prompt's scored samples; nan stands for a prompt none of whose checks ran, and is
    left out. Raises ValueError when no prompt is left.

    >>> mean_interval([0.5, 0.5, 0.5], seed=0)
    Interval(reward=0.5, low=0.5, high=0.5)
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"rewards must be [prompts], one mean a prompt, not of shape {values.shape}")
    values = values[~np.isnan(values)]
    if values.size == 0:
        raise ValueError("no prompt has a scored sample: there is no mean to give an interval of")
    draws = np.random.default_rng(seed).integers(0, values.size, size=(resamples, values.size))
    tail = (1 - level) / 2
    low, high = np.quantile(values[draws].mean(axis=1), (tail, 1 - tail))
    return Interval(reward=float(values.mean()), low=float(low), high=float(high))


def difference_interval(
    before: Sequence[float] | NDArray[np.float64],
    after: Sequence[float] | NDArray[np.float64],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """The mean of `after - before` ([prompts] both, in the same order of prompts) and its interval.

    Paired: how hard a prompt is cancels out, which two separate intervals would count twice. A prompt that is nan on
    either side is left out. Raises ValueError when the lengths differ or no prompt is left.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"a paired difference needs the same prompts on both sides: {first.shape} and {second.shape}")
    return mean_interval(second - first, seed=seed, resamples=resamples, level=level)
