"""What a run shows while it goes on: a live display on a terminal, plain lines elsewhere.

Both say at any time what goes on and for how long: the live display draws itself twice a second from a thread of its
own, the plain one writes a heartbeat when the controller's `tick` finds that nothing was written for a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headrace.cluster.formats import checks_ran, clock_time, duration, interval
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_records import PHASE_ENDED, EvaluationRecord, MemberState, RunStatus, StepRecord, Summary
from headrace.cluster.status_panel import render_status

HEARTBEAT_SECONDS = 15.0
TICK_SECONDS = 1.0


class Display(Protocol):
    """What the controller tells of itself. All calls return at once."""

    def update(self, status: RunStatus) -> None:
        """The run as it is now; cheap enough for a few times a second."""
        ...

    def event(self, line: str) -> None:
        """Something happened that is worth a line: a member was replaced, a checkpoint written."""
        ...

    def evaluation(self, record: EvaluationRecord) -> None:
        """An evaluation has ended."""
        ...

    def tick(self, now: float) -> None:
        """Time has passed (`now`: Unix time); to be called at least every few seconds while anything is waited for."""
        ...

    def close(self, summary: Summary | None = None) -> None:
        """Stop, and with a summary print the closing block. Without one the run was ended early."""
        ...


def make_display(console: Console, clock: Callable[[], float] = time.time) -> Display:
    """A live display where `console` is a terminal that can redraw, plain lines where it is not."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(console, clock)
    return PlainDisplay(console, clock)


@contextmanager
def ticking(display: Display) -> Iterator[Callable[[], None]]:
    """Ticks from a thread, for the time before there is an event loop to do it; until the block ends, or the function that
    it gives is called."""
    over = threading.Event()

    def tick() -> None:
        while not over.wait(TICK_SECONDS):
            display.tick(time.time())

    thread = threading.Thread(target=tick, name="tick", daemon=True)
    thread.start()
    try:
        yield over.set
    finally:
        over.set()
        thread.join()


class LiveDisplay:
    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._started = clock()
        self._status: RunStatus | None = None
        self._updated = self._started
        self._steps: dict[int, StepRecord] = {}
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=2, transient=True, auto_refresh=True
        )
        self._live.start()

    def update(self, status: RunStatus) -> None:
        if status.last_step is not None:
            self._steps[status.last_step.step] = status.last_step
        self._status, self._updated = status, self._clock()

    def event(self, line: str) -> None:
        self._print(line)

    def evaluation(self, record: EvaluationRecord) -> None:
        self._print(evaluation_line(record))

    def tick(self, now: float) -> None:
        """The display's own thread draws it, also while the controller is held up."""

    def close(self, summary: Summary | None = None) -> None:
        self._live.stop()
        _print_closing(self._console, summary, self._status)

    def _print(self, line: str) -> None:
        elapsed = self._clock() - self._started
        self._console.print(Text.assemble((f"{clock_time(elapsed)} ", "dim"), line))

    def _render(self) -> RenderableType:
        now = self._clock()
        if self._status is None:
            return Text(f"starting, {duration(now - self._started)}")
        elapsed = self._status.elapsed_seconds + now - self._updated
        status = msgspec.structs.replace(self._status, elapsed_seconds=elapsed)
        # A copy: the controller's thread may add a step while this one draws.
        return render_status(status, now, list(self._steps.copy().values()), every_member=False)


class PlainDisplay:
    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._started = self._last_line = clock()
        self._status: RunStatus | None = None

    def update(self, status: RunStatus) -> None:
        last, self._status = self._status, status
        record = status.last_step
        if record is not None and (last is None or last.last_step is None or last.last_step.step != record.step):
            self._print(step_line(record, status.steps))
        begun = last is None or last.phase_since != status.phase_since
        if begun and not status.phase.endswith(PHASE_ENDED):
            self._print(status.phase)

    def event(self, line: str) -> None:
        self._print(line)

    def evaluation(self, record: EvaluationRecord) -> None:
        self._print(evaluation_line(record))

    def tick(self, now: float) -> None:
        if now - self._last_line < HEARTBEAT_SECONDS:
            return
        if self._status is None:
            self._print(f"still starting, {duration(now - self._started)} so far", now)
        else:
            self._print(heartbeat_line(self._status, now), now)

    def close(self, summary: Summary | None = None) -> None:
        _print_closing(self._console, summary, self._status)

    def _print(self, line: str, now: float | None = None) -> None:
        self._last_line = self._clock() if now is None else now
        elapsed = clock_time(self._last_line - self._started)
        self._console.print(f"{elapsed} {line}", markup=False, highlight=False, soft_wrap=True)


