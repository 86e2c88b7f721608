"""The learner's ranks as one thing, with ranks that are no processes; and how work is shared among them."""

import asyncio
from typing import Any

import msgspec
import pytest
import torch.distributed.checkpoint
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayActorError

from headrace.actors.generator import group_numbers as numbers_of
from headrace.cluster.errors import PoolFailed, RunFailed
from headrace.cluster.learner_pool import LearnerPool, gather_ranks, group_tokens, share_groups
from headrace.cluster.queue_actor import TakenGroup
from headrace.cluster.run_records import MemberState
from headrace.learner.losses import LossOptions
from headrace.learner.packing import documents_of
from headrace.learner.rank import StepMetrics
from headrace.learner.settings import LearnerSettings
from headrace.learner.supervised import SupervisedExample
from headrace.learner.worker import RankReport, StepReport, share_of_cores
from headrace.verifiers.base import not_run, scored
from headrace.verifiers.records import Completion, Group, Prompt, Sampling, StopReason, WeightSpan
from tests.factories import group_numbers

NAN = float("nan")
SETTINGS = LearnerSettings(model="none", total_steps=1)
WITH_REFERENCE = msgspec.structs.replace(SETTINGS, loss=LossOptions(kl_coef=0.1))


class Method:
    """A method of a rank's handle: notes what it is called with, and answers or fails."""

    def __init__(self, calls: list[tuple[Any, ...]], name: str, answer: Any) -> None:
        self._calls, self._name, self._answer = calls, name, answer

    async def remote(self, *arguments: Any) -> Any:
        self._calls.append((self._name, *arguments))
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


