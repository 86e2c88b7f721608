"""What a resumed job may change, and what a running one is asked."""

import asyncio
import io
from contextlib import nullcontext

import pytest
from rich.console import Console

from headrace.cluster import trainer
from headrace.cluster.checkpoint import CheckpointState, CheckpointStore
from headrace.cluster.display import PlainDisplay
from headrace.cluster.endpoint import ScaleRequest
from headrace.cluster.job_file import dump_job, load_job
from headrace.cluster.preparation import prepare
from headrace.cluster.ray_cluster import ClusterInfo
from headrace.cluster.rollout_queue import Ledger
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.trainer import (
    check_compatible,
    cut_notice,
    on_interrupt,
    run_job,
    scaler,
    schedule_notice,
    too_long_notice,
    watched,
)
from headrace.cluster.waits import Stopped
from headrace.verifiers.errors import UserError

SMALL_ENGINE = "headrace.actors.small_engine:SmallEngine"


def test_a_run_without_a_folder_of_its_own_is_named_after_the_job(letters_job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    letters_job.write_text(letters_job.read_text().replace(f'run_dir = "{tmp_path / "run"}"\n', ""))
    assert RunFolder.of(load_job(letters_job)).path == tmp_path / "runs/letters"


@pytest.fixture
def started(letters_job) -> RunFolder:
    """The folder of a run of the job."""
    folder = RunFolder(letters_job.parent / "run")
    folder.path.mkdir()
    folder.write_job(dump_job(load_job(letters_job)))
    return folder


def test_the_same_job_resumes(letters_job, started):
    check_compatible(load_job(letters_job), load_job(started.job), started)


@pytest.mark.parametrize(
    "words",
    [
        ["--job.steps", "900", "--checkpoint.every", "7", "--evaluation.every", "3"],
        ["--rollout.generators", "4", "--rollout.threads", "0-3", "--verification.workers", "3"],
        ["--learner.ranks", "2", "--learner.max-tokens-per-pack", "512", "--weight-sync.timeout-seconds", "5"],
        ["--rollout.engines-per-node", "2", "--rollout.tensor-parallel-size", "2", "--rollout.kv-cache-bytes", "9999"],
        ["--learner.activation-checkpointing", "true", "--job.run-dir", "elsewhere", "--metrics.port", "9000"],
    ],
)
def test_how_a_job_runs_may_change_when_it_resumes(letters_job, started, words):
    check_compatible(load_job(letters_job, words), load_job(started.job), started)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--data.prompt-field", "question"], "data.prompt_field"),
        (["--rollout.temperature", "0.7"], "rollout.temperature"),
        (["--learner.learning-rate", "1"], "learner.learning_rate"),
        (["--algorithm.groups-per-step", "5"], "algorithm.groups_per_step"),
        (["--weight-sync.rounding", "nearest"], "weight_sync.rounding"),
    ],
)
def test_what_a_job_learns_may_not_change_when_it_resumes(letters_job, started, words, key):
    with pytest.raises(UserError, match=rf"^--resume: {key} is ") as error:
        check_compatible(load_job(letters_job, words), load_job(started.job), started)
    assert str(started.path) in str(error.value)


class ClusterWanted(Exception):
    """The job was not refused."""


@pytest.fixture
def resume(letters_job, started, monkeypatch):
    """Take up the run in the folder, as far as the cluster."""

    def no_cluster(job, interrupts) -> None:
        raise ClusterWanted

    monkeypatch.setattr(trainer, "ray_cluster", no_cluster)
    display = PlainDisplay(Console(quiet=True), lambda: 0.0)
    return lambda: run_job(load_job(letters_job), resume=True, display=display, engine_class=SMALL_ENGINE)


