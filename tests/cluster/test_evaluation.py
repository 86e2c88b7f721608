"""What an evaluation makes of its groups, and what it does when a generator or a check fails."""

import pytest

from headrace.cluster.evaluation import EvaluationResult, gain


def result(sampled: list[float], greedy: list[float]) -> EvaluationResult:
    return EvaluationResult(sampled, greedy, 0.0, 0.0, [], 1.0)


def test_the_gain_is_after_minus_before_for_both_decodings():
    before, after = result([0.1, 0.3], [0.5, 0.7]), result([0.4, 0.6], [0.6, 0.8])
    scores = gain(after, before, seed=0)
    assert scores.sampled.reward == pytest.approx(0.3)
    assert scores.greedy.reward == pytest.approx(0.1)
