"""One run with real vLLM engines: scaled from one to two, one of them killed, stopped by Ctrl-C, nothing left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from headrace.cluster.checkpoint import CheckpointStore

REPOSITORY = Path(__file__).parents[2]
# A tiny model, so that the engines are what takes time; the demo model is the demo's.
JOB = f"""
[job]
name = "real"
steps = 100000
[model]
base = "MODEL"
max_length = 256
[data]
train = "{REPOSITORY}/examples/booking/train.jsonl"
[reward]
verifier = "weighted_sum"
[[reward.options.parts]]
verifier = "tool_call"
options = {{ schema_path = "{REPOSITORY}/examples/booking/tools.json", form = "json" }}
[[reward.options.parts]]
function = "{REPOSITORY}/benchmarks/rewards.py:distinct"
[algorithm]
group_size = 2
groups_per_step = 2
[rollout]
max_tokens = 16
engine = {{ max_num_seqs = 8, block_size = 32 }}
kv_cache_bytes = 268435456
[checkpoint]
every = 0
"""


@pytest.mark.timeout(600)
def test_an_engine_is_added_and_a_killed_one_replaced_while_the_run_goes_on(
    tmp_path, tiny_model, run_driver, shared_memory
):
    job = tmp_path / "job.toml"
    job.write_text(JOB.replace("MODEL", str(tiny_model)))
    command = [str(Path(sys.executable).with_name("headrace")), "run", str(job), "--job.run-dir", str(tmp_path / "run")]
    run = run_driver(command, tmp_path / "run", tmp_path / "output.log")
    run.until(lambda status: status.step >= 1, "at step 1")
    scaling = subprocess.run(
        [*command[:1], "scale", str(tmp_path / "run"), "--rollout", "2"], capture_output=True, text=True, check=True
    )
    assert "rollout" in scaling.stdout
    both = run.until(lambda status: len(run.serving(status, "rollout")) == 2, "two engines serving")
    victim = run.serving(both, "rollout")[0]
    engine = psutil.Process(victim.pid).children(recursive=True)
    assert engine, "an engine is processes of its own"
    os.kill(victim.pid, signal.SIGKILL)
    healed = run.until(
        lambda status: (
            len(run.serving(status, "rollout")) == 2
            and victim.name not in {member.name for member in run.serving(status, "rollout")}
        ),
        "the killed engine replaced",
    )
    assert psutil.wait_procs(engine, timeout=30)[1] == [], "the dead generator's engine processes live on"
    assert all(member.version is not None for member in run.serving(healed, "rollout"))
    run.until(lambda status: status.step >= healed.step + 2, "two more steps")
    assert {"controller", "learner-0", "verification-0"} < {target.labels["member"] for target in run.targets()}
    for member in run.serving(healed, "rollout"):
        metrics = run.metrics(member.name)
        assert any(name.startswith("vllm:") for name in metrics), "the engine's own"
        assert "headrace_generator_tokens" in metrics
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 130, run.output.read_text()[-3000:]
    saved = CheckpointStore(run.folder.checkpoints, 1).newest()
    assert saved is not None and saved.state.step == len(run.steps())
    reasons = {record.reason for record in run.folder.read_samples()}
    assert reasons and reasons <= {"no_call", "malformed_call", "extra_text"}, "the tool_call part's own"
    trained = run.trained()
    assert len(trained) == len(set(trained)) == 2 * len(run.steps())
    assert run.left_behind() == []
    assert shared_memory.left() == set()
