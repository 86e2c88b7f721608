"""The life of a box: what is left of a run, of a box and of a host that are over."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest

from headrace.verifiers.code import CodeVerifier
from headrace.verifiers.records import Sample, VerdictKind
from headrace.verifiers.sandbox.box import Box, BoxFailed
from headrace.verifiers.sandbox.cgroup import Cgroup
from headrace.verifiers.sandbox.plan import BoxPlan, Limits
from headrace.verifiers.sandbox.probe import probe
from headrace.verifiers.sandbox.programs import call_function, run_script
from headrace.verifiers.sandbox.run import Run
from headrace.verifiers.sandbox.sandbox import Sandbox
from headrace.verifiers.sandbox.starvation import tasks_below

ADD = "def f(x): return x + 1"
PROJECT = Path(__file__).parents[3]


def levels() -> list:
    return [
        pytest.param(probe(), id="all"),
        pytest.param(msgspec.structs.replace(probe(), namespaces=False), id="no_namespaces"),
    ]


def tree(process: int) -> list[psutil.Process]:
    return [psutil.Process(process), *psutil.Process(process).children(recursive=True)]


def descriptors(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


def mounts(process: int) -> list[list[str]]:
    """Without the numbers in front: one that is made anew has others where somebody else mounts at the same time."""
    return sorted(line.split()[3:] for line in Path(f"/proc/{process}/mountinfo").read_text().splitlines())


def memory(process: int) -> int:
    """Bytes that are the process's own."""
    return psutil.Process(process).memory_info().rss


def gone(processes: list[psutil.Process], seconds: float = 20) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline


def below(box: Box) -> int:
    """How many processes runs have in it."""
    return len(tasks_below(box.pid, nested=box.layers.namespaces) or ())


def start_sleeper(box: Box) -> Run:
    run = box.start_run()
    source = "import time\nprint('up', flush=True)\ntime.sleep(600)"
    run.send(kind="calls", nonce=run.nonce, source=source, entry_point="f", calls=[], more=False)
    box.wait(lambda: run.out == b"up\n")
    return run


@pytest.mark.parametrize("layers", levels())
def test_a_thousand_runs_leave_nothing(layers):
    sandbox = Sandbox(BoxPlan(), layers=layers)
    write = "open('f', 'w').write('x' * 1000)\nprint(1)" if layers.namespaces else "print(1)"

    def some(count: int) -> None:
        for number in range(count):
            with sandbox.box() as box:
                if number % 10:
                    assert call_function(box, ADD, "f", [[number]]).answers[0].value == number + 1
                else:
                    assert run_script(box, write, "").out == "1\n"

    some(100)
    with sandbox.box() as box:
        server = tree(box.pid)
    inner = server[-1].pid
    gc.collect()
    own = os.getpid()
    before = (descriptors(own), descriptors(inner), mounts(inner), len(tree(own)), mounts(own))
    resident = memory(own), memory(inner)
    some(1000)
    gc.collect()
    assert (descriptors(own), descriptors(inner), mounts(inner), len(tree(own)), mounts(own)) == before
    assert memory(own) - resident[0] < 2 << 20
    assert memory(inner) - resident[1] < 1 << 20
    with sandbox.box() as box:
        assert tree(box.pid) == server
        assert below(box) == 0
    sandbox.close()
    assert gone(server)


def test_a_box_has_a_control_group_while_it_lives():
    if not probe().cgroup:
        pytest.skip("no writable cgroup here")
    own = f"**/headrace-{os.getpid()}-*"  # other tests may have theirs at the same time
    before = set(Path("/sys/fs/cgroup").glob(own))
    box = Box(BoxPlan(), probe())
    made = set(Path("/sys/fs/cgroup").glob(own)) - before
    assert made and str(box.pid) in "".join((folder / "cgroup.procs").read_text() for folder in made)
    box.close()
    assert not set(Path("/sys/fs/cgroup").glob(own)) & made


@pytest.mark.parametrize("layers", levels())
@pytest.mark.parametrize("which", [0, -1])
def test_a_box_whose_server_is_killed_is_replaced(layers, which):
    sandbox = Sandbox(BoxPlan(), layers=layers)
    with sandbox.box() as box:
        first = tree(box.pid)
    first[which].kill()
    assert gone(first)
    with sandbox.box() as box:
        assert call_function(box, ADD, "f", [[1]]).answers[0].value == 2
        assert tree(box.pid)[0] != first[0]
    sandbox.close()


def kill_the_server_of_a_run(sandbox: Sandbox, processes: list[psutil.Process]) -> None:
    with sandbox.box() as box:
        run = start_sleeper(box)
        processes += tree(box.pid)
        processes[-2].kill()
        box.wait(lambda: run.ended is not None)


