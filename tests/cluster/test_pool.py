"""The way of a pool's members: every state, death and delay."""

import asyncio

import pytest
from ray.exceptions import RayTaskError

from headrace.cluster.errors import PoolFailed
from headrace.cluster.pool import KEPT_GONE, ElasticPool
from headrace.cluster.run_records import MemberState
from headrace.verifiers.errors import UserError, cause_line
from tests.cluster.pool_fakes import DEADLINE, TIMING, Events, FakeActor, FakeKind, Remote, pool_of, until

WAY = [
    MemberState.STARTING,
    MemberState.SYNCING,
    MemberState.ATTESTED,
    MemberState.SERVING,
    MemberState.DRAINING,
    MemberState.GONE,
]


async def test_a_member_goes_through_all_states_in_order_and_is_ended():
    kind, events = FakeKind(), Events()
    async with pool_of(kind, events) as pool:
        await pool.scale(2)
        await pool.wait_serving(2, DEADLINE)
        assert [member.version for member in pool.serving] == [3, 3]
        await until(lambda: kind.checks >= 4)
        await pool.scale(1)
        leaver = pool.members["rollout-1"]
        await until(lambda: leaver.state is MemberState.GONE)
        assert kind.states["rollout-1"] + [leaver.state] == WAY
        assert leaver.note == "drained"
        assert kind.actors["rollout-1"].closed
        assert events.ended == ["rollout-1"]
        assert [member.name for member in pool.serving] == ["rollout-0"]
    assert events.told == []


async def test_a_dead_member_is_replaced_by_one_that_knows_of_it():
    kind, events = FakeKind(), Events()
    async with pool_of(kind, events) as pool:
        await pool.scale(1)
        await pool.wait_serving(1, DEADLINE)
        kind.actors["rollout-0"].dead = True
        await until(lambda: [member.name for member in pool.serving] == ["rollout-1"])
        assert pool.members["rollout-0"].state is MemberState.GONE
        assert pool.serving[0].restarts == 1
        assert "rollout-0 is lost" in events.told[0]
        assert "rollout-0" in events.ended


async def test_of_the_members_that_are_gone_only_the_last_ones_are_listed():
    kind, events = FakeKind(), Events()
    kind.born = lambda actor: setattr(actor, "dead", int(actor.name.split("-")[1]) < KEPT_GONE + 4)
    async with pool_of(kind, events, restart_budget=100) as pool:
        await pool.scale(1)
        await pool.wait_serving(1, DEADLINE)
        assert list(pool.members) == [f"rollout-{serial}" for serial in range(4, KEPT_GONE + 5)]
        assert pool.replaced == KEPT_GONE + 4


async def test_a_frozen_member_is_found_out_within_the_health_deadline():
    kind, events = FakeKind(), Events()
    async with pool_of(kind, events) as pool:
        await pool.scale(1)
        await pool.wait_serving(1, DEADLINE)
        kind.actors["rollout-0"].hangs_in = "check"
        await until(lambda: [member.name for member in pool.serving] == ["rollout-1"])
        assert "no answer while serving" in pool.members["rollout-0"].note


async def test_a_member_that_someone_else_found_failed_is_replaced_with_the_reason():
    kind, events = FakeKind(), Events()
    async with pool_of(kind, events) as pool:
        await pool.scale(1)
        await pool.wait_serving(1, DEADLINE)
        pool.serving[0].fail("did not receive version 4")
        assert pool.serving == []
        pool.members["rollout-0"].fail("a later reason")
        await until(lambda: [member.name for member in pool.serving] == ["rollout-1"])
        assert pool.members["rollout-0"].note == "did not receive version 4"


async def test_a_hung_start_is_given_up_at_its_deadline_and_replaced():
    kind, events = FakeKind(start_seconds=0.05), Events()

    def born(actor: FakeActor) -> None:
        actor.hangs_in = "start" if actor.name == "rollout-0" else None

    kind.born = born
    async with pool_of(kind, events) as pool:
        await pool.scale(1)
        await pool.wait_serving(1, DEADLINE)
        assert [member.name for member in pool.serving] == ["rollout-1"]
        assert "no answer while starting" in pool.members["rollout-0"].note
        assert events.ended == ["rollout-0"]


