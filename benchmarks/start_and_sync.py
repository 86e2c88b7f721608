"""From the command `headrace run` to the first optimizer step, and what a weight update costs a busy engine.

    python -m benchmarks.start_and_sync

One run of throughput.toml. Seconds count from the start of the command.
"""

from __future__ import annotations

import itertools
import statistics

from benchmarks.headrace_run import measure

STEPS = 3  # one version each


def main() -> None:
    measured = measure("--job.steps", str(STEPS))
    print("\nTo the first optimizer step\n\n| from second | to | what |\n|---|---|---|")
    ends = [*measured.milestones[1:], ("", measured.first_step_seconds)]
    for (what, start), (_, end) in itertools.zip_longest(measured.milestones, ends):
        print(f"| {start:.1f} | {end:.1f} | {what} |")
    updates = measured.publishes
    print("\nA weight update of the 135M model (269 MB in bfloat16) into a busy engine, medians\n")
    print("| in all, s | transfer, s | generation stood still, s | pause / transfer |\n|---|---|---|---|")
    seconds, transfer, pause = (
        statistics.median(update[name] for update in updates)
        for name in ("seconds", "transfer_seconds", "pause_seconds")
    )
    print(f"| {seconds:.2f} | {transfer:.2f} | {pause:.2f} | {pause / transfer:.2f} |")
    print(f"\npeak memory of the process tree: {measured.summary.peak_memory_bytes / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
