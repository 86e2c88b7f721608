from __future__ import annotations

import io
import threading
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from headrace.cluster import display
from headrace.cluster.display import (
    HEARTBEAT_SECONDS,
    Display,
    LiveDisplay,
    PlainDisplay,
    make_display,
)
from headrace.cluster.run_records import MemberState, Pool, RunStatus
from headrace.cluster.status_panel import Sparkline, render_status
from tests.factories import TIME, evaluation_record, member_status, run_status, step_record, summary

MEMBERS = [
    member_status("generator-0", version=2),
    member_status("generator-1", state=MemberState.SYNCING, note="replaces one killed by signal 9"),
    member_status("verifier-0", Pool.VERIFICATION),
    member_status("learner-0", Pool.LEARNER),
]
STATUS = run_status(run="booking [demo]", members=MEMBERS)


class Clock:
    def __init__(self) -> None:
        self.now = TIME

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
    Console(file=output, width=width).print(
        render_status(status, TIME + 12, [step_record(1), step_record(2)], every_member)
    )
    return output.getvalue()


def test_a_display_is_ticked_from_a_thread_while_there_is_no_loop_and_no_longer(monkeypatch):
    monkeypatch.setattr(display, "TICK_SECONDS", 0.001)
    ticked = threading.Event()
    ticks: list[float] = []

    class Ticked:
        def tick(self, now: float) -> None:
            ticks.append(now)
            ticked.set()

    with display.ticking(cast(Display, Ticked())) as stop:
        assert ticked.wait(5)
        stop()
    assert ticks
    assert not any(thread.name == "tick" for thread in threading.enumerate())


def test_plain_output_is_one_line_for_each_step_phase_and_event(plain: Display, output: io.StringIO) -> None:
    assert isinstance(plain, PlainDisplay)
    began = STATUS.phase_since - 30
    starting = msgspec.structs.replace(STATUS, phase="starting 1 generator", phase_since=began, last_step=None)
    over = msgspec.structs.replace(starting, phase="starting 1 generator: done", phase_since=began + 9)
    for status in (starting, starting, over, STATUS, STATUS):
        plain.update(status)
    plain.event("generator-1 [killed by signal 9] is replaced")
    lines = output.getvalue().splitlines()
    assert [line[6:22] for line in lines] == [
        "starting 1 gener",
        "step 2/10: rewar",
        "waiting for 8 gr",
        "generator-1 [kil",
    ]
    assert "forward 6.0" in lines[1]
    assert "6 trained (2 without gradient), 2 filtered, 1 dropped" in lines[1]
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
    assert "queue 8 leased 3 ready, 2 filtered, 0 dropped, oldest lease 12 s" in heartbeats[0]


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
    fleet = [member_status(f"generator-{index}", version=2) for index in range(99)]
    fleet.append(member_status("generator-99", state=MemberState.DRAINING, version=2))
    panel = drawn(msgspec.structs.replace(STATUS, members=fleet), every_member=False)
    assert "99 serving v2, 1 draining v2" in panel
    assert "generator-99" in panel
    assert "generator-98" not in panel


def test_the_panel_is_drawn_before_anything_is_known() -> None:
    panel = drawn(msgspec.structs.replace(STATUS, step=0, last_step=None, queue=None, members=[]))
    assert "waiting for 8 groups" in panel


def test_a_console_without_unicode_gets_only_ascii() -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")  # raises on anything that is not
    Console(file=output, width=100).print(
        render_status(STATUS, TIME, [step_record(1, reward_mean=0.1), step_record(2, reward_mean=0.9)])
    )
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
    plain.close(summary())
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
    plain.evaluation(evaluation_record("warm", reward=0.24))
    assert "evaluation warm: sampled 0.240 [0.190, 0.290], greedy 0.600 [0.550, 0.650]" in output.getvalue()
    assert "checks" not in output.getvalue()


def test_an_evaluation_with_checks_that_did_not_run_says_so(plain: Display, output: io.StringIO) -> None:
    plain.evaluation(evaluation_record(checks=20, scored_samples=9, not_scored="KeyError: 'answer'"))
    assert output.getvalue().endswith("; 9 of 20 checks ran; KeyError: 'answer'\n")
