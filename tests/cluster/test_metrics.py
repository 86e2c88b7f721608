from __future__ import annotations

import asyncio
import re

import msgspec
import pytest

from headrace.cluster import metrics
from headrace.cluster.metrics import (
    TABLES,
    controller_telemetry,
    metrics_markdown,
    queue_telemetry,
    update_from_evaluation,
    update_from_queue,
    update_from_status,
    update_from_step,
    update_from_sync,
)
from headrace.cluster.run_records import MemberState
from headrace.verifiers.telemetry import MetricKind, Telemetry
from tests.factories import TIME, evaluation_record, member_status, queue_status, run_status, step_record

OUTCOMES = ("trained", "filtered", "dropped")
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
    assert value(telemetry, "headrace_phase_age_seconds") == 7


def test_the_status_before_the_queue_is_up_is_taken_as_well(telemetry: Telemetry) -> None:
    update_from_status(telemetry, msgspec.structs.replace(STATUS, queue=None, members=[]), now=TIME)
    assert value(telemetry, "headrace_members", pool="learner", state="serving") == 0


def test_the_queues_counters_count_from_the_start_of_its_process() -> None:
    telemetry = queue_telemetry("booking")
    before = queue_status(trained=10, filtered=1, dropped=0, reissued=0)

    def queue_value(name: str, **labels: str) -> float | None:
        return telemetry.registry.get_sample_value(name, {"run": "booking", "member": "queue"} | labels)

    for _ in range(2):
        update_from_queue(telemetry, queue_status(), before)
    groups = {outcome: queue_value("headrace_groups_total", outcome=outcome) for outcome in OUTCOMES}
    assert groups == {"trained": 4, "filtered": 1, "dropped": 0}
    assert queue_value("headrace_groups_reissued_total") == 5
    assert queue_value("headrace_queue_groups", state="leased") == 8
    assert queue_value("headrace_queue_groups", state="ready") == 3
    assert queue_value("headrace_queue_capacity_groups") == 4
    assert queue_value("headrace_queue_oldest_lease_seconds") == 12.5


async def test_numbers_of_a_loop_that_does_not_answer_are_not_given(monkeypatch) -> None:
    monkeypatch.setattr(metrics, "LOOK_SECONDS", 0.01)

    async def never() -> None:
        await asyncio.Event().wait()

    page = metrics.UpToDate(queue_telemetry("booking").registry, asyncio.get_running_loop(), never)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(page.collect)


def test_evaluations_and_weight_syncs_are_exported(telemetry: Telemetry) -> None:
    update_from_evaluation(telemetry, evaluation_record("warm"))
    update_from_sync(telemetry, publish_seconds=1.5, pause_seconds=0.1)
    assert value(telemetry, "headrace_evaluation_reward", decoding="greedy") == 0.6
    assert value(telemetry, "headrace_weight_publish_seconds_sum") == 1.5
    assert value(telemetry, "headrace_weight_pause_seconds_bucket", le="0.1") == 1


def test_names_follow_the_conventions_and_are_unique_over_all_processes() -> None:
    declared = [metric for table in TABLES.values() for metric in table]
    assert len({metric.name for metric in declared}) == len(declared)
    for metric in declared:
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
