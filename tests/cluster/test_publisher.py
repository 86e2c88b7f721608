"""New weights to members that fail in every way that a member can; a sender and handles that are no processes."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import structlog.testing
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from headrace.actors.engine import EngineDied
from headrace.actors.generator import StagedUpdate, StagingFailed
from headrace.actors.weight_sync.transport import GroupAddress
from headrace.cluster.errors import AttestationFailed
from headrace.cluster.pool import Member
from headrace.cluster.publisher import ADMISSION_ROUNDS, WeightPublisher
from headrace.cluster.run_records import MemberState
from headrace.learner.worker import Snapshot
from headrace.verifiers.records import WeightManifest

CHECKSUM = "c" * 64
PROBE = [[-1.0, -2.0], [-0.5, -0.1]]
FAR_OFF = [[-1.0, -2.0], [-9.0, -9.0]]
DEADLINE = 0.05
LONG = 5.0  # nothing that is no fault takes a tenth of it


class Remote:
    """A method of an actor handle: what it raises in its own process comes as Ray makes it."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call = call

    async def remote(self, *arguments: Any) -> Any:
        try:
            return await self._call(*arguments)
        except (RayActorError, ObjectLostError):  # raised by Ray
            raise
        except (StagingFailed, KeyError, RuntimeError) as error:
            raise over_ray(error) from None


def over_ray(error: Exception) -> Exception:
    """As Ray raises it in the caller."""
    name = type(error).__name__
    return RayTaskError("method", f"Traceback\n{name}: {error}", error).as_instanceof_cause()


class FakeSender:
    """The learner's rank 0. Its transfer ends when every member of the group has answered or is dead, as a real one's."""

    def __init__(self) -> None:
        self.groups: list[int] = []  # world sizes
        self.sends = 0
        self.open_group = Remote(self._open_group)
        self.send = Remote(self._send)

    async def _open_group(self, world_size: int) -> GroupAddress:
        self.groups.append(world_size)
        return GroupAddress(len(self.groups), "127.0.0.1", 1, world_size, "gloo", DEADLINE)

    async def _send(self) -> str:
        self.sends += 1
        return CHECKSUM


class FakeGenerator:
    """One engine worker or more. `faults` are used up one a transfer: "dies", "freezes", "fails", "garbles", "bug"."""

    def __init__(self, faults: tuple[str, ...] = (), probe: list[list[float]] = PROBE) -> None:
        self.faults = list(faults)
        self.dead = False
        self.updating = False
        self.joined: list[tuple[int, int]] = []  # (epoch, rank)
        self.received: list[int] = []
        self.swapped: list[int] = []
        self.version_at_probe: list[int | None] = []
        self.member: Member | None = None
        self.answer_probe = probe
        for name in ("join", "receive", "swap", "probe"):
            setattr(self, name, Remote(getattr(self, f"_{name}")))

    def _alive(self) -> None:
        if self.dead:
            raise RayActorError

    async def _join(self, address: GroupAddress, rank: int) -> None:
        self._alive()
        self.updating = False
        self.joined.append((address.epoch, rank))

    async def _receive(self, manifest: WeightManifest, deadline_seconds: float) -> StagedUpdate:
        self._alive()
        if self.updating:
            raise RuntimeError("start_weight_update called while a weight update is already active")
        fault = self.faults.pop(0) if self.faults else None
        if fault == "dies":
            self.dead = True
            raise RayActorError
        if fault == "freezes":
            self.dead = True
            await asyncio.Event().wait()
        if fault == "fails":
            raise StagingFailed("RuntimeError: connection closed by peer")
        if fault == "bug":
            raise KeyError("a bug")
        self.updating = True
        self.received.append(manifest.version)
        return StagedUpdate(["other" if fault == "garbles" else CHECKSUM])

    async def _swap(self, version: int, clear_cache: bool) -> float:
        self._alive()
        self.updating = False
        self.swapped.append(version)
        return 0.25

    async def _probe(self, sequences: list[list[int]]) -> list[list[float]]:
        self._alive()
        self.version_at_probe.append(self.member.version if self.member else None)
        return self.answer_probe


def member_of(name: str, generator: FakeGenerator) -> Member:
    member = Member(name, 0)
    member.handle, generator.member = generator, member
    return member


