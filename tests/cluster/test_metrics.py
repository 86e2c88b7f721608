from __future__ import annotations

import re

import msgspec
import pytest

from headrace.cluster.metrics import (
    TABLES,
    controller_telemetry,
    metrics_markdown,
    update_from_evaluation,
    update_from_status,
    update_from_step,
    update_from_sync,
)
from headrace.cluster.run_records import (
    EvaluationRecord,
    Interval,
    MemberState,
    MemberStatus,
    Pool,
    QueueStatus,
    RunStatus,
    StepRecord,
)
from headrace.verifiers.telemetry import MetricKind, Telemetry

LABELS = {"run": "booking", "member": "controller"}
STEP = StepRecord(
    step=3,
    time=1e9,
    elapsed_seconds=90.0,
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
    kl=0.02,
    mismatch_kl=0.001,
    clip_share=0.03,
    tis_truncated_share=0.01,
    effective_sample_share=0.97,
    entropy=0.7,
    phases={"wait": 4.0, "forward": 6.0, "backward": 10.0},
    busy={"rollout": 0.5, "learner": 0.9},
    queue_ready=4,
    queue_leased=8,
)


def member(name: str, state: MemberState) -> MemberStatus:
    return MemberStatus(name, Pool.ROLLOUT, state, 3, "node", 1, 1e9, 4, 10, 200.0, 0, None, "")


STATUS = RunStatus(
    run="booking",
    run_dir="runs/booking",
    phase="waiting for groups",
    phase_since=1e9,
    step=3,
    steps=10,
    version=3,
    elapsed_seconds=95.0,
    members=[member("generator-0", MemberState.SERVING), member("generator-1", MemberState.SYNCING)],
    queue=QueueStatus(8, 4, 18, 2, 0, 5, 6, 12.5),
    last_step=STEP,
    evaluations=[],
    weight_syncs=3,
    max_staleness=1,
    peak_memory_bytes=2**33,
)


@pytest.fixture
def telemetry() -> Telemetry:
    return controller_telemetry("booking")


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.registry.get_sample_value(name, LABELS | labels)


def test_steps_add_to_the_counters_and_replace_the_gauges(telemetry: Telemetry) -> None:
    update_from_step(telemetry, STEP)
    update_from_step(telemetry, msgspec.structs.replace(STEP, step=4, reward_mean=0.6))
    assert value(telemetry, "headrace_generated_tokens_total") == 2800
    assert value(telemetry, "headrace_groups_total", outcome="trained") == 12
    assert value(telemetry, "headrace_groups_total", outcome="filtered") == 4
    assert value(telemetry, "headrace_phase_seconds_total", phase="forward") == 12
    assert value(telemetry, "headrace_step_seconds_sum") == 34
    assert value(telemetry, "headrace_reward") == 0.6
    assert value(telemetry, "headrace_pool_busy_ratio", pool="learner") == 0.9


def test_a_member_that_changes_its_state_leaves_the_old_one_at_zero(telemetry: Telemetry) -> None:
    update_from_status(telemetry, STATUS, now=1e9)
    assert value(telemetry, "headrace_members", pool="rollout", state="syncing") == 1
    both = [member("generator-0", MemberState.SERVING), member("generator-1", MemberState.SERVING)]
    update_from_status(telemetry, msgspec.structs.replace(STATUS, members=both), now=1e9)
    assert value(telemetry, "headrace_members", pool="rollout", state="syncing") == 0
    assert value(telemetry, "headrace_members", pool="rollout", state="serving") == 2


def test_totals_of_the_status_are_not_added_up_twice(telemetry: Telemetry) -> None:
    for _ in range(2):
        update_from_status(telemetry, STATUS, now=1e9 + 7)
    assert value(telemetry, "headrace_weight_syncs_total") == 3
    assert value(telemetry, "headrace_groups_reissued_total") == 5
    assert value(telemetry, "headrace_phase_age_seconds") == 7
    assert value(telemetry, "headrace_queue_oldest_lease_seconds") == 12.5


def test_the_status_before_the_queue_is_up_is_taken_as_well(telemetry: Telemetry) -> None:
    update_from_status(telemetry, msgspec.structs.replace(STATUS, queue=None, members=[]), now=1e9)
    assert value(telemetry, "headrace_queue_groups", state="ready") is None
    assert value(telemetry, "headrace_members", pool="learner", state="serving") == 0


def test_evaluations_and_weight_syncs_are_exported(telemetry: Telemetry) -> None:
    sampled, greedy = Interval(0.4, 0.3, 0.5), Interval(0.6, 0.5, 0.7)
    update_from_evaluation(telemetry, EvaluationRecord("warm", 0, 1e9, 40.0, sampled, greedy, 0.2, 0.4, 100, 200, 9.0))
    update_from_sync(telemetry, publish_seconds=1.5, pause_seconds=0.1)
    assert value(telemetry, "headrace_evaluation_reward", decoding="greedy") == 0.6
    assert value(telemetry, "headrace_weight_publish_seconds_sum") == 1.5
    assert value(telemetry, "headrace_weight_pause_seconds_bucket", le="0.1") == 1


def test_names_follow_the_conventions_and_are_unique_over_all_processes() -> None:
    metrics = [metric for table in TABLES.values() for metric in table]
    assert len({metric.name for metric in metrics}) == len(metrics)
    for metric in metrics:
        assert re.fullmatch(r"headrace(_[a-z]+)+", metric.name), metric.name
        assert metric.name.endswith("_total") == (metric.kind is MetricKind.COUNTER), metric.name
        assert (metric.kind is MetricKind.HISTOGRAM) == bool(metric.buckets), metric.name
        assert metric.help.endswith("."), metric.name
        # Base units: no milliseconds, percentages or mebibytes, by whatever name.
        assert not re.search(r"_(ms|millis|minutes|percent|kib|mib|gib|mb|gb)(_|$)", metric.name), metric.name


def test_the_markdown_table_has_one_row_for_each_metric() -> None:
    rows = re.findall(r"^\| `(headrace_\w+)` \|", metrics_markdown(), flags=re.MULTILINE)
    assert rows == [metric.name for table in TABLES.values() for metric in table]
    assert "| `headrace_members` | gauge | `pool`, `state` |" in metrics_markdown()
