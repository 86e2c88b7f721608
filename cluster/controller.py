"""A run, in the order in which things happen: start, evaluate, warm start, train, evaluate, export, sum up.

Everything that can take long says so through `Waits.phase`, which the display shows. The steps are `training_loop.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from headrace.cluster.checkpoint import Checkpoint, CheckpointStore
from headrace.cluster.deadlines import within
from headrace.cluster.errors import RunFailed
from headrace.cluster.evaluation import EvaluationResult, Evaluator
from headrace.cluster.fleet import Fleet
from headrace.cluster.preparation import PreparedJob
from headrace.cluster.queue_actor import QueueActor
from headrace.cluster.rollout_queue import Ledger, QueuePlan
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_recorder import RunRecorder
from headrace.cluster.training_loop import QUEUE_SECONDS, TrainingLoop
from headrace.cluster.waits import Waits

BASE_VERSION = -1  # the base model's weights, when a warm start comes before version 0


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
        self._waits = Waits(fleet, recorder)

    def request_stop(self) -> None:
        """To be called in the event loop. Nothing new is generated meanwhile: the step under way has what it learns from."""
        self._waits.request_stop()
        if self._recorder.queue is not None:
            self._recorder.queue.stop_leasing.remote()

    def _make_evaluator(self) -> Evaluator | None:
        prepared, settings = self._prepared, self._job.evaluation
        if prepared.held_out is None:
            return None
        lease_seconds = self._job.rollout.lease_seconds
        return Evaluator(prepared.held_out, settings.prompts, settings.samples, prepared.sampling, lease_seconds)

    async def run(self) -> None:
        """From nothing, or from a checkpoint, to the exported model; however it ends, there is a report of what was done.

        Raises:
            Stopped: on request.
            PoolFailed, StalledError, ChecksFailed, EvaluationFailed, RayError: the run cannot go on; the message says why.
        """
        try:
            await self._run()
        finally:
            self._recorder.report()

    async def _run(self) -> None:
        checkpoint = self._checkpoints.newest()
        async with self._queue(checkpoint.state.ledger if checkpoint else None) as queue:
            serving_metrics = queue.start.remote(self._job.metrics.host)
            await self._start(checkpoint)
            self._recorder.queue_metrics_url = await self._waits.until(within(QUEUE_SECONDS, serving_metrics))
            if checkpoint is None:
                await self._begin()
            else:
                self._results = self._recorder.load_results()
            self._recorder.queue = queue
            await self._fleet.attach_queue(queue)
            loop = TrainingLoop(
                self._job,
                self._fleet,
                queue,
                self._recorder,
                self._checkpoints,
                self._waits,
                self._evaluate,
                take_turns=takes_turns(self._prepared),
                step=checkpoint.state.step if checkpoint else 0,
            )
            await loop.run()
        await self._finish(loop.step)

    async def _start(self, checkpoint: Checkpoint | None) -> None:
        rollout, learner = self._job.rollout, self._job.learner
        with self._waits.phase(f"starting {rollout.generators} generator(s) and {learner.ranks} learner rank(s)"):
            await self._waits.until(self._fleet.start())
            version = BASE_VERSION if self._prepared.warm_start else 0
            if checkpoint is not None:
                version = await self._waits.until(self._fleet.learner.load(str(checkpoint.learner)))
                if version != checkpoint.state.step:
                    raise RunFailed(
                        f"{checkpoint.learner} holds the learner of step {version}, and the state of step "
                        f"{checkpoint.state.step}"
                    )
                self._recorder.event(f"resumed from the checkpoint of step {version}")
            await self._waits.until(self._fleet.hold_snapshot(version))
        with self._waits.phase("waiting for the generators to receive and attest the first weights"):
            await self._waits.until(self._fleet.wait_serving())

    async def _begin(self) -> None:
        """What comes before the first step: the base model's score, and the warm start."""
        if not self._prepared.warm_start:
            await self._evaluate("before", 0)
            return
        warming = f"warm start on {len(self._prepared.warm_start)} examples"
        if takes_turns(self._prepared):
            await self._evaluate("before", 0)
            with self._waits.phase(warming):
                await self._waits.until(self._warm_start())
        else:
            # The generators keep the base model's weights until the others are published: neither has to wait.
            async with self._waits.beside(self._warm_start(), "warm start") as task:
                await self._evaluate("before", 0)
                with self._waits.phase(warming):
                    await self._waits.until(task)
        with self._waits.phase("publishing the warm-started weights"):
            await self._fleet.hold_snapshot(0)
            await self._waits.until(self._waits.publish())
        await self._evaluate("warm", 0)

    async def _warm_start(self) -> None:
        settings = self._job.warm_start
        if settings is None:
            raise RuntimeError("no [warm_start] section")
        examples = self._prepared.warm_start
        loss = float("nan")
        for epoch in range(1, settings.epochs + 1):
            for start in range(0, len(examples), settings.batch_size):
                batch = examples[start : start + settings.batch_size]
                loss = await self._fleet.learner.supervised_step(batch, settings.learning_rate)
            self._recorder.event(f"warm start: epoch {epoch}/{settings.epochs}, loss {loss:.3f} nats a token")
        await self._fleet.learner.finish_supervised()

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
            self._recorder.queue = self._recorder.queue_metrics_url = None
            self._fleet.queue = None
            ray.kill(queue)

    async def _evaluate(self, label: str, step: int) -> None:
        if self._evaluator is None:
            return
        await self._waits.published()
        with self._waits.phase(f"evaluating on {len(self._evaluator.prompts)} held-out prompts ({label})") as what:

            def progress(done: int, total: int) -> None:
                self._recorder.set_phase(f"{what}: {done}/{total} requests", restart=False)

            result = await self._waits.until(self._evaluator.run(self._fleet.rollout, progress))
        self._results[label] = result
        self._recorder.evaluated(label, step, result, self._evaluator.samples)

    async def _finish(self, step: int) -> None:
        await self._evaluate("after", step)
        with self._waits.phase("exporting the model"):
            await self._waits.until(self._fleet.learner.export(str(self._folder.model)), stoppable=False)
        self._recorder.finish(self._results, step, str(self._folder.model))


def takes_turns(prepared: PreparedJob) -> bool:
    """Whether generators stand still while the learner steps: by the job, or where both live on the same cores."""
    wanted = prepared.job.placement.take_turns
    if wanted == "auto":
        alive = sum(node["Alive"] for node in ray.nodes())
        return alive == 1 and prepared.job.rollout.gpus == 0 and prepared.job.learner.gpus == 0
    return wanted
