"""What the `headrace` command shows around a run: its first line, its job, its status, and how it ended."""

import asyncio
import errno
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import structlog
from prometheus_client import CollectorRegistry
from ray.exceptions import RayTaskError

from headrace.cluster.cli import main
from headrace.cluster.endpoint import Endpoint, ScaleRequest
from headrace.cluster.errors import RunFailed
from headrace.cluster.job_file import load_job
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_records import RunStatus
from headrace.verifiers.errors import WrongValue
from tests.factories import member_status, run_status

STATUS = run_status(run="letters", members=[member_status("rollout-0")])


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


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of `headrace WORDS`."""
    monkeypatch.setattr(sys, "argv", ["headrace", *words])
    with pytest.raises(SystemExit) as exit_:
        main()
    return exit_.value.code or 0


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

    def run_job(*arguments: object, **options: object) -> SimpleNamespace:
        shown.append(capsys.readouterr().out)
        return SimpleNamespace()  # the summary

    assert command(run_job) == 0
    assert shown[0].endswith(" loading torch and transformers\n")


def test_a_run_that_fails_is_one_line(command, capsys):
    def fail(*arguments, **options) -> None:
        raise RunFailed("the learner's rank 0 ended")

    assert command(fail) == 1
    assert capsys.readouterr().err == "headrace: the run failed: RunFailed: the learner's rank 0 ended\n"


def test_a_value_that_an_actor_refuses_is_named_with_its_place_in_the_job_file(command, letters_job, capsys):
    def refused(*_: object, **__: object) -> None:
        error = WrongValue("model.base", "Mamba cannot be trained with shared prompts")
        raise RayTaskError("setup", "Traceback of the actor", error).as_instanceof_cause()

    assert command(refused) == 2
    line = letters_job.read_text().splitlines().index("[model]") + 2
    message = f"{letters_job}:{line}: model.base: Mamba cannot be trained with shared prompts"
    assert capsys.readouterr().err == f"headrace: {message}\n"


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


def test_a_job_is_printed_with_every_value_and_is_the_same_job_when_it_is_read_again(
    letters_job, tmp_path, monkeypatch, capsys
):
    words = ["--learner.learning-rate", "1e-4", "--job.name", "other"]
    assert called(monkeypatch, "run", str(letters_job), "--print-config", *words) == 0
    printed = tmp_path / "printed" / "job.toml"
    printed.parent.mkdir()
    printed.write_text(capsys.readouterr().out)
    job = load_job(printed)
    assert job == load_job(letters_job, words)
    assert job != load_job(letters_job)
    assert not RunFolder(tmp_path / "run").path.exists(), "nothing is started"


@pytest.fixture
async def live_run(tmp_path) -> AsyncIterator[Path]:
    """The folder of a run whose controller answers."""

    async def status() -> RunStatus:
        return STATUS

    async def scale(request: ScaleRequest) -> None:
        """No pool here has a size."""

    endpoint, folder = Endpoint(status, scale, CollectorRegistry()), RunFolder(tmp_path / "live")
    folder.path.mkdir()
    folder.write_controller(await endpoint.start("127.0.0.1", 0))
    yield folder.path
    await endpoint.close()


async def test_the_status_of_a_live_run_is_shown_with_its_members(live_run, monkeypatch, capsys):
    assert await asyncio.to_thread(called, monkeypatch, "status", str(live_run)) == 0
    shown = capsys.readouterr().out
    assert "letters" in shown
    assert "step 2/10" in shown
    assert "rollout-0  serving" in shown


async def test_the_status_of_a_live_run_as_json_is_its_record(live_run, monkeypatch, capsys):
    assert await asyncio.to_thread(called, monkeypatch, "status", str(live_run), "--json") == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=RunStatus) == STATUS


def test_the_help_opens_with_what_the_program_does(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["headrace", "--help"])
    with pytest.raises(SystemExit):
        main()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0].startswith("Usage: ")
    assert lines[1].startswith("Headrace trains language models")


def test_a_run_that_is_stopped_in_order_does_not_end_as_if_it_were_done(command):
    assert command(lambda *arguments, **options: None) == 130


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError()])
def test_a_run_that_is_stopped_at_once_says_so(command, capsys, error):
    def run_job(*arguments: object, **options: object) -> None:
        raise error

    assert command(run_job) == 130
    assert capsys.readouterr().err == "headrace: stopped\n"
