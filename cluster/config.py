"""The job file: one TOML file, typed. Every field says what it means; `headrace run --print-config` shows all values.

Sections are small models of their own, in the order in which a reader meets them. `job_file.py` reads the file, applies
command-line values and turns what is wrong into one line with the key's place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace.cluster.run_records import MAX_MEMBERS

FilePath = Annotated[Path, Field(strict=False)]  # a string in TOML
Beta = Annotated[float, Field(ge=0, lt=1)]

Value = TypeVar("Value")
CHANGEABLE = "may differ when a run is resumed"
Changeable = Annotated[Value, CHANGEABLE]
"""A key that a resumed job may have otherwise than before: how the run goes on, not what it learns."""

CORES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")

DEMO_MODEL = "smollm2-135m"
"""The name of the embedded demo model (base_model.py)."""

ENGINE_KEYS = {
    "model": "give model.base instead",
    "max_model_len": "give model.max_length instead",
    "dtype": "give rollout.dtype instead",
    "tensor_parallel_size": "give rollout.tensor_parallel_size instead",
    "pipeline_parallel_size": "weights are sent to rollout.tensor_parallel_size workers of an engine and to no others",
    "data_parallel_size": "weights are sent to one engine; give rollout.generators instead",
    "logprobs_mode": "the importance weights need the log-probabilities of the distribution that was sampled from",
    "weight_transfer_config": "it is how new weights come in",
    "worker_extension_cls": "it is how new weights come in",
}
"""Arguments of vLLM's that `[rollout] engine` may not have, and why."""


def _rises(cores: str) -> bool:
    """Whether each range of a list of cores holds one: `3-1` names none."""
    return all(int(first) <= int(last) for first, last in re.findall(r"(\d+)-(\d+)", cores))


class Mismatch(ValueError):
    """Values that are right by themselves and impossible together.

    `keys` are those that could be changed, by their path below the section that checks; `job_file.py` names the first
    of them that was given.
    """

    def __init__(self, keys: Sequence[str], message: str) -> None:
        super().__init__(message)
        self.keys = keys


class Section(BaseModel):
    # Strict: TOML has types, so a number in quotes is a mistake and no number.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class JobSection(Section):
    name: str = "headrace"
    """Shown in the display, the report and every log line."""
    steps: Changeable[int] = Field(default=100, ge=1)
    """Optimizer steps of reinforcement learning; one step makes one weight version. A resumed run with another number has
    the rest of `learner.schedule` bent to it."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Order of the data, random numbers of the learner and of each engine (its own), bootstrap intervals. Completions are
    not the same in a second run: the order in which groups come back is not."""
    run_dir: Changeable[FilePath | None] = None
    """Folder that the run writes; default `runs/<job.name>` under the working directory."""


class ModelSection(Section):
    base: str
    """Hub id, folder, or `smollm2-135m` (the embedded demo model)."""
    max_length: int = Field(default=1024, ge=16)
    """Context in tokens: prompt and completion together."""


class DataSection(Section):
    train: FilePath
    """JSONL or Parquet, one prompt a row."""
    held_out: FilePath | None = None
    """Rows for evaluation, never trained on."""
    prompt_field: str = "prompt"
    """Field with the prompt: a string, or a list of chat messages."""
    system: str | None = None
    """System message put before every prompt (the same for all, so that the prefix cache serves it)."""
    chat_template: bool = True
    """Apply the tokenizer's chat template; false: the prompt's text as it is."""
    shuffle: bool = True
    """Seeded order, another one each epoch; false: the file's order."""


class RewardSection(Section):
    verifier: str | None = None
    """Registered verifier, by name."""
    options: dict[str, Any] = {}
    """The verifier's own options; with `function` its limits."""
    function: str | None = None
    """A function of your own instead: `file.py:name`, called as name(completion, row) -> float in [0, 1]."""
    python: str | None = None
    """Written by GRPOTrainer for a reward that is in no file: its name and a fingerprint. Only Python can run such a job."""
    base_dir: str = "."
    """Where relative paths in `options` and `function` start; the job file's folder."""

    @model_validator(mode="after")
    def one_of(self) -> RewardSection:
        if [self.verifier, self.function, self.python].count(None) != 2:
            raise Mismatch(["function"], "give either `verifier` or `function`")
        if "\0" in (self.function or ""):
            raise Mismatch(["function"], "holds a NUL character, so it names no file")
        for key, value in self.options.items():
            if key.endswith("_path") and isinstance(value, str) and "\0" in value:
                raise Mismatch([f"options.{key}"], "holds a NUL character, so it names no file")
        return self


