"""Joining or starting a cluster, with a Ray that refuses: what the user is told, and what stays behind."""

import os
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray
from ray._private import utils
from ray.exceptions import AuthenticationError
from rich.console import Console

from headrace.actors.shared_memory import SHARED_MEMORY
from headrace.cluster import ray_cluster as module
from headrace.cluster.display import PlainDisplay
from headrace.cluster.event_loop import SIGNALS, Interrupts
from headrace.cluster.job_file import load_job
from headrace.cluster.ray_cluster import RayNotStarted, ray_cluster
from headrace.cluster.trainer import run_job
from headrace.verifiers.errors import UserError

NODE = {"NodeManagerAddress": "127.0.0.1", "NodeID": "n", "Alive": True, "Resources": {"CPU": 8.0}}


class FakeRay:
    """`ray` as far as a cluster is joined and left."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.scratch: Path | None = None
        self.shutdowns = 0
        self.while_starting: Callable[[], None] = int
        self.while_ending: Callable[[], None] = int

    def init(self, _temp_dir: str | None = None, **options: object) -> None:
        if _temp_dir is not None:
            self.scratch = Path(_temp_dir)
            (self.scratch / "session").mkdir()
        self.while_starting()
        if self.failure is not None:
            raise self.failure

    def shutdown(self) -> None:
        assert self.scratch is None or self.scratch.exists(), "its processes still write there"
        self.while_ending()
        self.shutdowns += 1


@pytest.fixture
def fake(monkeypatch, tmp_path) -> FakeRay:
    fake = FakeRay()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests of this process have a cluster
    monkeypatch.setattr(ray, "init", fake.init)
    monkeypatch.setattr(ray, "shutdown", fake.shutdown)
    monkeypatch.setattr(ray, "nodes", lambda: [NODE])
    return fake


def test_a_cluster_of_our_own_leaves_no_folder(letters_job, fake):
    with ray_cluster(load_job(letters_job), Interrupts()) as cluster:
        assert cluster.is_local
        assert fake.scratch.exists()
    assert not fake.scratch.exists()
    assert fake.shutdowns == 1


HOLDER = """
import mmap, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(sys.argv[1], "w+b") as segment:
    segment.truncate(mmap.PAGESIZE)
    held = mmap.mmap(segment.fileno(), mmap.PAGESIZE)
print("ready", flush=True)
sys.stdin.read()
"""


def test_what_outlives_ray_is_ended_with_its_shared_memory(letters_job, fake, monkeypatch):
    monkeypatch.setattr(module, "END_SECONDS", 0.05)
    segment = SHARED_MEMORY / f"headrace-test-{uuid.uuid4().hex}"
    with ray_cluster(load_job(letters_job), Interrupts()):
        command = [sys.executable, "-c", HOLDER, str(segment), str(fake.scratch)]
        stubborn = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        assert stubborn.stdout.readline() == b"ready\n"
    assert not segment.exists()
    assert not psutil.pid_exists(stubborn.pid)
    assert other.poll() is None, "a process of the user's own is not ours to end"
    other.communicate(b"\n")


TOLD = """
import pathlib, signal, sys
def told(number, frame):
    pathlib.Path(sys.argv[1]).touch()
    sys.exit()
