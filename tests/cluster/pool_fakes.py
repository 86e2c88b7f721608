"""Members that are no processes: every death and delay is told to them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from ray.exceptions import RayActorError

from headrace.actors.verification import MemberReport
from headrace.cluster.errors import AttestationFailed
from headrace.cluster.pool import ElasticPool, Member, PoolTiming, SetState
from headrace.cluster.run_records import MemberState, Pool

TIMING = PoolTiming(placement=0.02, health=0.005, health_deadline=0.1, drain_poll=0.005, close=0.05)
DEADLINE = 5.0  # of each wait; nothing takes a tenth of it


class Remote:
    """A method of an actor handle."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.remote = call


class FakeActor:
    """What a pool calls on a member's handle."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.hangs_in: str | None = None
        self.busy = False
        self.closed = False
        self.__ray_ready__ = Remote(self._placed)
        self.start = Remote(self._start)
        self.close = Remote(self._close)

    async def answer(self, method: str) -> None:
        if self.dead:
            raise RayActorError
        if self.hangs_in == method:
            await asyncio.Event().wait()

    async def _placed(self) -> None:
        await self.answer("place")

    async def _start(self) -> MemberReport:
        await self.answer("start")
        return MemberReport(pid=1, node="here", metrics_url="http://here:1/metrics")

    async def _close(self) -> None:
        await self.answer("close")
        self.closed = True


class FakeKind:
    """Generators in everything but generating. `born` is told of each new actor before the pool sees it."""

    pool = Pool.ROLLOUT

    def __init__(self, start_seconds: float = DEADLINE) -> None:
        self.resources = {"CPU": 2.0}
        self.cleaned: list[str] = []
        self.start_seconds = start_seconds
        self.actors: dict[str, FakeActor] = {}
        self.states: dict[str, list[MemberState]] = {}
        self.born: Callable[[FakeActor], None] = lambda actor: None
        self.refused: set[str] = set()
        self.fault: BaseException | None = None  # raised by the admission
        self.checks = 0

    def launch(self, name: str) -> FakeActor:
        actor = self.actors[name] = FakeActor(name)
        self.born(actor)
        return actor

    async def admit(self, member: Member, set_state: SetState) -> None:
        self.states[member.name] = [member.state]
        await set_state(member, MemberState.SYNCING)
        self.states[member.name].append(member.state)
        await member.handle.answer("admit")
        if member.name in self.refused:
            raise AttestationFailed("its probe is far off")
        if self.fault is not None:
            raise self.fault
        member.version = 3
        await set_state(member, MemberState.ATTESTED)
        self.states[member.name].append(member.state)

    async def check(self, member: Member) -> None:
        self.checks += 1
        self._note(member)
        await member.handle.answer("check")

    async def clean(self, member: Member) -> None:
        self.cleaned.append(member.name)

    async def drained(self, member: Member) -> bool:
        self._note(member)
        await member.handle.answer("drained")
        return not member.handle.busy

    def _note(self, member: Member) -> None:
        seen = self.states[member.name]
        if seen[-1] is not member.state:
            seen.append(member.state)


class Events:
    """What the pool said, and who was ended."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.ended: list[str] = []
        self.changes = 0

    async def changed(self) -> None:
        self.changes += 1

    def end(self, actor: FakeActor) -> None:
        actor.dead = True
        self.ended.append(actor.name)


@asynccontextmanager
async def pool_of(kind: FakeKind, events: Events, restart_budget: int = 5) -> AsyncIterator[ElasticPool]:
    pool = ElasticPool(kind, events.changed, events.told.append, restart_budget, TIMING, events.end)
    try:
        yield pool
    finally:
        await pool.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the pool's tasks run until the condition holds."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0)
