"""What the `headrace` command shows around a run: its first line, and the one that says how it ended."""

import errno
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import structlog

from headrace.cluster.cli import main
from headrace.cluster.pool import RunFailed


@pytest.fixture
def command(letters_job, monkeypatch) -> Callable[[Callable[..., None]], int]:
    """`headrace run` with another `run_job`; gives the exit status."""

    def run(run_job: Callable[..., None]) -> int:
        monkeypatch.setitem(sys.modules, "headrace.cluster.trainer", SimpleNamespace(run_job=run_job))
        monkeypatch.setattr(sys, "argv", ["headrace", "run", str(letters_job)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return exit_.value.code

    return run


class FullDisk:
    def write(self, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        """Nothing is held back."""


@pytest.fixture
def full_log():
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(FullDisk()))
    yield
    structlog.reset_defaults()


def test_a_line_is_shown_before_anything_that_takes_seconds(command, capsys):
    shown = []
    assert command(lambda *arguments, **options: shown.append(capsys.readouterr().out)) == 0
    assert shown[0].endswith(" loading torch and transformers\n")


def test_a_run_that_fails_is_one_line(command, capsys):
    def fail(*arguments, **options) -> None:
        raise RunFailed("the learner's rank 0 ended")

    assert command(fail) == 1
    assert capsys.readouterr().err == "headrace: the run failed: RunFailed: the learner's rank 0 ended\n"


def test_a_full_disk_is_one_line(command, capsys):
    def fail(*arguments, **options) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert command(fail) == 1
    assert capsys.readouterr().err == "headrace: the run failed: OSError: [Errno 28] No space left on device\n"


def test_a_run_that_fails_is_said_first_and_then_that_the_log_cannot_be_written(command, capsys, full_log):
    def fail(*arguments, **options) -> None:
        raise RunFailed("the learner's rank 0 ended")

    assert command(fail) == 1
    assert capsys.readouterr().err.splitlines() == [
        "headrace: the run failed: RunFailed: the learner's rank 0 ended",
        "headrace: and its trace cannot be written to the log: No space left on device",
    ]


def test_the_help_opens_with_what_the_program_does(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["headrace", "--help"])
    with pytest.raises(SystemExit):
        main()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0].startswith("Usage: ")
    assert lines[1].startswith("Headrace trains language models")
