"""`report.html`: a run's course as one page that needs nothing else, no network and no script.

Its colours are CSS variables of `templates/report.html.j2`, so the page follows the reader's light or dark setting. Of a
run of thousands of steps a point is the mean (for the largest staleness: the maximum) of neighbouring steps.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import msgspec

from headrace.cluster.charts import Chart, Reduce, Series, line_chart, mean, stack_chart, thin
from headrace.cluster.formats import duration
from headrace.cluster.run_folder import RunFolder, atomic_write
from headrace.cluster.run_records import PHASES, EvaluationRecord, Pool, SampleRecord, StepRecord, Summary
from headrace.verifiers.errors import UserError

MAX_PROMPTS = 12
MAX_TRAIN_SAMPLES = 6


class Headline(msgspec.Struct, frozen=True):
    name: str
    value: str
    note: str = ""


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


def compare(samples: Sequence[SampleRecord]) -> list[list[SampleRecord]]:
    """For each of the first held-out prompts, unselected, its first completion at every evaluation that kept one."""
    prompts: dict[str, dict[str, SampleRecord]] = {}
    for sample in samples:
        if sample.label != "train":
            prompts.setdefault(sample.prompt_id, {}).setdefault(sample.label, sample)
    return [list(by_label.values()) for by_label in list(prompts.values())[:MAX_PROMPTS]]


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
        ]
        if summary.peak_memory_bytes is not None:
            lines.append(
                Headline("peak memory", f"{summary.peak_memory_bytes / 2**30:.1f} GiB", "PSS of all processes")
            )
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

    def series(name: str, style: str, value: Callable[[StepRecord], float], reduce: Reduce = mean) -> Series:
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
