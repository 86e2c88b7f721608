"""The folder of a run: who writes it, what lies where, and how it is taken up again.

    RUN/job.toml         the resolved job
        data.json        RunData: what the run learns from, by digest
        controller.json  where the controller listens (mode 0600: whoever reads it may steer the run)
        metrics.jsonl    a StepRecord or EvaluationRecord a line
        samples.jsonl    a SampleRecord a line
        ledger.jsonl     a CommitRecord a line
        memory.json      PeakMemory: the run's so far
        summary.json     a Summary, at the end
        report.html  checkpoints/  evaluations/  model/  logs/

Lines are appended and flushed one by one; every other file is replaced whole. Only the process that called `create`
writes. Readers (`headrace status`, the report) look at a live run at any time: a last line without its newline is one
that is just being written, or one that a killed process left half done, and is not a record.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from headrace.cluster.config import JobConfig
from headrace.cluster.run_records import EvaluationRecord, SampleRecord, StepRecord, Summary
from headrace.verifiers.errors import UserError

Record = TypeVar("Record", bound=msgspec.Struct)


class PeakMemory(msgspec.Struct, frozen=True):
    """memory.json: the most that the run's processes have held together, before an interruption too."""

    peak_bytes: int


class InputDigest(msgspec.Struct, frozen=True):
    """One file that a job names."""

    key: str  # of the job: "data.train"
    path: str
    sha256: str  # of a data file's rows in their order, of another file's bytes


class RunData(msgspec.Struct, frozen=True):
    """data.json: what a run learns from. What a reward's file imports is not in it."""

    files: list[InputDigest]

    def check_unchanged(self, now: RunData, file: Path) -> None:
        """Raises UserError, naming key and file, where `now` is not what this run, whose record is `file`, began with."""
        digests = {each.key: each.sha256 for each in now.files}
        for before in self.files:
            if digests.get(before.key) != before.sha256:
                raise UserError(
                    f"--resume: {before.key}: {before.path} is not what it was when the run started; put it back as "
                    f"{file} has it, or start another run with --job.run-dir"
                )


