"""Packs: token sequences without padding, in which what several samples share goes through the model once.

    [prefix][rest of prompt 1][sample 1]..[sample G][rest of prompt 2][sample 1]..

Positions continue from prefix to prompt to sample, so that each sample stands where it would stand alone, and the mask
lets it see its own prompt and itself. A sample's last token predicts nothing and is left out. All prompts of a task
usually begin with the same system message: that prefix is shared too, by all groups of a pack.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headrace.learner.advantages import group_advantages, most_varied
from headrace.verifiers.records import Group


@dataclass(frozen=True)
class Branch:
    """One sample's trained tokens."""

    token_ids: list[int]
    old_logprobs: list[float]  # the generator's
    advantage: float


@dataclass(frozen=True)
class Document:
    """A prompt and its branches: what shares a prompt in one pack."""

    prompt: list[int]
    branches: list[Branch]
    temperature: float = 1.0  # that the branches were drawn with

    @property
    def own_tokens(self) -> int:
        """Tokens of the branches that go through the model: each without its last."""
        return sum(len(branch.token_ids) - 1 for branch in self.branches)


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step: what goes through the model, and what counts."""

    documents: list[Document]
    trained_tokens: int  # response tokens that the loss is a mean over, those of groups without a gradient included


@dataclass(frozen=True)
class AttentionBlock:
    """Consecutive tokens whose queries share one attention call."""

    length: int
    ancestors: tuple[int, ...]  # earlier blocks that all of its tokens see whole
    mask: Bool[Tensor, "queries keys"] | None  # over the ancestors' keys, then its own; None: causal, no ancestors


@dataclass(frozen=True)
class Pack:
    """One forward pass. `responses` counts targets: trained tokens, each in exactly one pack."""

    token_ids: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]
    blocks: tuple[AttentionBlock, ...]
    predictors: Int[Tensor, " responses"]  # place in the pack of the token whose hidden state predicts the target
    targets: Int[Tensor, " responses"]
    old_logprobs: Float[Tensor, " responses"]
    advantages: Float[Tensor, " responses"]
    temperatures: Float[Tensor, " responses"]

    def to(self, device: torch.device) -> Pack:
        """The same pack on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        blocks = tuple(
            replace(block, mask=None if block.mask is None else block.mask.to(device)) for block in self.blocks
        )
        return replace(self, blocks=blocks, **moved)


def documents_of(
    groups: Iterable[Group], *, normalize: bool, keep_flat: bool, trained_samples: int | None = None
) -> Batch:
    """The documents to train on, and how many response tokens the loss is a mean over.

    Samples whose check did not run, or that the engine gave up, are left out altogether: as if they had not been drawn. Of
    the others the advantages are relative to all, and the `trained_samples` of each group whose rewards vary most are
    trained on. A group whose advantages are all zero has no gradient: unless `keep_flat` (a KL term gives it one), it does
    not go through the model. Its tokens count all the same: the loss is the mean over the whole batch, and its gradient may
    not depend on which zeros are computed.
    """
    documents: list[Document] = []
    trained_tokens = 0
    for group in groups:
        kept = [completion for completion in group.completions if completion.counts]
        rewards = torch.tensor([completion.verdict.reward for completion in kept], dtype=torch.float32)
        advantages = group_advantages(rewards, normalize).tolist()
        if trained_samples is not None:
            chosen = most_varied(rewards, trained_samples)
            kept, advantages = [kept[place] for place in chosen], [advantages[place] for place in chosen]
        trained_tokens += sum(len(completion.token_ids) for completion in kept)
        if not keep_flat and not any(advantages):
            continue
        branches = [
            Branch(completion.token_ids, completion.logprobs, advantage)
            for completion, advantage in zip(kept, advantages, strict=True)
            if completion.token_ids
        ]
        if branches:
            documents.append(Document(group.prompt.token_ids, branches, group.sampling.temperature))
    return Batch(documents, trained_tokens)


def pack_documents(documents: Iterable[Document], max_tokens: int) -> list[Pack]:
    """Documents in their order, as packs of up to `max_tokens` tokens.

    A document that is too large is split, its prompt repeated; a single sample that is too large has a pack to itself.

    Raises:
        ValueError: a document has an empty prompt (nothing would predict its first token) or an empty branch.
    """
    packs: list[Pack] = []
    waiting: list[Document] = []
    for document in documents:
        check_document(document)
        for part in split_document(document, max_tokens):
            if waiting and packed_length([*waiting, part]) > max_tokens:
                packs.append(build_pack(waiting))
                waiting = []
            waiting.append(part)
    if waiting:
        packs.append(build_pack(waiting))
    return packs


