"""Whether an engine holds the weights that it says.

A chain of three: the digest of the bytes that its workers received, which the publisher compares with the sender's; the
count of the values that each layer took from them in the swap (`vllm_backend.swap_weights`); and the log-probabilities of
fixed probe sequences, computed by the engine after the swap and by the learner under the same version. The probe alone
would pass an engine that stayed at the version before: a step moves it by less than its tolerance. vLLM's own checksums
digest `Parameter`s, which are empty on the CPU engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Logprobs = Sequence[Sequence[float]]  # [sequences][tokens - 1]


def probe_distance(expected: Logprobs, got: Logprobs) -> float:
    """The largest, over the sequences, of the mean absolute distance in nats a token, over 1 + the mean size of the
    expected values: rounding to the serving dtype moves an improbable token's log-probability further than a likely one's.

    Raises:
        ValueError: the two are not of the same shape.
    """
    if [len(row) for row in expected] != [len(row) for row in got]:
        raise ValueError(
            f"the engine's probe has {[len(row) for row in got]} tokens, not {[len(row) for row in expected]}"
        )
    distances = [
        sum(abs(a - b) for a, b in zip(left, right, strict=True)) / (len(left) + sum(abs(a) for a in left))
        for left, right in zip(expected, got, strict=True)
    ]
    # `max` passes over a nan that is not its first value.
    return max(distances) if all(distance == distance for distance in distances) else math.nan


def attest(expected: Logprobs, got: Logprobs, tolerance: float) -> float:
    """The probe distance, when it is within `tolerance` (that of the serving dtype).

    Raises:
        ValueError: it is not, or is no number.
    """
    distance = probe_distance(expected, got)
    if not distance <= tolerance:  # also when it is nan
        raise ValueError(
            f"its probe is {distance:.3f} from the learner's, more than weight_sync.probe_tolerance ({tolerance:g}): it "
            "does not hold these weights"
        )
    return distance
