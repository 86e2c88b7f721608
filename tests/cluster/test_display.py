from __future__ import annotations

import io
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from headrace.cluster.display import (
    HEARTBEAT_SECONDS,
    Display,
    LiveDisplay,
    PlainDisplay,
    make_display,
)
from headrace.cluster.run_records import (
    EvaluationRecord,
    GroupCounts,
    Interval,
    MemberState,
    MemberStatus,
    Pool,
    QueueStatus,
    RunStatus,
    Scores,
    StepRecord,
    Summary,
)
from headrace.cluster.status_panel import Sparkline, render_status

START = 1e9


def step(number: int, reward: float = 0.5) -> StepRecord:
    return StepRecord(
        step=number,
        time=START + 10 * number,
        elapsed_seconds=10.0 * number,
        seconds=8.0,
        reward_mean=reward,
        reward_std=0.1,
        pass_rate=0.4,
        completion_tokens_mean=40.0,
        truncated_share=0.0,
        staleness_mean=0.5,
        staleness_max=1,
        groups_trained=7,
        groups_without_gradient=2,
        groups_filtered=1,
        groups_dropped=0,
        samples=32,
        generated_tokens=1280,
        learner_tokens=2100,
        samples_per_second=3.2,
        generated_tokens_per_second=128.0,
        learner_tokens_per_second=210.0,
        loss=-0.01,
        grad_norm=0.7,
        learning_rate=1e-5,
        kl=0.0,
        mismatch_kl=0.001,
        clip_share=0.01,
        tis_truncated_share=0.0,
        effective_sample_share=0.98,
        entropy=0.6,
        phases={"wait": 4.0, "forward": 3.0, "pack": 0.01},
        busy={"rollout": 0.8},
        queue_ready=3,
        queue_leased=8,
    )


def member(name: str, pool: Pool, state: MemberState, version: int | None = None, note: str = "") -> MemberStatus:
    return MemberStatus(name, pool, state, version, "node-a", 10, START, 4, 9, 150.0, 1, None, note)