class AlgorithmSection(Section):
    name: Literal["grpo"] = "grpo"
    """Group-relative policy optimization (learner/losses.py)."""
    group_size: int = Field(default=8, ge=2)
    """Samples per prompt; advantages are relative to their mean."""
    groups_per_step: int = Field(default=8, ge=1)
    """Groups in one optimizer step."""
    trained_samples: int | None = Field(default=None, ge=2)
    """Samples of each group that go through the learner: those whose rewards vary most, with advantages relative to the
    whole group; default: all. For runs that wait for the learner, whose generators have time for larger groups."""
    normalize_advantages: bool = True
    """Divide advantages by the group's standard deviation; false: only subtract the mean (Dr. GRPO)."""
    old_policy: Literal["learner", "generator"] = "learner"
    """What the policy ratio is to: the learner's own policy, which makes it 1 and leaves a batch's age to the truncated
    importance weight; or the one that drew the tokens, whose ratio is clipped (GRPO as published)."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The policy ratio is clipped below at 1 - clip_low; without effect where `old_policy` is the learner's."""
    clip_high: float = Field(default=0.2, gt=0)
    """The policy ratio is clipped above at 1 + clip_high."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL term against the reference policy; at 0 no reference model is loaded."""
    tis_cap: float = Field(default=2.0, gt=0, allow_inf_nan=True)
    """Cap of the truncated importance weight between learner and generator; `inf` for none. Without effect where
    `old_policy` is the generator's."""
    dynamic_sampling: bool = False
    """Fill a step with groups whose rewards differ (DAPO): the others are counted as filtered and replaced."""

    @model_validator(mode="after")
    def has_samples_to_choose_from(self) -> AlgorithmSection:
        if self.trained_samples is not None and self.trained_samples > self.group_size:
            raise Mismatch(
                ["trained_samples", "group_size"],
                f"trained_samples ({self.trained_samples}) are chosen out of a group of {self.group_size}: give fewer",
            )
        return self


class RolloutSection(Section):
    generators: Changeable[int] = Field(default=1, ge=1, le=MAX_MEMBERS)
    """Members of the rollout pool at the start; `headrace scale` changes it live."""
    max_staleness: int = Field(default=1, ge=0)
    """Learner version minus the oldest version in a group; 0 is on-policy. Kept by admission, not by dropping."""
    max_tokens: int = Field(default=256, ge=1)
    min_tokens: int = Field(default=0, ge=0)
    """A completion does not end before; for benchmarks, mostly."""
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Below 1 the importance weights are biased: the learner knows nothing of the cut (docs/algorithms.md)."""
    top_k: int = Field(default=0, ge=0)
    """0: all tokens; above, the importance weights are biased as by `top_p`."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    inflight_groups: Changeable[int | None] = Field(default=None, ge=1)
    """Leases that one engine holds at a time; default: enough to fill `max_num_seqs`, and one in waiting."""
    lease_seconds: Changeable[float] = Field(default=600, gt=0)
    """A lease that has not come back by then is handed out again."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the served weights and the engine's computation. `auto`: bfloat16, or float32 for CPU engines where this machine's
    CPU has no instructions for bfloat16."""
    tensor_parallel_size: Changeable[int] = Field(default=1, ge=1)
    engines_per_node: Changeable[int | None] = Field(default=None, ge=1)
    """At most so many generators on a node, where the rollout nodes carry the Ray resource `headrace_rollout` (1 each, as
    deploy/rayjob.yaml gives them). Default: as many as fit."""
    cpus: Changeable[float] = Field(default=1, ge=0)
    """Ray CPUs that one generator asks for."""
    gpus: Changeable[float] = Field(default=0, ge=0)
    """Ray GPUs that one generator asks for; 0: the CPU engine."""
    memory_bytes: Changeable[int] = Field(default=0, ge=0)
    """Ray memory that one generator asks for."""
    threads: Changeable[str] = "nobind"
    """CPU engine only. Cores that the engine computes on: `all`, `nobind`, or a list such as `0-3`; with tensor parallelism
    one a worker, `0-3|4-7`."""
    kv_cache_bytes: Changeable[int] = Field(default=2**30, gt=0)
    """CPU engine only: KV cache."""
    engine: dict[str, Any] = {}
    """vLLM's own engine arguments, by their names, passed through."""

    @model_validator(mode="after")
    def engine_can_be_built(self) -> RolloutSection:
        if self.min_tokens > self.max_tokens:
            raise Mismatch(
                ["min_tokens", "max_tokens"],
                f"min_tokens ({self.min_tokens}) is more than max_tokens ({self.max_tokens})",
            )
        for name, reason in ENGINE_KEYS.items():
            if name in self.engine:
                raise Mismatch([f"engine.{name}"], f"not an engine argument that a job can give: {reason}")
        workers = self.tensor_parallel_size
        # With vLLM's own Ray executor the workers are actors of their own, and the generator itself has no GPU to ask for.
        if self.gpus > 0 and max(1, self.gpus) != workers and "distributed_executor_backend" not in self.engine:
            raise Mismatch(
                ["tensor_parallel_size", "gpus"],
                f"tensor_parallel_size is {workers}, so a generator needs {workers} GPU(s), and gpus is {self.gpus:g}",
            )
        self._check_cpu_engine()
        return self

    def _check_cpu_engine(self) -> None:
        """The keys that only the CPU engine reads."""
        if self.gpus > 0:
            for key in ("threads", "kv_cache_bytes"):
                if getattr(self, key) != RolloutSection.model_fields[key].default:
                    raise Mismatch([key, "gpus"], f"{key} is for the CPU engine only, and gpus is {self.gpus:g}")
        if self.threads in ("all", "nobind"):
            return
        lists = self.threads.split("|")
        if not all(CORES.fullmatch(cores) and _rises(cores) for cores in lists):
            raise Mismatch(["threads"], f"give `all`, `nobind`, or cores such as `0-3,8`, not {self.threads!r}")
        if len(lists) != self.tensor_parallel_size:
            raise Mismatch(
                ["threads", "tensor_parallel_size"],
                f"threads has {len(lists)} list(s) of cores for the {self.tensor_parallel_size} worker(s) of "
                "tensor_parallel_size; write one a worker, as `0-3|4-7`",
            )


