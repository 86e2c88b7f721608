"""Whole runs on the tiny model, through a Ray cluster of their own, with everything real but the inference engine."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from headrace.cluster.checkpoint import CheckpointStore
from headrace.cluster.endpoint import ScaleRequest
from headrace.cluster.metrics import QUEUE_METRICS
from headrace.cluster.run_records import StepRecord

AT_ONCE_SECONDS = 60.0  # Ray's own processes are ended by then, or killed

PROGRAM = """
import asyncio
import sys
from pathlib import Path
from headrace.cluster.job_file import load_job
from headrace.cluster.trainer import run_job
if __name__ == "__main__":
    resume = "--resume" in sys.argv
    words = [word for word in sys.argv[2:] if word != "--resume"]
    job = load_job(Path(sys.argv[1]), words)
    try:
        summary = run_job(job, resume=resume, engine_class="headrace.actors.small_engine:SmallEngine")
    except asyncio.CancelledError:  # as headrace.cluster.cli does
        sys.exit(130)
    sys.exit(130 if summary is None else 0)
"""


@pytest.fixture
def start(letters_job, run_driver):
    program = letters_job.parent / "program.py"
    program.write_text(PROGRAM)

    def start_run(*words: str):
        command = [sys.executable, str(program), str(letters_job), *words]
        return run_driver(command, letters_job.parent / "run", letters_job.parent / "output.log")

    return start_run


def test_a_run_warms_up_trains_evaluates_checkpoints_and_exports(start, letters_job, tmp_path):
    examples = [{"prompt": f"say {index}", "completion": "abcdefgh"} for index in range(4)]
    (letters_job.parent / "warm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    with letters_job.open("a") as job:
        job.write('[warm_start]\ndata = "warm.jsonl"\nepochs = 8\nlearning_rate = 3e-2\n')
    run = start()
    assert run.finish() == 0, run.output.read_text()[-3000:]
    assert [record.step for record in run.steps()] == [1, 2, 3]
    assert all(record.staleness_max <= 1 for record in run.steps())
    # The engine and the learner compute in float32 on the same weights: their log-probabilities are one.
    assert all(record.mismatch_kl < 1e-3 for record in run.steps() if record.staleness_max == 0)
    trained = run.trained()
    assert len(trained) == len(set(trained)) == 12
    summary = json.loads(run.folder.summary.read_text())
    assert summary["steps"] == 3
    assert summary["weight_syncs"] == 4, "the warm start's, and one of each step"
    before, warm, after = (summary[label]["sampled"]["reward"] for label in ("before", "warm", "after"))
    assert warm > before, "the examples are letters, which is what the reward is for"
    gain = summary["gain"]["sampled"]
    assert gain["reward"] == pytest.approx(after - warm)
    assert gain["low"] <= gain["high"]
    output = tmp_path / "from-the-checkpoint"
    headrace = Path(sys.executable).with_name("headrace")
    subprocess.run([headrace, "export", run.folder.path, "--output", output], check=True, capture_output=True)
    exported, again = (AutoModelForCausalLM.from_pretrained(model).state_dict() for model in (summary["model"], output))
    assert exported and all(torch.equal(exported[name], again[name]) for name in exported)
    assert "reward" in run.folder.report.read_text()
    assert not run.folder.controller.exists()


def test_a_stopped_run_resumes_in_turns_and_trains_every_prompt_once(start):
    slowly = ("--rollout.engine.token-seconds", "0.02")  # generation takes longer than learning does
    run = start("--job.steps", "40", *slowly, "--checkpoint.every", "0")
    run.until(lambda status: status.step >= 3, "at step 3")
    for _ in range(2):  # the terminal closes: the system tells all of its processes, and the shell does again
        os.killpg(run.process.pid, signal.SIGHUP)
    assert run.finish() == 130, run.output.read_text()[-3000:]
    stopped_at = len(run.steps())
    saved = CheckpointStore(run.folder.checkpoints, 2).newest()
    assert saved is not None and saved.state.step == stopped_at
    assert 3 <= stopped_at < 40
    resumed = start("--job.steps", str(stopped_at + 4), *slowly, "--resume", "--placement.take-turns", "true")
    assert resumed.finish() == 0, resumed.output.read_text()[-3000:]
    assert [record.step for record in resumed.steps()] == list(range(1, stopped_at + 5))
    trained = resumed.trained()
    assert len(trained) == len(set(trained)) == 4 * (stopped_at + 4)
    assert busy_together(resumed.steps()[stopped_at:]) < 1, "in turns, one stands still while the other works"


def test_a_killed_run_resumes_from_its_newest_checkpoint_and_counts_every_prompt_once(start):
    slowly = ("--rollout.engine.token-seconds", "0.02", "--checkpoint.every", "2")
    run = start("--job.steps", "40", *slowly)
    run.until(lambda status: status.step >= 3, "at step 3")
    run.kill()  # as when the machine goes down: nothing is said or saved
    checkpoint = CheckpointStore(run.folder.checkpoints, 2).newest()
    assert checkpoint is not None
    saved = checkpoint.state.step
    resumed = start("--job.steps", str(saved + 2), *slowly, "--resume")
    assert resumed.finish() == 0, resumed.output.read_text()[-3000:]
    assert [record.step for record in resumed.steps()] == list(range(1, saved + 3))
    trained = resumed.trained()
    assert len(trained) == len(set(trained)) == 4 * (saved + 2)


def busy_together(steps: list[StepRecord]) -> float:
    """Generators and learner, as a share of the steps' time; above 1 where they work side by side."""
    busy = sum(record.seconds * (record.busy["rollout"] + record.busy["learner"]) for record in steps)
    return busy / sum(record.seconds for record in steps)