class Told:
    """What the publisher tells of its members."""

    def __init__(self) -> None:
        self.attested: dict[str, int] = {}
        self.given_up: list[str] = []
        self.changed = asyncio.Event()
        self.while_told: Callable[[str], None] = lambda name: None

    async def note_attested(self, name: str, version: int) -> None:
        self.attested[name] = version
        self._note(name)

    async def note_given_up(self, name: str) -> None:
        self.given_up.append(name)
        self._note(name)

    def _note(self, name: str) -> None:
        self.changed.set()
        self.while_told(name)


def new_publisher(
    sender: FakeSender, told: Told | None = None, workers_per_member: int = 1, deadline: float = DEADLINE
) -> WeightPublisher:
    told = told or Told()
    return WeightPublisher(
        sender,
        told.note_attested,
        told.note_given_up,
        workers_per_member=workers_per_member,
        timeout_seconds=deadline,
        probe_sequences=[[1, 2, 3], [4, 5, 6]],
        probe_tolerance=0.05,
        clear_cache=False,
        grace_seconds=deadline,
    )


async def publisher_at(
    version: int,
    sender: FakeSender,
    told: Told | None = None,
    workers_per_member: int = 1,
    deadline: float = DEADLINE,
) -> WeightPublisher:
    publisher = new_publisher(sender, told, workers_per_member, deadline)
    await hold(publisher, version)
    return publisher


async def hold(publisher: WeightPublisher, version: int, probe: list[list[float]] = PROBE) -> None:
    async def make() -> Snapshot:
        return Snapshot(WeightManifest(version, []), probe, 0.0)

    await publisher.hold(make)


async def test_every_member_swaps_and_its_version_counts_only_once_it_is_attested():
    generators = [FakeGenerator(), FakeGenerator()]
    members = [member_of(f"rollout-{i}", generator) for i, generator in enumerate(generators)]
    publisher = await publisher_at(7, FakeSender())
    report = await publisher.publish(members)
    assert report.members == ["rollout-0", "rollout-1"]
    assert report.version == 7
    assert report.pause_seconds == 0.25
    assert [generator.version_at_probe for generator in generators] == [[None], [None]]
    assert [member.version for member in members] == [7, 7]
    assert publisher.syncs == 1


async def test_the_group_is_made_again_only_when_the_members_change():
    sender = FakeSender()
    a, b = FakeGenerator(), FakeGenerator()
    members = [member_of("a", a), member_of("b", b)]
    publisher = await publisher_at(0, sender)
    for version in (1, 2):
        await hold(publisher, version)
        await publisher.publish(members)
    assert sender.groups == [3]
    assert a.joined == [(1, 1)]
    assert b.joined == [(1, 2)]
    await publisher.publish(members[1:])
    assert sender.groups == [3, 2]
    assert b.joined == [(1, 2), (2, 1)]
    assert sender.sends == 3


async def test_each_engine_gets_ranks_of_its_own_for_all_its_workers():
    sender = FakeSender()
    a, b = FakeGenerator(), FakeGenerator()
    publisher = await publisher_at(0, sender, workers_per_member=2)
    await publisher.publish([member_of("a", a), member_of("b", b)])
    assert sender.groups == [5]
    assert (a.joined, b.joined) == ([(1, 1)], [(1, 3)])


async def test_a_member_that_dies_in_a_transfer_is_given_up_and_the_others_are_sent_to_again():
    sender = FakeSender()
    # A death closes the connections: the survivor reports a failed transfer, through no fault of its own.
    a, b = FakeGenerator(("dies",)), FakeGenerator(("fails",))
    members = [member_of("a", a), member_of("b", b)]
    report = await (await publisher_at(1, sender)).publish(members)
    assert report.members == ["b"]
    assert "did not receive version 1" in members[0].failed.result()
    assert not members[1].failed.done()
    assert sender.groups == [3, 2]
    assert b.received == [1]
    assert members[0].version is None


async def test_a_version_that_reached_nobody_is_no_sync():
    dying = member_of("a", FakeGenerator(("dies",)))
    publisher = await publisher_at(1, FakeSender())
    assert (await publisher.publish([dying])).members == []
    assert publisher.syncs == 0


async def test_a_member_that_has_all_bytes_survives_the_death_of_another_and_receives_again():
    a, b = FakeGenerator(), FakeGenerator(("dies",))
    members = [member_of("a", a), member_of("b", b)]
    report = await (await publisher_at(1, FakeSender())).publish(members)
    assert report.members == ["a"]
    assert (a.received, a.swapped) == ([1, 1], [1])
    assert a.joined == [(1, 1), (2, 1)]


