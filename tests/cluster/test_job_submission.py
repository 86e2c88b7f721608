"""A job on a Ray cluster that runs already: by `ray job submit -- headrace run JOB.toml`, or beside it with `RAY_ADDRESS`.

The cluster is started here, on this machine, with a token of its own, and ended by the ids of its processes.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_records import StepRecord

HOST = "127.0.0.1"
SECONDS = 240.0
BIN = Path(sys.executable).parent
STARTED = "Ray runtime started."  # what `ray start` says last
STEPS = 2
ACTORS = ("Generator", "LearnerWorker", "QueueActor", "VerificationWorker")
TOO_LARGE = ["--rollout.cpus", "64"]


class Actor(msgspec.Struct, frozen=True):
    """A line of `ray list actors`."""

    class_name: str
    state: str


class RunningCluster(msgspec.Struct, frozen=True):
    address: str  # what RAY_ADDRESS names
    dashboard: str  # where jobs are submitted
    token: dict[str, str]  # environment with which it lets a process in
    mark: str  # a variable, as NAME=value, that only its processes have

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of a user of the cluster, to its end."""
        rest = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return subprocess.run(
            command,
            env={**rest, **self.token, **environment},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def submit(self, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit`, which follows the job to its end."""
        return self.run(str(BIN / "ray"), "job", "submit", "--address", self.dashboard, "--", *entrypoint)

    def actors(self) -> set[Actor]:
        """All that it has had, but for those with which Ray itself follows submitted jobs."""
        listed = self.run(str(BIN / "ray"), "list", "actors", "--address", self.dashboard, "--format", "json")
        assert listed.returncode == 0, listed.stderr
        return {
            actor
            for actor in msgspec.json.decode(listed.stdout, type=list[Actor])
            if actor.class_name != "JobSupervisor"
        }

    def processes(self) -> set[psutil.Process]:
        """The nodes' own, and whatever was started from there."""
        return {process for process in psutil.process_iter() if carries(process, self.mark)}


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listened on a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind((HOST, 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[RunningCluster]:
    """A head node of four CPUs with its dashboard."""
    port, dashboard, agent, agent_rpc, client = free_ports(5)
    scratch = tempfile.mkdtemp(prefix="hr-")  # short: sockets lie in it
    mark = f"HEADRACE_TEST_CLUSTER={uuid.uuid4().hex}"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex + uuid.uuid4().hex}
    environment = {**os.environ, **dict([mark.split("=")]), **token}
    environment.pop("RAY_ADDRESS", None)
    environment["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # as in an activated environment
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address", HOST, "--port", str(port), "--temp-dir", scratch),
        *("--dashboard-host", HOST, "--dashboard-port", str(dashboard), "--include-dashboard", "true"),
        *("--dashboard-agent-listen-port", str(agent), "--dashboard-agent-grpc-port", str(agent_rpc)),
        *("--ray-client-server-port", str(client), "--min-worker-port", "0", "--max-worker-port", "0"),
        *("--num-cpus", "4", "--object-store-memory", str(200 * 2**20)),
    ]
    log = Path(scratch) / "head.log"
    with log.open("wb") as output:
        head = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        wait_until_started(head, log)
        yield RunningCluster(f"{HOST}:{port}", f"http://{HOST}:{dashboard}", token, mark)
    finally:
        end_cluster(head, mark)
        shutil.rmtree(scratch, ignore_errors=True)


def wait_until_started(head: subprocess.Popen, log: Path) -> None:
    """Until all processes of the node are there; the dashboard is among the first of them."""
    end = time.monotonic() + SECONDS
    while STARTED not in log.read_text():
        assert head.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        pause(head, 0.2)


def pause(process: subprocess.Popen, seconds: float) -> None:
    """Between two looks, but no longer than the process lives."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def end_cluster(head: subprocess.Popen, mark: str) -> None:
    """`ray stop` would end every cluster of the machine; this ends the processes that carry our mark."""
    head.terminate()
    pause(head, 30)
    family = [process for process in psutil.process_iter() if carries(process, mark)]
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=30)


def carries(process: psutil.Process, mark: str) -> bool:
    name, value = mark.split("=")
    try:
        return process.environ().get(name) == value
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return False


@pytest.fixture
def command_job(letters_job) -> Path:
    """For the command, whose engine is vLLM."""
    engine = "engine = { max_num_seqs = 16 }\nkv_cache_bytes = 67108864"
    text = letters_job.read_text().replace("steps = 3", f"steps = {STEPS}").replace("engine = { slots = 16 }", engine)
    letters_job.write_text(text)
    return letters_job


def test_a_submitted_job_trains_on_the_running_cluster_and_leaves_nothing_on_it(
    cluster, command_job, tiny_model, shared_memory
):
    before = cluster.processes()
    done = cluster.submit("headrace", "run", str(command_job))
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert f"step {STEPS}/{STEPS}: reward" in output, "the submission shows how it goes"
    folder = RunFolder(command_job.parent / "run")
    steps = [record for record in folder.read_metrics() if isinstance(record, StepRecord)]
    assert [record.step for record in steps] == list(range(1, STEPS + 1))
    summary = folder.read_summary()
    assert (summary.steps, summary.groups.trained, summary.model) == (STEPS, STEPS * 4, str(folder.model))
    assert summary.before and summary.after and summary.gain
    assert differ(folder.model, tiny_model), "the exported model is the one that it began with"
    assert folder.report.exists() and folder.read_samples()
    assert cluster.actors() == {Actor(name, "DEAD") for name in ACTORS}
    assert psutil.wait_procs(cluster.processes() - before, timeout=30)[1] == []
    assert shared_memory.left() == set()


def differ(one: Path, other: Path) -> bool:
    """Whether two models of one shape have different weights."""
    one_state, other_state = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (one, other))
    assert one_state.keys() == other_state.keys()
    return any(not torch.equal(one_state[name], other_state[name]) for name in one_state)


def test_a_submitted_job_that_does_not_fit_says_which_bundle_is_missing(cluster, command_job):
    done = cluster.submit("headrace", "run", str(command_job), *TOO_LARGE)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "headrace: the job does not fit the cluster: no place for rollout-0 (64 CPU)" in output
    assert "exit code 2" in output


def test_the_command_asks_the_cluster_of_ray_address_what_it_has(cluster, command_job):
    start = time.monotonic()
    done = cluster.run(str(BIN / "headrace"), "run", str(command_job), *TOO_LARGE, RAY_ADDRESS=cluster.address)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("headrace: the job does not fit the cluster: no place for rollout-0 (64 CPU)")
    assert re.search(r"node \S+: 4 CPU", done.stderr), "the cluster's CPUs, and not this machine's"
    assert time.monotonic() - start < 60
    assert not (command_job.parent / "run").exists(), "a refused job must not claim the run folder"


def test_an_address_where_no_cluster_answers_is_one_line_at_once(command_job):
    (port,) = free_ports(1)
    nowhere = RunningCluster(f"{HOST}:{port}", "", {}, "")
    start = time.monotonic()
    done = nowhere.run(str(BIN / "headrace"), "run", str(command_job), RAY_ADDRESS=nowhere.address)
    assert done.returncode == 2
    assert done.stderr == f"headrace: RAY_ADDRESS: no Ray cluster at '{HOST}:{port}': connection refused\n"
    assert time.monotonic() - start < 60
