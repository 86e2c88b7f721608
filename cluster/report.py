"""`report.html`: a run's course as one page that needs nothing else, no network and no script.

Charts are SVG drawn here; colours are CSS variables of `templates/report.html.j2`, so the page follows the reader's
light or dark setting. A run of thousands of steps is drawn in at most `MAX_POINTS` points, each the mean (for the
largest staleness: the maximum) of neighbouring steps.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tomllib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from headrace.cluster.formats import duration
from headrace.cluster.run_folder import RunFolder, atomic_write
from headrace.cluster.run_records import PHASES, EvaluationRecord, Pool, SampleRecord, StepRecord, Summary
from headrace.verifiers.errors import UserError

MAX_POINTS = 240
MAX_PROMPTS = 12
MAX_TRAIN_SAMPLES = 6
_WIDTH, _HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 548, 26, 214
_PAD = 20  # between the axis and the first step: room for the evaluations' marks


class Series(msgspec.Struct, frozen=True):
    """One line or one layer of a stack: `values` [points], nan where there is none; `style`: the template's class."""

    name: str
    style: str
    values: list[float]


class Chart(msgspec.Struct, frozen=True):
    title: str
    note: str
    legend: list[tuple[str, str]]  # name, style
    svg: Markup


class Headline(msgspec.Struct, frozen=True):
    name: str
    value: str
    note: str = ""


class Comparison(msgspec.Struct, frozen=True):
    """The same prompt's completions, one an evaluation."""

    prompt: str
    samples: list[SampleRecord]


def write_report(run_dir: Path) -> Path:
    """Write `report.html` from what the run folder holds by now, and return its path.

    A run without steps, or one that still goes on, gives a page as well. Raises UserError when there is no run, or a
    file in it is damaged.
    """
    folder = RunFolder(run_dir)
    if not folder.holds_run:
        raise UserError(f"{run_dir}: holds no run; name a folder that `headrace run` wrote")
    metrics = folder.read_metrics()
    job, job_text = _read_job(folder.job)
    page = render_report(
        name=job.get("job", {}).get("name", run_dir.name),
        steps=[record for record in metrics if isinstance(record, StepRecord)],
        evaluations=[record for record in metrics if isinstance(record, EvaluationRecord)],
        samples=folder.read_samples(),
        summary=folder.read_summary(),
        staleness_bound=job.get("rollout", {}).get("max_staleness"),
        job_text=job_text,
    )
    atomic_write(folder.report, page.encode())
    return folder.report


