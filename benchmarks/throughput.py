"""Samples per second of the whole loop, against TRL's GRPOTrainer on the same task, and by who may use which core.

    python -m benchmarks.throughput --trl .venv-trl/bin/python      (make bench makes that environment)

Both sides: SmolLM2-135M in float32, 8 prompts x 4 samples x 64 new tokens, AdamW, one optimizer step a batch, two rewards:
`booking`, the task as it is, where a group without variance carries no gradient, and `distinct`, where every group has some.
TRL runs at the best settings that were found for it (see its options); Headrace at those of throughput.toml, which are the
defaults but for the engine's two sizes. Runs alternate, and a ratio is of runs next to each other; printed are the median
and the spread over `--pairs` of them. As many steps are counted of generation as of learning: TRL's after its first,
Headrace's from the first lease on (`headrace_run.loop_seconds`). Each placement runs once; the default's figure is that of
the pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.headrace_run import Measured, measure

HERE = Path(__file__).parent
GOALS = {"booking": 3.0, "distinct": 2.2}
DEFAULT_PLACEMENT = "side by side, unbound engine (default)"
PLACEMENTS = {
    "side by side, engine bound to all cores": ("--rollout.threads", "all"),
    "side by side, one core each": ("--rollout.threads", "0-0", "--learner.threads", "1"),
    "turns, unbound engine": ("--placement.take_turns", "true"),
    "turns, engine bound to all cores": ("--placement.take_turns", "true", "--rollout.threads", "all"),
}


def trl_samples_per_second(python: str, reward: str, options: list[str]) -> float:
    command = [python, str(HERE / "trl_reference.py"), "--reward", f"{HERE / 'rewards.py'}:{reward}", *options]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output)["samples_per_second"]


def against_trl(python: str, options: list[str], pairs: int) -> float:
    """Prints the comparison; returns Headrace's median for `distinct`."""
    print("\nSamples per second of the whole loop: median (smallest to largest)\n")
    print("| reward | TRL | Headrace | ratio | goal |\n|---|---|---|---|---|", flush=True)
    own: dict[str, list[Measured]] = {}
    for reward, goal in GOALS.items():
        references, own[reward] = [], []
        for _ in range(pairs):
            references.append(trl_samples_per_second(python, reward, options))
            own[reward].append(measure("--reward.function", f"{HERE / 'rewards.py'}:{reward}"))
        rates = [measured.samples_per_second for measured in own[reward]]
        ratios = [rate / reference for rate, reference in zip(rates, references, strict=True)]
        row = f"{spread(references, 2)} | {spread(rates, 2)} | {spread(ratios, 1, 'x')}"
        print(f"| {reward} | {row} | {goal}x |", flush=True)
    for reward, runs in own.items():
        print_phases(reward, runs[-1])
    return statistics.median(measured.samples_per_second for measured in own["distinct"])


def spread(values: Sequence[float], digits: int, unit: str = "") -> str:
    """The median, and the smallest and largest.

    >>> spread([3.04, 2.96], 1, "x")
    '3.0x (3.0 to 3.0)'
    """
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def print_phases(title: str, own: Measured) -> None:
    shares = ", ".join(f"{name} {seconds:.1f}" for name, seconds in own.phases.items())
    busy = ", ".join(f"{pool} {share:.0%}" for pool, share in own.busy.items())
    print(f"\n{title}: seconds a step: {shares}; busy: {busy}\n", flush=True)


def by_placement(reference: float | None) -> None:
    """`reference`: samples per second of the default placement, if they were measured already."""
    print("\nWho may use which core (reward distinct)\n")
    print("| placement | samples/s | against the default |\n|---|---|---|")
    words = ("--reward.function", f"{HERE / 'rewards.py'}:distinct")
    default = measure(*words).samples_per_second if reference is None else reference
    print(f"| {DEFAULT_PLACEMENT} | {default:.2f} | 1.00x |", flush=True)
    for name, placement in PLACEMENTS.items():
        rate = measure(*words, *placement).samples_per_second
        print(f"| {name} | {rate:.2f} | {rate / default:.2f}x |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", help="interpreter of TRL's environment; without it only the placements are compared")
    parser.add_argument("--pairs", type=int, default=2, help="runs of each side for each reward (default: 2)")
    parser.add_argument("--no-placements", action="store_true")
    options, for_trl = parser.parse_known_args()
    if options.pairs < 1:
        parser.error("--pairs: give at least 1")
    reference = against_trl(options.trl, for_trl, options.pairs) if options.trl else None
    if not options.no_placements:
        by_placement(reference)


if __name__ == "__main__":
    sys.exit(main())