POISONED = """
import os
from pathlib import Path

def score(completion, row):
    poisoned = Path(__file__).with_name("poisoned")
    if poisoned.exists() and poisoned.read_text() == str(os.getpid()):
        raise OSError("no space left on device")
    return sum(c.islower() for c in completion) / max(1, len(completion))
"""


def test_pools_scale_and_heal_while_the_run_goes_on(start, letters_job):
    (letters_job.parent / "rewards.py").write_text(POISONED)
    run = start("--job.steps", "1000", "--checkpoint.every", "0")
    run.until(lambda status: status.step >= 1, "at step 1")
    members = {"controller", "queue", "rollout-0", "verification-0", "learner-0"}
    assert {target.labels["member"] for target in run.targets()} == members, "each process has its page"
    assert {metric.name.removesuffix("_total") for metric in QUEUE_METRICS} <= run.metrics("queue")
    run.scale(ScaleRequest(rollout=2, verification=2))
    run.until(lambda s: len(run.serving(s, "rollout")) == 2 and len(run.serving(s, "verification")) == 2, "scaled up")
    victim = run.serving(run.status(), "rollout")[0]
    os.kill(victim.pid, signal.SIGKILL)
    healed = run.until(
        lambda s: (
            len(run.serving(s, "rollout")) == 2 and victim.name not in [m.name for m in run.serving(s, "rollout")]
        ),
        "healed",
    )
    newest = max(run.serving(healed, "rollout"), key=lambda member: member.since)
    assert newest.restarts == 1
    assert newest.version is not None
    step = healed.step
    run.until(lambda status: status.step >= step + 2, "two steps after the death")
    worker = run.serving(run.status(), "verification")[0]
    (letters_job.parent / "poisoned").write_text(str(worker.pid))
    run.until(
        lambda s: len(others := [m.name for m in run.serving(s, "verification")]) == 2 and worker.name not in others,
        "without the worker whose checks fail",
    )
    run.scale(ScaleRequest(rollout=1, verification=1))
    run.until(lambda s: len(run.serving(s, "rollout")) == 1 and len(run.serving(s, "verification")) == 1, "scaled down")
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 130, run.output.read_text()[-3000:]
    assert "(MemberUnfit: checks failed in " in run.output.read_text()
    assert sum(record.groups_dropped for record in run.steps()) == 0, "no prompt was lost to it"
    trained = run.trained()
    assert len(trained) == len(set(trained)) == 4 * len(run.steps())


def test_two_learner_ranks_with_a_reference_policy_train_as_one(start):
    run = start("--learner.ranks", "2", "--algorithm.kl-coef", "0.1", "--job.steps", "2")
    assert run.finish() == 0, run.output.read_text()[-3000:]
    steps = run.steps()
    assert [record.step for record in steps] == [1, 2]
    assert steps[0].kl == pytest.approx(0.0, abs=1e-6), "before the first step the policy is the reference"
    assert steps[1].kl > 0
    assert all(record.mismatch_kl < 1e-3 for record in steps if record.staleness_max == 0)


def test_a_second_ctrl_c_ends_the_run_at_once_and_leaves_nothing(start, shared_memory):
    run = start("--job.steps", "1000", "--checkpoint.every", "0")
    run.until(lambda status: status.step >= 1, "at step 1")
    run.process.send_signal(signal.SIGINT)
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(AT_ONCE_SECONDS) == 130
    assert CheckpointStore(run.folder.checkpoints, 1).newest() is None, "one Ctrl-C saves the step, two do not"
    assert run.left_behind() == []
    assert shared_memory.left() == set()
    assert "Traceback" not in run.output.read_text()
