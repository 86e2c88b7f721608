"""The control plane: what runs once per job."""

from headrace.cluster.config import JobConfig
from headrace.cluster.job_file import load_job
from headrace.cluster.trainer import GRPOTrainer, run_job

__all__ = ["GRPOTrainer", "JobConfig", "load_job", "run_job"]
