"""From a checkpoint to a Hugging Face folder, without a cluster."""

from __future__ import annotations

from pathlib import Path

from headrace.cluster.base_model import resolve_base_model
from headrace.cluster.checkpoint import CheckpointStore
from headrace.cluster.job_file import load_job
from headrace.cluster.run_folder import RunFolder
from headrace.learner.checkpoint import export_checkpoint
from headrace.verifiers.errors import UserError


def export_run(run: RunFolder, output: Path) -> int:
    """Write the newest checkpoint of `run` to `output`; the step that it was written after.

    Raises:
        UserError: there is no run, no checkpoint, or `output` exists.
    """
    if not run.job.exists():
        raise UserError(f"{run.path}: holds no run (there is no job.toml)")
    if output.exists():
        raise UserError(f"{output}: exists already; name a folder that does not")
    job = load_job(run.job)
    checkpoint = CheckpointStore(run.checkpoints, job.checkpoint.keep).newest()
    if checkpoint is None:
        raise UserError(f"{run.path}: has no complete checkpoint yet")
    return export_checkpoint(
        checkpoint.learner,
        output,
        base=resolve_base_model(job.model.base),
        dtype=job.rollout.dtype,
        dithered=job.weight_sync.rounding == "dithered",
    )
