import asyncio
import datetime
import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from headrace.verifiers import CallableVerifier, Sample, UserError, Verdict, VerdictKind, VerifierSpec, build_verifier
from headrace.verifiers.records import decode, encode

SAMPLE = Sample("four", {"answer": "four"})


@pytest.mark.parametrize(
    ("answer", "kind", "reward"),
    [
        (True, VerdictKind.PASS, 1.0),
        (False, VerdictKind.FAIL, 0.0),
        (1, VerdictKind.PASS, 1.0),
        (0.25, VerdictKind.FAIL, 0.25),
        (Verdict(VerdictKind.FAIL, 0.5, "half"), VerdictKind.FAIL, 0.5),
        (np.bool_(True), VerdictKind.PASS, 1.0),
        (np.float32(0.25), VerdictKind.FAIL, 0.25),
        (Verdict(VerdictKind.FAIL, np.float32(0.5), "half"), VerdictKind.FAIL, 0.5),
    ],
)
def test_what_a_function_returns_is_the_reward(answer, kind, reward):
    verdict = CallableVerifier(lambda completion, row: answer).verify(SAMPLE)
    assert (verdict.kind, verdict.reward) == (kind, reward)
    assert decode(encode(verdict), Verdict) == verdict


NO_REWARDS = [
    None,
    "1",
    1.01,
    -0.1,
    float("nan"),
    [1.0],
    Verdict(VerdictKind.FAIL, 2.0, "x"),
    np.float32(2),
    np.str_("1"),
    10**400,
]


@pytest.mark.parametrize("answer", NO_REWARDS)
def test_what_is_no_reward_is_an_infra_error(answer):
    verdict = CallableVerifier(lambda completion, row: answer).verify(SAMPLE)
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "bad_reward")


def raises(completion, row):
    raise KeyError("missing")


async def raises_later(completion, row):
    raise KeyError("missing")


def exits(completion, row):
    sys.exit(0)


async def exits_later(completion, row):
    sys.exit(0)


@pytest.mark.parametrize(
    ("function", "name"),
    [(raises, "KeyError"), (raises_later, "KeyError"), (exits, "SystemExit"), (exits_later, "SystemExit")],
)
def test_a_function_that_fails_is_an_infra_error_that_says_where(function, name):
    verifier = CallableVerifier(function)
    verdict = verifier.verify(SAMPLE)
    verifier.close()
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "exception")
    assert verdict.details["type"] == name
    assert "test_function_verifier.py:" in verdict.details["where"]


def test_asynchronous_functions_run_side_by_side():
    arrived = []

    async def meet(completion, row):
        arrived.append(row["number"])
        while len(arrived) < 3:
            await asyncio.sleep(0)
        return row["number"] / 10

    verifier = CallableVerifier(meet)
    verdicts = verifier.verify_many([Sample("", {"number": number}) for number in range(3)])
    verifier.close()
    assert [verdict.reward for verdict in verdicts] == [0.0, 0.1, 0.2]


async def test_an_asynchronous_function_can_be_verified_from_a_running_loop():
    async def answer(completion, row):
        await asyncio.sleep(0)
        return 1.0

    verifier = CallableVerifier(answer)
    assert verifier.verify(SAMPLE).reward == 1.0
    verifier.close()


def test_asynchronous_calls_share_one_loop_and_closing_ends_its_thread():
    loops = []

    async def remember(completion, row):
        loops.append(asyncio.get_running_loop())
        return 1.0

    verifier = CallableVerifier(remember)
    verifier.verify(SAMPLE)
    verifier.verify(SAMPLE)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "reward-function"]
    verifier.close()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert loops[0] is loops[1]
    assert loops[0].is_closed()


@pytest.mark.parametrize("function", [lambda completion: 1.0, lambda a, b, c: 1.0, lambda: 1.0, 7])
def test_a_function_with_other_arguments_is_refused(function):
    with pytest.raises(UserError, match="reward function"):
        CallableVerifier(function)


def from_file(folder, text, function="rewards.py:score"):
    (folder / "rewards.py").write_text(text)
    return build_verifier(VerifierSpec(function=function, base_dir=str(folder)))


