"""Checkpoints of a run: the learner's own files, the queue's ledger, and a marker that is written last.

RUN/checkpoints/step-000010/learner/...      torch.distributed.checkpoint: weights, optimizer, random state
                            state.json       CheckpointState: step, ledger of prompts
                            complete         the marker; a folder without it is no checkpoint
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from headrace.cluster.rollout_queue import Ledger
from headrace.cluster.run_folder import atomic_write
from headrace.verifiers.errors import UserError

MARKER = "complete"


class CheckpointState(msgspec.Struct, frozen=True):
    step: int
    elapsed_seconds: float  # of the run, up to here
    ledger: Ledger


class Checkpoint(msgspec.Struct, frozen=True):
    folder: Path
    state: CheckpointState

    @property
    def learner(self) -> Path:
        return self.folder / "learner"


class CheckpointStore:
    """The `checkpoints` folder of one run."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def begin(self, step: int) -> Path:
        """An empty folder for the learner's files of `step`."""
        folder = self._of(step)
        if folder.exists():
            _delete(folder)
        (folder / "learner").mkdir(parents=True)
        return folder / "learner"

    def complete(self, state: CheckpointState) -> Checkpoint:
        """Everything of the learner's is on disk: write the state, then the marker, then drop what is too old."""
        folder = self._of(state.step)
        atomic_write(folder / "state.json", msgspec.json.encode(state) + b"\n")
        atomic_write(folder / MARKER, b"")
        _sync_folder(self._folder)
        self._drop_old()
        return Checkpoint(folder, state)

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint. Raises UserError when its state is damaged."""
        folders = self._complete()
        if not folders:
            return None
        path = folders[-1] / "state.json"
        try:
            return Checkpoint(folders[-1], msgspec.json.decode(path.read_bytes(), type=CheckpointState))
        except (OSError, msgspec.MsgspecError) as error:
            raise UserError(
                f"{path}: damaged ({error}); delete {folders[-1]} to resume from the checkpoint before"
            ) from error

    def _of(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}"

    def _complete(self) -> list[Path]:
        """Oldest first."""
        folders = [folder for folder in self._folder.glob("step-*") if (folder / MARKER).exists()]
        return sorted(folders, key=lambda folder: int(folder.name.removeprefix("step-")))

    def _drop_old(self) -> None:
        for folder in self._complete()[: -self._keep]:
            _delete(folder)


def _delete(folder: Path) -> None:
    """The marker goes first: a folder that is half deleted is no checkpoint."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