signal.signal(signal.SIGTERM, told)
print("ready", flush=True)
sys.stdin.read()
"""


def test_what_a_start_that_was_broken_off_has_started_is_told_to_end(letters_job, fake, tmp_path):
    started: list[subprocess.Popen[bytes]] = []

    def start_one_and_stop() -> None:
        command = [sys.executable, "-c", TOLD, str(tmp_path / "told"), str(fake.scratch)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert started[0].stdout.readline() == b"ready\n"
        arrive(*SIGNALS)

    fake.while_starting = start_one_and_stop
    with pytest.raises(KeyboardInterrupt):
        start_run(letters_job)
    assert not psutil.pid_exists(started[0].pid)
    assert (tmp_path / "told").exists(), "it was left to itself until it had to be killed"


def test_what_a_cluster_starts_outlives_a_closing_terminal_and_this_process_does_not_hold_it_back(letters_job, fake):
    masks: list[int] = []

    def start_one() -> None:
        status = subprocess.run(["grep", "SigBlk", "/proc/self/status"], capture_output=True, check=True, text=True)
        masks.append(int(status.stdout.split()[1], 16))

    fake.while_starting = start_one
    with ray_cluster(load_job(letters_job), Interrupts()):
        assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert masks[0] >> (signal.SIGHUP - 1) & 1


@pytest.mark.parametrize("failure", [RuntimeError("no room for the object store"), KeyError("a bug of Ray's")])
def test_a_cluster_that_does_not_start_leaves_no_folder_and_no_process(letters_job, fake, failure):
    fake.failure = failure
    with (
        pytest.raises(UserError if isinstance(failure, RuntimeError) else KeyError),
        ray_cluster(load_job(letters_job), Interrupts()),
    ):
        pass
    assert fake.scratch.parent.exists() and not fake.scratch.exists()
    assert fake.shutdowns == 1


def arrive(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def start_run(job: Path) -> None:
    display = PlainDisplay(Console(quiet=True), lambda: 0.0)
    run_job(load_job(job), display=display, engine_class="headrace.actors.small_engine:SmallEngine")


@pytest.mark.parametrize("early", [(), (signal.SIGINT,), (signal.SIGTERM,)])
def test_signals_that_come_while_a_failed_start_is_left_change_nothing(letters_job, fake, early):
    fake.failure = RuntimeError("no room for the object store")
    fake.while_starting = lambda: arrive(*early)
    fake.while_ending = lambda: arrive(*SIGNALS, *SIGNALS)
    with pytest.raises(UserError, match="no room"):
        start_run(letters_job)
    assert fake.shutdowns == 1
    assert not fake.scratch.exists()
    assert not (letters_job.parent / "run").exists()


@pytest.mark.parametrize("second", SIGNALS)
def test_a_start_that_is_broken_off_is_left_whatever_signals_come_meanwhile(letters_job, fake, second):
    def stop() -> None:
        utils.set_sigterm_handler(lambda number, frame: sys.exit(number))  # as `ray.init` does
        arrive(signal.SIGTERM)
        arrive(second)
        raise AssertionError("the start goes on")

    fake.while_starting = stop
    fake.while_ending = lambda: arrive(*SIGNALS, *SIGNALS)
    with pytest.raises(KeyboardInterrupt):
        start_run(letters_job)
    assert fake.shutdowns == 1
    assert not fake.scratch.exists()


def test_a_cluster_that_is_not_up_in_time_is_one_line(letters_job, fake):
    fake.failure = Exception("The current node timed out during startup.")
    with (
        pytest.raises(RayNotStarted, match=r"^Ray: The current node timed out during startup\.$"),
        ray_cluster(load_job(letters_job), Interrupts()),
    ):
        pass


def test_a_job_that_does_not_fit_leaves_no_folder(letters_job, fake):
    with (
        pytest.raises(UserError, match="does not fit the cluster"),
        ray_cluster(load_job(letters_job, ["--rollout.cpus", "64"]), Interrupts()),
    ):
        pass
    assert not fake.scratch.exists()


@pytest.mark.parametrize("failure", [ConnectionError("no GCS"), AuthenticationError("no token")])
def test_a_cluster_that_cannot_be_joined_is_named_with_what_a_token_needs(letters_job, fake, monkeypatch, failure):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head")
    fake.failure = failure
    with (
        pytest.raises(
            UserError, match=r"cannot join the Ray cluster at 'ray://head': no .*RAY_AUTH_MODE=token"
        ) as error,
        ray_cluster(load_job(letters_job), Interrupts()),
    ):
        pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"])
def test_who_listens_and_is_no_cluster_is_told_before_ray_waits_for_it(letters_job, fake, monkeypatch, answer):
    monkeypatch.setattr(module, "CONNECT_SECONDS", 1.0)
    with listener(answer) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        fake.failure = AssertionError("asked Ray, which would wait without end")
        with (
            pytest.raises(UserError, match=f"something listens at '{address}', but it is no Ray cluster"),
            ray_cluster(load_job(letters_job), Interrupts()),
        ):
            pass


@contextmanager
def listener(answer: bytes) -> Iterator[str]:
    """Its address; it sends `answer` to whoever connects, or nothing."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if answer:
                self.request.sendall(answer)
            while self.request.recv(1024):
                pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield "{}:{}".format(*server.server_address)
        server.shutdown()
        thread.join()


def test_a_cluster_that_the_process_is_in_already_is_left_alone(letters_job, fake, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(UserError, match="has called ray"), ray_cluster(load_job(letters_job), Interrupts()):
        pass
    assert fake.shutdowns == 0


def test_a_cluster_that_other_jobs_fill_is_not_waited_for(letters_job, fake, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head")
    monkeypatch.setattr(module, "FREE_SECONDS", 0.0)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    free = {"n": {"CPU": 8.0}}
    monkeypatch.setattr(module, "available_resources_per_node", lambda: free)
    with ray_cluster(load_job(letters_job), Interrupts()):
        pass
    free["n"] = {"CPU": 0.5}
    with (
        pytest.raises(UserError, match=r"no place for rollout-0 .*other jobs hold the rest"),
        ray_cluster(load_job(letters_job), Interrupts()),
    ):
        pass


def test_what_an_ended_job_has_held_comes_back(letters_job, fake, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head")
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    answers = iter([{}, {"n": {"CPU": 0.0}}, {"n": {"CPU": 8.0}}])
    monkeypatch.setattr(module, "available_resources_per_node", lambda: next(answers))
    with ray_cluster(load_job(letters_job), Interrupts()) as cluster:
        assert not cluster.is_local


def test_what_ray_is_told_by_the_environment_is_told_to_nobody_after_it(letters_job, fake, monkeypatch):
    before = dict(os.environ)
    with ray_cluster(load_job(letters_job), Interrupts()):
        assert os.environ.items() >= module.RAY_SETTINGS.items()
    assert dict(os.environ) == before
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    with ray_cluster(load_job(letters_job), Interrupts()):
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


def test_a_process_that_ran_a_job_knows_again_how_its_children_end(letters_job, fake):
    before = signal.getsignal(signal.SIGCHLD)
    try:
        with ray_cluster(load_job(letters_job), Interrupts()):
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as Ray does
        assert subprocess.run([sys.executable, "-c", "raise SystemExit(7)"]).returncode == 7
    finally:
        signal.signal(signal.SIGCHLD, before)
