"""The job file's `[algorithm]` and `[learner]` against what the learner knows of them: names, defaults, and the losses."""

from dataclasses import asdict, fields
from types import SimpleNamespace
from typing import Any, get_args

import msgspec

from headrace.cluster.config import AlgorithmSection, LearnerSection
from headrace.cluster.fleet import learner_worker_settings
from headrace.cluster.job_file import load_job
from headrace.learner.losses import LOSSES, LossOptions
from headrace.learner.settings import LearnerSettings


def test_the_job_file_may_give_every_loss_and_no_other():
    assert set(get_args(AlgorithmSection.model_fields["name"].annotation)) == set(LOSSES)


def test_the_learner_has_the_job_files_defaults():
    algorithm = AlgorithmSection()
    assert {field.name: field.default for field in fields(LossOptions)} == {
        field.name: getattr(algorithm, field.name) for field in fields(LossOptions)
    }
    section = algorithm.model_dump() | LearnerSection().model_dump()
    for field in msgspec.structs.fields(LearnerSettings):
        if field.name in section:
            assert field.default == section[field.name], field.name


OFF_DEFAULT: dict[str, dict[str, Any]] = {
    "algorithm": {
        "trained_samples": 3,
        "normalize_advantages": False,
        "old_policy": "generator",
        "clip_low": 0.1,
        "clip_high": 0.3,
        "kl_coef": 0.5,
        "tis_cap": 5.0,
    },
    "learner": {
        "learning_rate": 0.25,
        "schedule": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.125,
        "betas": (0.5, 0.75),
        "grad_clip": 3.0,
        "dtype": "bfloat16",
        "max_tokens_per_pack": 777,
        "head_chunk_tokens": 55,
        "activation_checkpointing": True,
        "threads": 3,
    },
}
"""Each key that the learner's settings, or its loss, have under the same name."""


def test_every_value_of_the_job_that_the_learner_knows_by_name_reaches_the_ranks(letters_job):
    job = load_job(letters_job, ["--job.seed", "7", "--rollout.dtype", "float16", "--weight-sync.rounding", "nearest"])
    job = job.model_copy(
        update={name: getattr(job, name).model_copy(update=values) for name, values in OFF_DEFAULT.items()}
    )
    settings = learner_worker_settings(SimpleNamespace(job=job, model="the/model"), None).learner  # type: ignore[arg-type]
    found = msgspec.structs.asdict(settings) | asdict(settings.loss)
    given = OFF_DEFAULT["algorithm"] | OFF_DEFAULT["learner"]
    # So that a key which is added is one of these, and a value that is left out shows.
    assert given.keys() == found.keys() & (AlgorithmSection.model_fields.keys() | LearnerSection.model_fields) - {
        "name"
    }
    defaults = AlgorithmSection().model_dump() | LearnerSection().model_dump()
    assert not [name for name, value in given.items() if value == defaults[name]]
    assert {name: found[name] for name in given} == given
    own = {name: found[name] for name in found.keys() - given.keys() - {"loss"}}
    assert own == {
        "name": "grpo",
        "model": "the/model",
        "total_steps": 3,
        "seed": 7,
        "device": "cpu",
        "serving_dtype": "float16",
        "dithered_rounding": False,
    }


def test_what_the_job_says_of_the_loss_reaches_the_ranks(letters_job):
    job = load_job(
        letters_job, ["--algorithm.kl-coef", "0.5", "--algorithm.clip-high", "0.3", "--algorithm.tis-cap", "5"]
    )
    settings = learner_worker_settings(SimpleNamespace(job=job, model="model"), None).learner  # type: ignore[arg-type]
    assert settings.loss == LossOptions(name="grpo", kl_coef=0.5, clip_high=0.3, tis_cap=5.0)
    assert settings.flat_groups_cost
