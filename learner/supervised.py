"""Supervised steps for the warm start: cross-entropy on completions, in the same packs as reinforcement learning."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from jaxtyping import Float
from torch import Tensor

from headrace.learner.packing import Branch, Document


class SupervisedExample(msgspec.Struct, frozen=True):
    """A prompt and the completion to learn; the completion ends with the token that ends a turn, if it should."""

    prompt_ids: list[int]
    completion_ids: list[int]


def example_documents(examples: Iterable[SupervisedExample]) -> list[Document]:
    """One document an example, at temperature 1; an example with an empty completion teaches nothing and is left out."""
    return [
        Document(example.prompt_ids, [Branch(example.completion_ids, [0.0] * len(example.completion_ids), 1.0)])
        for example in examples
        if example.completion_ids
    ]


def cross_entropy(
    logprobs: Float[Tensor, " tokens"], entropies: Float[Tensor, " tokens"], rows: slice
) -> Float[Tensor, ""]:
    """Nats summed over tokens, as a `TokenLoss`."""
    del entropies, rows
    return -logprobs.sum()