class VerificationSection(Section):
    workers: Changeable[int] = Field(default=1, ge=1, le=MAX_MEMBERS)
    """Members of the verification pool at the start."""
    cpus: Changeable[float] = Field(default=0.5, ge=0)
    timeout_seconds: Changeable[float] = Field(default=30, gt=0)
    """For one call of a worker, its start-up apart; a call has as many samples (up to 64) as end well within it. Give three
    times what the slowest check takes."""
    attempts: Changeable[int] = Field(default=3, ge=1)
    """Workers that a sample is offered to before its verdict is infra_error."""


class LearnerSection(Section):
    ranks: Changeable[int] = Field(default=1, ge=1, le=MAX_MEMBERS)
    learning_rate: float = Field(default=1e-6, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """From the learning rate to a tenth of it over job.steps."""
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.99)
    """AdamW's decay of the first and the second moment."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of the computation; weights, moments and reductions are float32. `auto`: bfloat16 on GPUs and on CPUs that compute in
    it. In float16 gradients underflow: there is no loss scaling."""
    max_tokens_per_pack: Changeable[int] = Field(default=2048, ge=64)
    """Tokens in one forward pass of one rank."""
    head_chunk_tokens: Changeable[int] = Field(default=1024, ge=16)
    """Response positions that go through the language-model head at a time."""
    activation_checkpointing: Changeable[bool] = False
    cpus: Changeable[float] = Field(default=1, ge=0)
    gpus: Changeable[float] = Field(default=0, ge=0)
    """Ray GPUs that one rank asks for: 1, or 0 for a learner on the CPU."""
    threads: Changeable[int | None] = Field(default=None, ge=1)
    """Torch threads of a rank on a CPU; default: the cores that it may use on its node, divided by the ranks there."""
    memory_bytes: Changeable[int] = Field(default=0, ge=0)

    @model_validator(mode="after")
    def rank_can_be_placed(self) -> LearnerSection:
        if self.gpus not in (0, 1):
            raise Mismatch(
                ["gpus"],
                f"a rank has one GPU or none, and gpus is {self.gpus:g}; `ranks` is what spreads the model over more GPUs",
            )
        if self.gpus and self.threads is not None:
            raise Mismatch(["threads", "gpus"], f"threads is for a learner on the CPU, and gpus is {self.gpus:g}")
        return self


