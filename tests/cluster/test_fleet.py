"""What connects the pools, with members that are no processes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import ray
import structlog

from headrace.actors.generator import GeneratorStatus
from headrace.actors.member import MemberReport
from headrace.actors.verification import WorkerStatus
from headrace.cluster import fleet as module
from headrace.cluster.errors import MemberUnfit
from headrace.cluster.fleet import Fleet, check_room, generator_settings, learner_worker_settings
from headrace.cluster.job_file import load_job
from headrace.cluster.members import HUNG_CHECK, HUNG_ENGINE_SECONDS, GeneratorKind, Requirements, VerificationKind
from headrace.cluster.pool import ElasticPool, Member
from headrace.cluster.preparation import PreparedJob
from headrace.cluster.run_records import MemberState, Pool
from headrace.verifiers.base import Verifier, scored
from headrace.verifiers.errors import UserError
from headrace.verifiers.records import Sample, Verdict
from tests.cluster.pool_fakes import DEADLINE, TIMING, Events, FakeActor, FakeKind, Remote, until

TIMEOUT = 30.0
NODE_ID = "1"


class Handle:
    """A generator's or a worker's."""

    def __init__(self, status: WorkerStatus | None = None) -> None:
        self.calls: list[str] = []
        self.on_workers: Callable[[], None] = lambda: None
        self.on_status: Callable[[], None] = lambda: None
        self.inflight = 0  # of a generator
        self.silent_seconds = 0.0  # its engine
        self._status = status
        self.slots, self.set_workers, self.report = Remote(self._slots), Remote(self._set_workers), Remote(self._report)
        self.status = Remote(self._generator_status)

    async def _slots(self) -> int:
        self.calls.append("slots")
        return 16

    async def _set_workers(self, workers: dict[str, Any]) -> None:
        self.calls.append("set_workers")
        await asyncio.sleep(0)
        self.on_workers()

    async def _generator_status(self) -> GeneratorStatus:
        self.on_status()
        return GeneratorStatus(self.inflight, 3, 100, 1.0, self.silent_seconds)

    async def _report(self) -> WorkerStatus | None:
        return self._status


class Publisher:
    """Brings every member to the newest weights by saying so."""

    def __init__(self) -> None:
        self.activating: set[str] = set()

    def is_activating(self, name: str) -> bool:
        return name in self.activating

    async def admit(self, member: Member) -> None:
        member.handle.calls.append("admit")


async def set_state(member: Member, state: MemberState) -> None:
    member.handle.calls.append(state.value)


def generator_kind(inflight_groups: int | None, group_size: int, publisher: Publisher | None = None) -> GeneratorKind:
    settings: Any = None  # for the launch
    workers: Any = SimpleNamespace(serving=[])
    weights: Any = publisher or Publisher()
    return GeneratorKind(settings, Requirements({}), inflight_groups, group_size, weights, workers)


class Accepting(Verifier):
    def verify(self, sample: Sample) -> Verdict:
        return scored(1.0, "any")


def generator(name: str, state: MemberState) -> Member:
    member = Member(name, 0)
    member.handle, member.state = Handle(), state
    return member


@pytest.mark.parametrize("factor", [0.9, 1.1])
async def test_a_worker_whose_check_hangs_is_found_dead(factor):
    kind = VerificationKind("run", "127.0.0.1", Accepting(), Requirements({}), None, TIMEOUT)
    member = Member("verification-0", 0)
    member.handle = Handle(WorkerStatus(1, 7, 2.0, factor * HUNG_CHECK * TIMEOUT))
    if factor > 1:
        with pytest.raises(TimeoutError, match="hung for 66 s"):
            await kind.check(member)
    else:
        await kind.check(member)
    assert (member.inflight, member.done) == (1, 7)


async def test_a_worker_that_a_generator_found_unfit_is_given_up():
    kind = VerificationKind("run", "127.0.0.1", Accepting(), Requirements({}), None, TIMEOUT)
    member = Member("verification-0", 0)
    member.handle = Handle(WorkerStatus(1, 7, 2.0, 0.0))
    await kind.check(member)
    member.handle = Handle(WorkerStatus(1, 7, 2.0, 0.0, "5 of its last 5 checks failed and ran elsewhere"))
    with pytest.raises(MemberUnfit, match="5 of its last 5"):
        await kind.check(member)


async def test_a_generator_whose_engine_does_not_answer_is_found_dead_and_a_slow_one_is_not():
    kind = generator_kind(None, 8)
    member = generator("rollout-0", MemberState.SERVING)
    member.handle.silent_seconds = 0.9 * HUNG_ENGINE_SECONDS
    await kind.check(member)
    assert member.done == 3
    member.handle.silent_seconds = 1.1 * HUNG_ENGINE_SECONDS
    with pytest.raises(TimeoutError, match="its engine has not answered for 132 s"):
        await kind.check(member)


async def test_a_generator_is_syncing_before_it_is_told_its_workers():
    kind = generator_kind(None, 8)
    member = generator("rollout-0", MemberState.STARTING)
    await kind.admit(member, set_state)
    assert member.handle.calls == ["syncing", "slots", "set_workers", "admit", "attested"]


@pytest.mark.parametrize(
    ("inflight_groups", "group_size", "leases"),
    [(None, 8, 3), (None, 6, 4), (None, 16, 2), (None, 64, 2), (5, 8, 5), (1, 8, 1)],
)
async def test_a_generator_of_16_slots_holds_leases_that_fill_them_and_one_more_unless_the_job_says(
    inflight_groups, group_size, leases
):
    kind = generator_kind(inflight_groups, group_size)
    await kind.admit(generator("rollout-0", MemberState.STARTING), set_state)
    assert kind.inflight == {"rollout-0": leases}


async def test_a_generator_that_is_gone_holds_no_leases():
    kind = generator_kind(None, 8)
    members = [generator(name, MemberState.STARTING) for name in ("rollout-0", "rollout-1")]
    for member in members:
        await kind.admit(member, set_state)
    await kind.clean(members[0])
    assert kind.inflight.keys() == {"rollout-1"}


async def test_a_generator_that_is_being_attested_is_not_drained_although_its_last_group_has_ended():
    publisher = Publisher()
    kind = generator_kind(None, 8, publisher)
    member = generator("rollout-0", MemberState.DRAINING)
    assert await kind.drained(member)
    publisher.activating.add("rollout-0")
    assert not await kind.drained(member)
    publisher.activating.clear()
    member.handle.inflight = 1
    assert not await kind.drained(member)


async def test_a_group_that_ends_after_a_swap_is_waited_for_however_late_the_look_is_answered():
    publisher = Publisher()
    kind = generator_kind(None, 8, publisher)
    member = generator("rollout-0", MemberState.DRAINING)
    member.handle.on_status = lambda: publisher.activating.add("rollout-0")
    assert not await kind.drained(member)


async def test_all_generators_are_told_of_the_workers_although_one_joins_meanwhile():
    members = {name: generator(name, MemberState.SERVING) for name in ("rollout-0", "rollout-1")}
    members["rollout-0"].handle.on_workers = lambda: members.update(late=generator("late", MemberState.STARTING))
    fleet = Fleet.__new__(Fleet)  # the pools of a whole one are of processes
    fleet.rollout = SimpleNamespace(members=members)  # type: ignore[assignment]
    fleet.verification = SimpleNamespace(serving=[])  # type: ignore[assignment]
    await fleet._verification_changed()
    assert [member.handle.calls for member in members.values()] == [["set_workers"], ["set_workers"], []]


async def test_the_queue_is_told_who_is_attested_and_who_is_given_up_as_soon_as_there_is_one():
    told: list[tuple[str, ...]] = []

    async def note(*arguments: Any) -> None:
        told.append(arguments)

    fleet = Fleet.__new__(Fleet)  # the pools of a whole one are of processes
    fleet.queue = None
    await fleet._attested("rollout-0", 1)
    await fleet._given_up("rollout-0")
    fleet.queue = SimpleNamespace(attested=Remote(note), given_up=Remote(note))
    await fleet._attested("rollout-1", 2)
    await fleet._given_up("rollout-2")
    assert told == [("rollout-1", 2), ("rollout-2",)]


class Closing:
    """A pool that ends as it is told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.closed = False

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed = True
        if self.error is not None:
            raise self.error