class RunFolder:
    """Paths, readers and, after `create`, writers of one run. Use one writing instance per run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job = path / "job.toml"
        self.data = path / "data.json"
        self.controller = path / "controller.json"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.ledger = path / "ledger.jsonl"
        self.memory = path / "memory.json"
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self.checkpoints = path / "checkpoints"
        self.evaluations = path / "evaluations"
        self.model = path / "model"
        self.logs = path / "logs"
        self._writers: dict[Path, BinaryIO] = {}
        self._lock: int | None = None

    @classmethod
    def of(cls, job: JobConfig) -> RunFolder:
        return cls((job.job.run_dir or Path("runs") / job.job.name).absolute())

    @property
    def _written(self) -> tuple[Path, ...]:
        """What a run writes, and a user may have put there."""
        return (self.data, self.samples, self.ledger, self.memory, self.report, self.evaluations, self.model)

    @property
    def holds_run(self) -> bool:
        """Whether a run was started here. Raises UserError for a path that cannot be looked at."""
        try:
            return any(path.exists() for path in (self.job, self.metrics, self.summary, self.checkpoints))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be a run's folder ({error.strerror})") from error

    def check(self, resume: bool = False) -> None:
        """Raises UserError when the folder holds a run that is not to be resumed, or none that could be."""
        if resume and not self.holds_run:
            raise UserError(f"{self.path}: there is no run to resume here; start one without --resume")
        if not resume and self.holds_run:
            raise UserError(f"{self.path}: already holds a run; go on with --resume, or choose another --job.run-dir")
        if not resume and (taken := [path.name for path in self._written if path.exists()]):
            raise UserError(
                f"{self.path}: holds {', '.join(taken)}, which a run would write over; choose another --job.run-dir"
            )

    def create(self, resume: bool = False) -> None:
        """Make the folder, or with `resume` take the run in it up again, and keep other writers out until `close`.

        Raises UserError: the folder already holds a run (or with `resume`: holds none), cannot be made, or is being
        written by a process that still lives.
        """
        self.check(resume)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            for folder in (self.checkpoints, self.evaluations, self.logs):
                folder.mkdir(exist_ok=True)
            if resume:
                for path in (self.metrics, self.samples, self.ledger):
                    _cut_half_written_line(path)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise UserError(
                f"{self.path}: the run folder cannot be made ({_reason(error)}); choose another --job.run-dir"
            ) from error

    def rewind(self, step: int) -> None:
        """Drop the metrics and samples of steps after `step`: their history did not end in the weights resumed from. And the
        summary: the run goes on."""
        self._close_writers()
        self.summary.unlink(missing_ok=True)
        kept = [record for record in self.read_metrics() if record.step <= step]
        atomic_write(self.metrics, b"".join(_line(record) for record in kept))
        kept_samples = [record for record in self.read_samples() if record.step <= step]
        atomic_write(self.samples, b"".join(_line(record) for record in kept_samples))

    def close(self) -> None:
        self._close_writers()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def append_metrics(self, record: StepRecord | EvaluationRecord) -> None:
        self._append(self.metrics, [record])

    def append_samples(self, records: Iterable[SampleRecord]) -> None:
        self._append(self.samples, records)

    def append_ledger(self, record: msgspec.Struct) -> None:
        self._append(self.ledger, [record])

    def replace_ledger(self, records: Iterable[msgspec.Struct]) -> None:
        self._close_writers()
        atomic_write(self.ledger, b"".join(_line(record) for record in records))

    def write_evaluation(self, label: str, result: msgspec.Struct) -> None:
        atomic_write(self.evaluations / f"{label.replace(' ', '-')}.json", msgspec.json.encode(result) + b"\n")

    def write_job(self, toml: str) -> None:
        atomic_write(self.job, toml.encode())

    def write_data(self, data: RunData) -> None:
        atomic_write(self.data, msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n")

    def read_data(self) -> RunData:
        """Raises UserError when there is no such file, or it is none."""
        try:
            return read_record(self.data, RunData)
        except FileNotFoundError as error:
            raise UserError(
                f"{self.data}: missing, so that nothing tells whether data and reward are what the run started with; put "
                "it back, or start another run with --job.run-dir"
            ) from error

    def write_summary(self, summary: Summary) -> None:
        atomic_write(self.summary, msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")

    def write_peak_memory(self, held_bytes: int) -> None:
        atomic_write(self.memory, msgspec.json.encode(PeakMemory(held_bytes)) + b"\n")

    def read_peak_memory(self) -> int:
        """Bytes; 0 before the first measurement. Raises UserError when the file is none."""
        return read_record(self.memory, PeakMemory).peak_bytes if self.memory.exists() else 0

    def write_controller(self, record: msgspec.Struct) -> None:
        atomic_write(self.controller, msgspec.json.encode(record) + b"\n", mode=0o600)

    def read_metrics(self) -> list[StepRecord | EvaluationRecord]:
        """All complete lines, in order; empty before the first. Raises UserError at a line that is no record."""
        return read_lines(self.metrics, StepRecord | EvaluationRecord)

    def read_samples(self) -> list[SampleRecord]:
        """All complete lines, in order; empty before the first. Raises UserError at a line that is no record."""
        return read_lines(self.samples, SampleRecord)

    def read_ledger(self, kind: type[Record]) -> list[Record]:
        """All complete lines, in order; empty before the first. Raises UserError at a line that is no `kind`."""
        return read_lines(self.ledger, kind)

    def read_evaluations(self, kind: type[Record]) -> dict[str, Record]:
        """By label, with `-` for each space. Raises UserError at a file that is no `kind`."""
        # A prompt of which no check ran has nan for its reward.
        return {path.stem: read_record(path, kind, null_is_nan=True) for path in self.evaluations.glob("*.json")}

    def read_summary(self) -> Summary | None:
        """None while the run goes on. Raises UserError when the file is no summary."""
        return read_record(self.summary, Summary) if self.summary.exists() else None

    def read_controller(self, kind: type[Record]) -> Record:
        """Where the controller listens. Raises UserError when there is no controller, or the file is no `kind`."""
        try:
            return read_record(self.controller, kind)
        except OSError as error:
            raise UserError(
                f"{self.path}: no controller.json, so no run goes on here; name the folder of a live run"
            ) from error

    def _append(self, path: Path, records: Iterable[msgspec.Struct]) -> None:
        writer = self._writers.get(path)
        if writer is None:
            # Lives as long as the folder does; `close` closes it.
            writer = self._writers[path] = path.open("ab")
        for record in records:
            writer.write(_line(record))
            writer.flush()

    def _close_writers(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _take_lock(self) -> None:
        # Held by the open file, so it falls with the process, however that ends.
        lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(
                f"{self.path}: another process writes this run; stop it first, or watch it with `headrace status`"
            ) from None
        self._lock = lock


def atomic_write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace `path` so that a reader, or a crash at any moment, finds the old content or the new, never a part."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _line(record: msgspec.Struct) -> bytes:
    return msgspec.json.encode(record) + b"\n"


def _complete_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    # Split at newlines only: `splitlines` would also split at other separators.
    return path.read_bytes().split(b"\n")[:-1]


def _cut_half_written_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            os.truncate(path, complete)


def read_lines(path: Path, kind: Any) -> list[Any]:
    """The records of all complete lines; none where there is no file. Raises UserError at a line that is no `kind`."""
    records = []
    for number, line in enumerate(_complete_lines(path), start=1):
        try:
            records.append(_decode_numbers(line, kind))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}:{number}: not a record of this version of headrace ({error}); remove the line"
            ) from error
    return records


def read_record(path: Path, kind: type[Record], null_is_nan: bool = False) -> Record:
    """The one record that a file holds. Raises UserError when it is no `kind`, OSError when it cannot be read.

    `null_is_nan`: the record has numbers that may be nan, and nothing that may be None.
    """
    content = path.read_bytes()
    try:
        return _decode_numbers(content, kind) if null_is_nan else msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not what this version of headrace writes ({error}); remove the file") from error


def _decode_numbers(content: bytes, kind: Any) -> Any:
    return msgspec.convert(_nulls_to_nan(msgspec.json.decode(content)), kind)


def _nulls_to_nan(value: Any) -> Any:
    """JSON has no nan, and msgspec writes null for it."""
    if isinstance(value, dict):
        return {key: _nulls_to_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nulls_to_nan(item) for item in value]
    return float("nan") if value is None else value


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
