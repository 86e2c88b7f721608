"""The control plane: what runs once per job.

The names below are loaded when they are first asked for: the queue's process and `headrace status` live in this package
too, and need neither torch nor transformers, whose import takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.cluster.config import JobConfig
    from headrace.cluster.grpo_trainer import GRPOTrainer
    from headrace.cluster.job_file import load_job
    from headrace.cluster.trainer import run_job

__all__ = ["GRPOTrainer", "JobConfig", "load_job", "run_job"]

_HOMES = {"GRPOTrainer": "grpo_trainer", "JobConfig": "config", "load_job": "job_file", "run_job": "trainer"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