def render_report(
    *,
    name: str,
    steps: list[StepRecord],
    evaluations: list[EvaluationRecord],
    samples: list[SampleRecord],
    summary: Summary | None,
    staleness_bound: int | None,
    job_text: str,
) -> str:
    """The page. Whatever a model or a data row wrote is escaped by the template."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    last = max((record.time for record in (*steps, *evaluations)), default=None)
    return environment.get_template("report.html.j2").render(
        name=name,
        finished=summary is not None,
        last_record="" if last is None else f"{datetime.fromtimestamp(last, UTC):%Y-%m-%d %H:%M} UTC",
        headlines=_headlines(steps, summary) + _incomplete(evaluations),
        evaluations=evaluations,
        charts=_charts(steps, evaluations, staleness_bound),
        comparisons=compare(samples),
        train_samples=[sample for sample in samples if sample.label == "train"][-MAX_TRAIN_SAMPLES:],
        model=None if summary is None else summary.model,
        job_text=job_text,
    )


def compare(samples: Sequence[SampleRecord]) -> list[Comparison]:
    """The first held-out prompts, unselected, each with its first completion at every evaluation that kept one."""
    prompts: dict[str, dict[str, SampleRecord]] = {}
    for sample in samples:
        if sample.label != "train":
            prompts.setdefault(sample.prompt_id, {}).setdefault(sample.label, sample)
    return [
        Comparison(next(iter(by_label.values())).prompt, list(by_label.values()))
        for by_label in list(prompts.values())[:MAX_PROMPTS]
    ]


def _read_job(path: Path) -> tuple[dict[str, Any], str]:
    if not path.exists():
        return {}, ""
    text = path.read_text(encoding="utf-8")
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML ({error}); put back the resolved job that the run wrote") from error


def _headlines(steps: Sequence[StepRecord], summary: Summary | None) -> list[Headline]:
    lines: list[Headline] = []
    if summary is not None and summary.gain is not None:
        for decoding, gain in (("sampled", summary.gain.sampled), ("greedy", summary.gain.greedy)):
            lines.append(Headline(f"gain, {decoding}", f"{gain.reward:+.3f}", f"{gain.low:+.3f} to {gain.high:+.3f}"))
    if steps:
        first, last = steps[0], steps[-1]
        lines.append(Headline("reward, last step", f"{last.reward_mean:.3f}", f"{first.reward_mean:.3f} at the first"))
        lines.append(Headline("steps", str(last.step), duration(last.elapsed_seconds)))
        span = sum(record.seconds for record in steps)
        trained, filtered = sum(s.groups_trained for s in steps), sum(s.groups_filtered for s in steps)
        dropped, flat = sum(s.groups_dropped for s in steps), sum(s.groups_without_gradient for s in steps)
        others = f"{flat} of them without gradient; {filtered} filtered, {dropped} dropped"
        lines.append(Headline("groups trained", str(trained), others))
        lines.append(
            Headline("largest staleness", str(max(record.staleness_max for record in steps)), "weight versions")
        )
        if span > 0:
            waited = sum(record.phases.get("wait", 0.0) for record in steps) / span
            lines.append(Headline("time spent waiting", f"{waited:.0%}", "for groups"))
    if summary is not None:
        rate = f"{summary.generated_tokens_per_second:.0f} / {summary.learner_tokens_per_second:.0f}"
        lines += [
            Headline("samples/s", f"{summary.samples_per_second:.2f}", "over the whole training"),
            Headline("tokens/s", rate, "generated / learned"),
            Headline("weight syncs", str(summary.weight_syncs)),
            Headline("peak memory", f"{summary.peak_memory_bytes / 2**30:.1f} GiB", "PSS of all processes"),
        ]
    return lines


def _incomplete(evaluations: Sequence[EvaluationRecord]) -> list[Headline]:
    """The evaluations whose rewards are not over all of their samples."""
    return [
        Headline(
            f"evaluation {record.label}",
            f"{record.scored_samples} of {record.checks}",
            f"checks ran; {record.not_scored}",
        )
        for record in evaluations
        if record.scored_samples < record.checks
    ]


def _charts(steps: Sequence[StepRecord], evaluations: Sequence[EvaluationRecord], bound: int | None) -> list[Chart]:
    x = [math.floor(point) for point in thin([float(record.step) for record in steps], max)]

    def series(name: str, style: str, value: Callable[[StepRecord], float], reduce: Reduce = _mean) -> Series:
        return Series(name, style, thin([value(record) for record in steps], reduce))

    phases = [
        series(phase, f"c{index}", lambda record, phase=phase: record.phases.get(phase, 0.0))
        for index, phase in enumerate(PHASES, start=1)
    ]
    busy = [
        series(pool, f"c{index}", lambda record, pool=pool: 100 * record.busy.get(pool, math.nan))
        for index, pool in enumerate((Pool.ROLLOUT, Pool.LEARNER, Pool.VERIFICATION), start=4)
    ]
    groups = [
        series("trained", "c6", lambda record: record.groups_trained - record.groups_without_gradient),
        series("trained, no gradient", "c2", lambda record: record.groups_without_gradient),
        series("filtered", "c1", lambda record: record.groups_filtered),
        series("dropped", "c8", lambda record: record.groups_dropped),
    ]
    stale = [
        series("mean", "c4", lambda record: record.staleness_mean),
        series("max", "c8", lambda record: record.staleness_max, max),
    ]
    kl = [series("generator and learner", "c4", lambda record: record.mismatch_kl)]
    if any(record.kl for record in steps):
        kl.append(series("reference policy", "c8", lambda record: record.kl))
    tokens = [
        series("generated", "c4", lambda record: record.generated_tokens_per_second),
        series("learned", "c5", lambda record: record.learner_tokens_per_second),
    ]
    reward = [series("training samples", "c4", lambda record: record.reward_mean)]
    entropy = [series("policy", "c4", lambda record: record.entropy)]
    overlap = "Publishing overlaps the next step unless the pools take turns."
    return [
        line_chart("Reward", "mean reward", x, reward, "Points: held-out evaluations, 95% interval.", evaluations),
        line_chart("Staleness", "weight versions", x, stale, bound=bound),
        stack_chart("Phases of a step", "seconds", x, phases, overlap),
        line_chart("Busy share of the pools", "% of the step", x, busy, top=100.0),
        line_chart("Throughput", "tokens/s", x, tokens),
        stack_chart(
            "Groups", "groups", x, groups, "Filtered: rewards all alike, others took their place. Dropped: no use."
        ),
        line_chart("KL", "nats a token", x, kl, "Between generator and learner: the same tokens, two engines."),
        line_chart("Entropy", "nats a token", x, entropy),
    ]


Reduce = Callable[[list[float]], float]


def _mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def thin(values: list[float], reduce: Reduce, limit: int = MAX_POINTS) -> list[float]:
    """At most `limit` values, each of one run of neighbours.

    >>> thin([1, 3, 5, 7], max, limit=2)
    [3, 7]
    """
    count = min(limit, len(values))
    cuts = [index * len(values) // count for index in range(count + 1)] if count else [0]
    return [reduce(values[start:end]) for start, end in itertools.pairwise(cuts)]


def line_chart(
    title: str,
    unit: str,
    x: Sequence[int],
    series: Sequence[Series],
    note: str = "",
    evaluations: Sequence[EvaluationRecord] = (),
    bound: int | None = None,
    top: float = 0.0,
) -> Chart:
    """Lines over steps; with the evaluations' points and intervals, or a bound, where given."""
    legend = [(line.name, line.style) for line in series]
    tops = [top, *(value for line in series for value in line.values if math.isfinite(value))]
    for record in evaluations:
        tops += [record.sampled.high, record.greedy.high]
    if bound is not None:
        tops.append(bound)
    axes = _Axes([*x, *(record.step for record in evaluations)], min(tops), max(tops))
    parts = [axes.draw(unit)]
    if bound is not None:
        legend.append(("bound", "bound"))
        parts.append(f'<path class="line bound" d="M{_LEFT} {axes.y(bound):.1f}H{_RIGHT}"/>')
    for line in series:
        path, pen = [], "M"
        for step, value in zip(x, line.values, strict=True):
            if math.isfinite(value):
                path.append(f"{pen}{axes.x(step):.1f} {axes.y(value):.1f}")
            pen = "L" if math.isfinite(value) else "M"
        parts.append(f'<path class="line {line.style}" d="{"".join(path)}"/>')
        if len(x) == 1 and path:
            parts.append(
                f'<circle class="mark {line.style}" cx="{axes.x(x[0]):.1f}" cy="{axes.y(line.values[0]):.1f}" r="3"/>'
            )
    parts.append(_hover_bands(axes, x, series))
    if evaluations:
        legend += [("held-out, sampled", "c8"), ("held-out, greedy", "c5")]
        parts.append(_evaluation_marks(axes, evaluations))
    return Chart(title, note, legend, _svg(title, parts))


