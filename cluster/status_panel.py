"""A run's status as one panel: what `headrace status` prints, and what the live display draws."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headrace.cluster.formats import clock_time, duration, interval
from headrace.cluster.run_records import MemberState, MemberStatus, Pool, RunStatus, StepRecord

_STATE_STYLE = {
    MemberState.STARTING: "yellow",
    MemberState.SYNCING: "cyan",
    MemberState.ATTESTED: "cyan",
    MemberState.SERVING: "green",
    MemberState.DRAINING: "magenta",
    MemberState.GONE: "red",
}


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
    version = "none yet" if status.version is None else f"version {status.version}"
    rows.add_row("weights", version, f"{status.weight_syncs} syncs")
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
