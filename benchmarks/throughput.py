"""Samples per second of the whole loop, against TRL's GRPOTrainer on the same task, and by who may use which core.

    python -m benchmarks.throughput --trl .venv-trl/bin/python      (make bench makes that environment)

Both sides: SmolLM2-135M in float32, 8 prompts x 4 samples x 64 new tokens, AdamW, one optimizer step a batch, two rewards:
`booking`, the task as it is, where a group without variance carries no gradient, and `distinct`, where every group has some.
TRL runs at the best settings that were found for it (see its options); Headrace at those of throughput.toml, which are the
defaults but for the engine's two sizes. Runs alternate, and the ratio is of runs next to each other.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.headrace_run import Measured, measure

HERE = Path(__file__).parent
GOALS = {"booking": 3.0, "distinct": 2.2}
PLACEMENTS = {
    "turns, each on all cores (default)": (),
    "side by side, each on all cores": ("--placement.take_turns", "false"),
    "side by side, unbound engine": ("--placement.take_turns", "false", "--rollout.threads", "nobind"),
    "side by side, one core each": ("--placement.take_turns", "false", "--rollout.threads", "0", "--learner.threads", "1"),
}


def trl_samples_per_second(python: str, reward: str, options: list[str]) -> float:
    command = [python, str(HERE / "trl_reference.py"), "--reward", f"{HERE / 'rewards.py'}:{reward}", *options]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output)["samples_per_second"]


def against_trl(python: str, options: list[str]) -> None:
    print("\nSamples per second of the whole loop\n\n| reward | TRL | Headrace | ratio | goal |\n|---|---|---|---|---|")
    for reward, goal in GOALS.items():
        reference = trl_samples_per_second(python, reward, options)
        own = measure("--reward.function", f"{HERE / 'rewards.py'}:{reward}")
        ratio = own.samples_per_second / reference
        print(f"| {reward} | {reference:.2f} | {own.samples_per_second:.2f} | {ratio:.1f}x | {goal}x |", flush=True)
        print_phases(reward, own)


def print_phases(title: str, own: Measured) -> None:
    shares = ", ".join(f"{name} {seconds:.1f}" for name, seconds in own.phases.items())
    busy = ", ".join(f"{pool} {share:.0%}" for pool, share in own.busy.items())
    print(f"\n{title}: seconds a step: {shares}; busy: {busy}\n", flush=True)


def by_placement() -> None:
    print("\nWho may use which core (reward distinct)\n\n| placement | samples/s | against the default |\n|---|---|---|")
    reference = None
    for name, words in PLACEMENTS.items():
        own = measure("--reward.function", f"{HERE / 'rewards.py'}:distinct", *words)
        reference = reference or own.samples_per_second
        ratio = own.samples_per_second / reference
        print(f"| {name} | {own.samples_per_second:.2f} | {ratio:.2f}x |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", help="interpreter of TRL's environment; without it only the placements are compared")
    parser.add_argument("--no-placements", action="store_true")
    options, for_trl = parser.parse_known_args()
    if options.trl:
        against_trl(options.trl, for_trl)
    if not options.no_placements:
        by_placement()


if __name__ == "__main__":
    sys.exit(main())
