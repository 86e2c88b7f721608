"""New weights to members that fail in every way that a member can; a sender and handles that are no processes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError

from headrace.actors.generator import StagedUpdate, StagingFailed
from headrace.actors.weight_sync.transport import GroupAddress
from headrace.cluster.pool import AttestationFailed, Member
from headrace.cluster.publisher import WeightPublisher
from headrace.learner.worker import Snapshot
from headrace.verifiers.records import WeightManifest

CHECKSUM = "c" * 64
PROBE = [[-1.0, -2.0], [-0.5, -0.1]]
FAR_OFF = [[-1.0, -2.0], [-9.0, -9.0]]
DEADLINE = 0.05


class Remote:
    """A method of an actor handle."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.remote = call


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

    async def _send(self) -> float:
        self.sends += 1
        return 0.0


class FakeGenerator:
    """One engine worker or more. `faults` are used up one a transfer: "dies", "freezes", "fails", "garbles"."""

    def __init__(self, faults: tuple[str, ...] = (), probe: list[list[float]] = PROBE) -> None:
        self.faults = list(faults)
        self.dead = False
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
        self.joined.append((address.epoch, rank))

    async def _receive(self, manifest: WeightManifest, deadline_seconds: float) -> StagedUpdate:
        self._alive()
        fault = self.faults.pop(0) if self.faults else None
        if fault == "dies":
            self.dead = True
            raise RayActorError
        if fault == "freezes":
            self.dead = True
            await asyncio.Event().wait()
        if fault == "fails":
            raise StagingFailed("RuntimeError: connection closed by peer")
        self.received.append(manifest.version)
        return StagedUpdate(manifest.version, ["other" if fault == "garbles" else manifest.checksum], 0.0)

    async def _swap(self, version: int, clear_cache: bool) -> float:
        self._alive()
        self.swapped.append(version)
        return 0.25

    async def _probe(self, sequences: list[list[int]]) -> list[list[float]]:
        self._alive()
        self.version_at_probe.append(self.member.version if self.member else None)
        return self.answer_probe


def member_of(name: str, generator: FakeGenerator) -> Member:
    member = Member(name, 0, 0)
    member.handle, generator.member = generator, member
    return member


async def publisher_at(version: int, sender: FakeSender, workers_per_member: int = 1) -> WeightPublisher:
    publisher = WeightPublisher(
        workers_per_member, DEADLINE, [[1, 2, 3], [4, 5, 6]], 0.05, False, grace_seconds=DEADLINE
    )
    publisher.sender = sender
    await hold(publisher, version)
    return publisher


async def hold(publisher: WeightPublisher, version: int) -> None:
    async def make() -> Snapshot:
        return Snapshot(WeightManifest(version, [], CHECKSUM), PROBE, 0.0)

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


async def test_who_is_attested_is_told_of_while_a_slower_member_still_swaps():
    publisher = await publisher_at(7, FakeSender())
    quick, slow = member_of("quick", FakeGenerator()), member_of("slow", FakeGenerator())
    told, gate = asyncio.Event(), asyncio.Event()

    async def slowly(version: int, clear_cache: bool) -> float:
        await gate.wait()
        return 0.1

    async def attested() -> None:
        told.set()

    slow.handle.swap = Remote(slowly)
    publisher.attested = attested
    publishing = asyncio.create_task(publisher.publish([quick, slow]))
    await asyncio.wait_for(told.wait(), DEADLINE)
    assert (quick.version, slow.version) == (7, None)
    gate.set()
    assert (await publishing).members == ["quick", "slow"]


async def test_a_joining_member_waits_for_the_first_weights_and_is_admitted_with_them():
    publisher = WeightPublisher(1, DEADLINE, [[1, 2, 3], [4, 5, 6]], 0.05, False, grace_seconds=DEADLINE)
    publisher.sender = FakeSender()
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


async def test_a_new_snapshot_waits_for_the_transfer_of_the_one_before():
    publisher = await publisher_at(1, FakeSender())
    gate = asyncio.Event()
    generator = FakeGenerator()

    async def slowly(version: int, clear_cache: bool) -> float:
        await gate.wait()
        return await generator._swap(version, clear_cache)

    generator.swap = Remote(slowly)
    publishing = asyncio.create_task(publisher.publish([member_of("a", generator)]))
    while not generator.received:
        await asyncio.sleep(0)
    holding = asyncio.create_task(hold(publisher, 2))
    for _ in range(5):
        await asyncio.sleep(0)
    assert publisher.version == 1
    gate.set()
    assert (await publishing).version == 1
    await holding
    assert publisher.version == 2


async def test_a_failure_of_the_learners_own_end_is_not_blamed_on_a_member():
    sender = FakeSender()

    async def broken() -> float:
        raise RayActorError

    sender.send = Remote(broken)
    member = member_of("a", FakeGenerator())
    with pytest.raises(RayActorError):
        await (await publisher_at(1, sender)).publish([member])
    assert not member.failed.done()


async def test_an_error_that_is_a_bug_is_raised_and_not_taken_for_a_death():
    generator = FakeGenerator()

    async def broken(manifest: WeightManifest, deadline_seconds: float) -> StagedUpdate:
        raise KeyError("a bug")

    generator.receive = Remote(broken)
    with pytest.raises(KeyError, match="a bug"):
        await (await publisher_at(1, FakeSender())).publish([member_of("a", generator)])