class PlacementSection(Section):
    local_cpus: Changeable[int | None] = Field(default=None, ge=1)
    """Ray CPUs of the cluster that a run starts for itself. They are counted, not reserved, and pools on one machine share
    its cores; default: 8 or the cores, whichever is more."""
    take_turns: Changeable[Literal[True, False, "auto"]] = False
    """Generators stand still while the learner steps, for pools on the same cores (docs/architecture.md has what it costs);
    `auto`: when generators and learner have no GPU and share a node."""
    restarts: Changeable[int] = Field(default=20, ge=0)
    """Members of one pool that may die and be replaced before the pool is given up."""


class WeightSyncSection(Section):
    timeout_seconds: Changeable[float] = Field(default=60, gt=0)
    """For one transfer; a member that misses it is replaced, the others are sent to again without it."""
    rounding: Literal["dithered", "nearest"] = "dithered"
    """How float32 weights become the serving dtype, and the dtype that the learner computes in. Nearest undoes steps that
    are smaller than half the dtype's own (learner/rounding.py)."""
    probe_tolerance: Changeable[float] = Field(default=0.03, gt=0)
    """Attestation: largest distance between the engine's and the learner's log-probabilities of the probe sequences, as a
    share of their size (actors/weight_sync/attestation.py)."""
    clear_cache: bool = False
    """Throw away the running requests' KV cache at an update, so that they are computed again under the new weights.
    New requests carry the version as cache salt in either case."""


class WarmStartSection(Section):
    data: FilePath
    """JSONL with `data.prompt_field` and `completion`: the supervised examples."""
    samples: int | None = Field(default=None, ge=1)
    """How many of them, from the top; default all."""
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-5, gt=0)


class EvaluationSection(Section):
    prompts: int | None = Field(default=None, ge=1)
    """Held-out rows, from the top; default all."""
    samples: int = Field(default=1, ge=1)
    """Samples per prompt at the training temperature; one greedy completion is made besides."""
    every: Changeable[int] = Field(default=0, ge=0)
    """Evaluate each so many steps; 0: only before, after the warm start and at the end."""


class CheckpointSection(Section):
    every: Changeable[int] = Field(default=10, ge=0)
    """Steps between checkpoints; 0: only at the end and on Ctrl-C."""
    keep: Changeable[int] = Field(default=2, ge=1)


class MetricsSection(Section):
    host: Changeable[str] = "127.0.0.1"
    """Address that metrics and the controller's endpoint bind to."""
    port: Changeable[int] = Field(default=0, ge=0, le=65535)
    """The controller's endpoint; 0: any free port."""


class JobConfig(Section):
    """A whole job."""

    job: JobSection = JobSection()
    model: ModelSection
    data: DataSection
    reward: RewardSection
    algorithm: AlgorithmSection = AlgorithmSection()
    rollout: RolloutSection = RolloutSection()
    verification: VerificationSection = VerificationSection()
    learner: LearnerSection = LearnerSection()
    placement: PlacementSection = PlacementSection()
    weight_sync: WeightSyncSection = WeightSyncSection()
    warm_start: WarmStartSection | None = None
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    metrics: MetricsSection = MetricsSection()

    @model_validator(mode="after")
    def fits_together(self) -> JobConfig:
        if self.rollout.max_tokens >= self.model.max_length:
            raise Mismatch(
                ["rollout.max_tokens", "model.max_length"],
                f"rollout.max_tokens ({self.rollout.max_tokens}) leaves no room for a prompt in "
                f"model.max_length ({self.model.max_length})",
            )
        if self.learner.warmup_steps > self.job.steps:
            raise Mismatch(
                ["learner.warmup_steps", "job.steps"],
                f"learner.warmup_steps ({self.learner.warmup_steps}) is more than job.steps ({self.job.steps}), so that "
                "learner.learning_rate is never reached",
            )
        if self.data.held_out is None and self.evaluation != EvaluationSection():
            raise Mismatch(
                [f"evaluation.{key}" for key in EvaluationSection.model_fields],
                "there are no rows to evaluate on; give data.held_out",
            )
        return self


def keys_named(key: str) -> list[tuple[str, str]]:
    """The sections that have a key of this name, each with it."""
    sections = {name: field.annotation for name, field in JobConfig.model_fields.items()}
    return [
        (name, key)
        for name, annotation in sections.items()
        for model in (annotation, *get_args(annotation))
        if isinstance(model, type) and issubclass(model, Section) and key in model.model_fields
    ]