@pytest.mark.parametrize("layers", levels())
def test_a_run_goes_with_the_server_that_is_killed_under_it(layers):
    sandbox = Sandbox(BoxPlan(Limits(wall_seconds=60)), layers=layers)
    processes: list[psutil.Process] = []
    with pytest.raises(BoxFailed):
        kill_the_server_of_a_run(sandbox, processes)
    assert len(processes) == (3 if layers.namespaces else 2)
    assert gone(processes)
    with sandbox.box() as box:
        assert call_function(box, ADD, "f", [[1]]).answers[0].value == 2
    sandbox.close()


def test_a_sample_whose_box_dies_is_judged_again():
    verifier = CodeVerifier()
    verifier.start()
    killed = threading.Event()

    def kill() -> None:
        """The first server, as soon as it has a run."""
        while not killed.is_set():
            for child in psutil.Process().children():
                run = child.children(recursive=True)
                if len(run) > 1 or (run and not probe().namespaces):
                    child.kill()
                    killed.set()

    killer = threading.Thread(target=kill)
    killer.start()
    row = {"entry_point": "f", "tests": [{"input": [1], "expected": 2}]}
    verdict = verifier.verify(Sample("import time\ndef f(x):\n    time.sleep(0.5)\n    return x + 1", row))
    killed.set()
    killer.join()
    verifier.close()
    assert verdict.kind is VerdictKind.PASS


HOST = """
import sys, time
from headrace.verifiers.sandbox.box import Box
from headrace.verifiers.sandbox.plan import BoxPlan, Limits
from headrace.verifiers.sandbox.probe import probe
import msgspec
layers = msgspec.structs.replace(probe(), namespaces=sys.argv[1] == "True")
box = Box(BoxPlan(Limits(wall_seconds=600)), layers)
run = box.start_run()
source = "import time\\nprint('up', flush=True)\\ntime.sleep(600)"
run.send(kind="calls", nonce=run.nonce, source=source, entry_point="f", calls=[], more=False)
box.wait(lambda: run.out)
print("up", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("layers", levels())
def test_a_host_that_is_killed_leaves_nothing(layers):
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(layers.namespaces)], stdout=subprocess.PIPE, cwd=PROJECT, text=True
    )
    assert host.stdout is not None and host.stdout.readline() == "up\n"
    processes = tree(host.pid)[1:]
    assert len(processes) == (3 if layers.namespaces else 2)
    folders = list(Path("/sys/fs/cgroup").glob(f"**/headrace-{host.pid}-*"))
    assert bool(folders) == layers.cgroup
    host.kill()
    host.wait()
    host.stdout.close()
    assert gone(processes)
    if layers.cgroup:
        Cgroup.create("sweep").remove()
        assert [folder for folder in folders if folder.exists()] == []


def test_a_sandbox_that_is_closed_ends_its_boxes_and_starts_new_ones():
    sandbox = Sandbox(BoxPlan(), boxes=2)
    with sandbox.box() as one, sandbox.box() as other:
        servers = tree(one.pid) + tree(other.pid)
    sandbox.close()
    assert gone(servers)
    with sandbox.box() as box:
        assert call_function(box, ADD, "f", [[1]]).answers[0].value == 2
    sandbox.close()


def test_a_box_in_use_ends_when_it_is_given_back_to_a_closed_sandbox():
    sandbox = Sandbox(BoxPlan())
    with sandbox.box() as box:
        server = tree(box.pid)
        sandbox.close()
        assert call_function(box, ADD, "f", [[1]]).answers[0].value == 2
    assert gone(server)


def test_a_sandbox_that_is_forgotten_leaves_no_server():
    sandbox = Sandbox(BoxPlan())
    with sandbox.box() as box:
        server = tree(box.pid)
    del sandbox, box
    gc.collect()
    assert gone(server)


def test_a_server_that_does_not_leave_is_killed(monkeypatch):
    monkeypatch.setattr("headrace.verifiers.sandbox.box._LEAVE_SECONDS", 0.1)
    box = Box(BoxPlan(), probe())
    server = tree(box.pid)
    server[-1].suspend()
    box.close()
    assert gone(server)


def test_boxes_work_where_the_process_ignores_its_children():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as Ray does
    try:
        box = Box(BoxPlan(), probe())
        assert call_function(box, "import os\ndef f(x): os.abort()", "f", [[1]]).reason == "crash"
        box.close()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_what_has_come_is_taken_before_time_is_up():
    """This process may be the one that did not get to look in time."""
    box = Box(BoxPlan(Limits(wall_seconds=60)), probe())
    run = box.start_run()
    until(lambda: below(box) == 1)
    run.send(kind="calls", nonce=run.nonce, source=ADD, entry_point="f", calls=[[[1], []]], more=False)
    box._serve(0)  # its program is on its way
    until(lambda: below(box) == 0)
    run.deadline = time.monotonic() - 1
    box.wait(lambda: len(run.answers) == 2)
    assert (run.fault, len(run.answers)) == ("", 2)
    box.end(run)
    box.close()


def test_a_host_that_refuses_a_layer_is_a_box_that_failed():
    with pytest.raises(BoxFailed, match="did not come up"):
        Box(BoxPlan(readable=("/nowhere/to/be/found",)), probe())
