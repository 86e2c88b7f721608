"""One step's line in `metrics.jsonl`, from what the queue, the learner and the pools say of it."""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec
import numpy as np

from headrace.cluster.publisher import PublishReport
from headrace.cluster.queue_actor import Batch
from headrace.cluster.run_records import PHASES, StepRecord
from headrace.learner.rank import StepMetrics
from headrace.learner.worker import StepReport
from headrace.verifiers.records import GroupNumbers, StopReason

LEARNED = (set(StepMetrics.__struct_fields__) & set(StepRecord.__struct_fields__)) - {"step", "phases"}
"""What the learner says of a step and the record takes over as it is; the record's phases are more than the learner's."""


class StepTimes(msgspec.Struct):
    """Where a step's wall-clock time goes; filled in as the step goes on."""

    began: float
    busy_before: dict[str, float]
    phases: dict[str, float]
    snapshot_seconds: float = 0.0
    sync: PublishReport | None = None
    seconds: float = 0.0
    busy: dict[str, float] = {}

    @classmethod
    def start(cls, busy_seconds: dict[str, float]) -> StepTimes:
        return cls(time.monotonic(), busy_seconds, dict.fromkeys(PHASES, 0.0))

    def mark(self, phase: str) -> None:
        """The time since the step began was this phase."""
        self.phases[phase] = time.monotonic() - self.began

    def add_learner(self, report: StepReport) -> None:
        self.phases["fetch"] = report.fetch_seconds
        self.phases.update(report.metrics.phases)

    def finish(self, busy_seconds: Mapping[str, float]) -> StepTimes:
        self.seconds = time.monotonic() - self.began
        self.phases["snapshot"] = self.snapshot_seconds
        self.phases["publish"] = self.sync.seconds if self.sync else 0.0
        self.busy = {
            # A member that was replaced starts its count anew, so a difference may be negative.
            pool: min(1.0, max(0.0, (after - self.busy_before.get(pool, 0.0)) / self.seconds))
            for pool, after in busy_seconds.items()
        }
        return self


def step_record(step: int, batch: Batch, report: StepReport, times: StepTimes, elapsed_seconds: float) -> StepRecord:
    """The record of step `step`, which made weight version `step`."""
    trained = [group.numbers for group in batch.groups]
    returned = trained + batch.filtered
    rewards = np.array([reward for numbers in returned for reward in numbers.scored])
    lengths = [length for numbers in returned for length in numbers.completion_tokens]
    stops = [reason for numbers in returned for reason in numbers.stop_reasons]
    staleness = [step - 1 - numbers.oldest_version for numbers in trained]
    metrics = report.metrics
    return StepRecord(
        step=step,
        time=time.time(),
        elapsed_seconds=elapsed_seconds,
        seconds=times.seconds,
        reward_mean=float(rewards.mean()),
        reward_std=float(rewards.std()),
        pass_rate=pass_rate(returned),
        completion_tokens_mean=float(np.mean(lengths)),
        truncated_share=sum(reason is StopReason.LENGTH for reason in stops) / len(stops),
        staleness_mean=float(np.mean(staleness)),
        staleness_max=max(staleness),
        groups_trained=len(trained),
        groups_filtered=len(batch.filtered),
        groups_dropped=batch.dropped,
        samples=len(lengths),
        generated_tokens=sum(lengths),
        samples_per_second=len(lengths) / times.seconds,
        generated_tokens_per_second=sum(lengths) / times.seconds,
        learner_tokens_per_second=metrics.learner_tokens / times.seconds,
        **{name: getattr(metrics, name) for name in LEARNED},
        phases=times.phases,
        busy=times.busy,
        queue_ready=batch.ready_left,
        queue_leased=batch.leased,
    )


def pass_rate(returned: list[GroupNumbers]) -> float:
    """Share of the scored samples that passed their check."""
    passed = sum(numbers.passed for numbers in returned)
    return passed / max(1, sum(len(numbers.scored) for numbers in returned))
