"""New weights to the generators: send, swap, attest. And the same for one generator that joins.

One transfer at a time. The weight-sync group belongs to the members of the day: when they change, or when one dies in a
transfer, the next transfer makes a new group. Generation goes on while the bytes travel; it stands still for the swap only.

A new snapshot waits for the bytes of a transfer under way, and for nothing else here: members swap and are attested with the
snapshot that was sent to them, whatever is the newest by then, so that one which joins does not hold up the learner. (The
training loop makes its next snapshot when the publish of the one before has ended.) A member is in one pair of hands at a
time: publishes go one after the other, and a member joins before it serves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import IntEnum
from typing import Any

import msgspec
import structlog
from ray.exceptions import RayError, RayTaskError

from headrace.actors.engine import EngineDied
from headrace.actors.generator import StagingFailed
from headrace.actors.weight_sync.attestation import attest
from headrace.cluster.deadlines import within
from headrace.cluster.errors import AttestationFailed
from headrace.cluster.pool import Member
from headrace.learner.worker import Snapshot
from headrace.verifiers.errors import cause_line
from headrace.verifiers.records import WeightManifest

log = structlog.get_logger()

LEARNER_START_SECONDS = 900.0  # until there are weights to send
GRACE_SECONDS = 10.0  # beyond a transfer's own deadline, before a call is given up
ADMISSION_ROUNDS = 3  # transfers to a joining member, while the learner makes new versions beside them


class PublishReport(msgspec.Struct, frozen=True):
    version: int
    members: list[str]
    seconds: float  # from the first byte to the last attestation
    transfer_seconds: float
    pause_seconds: float  # the longest that one of them stood still
    probe_distance: float  # the largest; see attestation.probe_distance


class WeightPublisher:
    """Holds the newest snapshot, and brings generators to it."""

    def __init__(
        self,
        sender: Any,
        attested: Callable[[str, int], Awaitable[None]],
        given_up: Callable[[str], Awaitable[None]],
        *,
        workers_per_member: int,
        timeout_seconds: float,
        probe_sequences: list[list[int]],
        probe_tolerance: float,
        clear_cache: bool,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        """`sender`: actor handle of the learner's rank 0. How each activation ends is told, by member name, to `attested`,
        with the version, or to `given_up`."""
        self._sender = sender
        self._attested, self._given_up = attested, given_up
        self._workers = workers_per_member
        self._timeout_seconds = timeout_seconds
        self._grace_seconds = grace_seconds
        self._probe_sequences = probe_sequences
        self._tolerance = probe_tolerance
        self._clear_cache = clear_cache
        self._transfer = asyncio.Lock()
        self._publishing = asyncio.Lock()  # the outer one, where both are held
        self._group: tuple[str, ...] = ()
        self._activating: set[str] = set()
        self._first = asyncio.Event()
        self.snapshot: Snapshot | None = None
        self.syncs = 0

    @property
    def version(self) -> int | None:
        """Of the newest snapshot; None before the first."""
        return self.snapshot.manifest.version if self.snapshot else None

    def is_activating(self, name: str) -> bool:
        """Whether that member swaps or is probed now: how it ends is told before this turns False."""
        return name in self._activating

    def _newest(self) -> Snapshot:
        if self.snapshot is None:
            raise RuntimeError("no weights to send yet: hold a snapshot first")
        return self.snapshot

    async def hold(self, make: Callable[[], Awaitable[Snapshot]]) -> Snapshot:
        """Take a new snapshot, between transfers: the send buffer is one."""
        async with self._transfer:
            self.snapshot = await make()
            self._first.set()
            return self.snapshot

    async def publish(self, members: Sequence[Member]) -> PublishReport:
        """Bring the serving members to the newest snapshot. A member that fails is given up (`Member.fail`), and the
        others are sent to again without it; the report names those that made it."""
        async with self._publishing:
            async with self._transfer:
                start = time.monotonic()
                snapshot = self._newest()
                left, transfer_seconds = await self._send(
                    [member for member in members if not member.failed.done()], snapshot.manifest
                )
            outcomes = await asyncio.gather(*[self._activate(member, snapshot) for member in left])
            done = [(member, outcome) for member, outcome in zip(left, outcomes, strict=True) if outcome is not None]
            self.syncs += bool(done)
            report = PublishReport(
                version=snapshot.manifest.version,
                members=[member.name for member, _ in done],
                seconds=time.monotonic() - start,
                transfer_seconds=transfer_seconds,
                pause_seconds=max((pause for _, (pause, _) in done), default=0.0),
                probe_distance=max((distance for _, (_, distance) in done), default=0.0),
            )
            log.info("weights_published", **msgspec.to_builtins(report))
            return report

    async def admit(self, member: Member) -> None:
        """Bring one joining member to the newest snapshot; the others do not notice.

        Raises:
            AttestationFailed: it did not get there.
            TimeoutError: the learner has not come up.
        """
        await within(LEARNER_START_SECONDS, self._first.wait())
        # A version that is published meanwhile is not for this member, which does not serve yet. With an older one it might
        # never be given work, and a learner that has no other generator would wait for it for ever; one that goes on
        # making versions has others, and this one gets the next with them.
        for _ in range(ADMISSION_ROUNDS):
            async with self._transfer:
                snapshot = self._newest()
                if member.version == snapshot.manifest.version:
                    return
                left, _ = await self._send([member], snapshot.manifest)
            for joined in left:
                await self._activate(joined, snapshot)
            if member.failed.done():
                raise AttestationFailed(member.failed.result())

    async def _send(self, members: list[Member], manifest: WeightManifest) -> tuple[list[Member], float]:
        """Send until all that are left have the bytes; those members, and the seconds of the transfers that brought them.

        Each transfer that breaks ends a member, but for the first without a death and the one that leads to `_send_to_each`:
        their number is bounded by that of the members.
        """
        left, failures = members, 0
        while left:
            start = time.monotonic()
            broken = await self._attempt(left, manifest)
            if not broken:
                return left, time.monotonic() - start
            # One member's failure breaks the transfer for the others too: the dead are given up at once, and the others
            # are sent to again. Without a death to blame, a second failure ends those that it can be put down to.
            worst = max(fault for fault, _ in broken.values())
            failures += worst is not Fault.DEAD
            if worst is Fault.TRANSFER and failures > 1 and len(left) > 1:
                return await self._send_to_each(left, manifest)
            gone = {
                name: said
                for name, (fault, said) in broken.items()
                if fault is worst and (fault is Fault.DEAD or failures > 1)
            }
            left = give_up(left, gone, manifest.version)
        return [], 0.0

    async def _send_to_each(self, members: list[Member], manifest: WeightManifest) -> tuple[list[Member], float]:
        """The same where nobody can be blamed: each is sent to alone, and who fails alone is given up. The others have the
        bytes by that."""
        left, start = members, time.monotonic()
        for member in members:
            broken = await self._attempt([member], manifest)
            left = give_up(left, {name: said for name, (_, said) in broken.items()}, manifest.version)
        return left, time.monotonic() - start

    async def _attempt(self, members: list[Member], manifest: WeightManifest) -> Broken:
        """One transfer to a group of these members; what broke."""
        broken = await self._regroup(members) or await self._transfer_once(members, manifest)
        if broken:
            self._group = ()
            log.warning("transfer_failed", version=manifest.version, to=[each.name for each in members], broken=broken)
        return broken

    async def _transfer_once(self, members: list[Member], manifest: WeightManifest) -> Broken:
        """Broadcast to the group; what broke, by member."""
        deadline = self._timeout_seconds + self._grace_seconds
        sending = within(deadline, self._sender.send.remote())
        receives = [
            within(deadline, member.handle.receive.remote(manifest, self._timeout_seconds)) for member in members
        ]
        sent, *received = await asyncio.gather(sending, *receives, return_exceptions=True)
        broken = sort_out(members, received)
        for member, update in zip(members, received, strict=True):
            if isinstance(update, BaseException) or isinstance(sent, BaseException):
                continue
            if set(update.checksums) != {sent}:
                broken[member.name] = (Fault.OWN, "received other bytes than were sent")
        if isinstance(sent, BaseException) and not broken:
            raise sent  # every member has all, and yet the learner's end failed: not a member's fault
        if isinstance(sent, BaseException):
            log.error("send_failed", version=manifest.version, error=cause_line(sent) or type(sent).__name__)
        return broken

    async def _regroup(self, members: Sequence[Member]) -> Broken:
        """Make the group for these members, unless it is theirs already."""
        names = tuple(member.name for member in members)
        if names == self._group:
            return {}
        # The learner's end of a transfer that broke may still hold its thread, for as long as a transfer may take.
        deadline = self._timeout_seconds + self._grace_seconds
        address = await within(deadline, self._sender.open_group.remote(1 + len(members) * self._workers))
        joins = [
            within(self._grace_seconds, member.handle.join.remote(address, 1 + index * self._workers))
            for index, member in enumerate(members)
        ]
        broken = sort_out(members, await asyncio.gather(*joins, return_exceptions=True))
        if not broken:
            self._group = names
        return broken

    async def _activate(self, member: Member, snapshot: Snapshot) -> tuple[float, float] | None:
        """Swap and attest; (pause seconds, probe distance), or None when the member failed."""
        self._activating.add(member.name)
        try:
            return await self._swap_and_attest(member, snapshot)
        finally:
            self._activating.discard(member.name)

    async def _swap_and_attest(self, member: Member, snapshot: Snapshot) -> tuple[float, float] | None:
        version = snapshot.manifest.version
        try:
            async with asyncio.timeout(self._timeout_seconds):
                pause = await member.handle.swap.remote(version, self._clear_cache)
                probed = await member.handle.probe.remote(self._probe_sequences)
            distance = attest(snapshot.probe_logprobs, probed, self._tolerance)
        except (RayError, TimeoutError, ValueError) as error:
            member.fail(f"not attested with version {version}: {cause_line(error) or type(error).__name__}")
            await self._given_up(member.name)
            return None
        member.version = version
        await self._attested(member.name, version)
        return pause, distance


class Fault(IntEnum):
    """What a broken transfer is put down to in one member; the larger, the surer it is that the member is the cause."""

    TRANSFER = 0  # it reports that the transfer ended without the weights, as all do when one of them fails
    OWN = 1  # an error of its own, or other bytes than were sent
    DEAD = 2  # its process or its engine is gone, or it does not answer


Broken = dict[str, tuple[Fault, str]]
"""What went wrong, by member name: what it is put down to, and the error's first line."""


