"""From the command `headrace run` to the first optimizer step, and what a weight update costs a busy engine.

    python -m benchmarks.start_and_sync

One run of throughput.toml. Seconds count from the start of the command.
"""

from __future__ import annotations

import itertools
import statistics

from benchmarks.headrace_run import measure

STEPS = 3  # one version each
FIRST_STEP_GOAL = 75  # seconds, on two cores


def main() -> None:
    measured = measure("--job.steps", str(STEPS))
    print(f"\nTo the first optimizer step: {measured.first_step_seconds:.0f} s (goal: {FIRST_STEP_GOAL})\n")
    print("| from second | to | what |\n|---|---|---|")
    ends = [*measured.milestones[1:], ("", measured.first_step_seconds)]
    for (what, start), (_, end) in itertools.zip_longest(measured.milestones, ends):
        print(f"| {start:.1f} | {end:.1f} | {what} |")
    updates = measured.publishes
    print(f"\nA weight update of the 135M model in {measured.dtype} into a busy engine, medians\n")
    print("| in all, s | transfer, s | generation stood still, s | pause / transfer |\n|---|---|---|---|")
    seconds, transfer, pause = (
        statistics.median(update[name] for update in updates)
        for name in ("seconds", "transfer_seconds", "pause_seconds")
    )
    print(f"| {seconds:.2f} | {transfer:.2f} | {pause:.2f} | {pause / transfer:.2f} |")
    print(f"\npeak memory of the process tree: {measured.summary.peak_memory_bytes / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