@pytest.mark.parametrize(
    "error",
    [RayActorError(), over_ray(EngineDied("killed")), TimeoutError(), ObjectLostError("00" * 28, None, "")],
    ids=["process", "engine", "no answer", "answer lost with its node"],
)
async def test_who_is_gone_is_given_up_at_once(error):
    sender, a = FakeSender(), FakeGenerator()
    members = [member_of("a", a), member_of("b", FakeGenerator(("fails",)))]

    async def broken(manifest: WeightManifest, deadline_seconds: float) -> StagedUpdate:
        raise error

    a.receive = SimpleNamespace(remote=broken)
    report = await (await publisher_at(1, sender)).publish(members)
    assert report.members == ["b"]
    assert sender.groups == [3, 2]


async def test_a_frozen_member_delays_the_others_no_longer_than_its_deadline():
    a, b = FakeGenerator(("freezes",)), FakeGenerator(("fails",))
    members = [member_of("a", a), member_of("b", b)]
    publisher = await publisher_at(1, FakeSender())
    async with asyncio.timeout(20 * DEADLINE):
        report = await publisher.publish(members)
    assert report.members == ["b"]
    assert members[0].failed.done()


async def test_a_member_that_only_reports_a_failed_transfer_is_tried_once_more():
    generator = FakeGenerator(("fails",))
    member = member_of("a", generator)
    report = await (await publisher_at(1, FakeSender())).publish([member])
    assert report.members == ["a"]
    assert generator.joined == [(1, 1), (2, 1)]


async def test_a_member_whose_transfers_fail_twice_is_given_up():
    member = member_of("a", FakeGenerator(("fails", "fails")))
    report = await (await publisher_at(1, FakeSender())).publish([member])
    assert report.members == []
    assert "connection closed by peer" in member.failed.result()


class BadLink:
    """Several members of which one's connection is bad and shows it nowhere: a transfer with it fails for all."""

    def __init__(self, count: int, bad: set[str], fault: str = "fails") -> None:
        self.sender = FakeSender()
        self.members = [member_of(f"rollout-{index}", FakeGenerator()) for index in range(count)]
        self.transfers: list[list[str]] = []
        self._bad = bad
        self._fault = fault
        for member in self.members:
            member.handle.receive = Remote(self._receiver(member))

    def _receiver(self, member: Member) -> Callable[..., Awaitable[StagedUpdate]]:
        async def receive(manifest: WeightManifest, deadline_seconds: float) -> StagedUpdate:
            group = [each for each in self.members if each.handle.joined[-1:] and self._in_epoch(each)]
            names = [each.name for each in group]
            if member is group[0]:
                self.transfers.append(names)
            if self._bad & set(names):
                if len(names) == 1 and self._fault == "dies":
                    raise RayActorError
                raise StagingFailed("no complete weights after 60 s")
            return await member.handle._receive(manifest, deadline_seconds)

        return receive

    def _in_epoch(self, member: Member) -> bool:
        return member.handle.joined[-1][0] == len(self.sender.groups)


@pytest.mark.parametrize("fault", ["fails", "dies"])
async def test_where_nobody_can_be_blamed_each_is_sent_to_alone_and_who_fails_alone_is_given_up(fault):
    fleet = BadLink(4, {"rollout-1"}, fault)
    report = await (await publisher_at(7, fleet.sender)).publish(fleet.members)
    names = [member.name for member in fleet.members]
    assert report.members == ["rollout-0", "rollout-2", "rollout-3"]
    assert fleet.transfers == [names, names, *[[name] for name in names]], "no more than these, whatever fails"
    assert "did not receive version 7" in fleet.members[1].failed.result()
    assert not any(member.failed.done() for member in fleet.members if member.name != "rollout-1")
    assert [member.handle.swapped for member in fleet.members] == [[7], [], [7], [7]]


async def test_after_sending_to_each_alone_the_others_are_one_group_again():
    fleet = BadLink(3, {"rollout-2"})
    publisher = await publisher_at(1, fleet.sender)
    await publisher.publish(fleet.members)
    await hold(publisher, 2)
    report = await publisher.publish([member for member in fleet.members if not member.failed.done()])
    assert report.members == ["rollout-0", "rollout-1"]
    assert fleet.transfers[-1] == ["rollout-0", "rollout-1"]


async def test_every_member_that_fails_alone_is_given_up():
    fleet = BadLink(3, {"rollout-0", "rollout-1", "rollout-2"})
    report = await (await publisher_at(7, fleet.sender)).publish(fleet.members)
    assert report.members == []
    assert all(member.failed.done() for member in fleet.members)
    assert len(fleet.transfers) == 5