async def test_a_member_that_ray_cannot_place_says_what_it_waits_for_until_it_has_it():
    kind, events, room = FakeKind(), Events(), asyncio.Event()

    def born(actor: FakeActor) -> None:
        if actor.name == "rollout-1":
            actor.__ray_ready__ = Remote(room.wait)

    kind.born = born
    async with pool_of(kind, events) as pool:
        await pool.scale(2)
        await until(lambda: bool(events.told))
        waiting = pool.members["rollout-1"]
        assert (waiting.state, waiting.pending) == (MemberState.STARTING, True)
        assert "wait for a node with 2 CPU free" in waiting.status(pool.pool).note
        assert events.told == [f"rollout-1: {waiting.note}"]
        assert pool.missing(2) == ["rollout-1"]
        room.set()
        await pool.wait_serving(2, DEADLINE)
        assert (waiting.pending, waiting.note) == (False, "")


async def test_a_member_that_finds_no_room_in_time_ends_with_what_it_waited_for():
    kind, events = FakeKind(start_seconds=0.1), Events()
    kind.born = lambda actor: setattr(actor, "hangs_in", "place" if actor.name == "rollout-0" else None)
    async with pool_of(kind, events) as pool:
        await pool.scale(1)
        await pool.wait_serving(1, DEADLINE)
        assert "wait for a node with 2 CPU free" in pool.members["rollout-0"].note


async def test_what_a_change_would_need_and_give_back():
    kind, events = FakeKind(), Events()
    async with pool_of(kind, events, restart_budget=0) as pool:
        await pool.scale(3)
        await pool.wait_serving(3, DEADLINE)
        assert pool.missing(5) == ["rollout-3", "rollout-4"]
        assert (pool.missing(3), pool.missing(1)) == ([], [])
        assert [member.name for member in pool.leaving(1)] == ["rollout-1", "rollout-2"]
        kind.actors["rollout-2"].busy = True
        await pool.scale(2)
        await until(lambda: pool.members["rollout-2"].state is MemberState.DRAINING)
        assert [member.name for member in pool.leaving(3)] == ["rollout-2"]
        assert pool.missing(3) == ["rollout-3"]
        kind.actors["rollout-1"].dead = True
        await until(lambda: pool.members["rollout-1"].note.startswith("retired: "))
        assert pool.missing(2) == [], "a place that is retired wants none"
        assert len(pool.missing(3)) == 2, "and is taken up again when the pool grows"


async def test_a_member_that_is_not_attested_never_serves():
    kind, events = FakeKind(), Events()
    kind.refused = {"rollout-0"}
    async with pool_of(kind, events) as pool:
        await pool.scale(1)
        await pool.wait_serving(1, DEADLINE)
        assert [member.name for member in pool.serving] == ["rollout-1"]
        assert MemberState.SERVING not in kind.states["rollout-0"]
        assert "its probe is far off" in pool.members["rollout-0"].note


async def test_spent_restart_budget_fails_the_pool_and_wakes_who_waits_for_it():
    kind, events = FakeKind(), Events()
    kind.born = lambda actor: setattr(actor, "dead", True)
    async with pool_of(kind, events, restart_budget=2) as pool:
        await pool.scale(1)
        with pytest.raises(PoolFailed, match="no members left"):
            await pool.wait_serving(1, DEADLINE)
        assert len(kind.actors) == 3
        assert "restarts are used up" in events.told[-1]
        with pytest.raises(PoolFailed):
            pool.raise_failure()
        pool.failure = None


async def test_a_place_is_retired_while_the_others_go_on():
    kind, events = FakeKind(), Events()
    async with pool_of(kind, events, restart_budget=0) as pool:
        await pool.scale(2)
        await pool.wait_serving(2, DEADLINE)
        kind.actors["rollout-1"].dead = True
        await until(lambda: pool.members["rollout-1"].note.startswith("retired: "))
        pool.raise_failure()
        assert [member.name for member in pool.serving] == ["rollout-0"]


async def test_a_draining_member_finishes_what_it_holds():
    kind, events = FakeKind(), Events()
    async with pool_of(kind, events) as pool:
        await pool.scale(2)
        await pool.wait_serving(2, DEADLINE)
        actor, leaver = kind.actors["rollout-1"], pool.members["rollout-1"]
        actor.busy = True
        await pool.scale(1)
        await until(lambda: MemberState.DRAINING in kind.states["rollout-1"])
        assert leaver not in pool.serving
        assert not actor.closed
        actor.busy = False
        await until(lambda: leaver.state is MemberState.GONE)
        assert actor.closed


async def test_a_member_that_dies_or_freezes_while_draining_is_not_replaced():
    for fault in ("dies", "freezes"):
        kind, events = FakeKind(), Events()
        async with pool_of(kind, events) as pool:
            await pool.scale(2)
            await pool.wait_serving(2, DEADLINE)
            actor = kind.actors["rollout-1"]
            actor.busy, actor.dead = True, fault == "dies"
            actor.hangs_in = "drained" if fault == "freezes" else None
            await pool.scale(1)
            await until(lambda pool=pool: pool.members["rollout-1"].state is MemberState.GONE)
            assert sorted(kind.actors) == ["rollout-0", "rollout-1"]


