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

from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_records import StepRecord

HOST = "127.0.0.1"
SECONDS = 240.0
BIN = Path(sys.executable).parent
TOO_LARGE = ["--rollout.cpus", "64"]
PROGRAM = """
import sys
from pathlib import Path
from headrace.cluster.job_file import load_job
from headrace.cluster.trainer import run_job
if __name__ == "__main__":
    run_job(load_job(Path(sys.argv[1])), engine_class="headrace.actors.small_engine:SmallEngine")
"""


class RunningCluster(msgspec.Struct, frozen=True):
    address: str  # what RAY_ADDRESS names
    dashboard: str  # where jobs are submitted
    token: dict[str, str]  # environment with which it lets a process in

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
        running = RunningCluster(f"{HOST}:{port}", f"http://{HOST}:{dashboard}", token)
        wait_for_the_dashboard(running, head, log)
        yield running
    finally:
        end_cluster(head, mark)
        shutil.rmtree(scratch, ignore_errors=True)


def wait_for_the_dashboard(cluster: RunningCluster, head: subprocess.Popen, log: Path) -> None:
    host, port = cluster.dashboard.removeprefix("http://").split(":")
    end = time.monotonic() + SECONDS
    while True:
        assert head.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        try:
            with socket.create_connection((host, int(port)), timeout=1):
                return
        except OSError:
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


def test_a_submitted_job_trains_on_the_running_cluster(cluster, letters_job):
    program = letters_job.parent / "program.py"
    program.write_text(PROGRAM)
    done = cluster.submit(sys.executable, str(program), str(letters_job))
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    folder = RunFolder(letters_job.parent / "run")
    steps = [record.step for record in folder.read_metrics() if isinstance(record, StepRecord)]
    assert steps == [1, 2, 3]
    assert folder.read_summary().steps == 3


@pytest.fixture
def command_job(letters_job) -> Path:
    """For the command, whose engine is vLLM."""
    letters_job.write_text(letters_job.read_text().replace("slots = 16", "max_num_seqs = 16"))
    return letters_job


def test_a_submitted_job_that_does_not_fit_says_which_bundle_is_missing(cluster, command_job):
    done = cluster.submit(str(BIN / "headrace"), "run", str(command_job), *TOO_LARGE)
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
    nowhere = RunningCluster(f"{HOST}:{port}", "", {})
    start = time.monotonic()
    done = nowhere.run(str(BIN / "headrace"), "run", str(command_job), RAY_ADDRESS=nowhere.address)
    assert done.returncode == 2
    assert done.stderr == f"headrace: RAY_ADDRESS: no Ray cluster at '{HOST}:{port}': connection refused\n"
    assert time.monotonic() - start < 60
