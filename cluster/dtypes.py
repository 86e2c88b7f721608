"""The dtypes that engines and learner compute in, where a job leaves them to the hardware."""

from __future__ import annotations

from pathlib import Path

from headrace.cluster.config import JobConfig

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # as Linux names them: two of x86, and Arm's


def settle_dtypes(job: JobConfig, before: JobConfig | None = None, cpu_info: Path = CPU_INFO) -> JobConfig:
    """The job with a dtype in the place of each `auto`: that of the run that it takes up; else bfloat16 where the pool has
    GPUs, or this machine's CPU computes in it. Where that has to convert instead, bfloat16 is the slower one
    (`python -m benchmarks.serving_dtype`)."""
    earlier = before or job
    rollout = _settled(job.rollout.dtype, earlier.rollout.dtype, job.rollout.gpus > 0, cpu_info)
    learner = _settled(job.learner.dtype, earlier.learner.dtype, job.learner.gpus > 0, cpu_info)
    return job.model_copy(
        update={
            "rollout": job.rollout.model_copy(update={"dtype": rollout}),
            "learner": job.learner.model_copy(update={"dtype": learner}),
        }
    )


def _settled(wanted: str, before: str, on_gpus: bool, cpu_info: Path) -> str:
    if wanted != "auto":
        return wanted
    if before != "auto":
        return before
    return "bfloat16" if on_gpus or _computes_bfloat16_here(cpu_info) else "float32"


def _computes_bfloat16_here(cpu_info: Path) -> bool:
    return cpu_info.exists() and computes_bfloat16(cpu_info.read_text())


def computes_bfloat16(cpu_info: str) -> bool:
    """Whether the first CPU of a `/proc/cpuinfo` has instructions for products in bfloat16.

    >>> computes_bfloat16("processor : 0\\nflags : fpu avx512f avx512_bf16")
    True
    """
    for line in cpu_info.splitlines():
        key, _, values = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return not BFLOAT16_FLAGS.isdisjoint(values.split())
    return False