async def test_scaling_changes_the_number_of_members_and_tells_of_each_change():
    kind, events = FakeKind(), Events()
    async with pool_of(kind, events) as pool:
        await pool.scale(1)
        await pool.wait_serving(1, DEADLINE)
        await pool.scale(3)
        await pool.wait_serving(3, DEADLINE)
        assert events.changes == 3
        await pool.scale(1)
        await until(lambda: sum(m.state is MemberState.GONE for m in pool.members.values()) == 2)
        assert [member.name for member in pool.serving] == ["rollout-0"]
        assert events.changes == 5
        with pytest.raises(ValueError, match="fewer than 1"):
            await pool.scale(0)


async def test_a_member_that_is_to_go_while_it_starts_never_serves():
    kind, events = FakeKind(), Events()
    async with pool_of(kind, events) as pool:
        await pool.scale(2)
        await pool.scale(1)
        await until(lambda: pool.members["rollout-1"].state is MemberState.GONE)
        assert sorted(kind.actors) == ["rollout-0"]


@pytest.mark.parametrize("stage", ["start", "admit"])
async def test_a_member_that_is_to_go_ends_in_the_middle_of_its_start(stage):
    kind, events = FakeKind(), Events()

    def born(actor: FakeActor) -> None:
        actor.hangs_in = stage if actor.name == "rollout-1" else None

    kind.born = born
    async with pool_of(kind, events) as pool:
        await pool.scale(2)
        leaver = pool.members["rollout-1"]
        at = MemberState.STARTING if stage == "start" else MemberState.SYNCING
        await until(lambda: len(pool.serving) == 1 and leaver.handle is not None and leaver.state is at)
        await pool.scale(1)
        await until(lambda: leaver.state is MemberState.GONE)
        assert leaver.note == "told to go before it served"
        assert events.ended == ["rollout-1"]


async def test_scaling_down_and_up_at_once_ends_at_the_target():
    kind, events = FakeKind(), Events()
    async with pool_of(kind, events) as pool:
        await pool.scale(2)
        await pool.wait_serving(2, DEADLINE)
        await pool.scale(1)
        await pool.scale(2)
        await until(lambda: [member.name for member in pool.serving] == ["rollout-0", "rollout-2"])


async def test_a_death_beside_a_draining_member_without_restarts_fails_the_pool():
    kind, events = FakeKind(), Events()
    async with pool_of(kind, events, restart_budget=0) as pool:
        await pool.scale(2)
        await pool.wait_serving(2, DEADLINE)
        kind.actors["rollout-1"].busy = True
        await pool.scale(1)
        await until(lambda: pool.members["rollout-1"].state is MemberState.DRAINING)
        kind.actors["rollout-0"].dead = True
        await until(lambda: pool.members["rollout-0"].state is MemberState.GONE)
        with pytest.raises(PoolFailed, match="no members left"):
            await pool.wait_serving(1, DEADLINE)


async def test_a_drain_that_leaves_the_pool_empty_fails_it():
    kind, events = FakeKind(), Events()
    async with pool_of(kind, events) as pool:
        await pool.scale(1)
        await pool.wait_serving(1, DEADLINE)
        pool.members["rollout-0"].drain.set()
        await until(lambda: pool.members["rollout-0"].state is MemberState.GONE)
        with pytest.raises(PoolFailed, match="the last one: drained"):
            await pool.wait_serving(1, DEADLINE)


async def test_a_mistake_of_the_users_found_in_a_member_fails_the_pool_at_once_with_its_own_line():
    kind, events = FakeKind(), Events()
    mistake = UserError("rollout.engine: no such argument: max_num_sqes")
    kind.fault = RayTaskError("start", "Traceback of the member", mistake).as_instanceof_cause()
    async with pool_of(kind, events) as pool:
        await pool.scale(1)
        with pytest.raises(UserError) as raised:
            await pool.wait_serving(1, DEADLINE)
        assert raised.value is mistake
        await until(lambda: pool.members["rollout-0"].state is MemberState.GONE)
        assert sorted(kind.actors) == ["rollout-0"]


async def test_what_only_a_later_member_is_told_is_that_members_end_and_not_the_pools():
    kind, events = FakeKind(), Events()
    async with pool_of(kind, events) as pool:
        await pool.scale(1)
        await pool.wait_serving(1, DEADLINE)
        kind.fault = UserError("rollout.threads: this node has no core 7")
        await pool.scale(2)
        await until(lambda: pool.members["rollout-1"].state is MemberState.GONE)
        kind.fault = None
        await pool.wait_serving(2, DEADLINE)
        assert pool.failure is None
        assert pool.members["rollout-1"].note == "rollout.threads: this node has no core 7"
        assert "rollout-0" in {member.name for member in pool.serving}


