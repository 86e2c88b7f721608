"""A step's record from its parts: what counts as trained, filtered and stale, and where its time went."""

import math

import msgspec
import pytest

from headrace.cluster.publisher import PublishReport
from headrace.cluster.queue_actor import Batch, TakenGroup
from headrace.cluster.run_records import PHASES
from headrace.cluster.step_record import StepTimes, pass_rate, step_record
from headrace.learner.rank import StepMetrics
from headrace.learner.worker import StepReport
from headrace.verifiers.records import GroupNumbers, StopReason
from tests.factories import group_numbers

NAN = math.nan
METRICS = StepMetrics(
    step=5,
    loss=0.5,
    grad_norm=1.5,
    learning_rate=1e-5,
    kl=0.01,
    mismatch_kl=0.002,
    clip_share=0.1,
    tis_truncated_share=0.05,
    effective_sample_share=0.9,
    entropy=2.0,
    trained_tokens=20,
    groups_without_gradient=1,
    learner_tokens=40,
    rank_tokens=30,
    phases={"pack": 0.1, "forward": 1.0, "backward": 2.0, "optimizer": 0.3},
)
REPORT = StepReport(METRICS, fetch_seconds=0.2, seconds=3.6)


def numbers(rewards: list[float], oldest: int = 4, passed: int = 0, stops: str = "ss") -> GroupNumbers:
    reasons = [StopReason.LENGTH if stop == "l" else StopReason.STOP for stop in stops]
    return group_numbers(rewards=tuple(rewards), oldest_version=oldest, passed=passed, stop_reasons=reasons)


def batch(groups: list[GroupNumbers], filtered: list[GroupNumbers] | None = None, dropped: int = 0) -> Batch:
    return Batch([TakenGroup(each, None) for each in groups], filtered or [], dropped, ready_left=3, leased=7)


def times(seconds: float = 10.0) -> StepTimes:
    made = StepTimes.start({"rollout": 100.0})
    made.seconds = seconds
    return made


def test_rewards_are_over_all_samples_that_came_back_filtered_ones_included():
    record = step_record(
        5, batch([numbers([0.0, 1.0], passed=1)], [numbers([1.0, 1.0], passed=2)]), REPORT, times(), 60.0
    )
    assert record.reward_mean == 0.75
    assert record.pass_rate == 0.75
    assert (record.samples, record.generated_tokens, record.completion_tokens_mean) == (4, 20, 5.0)
    assert record.samples_per_second == 0.4
    assert record.generated_tokens_per_second == 2.0
    assert record.learner_tokens_per_second == 4.0


def test_a_sample_whose_check_did_not_run_counts_in_no_mean():
    record = step_record(
        5, batch([numbers([NAN, 1.0], passed=1), numbers([0.0, 1.0], passed=1)]), REPORT, times(), 60.0
    )
    assert record.reward_mean == pytest.approx(2 / 3)
    assert record.pass_rate == pytest.approx(2 / 3)
    assert record.samples == 4


FLAT_AND_NOT = [numbers([0.0, 1.0]), numbers([0.5, 0.5])]


def test_all_taken_groups_are_trained_and_those_without_a_gradient_are_named_beside():
    record = step_record(5, batch(FLAT_AND_NOT, [numbers([1.0, 1.0])], dropped=2), REPORT, times(), 60.0)
    assert (record.groups_trained, record.groups_filtered, record.groups_dropped) == (2, 1, 2)
    assert record.groups_without_gradient == 1


def test_which_groups_had_a_gradient_is_what_the_learner_says():
    # With a KL term a flat group has one; and a batch may be small enough for all of its groups to be flat.
    with_kl = msgspec.structs.replace(REPORT, metrics=msgspec.structs.replace(METRICS, groups_without_gradient=0))
    assert step_record(5, batch(FLAT_AND_NOT), with_kl, times(), 60.0).groups_without_gradient == 0


def test_the_steps_seconds_are_those_of_the_wall_clock_not_the_sum_of_its_phases():
    made = times(8.0)
    made.phases |= {"forward": 6.0, "publish": 7.0}
    assert step_record(5, batch([numbers([0, 1])]), REPORT, made, 60.0).seconds == 8.0


def test_staleness_is_that_of_the_oldest_token_against_the_weights_that_learned():
    # Step 5 trains the weights of version 4.
    record = step_record(5, batch([numbers([0, 1], oldest=4), numbers([0, 1], oldest=2)]), REPORT, times(), 60.0)
    assert (record.staleness_mean, record.staleness_max) == (1.0, 2)


def test_truncated_samples_are_those_that_ended_by_length():
    record = step_record(5, batch([numbers([0, 1], stops="ls"), numbers([0, 1], stops="ss")]), REPORT, times(), 60.0)
    assert record.truncated_share == 0.25


def test_what_the_learner_and_the_queue_say_is_taken_over_and_can_be_written():
    record = step_record(5, batch([numbers([0, 1])]), REPORT, times(), 60.0)
    for field in METRICS.__struct_fields__:
        if field not in ("phases", "trained_tokens", "rank_tokens"):
            assert getattr(record, field) == getattr(METRICS, field), field
    assert (record.queue_ready, record.queue_leased, record.elapsed_seconds) == (3, 7, 60.0)
    assert msgspec.json.decode(msgspec.json.encode(record), type=type(record)) == record


def test_every_phase_is_there_and_a_publish_of_the_step_before_counts_here():
    made = StepTimes.start({})
    made.mark("wait")
    made.add_learner(REPORT)
    made.snapshot_seconds = 0.4
    made.sync = PublishReport(4, ["g"], seconds=1.25, transfer_seconds=1.0, pause_seconds=0.1, probe_distance=0.0)
    made.finish({})
    assert set(made.phases) == set(PHASES)
    assert made.phases["wait"] >= 0
    rest = {name: seconds for name, seconds in made.phases.items() if name != "wait"}
    assert rest == {"fetch": 0.2, **METRICS.phases, "snapshot": 0.4, "publish": 1.25}


def test_a_step_that_published_nothing_has_a_publish_of_zero():
    assert StepTimes.start({}).finish({}).phases["publish"] == 0.0


def test_busy_shares_stay_between_zero_and_one_though_members_are_replaced():
    made = StepTimes.start({"rollout": 100.0, "learner": 0.0})
    made.began -= 10.0  # a step of ten seconds
    made.finish({"rollout": 2.0, "learner": 1000.0, "verification": 5.0})
    assert made.busy["rollout"] == 0.0
    assert made.busy["learner"] == 1.0
    assert made.busy["verification"] == pytest.approx(0.5, abs=0.05)


def test_the_pass_rate_of_no_scored_sample_is_zero():
    assert pass_rate([numbers([NAN, NAN])]) == 0.0
