"""The demo beside its goals: what it learns by reinforcement alone, how long it takes, and what memory.

    python -m benchmarks.demo [--seed 0 --seed 1]

Each seed is a whole run of examples/booking/job.toml (ten minutes and more on two cores). Exit status 1: a goal is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.headrace_run import finished_run
from headrace.cluster.run_records import Summary

JOB = Path(__file__).parents[1] / "examples" / "booking" / "job.toml"
SAMPLED_GAIN, MINUTES, GIBIBYTES = 0.15, 12.0, 12.0


def run(seed: int) -> Summary:
    """Raises CalledProcessError when the run fails."""
    with finished_run("--job.seed", str(seed), job=JOB) as (folder, _):
        summary = folder.read_summary()
    if summary is None:
        raise RuntimeError("the run left no summary")
    return summary


def figures(summary: Summary) -> Iterator[tuple[str, str, str, bool]]:
    """(what, measured, goal, whether it is reached)"""
    gain = summary.gain
    if gain is None or summary.peak_memory_bytes is None:
        raise RuntimeError("the run measured no gain, or no memory")
    minutes, memory = summary.seconds / 60, summary.peak_memory_bytes / 2**30
    for name, score, goal in (("sampled", gain.sampled, SAMPLED_GAIN), ("greedy", gain.greedy, 0.0)):
        interval = f"{score.reward:+.3f} [{score.low:+.3f}, {score.high:+.3f}]"
        yield f"gain by RL, {name}", interval, f"at least {goal:g}", score.reward >= goal
    yield "its interval leaves out zero", f"{gain.sampled.low:+.3f}", "above 0", gain.sampled.low > 0
    yield "minutes in all", f"{minutes:.1f}", f"at most {MINUTES:g}", minutes <= MINUTES
    yield "peak memory, GiB (PSS)", f"{memory:.1f}", f"at most {GIBIBYTES:g}", memory <= GIBIBYTES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, action="append", help="may be given several times; default: 0 and 1")
    missed = 0
    print("| seed | what | measured | goal | |\n|---|---|---|---|---|")
    for seed in parser.parse_args().seed or [0, 1]:
        for what, measured, goal, reached in figures(run(seed)):
            missed += not reached
            print(f"| {seed} | {what} | {measured} | {goal} | {'reached' if reached else '**missed**'} |", flush=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