def stack_chart(title: str, unit: str, x: Sequence[int], series: Sequence[Series], note: str = "") -> Chart:
    """Layers on top of each other, one bar a step."""
    heights = [sum(layer.values[index] for layer in series) for index in range(len(x))]
    axes = _Axes(x, 0.0, max(heights, default=0.0))
    width = min(28.0, max(1.0, axes.step_width * 0.8))
    parts = [axes.draw(unit)]
    for index, step in enumerate(x):
        base = 0.0
        for layer in series:
            if (value := layer.values[index]) > 0:
                left, upper, lower = axes.x(step) - width / 2, axes.y(base + value), axes.y(base)
                parts.append(
                    f'<rect class="bar {layer.style}" x="{left:.1f}" y="{upper:.1f}" width="{width:.1f}" '
                    f'height="{lower - upper:.1f}"/>'
                )
                base += value
    parts.append(_hover_bands(axes, x, series))
    return Chart(title, note, [(layer.name, layer.style) for layer in series], _svg(title, parts))


class _Axes:
    """Steps and values to places in the drawing."""

    def __init__(self, steps: Sequence[int], low: float, high: float) -> None:
        self.empty = not steps
        self.first, self.last = min(steps, default=0), max(steps, default=1)
        self.ticks = ticks(min(0.0, low), high if high > min(0.0, low) else 1.0)
        self.step_width = (_RIGHT - _LEFT - 2 * _PAD) / max(1, self.last - self.first)
        if steps:
            # Where steps were thinned, a point stands for several.
            self.step_width = max(self.step_width, (_RIGHT - _LEFT - 2 * _PAD) / max(1, len(set(steps)) - 1))

    def x(self, step: float) -> float:
        if self.last == self.first:
            return (_LEFT + _RIGHT) / 2
        return _LEFT + _PAD + (step - self.first) / (self.last - self.first) * (_RIGHT - _LEFT - 2 * _PAD)

    def y(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return _BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP)

    def draw(self, unit: str) -> str:
        parts = [f'<text class="unit" x="4" y="14">{escape(unit)}</text>']
        for tick in self.ticks:
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        if self.empty:
            middle = (_LEFT + _RIGHT) / 2
            parts.append(f'<text x="{middle}" y="{_BOTTOM - 12}" text-anchor="middle">no step yet</text>')
            return "".join(parts)
        for tick in ticks(self.first, max(self.last, self.first + 1), 6):
            if self.first <= tick <= self.last and tick.is_integer():
                parts.append(f'<text x="{self.x(tick):.1f}" y="{_BOTTOM + 17}" text-anchor="middle">{tick:.0f}</text>')
        parts.append(f'<text class="unit" x="{_RIGHT}" y="{_HEIGHT - 3}" text-anchor="end">step</text>')
        return "".join(parts)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from at most `low` to at least `high`, some `about` steps apart.

    >>> ticks(0, 0.83)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    start, end = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [float(f"{index * size:.10g}") for index in range(start, end + 1)]


