"""The training loop, in the order in which things happen: start, evaluate, warm start, then step by step

    take a batch -> learn -> commit -> snapshot -> publish (beside the next step) -> record -> checkpoint

and at the end evaluate, export, sum up. Everything that can take long says so through `_phase`, which the display shows.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import ray
import structlog
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from headrace.cluster import evaluation
from headrace.cluster.checkpoint import CheckpointState, CheckpointStore
from headrace.cluster.deadlines import within
from headrace.cluster.evaluation import EvaluationResult, Evaluator
from headrace.cluster.fleet import Fleet
from headrace.cluster.pool import RunFailed, first_line, original
from headrace.cluster.preparation import PreparedJob
from headrace.cluster.publisher import PublishReport
from headrace.cluster.queue_actor import Batch, QueueActor, TakeTimeout
from headrace.cluster.rollout_queue import Ledger, QueuePlan
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_recorder import RunRecorder
from headrace.cluster.run_records import QueueStatus, SampleRecord
from headrace.cluster.step_record import StepTimes, step_record
from headrace.learner.worker import StepReport
from headrace.verifiers.records import Group, decode

log = structlog.get_logger()

Result = TypeVar("Result")

BASE_VERSION = -1  # the base model's weights, when a warm start comes before version 0
POLL_SECONDS = 1.0  # between looks at the queue; a stop request waits no longer than that
QUEUE_SECONDS = 60.0  # for the queue's actor to answer
SAMPLES_PER_STEP = 2  # groups of which a step keeps one completion for samples.jsonl
SAMPLE_SECONDS = 10.0  # for those to arrive


class Stopped(Exception):
    """The user asked the run to stop; what is done is saved."""


class StalledError(RunFailed):
    """Nothing came within the deadline; the message says what was waited for."""


class Controller:
    """One run. `run` does all of it; `request_stop` ends it in order, at the next point where nothing is lost."""

    def __init__(self, prepared: PreparedJob, fleet: Fleet, folder: RunFolder, recorder: RunRecorder) -> None:
        self._prepared = prepared
        self._job = prepared.job
        self._fleet = fleet
        self._folder = folder
        self._recorder = recorder
        self._checkpoints = CheckpointStore(folder.checkpoints, self._job.checkpoint.keep)
        self._evaluator = self._make_evaluator()
        self._results: dict[str, EvaluationResult] = {}
        self._stop = asyncio.Event()
        self._publishing: asyncio.Task[PublishReport] | None = None
        self._step = 0
        self._saved_step = 0

    def request_stop(self) -> None:
        self._stop.set()

    def _make_evaluator(self) -> Evaluator | None:
        prepared, settings = self._prepared, self._job.evaluation
        if prepared.held_out is None:
            return None
        return Evaluator(prepared.held_out, settings.prompts, settings.samples, prepared.sampling)

    async def run(self) -> None:
        """From nothing, or from a checkpoint, to the exported model.

        Raises:
            Stopped: on request.
            PoolFailed, StalledError, ChecksFailed, EvaluationFailed, RayError: the run cannot go on; the message says why.
        """
        checkpoint = self._checkpoints.newest()
        async with self._queue(checkpoint.state.ledger if checkpoint else None) as queue:
            if checkpoint is not None:
                self._step = self._saved_step = checkpoint.state.step
            await self._start(None if checkpoint is None else str(checkpoint.learner))
            if checkpoint is None:
                await self._begin()
            else:
                self._results = self._recorder.load_results()
            self._recorder.queue = queue
            await self._fleet.attach_queue(queue)
            await self._learn()
        await self._finish()

    async def _start(self, checkpoint: str | None) -> None:
        rollout, learner = self._job.rollout, self._job.learner
        with self._phase(f"starting {rollout.generators} generator(s) and {learner.ranks} learner rank(s)"):
            await self._until(self._fleet.start())
            if checkpoint is not None:
                step = await self._until(self._fleet.learner.load(checkpoint))
                if step != self._step:
                    raise RunFailed(
                        f"{checkpoint} holds the learner of step {step}, and the state of step {self._step}"
                    )
                self._recorder.event(f"resumed from the checkpoint of step {step}")
            version = self._fleet.learner.steps if checkpoint else (BASE_VERSION if self._prepared.warm_start else 0)
            await self._until(self._fleet.hold_snapshot(version))
        with self._phase("waiting for the generators to receive and attest the first weights"):
            await self._until(self._fleet.wait_serving())

    async def _begin(self) -> None:
        """What comes before the first step: the base model's score, and the warm start."""
        await self._evaluate("before")
        if self._prepared.warm_start:
            await self._warm_start()
            await self._evaluate("warm")

    async def _warm_start(self) -> None:
        settings = self._job.warm_start
        if settings is None:
            raise RuntimeError("no [warm_start] section")
        examples = self._prepared.warm_start
        batches = math.ceil(len(examples) / settings.batch_size)
        loss = float("nan")
        for epoch in range(settings.epochs):
            for index in range(batches):
                batch = examples[index * settings.batch_size : (index + 1) * settings.batch_size]
                what = f"warm start on {len(examples)} examples: epoch {epoch + 1}/{settings.epochs}, batch {index + 1}"
                with self._phase(f"{what}/{batches}"):
                    loss = await self._until(self._fleet.learner.supervised_step(batch, settings.learning_rate))
            self._recorder.event(f"warm start: epoch {epoch + 1}/{settings.epochs}, loss {loss:.3f} nats a token")
        with self._phase("publishing the warm-started weights"):
            await self._fleet.learner.finish_supervised()
            await self._fleet.hold_snapshot(0)
            await self._until(self._publish())

    @asynccontextmanager
    async def _queue(self, ledger: Ledger | None) -> AsyncIterator[Any]:
        """The queue's actor; it comes up beside the pools, and leases nothing before it is attached to them."""
        job, prepared = self._job, self._prepared
        plan = QueuePlan(
            group_size=job.algorithm.group_size,
            groups_per_step=job.algorithm.groups_per_step,
            steps=job.job.steps,
            max_staleness=job.rollout.max_staleness,
            sampling=prepared.sampling,
            lease_seconds=job.rollout.lease_seconds,
            drop_uniform=job.algorithm.dynamic_sampling,
        )
        actor: Any = ray.remote(QueueActor)
        # Beside the controller: an actor that asks for nothing may land on any node, and a pool's node may be taken away.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = actor.options(max_restarts=0, max_concurrency=100, num_cpus=0, scheduling_strategy=here)
        queue = options.remote(job.job.name, prepared.train, plan, ledger, self._recorder.log_dir)
        try:
            yield queue
        finally:
            self._recorder.queue = None
            self._fleet.queue = None
            ray.kill(queue)

    async def _learn(self) -> None:
        """Step by step to the end."""
        turns = takes_turns(self._prepared)
        try:
            while self._step < self._job.job.steps:
                times = StepTimes.start(await self._fleet.busy_seconds())
                with self._phase(
                    f"waiting for the {self._job.algorithm.groups_per_step} groups of step {self._step + 1}"
                ):
                    batch = await self._take()
                times.mark("wait")
                if turns:
                    # A frozen engine cannot show that it holds the version before: that ends first.
                    times.sync = await self._published()
                    await self._fleet.pause_generators()
                report = await self._train(batch)
                times.add_learner(report)
                if not turns:
                    times.sync = await self._published()
                times.snapshot_seconds = await self._fleet.hold_snapshot(self._step)
                if turns:
                    await self._fleet.resume_generators()
                self._publishing = asyncio.create_task(self._publish(), name=f"publish version {self._step}")
                await self._record(batch, report, times)
                await self._after_step()
            await self._save()
            await self._published()
        except Stopped:
            await self._save()
            await self._published()
            raise
        except (RunFailed, RayError, OSError):  # OSError: a deadline that has passed
            await self._forget_publishing()
            await self._save_before_the_end()
            raise
        finally:
            await self._forget_publishing()

    async def _published(self) -> PublishReport | None:
        """The newest version's way to the generators ends; None when none is under way."""
        publishing, self._publishing = self._publishing, None
        if publishing is None:
            return None
        with self._phase(f"waiting for version {self._fleet.publisher.version} to reach the generators"):
            return await self._until(publishing, stoppable=False)

    async def _forget_publishing(self) -> None:
        """On the way out with an error nobody waits for the newest version's way to the generators."""
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.gather(self._publishing, return_exceptions=True)

    async def _take(self) -> Batch:
        """The groups of the next step. Raises Stopped, StalledError, ChecksFailed, or what ended a pool."""
        patience = 2 * self._job.rollout.lease_seconds
        deadline, usable = time.monotonic() + patience, -1
        rollout = self._fleet.rollout
        queue = self._fleet.queue
        while True:
            try:
                taking = within(POLL_SECONDS + QUEUE_SECONDS, queue.take.remote(POLL_SECONDS))
                return await self._until(taking, stoppable=False)
            except TakeTimeout as error:
                if self._stop.is_set():
                    raise Stopped from error
                before, usable = usable, await self._usable_groups()
                if usable != before or not rollout.serving:  # slow, but it moves; or the pool's own deadlines run
                    deadline = time.monotonic() + patience
                elif time.monotonic() > deadline:
                    raise StalledError(
                        f"no group for step {self._step + 1} within twice rollout.lease_seconds: {original(error)}"
                    ) from error
            except RunFailed as error:
                raise original(error) from None

    async def _usable_groups(self) -> int:
        """Groups that have come back for a step since the run began; where all are filtered or dropped, nothing moves."""
        status: QueueStatus = await within(QUEUE_SECONDS, self._fleet.queue.status.remote())
        return status.ready + status.trained

    async def _train(self, batch: Batch) -> StepReport:
        step = self._step + 1
        groups = sum(group.numbers.has_variance for group in batch.groups)
        with self._phase(f"step {step}: learning from {groups} group(s) with variance of {len(batch.groups)}"):
            # Whatever happens to the others meanwhile: a step that was begun is one that the learner has taken.
            report = await self._fleet.learner.train_step(batch.groups, step)
            record = await within(QUEUE_SECONDS, self._fleet.queue.commit.remote(step))
            self._recorder.append_ledger(record)
        self._step = step
        return report

    async def _publish(self) -> PublishReport:
        report = await self._fleet.publish()
        self._recorder.published(report)
        return report

    async def _record(self, batch: Batch, report: StepReport, times: StepTimes) -> None:
        times.finish(await self._fleet.busy_seconds())
        record = step_record(self._step, batch, report, times, self._recorder.elapsed_seconds)
        self._recorder.step(record, await self._samples(batch))

    async def _samples(self, batch: Batch) -> list[SampleRecord]:
        """A few of the step's completions for a person to read; none when they do not come: the step is done without."""
        payloads = [group.payload for group in batch.groups[:SAMPLES_PER_STEP]]
        try:
            groups = [decode(payload, Group) for payload in await within(SAMPLE_SECONDS, asyncio.gather(*payloads))]
        except (RayError, TimeoutError) as error:
            log.warning("samples_missing", step=self._step, error=type(error).__name__)
            return []
        return evaluation.sample_records("train", self._step, groups, self._prepared.layout)

    async def _after_step(self) -> None:
        last = self._step == self._job.job.steps
        every = self._job.evaluation.every
        if every and self._step % every == 0 and not last:
            await self._evaluate(f"step {self._step}")
        if self._job.checkpoint.every and self._step % self._job.checkpoint.every == 0 and not last:
            await self._save()
        if self._stop.is_set() and not last:
            raise Stopped

    async def _save(self) -> None:
        """A checkpoint of the present step, unless there is one."""
        if self._step == self._saved_step:
            return
        with self._phase(f"writing the checkpoint of step {self._step}"):
            ledger = await within(QUEUE_SECONDS, self._fleet.queue.ledger.remote())
            seconds = await self._fleet.learner.save(str(self._checkpoints.begin(self._step)))
            self._checkpoints.complete(CheckpointState(self._step, self._recorder.elapsed_seconds, ledger))
        self._saved_step = self._step
        self._recorder.event(f"checkpoint of step {self._step} written in {seconds:.1f} s")

    async def _save_before_the_end(self) -> None:
        """What is learned, before a failure of the others ends the run, such as checks that are out."""
        learner = self._fleet.learner
        if learner.steps != self._step or not learner.settled:
            self._recorder.event(
                f"step {self._step + 1} was not finished, so that nothing after step {self._saved_step} is saved"
            )
            return
        try:
            await self._save()
        except (RunFailed, RayError, OSError) as error:  # OSError: a deadline that has passed, or a full disk
            log.error("checkpoint_failed", step=self._step, exc_info=True)
            self._recorder.event(f"step {self._step} is not saved: {type(error).__name__}: {first_line(error)}")
        else:
            if self._saved_step > 0:
                self._recorder.event(f"step {self._step} is saved: go on with --resume when the cause is mended")

    async def _evaluate(self, label: str) -> None:
        if self._evaluator is None:
            return
        await self._published()
        with self._phase(f"evaluating on {len(self._evaluator.prompts)} held-out prompts ({label})") as what:

            def progress(done: int, total: int) -> None:
                self._recorder.set_phase(f"{what}: {done}/{total} requests", restart=False)

            result = await self._until(self._evaluator.run(self._fleet.rollout, progress))
        self._results[label] = result
        self._recorder.evaluated(label, self._step, result, self._evaluator.samples)

    async def _finish(self) -> None:
        await self._evaluate("after")
        with self._phase("exporting the model"):
            await self._until(self._fleet.learner.export(str(self._folder.model)), stoppable=False)
        self._recorder.finish(self._results, self._step, str(self._folder.model))

    @contextmanager
    def _phase(self, what: str) -> Iterator[str]:
        self._recorder.set_phase(what)
        yield what

    async def _until(self, work: Awaitable[Result], *, stoppable: bool = True) -> Result:
        """Await `work`, but end with the pool's own error if a pool fails meanwhile, or with Stopped when the user asks
        and nothing is lost by it."""
        task = asyncio.ensure_future(work)
        try:
            while True:
                done, _ = await asyncio.wait({task}, timeout=POLL_SECONDS)
                if done:
                    return task.result()
                self._fleet.raise_failure()
                if self._publishing is not None and self._publishing.done():
                    self._publishing.result()  # raises what a publish beside us has failed with
                if stoppable and self._stop.is_set():
                    raise Stopped
        finally:
            task.cancel()


def takes_turns(prepared: PreparedJob) -> bool:
    """Whether generators stand still while the learner steps: by the job, or where both live on the same cores."""
    wanted = prepared.job.placement.take_turns
    if wanted == "auto":
        alive = sum(node["Alive"] for node in ray.nodes())
        return alive == 1 and prepared.job.rollout.gpus == 0 and prepared.job.learner.gpus == 0
    return wanted