def test_the_line_of_a_validation_error_is_the_one_that_says_what_is_wrong():
    trace = """ray::Generator.start() (pid=1)
Traceback (most recent call last):
pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, max_model_len (9999) is too long [type=value_error, input_value=ArgsKwargs((), {})]
    For further information visit https://errors.pydantic.dev/2.12/v/value_error
"""
    error = RayTaskError("start", trace, ValueError("any"))
    assert cause_line(error) == "Value error, max_model_len (9999) is too long"


async def test_a_pool_grows_only_where_the_cluster_has_room_and_shrinks_without_asking():
    kind, events = FakeKind(), Events()

    async def full(target: int) -> None:
        if target != 2:
            raise UserError(f"no room for {target}")

    pool = ElasticPool(kind, events.changed, events.told.append, 5, TIMING, events.end, full)
    try:
        await pool.scale(2)
        with pytest.raises(UserError, match="no room for 3"):
            await pool.scale(3)
        assert (pool.target, len(pool.members)) == (2, 2)
        await pool.scale(1)
        assert pool.target == 1
    finally:
        await pool.close()


async def test_too_few_serving_members_at_the_deadline_say_where_each_one_is():
    kind, events = FakeKind(), Events()
    kind.born = lambda actor: setattr(actor, "hangs_in", "start")
    async with pool_of(kind, events) as pool:
        await pool.scale(1)
        with pytest.raises(TimeoutError, match="rollout-0 starting"):
            await pool.wait_serving(1, 0.02)


async def test_who_waits_for_all_waits_for_those_that_are_wanted_by_then():
    kind, events = FakeKind(), Events()
    kind.born = lambda actor: setattr(actor, "hangs_in", "start" if actor.name == "rollout-1" else None)
    async with pool_of(kind, events) as pool:
        await pool.scale(2)
        waiting = asyncio.create_task(pool.wait_serving(None, DEADLINE))
        await until(lambda: len(pool.serving) == 1)
        for _ in range(20):  # time enough to be satisfied with one of two
            await asyncio.sleep(0)
        assert not waiting.done()
        await pool.scale(1)
        await waiting
        assert [member.name for member in pool.serving] == ["rollout-0"]


async def test_who_waits_for_all_is_satisfied_when_the_places_that_are_left_serve():
    kind, events = FakeKind(), Events()
    kind.born = lambda actor: setattr(actor, "dead", actor.name == "rollout-1")
    async with pool_of(kind, events, restart_budget=0) as pool:
        await pool.scale(2)
        await pool.wait_serving(None, DEADLINE)
        await until(lambda: pool.members["rollout-1"].note.startswith("retired: "))
        await pool.wait_serving(None, DEADLINE)
        assert [member.name for member in pool.serving] == ["rollout-0"]


async def test_who_waits_for_all_waits_for_a_replacement_too():
    kind, events = FakeKind(), Events()

    def born(actor: FakeActor) -> None:
        actor.dead = actor.name == "rollout-1"
        actor.hangs_in = "start" if actor.name == "rollout-2" else None

    kind.born = born
    async with pool_of(kind, events) as pool:
        await pool.scale(2)
        with pytest.raises(TimeoutError, match=r"^not 2 serving member.*rollout-2 starting"):
            await pool.wait_serving(None, 0.2)


async def test_an_error_of_our_own_fails_the_pool_instead_of_restarting_for_ever():
    kind, events = FakeKind(), Events()

    def broken(actor: FakeActor) -> None:
        raise KeyError("a bug")

    kind.born = broken
    pool = ElasticPool(kind, events.changed, events.told.append, 5, TIMING, events.end)
    await pool.scale(1)
    with pytest.raises(KeyError, match="a bug"):
        await pool.wait_serving(1, DEADLINE)
    assert len(kind.actors) == 1
    with pytest.raises(KeyError, match="a bug"):
        await pool.close()


async def test_closing_ends_every_member_even_one_that_does_not_answer():
    kind, events = FakeKind(), Events()
    async with pool_of(kind, events) as pool:
        await pool.scale(2)
        await pool.wait_serving(2, DEADLINE)
        kind.actors["rollout-1"].hangs_in = "close"
    assert sorted(events.ended) == ["rollout-0", "rollout-1"]
    assert all(member.state is MemberState.GONE for member in pool.members.values())
