"""Whole records with plain values: a test names only the fields that it is about."""

from __future__ import annotations

import msgspec

from headrace.cluster.rollout_queue import QueuePlan
from headrace.cluster.run_records import (
    EvaluationRecord,
    GroupCounts,
    Interval,
    MemberState,
    MemberStatus,
    Pool,
    QueueStatus,
    RunStatus,
    SampleRecord,
    Scores,
    StepRecord,
    Summary,
)
from headrace.verifiers.records import GroupNumbers, Prompt, Sampling, StopReason

TIME = 1e9  # Unix time of every record


class EndlessPrompts:
    """A prompt source of `per_epoch` prompts an epoch, in the file's order."""

    def __init__(self, per_epoch: int = 1000) -> None:
        self.per_epoch = per_epoch

    def at(self, position: int) -> Prompt:
        epoch, ordinal = divmod(position, self.per_epoch)
        return self.prompt(epoch, ordinal)

    def prompt(self, epoch: int, ordinal: int) -> Prompt:
        return Prompt(epoch, ordinal, [1, 2], {"prompt": str(ordinal)})


def queue_plan(**changes) -> QueuePlan:
    plan = QueuePlan(
        group_size=2,
        groups_per_step=2,
        steps=1000,
        max_staleness=1,
        sampling=Sampling(max_tokens=4),
        lease_seconds=10.0,
        drop_uniform=False,
    )
    return msgspec.structs.replace(plan, **changes)


def group_numbers(prompt_id: str = "0:0", rewards: tuple[float, ...] = (0.0, 1.0), **changes) -> GroupNumbers:
    numbers = GroupNumbers(
        prompt_id=prompt_id,
        generator="rollout-0",
        oldest_version=0,
        newest_version=0,
        prompt_tokens=2,
        completion_tokens=[5] * len(rewards),
        rewards=list(rewards),
        passed=0,
        stop_reasons=[StopReason.STOP] * len(rewards),
        generate_seconds=1.0,
    )
    return msgspec.structs.replace(numbers, **changes)


def step_record(step: int = 1, **changes) -> StepRecord:
    record = StepRecord(
        step=step,
        time=TIME,
        elapsed_seconds=10.0 * step,
        seconds=17.0,
        reward_mean=0.4,
        reward_std=0.2,
        pass_rate=0.3,
        completion_tokens_mean=40.0,
        truncated_share=0.05,
        staleness_mean=0.5,
        staleness_max=1,
        groups_trained=6,
        groups_without_gradient=2,
        groups_filtered=2,
        groups_dropped=1,
        samples=36,
        generated_tokens=1400,
        learner_tokens=2400,
        samples_per_second=1.2,
        generated_tokens_per_second=47.0,
        learner_tokens_per_second=80.0,
        loss=0.01,
        grad_norm=0.5,
        learning_rate=1e-5,
        kl=0.0,
        mismatch_kl=0.001,
        clip_share=0.03,
        tis_truncated_share=0.01,
        effective_sample_share=0.97,
        entropy=0.7,
        phases={"wait": 4.0, "pack": 0.01, "forward": 6.0, "backward": 10.0},
        busy={"rollout": 0.5, "learner": 0.9},
        queue_ready=4,
        queue_leased=8,
    )
    return msgspec.structs.replace(record, **changes)


def evaluation_record(label: str = "warm", step: int = 0, reward: float = 0.4, **changes) -> EvaluationRecord:
    """`reward` is the sampled one; the greedy one is 0.6."""
    record = EvaluationRecord(
        label=label,
        step=step,
        time=TIME,
        elapsed_seconds=30.0,
        sampled=Interval(reward, reward - 0.05, reward + 0.05),
        greedy=Interval(0.6, 0.55, 0.65),
        sampled_pass_rate=0.2,
        greedy_pass_rate=0.4,
        prompts=100,
        samples=200,
        seconds=20.0,
        checks=300,
        scored_samples=300,
        not_scored="",
    )
    return msgspec.structs.replace(record, **changes)


def sample_record(label: str = "train", step: int = 3, **changes) -> SampleRecord:
    record = SampleRecord(
        label=label,
        step=step,
        version=step,
        prompt_id="0:1",
        prompt="say hello",
        completion="hello",
        reward=1.0,
        verdict="fail",
        reason="no_call",
        generator="rollout-0",
    )
    return msgspec.structs.replace(record, **changes)


def member_status(
    name: str = "rollout-0", pool: Pool = Pool.ROLLOUT, state: MemberState = MemberState.SERVING, **changes
) -> MemberStatus:
    status = MemberStatus(
        name=name,
        pool=pool,
        state=state,
        version=None,
        node="node-a",
        pid=10,
        since=TIME,
        inflight=4,
        done=9,
        tokens_per_second=150.0,
        restarts=1,
        metrics_url=None,
        note="",
    )
    return msgspec.structs.replace(status, **changes)


def queue_status(**changes) -> QueueStatus:
    status = QueueStatus(
        leased=8,
        ready=3,
        trained=14,
        filtered=2,
        dropped=0,
        reissued=5,
        capacity=4,
        oldest_lease_seconds=12.5,
    )
    return msgspec.structs.replace(status, **changes)


def run_status(**changes) -> RunStatus:
    """After step 2 of 10, with no members; see `member_status`."""
    status = RunStatus(
        run="booking",
        run_dir="runs/demo",
        phase="waiting for 8 groups",
        phase_since=TIME,
        step=2,
        steps=10,
        version=2,
        elapsed_seconds=25.0,
        members=[],
        queue=queue_status(),
        queue_metrics_url=None,
        last_step=step_record(2),
        evaluations=[],
        weight_syncs=2,
        max_staleness=1,
        peak_memory_bytes=2**33,
    )
    return msgspec.structs.replace(status, **changes)


def summary(**changes) -> Summary:
    """Of a run without a warm start, whose sampled reward went from 0 to 0.5."""
    whole = Summary(
        before=Scores(Interval(0.0, 0.0, 0.0), Interval(0.01, 0.0, 0.02)),
        warm=None,
        after=Scores(Interval(0.5, 0.45, 0.55), Interval(0.6, 0.55, 0.65)),
        gain=Scores(Interval(0.5, 0.45, 0.55), Interval(0.59, 0.5, 0.66)),
        steps=10,
        seconds=305.0,
        samples_per_second=1.5,
        generated_tokens_per_second=200.0,
        learner_tokens_per_second=250.0,
        weight_syncs=10,
        max_staleness=1,
        groups=GroupCounts(70, 10, 0),
        peak_memory_bytes=6 * 2**30,
        model="runs/demo/model",
    )
    return msgspec.structs.replace(whole, **changes)
