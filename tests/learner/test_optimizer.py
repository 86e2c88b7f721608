import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.learner import optimizer
from headrace.learner.optimizer import build_optimizer, scheduled_rate


def rate(step: int, schedule: str, warmup: int = 0, total: int = 100) -> float:
    return scheduled_rate(step, learning_rate=1.0, schedule=schedule, warmup_steps=warmup, total_steps=total)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_start_at_the_rate_and_end_at_a_tenth(schedule: str):
    assert rate(1, schedule) == pytest.approx(1.0)
    assert rate(100, schedule) == pytest.approx(0.1)
    assert rate(130, schedule) == pytest.approx(0.1)


def test_constant_schedule_keeps_the_rate():
    assert {rate(step, "constant") for step in (1, 50, 100)} == {1.0}


@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(0, 20), st.integers(1, 60))
def test_rate_rises_in_the_warm_up_and_never_after(schedule: str, warmup: int, total: int):
    rates = [rate(step, schedule, warmup, total) for step in range(1, total + 1)]
    assert all(0 < value <= 1 for value in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    tail = rates[max(warmup - 1, 0) :]
    assert tail == sorted(tail, reverse=True)


def test_only_matrices_decay():
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    made = build_optimizer([matrix, vector], learning_rate=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    made.step()
    assert matrix.tolist() == [[pytest.approx(0.95)] * 2] * 2
    assert vector.tolist() == [1.0, 1.0]


def test_examples_in_the_docstrings_are_true():
    assert doctest.testmod(optimizer, optionflags=doctest.ELLIPSIS).failed == 0
