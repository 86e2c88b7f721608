"""From the command `headrace run` to the first optimizer step, and what a weight update costs a busy engine.

    python -m benchmarks.start_and_sync

Two runs of throughput.toml. Seconds count from the start of the first. In the second, generation takes longer than learning,
so that the engine is busy when new weights come; updates that found no group under way do not count.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.headrace_run import finished_run, milestones
from headrace.cluster.job_file import load_job
from headrace.cluster.run_records import StepRecord

BUSY = {"--job.steps": "4", "--algorithm.group-size": "16", "--algorithm.trained-samples": "2"}
FIRST_STEP_GOAL = 75  # seconds, on two cores


def main() -> None:
    with finished_run("--job.steps", "1") as (folder, start):
        first_step = next(record.time for record in folder.read_metrics() if isinstance(record, StepRecord)) - start
        began = milestones(read_events(folder.logs / "controller.jsonl"), start)
        summary = folder.read_summary()
        dtype = load_job(folder.job).rollout.dtype
    if summary is None or summary.peak_memory_bytes is None:
        raise RuntimeError("the run left no summary, or none of its memory")
    print(f"\nTo the first optimizer step: {first_step:.0f} s (goal: {FIRST_STEP_GOAL})\n")
    print("| from second | to | what |\n|---|---|---|")
    for (what, begin), (_, end) in itertools.zip_longest(began, [*began[1:], ("", first_step)]):
        print(f"| {begin:.1f} | {end:.1f} | {what} |")
    with finished_run(*itertools.chain(*BUSY.items())) as (folder, _):
        updates = busy_updates(
            *(read_events(folder.logs / f"{member}.jsonl") for member in ("controller", "rollout-0"))
        )
    print(f"\nA weight update of the 135M model in {dtype} into a busy engine, medians of {len(updates)}\n")
    print("| in all, s | transfer, s | generation stood still, s | pause / transfer |\n|---|---|---|---|")
    seconds, transfer, pause = (
        statistics.median(update[name] for update in updates)
        for name in ("seconds", "transfer_seconds", "pause_seconds")
    )
    print(f"| {seconds:.2f} | {transfer:.2f} | {pause:.2f} | {pause / transfer:.2f} |")
    print(f"\npeak memory of the process tree: {summary.peak_memory_bytes / 2**30:.1f} GiB")


def read_events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def busy_updates(events: Sequence[dict[str, Any]], swaps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the controller's `events`, the weight updates that by the generator's came while it had groups to generate.

    Raises:
        RuntimeError: there is none, so that nothing was measured.
    """
    groups = {event["version"]: event["groups"] for event in swaps if event["event"] == "weights_swapped"}
    updates = [event for event in events if event["event"] == "weights_published" and groups[event["version"]] > 0]
    if not updates:
        raise RuntimeError(f"none of the {len(groups)} weight updates found an engine with requests in flight")
    return updates


if __name__ == "__main__":
    main()