async def test_a_death_in_the_second_try_is_not_charged_to_the_survivors():
    a, b, c = FakeGenerator(("fails",)), FakeGenerator(("fails", "fails")), FakeGenerator(("fails", "dies"))
    members = [member_of(name, generator) for name, generator in (("a", a), ("b", b), ("c", c))]
    report = await (await publisher_at(1, FakeSender())).publish(members)
    assert report.members == ["a", "b"]
    assert members[2].failed.done()


async def test_bytes_other_than_those_sent_are_never_swapped_in():
    generator = FakeGenerator(("garbles", "garbles"))
    member = member_of("a", generator)
    report = await (await publisher_at(1, FakeSender())).publish([member])
    assert report.members == []
    assert generator.swapped == []
    assert "other bytes than were sent" in member.failed.result()


@pytest.mark.parametrize(
    "probe",
    [FAR_OFF, [[-1.0, -2.0], [float("nan"), -0.1]], [[-1.0, -2.0]], [[-1.0], [-0.5]]],
    ids=["far off", "nan", "a sequence short", "a token short"],
)
async def test_a_probe_out_of_tolerance_fails_the_member_and_leaves_its_version(probe):
    member = member_of("a", FakeGenerator(probe=probe))
    member.version = 0
    report = await (await publisher_at(1, FakeSender())).publish([member])
    assert report.members == []
    assert "not attested with version 1" in member.failed.result()
    assert member.version == 0


async def test_a_member_that_dies_in_the_swap_is_given_up_and_the_others_are_attested():
    a, b = FakeGenerator(), FakeGenerator()
    members = [member_of("a", a), member_of("b", b)]

    async def die(version: int, clear_cache: bool) -> float:
        raise RayActorError

    a.swap = Remote(die)
    report = await (await publisher_at(1, FakeSender())).publish(members)
    assert report.members == ["b"]
    assert members[0].failed.done()


async def test_members_that_were_given_up_before_are_not_sent_to():
    a, b = FakeGenerator(), FakeGenerator()
    members = [member_of("a", a), member_of("b", b)]
    members[0].fail("frozen")
    sender = FakeSender()
    await (await publisher_at(1, sender)).publish(members)
    assert sender.groups == [2]
    assert a.received == []


class Gate:
    """Keeps a generator in its swap or its probe until it is opened."""

    def __init__(self, generator: FakeGenerator, method: str) -> None:
        self.reached, self._open = asyncio.Event(), asyncio.Event()
        self._then = getattr(generator, f"_{method}")
        setattr(generator, method, Remote(self._pass))

    async def _pass(self, *arguments: Any) -> Any:
        self.reached.set()
        await self._open.wait()
        return await self._then(*arguments)

    def open(self) -> None:
        self._open.set()


async def test_who_is_attested_is_told_of_while_a_slower_member_still_swaps():
    told = Told()
    publisher = await publisher_at(7, FakeSender(), told, deadline=LONG)
    quick, slow = member_of("quick", FakeGenerator()), member_of("slow", FakeGenerator())
    gate = Gate(slow.handle, "swap")
    publishing = asyncio.create_task(publisher.publish([quick, slow]))
    await asyncio.wait_for(told.changed.wait(), LONG)
    assert told.attested == {"quick": 7}
    assert (quick.version, slow.version) == (7, None)
    gate.open()
    assert (await publishing).members == ["quick", "slow"]
    assert told.attested == {"quick": 7, "slow": 7}


async def test_a_member_that_is_told_to_drain_during_a_publish_is_attested_and_told_of():
    told = Told()
    publisher = await publisher_at(7, FakeSender(), told, deadline=LONG)
    member = member_of("a", FakeGenerator())
    gate = Gate(member.handle, "probe")
    publishing = asyncio.create_task(publisher.publish([member]))
    await asyncio.wait_for(gate.reached.wait(), LONG)
    member.drain.set()
    member.state = MemberState.DRAINING
    gate.open()
    await publishing
    assert (told.attested, told.given_up) == ({"a": 7}, [])


@pytest.mark.parametrize("ends", ["far off", "dies", "hangs"])
async def test_a_member_that_is_given_up_during_a_publish_is_told_of(ends):
    told = Told()
    publisher = await publisher_at(7, FakeSender(), told)
    generator = FakeGenerator(probe=FAR_OFF if ends == "far off" else PROBE)
    gate = Gate(generator, "probe")
    publishing = asyncio.create_task(publisher.publish([member_of("a", generator)]))
    await asyncio.wait_for(gate.reached.wait(), LONG)
    generator.dead = ends == "dies"
    if ends != "hangs":
        gate.open()
    await publishing
    assert (told.attested, told.given_up) == ({}, ["a"])


