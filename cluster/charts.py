"""The report's charts: SVG drawn here, with the classes of `templates/report.html.j2` for its colours.

A run of thousands of steps is drawn in at most `MAX_POINTS` points (`thin`).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from html import escape

import msgspec
from markupsafe import Markup

from headrace.cluster.run_records import EvaluationRecord

MAX_POINTS = 240
_WIDTH, _HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 548, 26, 214
_PAD = 40  # between the axis and the first step: room for the evaluations' marks
_BESIDE = 36  # between the marks of evaluations of one step: room for their names


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


Reduce = Callable[[list[float]], float]


def mean(values: list[float]) -> float:
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
            middle = axes.x(step) + _BESIDE * (place - (len(records) - 1) / 2)
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
