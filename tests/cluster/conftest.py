"""A run in a process of its own, watched and steered from outside."""

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
import uuid
from pathlib import Path
from urllib.request import Request, urlopen

import msgspec
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.cluster.endpoint import ControllerAddress, ScaleRequest, Target, ask
from headrace.cluster.rollout_queue import CommitRecord
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_records import MemberStatus, RunStatus, StepRecord
from headrace.verifiers.errors import UserError

DEADLINE = 240.0


def page(url: str, token: str = "") -> str:
    """What a process of the run serves there."""
    with urlopen(Request(url, headers={"Authorization": f"Bearer {token}"}), timeout=DEADLINE) as answer:
        return answer.read().decode()


class SharedMemory:
    """The segments of this machine, as they were when the test began."""

    FOLDER = Path("/dev/shm")
    SECONDS = 10.0  # for whoever is about to remove one

    def __init__(self) -> None:
        self._before = self._segments()

    def left(self) -> set[str]:
        """Those that came since and that nobody uses: what other tests use at the same time is theirs to remove."""
        end = time.monotonic() + self.SECONDS
        while (left := self._unused()) and time.monotonic() < end:
            threading.Event().wait(0.2)
        return left

    def _unused(self) -> set[str]:
        segments = self._segments()
        return {segments[inode] for inode in segments.keys() - self._before.keys() - self._mapped()}

    def _segments(self) -> dict[int, str]:
        """Names by inode."""
        return {path.stat().st_ino: path.name for path in self.FOLDER.iterdir() if path.is_file()}

    def _mapped(self) -> set[int]:
        """Inodes of what some process has mapped; by name it would not be found: a semaphore has another at first."""
        inodes = set()
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):  # ended meanwhile, or another user's
                lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
                inodes |= {int(line.split()[4]) for line in lines if f" {self.FOLDER}/" in line}
        return inodes


@pytest.fixture
def shared_memory() -> SharedMemory:
    return SharedMemory()


def heed_hangups() -> None:
    """As from a terminal, also where whoever runs the tests does so under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Run:
    """A run in a process of its own."""

    def __init__(self, command: list[str], run_dir: Path, output: Path) -> None:
        self.folder = RunFolder(run_dir)
        self.output = output
        self.mark = f"HEADRACE_TEST_RUN={uuid.uuid4().hex}"
        environment = dict(os.environ, **dict([self.mark.split("=")]))
        with output.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True, preexec_fn=heed_hangups
            )

    def finish(self) -> int:
        return self.process.wait(DEADLINE)

    def status(self) -> RunStatus:
        return asyncio.run(ask(self.folder.read_controller(ControllerAddress), "GET", "/status"))

    def scale(self, request: ScaleRequest) -> RunStatus:
        address = self.folder.read_controller(ControllerAddress)
        return asyncio.run(ask(address, "POST", "/scale", msgspec.json.encode(request)))

    def targets(self) -> list[Target]:
        """What the controller tells Prometheus to read."""
        address = self.folder.read_controller(ControllerAddress)
        return msgspec.json.decode(page(address.url + "/sd", address.token), type=list[Target])

    def until(self, condition, what: str) -> RunStatus:
        """Ask for the status until the condition holds of it."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"the run ended before {what}:\n{self.output.read_text()[-3000:]}")
            if self.folder.controller.exists():
                # On a busy machine one question may well stay without an answer.
                with contextlib.suppress(UserError):
                    if condition(status := self.status()):
                        return status
            self.pause()
        raise AssertionError(f"not {what} within {DEADLINE} s: {self.status()}")

    def pause(self) -> None:
        """Between two looks, without hurry."""
        try:
            self.process.wait(0.2)
        except subprocess.TimeoutExpired:
            return

    def metrics(self, member: str) -> set[str]:
        """Names of the metrics that Prometheus reads from a member."""
        [target] = [target for target in self.targets() if target.labels["member"] == member]
        return {family.name for family in text_string_to_metric_families(page(f"http://{target.targets[0]}/metrics"))}

    def steps(self) -> list[StepRecord]:
        return [record for record in self.folder.read_metrics() if isinstance(record, StepRecord)]

    def trained(self) -> list[str]:
        lines = (self.folder.path / "ledger.jsonl").read_bytes().splitlines()
        return [name for line in lines for name in msgspec.json.decode(line, type=CommitRecord).trained]

    @staticmethod
    def serving(status: RunStatus, pool: str) -> list[MemberStatus]:
        return [member for member in status.members if member.pool == pool and member.state == "serving"]

    def left_behind(self) -> list[str]:
        """Processes that the run started and that outlive it."""
        alive = psutil.wait_procs(self._family(), timeout=10)[1]
        return [f"{process.pid} {process.name()}" for process in alive]

    def _family(self) -> list[psutil.Process]:
        """Whoever inherited the run's mark, whatever became of its parents."""
        found = []
        for process in psutil.process_iter():
            try:
                marked = self.mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
            except OSError:
                continue  # ended meanwhile
            if marked:
                found.append(process)
        return found

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        for process in self._family():
            process.kill()


@pytest.fixture
def run_driver():
    """Starts runs: run_driver(command, run_dir, output). They are ended with the test."""
    runs: list[Run] = []

    def start(command: list[str], run_dir: Path, output: Path) -> Run:
        runs.append(Run(command, run_dir, output))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()
