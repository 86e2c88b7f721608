"""The three pools of a run and what connects them: who serves is told to the queue and to the generators as it changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

import ray
import structlog
from ray._private.state import available_resources_per_node  # DeveloperAPI, and nowhere else by node
from ray.exceptions import RayError

from headrace.actors.engine import EngineSettings
from headrace.actors.generator import GeneratorSettings
from headrace.cluster.config import JobConfig
from headrace.cluster.deadlines import within
from headrace.cluster.learner_pool import LearnerPool, launch_ranks
from headrace.cluster.members import CALL_SECONDS, GeneratorKind, Requirements, VerificationKind
from headrace.cluster.placement import (
    Bundle,
    Node,
    bundles,
    check_fits,
    check_growth,
    custom_resources,
    free_nodes,
    member_resources,
    ray_nodes,
    with_released,
)
from headrace.cluster.pool import ElasticPool, Member
from headrace.cluster.preparation import PreparedJob
from headrace.cluster.publisher import PublishReport, WeightPublisher
from headrace.cluster.queue_actor import GeneratorEntry
from headrace.cluster.run_records import MemberState, MemberStatus, Pool
from headrace.learner.losses import LossOptions
from headrace.learner.settings import LearnerSettings
from headrace.learner.worker import WorkerSettings
from headrace.verifiers.errors import UserError

log = structlog.get_logger()

START_SECONDS = 1800.0
FREE_SECONDS = 5.0  # until what an ended process held is free
POLL_SECONDS = 0.5
LOOK_SECONDS = 2.0  # for an answer that only a percentage in the metrics waits for
VLLM_ENGINE = "headrace.actors.vllm_engine:VllmEngine"


class Fleet:
    """Starts, connects, watches and ends the pools."""

    def __init__(
        self,
        prepared: PreparedJob,
        custom: frozenset[str],
        log_dir: str | None,
        tell: Callable[[str], None],
        engine_class: str = VLLM_ENGINE,
    ) -> None:
        """`tell` gets what a person should know of the pools."""
        job = self._job = prepared.job
        self.started = time.time()
        self._probe_sequences = prepared.probe_sequences
        self._paused: list[Member] = []
        self.queue: Any = None  # actor handle, once there is something to lease
        learner = learner_worker_settings(prepared, log_dir)
        self.learner = LearnerPool(
            launch_ranks(learner, Requirements(member_resources(job, Pool.LEARNER, custom))), learner.learner
        )
        self.publisher = WeightPublisher(
            self.learner.sender,
            self._attested,
            self._given_up,
            workers_per_member=job.rollout.tensor_parallel_size,
            timeout_seconds=job.weight_sync.timeout_seconds,
            probe_sequences=prepared.probe_sequences,
            probe_tolerance=job.weight_sync.probe_tolerance,
            clear_cache=job.weight_sync.clear_cache,
        )
        self.verification = ElasticPool(
            VerificationKind(
                job.job.name,
                job.metrics.host,
                prepared.verifier,
                Requirements(member_resources(job, Pool.VERIFICATION, custom)),
                log_dir,
                job.verification.timeout_seconds,
            ),
            self._verification_changed,
            tell,
            job.placement.restarts,
            check_room=lambda workers: self.check_room(self.rollout.target, workers),
        )
        self._generators = GeneratorKind(
            generator_settings(prepared, log_dir, engine_class),
            Requirements(member_resources(job, Pool.ROLLOUT, custom)),
            job.rollout.inflight_groups,
            job.algorithm.group_size,
            self.publisher,
            self.verification,
        )
        self.rollout = ElasticPool(
            self._generators,
            self._rollout_changed,
            tell,
            job.placement.restarts,
            check_room=lambda generators: self.check_room(generators, self.verification.target),
        )

    async def check_room(self, generators: int, workers: int) -> None:
        """Whether the pools can have so many members: in the cluster, and in what is free of it now, beside other jobs.

        What those that go still hold counts as free, so that one pool makes room for the other. A member may still find
        none, when another job is quicker or one of ours dies at this moment: it says then that it waits (`Member.pending`).

        Raises:
            UserError: there is no room; names what fits nowhere.
        """
        check_room(self._job, generators, workers)
        deadline = asyncio.get_running_loop().time() + FREE_SECONDS
        while True:
            changes = ((self.rollout, generators), (self.verification, workers))
            try:
                return check_growth(*self._growth(changes))
            except UserError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(POLL_SECONDS)  # what a process held is free a moment after its end

    def _growth(self, changes: Iterable[tuple[ElasticPool, int]]) -> tuple[list[Bundle], list[Node]]:
        """What is to be placed when the pools have these targets, and where there is room for it."""
        wanted = [
            Bundle(name, pool.pool, pool.kind.resources) for pool, target in changes for name in pool.missing(target)
        ]
        released = [
            (member.report.node_id, pool.kind.resources)
            for pool, target in changes
            for member in pool.leaving(target)
            if member.report is not None
        ]
        return wanted, with_released(free_nodes(ray.nodes(), available_resources_per_node()), released)

    async def start(self) -> None:
        """All pools side by side; returns when the learner is up. The generators follow once they have its weights."""
        await self.verification.scale(self._job.verification.workers)
        await self.rollout.scale(self._job.rollout.generators)
        await self.learner.start()

    async def wait_serving(self) -> None:
        """Until every member of the two elastic pools serves that is still wanted by then."""
        await self.verification.wait_serving(None, START_SECONDS)
        await self.rollout.wait_serving(None, START_SECONDS)

    async def hold_snapshot(self, version: int) -> float:
        """Make the learner's present weights the newest version; the seconds that the learner spent on it."""
        snapshot = await self.publisher.hold(lambda: self.learner.snapshot(version, self._probe_sequences))
        return snapshot.seconds

    async def publish(self) -> PublishReport:
        """Bring the serving generators to the newest version, and let the queue know."""
        report = await self.publisher.publish(self.rollout.serving)
        await self._rollout_changed()
        return report

    async def attach_queue(self, queue: Any) -> None:
        self.queue = queue
        await self._rollout_changed()

    async def _rollout_changed(self) -> None:
        if self.queue is None:
            return
        entries = {
            member.name: GeneratorEntry(member.handle, member.version, self._generators.inflight[member.name])
            for member in self.rollout.serving
            if member.version is not None
        }
        await within(CALL_SECONDS, self.queue.set_generators.remote(entries))

    async def _attested(self, name: str, version: int) -> None:
        if self.queue is not None:
            await within(CALL_SECONDS, self.queue.attested.remote(name, version))

    async def _given_up(self, name: str) -> None:
        if self.queue is not None:
            await within(CALL_SECONDS, self.queue.given_up.remote(name))

    async def _verification_changed(self) -> None:
        workers = {member.name: member.handle for member in self.verification.serving}
        reached = (MemberState.SYNCING, MemberState.ATTESTED, MemberState.SERVING, MemberState.DRAINING)
        members = [member for member in self.rollout.members.values() if member.state in reached]
        await asyncio.gather(*[self._tell(member, member.handle.set_workers.remote(workers)) for member in members])

    async def pause_generators(self) -> None:
        """Freeze every request where it is: the learner gets the cores."""
        self._paused = self.rollout.serving
        await asyncio.gather(*[self._tell(member, member.handle.pause.remote()) for member in self._paused])

    async def resume_generators(self) -> None:
        """Those that were paused, also one that was told to go meanwhile: it has requests to finish."""
        paused, self._paused = self._paused, []
        living = [member for member in paused if member.state is not MemberState.GONE]
        await asyncio.gather(*[self._tell(member, member.handle.resume.remote()) for member in living])

    async def _tell(self, member: Member, call: Any) -> None:
        """A call whose failure is the member's end, and not ours."""
        try:
            await within(CALL_SECONDS, call)
        except (RayError, TimeoutError) as error:
            member.fail(f"{type(error).__name__} in a control call")

    def raise_failure(self) -> None:
        """Raise what ended a pool, if anything did."""
        self.rollout.raise_failure()
        self.verification.raise_failure()

    def member_statuses(self) -> list[MemberStatus]:
        elastic = [m.status(p.pool) for p in (self.rollout, self.verification) for m in p.members.values()]
        return elastic + self.learner.status(self.publisher.version, self.started)

    async def busy_seconds(self) -> dict[str, float]:
        """Seconds that each pool has worked since its start, averaged over its serving members; of one that does not answer
        at once, what it said last."""
        averages = {Pool.LEARNER.value: self.learner.busy_seconds}
        pools = (self.rollout, self.verification)
        looks = [asyncio.ensure_future(pool.kind.check(member)) for pool in pools for member in pool.serving]
        _, late = await asyncio.wait(looks, timeout=LOOK_SECONDS) if looks else (set(), set())
        for look in late:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)  # the pools' own looks find out who is dead
        for pool in pools:
            members = pool.serving
            averages[pool.pool.value] = sum(m.busy_seconds for m in members) / max(1, len(members))
        return averages

    async def close(self) -> None:
        """End all pools at once, each to its end whatever becomes of the others. Raises the first error; the others are
        logged."""
        closing = (self.rollout.close(), self.verification.close(), self.learner.close())
        outcomes = await asyncio.gather(*closing, return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for error in errors[1:]:
            log.error("pool_not_closed", error=repr(error))
        if errors:
            raise errors[0]


def check_room(job: JobConfig, generators: int, workers: int) -> None:
    """Raises UserError, naming what fits nowhere, when the cluster cannot hold the job with so many members."""
    rollout = job.rollout.model_copy(update={"generators": generators})
    verification = job.verification.model_copy(update={"workers": workers})
    resized = job.model_copy(update={"rollout": rollout, "verification": verification})
    nodes = ray_nodes(ray.nodes())
    check_fits(bundles(resized, custom_resources(nodes)), nodes)


def generator_settings(prepared: PreparedJob, log_dir: str | None, engine_class: str) -> GeneratorSettings:
    job = prepared.job
    return GeneratorSettings(
        run=job.job.name,
        name="",
        host=job.metrics.host,
        engine=EngineSettings(
            model=prepared.model,
            max_length=job.model.max_length,
            dtype=job.rollout.dtype,
            seed=job.job.seed,
            tensor_parallel_size=job.rollout.tensor_parallel_size,
            threads=job.rollout.threads,
            kv_cache_bytes=job.rollout.kv_cache_bytes,
            on_gpu=job.rollout.gpus > 0,
            options=job.rollout.engine,
        ),
        verify_timeout_seconds=job.verification.timeout_seconds,
        verify_attempts=job.verification.attempts,
        verify_repeatable=prepared.verifier.repeatable(),
        log_dir=log_dir,
        engine_class=engine_class,
    )


def learner_worker_settings(prepared: PreparedJob, log_dir: str | None) -> WorkerSettings:
    job = prepared.job
    on_gpu = job.learner.gpus > 0
    return WorkerSettings(
        run=job.job.name,
        host=job.metrics.host,
        learner=LearnerSettings(
            model=prepared.model,
            total_steps=job.job.steps,
            seed=job.job.seed,
            device="cuda" if on_gpu else "cpu",
            loss=LossOptions(**{field.name: getattr(job.algorithm, field.name) for field in fields(LossOptions)}),
            serving_dtype=job.rollout.dtype,
            dithered_rounding=job.weight_sync.rounding == "dithered",
            **learner_values(job),
        ),
        world_size=job.learner.ranks,
        sync_backend="nccl" if on_gpu and job.rollout.gpus > 0 else "gloo",
        sync_timeout_seconds=job.weight_sync.timeout_seconds,
        log_dir=log_dir,
    )


def learner_values(job: JobConfig) -> dict[str, Any]:
    """What `[algorithm]` and `[learner]` have under the names of the learner's settings: by name, so none is forgotten."""
    names = LearnerSettings.__struct_fields__
    return {name: value for section in (job.algorithm, job.learner) for name, value in section if name in names}
