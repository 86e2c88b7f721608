"""What a run tells: the only writer of its files, its display and its metrics. Holds the state that `status` shows."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import structlog
from ray.exceptions import RayError

from headrace.cluster import metrics
from headrace.cluster.config import JobConfig
from headrace.cluster.deadlines import within
from headrace.cluster.display import Display
from headrace.cluster.evaluation import EvaluationResult, evaluation_record, gain, sample_records
from headrace.cluster.fleet import Fleet
from headrace.cluster.memory import tree_pss_bytes
from headrace.cluster.prompt_source import PromptFormat
from headrace.cluster.publisher import PublishReport
from headrace.cluster.queue_actor import Batch
from headrace.cluster.report import write_report
from headrace.cluster.rollout_queue import CommitRecord
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_records import (
    EvaluationRecord,
    GroupCounts,
    QueueStatus,
    RunStatus,
    Scores,
    StepRecord,
    Summary,
)
from headrace.verifiers.errors import cause_line
from headrace.verifiers.records import Group, decode

log = structlog.get_logger()

TICK_SECONDS = 0.5
MEMORY_SECONDS = 3.0
QUEUE_SECONDS = 5.0  # for the queue to say how it is
SAMPLED_GROUPS = 2  # of which a step keeps one completion for samples.jsonl
SAMPLE_SECONDS = 10.0  # for those to arrive


class RunRecorder:
    """One per run, in the controller's event loop."""

    def __init__(
        self,
        job: JobConfig,
        folder: RunFolder,
        display: Display,
        layout: PromptFormat,
        log_dir: str | None,
        started: float,
    ) -> None:
        """`log_dir`: where the members log; None on a cluster that the run has joined, whose members are no children of this
        process: their lines and their memory are not to be had from here. `started`: Unix time at which the command
        began; all elapsed seconds count from it."""
        self._job = job
        self._folder = folder
        self._display = display
        self._layout = layout
        self.log_dir = log_dir
        self.telemetry = metrics.controller_telemetry(job.job.name)
        self.fleet: Fleet | None = None
        self.queue: Any = None  # actor handle, once there is something to lease
        self.queue_metrics_url: str | None = None
        self._started = started
        self._phase = "starting"
        self._phase_since = time.time()
        self._steps: list[StepRecord] = []
        self._evaluations: list[EvaluationRecord] = []
        self._settled = GroupCounts(0, 0, 0)
        self._last_queue: QueueStatus | None = None
        self._peak_memory: int | None = None if log_dir is None else 0
        self._syncs_before = 0  # by the processes of the run before this one
        self.summary: Summary | None = None

    @property
    def elapsed_seconds(self) -> float:
        return time.time() - self._started

    def resume(self, step: int, elapsed_seconds: float) -> None:
        """Take up the history that ends in the weights of `step`, after `elapsed_seconds` of the run in processes before
        this one; below 0, that of a run that has only begun."""
        self._folder.rewind(step)
        self._rewind_ledger(step)
        # Put back from when this process began and not from now: its start-up counts as well.
        self._started -= elapsed_seconds
        if step >= 0:
            if self._peak_memory is not None:
                self._peak_memory = self._folder.read_peak_memory()
            # Every step of the history was published once, and so was the warm start.
            self._syncs_before = step + (self._job.warm_start is not None)
        records = self._folder.read_metrics()
        self._steps = [record for record in records if isinstance(record, StepRecord)]
        self._evaluations = [record for record in records if isinstance(record, EvaluationRecord)]

    def _rewind_ledger(self, step: int) -> None:
        kept = [record for record in self._folder.read_ledger(CommitRecord) if record.step <= step]
        self._folder.replace_ledger(kept)
        for record in kept:
            self._settle(record)

    def _settle(self, record: CommitRecord) -> None:
        before = self._settled
        self._settled = GroupCounts(
            trained=before.trained + len(record.trained),
            filtered=before.filtered + len(record.filtered),
            dropped=before.dropped + len(record.dropped),
        )

    @property
    def steps_done(self) -> int:
        """Optimizer steps behind these weights, those before a resumption included."""
        return self._steps[-1].step if self._steps else 0

    @property
    def weight_syncs(self) -> int:
        """Versions published in the history of these weights."""
        return self._syncs_before + (self.fleet.publisher.syncs if self.fleet else 0)

    async def watch(self) -> None:
        """Keep the display, the metrics and the memory's peak up to date, until cancelled."""
        measured = 0.0
        while True:
            now = time.time()
            if now - measured >= MEMORY_SECONDS:
                await asyncio.to_thread(self._measure_memory)
                measured = now
            status = await self.status()
            metrics.update_from_status(self.telemetry, status, now)
            if self.fleet is not None:
                for pool in (self.fleet.rollout, self.fleet.verification):
                    self.telemetry.raise_to(metrics.RESTARTS, pool.replaced, pool=pool.pool)
            self._display.update(status)
            self._display.tick(now)
            await asyncio.sleep(TICK_SECONDS)

    def _measure_memory(self) -> None:
        if self._peak_memory is None:
            return
        held = tree_pss_bytes()
        if held > self._peak_memory:
            self._peak_memory = held
            try:
                self._folder.write_peak_memory(held)
            except OSError as error:  # of use to a resumed run, and nothing to end this one for
                log.warning("peak_memory_not_written", error=str(error))

    async def status(self) -> RunStatus:
        if self.queue is not None:
            try:
                self._last_queue = await within(QUEUE_SECONDS, self.queue.status.remote())
            except (RayError, TimeoutError) as error:
                log.warning("queue_status_missing", error=type(error).__name__)
        fleet = self.fleet
        return RunStatus(
            run=self._job.job.name,
            run_dir=str(self._folder.path),
            phase=self._phase,
            phase_since=self._phase_since,
            step=self._steps[-1].step if self._steps else 0,
            steps=self._job.job.steps,
            version=fleet.publisher.version if fleet else None,
            elapsed_seconds=self.elapsed_seconds,
            members=fleet.member_statuses() if fleet else [],
            queue=self._last_queue,
            queue_metrics_url=self.queue_metrics_url,
            last_step=self._steps[-1] if self._steps else None,
            evaluations=self._evaluations,
            weight_syncs=self.weight_syncs,
            max_staleness=self._job.rollout.max_staleness,
            peak_memory_bytes=self._peak_memory,
        )

    def set_phase(self, what: str, restart: bool = True) -> None:
        """What goes on now. `restart=False`: the same thing, further on."""
        self._phase = what
        if restart:
            self._phase_since = time.time()
            log.info("phase", what=what, elapsed=round(self.elapsed_seconds, 2))

    def event(self, line: str) -> None:
        log.info("event", line=line)
        self._display.event(line)

    def step(self, record: StepRecord) -> None:
        self._steps.append(record)
        self._folder.append_metrics(record)
        metrics.update_from_step(self.telemetry, record)
        log.info("step", step=record.step, reward=round(record.reward_mean, 4), loss=record.loss)

    async def keep_samples(self, step: int, batch: Batch) -> None:
        """A few of the step's completions for a person to read; none when they do not come: the step is done without."""
        payloads = [group.payload for group in batch.groups[:SAMPLED_GROUPS]]
        try:
            groups = [decode(payload, Group) for payload in await within(SAMPLE_SECONDS, asyncio.gather(*payloads))]
        except (RayError, TimeoutError) as error:
            log.warning("samples_missing", step=step, error=type(error).__name__)
        else:
            self._folder.append_samples(sample_records("train", step, groups, self._layout))

    def append_ledger(self, record: CommitRecord) -> None:
        """What the step settled, by prompt id."""
        self._settle(record)
        self._folder.append_ledger(record)

    def published(self, report: PublishReport) -> None:
        metrics.update_from_sync(self.telemetry, report.seconds, report.pause_seconds)

    def evaluated(self, label: str, step: int, result: EvaluationResult, samples: int) -> None:
        record = evaluation_record(label, step, self._started, result, samples, self._job.job.seed)
        self._evaluations.append(record)
        self._folder.append_metrics(record)
        self._folder.append_samples(sample_records(label, step, result.groups, self._layout))
        self._folder.write_evaluation(label, msgspec.structs.replace(result, groups=[]))
        metrics.update_from_evaluation(self.telemetry, record)
        self._display.evaluation(record)

    def load_results(self) -> dict[str, EvaluationResult]:
        """The evaluations made before the run was interrupted."""
        return self._folder.read_evaluations(EvaluationResult)

    def finish(self, results: dict[str, EvaluationResult], step: int, model: str) -> Summary:
        """Write the summary."""
        summary = self._summary(results, step, model)
        self._folder.write_summary(summary)
        self.summary = summary
        return summary

    def report(self) -> None:
        """Write `report.html` from what there is by now. A failure of that is told and no more: the run's own end counts."""
        try:
            write_report(self._folder.path)
        except Exception as error:  # a full disk, a damaged line, a mistake in the page: told, with its trace
            log.error("report_failed", exc_info=True)
            self.event(f"report.html is not written: {type(error).__name__}: {cause_line(error)}")

    def _summary(self, results: dict[str, EvaluationResult], step: int, model: str) -> Summary:
        scores = {record.label: Scores(record.sampled, record.greedy) for record in self._evaluations}
        base, after = results.get("warm") or results.get("before"), results.get("after")
        steps = self._steps
        seconds = sum(record.seconds for record in steps)
        return Summary(
            before=scores.get("before"),
            warm=scores.get("warm"),
            after=scores.get("after"),
            gain=gain(after, base, self._job.job.seed) if after and base else None,
            steps=step,
            seconds=self.elapsed_seconds,
            samples_per_second=sum(record.samples for record in steps) / seconds if seconds else 0.0,
            generated_tokens_per_second=sum(record.generated_tokens for record in steps) / seconds if seconds else 0.0,
            learner_tokens_per_second=sum(record.learner_tokens for record in steps) / seconds if seconds else 0.0,
            weight_syncs=self.weight_syncs,
            max_staleness=max((record.staleness_max for record in steps), default=0),
            groups=self._settled,
            peak_memory_bytes=self._peak_memory,
            model=model,
        )