@pytest.mark.parametrize("probe", [PROBE, FAR_OFF], ids=["attested", "given up"])
@pytest.mark.parametrize("method", ["swap", "probe"])
async def test_a_member_is_activating_from_its_swap_until_it_was_told_how_that_ended(method, probe):
    told = Told()
    publisher = await publisher_at(7, FakeSender(), told, deadline=LONG)
    generator = FakeGenerator(probe=probe)
    gate, seen = Gate(generator, method), []
    told.while_told = lambda name: seen.append(publisher.is_activating(name))
    assert not publisher.is_activating("a")
    publishing = asyncio.create_task(publisher.publish([member_of("a", generator)]))
    await asyncio.wait_for(gate.reached.wait(), LONG)
    assert publisher.is_activating("a")
    gate.open()
    await publishing
    assert seen == [True]
    assert not publisher.is_activating("a")


async def test_swap_and_probe_have_one_deadline(monkeypatch):
    publisher = await publisher_at(7, FakeSender(), deadline=LONG)
    generator = FakeGenerator()
    loop = asyncio.get_running_loop()
    begin, passed = loop.time(), 0.0
    monkeypatch.setattr(loop, "time", lambda: begin + passed)

    async def slowly(*arguments: Any) -> Any:
        nonlocal passed
        passed += 0.6 * LONG
        for _ in range(5):  # for the loop to see what time it is
            await asyncio.sleep(0)
        return PROBE

    generator.swap = generator.probe = Remote(slowly)
    member = member_of("a", generator)
    await publisher.publish([member])
    assert member.failed.result() == "not attested with version 7: TimeoutError"


async def test_a_joining_member_waits_for_the_first_weights_and_is_admitted_with_them():
    publisher = new_publisher(FakeSender())
    member = member_of("a", FakeGenerator())
    admission = asyncio.create_task(publisher.admit(member))
    await asyncio.sleep(0)
    assert member.handle.joined == []
    await hold(publisher, 4)
    await admission
    assert member.version == 4


async def test_a_joining_member_that_is_not_attested_is_refused():
    publisher = await publisher_at(4, FakeSender())
    with pytest.raises(AttestationFailed, match="not attested with version 4"):
        await publisher.admit(member_of("a", FakeGenerator(probe=FAR_OFF)))


async def test_a_new_snapshot_waits_for_the_bytes_of_the_one_before_and_not_for_swap_and_probe():
    publisher = await publisher_at(1, FakeSender(), deadline=LONG)
    generator = FakeGenerator()
    receive, swap = Gate(generator, "receive"), Gate(generator, "swap")
    publishing = asyncio.create_task(publisher.publish([member_of("a", generator)]))
    await asyncio.wait_for(receive.reached.wait(), LONG)
    holding = asyncio.create_task(hold(publisher, 2))
    for _ in range(5):
        await asyncio.sleep(0)
    assert publisher.version == 1
    receive.open()
    await asyncio.wait_for(swap.reached.wait(), LONG)
    await asyncio.wait_for(holding, LONG)
    assert publisher.version == 2
    swap.open()
    assert (await publishing).version == 1


@pytest.mark.parametrize("method", ["swap", "probe"])
async def test_a_joining_member_that_hangs_stops_neither_the_learner_nor_the_others(method):
    publisher = await publisher_at(1, FakeSender(), deadline=LONG)
    joiner, other = FakeGenerator(), FakeGenerator()
    gate = Gate(joiner, method)
    admission = asyncio.create_task(publisher.admit(member_of("joiner", joiner)))
    await asyncio.wait_for(gate.reached.wait(), LONG)
    async with asyncio.timeout(LONG / 2):
        await hold(publisher, 2)
        assert (await publisher.publish([member_of("other", other)])).members == ["other"]
    assert not admission.done()
    gate.open()
    await admission


async def test_a_member_is_attested_against_the_version_that_was_sent_to_it_although_there_is_a_newer_one():
    publisher = await publisher_at(1, FakeSender(), deadline=LONG)
    generator = FakeGenerator()
    gate = Gate(generator, "swap")
    member = member_of("a", generator)
    publishing = asyncio.create_task(publisher.publish([member]))
    await asyncio.wait_for(gate.reached.wait(), LONG)
    await hold(publisher, 2, probe=FAR_OFF)
    gate.open()
    report = await publishing
    assert (report.version, report.members) == (1, ["a"])
    assert (generator.swapped, member.version) == ([1], 1)


