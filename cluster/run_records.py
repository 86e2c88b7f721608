"""What a run says of itself: the records in `metrics.jsonl`, `samples.jsonl`, `summary.json` and behind `headrace status`.

Times are seconds (`time` is Unix time), rates are per second of the step by the wall clock, shares are in [0, 1].
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from headrace.verifiers.records import LEARNER_PHASES

MAX_MEMBERS = 10_000  # of a pool; each is placed on paper before any starts
PHASE_ENDED = ": done"  # behind a phase that is over, until the next begins


class Pool(StrEnum):
    ROLLOUT = "rollout"
    VERIFICATION = "verification"
    LEARNER = "learner"


class MemberState(StrEnum):
    """The one way that every member goes."""

    STARTING = "starting"  # its process and its engine come up
    SYNCING = "syncing"  # it receives the newest weights (rollout pool only)
    ATTESTED = "attested"  # it has shown that it holds them
    SERVING = "serving"  # it takes work
    DRAINING = "draining"  # it finishes what it holds and takes no more
    GONE = "gone"  # its process has ended, on request or by failure


class Interval(msgspec.Struct, frozen=True):
    """A mean reward with its 95 % bootstrap interval over prompts."""

    reward: float
    low: float
    high: float


class StepRecord(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="step"):
    """One optimizer step: one line of `metrics.jsonl`."""

    step: int  # counted from 1; also the weight version that the step made
    time: float
    elapsed_seconds: float  # since the run started
    seconds: float  # of the step, by the wall clock; its phases may overlap
    reward_mean: float  # over the samples of all groups that came back for this step, filtered ones included
    reward_std: float
    pass_rate: float
    completion_tokens_mean: float
    truncated_share: float  # samples that ended by length
    staleness_mean: float  # versions, over the trained groups
    staleness_max: int
    groups_trained: int  # committed by the step
    groups_without_gradient: int  # of these: rewards all alike, and no KL term
    groups_filtered: int  # rewards all alike, replaced before the step (algorithm.dynamic_sampling)
    groups_dropped: int  # fewer than two of their checks ran
    samples: int
    generated_tokens: int
    learner_tokens: int  # tokens that went through the learner's forward pass
    samples_per_second: float
    generated_tokens_per_second: float
    learner_tokens_per_second: float
    loss: float
    grad_norm: float
    learning_rate: float
    kl: float  # against the reference policy; 0 where none is loaded
    mismatch_kl: float  # between generator and learner, of the same tokens, nats a token
    clip_share: float
    tis_truncated_share: float
    effective_sample_share: float  # effective sample size of the importance weights over their number
    entropy: float  # nats a token
    phases: dict[str, float]  # seconds: see PHASES
    busy: dict[str, float]  # share of the step's time that each pool worked, by pool name
    queue_ready: int  # groups waiting when the batch was taken
    queue_leased: int


PHASES = ("wait", "fetch", *LEARNER_PHASES, "snapshot", "publish")
"""The phases of a step, in order: waiting for groups, fetching them, the learner's four, copying the new weights into
the send buffer, and sending, swapping and attesting them (which overlaps the next step unless the pools take turns)."""


class EvaluationRecord(msgspec.Struct, frozen=True, tag_field="event", tag="evaluation"):
    """One evaluation on the held-out prompts."""

    label: str  # "before", "warm", "after", or "step N"
    step: int
    time: float
    elapsed_seconds: float
    sampled: Interval  # at the training temperature: the objective itself
    greedy: Interval
    sampled_pass_rate: float
    greedy_pass_rate: float
    prompts: int
    samples: int
    seconds: float
    checks: int  # of sampled and greedy samples
    scored_samples: int  # those whose check ran: what the rewards and the pass rates are over
    not_scored: str  # the most common reason of the others, with its message


class SampleRecord(msgspec.Struct, frozen=True):
    """One line of `samples.jsonl`: a completion that a person can read."""

    label: str  # "before", "warm", "after", "step N" of an evaluation, or "train"
    step: int
    version: int
    prompt_id: str
    prompt: str
    completion: str
    reward: float  # nan where it has none: its check did not run, or the engine gave it up
    verdict: str
    reason: str
    generator: str
    answer: str = ""  # the row's `answer` as JSON, where it has one


class Scores(msgspec.Struct, frozen=True):
    sampled: Interval
    greedy: Interval


class GroupCounts(msgspec.Struct, frozen=True):
    trained: int
    filtered: int
    dropped: int


class Summary(msgspec.Struct, frozen=True):
    """`summary.json`. `gain` is after minus warm (or minus before, without a warm start), paired by prompt."""

    before: Scores | None
    warm: Scores | None
    after: Scores | None
    gain: Scores | None
    steps: int
    seconds: float
    samples_per_second: float
    generated_tokens_per_second: float
    learner_tokens_per_second: float
    weight_syncs: int
    max_staleness: int
    groups: GroupCounts
    peak_memory_bytes: int | None  # None on a cluster that the run has joined, where it is not measured
    model: str | None


class MemberStatus(msgspec.Struct, frozen=True):
    name: str
    pool: Pool
    state: MemberState
    version: int | None  # of the weights: attested (generator) or made (learner rank); None before the first
    node: str
    pid: int | None
    since: float  # Unix time of the last change of state
    inflight: int  # groups (rollout) or samples (verification) it holds
    done: int  # groups or samples it has finished
    tokens_per_second: float  # generated, over the last half minute; 0 outside the rollout pool
    restarts: int  # how many members of this place died before it
    metrics_url: str | None
    note: str  # why it is where it is, when that is worth reading


class QueueStatus(msgspec.Struct, frozen=True):
    leased: int
    ready: int
    trained: int
    filtered: int
    dropped: int
    reissued: int
    capacity: int  # leases that admission allows now
    oldest_lease_seconds: float


class RunStatus(msgspec.Struct, frozen=True):
    """What `headrace status` prints and the live display shows."""

    run: str
    run_dir: str
    phase: str  # one readable clause of what goes on now: "starting 1 generator, 1 learner rank"
    phase_since: float
    step: int
    steps: int
    version: int | None  # the newest of the learner's weights; None before the first
    elapsed_seconds: float
    members: list[MemberStatus]
    queue: QueueStatus | None  # None before there is something to lease
    queue_metrics_url: str | None  # None before its process is up
    last_step: StepRecord | None
    evaluations: list[EvaluationRecord]
    weight_syncs: int
    max_staleness: int
    peak_memory_bytes: int | None
