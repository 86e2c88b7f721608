"""The metrics of the controller and of the queue, and the table of all metrics for docs/operations.md, which `make docs`
writes by

    python -m headrace.cluster.metrics docs/operations.md

`update_from_status`, `update_from_step` and `update_from_queue` are called with what `headrace status` shows anyway, so a
dashboard and that command cannot tell different stories.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family

from headrace.cluster.run_folder import atomic_write
from headrace.cluster.run_records import EvaluationRecord, MemberState, Pool, QueueStatus, RunStatus, StepRecord
from headrace.verifiers.errors import UserError
from headrace.verifiers.telemetry import (
    COMMON_LABELS,
    GENERATOR_METRICS,
    LEARNER_METRICS,
    VERIFICATION_METRICS,
    Metric,
    Telemetry,
    counter,
    gauge,
    histogram,
)

STEP = gauge("headrace_step", "Optimizer steps done; also the learner's weight version.")
STEPS = gauge("headrace_steps", "Optimizer steps that the job asks for.")
ELAPSED = gauge("headrace_elapsed_seconds", "Time since the run started.")
PHASE_AGE = gauge("headrace_phase_age_seconds", "How long what goes on now has been going on.")
PEAK_MEMORY = gauge(
    "headrace_peak_memory_bytes",
    "Most memory (PSS) that the run's processes have held together; 0 on a cluster that the run has joined.",
)

# Gauges of the last step, by the field of `StepRecord` that each shows: a line here exports and documents a new one.
REWARDS = {
    "reward_mean": gauge("headrace_reward", "Mean reward of the last step's samples."),
    "pass_rate": gauge("headrace_pass_ratio", "Share of the last step's samples that passed their check."),
    "truncated_share": gauge("headrace_truncated_ratio", "Share of the last step's samples that ended by length."),
}
EVALUATION_REWARD = gauge(
    "headrace_evaluation_reward", "Mean reward of the last evaluation, by how tokens were drawn.", "decoding"
)
STALENESS = {
    "staleness_mean": gauge("headrace_staleness_mean_versions", "Mean staleness of the last step's trained groups."),
    "staleness_max": gauge("headrace_staleness_max_versions", "Largest staleness of the last step's trained groups."),
}
STALENESS_BOUND = gauge("headrace_staleness_bound_versions", "rollout.max_staleness: what admission holds.")
LEARNING = {
    "loss": gauge("headrace_loss", "Loss of the last step."),
    "grad_norm": gauge("headrace_grad_norm", "Norm of the last step's gradient before clipping."),
    "learning_rate": gauge("headrace_learning_rate", "Learning rate of the last step."),
    "kl": gauge("headrace_kl_nats", "KL against the reference policy, per token; 0 where none is loaded."),
    "mismatch_kl": gauge(
        "headrace_mismatch_kl_nats", "KL between generator and learner on the same tokens, per token."
    ),
    "entropy": gauge("headrace_entropy_nats", "Entropy of the policy, per token."),
    "clip_share": gauge("headrace_clip_ratio", "Share of the last step's tokens whose policy ratio was clipped."),
    "tis_truncated_share": gauge(
        "headrace_tis_truncated_ratio", "Share of tokens whose importance weight was truncated."
    ),
    "effective_sample_share": gauge(
        "headrace_effective_sample_ratio", "Effective sample size of the importance weights by their number."
    ),
}

SAMPLES = counter("headrace_samples_total", "Samples in the groups that came back, filtered ones included.")
GENERATED = counter("headrace_generated_tokens_total", "Tokens generated in the groups that came back.")
LEARNED = counter("headrace_learned_tokens_total", "Tokens through the learner's forward pass, all ranks together.")
STEP_SECONDS = histogram("headrace_step_seconds", "Time of one step by the wall clock; its phases may overlap.")
PHASE_SECONDS = counter("headrace_phase_seconds_total", "Time by phase of the step.", "phase")
BUSY = gauge("headrace_pool_busy_ratio", "Share of the last step's time that the pool worked.", "pool")

MEMBERS = gauge("headrace_members", "Members by pool and state.", "pool", "state")
RESTARTS = counter("headrace_member_restarts_total", "Members that died and were replaced.", "pool")

WEIGHT_SYNCS = counter("headrace_weight_syncs_total", "Weight versions published to the generators.")
PUBLISH = histogram("headrace_weight_publish_seconds", "Time to send, swap and attest one version on all generators.")
PAUSE = histogram("headrace_weight_pause_seconds", "Longest time that one generator stood still for one version.")
CONTROLLER_METRICS = (
    *(STEP, STEPS, ELAPSED, PHASE_AGE, PEAK_MEMORY),
    *(*REWARDS.values(), EVALUATION_REWARD, *STALENESS.values(), STALENESS_BOUND, *LEARNING.values()),
    *(SAMPLES, GENERATED, LEARNED, STEP_SECONDS, PHASE_SECONDS, BUSY),
    *(MEMBERS, RESTARTS),
    *(WEIGHT_SYNCS, PUBLISH, PAUSE),
)

QUEUE = gauge("headrace_queue_groups", "Groups in the queue: leased to a generator, or ready to be trained.", "state")
QUEUE_CAPACITY = gauge("headrace_queue_capacity_groups", "Leases that admission by staleness allows now.")
OLDEST_LEASE = gauge("headrace_queue_oldest_lease_seconds", "Age of the oldest lease that has not come back.")
GROUPS = counter("headrace_groups_total", "Groups accounted for: trained, filtered or dropped.", "outcome")
REISSUED = counter("headrace_groups_reissued_total", "Leases handed out again after they were lost or ran out.")
QUEUE_MEMBER = "queue"  # what its process is called: in labels, logs and the service discovery
QUEUE_METRICS = (QUEUE, QUEUE_CAPACITY, OLDEST_LEASE, GROUPS, REISSUED)
LOOK_SECONDS = 5.0  # for an event loop to say how it stands; a scrape has ten by default

TABLES: dict[str, tuple[Metric, ...]] = {
    "controller": CONTROLLER_METRICS,
    "queue": QUEUE_METRICS,
    "generator": GENERATOR_METRICS,
    "verification worker": VERIFICATION_METRICS,
    "learner rank": LEARNER_METRICS,
}


def controller_telemetry(run: str) -> Telemetry:
    """The controller's metrics. What no record holds is counted where it happens: `raise_to(RESTARTS, ...)` and
    `update_from_sync`."""
    telemetry = Telemetry(CONTROLLER_METRICS, run=run, member="controller")
    # A rate needs the 0 before the first event.
    for pool in Pool:
        telemetry.add(RESTARTS, 0, pool=pool)
    return telemetry


def queue_telemetry(run: str) -> Telemetry:
    """The queue's metrics, which `update_from_queue` fills."""
    return Telemetry(QUEUE_METRICS, run=run, member=QUEUE_MEMBER)


