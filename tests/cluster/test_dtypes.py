"""Which dtypes engines and learner compute in, where the job does not say."""

import re

import pytest

from headrace.cluster.dtypes import CPU_INFO, settle_dtypes
from headrace.cluster.job_file import dump_job, load_job

CPUS = {
    "processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 amx_tile\n": "bfloat16",
    "processor\t: 0\nflags\t\t: fpu avx512f amx_bf16\n": "bfloat16",
    "processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n": "bfloat16",
    "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n": "float32",
    "processor\t: 0\nFeatures\t: fp asimd\n": "float32",
    "": "float32",
}


@pytest.fixture
def job(letters_job):
    letters_job.write_text(letters_job.read_text().replace('dtype = "float32"\n', "", 1))
    job = load_job(letters_job)
    assert job.rollout.dtype == "auto"
    return job


@pytest.mark.parametrize("cpu", CPUS)
def test_a_cpu_engine_computes_in_what_the_cpu_has_instructions_for(job, tmp_path, cpu):
    (tmp_path / "cpuinfo").write_text(cpu)
    assert settle_dtypes(job, cpu_info=tmp_path / "cpuinfo").rollout.dtype == CPUS[cpu]


@pytest.mark.parametrize("cpu", CPUS)
def test_so_does_a_learner_that_is_left_to_choose(letters_job, tmp_path, cpu):
    (tmp_path / "cpuinfo").write_text(cpu)
    left = load_job(letters_job, ["--learner.dtype", "auto"])
    assert settle_dtypes(left, cpu_info=tmp_path / "cpuinfo").learner.dtype == CPUS[cpu]
    named = load_job(letters_job)
    assert settle_dtypes(named, cpu_info=tmp_path / "cpuinfo").learner.dtype == "float32"


def test_a_learner_on_gpus_that_is_left_to_choose_takes_bfloat16(letters_job, tmp_path):
    (tmp_path / "cpuinfo").write_text("")
    letters_job.write_text(re.sub(r"(?m)^threads = .*\n", "", letters_job.read_text()))
    job = load_job(letters_job, ["--learner.dtype", "auto", "--learner.gpus", "1"])
    assert settle_dtypes(job, cpu_info=tmp_path / "cpuinfo").learner.dtype == "bfloat16"


def test_on_gpus_it_is_bfloat16_and_what_the_job_names_stays(letters_job, job, tmp_path):
    (tmp_path / "cpuinfo").write_text("")
    on_gpus = load_job(letters_job, ["--rollout.gpus", "1"])
    assert settle_dtypes(on_gpus, cpu_info=tmp_path / "cpuinfo").rollout.dtype == "bfloat16"
    named = load_job(letters_job, ["--rollout.dtype", "float16"])
    assert settle_dtypes(named, cpu_info=tmp_path / "cpuinfo") == named


def test_a_resumed_run_goes_on_in_its_own(letters_job, job, tmp_path):
    (tmp_path / "cpuinfo").write_text("flags: avx512_bf16")
    letters_job.with_name("before.toml").write_text(dump_job(load_job(letters_job, ["--rollout.dtype", "float32"])))
    before = load_job(letters_job.with_name("before.toml"))
    assert settle_dtypes(job, before, tmp_path / "cpuinfo").rollout.dtype == "float32"
    left = load_job(letters_job, ["--learner.dtype", "auto"])
    assert settle_dtypes(left, before, tmp_path / "cpuinfo").learner.dtype == "float32"


def test_a_system_that_does_not_describe_its_cpu_computes_in_float32(job, tmp_path):
    assert settle_dtypes(job, cpu_info=tmp_path / "missing").rollout.dtype == "float32"


def test_this_machines_cpu_is_readable():
    assert "flags" in CPU_INFO.read_text() or "Features" in CPU_INFO.read_text()
