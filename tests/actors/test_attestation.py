"""The distance between two probes, and that nothing but a small one passes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.actors.weight_sync.attestation import attest, probe_distance

logprobs = st.lists(st.lists(st.floats(-20, 0, allow_nan=False), min_size=1, max_size=5), min_size=1, max_size=4)


@given(logprobs)
def test_the_same_probe_is_at_distance_zero(probe):
    assert attest(probe, probe, tolerance=1e-9) == 0.0


@given(logprobs, st.floats(0.5, 5), st.data())
def test_one_sequence_that_differs_is_seen_wherever_it_stands(probe, shift, data):
    index = data.draw(st.integers(0, len(probe) - 1))
    other = [[value - shift if i == index else value for value in row] for i, row in enumerate(probe)]
    distance = probe_distance(probe, other)
    mean_size = sum(map(abs, probe[index])) / len(probe[index])
    assert distance == pytest.approx(shift / (1 + mean_size))
    with pytest.raises(ValueError, match="does not hold these weights"):
        attest(probe, other, tolerance=distance / 2)


@given(logprobs, st.sampled_from([math.nan, -math.inf]), st.data())
def test_a_value_that_is_no_number_is_refused_wherever_it_stands(probe, value, data):
    row = data.draw(st.integers(0, len(probe) - 1))
    other = [list(values) for values in probe]
    other[row][data.draw(st.integers(0, len(other[row]) - 1))] = value
    for expected, got in ((probe, other), (other, probe)):
        with pytest.raises(ValueError, match="does not hold these weights"):
            attest(expected, got, tolerance=1e6)


@pytest.mark.parametrize("got", [[[-1.0]], [[-1.0], [-1.0, -1.0]], [[-1.0, -1.0], [-1.0]], []])
def test_a_probe_of_another_shape_is_refused(got):
    with pytest.raises(ValueError, match="tokens, not"):
        attest([[-1.0], [-1.0]], got, tolerance=1e6)