def give_up(members: list[Member], gone: dict[str, str], version: int) -> list[Member]:
    """Fail those that did not receive the version, for the reasons in `gone` (by name); the others."""
    for member in members:
        if member.name in gone:
            member.fail(f"did not receive version {version}: {gone[member.name]}")
            log.warning("member_given_up", member=member.name, version=version, reason=gone[member.name])
    return [member for member in members if member.name not in gone]


def sort_out(members: Sequence[Member], outcomes: Sequence[Any]) -> Broken:
    """The calls that failed. What is neither a death nor a failed transfer is a bug: the member's, when it was raised there
    (Ray gives it the type `RayTaskError` as well as its own), and logged as an error; ours else, and raised."""
    broken: Broken = {}
    for member, outcome in zip(members, outcomes, strict=True):
        if not isinstance(outcome, BaseException):
            continue
        if isinstance(outcome, StagingFailed):
            fault = Fault.TRANSFER
        elif isinstance(outcome, EngineDied | TimeoutError):
            fault = Fault.DEAD
        elif isinstance(outcome, RayTaskError):
            fault = Fault.OWN
            log.error("transfer_call_failed", member=member.name, error=str(outcome))
        elif isinstance(outcome, RayError):
            fault = Fault.DEAD
        else:
            raise outcome
        broken[member.name] = (fault, cause_line(outcome) or type(outcome).__name__)
    return broken
