"""What flows where: the records that every floor shares.

    PromptSource --Prompt--> RolloutQueue --Lease--> generator --Sample--> verification worker --Verdict--> generator
    generator --GroupNumbers + Group--> RolloutQueue --TakenGroup--> controller --[Group]--> learner ranks

A `Group` is bulk (token ids, log-probabilities, texts): it travels as one object in Ray's object store. `GroupNumbers` is
the small part that decisions are made on: it travels beside it, and is all that the queue and the controller look at.

Times are seconds, sizes are bytes, lengths are tokens. `version` is always a weight version: the number of
optimizer steps that made the weights, 0 for those that reinforcement learning starts from, -1 for the base model's before a
warm start.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


class VerdictKind(StrEnum):
    """What a check found out."""

    PASS = "pass"  # the check ran and the sample satisfies it
    FAIL = "fail"  # the check ran and the sample does not satisfy it (the reward may still be above 0: shaped)
    INFRA_ERROR = "infra_error"  # the check did not run to its end, through no fault of the sample: never scored


class StopReason(StrEnum):
    """Why a sample ended."""

    STOP = "stop"  # an end-of-sequence or stop token
    LENGTH = "length"  # max_tokens, or the context was full
    ABORTED = "aborted"  # the engine gave it up; its tokens are not trained on


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """The outcome of a check. `reward` is in [0, 1] and means nothing for `infra_error`."""

    kind: VerdictKind
    reward: float
    reason: str  # machine-readable, snake_case: "match", "unknown_tool", "timeout", ...
    details: dict[str, Any] = {}


class Sample(msgspec.Struct, frozen=True):
    """What a verifier sees: the completion's text and the data row that its prompt came from."""

    completion: str
    row: dict[str, Any]


class Sampling(msgspec.Struct, frozen=True):
    """How tokens are drawn. Log-probabilities are those of the distribution after temperature, top_p and top_k."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_tokens: int = 0
    stop: tuple[str, ...] = ()


class Prompt(msgspec.Struct, frozen=True):
    """One row of the data in one epoch. `ordinal` is the row's place in the file, counted from 0."""

    epoch: int
    ordinal: int
    token_ids: list[int]
    row: dict[str, Any]

    @property
    def id(self) -> str:
        return prompt_id(self.epoch, self.ordinal)


def prompt_id(epoch: int, ordinal: int) -> str:
    """The stable name of a prompt: the same before and after a crash."""
    return f"{epoch}:{ordinal}"


class Lease(msgspec.Struct, frozen=True):
    """Leave to generate one group of one prompt, once."""

    id: int
    prompt: Prompt
    group_size: int
    sampling: Sampling
    attempt: int = 1  # counts up each time that the prompt is handed out again


class WeightSpan(msgspec.Struct, frozen=True, array_like=True):
    """Tokens [start, end) of a completion came from the weights of `version`."""

    version: int
    start: int
    end: int


class Completion(msgspec.Struct, frozen=True):
    """One finished sample: token ids and the log-probability with which each of them was drawn, [tokens] both."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    spans: list[WeightSpan]
    stop_reason: StopReason
    verdict: Verdict
    generate_seconds: float

    @property
    def counts(self) -> bool:
        """Whether it has a reward: its check ran, and the engine did not give it up."""
        return self.verdict.kind is not VerdictKind.INFRA_ERROR and self.stop_reason is not StopReason.ABORTED


class Group(msgspec.Struct, frozen=True):
    """All samples of one prompt, with where they came from."""

    prompt: Prompt
    completions: list[Completion]  # [group_size]
    generator: str  # member name
    sampling: Sampling


class GroupNumbers(msgspec.Struct, frozen=True):
    """The part of a group that decisions are made on."""

    prompt_id: str
    generator: str
    oldest_version: int
    newest_version: int
    prompt_tokens: int
    completion_tokens: list[int]  # [group_size]
    rewards: list[float]  # [group_size]; nan where the verdict is infra_error
    passed: int  # samples whose verdict is pass
    stop_reasons: list[StopReason]  # [group_size]
    generate_seconds: float

    @property
    def scored(self) -> list[float]:
        """The rewards of the samples whose check ran."""
        return [reward for reward in self.rewards if reward == reward]

    @property
    def has_variance(self) -> bool:
        """Whether the samples' rewards differ: without it a group-relative advantage is zero everywhere."""
        scored = self.scored
        return len(scored) >= 2 and max(scored) - min(scored) > 1e-9


class WeightTensor(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of the served model, by its Hugging Face name."""

    name: str
    dtype: str  # as torch names it, without the prefix: "bfloat16"
    shape: list[int]


class WeightManifest(msgspec.Struct, frozen=True):
    """What a weight update consists of: the tensors in sending order."""

    version: int
    tensors: list[WeightTensor]


LEARNER_PHASES = ("pack", "forward", "backward", "optimizer")
"""What a learner rank does in a step, in order."""


def encode(record: msgspec.Struct) -> bytes:
    """A record as msgpack bytes: the form in which bulk data crosses processes."""
    return _ENCODER.encode(record)


def decode(payload: bytes, kind: type[T]) -> T:
    """The inverse of `encode`. Raises msgspec.ValidationError when the bytes are not a `kind`."""
    return msgspec.msgpack.decode(payload, type=kind)


_ENCODER = msgspec.msgpack.Encoder()
