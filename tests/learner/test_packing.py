from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.learner.packing import (
    Branch,
    Document,
    documents_of,
    pack_documents,
    packed_length,
    split_document,
)
from headrace.verifiers.records import (
    Completion,
    Group,
    Prompt,
    Sampling,
    StopReason,
    Verdict,
    VerdictKind,
    WeightSpan,
)

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=9)
branches = st.tuples(tokens, st.floats(-1, 1))
plain_documents = st.lists(st.tuples(tokens, st.lists(branches, min_size=1, max_size=4)), min_size=1, max_size=6)
Plain = list[tuple[list[int], list[tuple[list[int], float]]]]


def build(plain: Plain) -> list[Document]:
    return [
        Document(prompt, [Branch(ids, [-1.0] * len(ids), advantage) for ids, advantage in samples])
        for prompt, samples in plain
    ]


def completion(ids: list[int], reward: float, kind=VerdictKind.FAIL, stop=StopReason.STOP) -> Completion:
    spans = [WeightSpan(0, 0, len(ids))]
    return Completion("", ids, [-1.0] * len(ids), spans, stop, Verdict(kind, reward, "test"), 0.0)


def group(*completions: Completion) -> Group:
    return Group(Prompt(0, 0, [1, 2], {}), list(completions), "generator-0", Sampling(8, temperature=0.5))


def places_seen(pack) -> list[list[int]]:
    """For each token of the pack, the places that its block lets it see, itself last."""
    starts = torch.tensor([0, *(block.length for block in pack.blocks)]).cumsum(0).tolist()
    assert starts[-1] == len(pack.token_ids)
    seen: list[list[int]] = []
    for index, block in enumerate(pack.blocks):
        keys = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in (*block.ancestors, index)])
        mask = block.mask
        if mask is None:
            mask = torch.ones(block.length, block.length, dtype=torch.bool).tril()
        seen.extend(keys[row].tolist() for row in mask)
    return seen