def update_from_status(telemetry: Telemetry, status: RunStatus, now: float) -> None:
    """Everything that is the value of the moment. `now` is Unix time."""
    telemetry.set(STEP, status.step)
    telemetry.set(STEPS, status.steps)
    telemetry.set(ELAPSED, status.elapsed_seconds)
    telemetry.set(PHASE_AGE, max(0.0, now - status.phase_since))
    telemetry.set(PEAK_MEMORY, status.peak_memory_bytes or 0)
    telemetry.set(STALENESS_BOUND, status.max_staleness)
    telemetry.raise_to(WEIGHT_SYNCS, status.weight_syncs)
    states = Counter((member.pool, member.state) for member in status.members)
    for pool in Pool:
        for state in MemberState:
            telemetry.set(MEMBERS, states[pool, state], pool=pool, state=state)


def update_from_step(telemetry: Telemetry, record: StepRecord) -> None:
    """Everything that a step adds or ends. Call it once a step."""
    for field, metric in (REWARDS | STALENESS | LEARNING).items():
        telemetry.set(metric, getattr(record, field))
    telemetry.add(SAMPLES, record.samples)
    telemetry.add(GENERATED, record.generated_tokens)
    telemetry.add(LEARNED, record.learner_tokens)
    telemetry.observe(STEP_SECONDS, record.seconds)
    for phase, seconds in record.phases.items():
        telemetry.add(PHASE_SECONDS, seconds, phase=phase)
    for pool, share in record.busy.items():
        telemetry.set(BUSY, share, pool=pool)


