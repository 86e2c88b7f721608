from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cluster.statistics import difference_interval, mean_interval

rewards = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@given(rewards, st.integers(0, 9))
def test_the_interval_lies_within_the_rewards_and_is_the_same_for_the_same_seed(values: list[float], seed: int) -> None:
    interval = mean_interval(values, seed=seed, resamples=200)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
    assert interval.reward == pytest.approx(np.mean(values))
    assert interval == mean_interval(values, seed=seed, resamples=200)


def test_nineteen_of_twenty_intervals_cover_the_true_mean() -> None:
    generator = np.random.default_rng(7)
    covered = 0
    for trial in range(400):
        interval = mean_interval(generator.beta(0.6, 1.4, size=100), seed=trial, resamples=500)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.92 <= covered / 400 <= 0.975


def test_nineteen_of_twenty_paired_intervals_cover_the_true_gain() -> None:
    generator = np.random.default_rng(8)
    covered = 0
    for trial in range(400):
        before = generator.uniform(0, 0.8, size=100)
        gain = difference_interval(before, before + generator.normal(0.15, 0.1, size=100), seed=trial, resamples=500)
        covered += gain.low <= 0.15 <= gain.high
    assert 0.92 <= covered / 400 <= 0.975


def test_pairing_takes_the_difficulty_of_prompts_out_of_the_interval() -> None:
    before = np.random.default_rng(1).uniform(0, 0.8, size=100)
    after = before + 0.05
    gain = difference_interval(before, after, seed=0)
    assert gain.low == pytest.approx(0.05)
    assert gain.high == pytest.approx(0.05)
    assert mean_interval(after, seed=0).low < mean_interval(before, seed=0).high


def test_prompts_whose_checks_did_not_run_are_left_out_on_both_sides() -> None:
    nan = float("nan")
    gain = difference_interval([0.0, nan, 0.2, 0.4], [1.0, 0.9, nan, 0.4], seed=0)
    assert gain.reward == pytest.approx(0.5)


@pytest.mark.parametrize("values", [[], [float("nan")], [[0.5, 0.5]]])
def test_what_has_no_mean_over_prompts_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="prompt"):
        mean_interval(values, seed=0)


def test_a_paired_difference_of_different_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        difference_interval([0.1, 0.2], [0.1], seed=0)
