from __future__ import annotations

import errno
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from headrace.cluster.run_folder import InputDigest, RunData, RunFolder, atomic_write
from headrace.cluster.run_records import SampleRecord
from headrace.verifiers.errors import UserError
from tests.factories import evaluation_record, sample_record, step_record, summary


class Address(msgspec.Struct, frozen=True):
    url: str
    token: str


def sample(at: int) -> SampleRecord:
    # A form feed and a line separator: `str.splitlines` would cut the record in two here.
    return sample_record(step=at, prompt="say\x0c \u2028hi", reward=math.nan)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "demo")
    folder.create()
    folder.write_job("[job]\n")
    return folder


def test_what_is_written_is_read_back(folder: RunFolder) -> None:
    folder.append_metrics(evaluation_record("before", 0))
    folder.append_metrics(step_record(1))
    folder.append_samples([sample(1), sample(1)])
    assert folder.read_metrics() == [evaluation_record("before", 0), step_record(1)]
    assert [record.prompt for record in folder.read_samples()] == [sample(1).prompt] * 2
    assert math.isnan(folder.read_samples()[0].reward)


def test_a_reward_that_is_no_number_is_read_back_as_nan(folder: RunFolder) -> None:
    folder.append_metrics(step_record(1, reward_mean=math.nan))
    assert math.isnan(folder.read_metrics()[0].reward_mean)  # type: ignore[union-attr]


def test_a_folder_that_holds_a_run_is_refused_without_resume(folder: RunFolder) -> None:
    folder.close()
    with pytest.raises(UserError, match="--resume"):
        RunFolder(folder.path).create()


def test_resume_of_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to resume"):
        RunFolder(tmp_path).create(resume=True)


def test_a_run_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        RunFolder(tmp_path / "file").create()
    with pytest.raises(UserError, match="cannot be made"):
        RunFolder(tmp_path / "file" / "run").create()


def test_a_run_that_a_live_process_writes_is_refused_until_that_process_ends(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from headrace.cluster.run_folder import RunFolder
folder = RunFolder(Path({str(tmp_path)!r}))
folder.create()
folder.write_job("")
print("up", flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        with pytest.raises(UserError, match="another process"):
            RunFolder(tmp_path).create(resume=True)
        process.kill()
        process.wait(timeout=10)
    RunFolder(tmp_path).create(resume=True)


def test_resume_cuts_a_half_written_last_line_and_goes_on_after_it(folder: RunFolder) -> None:
    folder.append_metrics(step_record(1))
    folder.close()
    with folder.metrics.open("ab") as file:
        file.write(b'{"event":"step","st')
    assert folder.read_metrics() == [step_record(1)]

    resumed = RunFolder(folder.path)
    resumed.create(resume=True)
    resumed.append_metrics(step_record(2))
    assert resumed.read_metrics() == [step_record(1), step_record(2)]


def test_rewind_drops_what_came_after_the_resumed_step(folder: RunFolder) -> None:
    folder.append_metrics(evaluation_record("warm", 0))
    for number in (1, 2, 3):
        folder.append_metrics(step_record(number))
        folder.append_samples([sample(number)])
    folder.write_summary(summary())
    folder.rewind(2)
    assert folder.read_summary() is None
    folder.append_metrics(step_record(3, reward_mean=0.9))
    assert folder.read_metrics() == [
        evaluation_record("warm", 0),
        step_record(1),
        step_record(2),
        step_record(3, reward_mean=0.9),
    ]
    assert [record.step for record in folder.read_samples()] == [1, 2]


def test_a_line_that_is_no_record_is_named_by_file_and_number(folder: RunFolder) -> None:
    folder.append_metrics(step_record(1))
    with folder.metrics.open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: "):
        folder.read_metrics()


def test_the_summary_is_absent_until_written(folder: RunFolder) -> None:
    assert folder.read_summary() is None
    folder.write_summary(summary())
    assert folder.read_summary() == summary()


def test_only_the_owner_may_read_where_the_controller_listens(folder: RunFolder) -> None:
    address = Address("http://127.0.0.1:4000", "secret")
    folder.write_controller(address)
    assert stat.S_IMODE(folder.controller.stat().st_mode) == 0o600
    assert folder.read_controller(Address) == address


def test_a_missing_controller_is_the_users_error(folder: RunFolder) -> None:
    with pytest.raises(UserError, match="live run"):
        folder.read_controller(Address)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    atomic_write(path, b"old")
    with pytest.raises(TypeError):
        atomic_write(path, "text is not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_made_is_named_with_the_reason(tmp_path: Path, monkeypatch, code: int) -> None:
    def refuse(*arguments, **options) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=rf"run: the run folder cannot be made \({os.strerror(code)}\); choose another"):
        RunFolder(tmp_path / "run").create()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_path_that_can_be_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"the run folder cannot be made|cannot be a run's folder"):
        RunFolder(tmp_path / name).create()


def test_what_a_run_learns_from_is_kept_with_it(folder: RunFolder) -> None:
    with pytest.raises(UserError, match=r"data\.json: missing, .*; put it back, or start another run"):
        folder.read_data()
    data = RunData(
        [InputDigest("data.train", "/data/train.jsonl", "0a"), InputDigest("reward.function", "/r.py", "1b")]
    )
    folder.write_data(data)
    assert folder.read_data() == data
    data.check_unchanged(data, folder.data)
    with pytest.raises(UserError, match=r"reward\.function: /r\.py is not what it was"):
        data.check_unchanged(RunData(data.files[:1]), folder.data)


@pytest.mark.parametrize("name", ["data.json", "samples.jsonl", "ledger.jsonl", "model", "report.html"])
def test_what_a_user_has_under_a_name_that_a_run_writes_is_not_written_over(tmp_path, name):
    (tmp_path / name).write_text('{"prompt": "a"}\n{"prompt": "b"}')
    with pytest.raises(UserError, match=f"holds {name}, which a run would write over"):
        RunFolder(tmp_path).create()
    assert (tmp_path / name).read_text() == '{"prompt": "a"}\n{"prompt": "b"}'
