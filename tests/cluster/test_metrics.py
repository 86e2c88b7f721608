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
from headrace.cluster.run_records import MemberState
from headrace.verifiers.telemetry import MetricKind, Telemetry
from tests.factories import TIME, evaluation_record, member_status, run_status, step_record

LABELS = {"run": "booking", "member": "controller"}
MEMBERS = [member_status("rollout-0"), member_status("rollout-1", state=MemberState.SYNCING)]
STATUS = run_status(members=MEMBERS)


@pytest.fixture
def telemetry() -> Telemetry:
    return controller_telemetry("booking")


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.registry.get_sample_value(name, LABELS | labels)


def test_steps_add_to_the_counters_and_replace_the_gauges(telemetry: Telemetry) -> None:
    update_from_step(telemetry, step_record(1))
    update_from_step(telemetry, step_record(2, reward_mean=0.6))
    assert value(telemetry, "headrace_generated_tokens_total") == 2800
    assert value(telemetry, "headrace_groups_total", outcome="trained") == 12
    assert value(telemetry, "headrace_groups_total", outcome="filtered") == 4
    assert value(telemetry, "headrace_phase_seconds_total", phase="forward") == 12
    assert value(telemetry, "headrace_step_seconds_sum") == 34
    assert value(telemetry, "headrace_reward") == 0.6
    assert value(telemetry, "headrace_pool_busy_ratio", pool="learner") == 0.9


def test_a_member_that_changes_its_state_leaves_the_old_one_at_zero(telemetry: Telemetry) -> None:
    update_from_status(telemetry, STATUS, now=TIME)
    assert value(telemetry, "headrace_members", pool="rollout", state="syncing") == 1
    both = [MEMBERS[0], msgspec.structs.replace(MEMBERS[1], state=MemberState.SERVING)]
    update_from_status(telemetry, msgspec.structs.replace(STATUS, members=both), now=TIME)
    assert value(telemetry, "headrace_members", pool="rollout", state="syncing") == 0
    assert value(telemetry, "headrace_members", pool="rollout", state="serving") == 2


def test_totals_of_the_status_are_not_added_up_twice(telemetry: Telemetry) -> None:
    for _ in range(2):
        update_from_status(telemetry, STATUS, now=TIME + 7)
    assert value(telemetry, "headrace_weight_syncs_total") == 2
    assert value(telemetry, "headrace_groups_reissued_total") == 5
    assert value(telemetry, "headrace_phase_age_seconds") == 7
    assert value(telemetry, "headrace_queue_oldest_lease_seconds") == 12.5


def test_the_status_before_the_queue_is_up_is_taken_as_well(telemetry: Telemetry) -> None:
    update_from_status(telemetry, msgspec.structs.replace(STATUS, queue=None, members=[]), now=TIME)
    assert value(telemetry, "headrace_queue_groups", state="ready") is None
    assert value(telemetry, "headrace_members", pool="learner", state="serving") == 0


def test_evaluations_and_weight_syncs_are_exported(telemetry: Telemetry) -> None:
    update_from_evaluation(telemetry, evaluation_record("warm"))
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
