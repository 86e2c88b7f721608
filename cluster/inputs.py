"""The files that a job names, read and checked as far as that goes without its model.

Imports neither torch nor transformers, which take seconds to load: what is wrong here is said before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from headrace.cluster.config import JobConfig, RewardSection
from headrace.cluster.prompt_source import PromptFormat, place_of_row, read_rows
from headrace.verifiers.base import Verifier, VerifierSpec
from headrace.verifiers.errors import UserError, WrongOption, WrongValue
from headrace.verifiers.registry import build_verifier


class Inputs(msgspec.Struct, frozen=True):
    """What a job's files hold, checked as far as that goes without its model."""

    verifier: Verifier
    layout: PromptFormat
    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]] | None
    warm_start: list[dict[str, Any]]  # all of the file's; the job may take fewer


def read_inputs(job: JobConfig, verifier: Verifier | None = None) -> Inputs:
    """Read and check what needs no model: one that is not there yet takes half a minute or more to come.

    Args:
        verifier: in place of the job's own, for a reward given as an object.

    Raises:
        UserError: the first thing found wrong, with its file and row, or its key.
    """
    train = read_rows(job.data.train, "data.train")
    held_out = read_rows(job.data.held_out, "data.held_out") if job.data.held_out else None
    warm = read_rows(job.warm_start.data, "warm_start.data") if job.warm_start else []
    verifier = reward_verifier(job.reward) if verifier is None else verifier
    layout = PromptFormat(job.data.prompt_field, job.data.system, job.data.chat_template)
    check_rows(train, job.data.train, layout, verifier)
    if held_out is not None and job.data.held_out is not None:
        check_rows(held_out, job.data.held_out, layout, verifier)
    if job.warm_start:
        check_warm_start_rows(warm[: job.warm_start.samples], job.warm_start.data, layout)
    return Inputs(verifier, layout, train, held_out, warm)


def reward_verifier(reward: RewardSection) -> Verifier:
    """The verifier of a job's `[reward]`. Raises WrongValue with the key that is at fault."""
    if reward.python is not None:
        raise WrongValue(
            "reward.python",
            f"this job's reward ({reward.python.split()[0]}) was given in Python and is in no file: "
            "run it with GRPOTrainer, or give `verifier` or `function` instead",
        )
    try:
        return build_verifier(VerifierSpec(reward.verifier, reward.options, reward.function, reward.base_dir))
    except WrongOption as error:
        raise WrongValue(f"reward.options.{error.option}".rstrip("."), error.message) from error
    except UserError as error:
        if reward.function:
            raise WrongValue("reward.function", str(error)) from error
        hint = "; a function's place goes under reward.function" if ":" in (reward.verifier or "") else ""
        raise WrongValue("reward.verifier", f"{error}{hint}") from error


def check_rows(rows: Sequence[dict[str, Any]], path: Path, layout: PromptFormat, verifier: Verifier) -> None:
    """Look at every row before the model's files are touched. Raises UserError with the row's line."""
    for number, row in enumerate(rows, 1):
        check_prompt(row, number, path, layout)
        wrong = verifier.check_row(row)
        if wrong:
            raise UserError(f"{place_of_row(path, number)}: {wrong}")


def check_warm_start_rows(rows: Sequence[dict[str, Any]], path: Path, layout: PromptFormat) -> None:
    """The same for supervised examples, which no verifier sees; whether they fit the context is for the tokenizer to say."""
    for number, row in enumerate(rows, 1):
        check_prompt(row, number, path, layout)
        completion = row.get("completion")
        if not isinstance(completion, str) or not completion:
            raise UserError(f"{place_of_row(path, number)}: has no 'completion' text to learn from")


def check_prompt(row: dict[str, Any], number: int, path: Path, layout: PromptFormat) -> None:
    """Raises UserError, with the row's line, for a row without a usable prompt."""
    try:
        layout.messages(row)
    except ValueError as error:
        raise UserError(f"{place_of_row(path, number)}: {error}") from error
