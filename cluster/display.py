"""What a run shows while it goes on: a live display on a terminal, plain lines elsewhere.

Both say at any time what goes on and for how long: the live display draws itself twice a second from a thread of its
own, the plain one writes a heartbeat when the controller's `tick` finds that nothing was written for a while.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_records import (
    EvaluationRecord,
    Interval,
    MemberState,
    MemberStatus,
    Pool,
    RunStatus,
    StepRecord,
    Summary,
)

HEARTBEAT_SECONDS = 15.0
_STATE_STYLE = {
    MemberState.STARTING: "yellow",
    MemberState.SYNCING: "cyan",
    MemberState.ATTESTED: "cyan",
    MemberState.SERVING: "green",
    MemberState.DRAINING: "magenta",
    MemberState.GONE: "red",
}


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
        if last is None or last.phase_since != status.phase_since:
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
        self._console.file.flush()


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
    return (
        f"evaluation {record.label}: sampled {interval(record.sampled)}, greedy {interval(record.greedy)}, "
        f"{record.prompts} prompts, {record.samples} samples, {duration(record.seconds)}"
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
        parts.append(f"queue {queue.leased} leased {queue.ready} ready{oldest}")
    return "; ".join(parts)


def render_status(
    status: RunStatus, now: float, history: Sequence[StepRecord] = (), every_member: bool = True
) -> RenderableType:
    """The run as one panel. `now` is Unix time, `history` the steps for the reward's curve and the time left;
    `every_member=False` lists only the members that do not serve, for fleets that are larger than a screen."""
    parts: list[RenderableType] = [_progress(status, history), _numbers(status, history)]
    if status.members:
        parts += [Text(), _pools(status.members)]
        listed = [member for member in status.members if every_member or member.state is not MemberState.SERVING]
        if listed:
            parts += [Text(), _members(listed if every_member else listed[-8:], now)]
    waiting = Text.assemble(("now  ", "dim"), (status.phase, "bold"), f", {duration(now - status.phase_since)}")
    return Panel(
        Group(*parts, Text(), waiting), title=escape(status.run), subtitle=escape(status.run_dir), title_align="left"
    )


class Sparkline:
    """The course of some numbers in one line of eight heights; nothing where the console has only ASCII."""

    def __init__(self, values: Sequence[float], width: int = 30) -> None:
        self.values = [value for value in values if math.isfinite(value)]
        self.width = width

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("" if options.ascii_only else self.draw(min(self.width, options.max_width)), no_wrap=True, end="")

    def draw(self, width: int) -> str:
        """
        >>> Sparkline([0.0, 0.5, 1.0]).draw(10)
        '▁▅█'
        """
        if not self.values:
            return ""
        count = min(width, len(self.values))
        cuts = [round(index * len(self.values) / count) for index in range(count + 1)]
        means = [statistics.fmean(self.values[start:end]) for start, end in itertools.pairwise(cuts)]
        low, span = min(means), max(means) - min(means)
        return "".join("▁▂▃▄▅▆▇█"[round(7 * (value - low) / span) if span > 0 else 3] for value in means)


def _progress(status: RunStatus, history: Sequence[StepRecord]) -> RenderableType:
    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True, justify="right")
    left = ""
    if len(history) >= 2 and status.step < status.steps:
        # The median: a step that waited for a replaced member says nothing about the ones to come.
        recent = history[-9:]
        took = [later.elapsed_seconds - earlier.elapsed_seconds for earlier, later in itertools.pairwise(recent)]
        left = f", about {duration(statistics.median(took) * (status.steps - status.step))} left"
    row.add_row(
        Text.assemble("step ", (f"{status.step}/{status.steps}", "bold")),
        ProgressBar(total=max(1, status.steps), completed=status.step),
        f"{clock_time(status.elapsed_seconds)}{left}",
    )
    return row


def _numbers(status: RunStatus, history: Sequence[StepRecord]) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(no_wrap=True)
    rows.add_column()
    step = status.last_step
    if step is not None:
        rewards = [record.reward_mean for record in history] or [step.reward_mean]
        rows.add_row("reward", f"{step.reward_mean:.3f}, pass {step.pass_rate:.0%}", Sparkline(rewards))
        rows.add_row(
            "tokens/s",
            f"{step.generated_tokens_per_second:.0f} generated, {step.learner_tokens_per_second:.0f} learned",
            f"{step.samples_per_second:.2f} samples/s",
        )
        stale = f"mean {step.staleness_mean:.1f}, max {step.staleness_max}"
        rows.add_row("staleness", f"{stale} (bound {status.max_staleness})", f"mismatch KL {step.mismatch_kl:.4f}")
    rows.add_row("weights", f"version {status.version}", f"{status.weight_syncs} syncs")
    if status.queue is not None:
        queue = status.queue
        rows.add_row(
            "queue",
            f"{queue.leased} leased, {queue.ready} ready",
            f"{queue.trained} trained, {queue.filtered} filtered, {queue.dropped} dropped",
        )
    if status.evaluations:
        last = status.evaluations[-1]
        rows.add_row(f"eval {last.label}", f"sampled {interval(last.sampled)}", f"greedy {interval(last.greedy)}")
    return rows


def _pools(members: Sequence[MemberStatus]) -> RenderableType:
    order = list(MemberState)
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column()
    for pool in Pool:
        of_pool = [member for member in members if member.pool is pool]
        if not of_pool:
            continue
        line = Text()
        counts = Counter((member.state, member.version) for member in of_pool)
        for (state, version), count in sorted(
            counts.items(), key=lambda item: (order.index(item[0][0]), -(item[0][1] or 0))
        ):
            line.append(", " if line else "").append(f"{count} {state}", style=_STATE_STYLE[state])
            line.append(f" v{version}" if version is not None else "")
        if pool is not Pool.LEARNER:
            line.append(f"; holds {sum(member.inflight for member in of_pool)}", style="dim")
        if pool is Pool.ROLLOUT:
            line.append(f", {sum(member.tokens_per_second for member in of_pool):.0f} tokens/s", style="dim")
        rows.add_row(pool, line)
    return rows


def _members(members: Sequence[MemberStatus], now: float) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("member", "state"):
        table.add_column(header, no_wrap=True)
    for header in ("for", "weights", "holds", "done", "restarts"):
        table.add_column(header, justify="right", no_wrap=True)
    notes: list[RenderableType] = []
    for member in members:
        table.add_row(
            Text(member.name),
            Text(member.state, style=_STATE_STYLE[member.state]),
            duration(now - member.since),
            "" if member.version is None else f"v{member.version}",
            str(member.inflight),
            str(member.done),
            str(member.restarts),
        )
        if member.note:
            notes.append(Text(f"{member.name}: {member.note}", style="dim"))
    return Group(table, *notes)


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
    facts.add_row("peak memory", f"{summary.peak_memory_bytes / 2**30:.1f} GiB")
    if summary.model is not None:
        facts.add_row("model", Text(summary.model))
    if report is not None:
        facts.add_row("report", Text(str(report)))
    return Group(*parts, facts)


def interval(value: Interval, signed: bool = False) -> str:
    """
    >>> interval(Interval(0.42, 0.355, 0.48))
    '0.420 [0.355, 0.480]'
    """
    sign = "+" if signed else ""
    return f"{value.reward:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


def duration(value: float) -> str:
    """
    >>> duration(42.4), duration(90), duration(7300)
    ('42 s', '1 min 30 s', '2 h 1 min')
    """
    whole = max(0, int(value))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def clock_time(value: float) -> str:
    """
    >>> clock_time(75), clock_time(4000)
    (' 1:15', '1:06:40')
    """
    minutes, rest = divmod(max(0, int(value)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes:2}:{rest:02}"