@given(plain_documents, st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_every_trained_token_is_predicted_exactly_once_from_its_own_history(plain: Plain, limit: int):
    items = build(plain)
    expected: Counter = Counter()
    for document in items:
        for branch in document.branches:
            for index, token in enumerate(branch.token_ids):
                history = tuple(document.prompt + branch.token_ids[:index])
                expected[history, token, round(branch.advantage, 5)] += 1
    found: Counter = Counter()
    for pack in pack_documents(items, limit):
        seen = places_seen(pack)
        for place, target, advantage in zip(pack.predictors, pack.targets, pack.advantages, strict=True):
            path = seen[int(place)]
            assert pack.positions[path].tolist() == list(range(len(path))), "each position of the path exactly once"
            found[tuple(pack.token_ids[path].tolist()), int(target), round(float(advantage), 5)] += 1
    # Advantages pass through float32: compare what they are attached to, then their sums.
    assert sum(found.values()) == sum(expected.values())
    assert Counter({key[:2]: 0 for key in found}).keys() == Counter({key[:2]: 0 for key in expected}).keys()
    for key in {key[:2] for key in expected}:
        count = lambda c, k=key: sum(n for item, n in c.items() if item[:2] == k)  # noqa: E731
        total = lambda c, k=key: sum(n * item[2] for item, n in c.items() if item[:2] == k)  # noqa: E731
        assert count(found) == count(expected)
        assert total(found) == pytest.approx(total(expected), abs=1e-3)


@given(plain_documents, st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_packs_keep_the_limit_unless_one_sample_alone_is_larger(plain: Plain, limit: int):
    items = build(plain)
    for pack in pack_documents(items, limit):
        samples = int((pack.predictors[1:] <= pack.predictors[:-1]).sum()) + 1
        assert len(pack.token_ids) <= limit or samples == 1


@given(plain_documents, st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_every_token_sees_its_own_path_and_nothing_else(plain: Plain, limit: int):
    """With the test above: what a predictor sees is its history, and so is what each token on the way to it sees."""
    for pack in pack_documents(build(plain), limit):
        seen = places_seen(pack)
        paths = [seen[int(place)] for place in pack.predictors]
        assert {place for path in paths for place in path} == set(range(len(pack.token_ids)))
        for path in paths:
            for index, place in enumerate(path, start=1):
                assert seen[place] == path[:index]


def test_documents_attend_sample_by_sample():
    samples = [Branch([5, 6, 7], [-1.0] * 3, 1.0), Branch([8], [-1.0], 1.0), Branch([9, 10], [-1.0] * 2, 1.0)]
    (pack,) = pack_documents([Document([1, 2, 3], samples)], 100)
    # prefix [1 2], the prompt's last token, and the two samples that have tokens of their own
    assert [(block.length, block.ancestors) for block in pack.blocks] == [(2, ()), (1, (0,)), (2, (0, 1)), (1, (0, 1))]


def test_prompt_and_common_prefix_go_through_once():
    items = [
        Document([1, 2, 3, 4], [Branch([5, 6], [-1.0] * 2, 1.0)] * 3),
        Document([1, 2, 9], [Branch([7], [-1.0], 1.0)]),
    ]
    (pack,) = pack_documents(items, 100)
    assert pack.token_ids.tolist() == [1, 2, 3, 4, 5, 5, 5, 9]
    assert pack.positions.tolist() == [0, 1, 2, 3, 4, 4, 4, 2]
    assert packed_length(items) == 8


def test_a_group_too_large_is_split_with_its_prompt_repeated():
    document = Document([1] * 6, [Branch([2] * 5, [-1.0] * 5, float(i)) for i in range(5)])
    parts = split_document(document, 14)
    assert [[branch.advantage for branch in part.branches] for part in parts] == [[0.0, 1.0], [2.0, 3.0], [4.0]]
    assert all(part.prompt == document.prompt for part in parts)


def test_groups_without_variance_are_not_computed_but_counted():
    flat = group(completion([3, 4, 5], 0.5), completion([3], 0.5))
    mixed = group(completion([3, 4], 1.0), completion([3], 0.0))
    batch = documents_of([flat, mixed], normalize=True, keep_flat=False)
    assert len(batch.documents) == 1
    assert batch.trained_tokens == 7
    assert batch.documents[0].temperature == 0.5
    assert len(documents_of([flat, mixed], normalize=True, keep_flat=True).documents) == 2


def test_of_a_group_only_the_samples_that_vary_most_are_trained_on_relative_to_all_of_it():
    samples = [completion([3], 0.0), completion([4, 5], 0.75), completion([6], 0.25), completion([7], 0.5)]
    lost = completion([8], float("nan"), kind=VerdictKind.INFRA_ERROR)
    batch = documents_of([group(lost, *samples)], normalize=False, keep_flat=False, trained_samples=2)
    [document] = batch.documents
    assert [(branch.token_ids, branch.advantage) for branch in document.branches] == [([3], -0.375), ([4, 5], 0.375)]
    high = [completion([3], 0.0), completion([4], 1.0), completion([6], 1.0), completion([7], 1.0)]
    batch = documents_of([group(*high)], normalize=False, keep_flat=False, trained_samples=2)
    assert [branch.advantage for branch in batch.documents[0].branches] == [-0.75, 0.25]
    assert batch.trained_tokens == 2


@pytest.mark.parametrize(
    "lost",
    [
        completion([7, 8, 9], float("nan"), kind=VerdictKind.INFRA_ERROR),
        completion([7, 8, 9], 0.9, stop=StopReason.ABORTED),
    ],
)
def test_samples_without_a_verdict_or_given_up_are_left_out_altogether(lost: Completion):
    kept = [completion([3, 4], 1.0), completion([3], 0.0)]
    batch = documents_of([group(kept[0], lost, kept[1])], normalize=True, keep_flat=False)
    assert batch == documents_of([group(*kept)], normalize=True, keep_flat=False)
    assert batch.trained_tokens == 3


@pytest.mark.parametrize(
    "bad", [Document([], [Branch([1], [-1.0], 1.0)]), Document([1], []), Document([1], [Branch([], [], 1.0)])]
)
def test_documents_with_nothing_to_predict_from_or_to_are_refused(bad: Document):
    with pytest.raises(ValueError, match="at least one token"):
        pack_documents([bad], 10)