def check_document(document: Document) -> None:
    if not document.prompt:
        raise ValueError("a document needs a prompt of at least one token")
    if not document.branches or not all(branch.token_ids for branch in document.branches):
        raise ValueError("a document needs branches of at least one token each")


def split_document(document: Document, max_tokens: int) -> list[Document]:
    """The document, or several of the same prompt that are as large as `max_tokens` allows."""
    parts: list[Document] = []
    branches: list[Branch] = []
    length = len(document.prompt)
    for branch in document.branches:
        added = len(branch.token_ids) - 1
        if branches and length + added > max_tokens:
            parts.append(replace(document, branches=branches))
            branches, length = [], len(document.prompt)
        branches.append(branch)
        length += added
    parts.append(replace(document, branches=branches))
    return parts


def packed_length(documents: Sequence[Document]) -> int:
    """Tokens of the pack that these documents make."""
    prefix = shared_prefix(documents)
    return prefix + sum(len(document.prompt) - prefix + document.own_tokens for document in documents)


def shared_prefix(documents: Sequence[Document]) -> int:
    """How many tokens all prompts begin with alike; each keeps at least one token of its own."""
    first, *others = (document.prompt for document in documents)
    longest = min(len(document.prompt) for document in documents) - 1
    for place in range(longest):
        if any(prompt[place] != first[place] for prompt in others):
            return place
    return longest


def build_pack(documents: Sequence[Document]) -> Pack:
    """One pack of these documents."""
    prefix = shared_prefix(documents)
    layout = _Layout()
    layout.append(documents[0].prompt[:prefix], position=0)
    cuts: list[list[int]] = []
    for document in documents:
        length = len(document.prompt)
        inner = [len(layout.token_ids)]
        layout.append(document.prompt[prefix:], position=prefix)
        last_of_prompt = len(layout.token_ids) - 1
        inner.append(len(layout.token_ids))
        for branch in document.branches:
            start = len(layout.token_ids)
            layout.append(branch.token_ids[:-1], position=length)
            layout.train(branch, [last_of_prompt, *range(start, len(layout.token_ids))], document.temperature)
            inner.append(len(layout.token_ids))
        cuts.append(inner)
    return Pack(
        token_ids=torch.tensor(layout.token_ids),
        positions=torch.tensor(layout.positions),
        blocks=attention_blocks(prefix, cuts),
        predictors=torch.tensor(layout.predictors),
        targets=torch.tensor(layout.targets),
        old_logprobs=torch.tensor(layout.old_logprobs, dtype=torch.float32),
        advantages=torch.tensor(layout.advantages, dtype=torch.float32),
        temperatures=torch.tensor(layout.temperatures, dtype=torch.float32),
    )


def attention_blocks(prefix: int, cuts: list[list[int]]) -> tuple[AttentionBlock, ...]:
    """Blocks that partition a pack: the prefix, and of each document, cut at `cuts`, the prompt and each sample.

    A call for each sample computes no pair of tokens that do not see each other, which more than pays for the calls where
    several samples share a prompt.
    """
    blocks: list[AttentionBlock] = []

    def add(length: int, ancestors: tuple[int, ...]) -> int:
        seen = sum(blocks[ancestor].length for ancestor in ancestors)
        mask = torch.ones(length, seen + length, dtype=torch.bool).tril(seen) if seen else None
        blocks.append(AttentionBlock(length, ancestors, mask))
        return len(blocks) - 1

    root = (add(prefix, ()),) if prefix else ()
    for start, end_of_prompt, *ends in cuts:
        prompt = add(end_of_prompt - start, root)
        for left, right in pairwise([end_of_prompt, *ends]):
            if right > left:
                add(right - left, (*root, prompt))
    return tuple(blocks)


class _Layout:
    """The lists that a pack's tensors are made of."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.positions: list[int] = []
        self.predictors: list[int] = []
        self.targets: list[int] = []
        self.old_logprobs: list[float] = []
        self.advantages: list[float] = []
        self.temperatures: list[float] = []

    def append(self, token_ids: list[int], *, position: int) -> None:
        self.token_ids.extend(token_ids)
        self.positions.extend(range(position, position + len(token_ids)))

    def train(self, branch: Branch, predictors: list[int], temperature: float) -> None:
        self.predictors.extend(predictors)
        self.targets.extend(branch.token_ids)
        self.old_logprobs.extend(branch.old_logprobs)
        self.advantages.extend([branch.advantage] * len(branch.token_ids))
        self.temperatures.extend([temperature] * len(branch.token_ids))
