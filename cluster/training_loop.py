"""The training loop, step by step

    take a batch -> learn -> commit -> snapshot -> publish (beside the next step) -> record -> checkpoint

A step that is trained and committed has its line in `metrics.jsonl` before there is a checkpoint of it, whatever becomes of
the rest of the step.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from ray.exceptions import RayError

from headrace.cluster.checkpoint import CheckpointState, CheckpointStore
from headrace.cluster.config import JobConfig
from headrace.cluster.deadlines import within
from headrace.cluster.errors import RunFailed, original
from headrace.cluster.fleet import Fleet
from headrace.cluster.queue_actor import Batch, TakeTimeout
from headrace.cluster.run_recorder import RunRecorder
from headrace.cluster.run_records import QueueStatus
from headrace.cluster.step_record import StepTimes, step_record
from headrace.cluster.waits import Stopped, Waits
from headrace.learner.worker import StepReport
from headrace.verifiers.errors import cause_line

log = structlog.get_logger()

TAKE_SECONDS = 1.0  # for one look at the queue; a stop request waits no longer than that
QUEUE_SECONDS = 60.0  # for the queue's actor to answer


class StalledError(RunFailed):
    """Nothing came within the deadline; the message says what was waited for."""


class TrainingLoop:
    """From one step to the last. `step` is the newest that is trained, committed and recorded."""

    def __init__(
        self,
        job: JobConfig,
        fleet: Fleet,
        queue: Any,
        recorder: RunRecorder,
        checkpoints: CheckpointStore,
        waits: Waits,
        evaluate: Callable[[str, int], Awaitable[None]],
        *,
        take_turns: bool,
        step: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            queue: handle of the queue's actor, which the fleet is attached to.
            evaluate: called with a label and the step, where the job wants an evaluation between steps.
            take_turns: generators stand still while the learner steps.
            step: of the weights that the learner holds; there is a checkpoint of them, unless it is 0.
            clock: seconds, for deadlines.
        """
        self.step = step
        self._job = job
        self._fleet = fleet
        self._queue = queue
        self._recorder = recorder
        self._checkpoints = checkpoints
        self._waits = waits
        self._evaluate = evaluate
        self._take_turns = take_turns
        self._clock = clock
        self._saved_step = step

    async def run(self) -> None:
        """Step by step to the end.

        Raises:
            Stopped: on request; the present step is saved.
            RunFailed, RayError, OSError: the run cannot go on; the present step is saved where it can be.
        """
        try:
            while self.step < self._job.job.steps:
                await self._next_step()
                await self._after_step()
            await self._save()
            await self._waits.published()
        except Stopped:
            await self._save()
            await self._waits.published()
            raise
        except (RunFailed, RayError, OSError):  # OSError: a deadline that has passed
            await self._waits.forget_publishing()
            await self._save_before_the_end()
            raise
        finally:
            await self._waits.forget_publishing()

    async def _next_step(self) -> None:
        step, groups = self.step + 1, self._job.algorithm.groups_per_step
        times = StepTimes.start(await self._fleet.busy_seconds())
        with self._waits.phase(f"waiting for the {groups} groups of step {step}"):
            batch = await self._take()
        times.mark("wait")
        if self._take_turns:
            # A frozen engine cannot show that it holds the version before: that ends first.
            times.sync = await self._waits.published()
            await self._fleet.pause_generators()
        report = await self._train(batch, step)
        async with self._recorded(batch, report, times, step):
            if not self._take_turns:
                times.sync = await self._waits.published()
            with self._waits.phase(f"step {step}: making the snapshot of its weights"):
                times.snapshot_seconds = await self._fleet.hold_snapshot(step)
            if self._take_turns:
                await self._fleet.resume_generators()
            self._waits.publish_beside()
        await self._recorder.keep_samples(step, batch)

    async def _take(self) -> Batch:
        """The groups of the next step. Raises Stopped, StalledError, ChecksFailed, or what ended a pool."""
        patience = 2 * self._job.rollout.lease_seconds
        deadline, usable = self._clock() + patience, -1
        while True:
            try:
                taking = within(TAKE_SECONDS + QUEUE_SECONDS, self._queue.take.remote(TAKE_SECONDS))
                return await self._waits.until(taking, stoppable=False)
            except TakeTimeout as error:
                if self._waits.stop_requested:
                    raise Stopped from error
                before, usable = usable, await self._usable_groups()
                # Slow, but it moves; or nobody serves, and the pool's own deadlines run.
                if usable != before or not self._fleet.rollout.serving:
                    deadline = self._clock() + patience
                elif self._clock() > deadline:
                    raise StalledError(
                        f"no group for step {self.step + 1} within twice rollout.lease_seconds: {original(error)}"
                    ) from error
            except RunFailed as error:
                raise original(error) from None

    async def _usable_groups(self) -> int:
        """Groups that have come back for a step since the run began; where all are filtered or dropped, nothing moves."""
        status: QueueStatus = await within(QUEUE_SECONDS, self._queue.status.remote())
        return status.ready + status.trained

    async def _train(self, batch: Batch, step: int) -> StepReport:
        groups = sum(group.numbers.has_variance for group in batch.groups)
        with self._waits.phase(f"step {step}: learning from {groups} group(s) with variance of {len(batch.groups)}"):
            # Whatever happens to the others meanwhile: a step that was begun is one that the learner has taken.
            report = await self._fleet.learner.train_step(batch.groups, step)
            self._recorder.append_ledger(await within(QUEUE_SECONDS, self._queue.commit.remote(step)))
        return report

    @asynccontextmanager
    async def _recorded(self, batch: Batch, report: StepReport, times: StepTimes, step: int) -> AsyncIterator[None]:
        """The rest of a step that is trained and committed, and its line at the end of it, however it ends."""
        try:
            yield
        finally:
            times.add_learner(report)
            times.finish(await self._fleet.busy_seconds())
            self._recorder.step(step_record(step, batch, report, times, self._recorder.elapsed_seconds))
            self.step = step

    async def _after_step(self) -> None:
        last = self.step == self._job.job.steps
        every = self._job.evaluation.every
        if every and self.step % every == 0 and not last:
            await self._evaluate(f"step {self.step}", self.step)
        if self._job.checkpoint.every and self.step % self._job.checkpoint.every == 0 and not last:
            await self._save()
        if self._waits.stop_requested and not last:
            raise Stopped

    async def _save(self) -> None:
        """A checkpoint of the present step, unless there is one."""
        if self.step == self._saved_step:
            return
        with self._waits.phase(f"writing the checkpoint of step {self.step}"):
            ledger = await within(QUEUE_SECONDS, self._queue.ledger.remote())
            seconds = await self._fleet.learner.save(str(self._checkpoints.begin(self.step)))
            self._checkpoints.complete(CheckpointState(self.step, self._recorder.elapsed_seconds, ledger))
        self._saved_step = self.step
        self._recorder.event(f"checkpoint of step {self.step} written in {seconds:.1f} s")

    async def _save_before_the_end(self) -> None:
        """What is learned, before a failure of the others ends the run, such as checks that are out."""
        learner = self._fleet.learner
        if learner.steps != self.step or not learner.settled:
            self._recorder.event(
                f"step {self.step + 1} was not finished, so that nothing after step {self._saved_step} is saved"
            )
            return
        try:
            await self._save()
        except (RunFailed, RayError, OSError) as error:  # OSError: a deadline that has passed, or a full disk
            log.error("checkpoint_failed", step=self.step, exc_info=True)
            self._recorder.event(f"step {self.step} is not saved: {type(error).__name__}: {cause_line(error)}")
        else:
            if self._saved_step > 0:
                self._recorder.event(f"step {self.step} is saved: go on with --resume when the cause is mended")
