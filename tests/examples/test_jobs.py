"""The jobs that stand in the checkout: all that can be wrong with one and shows without its model."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.cluster.inputs import read_inputs
from headrace.cluster.job_file import load_job
from headrace.cluster.preparation import check_engine_arguments

ROOT = Path(__file__).parents[2]
JOBS = ("examples/booking/job.toml", "benchmarks/throughput.toml")


def test_every_job_file_of_the_examples_and_benchmarks_is_checked() -> None:
    files = [path for folder in ("examples", "benchmarks") for path in (ROOT / folder).rglob("*.toml")]
    jobs = {str(path.relative_to(ROOT)) for path in files if "\n[model]\n" in path.read_text(encoding="utf-8")}
    assert jobs == set(JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_right_with_its_reward_and_each_of_its_rows(name: str) -> None:
    job = load_job(ROOT / name)
    check_engine_arguments(job.rollout.engine)
    inputs = read_inputs(job)
    assert len(inputs.train) >= job.algorithm.groups_per_step * job.job.steps
    assert len(inputs.held_out or []) >= (job.evaluation.prompts or 0)
    assert len(inputs.warm_start) >= (job.warm_start.samples or 1 if job.warm_start else 0)
