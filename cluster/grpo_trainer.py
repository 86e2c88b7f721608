"""The Python face: a job for those who come from other trainers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.cluster.config import keys_named
from headrace.cluster.inputs import read_inputs
from headrace.cluster.job_file import anchor_paths, check_job
from headrace.cluster.python_reward import reward_section
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_records import Summary
from headrace.cluster.trainer import run_job
from headrace.verifiers.base import Verifier, nearest
from headrace.verifiers.errors import UserError
from headrace.verifiers.function import CallableVerifier

# What TRL and verl call the arguments here.
NAMES_ELSEWHERE = {
    "num_generations": "group_size",
    "beta": "kl_coef",
    "max_steps": "train(num_steps)",
    "max_completion_length": "rollout__max_tokens",
    "max_prompt_length": "model__max_length",
    "max_response_length": "rollout__max_tokens",
    "output_dir": "run_dir",
    "eval_dataset": "eval_data",
    "epsilon": "algorithm__clip_low",
    "epsilon_high": "algorithm__clip_high",
}


class GRPOTrainer:
    """A job in Python, for those who come from other trainers; each argument is a key of the job file.

    >>> trainer = GRPOTrainer(base_model="smollm2-135m", train_data="prompts.jsonl",
    ...                       reward_fn=lambda completion, row: float(row["answer"] in completion))
    >>> trainer.job.algorithm.group_size
    8

    Args:
        base_model: hub id, folder, or `smollm2-135m`.
        train_data: JSONL or Parquet with a `prompt` in each row.
        reward_fn: a Verifier, or a function (completion, row) -> float in [0, 1]. Where a job file can name it
            (python_reward.py), `headrace run RUN/job.toml` is the same job.
        use_vllm: vLLM is what generates; False is refused.
        overrides: any other key of the job file, as `section__key=value` (`rollout__max_tokens=48`).
    """

    def __init__(
        self,
        base_model: str,
        train_data: str | Path,
        reward_fn: Verifier | Callable[[str, dict[str, Any]], Any],
        *,
        eval_data: str | Path | None = None,
        group_size: int = 8,
        kl_coef: float = 0.0,
        learning_rate: float = 1e-6,
        use_vllm: bool = True,
        seed: int = 0,
        run_dir: str | Path | None = None,
        **overrides: Any,
    ) -> None:
        if not use_vllm:
            raise UserError("use_vllm=False: generation is vLLM's; on a machine without a GPU install headrace[cpu]")
        if isinstance(reward_fn, str):
            raise UserError(f"reward_fn: give the function itself, or a Verifier, not its name {reward_fn!r}")
        if isinstance(reward_fn, type) and issubclass(reward_fn, Verifier):
            raise UserError(f"reward_fn: give {reward_fn.__name__}(...), not the class")
        self._verifier = reward_fn if isinstance(reward_fn, Verifier) else CallableVerifier(reward_fn)
        values: dict[str, dict[str, Any]] = {
            "job": {"seed": seed},
            "model": {"base": base_model},
            "data": {"train": train_data},
            "reward": reward_section(reward_fn).model_dump(exclude_none=True),
            "algorithm": {"group_size": group_size, "kl_coef": kl_coef},
            "learner": {"learning_rate": learning_rate},
        }
        if eval_data is not None:
            values["data"]["held_out"] = eval_data
        if run_dir is not None:
            values["job"]["run_dir"] = run_dir
        for name, value in overrides.items():
            section, separator, key = name.partition("__")
            if not separator:
                raise UserError(f"{name}: not an argument of GRPOTrainer{_meant(name)}")
            values.setdefault(section, {})[key] = value
        anchor_paths(values, Path.cwd())
        self._values = values
        self.job = check_job(values)

    def train(self, num_steps: int, *, resume: bool = False) -> Summary | None:
        """Run `num_steps` optimizer steps; the run's summary, or None when it was stopped on request.

        It returns when the run has ended, in a notebook too; interrupting the cell stops in order, as Ctrl-C does.

        Raises:
            UserError: the input is wrong.
        """
        self._values["job"]["steps"] = num_steps
        self.job = check_job(self._values)
        folder = RunFolder.of(self.job)
        if resume and not folder.holds_run:
            raise UserError(f"{folder.path}: there is no run to resume here; start one with train({num_steps})")
        if folder.holds_run and not resume:
            raise UserError(
                f"{folder.path}: already holds a run; go on with train({num_steps}, resume=True), or give GRPOTrainer "
                "another run_dir"
            )
        return run_job(self.job, read_inputs(self.job, self._verifier), resume=resume)


def _meant(name: str) -> str:
    """A clause that says how the argument `name` is called here."""
    if name in NAMES_ELSEWHERE:
        return f"; here it is `{NAMES_ELSEWHERE[name]}`"
    if keys := ["__".join(place) for place in keys_named(name)]:
        return f"; a key of the job file is given with its section: {' or '.join(f'`{key}`' for key in keys)}"
    known = [each for each in inspect.signature(GRPOTrainer).parameters if each != "overrides"]
    return nearest(name, known)
