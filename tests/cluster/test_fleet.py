"""What connects the pools, with members that are no processes."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from headrace.actors.verification import WorkerStatus
from headrace.cluster.fleet import Fleet, check_room, generator_settings, learner_worker_settings
from headrace.cluster.job_file import load_job
from headrace.cluster.members import HUNG_CHECK, GeneratorKind, Requirements, VerificationKind
from headrace.cluster.pool import Member
from headrace.cluster.preparation import PreparedJob
from headrace.cluster.run_records import MemberState
from headrace.verifiers.base import Verifier, scored
from headrace.verifiers.errors import UserError
from headrace.verifiers.records import Sample, Verdict

TIMEOUT = 30.0


class Remote:
    """A method of an actor handle."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.remote = call


class Handle:
    """A generator's or a worker's."""

    def __init__(self, status: WorkerStatus | None = None) -> None:
        self.calls: list[str] = []
        self.on_workers: Callable[[], None] = lambda: None
        self._status = status
        self.slots, self.set_workers, self.report = Remote(self._slots), Remote(self._set_workers), Remote(self._report)

    async def _slots(self) -> int:
        self.calls.append("slots")
        return 16

    async def _set_workers(self, workers: dict[str, Any]) -> None:
        self.calls.append("set_workers")
        await asyncio.sleep(0)
        self.on_workers()

    async def _report(self) -> WorkerStatus | None:
        return self._status


class Publisher:
    """Brings every member to the newest weights by saying so."""

    async def admit(self, member: Member) -> None:
        member.handle.calls.append("admit")


async def set_state(member: Member, state: MemberState) -> None:
    member.handle.calls.append(state.value)


def generator_kind(inflight_groups: int | None, group_size: int) -> GeneratorKind:
    kind = GeneratorKind(None, Requirements({}), inflight_groups, group_size)  # type: ignore[arg-type]  # settings are for the launch
    kind.publisher = Publisher()  # type: ignore[assignment]
    kind.workers = SimpleNamespace(serving=[])  # type: ignore[assignment]
    return kind


class Accepting(Verifier):
    def verify(self, sample: Sample) -> Verdict:
        return scored(1.0, "any")


def generator(name: str, state: MemberState) -> Member:
    member = Member(name, 0, 0)
    member.handle, member.state = Handle(), state
    return member


@pytest.mark.parametrize("factor", [0.9, 1.1])
async def test_a_worker_whose_check_hangs_is_found_dead(factor):
    kind = VerificationKind("run", "127.0.0.1", Accepting(), Requirements({}), None, TIMEOUT)
    member = Member("verification-0", 0, 0)
    member.handle = Handle(WorkerStatus(1, 7, 2.0, factor * HUNG_CHECK * TIMEOUT))
    if factor > 1:
        with pytest.raises(TimeoutError, match="hung for 66 s"):
            await kind.check(member)
    else:
        await kind.check(member)
    assert (member.inflight, member.done) == (1, 7)


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


def test_a_job_that_outgrows_the_cluster_is_refused_with_what_does_not_fit(letters_job, monkeypatch):
    node = {"NodeManagerAddress": "node-1", "Alive": True, "Resources": {"CPU": 4.0, "memory": 2.0**40}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    job = load_job(letters_job)
    check_room(job, generators=1, workers=1)
    with pytest.raises(UserError, match=r"no place for (rollout|verification)-\d+ .*whole job needs"):
        check_room(job, generators=9, workers=1)
    with pytest.raises(UserError, match="no place for verification-"):
        check_room(job, generators=1, workers=99)


def prepared(letters_job: Path, rollout_gpus: float, learner_gpus: float) -> PreparedJob:
    words = [f"--rollout.gpus={rollout_gpus}", f"--learner.gpus={learner_gpus}"]
    job = load_job(letters_job, [*words, "--learner.threads", "3"])
    return SimpleNamespace(job=job, model="the/model")  # type: ignore[return-value]  # of a whole one, the settings need this


@pytest.mark.parametrize(("gpus", "on_gpu"), [(0, False), (1, True)])
def test_an_engine_computes_where_the_job_has_its_gpus(letters_job, gpus, on_gpu):
    engine = generator_settings(prepared(letters_job, gpus, 0), None, "module:Engine").engine
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