async def test_a_second_publish_leaves_members_alone_until_the_first_has_attested_them():
    publisher = await publisher_at(1, FakeSender(), deadline=LONG)
    generator = FakeGenerator()
    gate = Gate(generator, "probe")
    member = member_of("a", generator)
    first = asyncio.create_task(publisher.publish([member]))
    await asyncio.wait_for(gate.reached.wait(), LONG)
    await hold(publisher, 2)
    second = asyncio.create_task(publisher.publish([member]))
    for _ in range(5):
        await asyncio.sleep(0)
    assert (generator.received, generator.swapped) == ([1], [1])
    gate.open()
    assert [report.version for report in await asyncio.gather(first, second)] == [1, 2]
    assert (generator.received, generator.swapped) == ([1, 2], [1, 2])
    assert member.version == 2


async def test_a_joining_member_comes_to_the_version_that_was_made_while_it_was_attested():
    publisher = await publisher_at(1, FakeSender(), deadline=LONG)
    generator = FakeGenerator()
    gate = Gate(generator, "probe")
    member = member_of("a", generator)
    admission = asyncio.create_task(publisher.admit(member))
    await asyncio.wait_for(gate.reached.wait(), LONG)
    await hold(publisher, 2)
    await publisher.publish([])
    gate.open()
    await admission
    assert (generator.swapped, member.version) == ([1, 2], 2)


async def test_a_joining_member_does_not_run_after_a_fast_learner_for_ever():
    publisher = await publisher_at(1, FakeSender(), deadline=LONG)
    generator = FakeGenerator()
    member = member_of("a", generator)

    async def meanwhile_there_is_a_newer_one(sequences: list[list[int]]) -> list[list[float]]:
        await hold(publisher, len(generator.swapped) + 1)
        return PROBE

    generator.probe = Remote(meanwhile_there_is_a_newer_one)
    await asyncio.wait_for(publisher.admit(member), LONG)
    assert generator.swapped == list(range(1, ADMISSION_ROUNDS + 1))


async def test_without_a_snapshot_there_is_no_version_and_nothing_to_publish():
    publisher = new_publisher(FakeSender())
    assert publisher.version is None
    with pytest.raises(RuntimeError, match="hold a snapshot first"):
        await publisher.publish([])
    await hold(publisher, -1)
    assert publisher.version == -1


async def test_a_failure_of_the_learners_own_end_is_not_blamed_on_a_member():
    sender = FakeSender()

    async def broken() -> float:
        raise RayActorError

    sender.send = Remote(broken)
    member = member_of("a", FakeGenerator())
    with pytest.raises(RayActorError):
        await (await publisher_at(1, sender)).publish([member])
    assert not member.failed.done()


async def test_a_members_bug_ends_that_member_after_the_second_time_and_is_logged_as_an_error():
    sender = FakeSender()
    a, b = FakeGenerator(("bug", "bug")), FakeGenerator(("fails", "fails"))
    members = [member_of("a", a), member_of("b", b)]
    with structlog.testing.capture_logs() as logs:
        report = await (await publisher_at(1, sender)).publish(members)
    assert report.members == ["b"], "the others' transfers fail with it, through no fault of theirs"
    assert members[0].failed.result() == "did not receive version 1: KeyError: 'a bug'"
    assert sender.groups == [3, 3, 2]
    errors = [entry for entry in logs if entry["log_level"] == "error"]
    assert [entry["member"] for entry in errors] == ["a", "a"]
    assert all("KeyError: 'a bug'" in entry["error"] for entry in errors)


async def test_a_bug_that_happened_once_costs_nobody_his_place():
    members = [member_of("a", FakeGenerator(("bug",))), member_of("b", FakeGenerator(("fails",)))]
    report = await (await publisher_at(1, FakeSender())).publish(members)
    assert report.members == ["a", "b"]


async def test_a_bug_on_this_side_of_the_calls_is_raised():
    generator = FakeGenerator()

    async def broken(manifest: WeightManifest, deadline_seconds: float) -> StagedUpdate:
        raise KeyError("a bug")

    generator.receive = SimpleNamespace(remote=broken)
    with pytest.raises(KeyError, match="a bug"):
        await (await publisher_at(1, FakeSender())).publish([member_of("a", generator)])