@pytest.mark.parametrize(
    ("file", "text", "key"),
    [
        ("train.jsonl", '{"prompt": "another"}\n', "data.train"),
        ("rewards.py", "def score(completion, row):\n    return 0.5\n", "reward.function"),
    ],
)
def test_a_run_is_not_resumed_on_other_data(letters_job, started, resume, file, text, key):
    started.write_data(prepare(load_job(letters_job)).data)
    with pytest.raises(ClusterWanted):
        resume()
    path = letters_job.parent / file
    path.write_text(text)
    with pytest.raises(
        UserError, match=rf"^--resume: {key}: {path} is not what it was when the run started; "
    ) as error:
        resume()
    assert str(error.value).endswith(f"put it back as {started.data} has it, or start another run with --job.run-dir")


def test_a_run_whose_record_of_its_data_is_gone_is_not_resumed(started, resume):
    assert not started.data.exists()
    with pytest.raises(UserError, match=rf"^{started.data}: missing, .* start another run with --job.run-dir$"):
        resume()


@pytest.mark.parametrize(
    ("schedule", "step", "steps", "says"),
    [
        (
            "linear",
            2,
            30,
            "job.steps is 30, and was 3: the linear schedule now ends there, and the learning rate goes on ",
        ),
        ("cosine", 3, 30, "the cosine schedule now ends there"),
        ("linear", 2, 3, None),
        ("constant", 2, 30, None),
        ("linear", 3, 2, None),  # nothing is learned any more
    ],
)
def test_more_steps_bend_the_schedule_of_a_resumed_run_and_that_is_said(letters_job, schedule, step, steps, says):
    words = ["--learner.schedule", schedule]
    notice = schedule_notice(
        load_job(letters_job, words), load_job(letters_job, [*words, f"--job.steps={steps}"]), step
    )
    assert (notice is None) if says is None else (says in notice)
    if schedule == "linear" and steps == 30:
        assert notice.endswith(" with 0.000938 instead of 0.0001")


def test_the_notice_of_a_bent_schedule_is_an_event_of_the_run(letters_job, started, monkeypatch):
    letters_job.write_text(letters_job.read_text().replace("[learner]", '[learner]\nschedule = "linear"'))
    started.write_job(dump_job(load_job(letters_job)))
    started.write_data(prepare(load_job(letters_job)).data)
    store = CheckpointStore(started.checkpoints, 2)
    store.begin(2)
    store.complete(
        CheckpointState(2, 1.0, Ledger(cursor=0, outstanding=[], trained=0, filtered=0, dropped=0, version=2))
    )
    monkeypatch.setattr(trainer, "ray_cluster", lambda job, interrupts: nullcontext(ClusterInfo(True, frozenset())))

    async def no_run(*arguments: object) -> None:
        return None

    monkeypatch.setattr(trainer, "_run", no_run)
    output = io.StringIO()
    display = PlainDisplay(Console(file=output, width=300), lambda: 0.0)
    job = load_job(letters_job, ["--job.steps", "30"])
    run_job(job, resume=True, display=display, engine_class=SMALL_ENGINE)
    assert "warning: job.steps is 30, and was 3: the linear schedule now ends there" in output.getvalue()
    assert "the linear schedule now ends there" in (started.logs / "controller.jsonl").read_text()


def test_prompts_that_do_not_fit_are_counted_and_listed_by_row(letters_job):
    rows = ['{"prompt": "a"}', *['{"prompt": "' + "x" * 200 + '"}'] * 2]
    (letters_job.parent / "train.jsonl").write_text("\n".join(rows) + "\n")
    notice = too_long_notice(prepare(load_job(letters_job)).train)
    assert notice == "train.jsonl: 2 prompt(s) are longer than the context and left out: row 2, 3"
    (letters_job.parent / "train.jsonl").write_text("\n".join([rows[0], *rows[1:2] * 30]) + "\n")
    notice = too_long_notice(prepare(load_job(letters_job)).train)
    assert notice.startswith("train.jsonl: 30 prompt(s)")
    assert notice.endswith(", 20, 21, ...; all of them in logs/controller.jsonl")


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ([], None),
        (["--rollout.top-p", "0.9"], "rollout.top_p = 0.9"),
        (["--rollout.top-k", "40"], "rollout.top_k = 40"),
        (["--rollout.top-p", "0.9", "--rollout.top-k", "40"], "rollout.top_p = 0.9 and rollout.top_k = 40"),
    ],
)
def test_sampling_from_a_cut_distribution_is_warned_of(letters_job, words, given):
    notice = cut_notice(load_job(letters_job, words).rollout)
    if given is None:
        assert notice is None
    else:
        assert notice.startswith(f"warning: {given}: ")