MEMBERS = [
    member("generator-0", Pool.ROLLOUT, MemberState.SERVING, 2),
    member("generator-1", Pool.ROLLOUT, MemberState.SYNCING, note="replaces one killed by signal 9"),
    member("verifier-0", Pool.VERIFICATION, MemberState.SERVING),
    member("learner-0", Pool.LEARNER, MemberState.SERVING),
]
STATUS = RunStatus(
    run="booking [demo]",
    run_dir="runs/demo",
    phase="waiting for 8 groups",
    phase_since=START,
    step=2,
    steps=10,
    version=2,
    elapsed_seconds=25.0,
    members=MEMBERS,
    queue=QueueStatus(8, 3, 14, 2, 0, 1, 4, 12.0),
    last_step=step(2),
    evaluations=[],
    weight_syncs=2,
    max_staleness=1,
    peak_memory_bytes=2**33,
)
SUMMARY = Summary(
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


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class WatchedOutput(io.StringIO):
    """Says when a text has been written."""

    def __init__(self, awaited: str) -> None:
        super().__init__()
        self.awaited = awaited
        self.seen = threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        if self.awaited in text:
            self.seen.set()
        return count


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def plain(clock: Clock, output: io.StringIO) -> Display:
    return make_display(Console(file=output, width=80, force_terminal=False), clock)


def drawn(status: RunStatus, width: int = 100, every_member: bool = True) -> str:
    output = io.StringIO()
    Console(file=output, width=width).print(render_status(status, START + 12, [step(1), step(2)], every_member))
    return output.getvalue()


def test_plain_output_is_one_line_for_each_step_phase_and_event(plain: Display, output: io.StringIO) -> None:
    assert isinstance(plain, PlainDisplay)
    began = STATUS.phase_since - 30
    starting = msgspec.structs.replace(STATUS, phase="starting 1 generator", phase_since=began, last_step=None)
    for status in (starting, starting, STATUS, STATUS):
        plain.update(status)
    plain.event("generator-1 [killed by signal 9] is replaced")
    lines = output.getvalue().splitlines()
    assert [line[6:22] for line in lines] == [
        "starting 1 gener",
        "step 2/10: rewar",
        "waiting for 8 gr",
        "generator-1 [kil",
    ]
    assert "forward 3.0" in lines[1]
    assert "7 trained (2 without gradient), 1 filtered, 0 dropped" in lines[1]
    assert "\x1b" not in output.getvalue()


def test_a_phase_that_lasts_is_named_with_its_time_every_fifteen_seconds(
    plain: Display, clock: Clock, output: io.StringIO
) -> None:
    plain.update(STATUS)
    for _ in range(44):
        clock.now += 1
        plain.tick(clock.now)
    heartbeats = [line for line in output.getvalue().splitlines() if "still" in line]
    assert [line[:5] for line in heartbeats] == [" 0:15", " 0:30"]
    assert "still waiting for 8 groups, 15 s so far" in heartbeats[0]
    assert "generator-1 syncing for 15 s (replaces one killed by signal 9)" in heartbeats[0]
    assert "queue 8 leased 3 ready, oldest lease 12 s" in heartbeats[0]


def test_there_is_no_heartbeat_while_lines_come(plain: Display, clock: Clock, output: io.StringIO) -> None:
    for number in range(8):
        clock.now += HEARTBEAT_SECONDS - 1
        plain.event(f"checkpoint {number}")
        plain.tick(clock.now + 1)
    assert "still" not in output.getvalue()


def test_a_run_that_has_not_said_anything_yet_has_a_heartbeat(
    plain: Display, clock: Clock, output: io.StringIO
) -> None:
    clock.now += 20
    plain.tick(clock.now)
    assert "still starting, 20 s so far" in output.getvalue()


def test_a_terminal_is_redrawn_with_the_running_time_while_nothing_arrives(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    output = WatchedOutput("1 min 7 s")
    display = make_display(Console(file=output, width=100, force_terminal=True), clock)
    assert isinstance(display, LiveDisplay)
    display.update(STATUS)
    clock.now += 67
    try:
        assert output.seen.wait(timeout=30)
    finally:
        display.close()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display(Console(file=io.StringIO(), force_terminal=True)), PlainDisplay)


def test_the_panel_shows_pools_versions_queue_and_what_goes_on() -> None:
    panel = drawn(STATUS)
    for part in (
        "booking [demo]",
        "step 2/10",
        "1 syncing, 1 serving v2",
        "8 leased, 3 ready",
        "14 trained, 2 filtered",
        "generator-1: replaces one killed by signal 9",
        "mean 0.5, max 1 (bound 1)",
        "now  waiting for 8 groups, 12 s",
        "about 1 min 20 s left",
    ):
        assert part in panel


@pytest.mark.parametrize("width", [50, 80, 200])
def test_the_panel_fits_its_terminal(width: int) -> None:
    assert {len(line) for line in drawn(STATUS, width).splitlines()} == {width}


def test_a_large_fleet_is_counted_and_only_those_who_do_not_serve_are_listed() -> None:
    fleet = [member(f"generator-{index}", Pool.ROLLOUT, MemberState.SERVING, 2) for index in range(99)]
    fleet.append(member("generator-99", Pool.ROLLOUT, MemberState.DRAINING, 2))
    panel = drawn(msgspec.structs.replace(STATUS, members=fleet), every_member=False)
    assert "99 serving v2, 1 draining v2" in panel
    assert "generator-99" in panel
    assert "generator-98" not in panel


def test_the_panel_is_drawn_before_anything_is_known() -> None:
    panel = drawn(msgspec.structs.replace(STATUS, step=0, last_step=None, queue=None, members=[]))
    assert "waiting for 8 groups" in panel


def test_a_console_without_unicode_gets_only_ascii() -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")  # raises on anything that is not
    Console(file=output, width=100).print(render_status(STATUS, START, [step(1, 0.1), step(2, 0.9)]))
    output.seek(0)
    assert "step 2/10" in output.read()


@given(st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=90), st.integers(1, 40))
def test_a_sparkline_keeps_its_width_and_reaches_its_full_height(values: list[float], width: int) -> None:
    line = Sparkline(values).draw(width)
    numbers = [value for value in values if value == value]
    assert len(line) == min(width, len(numbers))
    if len(numbers) <= width and len(set(numbers)) > 1:
        assert {"▁", "█"} <= set(line)


def test_the_closing_block_says_what_was_reached_and_where_it_lies(plain: Display, output: io.StringIO) -> None:
    plain.update(STATUS)
    plain.close(SUMMARY)
    closing = output.getvalue()
    for part in (
        "0.500 [0.450, 0.550]",
        "+0.590 [+0.500, +0.660]",
        "10 in 5 min 5 s",
        "6.0 GiB",
        "runs/demo/model",
        "runs/demo/report.html",
    ):
        assert part in closing
    assert "warm start" not in closing


def test_a_run_that_was_ended_early_says_where_it_stands(plain: Display, output: io.StringIO) -> None:
    plain.update(STATUS)
    plain.close()
    assert output.getvalue().splitlines()[-1] == "stopped at step 2/10; the run is in runs/demo"


def test_an_evaluation_is_a_line_with_its_intervals(plain: Display, output: io.StringIO) -> None:
    sampled, greedy = Interval(0.24, 0.19, 0.29), Interval(0.61, 0.55, 0.67)
    plain.evaluation(EvaluationRecord("warm", 0, START, 60.0, sampled, greedy, 0.1, 0.4, 100, 200, 31.0))
    assert "evaluation warm: sampled 0.240 [0.190, 0.290], greedy 0.610 [0.550, 0.670]" in output.getvalue()