class FakeRank:
    def __init__(self, rank: int, **answers: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        own = {
            "start": RankReport(100 + rank, f"node-{rank}", f"http://node-{rank}:1/metrics", store_port=7000 + rank),
            "setup": None,
            "train_step": report(fetch=0.1 * (rank + 1), seconds=2.0 - rank),
            "supervised_step": 0.5,
            "save": 1.0 + rank,
            "load": 7,
            **answers,
        }
        for name, answer in own.items():
            setattr(self, name, Method(self.calls, name, answer))


def report(fetch: float, seconds: float) -> StepReport:
    values = dict.fromkeys(StepMetrics.__struct_fields__, 1)
    return StepReport(StepMetrics(**{**values, "phases": {}}), fetch, seconds)


def taken(name: str, tokens: int | list[int], rewards: tuple[float, ...] = (0.0, 1.0)) -> TakenGroup:
    lengths = [tokens] * len(rewards) if isinstance(tokens, int) else tokens
    numbers = group_numbers(name, rewards, prompt_tokens=10, completion_tokens=lengths)
    return TakenGroup(numbers, f"payload of {name}")


async def test_the_ranks_meet_where_the_first_one_says():
    ranks = [FakeRank(0), FakeRank(1)]
    pool = LearnerPool(ranks, SETTINGS)
    assert pool.sender is ranks[0]
    assert [status.state for status in pool.status(0, 0.0)] == [MemberState.STARTING] * 2
    await pool.start()
    assert [rank.calls[-1] for rank in ranks] == [("setup", "node-0", 7000, 1)] * 2
    first, second = pool.status(3, 1.0)
    assert (first.name, second.name) == ("learner-0", "learner-1")
    assert (second.state, second.version, second.node, second.pid) == (MemberState.SERVING, 3, "node-1", 101)


async def test_every_rank_is_told_how_many_share_its_node():
    ranks = [FakeRank(rank, start=RankReport(rank, node, "", store_port=7)) for rank, node in enumerate("aba")]
    await LearnerPool(ranks, SETTINGS).start()
    assert [rank.calls[-1][-1] for rank in ranks] == [2, 1, 2]


async def test_a_step_gives_every_rank_its_share_and_waits_for_the_slowest():
    ranks = [FakeRank(0), FakeRank(1)]
    pool = LearnerPool(ranks, SETTINGS)
    groups = [taken("a", 100), taken("b", 10), taken("c", 60), taken("d", 30)]
    outcome = await pool.train_step(groups, 5)
    shares = [rank.calls[0][1] for rank in ranks]
    assert sorted(shares[0] + shares[1]) == [f"payload of {name}" for name in "abcd"]
    assert shares == [["payload of a"], ["payload of b", "payload of c", "payload of d"]]
    assert [rank.calls[0][2] for rank in ranks] == [5, 5]
    assert outcome.fetch_seconds == 0.2
    assert (pool.steps, pool.busy_seconds) == (5, 2.0)


async def test_supervised_examples_are_dealt_out_one_by_one():
    ranks = [FakeRank(0), FakeRank(1)]
    examples = [SupervisedExample([index], [index]) for index in range(5)]
    assert await LearnerPool(ranks, SETTINGS).supervised_step(examples, 1e-4) == 0.5
    assert [rank.calls[0][1] for rank in ranks] == [examples[0::2], examples[1::2]]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
async def test_saving_takes_as_long_as_its_slowest_rank_and_loading_says_the_step(tmp_path):
    torch.distributed.checkpoint.save({"weight": torch.zeros(4)}, checkpoint_id=tmp_path, no_dist=True)
    pool = LearnerPool([FakeRank(0), FakeRank(1)], SETTINGS)
    assert await pool.save(str(tmp_path)) == 2.0
    assert await pool.load("folder") == 7
    assert pool.steps == 7


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
async def test_what_a_rank_has_saved_where_nobody_else_sees_it_is_no_checkpoint(tmp_path):
    torch.distributed.checkpoint.save({"weight": torch.zeros(4)}, checkpoint_id=tmp_path, no_dist=True)
    (tmp_path / "__0_0.distcp").unlink()
    pool = LearnerPool([FakeRank(0), FakeRank(1)], SETTINGS)
    with pytest.raises(
        RunFailed, match=r"__0_0\.distcp is missing.*job\.run_dir must be a folder that all nodes share"
    ):
        await pool.save(str(tmp_path))


async def test_a_rank_that_dies_ends_the_call_with_its_name():
    pool = LearnerPool([FakeRank(0), FakeRank(1, train_step=RayActorError())], SETTINGS)
    with pytest.raises(PoolFailed, match="learner-1 is lost"):
        await pool.train_step([taken("a", 1)], 1)
    assert pool.steps == 0 and not pool.settled


async def test_a_step_that_all_ranks_refuse_leaves_them_as_they_were():
    pool = LearnerPool([FakeRank(rank, train_step=FloatingPointError("not finite")) for rank in (0, 1)], SETTINGS)
    with pytest.raises(FloatingPointError):
        await pool.train_step([taken("a", 1)], 1)
    assert pool.steps == 0 and pool.settled


async def test_an_error_in_a_rank_comes_through_as_it_is():
    with pytest.raises(ValueError, match="no such folder"):
        await LearnerPool([FakeRank(0, load=ValueError("no such folder"))], SETTINGS).load("folder")


async def test_a_rank_that_does_not_answer_is_given_up_by_the_name_of_the_call():
    with pytest.raises(TimeoutError, match="the learner's save did not end within 0 s"):
        await gather_ranks("save", [asyncio.Event().wait()], 0.02)


@pytest.mark.parametrize(("settings", "tokens"), [(SETTINGS, 0), (WITH_REFERENCE, 70)])
def test_a_group_without_variance_costs_the_learner_nothing_unless_a_kl_term_needs_it(settings, tokens):
    assert group_tokens(taken("a", 30), settings) == 70
    assert group_tokens(taken("a", 30, rewards=(1.0, 1.0)), settings) == tokens


@pytest.mark.parametrize(
    ("rewards", "trained_samples", "tokens"),
    [
        ((0.5, 1.0, 0.5, 0.0), None, 10 + 1 + 20 + 300 + 4000),
        ((0.5, 1.0, 0.5, 0.0), 2, 10 + 20 + 4000),
        ((NAN, 1.0, 0.5, 0.0), None, 10 + 20 + 300 + 4000),
        ((NAN, 1.0, 0.5, 0.0), 2, 10 + 20 + 4000),
        ((1.0, NAN, 0.0, 0.5), 2, 10 + 1 + 300),
        ((0.0, NAN, NAN, 1.0), 3, 10 + 1 + 4000),
        ((NAN, 1.0, NAN, NAN), 2, 0),
    ],
)
def test_a_group_costs_the_tokens_of_the_samples_that_it_trains_on(rewards, trained_samples, tokens):
    settings = msgspec.structs.replace(SETTINGS, trained_samples=trained_samples)
    assert group_tokens(taken("a", [1, 20, 300, 4000], rewards), settings) == tokens


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0, None]), st.integers(1, 20)), min_size=1, max_size=6),
    st.sampled_from([SETTINGS, WITH_REFERENCE]),
    st.sampled_from([None, 2, 3]),
)
def test_a_group_costs_what_goes_through_the_model(samples, settings, trained_samples):
    completions = [
        Completion(
            "",
            [1] * length,
            [-1.0] * length,
            [WeightSpan(0, 0, length)],
            StopReason.STOP,
            not_run("timeout", message="") if reward is None else scored(reward, "any"),
            0.0,
        )
        for reward, length in samples
    ]
    group = Group(Prompt(0, 0, [1] * 10, {}), completions, "g", Sampling(max_tokens=20))
    batch = documents_of([group], normalize=True, keep_flat=settings.flat_groups_cost, trained_samples=trained_samples)
    through = [10 + sum(len(branch.token_ids) for branch in document.branches) for document in batch.documents]
    settings = msgspec.structs.replace(settings, trained_samples=trained_samples)
    assert group_tokens(TakenGroup(numbers_of(group), None), settings) == sum(through)