async def test_every_pool_is_ended_and_every_error_of_it_is_raised_or_logged():
    fleet = Fleet.__new__(Fleet)  # the pools of a whole one are of processes
    pools = [Closing(KeyError("the first")), Closing(KeyError("the second")), Closing()]
    fleet.rollout, fleet.verification, fleet.learner = pools  # type: ignore[assignment]
    with structlog.testing.capture_logs() as lines, pytest.raises(KeyError, match="the first"):
        await fleet.close()
    assert all(pool.closed for pool in pools)
    assert [line["error"] for line in lines] == ["KeyError('the second')"]


def test_a_job_that_outgrows_the_cluster_is_refused_with_what_does_not_fit(letters_job, monkeypatch):
    node = {"NodeManagerAddress": "node-1", "NodeID": "1", "Alive": True, "Resources": {"CPU": 4.0, "memory": 2.0**40}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    job = load_job(letters_job)
    check_room(job, generators=1, workers=1)
    with pytest.raises(UserError, match=r"no place for (rollout|verification)-\d+ .*whole job needs"):
        check_room(job, generators=9, workers=1)
    with pytest.raises(UserError, match="no place for verification-"):
        check_room(job, generators=1, workers=99)


class PlacedKind(FakeKind):
    """Its members say which node they are on."""

    def launch(self, name: str) -> FakeActor:
        actor = super().launch(name)
        start = actor.start.remote

        async def placed() -> MemberReport:
            return msgspec.structs.replace(await start(), node_id=NODE_ID)

        actor.start = Remote(placed)
        return actor


class Shared:
    """A cluster of one node of 8 CPUs that other jobs use too, and a fleet on it whose pools are of no processes."""

    def __init__(self, letters_job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 8.0
        self.looks = 0
        self.on_look: Callable[[], None] = lambda: None
        node = {
            "NodeManagerAddress": "here",
            "NodeID": NODE_ID,
            "Alive": True,
            "Resources": {"CPU": 8.0, "memory": 2.0**40},
        }
        monkeypatch.setattr(ray, "nodes", lambda: [node])
        monkeypatch.setattr(module, "available_resources_per_node", self._available)
        monkeypatch.setattr(module, "FREE_SECONDS", 0.0)
        monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
        self.fleet = Fleet.__new__(Fleet)
        self.fleet._job = load_job(letters_job)
        self.events = Events()
        self.rollout, self.verification = PlacedKind(), PlacedKind()
        self.verification.pool = Pool.VERIFICATION
        self.fleet.rollout = self._pool(self.rollout)
        self.fleet.verification = self._pool(self.verification)

    def _pool(self, kind: FakeKind) -> ElasticPool:
        return ElasticPool(kind, self.events.changed, self.events.told.append, 5, TIMING, self.events.end)

    def _available(self) -> dict[str, dict[str, float]]:
        self.looks += 1
        self.on_look()
        return {NODE_ID: {"CPU": self.free}}


@pytest.fixture
async def shared(letters_job, monkeypatch):
    cluster = Shared(letters_job, monkeypatch)
    for pool in (cluster.fleet.rollout, cluster.fleet.verification):
        await pool.scale(1)
        await pool.wait_serving(1, DEADLINE)
    yield cluster
    for pool in (cluster.fleet.rollout, cluster.fleet.verification):
        await pool.close()


async def test_growth_is_compared_with_what_other_jobs_leave(shared):
    shared.free = 4.0
    await shared.fleet.check_room(2, 2)
    shared.free = 3.0
    await shared.fleet.check_room(2, 1)
    with pytest.raises(
        UserError, match=r"no place now for (rollout|verification)-1 \(2 CPU\), of 2 .*node here: 1 CPU"
    ):
        await shared.fleet.check_room(2, 2)


async def test_a_pool_that_shrinks_makes_room_for_the_other(shared):
    await shared.fleet.rollout.scale(3)
    await shared.fleet.rollout.wait_serving(3, DEADLINE)
    shared.free = 0.0
    with pytest.raises(UserError, match="no place now for verification-1"):
        await shared.fleet.check_room(3, 2)
    await shared.fleet.check_room(2, 2)
    for actor in shared.rollout.actors.values():
        actor.busy = True
    await shared.fleet.rollout.scale(2)
    await shared.fleet.check_room(2, 2)  # it drains, and will give back what it holds


async def test_what_an_ended_member_held_is_waited_for_a_moment(shared, monkeypatch):
    monkeypatch.setattr(module, "FREE_SECONDS", DEADLINE)
    shared.free = 0.0
    shared.on_look = lambda: setattr(shared, "free", 2.0 if shared.looks > 2 else 0.0)
    await shared.fleet.check_room(2, 1)
    assert shared.looks == 3


async def test_who_waits_for_room_already_comes_first(shared):
    shared.rollout.born = lambda actor: setattr(actor, "hangs_in", "place")
    await shared.fleet.rollout.scale(2)
    await until(lambda: shared.fleet.rollout.members["rollout-1"].pending)
    shared.free = 2.0
    with pytest.raises(UserError, match="of 2 new member"):
        await shared.fleet.check_room(2, 2)


def prepared(letters_job: Path, rollout_gpus: float, learner_gpus: float) -> PreparedJob:
    words = [f"--rollout.gpus={rollout_gpus}", f"--learner.gpus={learner_gpus}"]
    letters_job.write_text(letters_job.read_text().replace("threads = 1\n", "" if learner_gpus else "threads = 3\n"))
    job = load_job(letters_job, words)
    # Of a whole one, the settings need this.
    return SimpleNamespace(job=job, model="the/model", verifier=Accepting())  # type: ignore[return-value]


@pytest.mark.parametrize(("gpus", "on_gpu"), [(0, False), (1, True)])
def test_an_engine_computes_where_the_job_has_its_gpus(letters_job, gpus, on_gpu):
    settings = generator_settings(prepared(letters_job, gpus, 0), None, "module:Engine")
    engine = settings.engine
    assert not settings.verify_repeatable, "a check that does not say so is not made twice"
    assert (engine.model, engine.on_gpu) == ("the/model", on_gpu)


@pytest.mark.parametrize(
    ("rollout_gpus", "learner_gpus", "device", "threads", "backend"),
    [(0, 0, "cpu", 3, "gloo"), (1, 1, "cuda", None, "nccl"), (0, 1, "cuda", None, "gloo"), (1, 0, "cpu", 3, "gloo")],
)
def test_the_learner_and_the_weights_way_follow_the_gpus(
    letters_job, rollout_gpus, learner_gpus, device, threads, backend
):
    settings = learner_worker_settings(prepared(letters_job, rollout_gpus, learner_gpus), None)
    assert (settings.learner.device, settings.learner.threads, settings.sync_backend) == (device, threads, backend)
