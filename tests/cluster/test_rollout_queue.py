"""The queue's promises, without a cluster: nothing lost, nothing doubled, staleness bounded before generation."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.cluster.rollout_queue import Outcome, RolloutQueue
from headrace.verifiers.records import GroupNumbers, Lease
from tests.factories import EndlessPrompts, group_numbers, queue_plan

SOURCE = EndlessPrompts(per_epoch=7)


def numbers(lease: Lease, version: int = 0, rewards: tuple[float, ...] = (0.0, 1.0)) -> GroupNumbers:
    return group_numbers(lease.prompt.id, rewards, oldest_version=version)


def all_leases(queue: RolloutQueue, member: str = "g", version: int = 0) -> list[Lease]:
    """Every lease that admission allows now."""
    return [queue.lease(member, version, now=0.0) for _ in range(queue.capacity(version))]


def test_admission_grants_what_the_capacity_rule_allows_and_no_more():
    queue = RolloutQueue(SOURCE, queue_plan(max_staleness=1, groups_per_step=2))
    assert len(all_leases(queue)) == 4
    assert queue.capacity(0) == 0
    with pytest.raises(RuntimeError, match="admission allows no lease to g with version 0"):
        queue.lease("g", 0, now=0.0)


def test_nothing_is_leased_beyond_what_the_jobs_steps_take():
    queue = RolloutQueue(SOURCE, queue_plan(max_staleness=5, groups_per_step=2, steps=2))
    assert queue.capacity(0) == 4


def test_a_generator_with_old_weights_gets_no_lease_that_would_end_too_stale():
    queue = RolloutQueue(SOURCE, queue_plan(max_staleness=0, groups_per_step=1))
    lease = queue.lease("g", 0, now=0.0)
    queue.submit(lease.id, numbers(lease), "payload")
    assert queue.take() is not None
    queue.commit(1)
    assert queue.capacity(0) == 0
    assert queue.capacity(1) == 1


def test_a_lease_that_was_given_back_is_issued_again_under_the_same_id():
    queue = RolloutQueue(SOURCE, queue_plan())
    first = queue.lease("g", 0, now=0.0)
    queue.give_back(first.id)
    again = queue.lease("h", 0, now=11.0)
    assert again.prompt.id == first.prompt.id
    assert again.id != first.id
    assert again.attempt == 2
    assert queue.reissued == 1


def test_a_lease_ends_once_and_no_more():
    queue = RolloutQueue(SOURCE, queue_plan())
    given_back, submitted = queue.lease("g", 0, now=0.0), queue.lease("g", 0, now=0.0)
    queue.give_back(given_back.id)
    queue.submit(submitted.id, numbers(submitted), "x")
    for lease in (given_back, submitted):
        with pytest.raises(RuntimeError, match="has ended before"):
            queue.submit(lease.id, numbers(lease), "late")
        with pytest.raises(RuntimeError, match="has ended before"):
            queue.give_back(lease.id)
    assert (queue.ready, queue.reissued) == (1, 1)


def test_uniform_groups_are_filtered_and_replaced_under_dynamic_sampling():
    queue = RolloutQueue(SOURCE, queue_plan(drop_uniform=True, max_staleness=0))
    leases = all_leases(queue)
    assert len(leases) == 2
    assert queue.submit(leases[0].id, numbers(leases[0], rewards=(0.5, 0.5)), "x") is Outcome.FILTERED
    assert queue.capacity(0) == 1
    assert queue.filtered == 1


def test_a_group_whose_checks_did_not_run_is_dropped_by_name():
    queue = RolloutQueue(SOURCE, queue_plan(max_staleness=0, groups_per_step=1))
    lease = queue.lease("g", 0, now=0.0)
    nan = float("nan")
    assert queue.submit(lease.id, numbers(lease, rewards=(nan, 1.0)), "x") is Outcome.DROPPED
    other = queue.lease("g", 0, now=0.0)
    queue.submit(other.id, numbers(other), "y")
    queue.take()
    assert queue.commit(1).dropped == [(lease.prompt.id, "infra_error")]


def test_a_step_is_committed_before_the_next_is_taken():
    queue = RolloutQueue(SOURCE, queue_plan(groups_per_step=1))
    for lease in all_leases(queue):
        queue.submit(lease.id, numbers(lease), "x")
    assert queue.take() is not None
    with pytest.raises(RuntimeError, match="were not committed"):
        queue.take()


def test_what_a_step_took_but_did_not_commit_is_outstanding_in_the_ledger():
    queue = RolloutQueue(SOURCE, queue_plan(groups_per_step=1))
    lease = queue.lease("g", 0, now=0.0)
    queue.submit(lease.id, numbers(lease), "x")
    queue.take()
    resumed = RolloutQueue(SOURCE, queue_plan(groups_per_step=1), queue.ledger())
    assert resumed.lease("g", 0, now=0.0).prompt.id == lease.prompt.id


def test_take_waits_for_a_running_group_that_would_be_too_stale_one_step_later():
    queue = RolloutQueue(SOURCE, queue_plan(max_staleness=1, groups_per_step=1))
    slow, fast = (queue.lease("g", 0, now=0.0) for _ in range(2))
    queue.submit(fast.id, numbers(fast), "fast")
    assert [ready.payload for ready in queue.take()] == ["fast"]
    queue.commit(1)
    third = queue.lease("g", 1, now=0.0)
    queue.submit(third.id, numbers(third, version=1), "third")
    assert queue.take() is None, "the slow group would be two versions old in the next step"
    queue.submit(slow.id, numbers(slow), "slow")
    assert [ready.payload for ready in queue.take()] == ["slow"]


def test_take_leaves_later_steps_the_room_that_older_groups_need():
    queue = RolloutQueue(SOURCE, queue_plan(max_staleness=2, groups_per_step=1))
    first, second, _third = (queue.lease("g", 0, now=0.0) for _ in range(3))
    queue.submit(first.id, numbers(first), "first")
    queue.take()
    queue.commit(1)
    newer = queue.lease("g", 1, now=0.0)
    queue.submit(newer.id, numbers(newer, version=1), "newer")
    assert queue.take() is None, "with this step gone, the second and the third would share the last that is in time"
    queue.submit(second.id, numbers(second), "second")
    assert [ready.payload for ready in queue.take()] == ["second"]


def test_take_prefers_the_group_of_the_oldest_weights_to_the_one_that_came_back_first():
    queue = RolloutQueue(SOURCE, queue_plan(max_staleness=1, groups_per_step=1))
    quick, slow = all_leases(queue)
    queue.submit(quick.id, numbers(quick), "quick")
    queue.take()
    queue.commit(1)
    newer = queue.lease("h", 1, now=0.0)
    queue.submit(newer.id, numbers(newer, version=1), "newer")
    queue.submit(slow.id, numbers(slow), "slow")
    assert [ready.payload for ready in queue.take()] == ["slow"], "one step later it would be too stale"


class Simulation:
    """Random generators, deaths and filters over a queue; records what was trained, and how stale."""

    def __init__(self, queue: RolloutQueue, draw) -> None:
        self.queue = queue
        self.draw = draw
        self.versions = {"a": queue.version, "b": queue.version}
        self.leases: dict[int, tuple[Lease, int]] = {}
        self.trained: list[str] = []
        self.filtered: list[str] = []
        self.dropped: list[str] = []
        self.staleness: list[int] = []
        self.step = queue.version

    def act(self) -> None:
        action = self.draw(st.sampled_from(["lease", "lease", "submit", "submit", "lose", "step", "publish"]))
        member = self.draw(st.sampled_from(["a", "b"]))
        if action == "lease":
            version = self.versions[member]
            for _ in range(min(self.draw(st.integers(1, 3)), self.queue.capacity(version))):
                lease = self.queue.lease(member, version, now=0.0)
                self.leases[lease.id] = (lease, version)
        elif action == "publish":
            self.versions[member] = self.queue.version
        elif self.leases and action in ("submit", "lose"):
            lease, version = self.leases.pop(self.draw(st.sampled_from(sorted(self.leases))))
            if action == "lose":
                self.queue.give_back(lease.id)
                return
            rewards = self.draw(st.sampled_from([(0.0, 1.0), (1.0, 1.0), (float("nan"), 0.0)]))
            self.queue.submit(lease.id, numbers(lease, version, rewards), lease.prompt.id)
        elif action == "step":
            self.take_and_commit()

    def take_and_commit(self) -> None:
        taken = self.queue.take()
        if taken is None:
            full = self.queue.ready >= self.queue.plan.groups_per_step
            assert self.queue.leased or not full, "nothing runs, and still the step is not given its groups"
            return
        self.staleness += [self.queue.version - ready.numbers.oldest_version for ready in taken]
        self.step += 1
        record = self.queue.commit(self.step)
        self.trained += record.trained
        self.filtered += record.filtered
        self.dropped += [name for name, _ in record.dropped]


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(0, 3), st.booleans())
def test_every_prompt_is_in_one_place_and_staleness_stays_in_its_bound(data, max_staleness, drop_uniform):
    queue = RolloutQueue(SOURCE, queue_plan(max_staleness=max_staleness, drop_uniform=drop_uniform))
    simulation = Simulation(queue, data.draw)
    for _ in range(data.draw(st.integers(10, 80))):
        simulation.act()
    settled = simulation.trained + simulation.filtered + simulation.dropped
    assert len(settled) == len(set(settled)), "a prompt was settled twice"
    ledger = queue.ledger()
    outstanding = [f"{epoch}:{ordinal}" for epoch, ordinal in ledger.outstanding]
    settled += queue._filtered_ids + [name for name, _ in queue._dropped_ids]
    everything = [SOURCE.at(place).id for place in range(ledger.cursor)]
    assert sorted(settled + outstanding) == sorted(everything)
    assert all(0 <= stale <= max_staleness for stale in simulation.staleness)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.booleans())
def test_a_queue_resumed_from_its_ledger_loses_and_doubles_nothing(data, drop_uniform):
    plan = queue_plan(drop_uniform=drop_uniform)
    queue = RolloutQueue(SOURCE, plan)
    before = Simulation(queue, data.draw)
    for _ in range(data.draw(st.integers(5, 40))):
        before.act()
    ledger = queue.ledger()
    settled_before = before.trained + before.filtered + before.dropped
    resumed = RolloutQueue(SOURCE, plan, ledger)
    after = Simulation(resumed, data.draw)
    for _ in range(40):
        after.act()
    settled = settled_before + after.trained + after.filtered + after.dropped
    assert len(settled) == len(set(settled))
    last = resumed.ledger()
    named = settled + last.filtered_ids + [name for name, _ in last.dropped_ids]
    outstanding = [f"{epoch}:{ordinal}" for epoch, ordinal in last.outstanding]
    assert sorted(named + outstanding) == sorted(SOURCE.at(place).id for place in range(last.cursor))
    assert resumed.trained == len(before.trained) + len(after.trained)
