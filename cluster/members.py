"""How the members of the two elastic pools are launched, admitted and watched: the `MemberKind`s of `pool.py`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, cast

import msgspec
import ray
import structlog
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from headrace.actors.generator import Generator, GeneratorSettings, GeneratorStatus
from headrace.actors.member import GeneratorReport
from headrace.actors.shared_memory import release
from headrace.actors.verification import VerificationWorker, WorkerStatus
from headrace.cluster.deadlines import note_outcome, within
from headrace.cluster.errors import MemberUnfit
from headrace.cluster.pool import ElasticPool, Member, SetState
from headrace.cluster.publisher import WeightPublisher
from headrace.cluster.run_records import MemberState, Pool
from headrace.verifiers.base import Verifier

log = structlog.get_logger()

GENERATOR_START_SECONDS = 900.0  # a large model's weights come from a disk or a hub
WORKER_START_SECONDS = 120.0
CALL_SECONDS = 60.0  # for a control call to answer
RATE_SECONDS = 30.0  # tokens count when a request ends, so that a rate over a moment says nothing
HUNG_ENGINE_SECONDS = 120.0  # without an answer; an engine answers between two steps, also a slow one
HUNG_CHECK = 2.0  # a worker whose call has taken so many times the timeout is taken to be hung


class Requirements(msgspec.Struct, frozen=True):
    """Ray resources of one member, by Ray's names."""

    resources: dict[str, float]

    def options(self) -> dict[str, Any]:
        """As keyword arguments of an actor's `.options()`."""
        rest = dict(self.resources)
        known = {
            "num_cpus": rest.pop("CPU", 0),
            "num_gpus": rest.pop("GPU", 0),
            "memory": int(rest.pop("memory", 0)) or None,
        }
        return {**{name: value for name, value in known.items() if value is not None}, "resources": rest}


class RateWindow:
    """What a counter gained a second, over at least the last `seconds` as soon as it has been watched for so long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: deque[tuple[float, float]] = deque()

    def add(self, now: float, count: float) -> float:
        self._seen.append((now, count))
        while len(self._seen) > 2 and now - self._seen[1][0] >= self._seconds:
            self._seen.popleft()
        since, first = self._seen[0]
        return (count - first) / (now - since) if now > since else 0.0


class GeneratorKind:
    pool = Pool.ROLLOUT
    start_seconds = GENERATOR_START_SECONDS

    def __init__(
        self,
        settings: GeneratorSettings,
        requirements: Requirements,
        inflight_groups: int | None,
        group_size: int,
        publisher: WeightPublisher,
        workers: ElasticPool,
    ) -> None:
        """`settings.name` and the engine's seed are made each member's own. `workers`: the verification pool."""
        self.resources = requirements.resources
        self._settings = settings
        self._requirements = requirements
        self._inflight_groups = inflight_groups
        self._group_size = group_size
        self._publisher = publisher
        self._workers = workers
        self.inflight: dict[str, int] = {}  # leases that a member may hold, by name
        self._tokens: dict[str, RateWindow] = {}

    def launch(self, name: str) -> Any:
        serial = int(name.rsplit("-", 1)[1])
        engine = msgspec.structs.replace(self._settings.engine, seed=self._settings.engine.seed + serial)
        settings = msgspec.structs.replace(self._settings, name=name, engine=engine)
        actor: Any = ray.remote(Generator)
        options = self._requirements.options()
        return actor.options(**options, max_restarts=0, max_concurrency=1000).remote(settings)

    async def admit(self, member: Member, set_state: SetState) -> None:
        # Said first: whoever tells the generators of a change among the workers tells those that are at least syncing.
        await set_state(member, MemberState.SYNCING)
        slots = await within(CALL_SECONDS, member.handle.slots.remote())
        self.inflight[member.name] = self._inflight_groups or max(1, -(-slots // self._group_size)) + 1
        workers = {m.name: m.handle for m in self._workers.serving}
        await within(CALL_SECONDS, member.handle.set_workers.remote(workers))
        # A member that is told to go meanwhile just dies for the transfer, which the publisher can bear; a transfer that
        # is cut off would leave the learner sending.
        transfer = asyncio.create_task(self._publisher.admit(member), name=f"admission of {member.name}")
        transfer.add_done_callback(note_outcome)
        await asyncio.shield(transfer)
        await set_state(member, MemberState.ATTESTED)

    async def check(self, member: Member) -> None:
        status: GeneratorStatus = await member.handle.status.remote()
        member.inflight, member.done, member.busy_seconds = status.inflight, status.groups, status.busy_seconds
        member.tokens_per_second = self._tokens.setdefault(member.name, RateWindow(RATE_SECONDS)).add(
            time.monotonic(), status.tokens
        )
        if status.silent_seconds > HUNG_ENGINE_SECONDS:
            raise TimeoutError(f"its engine has not answered for {status.silent_seconds:.0f} s")

    async def drained(self, member: Member) -> bool:
        await self.check(member)
        # The last group may hold tokens of weights that were just swapped in, and counts once the member is attested with
        # them. Asked in this order: a group that has ended by now has no tokens of a swap that begins later.
        return member.inflight == 0 and not self._publisher.is_activating(member.name)

    async def clean(self, member: Member) -> None:
        """An engine's processes are ended before they give back all of their shared memory."""
        self._tokens.pop(member.name, None)
        self.inflight.pop(member.name, None)
        report = member.report
        if not isinstance(report, GeneratorReport) or not report.shared_memory:
            return
        task: Any = ray.remote(num_cpus=0)(release)
        placed = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(report.node_id, soft=False))
        try:
            removed = await within(CALL_SECONDS, placed.remote(report.shared_memory))
        except (RayError, TimeoutError) as error:  # the node is gone, and its memory with it
            log.info("shared_memory_not_released", member=member.name, error=type(error).__name__)
        else:
            log.info("shared_memory_released", member=member.name, segments=len(removed))


class VerificationKind:
    pool = Pool.VERIFICATION
    start_seconds = WORKER_START_SECONDS

    def __init__(
        self,
        run: str,
        host: str,
        verifier: Verifier,
        requirements: Requirements,
        log_dir: str | None,
        timeout_seconds: float,
    ) -> None:
        """`timeout_seconds`: what one call may take; `VerificationClient` gives it as many samples as fit."""
        self.resources = requirements.resources
        self._run = run
        self._host = host
        self._verifier = verifier
        self._requirements = requirements
        self._log_dir = log_dir
        self._hung_seconds = HUNG_CHECK * timeout_seconds

    def launch(self, name: str) -> Any:
        # A thread of its own for `report`: a look at the worker's health does not wait for the check that it is busy with.
        actor = cast(Any, ray.remote)(max_restarts=0, concurrency_groups={"watch": 1})(VerificationWorker)
        return actor.options(**self._requirements.options()).remote(
            self._run, name, self._host, self._verifier, self._log_dir
        )

    async def admit(self, member: Member, set_state: SetState) -> None:
        """Its start has shown all there is to show."""

    async def check(self, member: Member) -> None:
        report: WorkerStatus = await member.handle.report.remote()
        member.inflight, member.done, member.busy_seconds = report.inflight, report.done, report.busy_seconds
        if report.condemned:
            raise MemberUnfit(report.condemned)
        if report.call_seconds > self._hung_seconds:
            raise TimeoutError(f"a call of {report.inflight} sample(s) has hung for {report.call_seconds:.0f} s")

    async def drained(self, member: Member) -> bool:
        await self.check(member)
        return member.inflight == 0

    async def clean(self, member: Member) -> None:
        """A worker shares no memory; what it started ends with it."""
