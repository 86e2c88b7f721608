"""The queue in the cluster: an actor that owns the finished groups, and feeds the generators.

A lease is a call: `generator.generate(lease)` with two return values, whose references belong to this process. Numbers come
back small; the payload stays in the object store until a learner rank fetches it. A generator's death ends exactly its own
calls, at once, and everything it had finished survives it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import ray
import structlog
from prometheus_client import CollectorRegistry
from ray.exceptions import RayActorError, RayError, RayTaskError

from headrace.actors.engine import EngineDied
from headrace.actors.this_node import this_node
from headrace.cluster import metrics
from headrace.cluster.deadlines import within
from headrace.cluster.errors import RunFailed
from headrace.cluster.prompt_source import PromptSource
from headrace.cluster.rollout_queue import CommitRecord, Ledger, Outcome, QueuePlan, RolloutQueue
from headrace.cluster.run_records import QueueStatus
from headrace.verifiers import telemetry
from headrace.verifiers.failed_checks import FailedCheck, failed_checks, most_common_failure
from headrace.verifiers.records import Group, GroupNumbers, decode

log = structlog.get_logger()

ATTEMPTS = 5  # of one prompt that end in an error, deaths and expired leases apart, before the run fails with it
HOPELESS_STEPS = 2  # steps' worth of groups dropped in a row, before the run fails with their reason
PAYLOAD_SECONDS = 60.0  # for a dropped group to arrive here


class GeneratorEntry(msgspec.Struct, frozen=True):
    """A serving generator, as the controller sees it."""

    handle: Any  # actor handle
    version: int  # that it was attested with
    inflight: int  # leases it may hold at a time


class TakenGroup(msgspec.Struct, frozen=True):
    numbers: GroupNumbers
    payload: Any  # ObjectRef of an encoded Group


class Batch(msgspec.Struct, frozen=True):
    """The groups of one step, and what was filtered on the way to them."""

    groups: list[TakenGroup]
    filtered: list[GroupNumbers]
    dropped: int
    ready_left: int
    leased: int


class TakeTimeout(Exception):
    """No full batch within the deadline; the message says what the queue waits for."""


class NotAttested(Exception):
    """A group holds tokens of weights that its generator was never shown to hold."""


class ChecksFailed(RunFailed):
    """Group after group comes back without checks that ran; the message says why."""


class QueueActor:
    """A shell round `RolloutQueue`; every method runs in the actor's event loop."""

    def __init__(
        self,
        run: str,
        source: PromptSource,
        plan: QueuePlan,
        ledger: Ledger | None,
        log_dir: str | None,
        cancel: Callable[[Any], None] = ray.cancel,
    ) -> None:
        telemetry.configure_logging(run, metrics.QUEUE_MEMBER, telemetry.log_stream(log_dir, metrics.QUEUE_MEMBER))
        self._run = run
        self._queue: RolloutQueue[Any] = RolloutQueue(source, plan, ledger)
        self._generators: dict[str, GeneratorEntry] = {}
        self._attested: dict[str, int] = {}  # by generator, the newest version that it was attested with
        self._given_up: set[str] = set()  # generators that are attested with nothing more
        self._calls: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._errors: Counter[str] = Counter()  # by prompt id
        self._failure: BaseException | None = None
        self._dropped_at_take = self._queue.dropped
        self._dropped_in_a_row = 0
        self._failed_checks: list[FailedCheck] = []  # of the groups dropped in a row
        self._cancel = cancel
        self._stopped = False

    async def start(self, host: str) -> str:
        """Serve the queue's metrics on `host`; the URL at which others find them. Raises UserError when that cannot be."""
        exported = metrics.queue_telemetry(self._run)
        before = self._status()

        async def update() -> None:
            metrics.update_from_queue(exported, self._status(), before)

        page = CollectorRegistry()
        page.register(metrics.UpToDate(exported.registry, asyncio.get_running_loop(), update))
        _, port = telemetry.serve_metrics([page], host)
        return telemetry.metrics_url(host, port, this_node().address)

    async def set_generators(self, generators: dict[str, GeneratorEntry]) -> None:
        """The serving members of the moment; a member no longer named finishes what it holds and gets no more."""
        self._generators = generators
        self._attested |= {name: entry.version for name, entry in generators.items()}
        self._given_up -= generators.keys()
        for name in (self._attested.keys() | self._given_up) - generators.keys():
            if not self._queue.held_by(name):
                self._attested.pop(name, None)
                self._given_up.discard(name)
        await self._notify()
        self._dispatch()

    async def attested(self, name: str, version: int) -> None:
        """A generator was shown to hold `version`, whether it serves, drains or is about to serve."""
        self._attested[name] = version
        if name in self._generators:
            entry = msgspec.structs.replace(self._generators[name], version=version)
            self._generators = {**self._generators, name: entry}
        await self._notify()
        self._dispatch()

    async def given_up(self, name: str) -> None:
        """A generator will not be attested with what it holds: it gets no more leases, and what waits for that is given
        back."""
        self._give_up(name)
        await self._notify()

    def _give_up(self, name: str) -> None:
        self._generators = {key: entry for key, entry in self._generators.items() if key != name}
        self._given_up.add(name)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def stop_leasing(self) -> None:
        """No prompt is handed out any more; what is leased comes back as ever."""
        self._stopped = True

    def _dispatch(self) -> None:
        """Grant what admission allows, to the generator with the most room first, one lease at a time."""
        if self._stopped:
            return
        now = time.monotonic()
        while True:
            room = {
                name: entry.inflight - self._queue.held_by(name)
                for name, entry in self._generators.items()
                if self._queue.capacity(entry.version) > 0
            }
            name = max(room, key=lambda key: room[key], default=None)
            if name is None or room[name] <= 0:
                return
            entry = self._generators[name]
            lease = self._queue.lease(name, entry.version, now)
            call = asyncio.create_task(self._generate(name, entry.handle, lease), name=f"lease {lease.id}")
            self._calls.add(call)
            call.add_done_callback(self._call_ended)

    def _call_ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if not call.cancelled() and (error := call.exception()) is not None:
            # Not a generator's fault but ours: the next take fails with it.
            log.error("queue_failed", error=repr(error))
            self._failure = error

    async def _generate(self, name: str, handle: Any, lease: Any) -> None:
        """One lease, from grant to settlement."""
        numbers_ref, payload_ref = handle.generate.options(num_returns=2).remote(lease)
        try:
            async with asyncio.timeout(self._queue.plan.lease_seconds):
                numbers = decode(await numbers_ref, GroupNumbers)
                await self._wait_attested(name, numbers.newest_version)
        except (RayError, TimeoutError, NotAttested) as error:
            lost = isinstance(error, RayActorError | EngineDied)
            if lost:
                # Its other leases learn the same from their own calls; no new one goes there.
                self._give_up(name)
            elif isinstance(error, RayTaskError):
                self._errors[lease.prompt.id] += 1
                if self._errors[lease.prompt.id] == ATTEMPTS:
                    raise
            elif isinstance(error, TimeoutError):
                self._cancel(numbers_ref)
            self._queue.give_back(lease.id)
            log.warning(
                "lease_returned",
                prompt=lease.prompt.id,
                generator=name,
                attempt=lease.attempt,
                reason="generator died" if lost else type(error).__name__,
            )
        else:
            self._errors.pop(lease.prompt.id, None)
            outcome = self._queue.submit(lease.id, numbers, payload_ref)
            if outcome is not Outcome.READY:
                log.info("group_settled", prompt=lease.prompt.id, outcome=outcome, rewards=numbers.rewards)
            if outcome is Outcome.DROPPED:
                await self._note_dropped(payload_ref)
            else:
                self._dropped_in_a_row = 0
                self._failed_checks.clear()
        await self._notify()
        self._dispatch()

    async def _wait_attested(self, name: str, version: int) -> None:
        """An engine goes on with its requests as soon as new weights are in, and is attested beside them: what it finishes
        meanwhile waits here, also when it is told to drain. The publisher says how that ends, within its own deadlines.

        Raises:
            NotAttested: the generator is given up.
        """
        async with self._changed:
            while self._attested[name] < version:
                if name in self._given_up:
                    raise NotAttested
                await self._changed.wait()

    async def _note_dropped(self, payload_ref: Any) -> None:
        """Groups that are all dropped never make a batch: better to end with the reason than to generate for ever."""
        self._dropped_in_a_row += 1
        try:
            group = decode(await within(PAYLOAD_SECONDS, payload_ref), Group)
        except (RayError, TimeoutError) as error:
            log.warning("dropped_group_missing", error=type(error).__name__)
        else:
            self._failed_checks += failed_checks(group.completions)
        if self._dropped_in_a_row >= HOPELESS_STEPS * self._queue.plan.groups_per_step and self._failure is None:
            reason = most_common_failure(self._failed_checks) or "the reason is lost with their generators"
            self._failure = ChecksFailed(
                f"{self._dropped_in_a_row} groups in a row were dropped, fewer than two checks of each ran; {reason}"
            )

    async def take(self, timeout_seconds: float) -> Batch:
        """The groups of the next step.

        Raises:
            TakeTimeout: there is no full batch yet; ask again.
            ChecksFailed: there will be none.
        """
        async with self._changed:
            try:
                taken = await within(timeout_seconds, self._take())
            except TimeoutError as error:
                raise TakeTimeout(self._waits_for()) from error
        groups = [TakenGroup(ready.numbers, ready.payload) for ready in taken]
        dropped, self._dropped_at_take = self._queue.dropped - self._dropped_at_take, self._queue.dropped
        return Batch(groups, self._queue.take_filtered(), dropped, self._queue.ready, self._queue.leased)

    async def _take(self) -> list[Any]:
        while True:
            if self._failure is not None:
                raise self._failure
            taken = self._queue.take()
            if taken is not None:
                return taken
            await self._changed.wait()

    def _waits_for(self) -> str:
        queue = self._queue
        return (
            f"{queue.ready} of {queue.plan.groups_per_step} groups ready, {queue.leased} being generated by "
            f"{len(self._generators)} serving generator(s), the oldest for "
            f"{queue.oldest_lease_seconds(time.monotonic()):.0f} s"
        )

    async def commit(self, step: int) -> CommitRecord:
        record = self._queue.commit(step)
        self._dispatch()
        return record

    async def ledger(self) -> Ledger:
        return self._queue.ledger()

    async def status(self) -> QueueStatus:
        return self._status()

    def _status(self) -> QueueStatus:
        queue = self._queue
        versions = [entry.version for entry in self._generators.values()]
        return QueueStatus(
            leased=queue.leased,
            ready=queue.ready,
            trained=queue.trained,
            filtered=queue.filtered,
            dropped=queue.dropped,
            reissued=queue.reissued,
            capacity=queue.capacity(max(versions)) if versions else 0,
            oldest_lease_seconds=queue.oldest_lease_seconds(time.monotonic()),
        )
