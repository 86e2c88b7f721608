"""The limited process: what a check in it cannot do, what becomes of one that ends it, and that nothing stays behind."""

import os
import select
import signal
import subprocess
import sys
import textwrap

import pytest

from headrace.verifiers import Sample, UserError, VerdictKind
from headrace.verifiers.confinement import require_confinement
from headrace.verifiers.limited_process import CheckLimits, LimitedProcess, LimitedProcessError

CHECKS = """
import ctypes, os, select, signal, socket, subprocess, sys, threading
from headrace.verifiers.base import scored
from headrace.verifiers.confinement import ConfinementMissing

print("printed while it is imported")

def attempt(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    except RuntimeError as error:  # threads
        return type(error).__name__
    return "done"

ACTIONS = {
    "internet": lambda: socket.socket(socket.AF_INET).connect(("127.0.0.1", 9)),
    "datagram": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    "unix": socket.socketpair,
    "read": lambda: open("/etc/hostname"),
    "write": lambda: open("/tmp/headrace-canary", "w"),
    "list": lambda: os.listdir("/"),
    "fork": os.fork,
    "run": lambda: subprocess.run(["/bin/true"]),
    "kill": lambda: os.kill(os.getppid(), 0),
    "thread": lambda: threading.Thread(target=print).start(),
    "chdir": lambda: os.chdir("/tmp"),
}

def spin():
    while True:
        pass

def fill():
    held = []
    while True:
        held.append(bytearray(1 << 24))

ENDINGS = {
    "spin": spin,
    "fill": fill,
    "fault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: os._exit(3),
    "wait": lambda: select.poll().poll(60_000),
    "raise": lambda: 1 / 0,
    "chatter": lambda: os.write(1, b"x" * (1 << 20)),
}

def load(state):
    if "lacks" in state:
        raise ConfinementMissing(state["lacks"])
    if state.get("fails"):
        raise ValueError("no such luck")
    if state.get("dies"):
        sys.stderr.write("out of luck")
        sys.stderr.flush()
        os._exit(7)
    environment = sorted(os.environ)
    descriptors = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    def check(sample):
        if sample.completion in ENDINGS:
            ENDINGS[sample.completion]()
        if sample.completion in ACTIONS:
            return scored(0.5, "tried", outcome=attempt(ACTIONS[sample.completion]))
        return scored(1.0, "seen", pid=os.getpid(), environment=environment, row=sample.row)
    return check
"""


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checks")
    (folder / "checks_in_a_box.py").write_text(CHECKS)
    sys.path.append(str(folder))
    yield "checks_in_a_box:load"
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def process(checks):
    process = LimitedProcess(checks, {}, CheckLimits(cpu_seconds=0.3, wall_seconds=3, memory_bytes=64 << 20))
    yield process
    process.close()


def verify(process, completion, row=None):
    return process.verify_many([Sample(completion, row or {})])[0]


