"""One `headrace run` of benchmarks/throughput.toml, and what its files say of it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import msgspec

from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_records import PHASES, StepRecord, Summary

JOB = Path(__file__).with_name("throughput.toml")
BEFORE_THE_RUN = "command, imports, data, Ray"


class Measured(msgspec.Struct, frozen=True):
    samples_per_second: float  # by the wall clock, over all steps: see `loop_seconds`
    steps: int
    phases: dict[str, float]  # mean seconds a step
    busy: dict[str, float]  # mean share of a step, by pool
    summary: Summary


@contextmanager
def finished_run(*words: str, job: Path = JOB) -> Iterator[tuple[RunFolder, float]]:
    """Run the job with these command-line values, in a scratch folder: what it left, and when its command began (Unix
    time). Raises CalledProcessError when it fails."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        command = [str(Path(sys.executable).with_name("headrace")), "run", str(job), "--job.run-dir", f"{scratch}/run"]
        start = time.time()
        subprocess.run([*command, *words], check=True, stdout=sys.stderr)
        yield RunFolder(Path(scratch) / "run"), start


def measure(*words: str) -> Measured:
    with finished_run(*words) as (folder, _):
        steps = [record for record in folder.read_metrics() if isinstance(record, StepRecord)]
        summary = folder.read_summary()
        if summary is None:
            raise RuntimeError("the run left no summary")
    return Measured(
        samples_per_second=sum(record.samples for record in steps) / loop_seconds(steps),
        steps=len(steps),
        phases={phase: sum(record.phases[phase] for record in steps) / len(steps) for phase in PHASES},
        busy={pool: sum(record.busy[pool] for record in steps) / len(steps) for pool in steps[0].busy},
        summary=summary,
    )


def loop_seconds(steps: list[StepRecord]) -> float:
    """The wall-clock time from the first lease to the end of the last step.

    Generators run ahead by up to `rollout.max_staleness` steps at the beginning, and have nothing to do at the end. So a
    window that leaves the first steps out would count learning whose generation lies before it. This one holds all of both:
    as many steps generated as learned. What it costs: the first step's cold caches are in it too.
    """
    return steps[-1].time - (steps[0].time - steps[0].seconds)


def milestones(events: list[dict], start: float) -> list[tuple[str, float]]:
    """What goes on up to the first step, each with its beginning in seconds since `start` (Unix time)."""
    phases = [
        (event["what"], datetime.fromisoformat(event["time"]).timestamp() - start)
        for event in events
        if event["event"] == "phase"
    ]
    first = next(index for index, (what, _) in enumerate(phases) if what.startswith("step 1:"))
    return [(BEFORE_THE_RUN, 0.0), *phases[: first + 1]]