def step_line(record: StepRecord, steps: int) -> str:
    """A step in one line, for logs that people read."""
    phases = " ".join(f"{name} {spent:.1f}" for name, spent in record.phases.items() if spent >= 0.05)
    flat = f" ({record.groups_without_gradient} without gradient)" if record.groups_without_gradient else ""
    groups = (
        f"{record.groups_trained} trained{flat}, {record.groups_filtered} filtered, {record.groups_dropped} dropped"
    )
    return (
        f"step {record.step}/{steps}: reward {record.reward_mean:.3f}, pass {record.pass_rate:.0%}, "
        f"staleness {record.staleness_mean:.1f} (max {record.staleness_max}), groups {groups}, "
        f"tokens/s {record.generated_tokens_per_second:.0f} generated {record.learner_tokens_per_second:.0f} learned, "
        f"mismatch KL {record.mismatch_kl:.4f}; seconds: {phases}"
    )


def evaluation_line(record: EvaluationRecord) -> str:
    missing = ""
    if record.scored_samples < record.checks:
        missing = f"; {checks_ran(record.scored_samples, record.checks, record.not_scored)}"
    return (
        f"evaluation {record.label}: sampled {interval(record.sampled)}, greedy {interval(record.greedy)}, "
        f"{record.prompts} prompts, {record.samples} samples, {duration(record.seconds)}{missing}"
    )


def heartbeat_line(status: RunStatus, now: float) -> str:
    """What is waited for and for how long, with what a reader needs to see whether it moves."""
    parts = [f"still {status.phase}, {duration(now - status.phase_since)} so far"]
    for member in status.members:
        if member.state is not MemberState.SERVING and member.state is not MemberState.GONE:
            note = f" ({member.note})" if member.note else ""
            parts.append(f"{member.name} {member.state} for {duration(now - member.since)}{note}")
    if status.queue is not None:
        queue = status.queue
        oldest = f", oldest lease {duration(queue.oldest_lease_seconds)}" if queue.leased else ""
        settled = f"{queue.filtered} filtered, {queue.dropped} dropped"
        parts.append(f"queue {queue.leased} leased {queue.ready} ready, {settled}{oldest}")
    return "; ".join(parts)


def _print_closing(console: Console, summary: Summary | None, status: RunStatus | None) -> None:
    if summary is None:
        if status is not None:
            console.print(f"stopped at step {status.step}/{status.steps}; the run is in {status.run_dir}", markup=False)
        return
    report = None if status is None else RunFolder(Path(status.run_dir)).report
    console.print(render_summary(summary, report))


def render_summary(summary: Summary, report: Path | None) -> RenderableType:
    """The closing block: what was reached, what it took, and where it lies."""
    parts: list[RenderableType] = []
    scores = {"before": summary.before, "warm start": summary.warm, "after": summary.after, "gain": summary.gain}
    if any(scores.values()):
        table = Table("held-out reward", "sampled (95%)", "greedy (95%)")
        for label, score in scores.items():
            if score is not None:
                signed = label == "gain"
                table.add_row(
                    label,
                    interval(score.sampled, signed),
                    interval(score.greedy, signed),
                    style="bold" if signed else "",
                )
        parts.append(table)
    groups = summary.groups
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("steps", f"{summary.steps} in {duration(summary.seconds)}, {summary.weight_syncs} weight syncs")
    facts.add_row(
        "rates",
        f"{summary.samples_per_second:.2f} samples/s; tokens/s: {summary.generated_tokens_per_second:.0f} generated, "
        f"{summary.learner_tokens_per_second:.0f} learned",
    )
    facts.add_row("groups", f"{groups.trained} trained, {groups.filtered} filtered, {groups.dropped} dropped")
    facts.add_row("staleness", f"at most {summary.max_staleness}")
    if summary.peak_memory_bytes is not None:
        facts.add_row("peak memory", f"{summary.peak_memory_bytes / 2**30:.1f} GiB")
    if summary.model is not None:
        facts.add_row("model", Text(summary.model))
    if report is not None:
        facts.add_row("report", Text(str(report)))
    return Group(*parts, facts)