def ended(pid, within=10.0):
    """Whether the process is gone, waited for."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], within)[0])
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "action", ["internet", "datagram", "unix", "read", "write", "list", "fork", "run", "kill", "chdir"]
)
def test_a_check_reaches_nothing_outside(process, action):
    assert verify(process, action).details["outcome"] == "PermissionError"


def test_a_check_starts_no_thread(process):
    assert verify(process, "thread").details["outcome"] == "RuntimeError"


def test_a_check_sees_no_environment(process, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    process.close()
    assert "SECRET" not in verify(process, "hello").details["environment"]


def test_descriptors_of_the_parent_are_closed_in_the_child(process):
    verify(process, "hello")
    assert sorted(os.listdir(f"/proc/{process.pid}/fd")) == ["0", "1", "2", "3"]


def test_rows_go_through_as_they_are(process):
    row = {"a": [1, None, "ü"], "b": {"c": 0.5}}
    assert verify(process, "hello", row).details["row"] == row


def test_a_row_that_is_no_json_is_not_the_samples_fault(process):
    verdicts = process.verify_many([Sample("hello", {}), Sample("hello", {"a": object()}), Sample("hello", {})])
    assert [verdict.reason for verdict in verdicts] == ["seen", "bad_row", "seen"]
    assert verdicts[1].kind is VerdictKind.INFRA_ERROR


def test_half_a_character_goes_through(process):
    assert verify(process, "\ud800").reason == "seen"


@pytest.mark.parametrize(
    ("ending", "reason"), [("spin", "timeout"), ("fill", "memory"), ("fault", "crash"), ("abort", "crash")]
)
def test_a_sample_that_ends_its_check_fails_and_the_others_do_not(process, ending, reason):
    verdicts = process.verify_many([Sample(text, {}) for text in ("one", ending, "two")])
    assert [verdict.reason for verdict in verdicts] == ["seen", reason, "seen"]
    assert verdicts[1].kind is VerdictKind.FAIL
    assert verdicts[1].reward == 0.0


@pytest.mark.parametrize(("ending", "reason"), [("exit", "verifier_died"), ("raise", "verifier_error")])
def test_a_check_that_fails_by_itself_is_an_infra_error(process, ending, reason):
    verdicts = process.verify_many([Sample(text, {}) for text in ("one", ending, "two")])
    assert [verdict.reason for verdict in verdicts] == ["seen", reason, "seen"]
    assert verdicts[1].kind is VerdictKind.INFRA_ERROR


def test_a_check_that_waits_without_computing_is_not_the_samples_fault(checks):
    process = LimitedProcess(checks, {}, CheckLimits(wall_seconds=0.3))
    verdict = verify(process, "wait")
    process.close()
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "verifier_died")
    assert "0.3 s" in verdict.details["message"]


def test_what_a_check_prints_goes_nowhere(process):
    assert verify(process, "chatter").reason == "seen"


def test_a_killed_child_is_replaced(process):
    first = verify(process, "hello").details["pid"]
    os.kill(first, signal.SIGKILL)
    assert ended(first)
    second = verify(process, "hello")
    assert second.reason == "seen"
    assert second.details["pid"] != first


def test_a_child_killed_in_the_middle_of_a_batch_costs_no_sample(process):
    first = verify(process, "hello").details["pid"]
    os.kill(first, signal.SIGSTOP)
    # The pause only makes it likelier that the batch is under way; the outcome is the same if it is not.
    killer = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.2; kill -KILL {first}"])
    verdicts = process.verify_many([Sample(str(number), {}) for number in range(100)])
    killer.wait()
    assert {verdict.reason for verdict in verdicts} == {"seen"}
    assert first not in {verdict.details["pid"] for verdict in verdicts}


def test_a_batch_larger_than_both_pipes_goes_through(process):
    row = {"text": "x" * 3000}
    verdicts = process.verify_many([Sample("hello", row)] * 500)
    assert len(verdicts) == 500
    assert {len(verdict.details["row"]["text"]) for verdict in verdicts} == {3000}


def test_one_child_serves_sample_after_sample(process):
    pids = {verdict.details["pid"] for verdict in process.verify_many([Sample("hello", {})] * 50)}
    pids.add(verify(process, "hello").details["pid"])
    assert len(pids) == 1


def test_closing_leaves_no_process_and_no_descriptor(checks):
    before = len(os.listdir("/proc/self/fd"))
    process = LimitedProcess(checks, {}, CheckLimits())
    process.start()
    pid = process.pid
    process.close()
    assert ended(pid, within=0)
    assert len(os.listdir("/proc/self/fd")) == before
    assert process.pid is None


@pytest.mark.parametrize("completion", ["hello", "spin"])
def test_a_killed_parent_leaves_no_child(checks, completion):
    script = textwrap.dedent(f"""
        import sys
        sys.path.append({sys.path[-1]!r})
        from headrace.verifiers import Sample
        from headrace.verifiers.limited_process import LimitedProcess, CheckLimits
        process = LimitedProcess("{checks}", {{}}, CheckLimits(cpu_seconds=1.0))
        process.start()
        print(process.pid, flush=True)
        process.verify_many([Sample("{completion}", {{}})])
        sys.stdin.read()
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    assert ended(child)


def test_a_check_that_does_not_load_says_why(checks):
    with pytest.raises(LimitedProcessError, match="ValueError: no such luck"):
        LimitedProcess(checks, {"fails": True}, CheckLimits()).start()


def test_a_check_that_dies_while_loading_is_an_infra_error_with_its_last_words(checks):
    verdict = verify(LimitedProcess(checks, {"dies": True}, CheckLimits()), "hello")
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "verifier_failed")
    assert "status 7" in verdict.details["message"]
    assert "out of luck" in verdict.details["message"]


def test_a_child_that_cannot_be_started_is_an_infra_error(checks, monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    verdict = verify(LimitedProcess(checks, {}, CheckLimits()), "hello")
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "verifier_failed")
    assert "/nowhere/python" in verdict.details["message"]


def test_a_host_without_confinement_is_refused_by_name(checks):
    with pytest.raises(UserError, match=r"`sandbox = true` needs luck; .* `sandbox = false`"):
        LimitedProcess(checks, {"lacks": "luck"}, CheckLimits()).start()


def test_a_filter_that_does_not_hold_is_noticed():
    # In a process of its own, since what it gives up it never gets back.
    script = textwrap.dedent("""
        from headrace.verifiers import confinement
        confinement._install_filter = lambda: None
        try:
            confinement.confine(1 << 28)
        except confinement.ConfinementMissing as error:
            print(error)
    """)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "a seccomp filter that holds" in run.stdout


def test_another_platform_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(UserError, match=r"Linux on x86_64 or aarch64 .*riscv64"):
        require_confinement()


def test_the_way_a_check_ends_is_known_in_a_process_that_ignores_its_children(process, monkeypatch):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as Ray does
    try:
        assert verify(process, "spin").reason == "timeout"
    finally:
        signal.signal(signal.SIGCHLD, before)