def test_a_group_that_the_kl_term_needs_costs_what_goes_through_the_model():
    assert group_tokens(taken("a", [1, 20], (NAN, 1.0)), WITH_REFERENCE) == 30
    assert group_tokens(taken("a", [1, 20], (NAN, NAN)), WITH_REFERENCE) == 0
    few = msgspec.structs.replace(WITH_REFERENCE, trained_samples=2)
    assert group_tokens(taken("a", [1, 20, 300], (0.5, 0.5, 0.5)), few) == 31


async def test_a_rank_is_not_spared_for_samples_that_it_does_not_train_on():
    ranks = [FakeRank(0), FakeRank(1)]
    settings = msgspec.structs.replace(SETTINGS, trained_samples=2)
    long = taken("long in all", [30, 30, 900], (0.0, 1.0, 0.9))
    await LearnerPool(ranks, settings).train_step([long, taken("b", 100), taken("c", 80), taken("d", 50)], 1)
    shares = [rank.calls[0][1] for rank in ranks]
    assert shares == [["payload of long in all", "payload of b"], ["payload of c", "payload of d"]]


async def test_groups_without_variance_are_spread_over_the_ranks_where_they_cost():
    ranks = [FakeRank(0), FakeRank(1)]
    pool = LearnerPool(ranks, WITH_REFERENCE)
    await pool.train_step([taken(name, 30, rewards=(1.0, 1.0)) for name in "abcd"], 1)
    assert [len(rank.calls[0][1]) for rank in ranks] == [2, 2]


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 5))
def test_every_group_has_one_rank_and_no_rank_more_than_its_fair_share_and_one_group(tokens, ranks):
    shares = share_groups(tokens, ranks)
    assert len(shares) == ranks
    assert sorted(index for share in shares for index in share) == list(range(len(tokens)))
    loads = [sum(tokens[index] for index in share) for share in shares]
    assert max(loads) - min(loads) <= max(tokens, default=0)
    assert share_groups(tokens, ranks) == shares


@given(st.integers(1, 256), st.integers(1, 64))
def test_the_ranks_of_a_node_share_its_cores_and_each_has_one(cores, ranks):
    threads = share_of_cores(cores, ranks)
    assert threads >= 1
    assert threads == 1 or cores - ranks < threads * ranks <= cores
