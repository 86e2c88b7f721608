from __future__ import annotations

import math
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from headrace.cluster.run_folder import RunFolder, atomic_write
from headrace.cluster.run_records import EvaluationRecord, GroupCounts, Interval, SampleRecord, StepRecord, Summary
from headrace.verifiers.errors import UserError


class Address(msgspec.Struct, frozen=True):
    url: str
    token: str


def step(number: int, reward: float = 0.5) -> StepRecord:
    return StepRecord(
        step=number,
        time=1e9 + number,
        elapsed_seconds=10.0 * number,
        reward_mean=reward,
        reward_std=0.1,
        pass_rate=0.4,
        completion_tokens_mean=40,
        truncated_share=0.0,
        staleness_mean=0.5,
        staleness_max=1,
        groups_trained=7,
        groups_filtered=1,
        groups_dropped=0,
        samples=32,
        generated_tokens=1280,
        learner_tokens=2100,
        samples_per_second=3.2,
        generated_tokens_per_second=128,
        learner_tokens_per_second=210,
        loss=-0.01,
        grad_norm=0.7,
        learning_rate=1e-5,
        kl=0.0,
        mismatch_kl=0.001,
        clip_share=0.01,
        tis_truncated_share=0.0,
        effective_sample_share=0.98,
        entropy=0.6,
        phases={"wait": 4.0, "forward": 3.0},
        busy={"rollout": 0.8},
        queue_ready=8,
        queue_leased=8,
    )


def evaluation(label: str, at: int) -> EvaluationRecord:
    interval = Interval(0.4, 0.3, 0.5)
    return EvaluationRecord(label, at, 1e9, 5.0, interval, interval, 0.3, 0.3, 100, 200, 20.0)


def sample(at: int) -> SampleRecord:
    # A form feed and a line separator: `str.splitlines` would cut the record in two here.
    return SampleRecord("train", at, at, "0:3", "say\x0c \u2028hi", "hi", math.nan, "infra_error", "timeout", "g-0")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "demo")
    folder.create()
    folder.write_job("[job]\n")
    return folder


def test_what_is_written_is_read_back(folder: RunFolder) -> None:
    folder.append_metrics(evaluation("before", 0))
    folder.append_metrics(step(1))
    folder.append_samples([sample(1), sample(1)])
    assert folder.read_metrics() == [evaluation("before", 0), step(1)]
    assert [record.prompt for record in folder.read_samples()] == [sample(1).prompt] * 2
    assert math.isnan(folder.read_samples()[0].reward)


def test_a_reward_that_is_no_number_is_read_back_as_nan(folder: RunFolder) -> None:
    folder.append_metrics(step(1, reward=math.nan))
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
    folder.append_metrics(step(1))
    folder.close()
    with folder.metrics.open("ab") as file:
        file.write(b'{"event":"step","st')
    assert folder.read_metrics() == [step(1)]

    resumed = RunFolder(folder.path)
    resumed.create(resume=True)
    resumed.append_metrics(step(2))
    assert resumed.read_metrics() == [step(1), step(2)]


def test_rewind_drops_what_came_after_the_resumed_step(folder: RunFolder) -> None:
    folder.append_metrics(evaluation("warm", 0))
    for number in (1, 2, 3):
        folder.append_metrics(step(number))
        folder.append_samples([sample(number)])
    folder.rewind(2)
    folder.append_metrics(step(3, reward=0.9))
    assert folder.read_metrics() == [evaluation("warm", 0), step(1), step(2), step(3, reward=0.9)]
    assert [record.step for record in folder.read_samples()] == [1, 2]


def test_a_line_that_is_no_record_is_named_by_file_and_number(folder: RunFolder) -> None:
    folder.append_metrics(step(1))
    with folder.metrics.open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: "):
        folder.read_metrics()


def test_the_summary_is_absent_until_written(folder: RunFolder) -> None:
    assert folder.read_summary() is None
    summary = Summary(None, None, None, None, 3, 60.0, 1.0, 120.0, 140.0, 3, 1, GroupCounts(20, 4, 0), 2**33, None)
    folder.write_summary(summary)
    assert folder.read_summary() == summary


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