def _hover_bands(axes: _Axes, x: Sequence[int], series: Sequence[Series]) -> str:
    parts = []
    for index, step in enumerate(x):
        lines = [f"step {step}", *(f"{line.name}: {line.values[index]:.4g}" for line in series)]
        parts.append(
            f'<rect class="band" x="{axes.x(step) - axes.step_width / 2:.1f}" y="{_TOP}" width="{axes.step_width:.1f}" '
            f'height="{_BOTTOM - _TOP}"><title>{escape(chr(10).join(lines))}</title></rect>'
        )
    return "".join(parts)


def _evaluation_marks(axes: _Axes, evaluations: Sequence[EvaluationRecord]) -> str:
    parts = []
    at_step: dict[int, list[EvaluationRecord]] = {}
    for record in evaluations:
        at_step.setdefault(record.step, []).append(record)
    for step, records in at_step.items():
        for place, record in enumerate(records):
            # Side by side where they fall on one step: before and after the warm start, sampled and greedy.
            middle = axes.x(step) + 20 * (place - (len(records) - 1) / 2)
            above = axes.y(max(record.sampled.high, record.greedy.high)) - 5
            if not record.label.startswith("step"):
                parts.append(
                    f'<text x="{middle:.1f}" y="{above:.1f}" text-anchor="middle">{escape(record.label)}</text>'
                )
            for decoding, style, side in (("sampled", "c8", -0.5), ("greedy", "c5", 0.5)):
                value = record.sampled if decoding == "sampled" else record.greedy
                x = middle + 9 * side
                label = f"{record.label}, {decoding}: {value.reward:.3f}, 95% {value.low:.3f} to {value.high:.3f}"
                parts.append(
                    f'<g class="evaluation {style}"><title>{escape(label)}</title>'
                    f'<path class="line" d="M{x:.1f} {axes.y(value.low):.1f}V{axes.y(value.high):.1f}"/>'
                    f'<circle class="mark" cx="{x:.1f}" cy="{axes.y(value.reward):.1f}" r="4"/></g>'
                )
    return "".join(parts)


def _svg(title: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
