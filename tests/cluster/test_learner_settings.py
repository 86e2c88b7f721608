"""The job file's `[algorithm]` and `[learner]` against what the learner knows of them: names, defaults, and the losses."""

from dataclasses import fields
from types import SimpleNamespace
from typing import get_args

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


def test_what_the_job_says_of_the_loss_reaches_the_ranks(letters_job):
    job = load_job(
        letters_job, ["--algorithm.kl-coef", "0.5", "--algorithm.clip-high", "0.3", "--algorithm.tis-cap", "5"]
    )
    settings = learner_worker_settings(SimpleNamespace(job=job, model="model"), None).learner  # type: ignore[arg-type]
    assert settings.loss == LossOptions(name="grpo", kl_coef=0.5, clip_high=0.3, tis_cap=5.0)
    assert settings.flat_groups_cost
