"""One `headrace run` of benchmarks/throughput.toml, and what its files say of it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_records import PHASES, StepRecord, Summary

JOB = Path(__file__).with_name("throughput.toml")
WARM_UP_STEPS = 1  # left out: the first step has no version under way, and a cold cache


class Measured(msgspec.Struct, frozen=True):
    samples_per_second: float  # over the steps after the warm-up, by the wall clock
    steps: int
    phases: dict[str, float]  # mean seconds a step
    busy: dict[str, float]  # mean share of a step, by pool
    publishes: list[dict[str, float]]  # seconds, transfer_seconds and pause_seconds of each weight update
    first_step_seconds: float  # from the start of the command to the end of the first optimizer step
    milestones: list[tuple[str, float]]  # what went on, and the second at which it began
    summary: Summary


@contextmanager
def finished_run(*words: str) -> Iterator[RunFolder]:
    """Run the job with these command-line values, in a scratch folder. Raises CalledProcessError when it fails."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        command = [str(Path(sys.executable).with_name("headrace")), "run", str(JOB), "--job.run-dir", f"{scratch}/run"]
        subprocess.run([*command, *words], check=True, stdout=sys.stderr)
        yield RunFolder(Path(scratch) / "run")


def measure(*words: str) -> Measured:
    with finished_run(*words) as folder:
        steps = [record for record in folder.read_metrics() if isinstance(record, StepRecord)]
        events = [json.loads(line) for line in (folder.logs / "controller.jsonl").read_text().splitlines()]
        summary = folder.read_summary()
        if summary is None:
            raise RuntimeError("the run left no summary")
    steady = steps[WARM_UP_STEPS:]
    seconds = steady[-1].elapsed_seconds - steps[WARM_UP_STEPS - 1].elapsed_seconds
    published = [event for event in events if event["event"] == "weights_published"]
    return Measured(
        samples_per_second=sum(record.samples for record in steady) / seconds,
        steps=len(steady),
        phases={phase: sum(record.phases[phase] for record in steady) / len(steady) for phase in PHASES},
        busy={pool: sum(record.busy[pool] for record in steady) / len(steady) for pool in steady[0].busy},
        publishes=[
            {name: event[name] for name in ("seconds", "transfer_seconds", "pause_seconds")} for event in published
        ],
        first_step_seconds=steps[0].elapsed_seconds,
        milestones=milestones(events),
        summary=summary,
    )


def milestones(events: list[dict]) -> list[tuple[str, float]]:
    """The phases up to the first step, each with its beginning in seconds since the first event."""
    phases = [(event["what"], event["elapsed"]) for event in events if event["event"] == "phase"]
    first = next(index for index, (what, _) in enumerate(phases) if what.startswith("step 1"))
    return phases[: first + 1]