class FakeFleet:
    """Two pools of one member each, room for four, and the changes in their order."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, int]] = []
        self.rollout, self.verification = (FakePool(name, self.changes) for name in ("rollout", "verification"))

    async def check_room(self, generators: int, workers: int) -> None:
        if generators + workers > 4:
            raise UserError("no place for the fifth")


class FakePool:
    def __init__(self, name: str, changes: list[tuple[str, int]]) -> None:
        self.target = 1
        self._name, self._changes = name, changes

    async def scale(self, target: int) -> None:
        self.target = target
        self._changes.append((self._name, target))


async def test_a_scale_request_reaches_the_pools_that_it_names():
    fleet = FakeFleet()
    scale = scaler(fleet)
    await scale(ScaleRequest(rollout=3))
    await scale(ScaleRequest(verification=1))
    assert fleet.changes == [("rollout", 3), ("verification", 1)]


@pytest.mark.parametrize("request_", [ScaleRequest(2, 3), ScaleRequest(4, 1), ScaleRequest(1, 4)])
async def test_a_scale_request_of_which_a_part_has_no_room_changes_nothing(request_):
    fleet = FakeFleet()
    with pytest.raises(UserError, match="no place for"):
        await scaler(fleet)(request_)
    assert fleet.changes == []


async def test_one_pool_makes_room_for_the_other():
    fleet = FakeFleet()
    scale = scaler(fleet)
    await scale(ScaleRequest(3, 1))
    await scale(ScaleRequest(1, 3))
    await scale(ScaleRequest(3, 1))
    assert fleet.changes[2:] == [("rollout", 1), ("verification", 3), ("verification", 1), ("rollout", 3)]


async def saves_when_stopped(stop: asyncio.Event, saved: list[str]) -> None:
    await stop.wait()
    saved.append("checkpoint")
    raise Stopped


async def test_a_run_whose_watching_fails_is_stopped_in_order_and_told_why():
    stop, saved = asyncio.Event(), list[str]()

    async def watch() -> None:
        raise OSError("no space left on device")

    running, watching = asyncio.create_task(saves_when_stopped(stop, saved)), asyncio.create_task(watch())
    with pytest.raises(OSError, match="no space left"):
        await watched(running, watching, stop.set)
    assert saved == ["checkpoint"]


async def test_a_run_ends_with_its_own_failure_while_it_is_watched():
    stop = asyncio.Event()
    stop.set()
    watching = asyncio.create_task(asyncio.Event().wait())
    with pytest.raises(Stopped):
        await watched(asyncio.create_task(saves_when_stopped(stop, [])), watching, stop.clear)
    watching.cancel()


class FakeController:
    def __init__(self) -> None:
        self.stop_asked = asyncio.Event()

    def request_stop(self) -> None:
        self.stop_asked.set()


class FakeRecorder:
    def __init__(self, steps_done: int) -> None:
        self.steps_done = steps_done
        self.events: list[str] = []

    def event(self, message: str) -> None:
        self.events.append(message)


@pytest.mark.parametrize(
    ("steps_done", "says"), [(0, "nothing is saved before the first step is done"), (3, "with a checkpoint")]
)
async def test_an_interrupt_stops_in_order_and_a_second_one_at_once(steps_done, says):
    controller, recorder = FakeController(), FakeRecorder(steps_done)
    main = asyncio.create_task(asyncio.Event().wait())
    interrupt = on_interrupt(controller, recorder, main)
    interrupt()
    assert controller.stop_asked.is_set()
    assert main.cancelling() == 0
    assert recorder.events == [f"stopping after what is under way; {says}; once more to stop at once"]
    interrupt()
    await asyncio.wait({main}, timeout=5)
    assert main.cancelled()