def update_from_evaluation(telemetry: Telemetry, record: EvaluationRecord) -> None:
    telemetry.set(EVALUATION_REWARD, record.sampled.reward, decoding="sampled")
    telemetry.set(EVALUATION_REWARD, record.greedy.reward, decoding="greedy")


def update_from_sync(telemetry: Telemetry, publish_seconds: float, pause_seconds: float) -> None:
    """One version has reached the generators: the time of it all, and the longest that one of them stood still."""
    telemetry.observe(PUBLISH, publish_seconds)
    telemetry.observe(PAUSE, pause_seconds)


def update_from_queue(telemetry: Telemetry, status: QueueStatus, before: QueueStatus) -> None:
    """The queue as it is. `before`: as its process found it; counters count from there, also in a resumed run."""
    telemetry.set(QUEUE, status.leased, state="leased")
    telemetry.set(QUEUE, status.ready, state="ready")
    telemetry.set(QUEUE_CAPACITY, status.capacity)
    telemetry.set(OLDEST_LEASE, status.oldest_lease_seconds)
    telemetry.raise_to(GROUPS, status.trained - before.trained, outcome="trained")
    telemetry.raise_to(GROUPS, status.filtered - before.filtered, outcome="filtered")
    telemetry.raise_to(GROUPS, status.dropped - before.dropped, outcome="dropped")
    telemetry.raise_to(REISSUED, status.reissued - before.reissued)


class UpToDate:
    """A collector: what `registry` holds once `update` has run, for numbers that are the state of the moment.

    A scrape comes in a thread of the metrics server; `update` runs in `loop`, where that state changes.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        loop: asyncio.AbstractEventLoop,
        update: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._registry = registry
        self._loop = loop
        self._update = update

    def collect(self) -> Iterable[Family]:
        """Raises TimeoutError when the loop is held up: no numbers rather than old ones."""
        updating = asyncio.run_coroutine_threadsafe(self._update(), self._loop)
        try:
            updating.result(LOOK_SECONDS)
        finally:
            updating.cancel()
        return self._registry.collect()


def metrics_markdown() -> str:
    """The tables of docs/operations.md, one a process kind, as they stand between its markers."""
    common = " and ".join(f"`{label}`" for label in COMMON_LABELS)
    lines = [f"Every metric has the labels {common}; the column names what it has besides."]
    for process, table in TABLES.items():
        lines += ["", f"### {process.capitalize()}", "", "| name | type | labels | what it says |", "|---|---|---|---|"]
        for metric in table:
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"


TABLE_BEGIN = "<!-- metrics: written by `make docs` -->"
TABLE_END = "<!-- metrics: end -->"


def with_metrics(page: str) -> str:
    """The page with the present tables between its markers. Raises ValueError when it does not have both, once each."""
    if page.count(TABLE_BEGIN) != 1 or page.count(TABLE_END) != 1 or page.index(TABLE_BEGIN) > page.index(TABLE_END):
        raise ValueError(f"has not one line {TABLE_BEGIN} and after it one line {TABLE_END}")
    before, rest = page.split(TABLE_BEGIN)
    return f"{before}{TABLE_BEGIN}\n\n{metrics_markdown()}\n{TABLE_END}{rest.split(TABLE_END)[1]}"


def main(arguments: list[str]) -> None:
    """Write the tables into the page. Raises UserError for a page that is missing or has no place for them."""
    if len(arguments) != 1:
        raise UserError("usage: python -m headrace.cluster.metrics PAGE.md")
    path = Path(arguments[0])
    try:
        page = with_metrics(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    atomic_write(path, page.encode())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"headrace: {error}\n")
        sys.exit(2)
