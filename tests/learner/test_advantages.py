import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.learner.advantages import group_advantages, most_varied

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


@given(st.lists(st.sampled_from([0.0, 0.1, 0.35, 0.7, 1.0]), min_size=1, max_size=8), st.integers(2, 8))
def test_no_other_choice_of_samples_varies_more(rewards: list[float], count: int):
    values = torch.tensor(rewards, dtype=torch.float64)
    chosen = most_varied(values, count)
    assert len(chosen) == min(count, len(rewards))
    assert chosen == sorted(set(chosen))
    largest = max(float(values[list(c)].var(correction=0)) for c in combinations(range(len(rewards)), len(chosen)))
    assert float(values[chosen].var(correction=0)) == pytest.approx(largest)


def test_of_equal_rewards_the_earlier_samples_are_chosen():
    assert most_varied(torch.tensor([0.5] * 5), 2) == [0, 1]
    assert most_varied(torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]), 2) == [1, 4]
