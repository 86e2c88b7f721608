import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.learner.advantages import group_advantages

NAN = float("nan")
rewards_lists = st.lists(st.one_of(st.floats(0, 1), st.just(NAN)), min_size=2, max_size=12)


def test_advantages_are_distances_from_the_group_mean():
    assert group_advantages(torch.tensor([1.0, 0.0, 0.5, 0.5]), normalize=False).tolist() == [0.5, -0.5, 0.0, 0.0]


def test_normalized_advantages_are_divided_by_the_sample_standard_deviation():
    advantages = group_advantages(torch.tensor([1.0, 0.0]), normalize=True)
    assert advantages.tolist() == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)], abs=1e-5)


def test_samples_without_a_reward_take_no_part():
    with_one_missing = group_advantages(torch.tensor([1.0, NAN, 0.0]), normalize=True)
    assert with_one_missing[1] == 0
    assert with_one_missing[[0, 2]].equal(group_advantages(torch.tensor([1.0, 0.0]), normalize=True))


@pytest.mark.parametrize("rewards", [[0.7, 0.7, 0.7], [0.1] * 7, [1.0, NAN], [NAN, NAN]])
def test_a_group_without_variance_has_no_advantage(rewards: list[float]):
    assert group_advantages(torch.tensor(rewards), normalize=True).tolist() == [0.0] * len(rewards)


@given(rewards_lists, st.booleans())
def test_advantages_are_finite_and_sum_to_zero(rewards: list[float], normalize: bool):
    advantages = group_advantages(torch.tensor(rewards), normalize)
    assert bool(advantages.isfinite().all())
    assert abs(float(advantages.sum())) < 1e-3
