"""An elastic pool: members come and go while the job runs, all by one way.

    starting -> syncing -> attested -> serving -> draining -> gone

One task per member walks it along that way and is the only one that changes its state. A member that dies is replaced until
the pool's restart budget is spent; then its place is retired, and a pool without members fails the job. What differs between
pools (how a member is launched, what it must show before it serves) is a `MemberKind`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
import ray
import structlog
from ray.exceptions import RayError

from headrace.actors.member import MemberReport
from headrace.cluster.deadlines import within
from headrace.cluster.errors import MemberUnfit, PoolFailed, original
from headrace.cluster.placement import describe
from headrace.cluster.run_records import MemberState, MemberStatus, Pool
from headrace.verifiers.errors import UserError, cause_line

log = structlog.get_logger()

NOT_WANTED = "told to go before it served"
KEPT_GONE = 16  # members that are gone and still listed


class PoolTiming(msgspec.Struct, frozen=True):
    """Seconds that the pool grants its members."""

    placement: float = 20.0  # for a new member's process to be there, before something is said
    health: float = 2.0  # between looks at a serving member
    health_deadline: float = 30.0  # for an answer to such a look
    drain_poll: float = 0.2  # between looks at a draining member
    close: float = 15.0  # for a member to end its own processes


class Member:
    """One actor and where it is on its way."""

    def __init__(self, name: str, restarts: int) -> None:
        self.name = name
        self.restarts = restarts
        self.state = MemberState.STARTING
        self.since = time.time()
        self.handle: Any = None
        self.report: MemberReport | None = None
        self.pending = False  # its process is not there, well after it was asked for
        self.version: int | None = None
        self.inflight = 0
        self.done = 0
        self.tokens_per_second = 0.0
        self.busy_seconds = 0.0
        self.note = ""
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.drain = asyncio.Event()

    def fail(self, reason: str) -> None:
        """Say that the member is of no more use; its task ends it and sees to a replacement."""
        if not self.failed.done():
            self.failed.set_result(reason)

    def status(self, pool: Pool) -> MemberStatus:
        report = self.report
        return MemberStatus(
            name=self.name,
            pool=pool,
            state=self.state,
            version=self.version,
            node=report.node if report else "",
            pid=report.pid if report else None,
            since=self.since,
            inflight=self.inflight,
            done=self.done,
            tokens_per_second=self.tokens_per_second,
            restarts=self.restarts,
            metrics_url=report.metrics_url if report else None,
            note=self.note,
        )


SetState = Callable[[Member, MemberState], Awaitable[None]]


class MemberKind(Protocol):
    """What a pool needs to know of its members."""

    pool: Pool
    resources: dict[str, float]  # of one member, by Ray's names
    start_seconds: float  # deadline from launch to the first report

    def launch(self, name: str) -> Any:
        """Create the actor; returns its handle at once."""
        ...

    async def admit(self, member: Member, set_state: SetState) -> None:
        """From started to attested, saying so by `set_state`. Raises AttestationFailed to refuse the member."""
        ...

    async def check(self, member: Member) -> None:
        """Look at a serving member, and update its numbers. Raises MemberUnfit, or what its death raises."""
        ...

    async def drained(self, member: Member) -> bool:
        """Whether a draining member holds nothing more."""
        ...

    async def clean(self, member: Member) -> None:
        """Give back what the ended member may have left on its node."""
        ...


class ElasticPool:
    """Holds the members to `target`. `changed` is called after every change of the serving members, and `tell` with what a
    person should know: a member was lost, and what becomes of its place."""

    def __init__(
        self,
        kind: MemberKind,
        changed: Callable[[], Awaitable[None]],
        tell: Callable[[str], None],
        restart_budget: int = 5,
        timing: PoolTiming = PoolTiming(),
        end: Callable[[Any], None] = ray.kill,
        check_room: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """`end` takes a member's handle and ends its process for certain. `check_room` is asked before the pool grows to so
        many, and raises UserError where the cluster has no room for them."""
        self.kind = kind
        self.pool = kind.pool
        self.members: dict[str, Member] = {}
        self.target = 0
        self._changed = changed
        self._tell = tell
        self._restarts_left = restart_budget
        self.replaced = 0  # members that died and had a successor
        self._serial = 0
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._timing = timing
        self._end_actor = end
        self._check_room = check_room
        self._moved = asyncio.Event()
        self._proven = False  # a member has served, so a member can
        self.failure: BaseException | None = None

    @property
    def serving(self) -> list[Member]:
        """Those that take work; one that was found failed takes no more, although its end takes a while."""
        return [m for m in self.members.values() if m.state is MemberState.SERVING and not m.failed.done()]

    @property
    def _staying(self) -> list[Member]:
        """Those that count towards the target: neither gone nor told to go."""
        leaving = (MemberState.DRAINING, MemberState.GONE)
        return [m for m in self.members.values() if m.state not in leaving and not m.drain.is_set()]

    def missing(self, target: int) -> list[str]:
        """Names of the members that would need a place on a node if there were `target` from now on. Where one of those that
        stay dies at this moment, its successor is not known yet."""
        staying = self._staying[:target]
        new = range(self._serial, self._serial + target - len(staying)) if target > self.target else ()
        return [m.name for m in staying if m.pending] + [f"{self.pool}-{serial}" for serial in new]

    def leaving(self, target: int) -> list[Member]:
        """Members that would then give back what they hold: those that go already, and those that would."""
        staying = self._staying[:target]
        return [m for m in self.members.values() if m.state is not MemberState.GONE and m not in staying]

    async def scale(self, target: int) -> None:
        """Start or drain members until there are `target`; does not wait for them.

        Raises:
            ValueError: `target` is less than 1.
            UserError: the cluster has no room for them; nothing changes.
        """
        if target < 1:
            raise ValueError(f"the {self.pool} pool cannot have fewer than 1 member")
        if target > self.target and self._check_room is not None:
            await self._check_room(target)
        self.target = target
        staying = self._staying
        for member in staying[target:]:
            member.drain.set()
        for _ in range(target - len(staying)):
            self._start(restarts=0)
        self._wake()

    def _start(self, restarts: int) -> None:
        name = f"{self.pool}-{self._serial}"
        member = self.members[name] = Member(name, restarts)
        self._serial += 1
        task = self._tasks[name] = asyncio.create_task(self._live(member), name=f"life of {name}")
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            # A bug of ours, not a member's death: the job must not go on as if nothing were.
            log.error("pool_failed", pool=self.pool, error=repr(error))
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:  # the first one is the cause
            self.failure = error
        self._wake()

    def _wake(self) -> None:
        """Let those who wait for a change of state look again."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def wait_serving(self, count: int | None, deadline_seconds: float) -> None:
        """Until `count` members serve; None: all that are wanted at the moment and whose place is not retired.

        Raises:
            PoolFailed: the pool can no longer reach that.
            TimeoutError: not within the deadline; says what each member does.
        """
        try:
            async with asyncio.timeout(deadline_seconds):
                while not self._serve_enough(count) and self.failure is None:
                    await self._moved.wait()
        except TimeoutError as error:
            states = ", ".join(f"{m.name} {m.state} {m.note}".strip() for m in self.members.values())
            wanted = self.target if count is None else count
            raise TimeoutError(
                f"not {wanted} serving member(s) of the {self.pool} pool after {deadline_seconds:.0f} s: {states}"
            ) from error
        self.raise_failure()

    def _serve_enough(self, count: int | None) -> bool:
        if count is not None:
            return len(self.serving) >= count
        staying, serving = self._staying, self.serving
        return bool(staying) and all(member in serving for member in staying)

    def raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def set_state(self, member: Member, state: MemberState, note: str = "") -> None:
        before, member.state, member.since, member.note = member.state, state, time.time(), note
        log.info("member_state", member=member.name, state=state, before=before, note=note, version=member.version)
        self._proven |= state is MemberState.SERVING
        if MemberState.SERVING in (before, state):
            await self._changed()
        self._wake()

    async def _live(self, member: Member) -> None:
        """The whole way of one member. Ends with the member gone, whatever happens."""
        note, replace = "stopped", False
        try:
            note, replace = await self._way(member)
        except UserError as error:
            mistake = original(error)
            if self._proven:  # the job is right, so it is the place that is wrong: a node without what the others have
                note, replace = str(mistake), True
            else:  # every member would say the same, and no successor mends it
                note = str(mistake)
                self._fail(mistake)
        except (RayError, TimeoutError, MemberUnfit) as error:
            note, replace = (
                f"{type(error).__name__}: {cause_line(error) or member.note or f'no answer while {member.state}'}",
                True,
            )
        finally:
            member.fail(note)
            try:
                if member.state is MemberState.SERVING:
                    await self._changed()  # its end takes a while, and it is given nothing meanwhile
            finally:
                await self._end(member)
                await self.set_state(member, MemberState.GONE, note)
        if replace:
            self._replace(member, note)
        elif not self._staying:
            self._fail_empty(note)
        self._forget_gone()

    def _forget_gone(self) -> None:
        gone = sorted((m for m in self.members.values() if m.state is MemberState.GONE), key=lambda m: m.since)
        for member in gone[:-KEPT_GONE]:
            del self.members[member.name], self._tasks[member.name]

    async def _end(self, member: Member) -> None:
        """Let the member close what it started (an engine is processes of its own), then end its actor for certain."""
        if member.handle is None:
            return
        try:
            await within(self._timing.close, member.handle.close.remote())
        except (RayError, TimeoutError) as error:
            log.info("member_did_not_close", member=member.name, error=f"{type(error).__name__}: {cause_line(error)}")
        finally:
            self._end_actor(member.handle)
        await self.kind.clean(member)

    async def _way(self, member: Member) -> tuple[str, bool]:
        """Why the member ended, and whether it wants a successor."""
        if member.drain.is_set():
            return NOT_WANTED, False
        member.handle = self.kind.launch(member.name)
        if not await self._come(member):
            return NOT_WANTED, False
        if not member.drain.is_set():
            await self.set_state(member, MemberState.SERVING)
            reason = await self._serve(member)
            if reason is not None:
                return reason, True
        await self.set_state(member, MemberState.DRAINING)
        while not await within(self._timing.health_deadline, self.kind.drained(member)):
            await asyncio.sleep(self._timing.drain_poll)
        return "drained", False

    async def _come(self, member: Member) -> bool:
        """Start and admit the member; False as soon as it is told to go before that is done."""
        coming = asyncio.create_task(self._start_and_admit(member))
        drain = asyncio.create_task(member.drain.wait())
        try:
            await asyncio.wait({coming, drain}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                return False
            await coming
            return True
        finally:
            drain.cancel()
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)  # it changes no state once the member is gone

    async def _start_and_admit(self, member: Member) -> None:
        member.report = await within(self.kind.start_seconds, self._place_and_start(member))
        await self.kind.admit(member, self.set_state)

    async def _place_and_start(self, member: Member) -> MemberReport:
        placed = asyncio.ensure_future(member.handle.__ray_ready__.remote())
        try:
            done, _ = await asyncio.wait({placed}, timeout=self._timing.placement)
            if not done:
                # Ray lets an actor that fits nowhere wait, and says so to nobody.
                member.pending = True
                member.note = f"no process yet; it may wait for a node with {describe(self.kind.resources)} free"
                log.warning("member_pending", member=member.name, resources=self.kind.resources)
                self._tell(f"{member.name}: {member.note}")
            await placed
        finally:
            placed.cancel()
        member.pending, member.note = False, ""
        return await member.handle.start.remote()

    async def _serve(self, member: Member) -> str | None:
        """Until the member is to drain (None) or has failed (why)."""
        drain = asyncio.create_task(member.drain.wait())
        try:
            while True:
                done, _ = await asyncio.wait(
                    {drain, member.failed}, timeout=self._timing.health, return_when=asyncio.FIRST_COMPLETED
                )
                if member.failed in done:
                    return member.failed.result()
                if drain in done:
                    return None
                await within(self._timing.health_deadline, self.kind.check(member))
        finally:
            drain.cancel()

    def _replace(self, member: Member, note: str) -> None:
        staying = self._staying
        if len(staying) >= self.target or isinstance(self.failure, UserError):
            return
        if self._restarts_left > 0:
            self._restarts_left -= 1
            self.replaced += 1
            log.warning("member_replaced", member=member.name, reason=note, restarts_left=self._restarts_left)
            self._tell(f"{member.name} is lost ({note}); another one starts, {self._restarts_left} more may")
            self._start(member.restarts + 1)
        else:
            log.error("member_retired", member=member.name, reason=note)
            self._tell(f"{member.name} is lost ({note}) and not replaced: the pool's restarts are used up")
            member.note = f"retired: {note}"
            if not staying:
                self._fail_empty(note)

    def _fail_empty(self, note: str) -> None:
        self._fail(PoolFailed(f"the {self.pool} pool has no members left; the last one: {note}"))

    async def close(self) -> None:
        """End all members, and wait until they are gone."""
        for task in self._tasks.values():
            task.cancel()
        outcomes = await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