def test_a_function_is_loaded_from_a_file_beside_the_job(tmp_path):
    (tmp_path / "gold_words.py").write_text("WORDS = {'four'}\n")
    verifier = from_file(
        tmp_path, "from gold_words import WORDS\ndef score(completion, row): return completion in WORDS\n"
    )
    assert verifier.verify(SAMPLE).kind is VerdictKind.PASS


def test_a_function_from_a_file_can_be_shipped_to_where_the_file_is_not(tmp_path):
    verifier = from_file(tmp_path, "def score(completion, row): return completion == row['answer']\n")
    (tmp_path / "verifier").write_bytes(pickle.dumps(verifier))
    (tmp_path / "rewards.py").unlink()
    script = (
        "import pathlib, pickle, sys\nfrom headrace.verifiers import Sample\n"
        "verifier = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "print(verifier.verify(Sample('four', {'answer': 'four'})).kind)\n"
    )
    elsewhere = [sys.executable, "-c", script, str(tmp_path / "verifier")]
    assert subprocess.run(elsewhere, capture_output=True, text=True, check=True).stdout.strip() == "pass"


def test_a_changed_file_is_loaded_anew(tmp_path):
    first = from_file(tmp_path, "def score(completion, row): return 0.1\n")
    second = from_file(tmp_path, "def score(completion, row): return 0.2\n")
    assert (first.verify(SAMPLE).reward, second.verify(SAMPLE).reward) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("text", "function", "complaint"),
    [
        ("", "rewards.py", "write it as `file.py:name`"),
        ("", "none.py:score", "cannot read"),
        ("def scores(completion, row): ...", "rewards.py:score", "did you mean `scores`"),
        ("score = 7", "rewards.py:score", "is int, not a function"),
        ("def score(completion): ...", "rewards.py:score", r"must take \(completion, row\)"),
        (
            "def score(prompts, completions, **kwargs): ...",
            "rewards.py:score",
            r"is called as score\(completion, row\), one sample at a time",
        ),
        ("x = 1\ndef score(:", "rewards.py:score", r"rewards.py:2 does not load: SyntaxError"),
        ("x = 1\ny = 1 / 0", "rewards.py:score", r"rewards.py:2 does not load: ZeroDivisionError"),
    ],
)
def test_a_file_without_the_function_is_refused_in_one_line(tmp_path, text, function, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        from_file(tmp_path, text, function)
    assert "\n" not in str(error.value)


LIMITED = """
import asyncio, os, subprocess, sys, time

def score(completion, row):
    if completion == "hang":
        while True:
            pass
    if completion == "sleep":
        subprocess.Popen(["sleep", "600"], stdout=open(row["pid"], "w"))
        time.sleep(600)
    if completion == "abort":
        os.abort()
    if completion == "exit":
        os._exit(0)
    if completion == "memory":
        return len(bytearray(8 << 30))
    if completion == "deep":
        return score("deep", row)
    if completion == "raise":
        raise KeyError("missing")
    print("shown")
    return completion == "four"

async def later(completion, row):
    if completion == "never":
        await asyncio.sleep(600)
    return score(completion, row)
"""


def limited(folder, name="score", **options):
    (folder / "rewards.py").write_text(LIMITED)
    options = {"timeout_seconds": 1.0, **options}
    return build_verifier(VerifierSpec(function=f"rewards.py:{name}", options=options, base_dir=str(folder)))


def reasons(verifier, *completions):
    verdicts = verifier.verify_many([Sample(text, {"number": number}) for number, text in enumerate(completions)])
    verifier.close()
    assert {v.kind for v in verdicts if v.reason != "scored"} <= {VerdictKind.INFRA_ERROR}
    return [verdict.reason for verdict in verdicts]


def test_a_call_that_hangs_or_crashes_costs_its_sample_alone(tmp_path):
    verifier = limited(tmp_path, memory_bytes=1 << 30)
    asked = ("four", "hang", "four", "abort", "exit", "memory", "raise", "deep", "four")
    expected = ["scored", "timeout", "scored", "crash", "crash", "memory", "exception", "exception", "scored"]
    assert reasons(verifier, *asked) == expected


def test_an_asynchronous_call_has_its_own_time_and_a_crash_costs_its_sample_alone(tmp_path):
    verifier = limited(tmp_path, "later")
    assert reasons(verifier, "four", "never", "four", "abort", "never") == [
        "scored",
        "timeout",
        "scored",
        "crash",
        "timeout",
    ]


def test_asynchronous_calls_with_a_limit_run_side_by_side(tmp_path):
    verifier = limited(tmp_path, "later", timeout_seconds=2.0)
    verifier.start()
    start = time.monotonic()
    assert reasons(verifier, *["never"] * 20) == ["timeout"] * 20
    assert time.monotonic() - start < 20


def test_an_event_loop_that_stands_still_is_noticed(tmp_path):
    assert reasons(limited(tmp_path, "later", timeout_seconds=0.3), "four", "hang") == ["scored", "timeout"]


def test_what_a_late_call_has_started_ends_with_it(tmp_path):
    verifier = limited(tmp_path, timeout_seconds=1.5)
    held = tmp_path / "held"
    assert verifier.verify(Sample("sleep", {"pid": str(held)})).reason == "timeout"
    assert not [pid for pid in psutil.pids() if opened(pid, held)]
    verifier.close()


def opened(pid, path):
    try:
        return any(os.path.samefile(f"/proc/{pid}/fd/{name}", path) for name in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def test_a_limited_function_changes_no_verdict(tmp_path):
    texts = ["four", "five", "raise", "four"]
    samples = [Sample(text, {"day": datetime.date(2026, 11, 20)}) for text in texts]
    verifier = limited(tmp_path)
    plain = build_verifier(VerifierSpec(function="rewards.py:score", base_dir=str(tmp_path)))
    assert verifier.verify_many(samples) == plain.verify_many(samples)
    verifier.close()


def test_a_limited_function_of_no_file_is_shipped_too(tmp_path):
    wanted = "four"
    verifier = CallableVerifier(lambda completion, row: completion == wanted, timeout_seconds=20)
    assert verifier.verify(SAMPLE).kind is VerdictKind.PASS
    assert isinstance(verifier._process.pid, int)
    verifier.close()


def test_a_limited_function_keeps_its_limits_and_starts_nothing_when_it_is_shipped(tmp_path):
    verifier = pickle.loads(pickle.dumps(limited(tmp_path, timeout_seconds=0.3)))
    (tmp_path / "rewards.py").unlink()
    assert verifier._process is None
    assert reasons(verifier, "hang", "four") == ["timeout", "scored"]


def test_a_closed_verifier_starts_anew_and_leaves_no_process(tmp_path):
    verifier = limited(tmp_path, timeout_seconds=20)
    verifier.start()
    pid = verifier._process.pid
    verifier.close()
    assert not psutil.pid_exists(pid)
    assert reasons(verifier, "four") == ["scored"]


def test_a_function_that_does_not_load_in_its_process_is_told_at_the_start(tmp_path):
    (tmp_path / "rewards.py").write_text(
        f"import os\nassert os.getpid() == {os.getpid()}\ndef score(completion, row): return 1.0\n"
    )
    verifier = build_verifier(
        VerifierSpec(function="rewards.py:score", options={"timeout_seconds": 5}, base_dir=str(tmp_path))
    )
    with pytest.raises(UserError, match=r"does not start in its process: .*rewards.py:2 does not load"):
        verifier.start()
    assert reasons(verifier, "four") == ["verifier_failed"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"timeout_seconds": 0}, "option `timeout_seconds`"),
        ({"memory_bytes": 1}, "option `memory_bytes`"),
        ({"timeout": 1}, "unknown option `timeout` .*did you mean `timeout_seconds`"),
        ({"function": "a.py:b"}, "option `function`"),
    ],
)
def test_a_wrong_limit_is_refused(tmp_path, options, complaint):
    with pytest.raises(UserError, match=complaint):
        limited(tmp_path, **options)


def test_the_function_can_be_named_in_the_options(tmp_path):
    (tmp_path / "rewards.py").write_text(LIMITED)
    spec = VerifierSpec(verifier="python", options={"function": "rewards.py:score"}, base_dir=str(tmp_path))
    assert reasons(build_verifier(spec), "four") == ["scored"]
    with pytest.raises(UserError, match="option `function` of verifier `python` is missing"):
        build_verifier(VerifierSpec(verifier="python"))


def test_without_a_limit_nothing_is_started(tmp_path):
    before = psutil.Process().children()
    assert from_file(tmp_path, "def score(completion, row): return 1.0\n").verify(SAMPLE).reward == 1.0
    assert psutil.Process().children() == before
