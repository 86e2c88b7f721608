"""The reference of the throughput benchmark: TRL's GRPOTrainer on the task that Headrace is measured on.

    .venv-trl/bin/python benchmarks/trl_reference.py --reward benchmarks/rewards.py:booking
    .venv-trl/bin/python benchmarks/trl_reference.py --reward benchmarks/rewards.py:distinct

Runs in an environment of its own (`benchmarks/trl.lock`): TRL and vLLM's CPU build ask for packages that differ. Prints
one JSON object, a `Result`; everything else goes to stderr.

Fixed, as on Headrace's side: SmolLM2-135M in float32 on the CPU, AdamW, 8 prompts x 4 samples x 64 new tokens (the end
of sequence is not drawn before), one optimizer step a batch, temperature 1, no KL term and so no reference model.
Free, and to be chosen by measurement in TRL's favour: `--micro-batch`, `--threads`. On two cores micro-batches of 4, 8 and
16 samples are within 4 % of each other, and 32 need more than 15 GB. Generation by transformers' continuous batching
(TRL's option) cannot be compared: it does not keep `min_new_tokens`, so its samples are shorter.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PROMPTS = 8
SAMPLES = 4
NEW_TOKENS = 64
LEARNING_RATE = 1e-5
EXAMPLE = Path(__file__).parents[1] / "examples" / "booking"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Settings:
    model: str
    reward: str  # FILE:FUNCTION
    steps: int  # the first is not measured
    micro_batch: int  # samples in one forward pass of the learner
    threads: int
    prompts_per_step: int = PROMPTS
    samples_per_prompt: int = SAMPLES
    new_tokens: int = NEW_TOKENS


@dataclass
class Meter:
    """What is measured on the way, one entry a step."""

    step_ends: list[float] = field(default_factory=list)  # seconds, monotonic
    cpu_ends: list[float] = field(default_factory=list)  # CPU seconds of this process
    generate_seconds: list[float] = field(default_factory=list)
    groups_without_variance: int = 0
    groups: int = 0

    def end_step(self) -> None:
        self.step_ends.append(time.monotonic())
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.cpu_ends.append(used.ru_utime + used.ru_stime)


@dataclass(frozen=True)
class Result:
    """Steady state: the first step is left out. `cores_used` well below `threads`: others held the machine."""

    samples_per_second: float
    step_seconds: list[float]
    generate_seconds: list[float]
    learn_seconds: list[float]
    cores_used: float
    groups_without_variance: float  # share of all groups
    versions: dict[str, str]
    settings: Settings


def main() -> None:
    settings = parse_arguments()
    # OpenMP reads them once, when torch is loaded.
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(settings.threads)
    with contextlib.redirect_stdout(sys.stderr):
        result = run(settings)
    print(json.dumps(asdict(result), indent=2))


def parse_arguments() -> Settings:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", required=True, metavar="FILE:FUNCTION", help="called as f(completion, row)")
    parser.add_argument("--model", default=str(demo_model()), help="model folder (default: the demo model)")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    settings = Settings(**vars(parser.parse_args()))
    if settings.steps < 2:
        parser.error("--steps: the first step is not measured, so give at least 2")
    if (PROMPTS * SAMPLES) % settings.micro_batch:
        parser.error(f"--micro-batch: give a divisor of {PROMPTS * SAMPLES}")
    if not (Path(settings.model) / "config.json").is_file():
        parser.error(f"--model: no model in {settings.model}; `make setup` makes the demo model")
    return settings


def demo_model() -> Path:
    """Where `headrace.cluster.base_model` keeps the demo model; Headrace is not installed in this environment."""
    base = os.environ.get("HEADRACE_CACHE")
    if not base:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "headrace")
    return Path(base) / "models" / "smollm2-135m"


def load_function(place: str) -> Callable[[str, dict[str, Any]], float]:
    """The function named by FILE:FUNCTION."""
    file, _, name = place.rpartition(":")
    spec = importlib.util.spec_from_file_location("benchmark_reward", file)
    if spec is None or spec.loader is None:
        raise SystemExit(f"--reward: {place}: no Python file of that name")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def read_rows(count: int) -> list[dict[str, Any]]:
    """The first `count` rows of the example's training data, as chat messages beside the row itself.

    The row travels as JSON: `datasets` would give all gold calls the union of their arguments.
    """
    system = (EXAMPLE / "system.txt").read_text().strip()
    lines = (EXAMPLE / "train.jsonl").read_text().splitlines()[:count]
    if len(lines) < count:
        raise SystemExit(f"{EXAMPLE / 'train.jsonl'} has {len(lines)} rows, {count} are needed: give fewer --steps")
    return [
        {
            "prompt": [
                {"role": "system", "content": system},
                {"role": "user", "content": json.loads(line)["prompt"]},
            ],
            "row": line,
        }
        for line in lines
    ]


def reward_for(function: Callable[[str, dict[str, Any]], float], meter: Meter) -> Callable[..., list[float]]:
    """`function` in the form that TRL calls, which also checks that every sample has the length of the benchmark."""

    def reward(
        completions: list[list[dict[str, str]]], completion_ids: list[list[int]], row: list[str], **_: Any
    ) -> list[float]:
        lengths = {len(ids) for ids in completion_ids}
        if lengths != {NEW_TOKENS}:
            raise RuntimeError(f"samples of {sorted(lengths)} tokens, the benchmark compares {NEW_TOKENS}")
        rewards = [
            float(function(completion[0]["content"], json.loads(line)))
            for completion, line in zip(completions, row, strict=True)
        ]
        for start in range(0, len(rewards), SAMPLES):
            group = rewards[start : start + SAMPLES]
            meter.groups += 1
            meter.groups_without_variance += max(group) == min(group)
        return rewards

    return reward


def run(settings: Settings) -> Result:
    # Heavy packages, and OpenMP must not be loaded before its threads are set.
    import torch
    import transformers
    import trl
    from datasets import Dataset

    torch.set_num_threads(settings.threads)
    meter = Meter()

    class StepEnds(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.end_step()

    class TimedTrainer(trl.GRPOTrainer):
        def _generate_single_turn(self, *positional: Any, **named: Any) -> Any:
            start = time.monotonic()
            made = super()._generate_single_turn(*positional, **named)
            meter.generate_seconds.append(time.monotonic() - start)
            return made

    with tempfile.TemporaryDirectory(prefix="trl-reference-") as scratch:
        trainer = TimedTrainer(
            model=settings.model,
            reward_funcs=reward_for(load_function(settings.reward), meter),
            args=trl.GRPOConfig(output_dir=scratch, **trainer_arguments(settings)),
            train_dataset=Dataset.from_list(read_rows(PROMPTS * settings.steps)),
            callbacks=[StepEnds()],
        )
        trainer.train()
    versions = {package.__name__: package.__version__ for package in (trl, transformers, torch)}
    return summarize(settings, meter, versions)


def trainer_arguments(settings: Settings) -> dict[str, Any]:
    """GRPOConfig's arguments: one generation and one optimizer step a batch, and nothing else that costs time."""
    batch = PROMPTS * SAMPLES
    return {
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": batch // settings.micro_batch,
        "generation_batch_size": batch,
        "num_generations": SAMPLES,
        "max_completion_length": NEW_TOKENS,
        "generation_kwargs": {"min_new_tokens": NEW_TOKENS},
        "temperature": 1.0,
        "beta": 0.0,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "model_init_kwargs": {"dtype": "float32"},
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "shuffle_dataset": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 0,
    }


def summarize(settings: Settings, meter: Meter, versions: dict[str, str]) -> Result:
    ends = meter.step_ends
    if len(ends) != settings.steps or len(meter.generate_seconds) != settings.steps:
        raise RuntimeError(
            f"{len(ends)} steps and {len(meter.generate_seconds)} generations, {settings.steps} of each were asked for"
        )
    steps = [later - earlier for earlier, later in itertools.pairwise(ends)]
    generate = meter.generate_seconds[1:]
    return Result(
        samples_per_second=PROMPTS * SAMPLES / statistics.mean(steps),
        step_seconds=steps,
        generate_seconds=generate,
        learn_seconds=[whole - part for whole, part in zip(steps, generate, strict=True)],
        cores_used=(meter.cpu_ends[-1] - meter.cpu_ends[0]) / (ends[-1] - ends[0]),
        groups_without_variance=meter.groups_without_variance / meter.groups,
        versions=versions,
        settings=settings,
    )


if __name__ == "__main__":
    main()
