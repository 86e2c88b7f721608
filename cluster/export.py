"""From a checkpoint to a Hugging Face folder, without a cluster."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from headrace.cluster.base_model import resolve_base_model
from headrace.cluster.checkpoint import CheckpointStore
from headrace.cluster.job_file import load_job
from headrace.cluster.run_folder import RunFolder
from headrace.learner.checkpoint import export_checkpoint
from headrace.learner.rounding import dithers_what_is_sent
from headrace.verifiers.base import printable
from headrace.verifiers.errors import UserError, cause_line


def export_run(run: RunFolder, output: Path) -> int:
    """Write the newest checkpoint of `run` to `output`; the step that it was written after.

    Raises:
        UserError: there is no run, no checkpoint, or `output` exists.
    """
    if not run.job.exists():
        raise UserError(f"{run.path}: holds no run (there is no job.toml)")
    job = load_job(run.job)
    checkpoint = CheckpointStore(run.checkpoints, job.checkpoint.keep).newest()
    if checkpoint is None:
        raise UserError(f"{run.path}: has no complete checkpoint yet")
    with new_folder(output):
        return export_checkpoint(
            checkpoint.learner,
            output,
            base=resolve_base_model(job.model.base),
            dtype=job.rollout.dtype,
            dithered=dithers_what_is_sent(job.weight_sync.rounding == "dithered", job.learner.dtype, job.rollout.dtype),
        )


@contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """Make it, before anything is loaded for it; it is taken away again where the block fails.

    Raises:
        UserError: it exists, or it or what it is to hold cannot be written.
    """
    try:
        path.mkdir(parents=True)
    except FileExistsError as error:
        raise UserError(f"{path}: exists already; name a folder that does not") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        raise UserError(f"{printable(str(path))}: cannot be made: {cause_line(error)}") from error
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, path, ignore_errors=True)
        try:
            yield
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {cause_line(error)}") from error
        undo.pop_all()
