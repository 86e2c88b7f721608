"""Verdicts that cross a process's border: whatever a verifier of the user's gives, what comes out can be read."""

import datetime
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
import structlog
from ray import cloudpickle

from headrace.actors.verification import VerificationWorker
from headrace.verifiers import Sample, Verdict, VerdictKind, Verifier, not_run, scored, worker_process
from headrace.verifiers.records import decode, encode
from headrace.verifiers.worker_child import HEADER, ChildFault, Reply
from headrace.verifiers.worker_process import Outcome, WorkerFailed, WorkerProcess

SAMPLES = [Sample("four", {}), Sample("five", {})]


def gives() -> Verifier:
    """A verifier that gives what the row holds: `given`, or `many` for the whole batch. Its class travels by value."""

    class Gives(Verifier):
        def verify(self, sample: Sample) -> Verdict:
            return sample.row["given"]

        def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
            return samples[0].row["many"] if "many" in samples[0].row else super().verify_many(samples)

    return Gives()


Judge = Callable[[list[Sample]], list[Verdict]]


@pytest.fixture(scope="module")
def judges() -> Iterator[dict[str, Judge]]:
    """By a worker of a job's pool (Ray is not needed for it), and by a process, batch by batch and one by one."""
    worker = VerificationWorker("run", "worker", "127.0.0.1", gives())
    payload = cloudpickle.dumps(gives())
    processes = {name: WorkerProcess(payload, one_by_one=name == "one by one") for name in ("batches", "one by one")}

    def by(process: WorkerProcess) -> Judge:
        def judge(samples: list[Sample]) -> list[Verdict]:
            outcome = process.call(samples, seconds=50)
            assert outcome.fault is None, outcome.message
            return outcome.verdicts

        return judge

    yield {"worker": worker.verify, **{name: by(process) for name, process in processes.items()}}
    worker.close()
    for process in processes.values():
        process.close()
    structlog.reset_defaults()


@pytest.fixture(params=["worker", "batches", "one by one"])
def judge(request: pytest.FixtureRequest, judges: dict[str, Judge]) -> Judge:
    return judges[request.param]


def rows(**fields: Sequence[Any]) -> list[Sample]:
    [(name, values)] = fields.items()
    return [Sample("", {name: value}) for value in values]


@pytest.mark.parametrize(
    ("given", "reward"),
    [
        (scored(np.float64(1), "right", share=0.5), 1.0),
        (scored(np.float32(0.25), "near"), 0.25),  # type: ignore[arg-type]
        (scored(np.bool_(True), "right"), 1.0),  # type: ignore[arg-type]
        (scored(True, "right"), 1.0),
        (scored(0, "wrong"), 0.0),
        (scored(Fraction(1, 2), "half"), 0.5),  # type: ignore[arg-type]
        (Verdict(VerdictKind.FAIL, 0.5, "dated", {"day": datetime.date(2026, 11, 20), "at": (1, 2)}), 0.5),
    ],
)
def test_a_reward_that_is_a_number_is_taken_as_pythons_own(judge, given, reward):
    verdicts = judge(rows(given=[given, given]))
    for verdict in verdicts:
        assert (type(verdict.reward), verdict.reward) == (float, reward)
        assert (verdict.kind, verdict.reason) == (given.kind, given.reason)
        assert decode(encode(verdict), Verdict) == verdict and msgspec.json.encode(verdict)
    assert len(verdicts) == 2


HELD: dict[str, Any] = {}
HELD["itself"] = HELD
UNSOUND = [
    scored(1.5, "high"),
    scored(-0.1, "low"),
    scored(np.float64(7), "high"),
    scored(10**400, "high"),
    Verdict(VerdictKind.PASS, float("nan"), "none"),
    Verdict(VerdictKind.PASS, "1", "text"),  # type: ignore[arg-type]
    Verdict(VerdictKind.PASS, None, "none"),  # type: ignore[arg-type]
    Verdict("right", 1.0, "kind"),  # type: ignore[arg-type]
    Verdict(VerdictKind.PASS, 1.0, None),  # type: ignore[arg-type]
    Verdict(VerdictKind.PASS, 1.0, "a lone \ud800"),
    scored(1.0, "right", share=np.float64(0.5)),
    scored(1.0, "right", count=10**30),
    scored(1.0, "right", text="a lone \ud800"),
    Verdict(VerdictKind.FAIL, 0.0, "wrong", {1: 2}),  # type: ignore[dict-item]
    Verdict(VerdictKind.FAIL, 0.0, "wrong", None),  # type: ignore[arg-type]
    Verdict(VerdictKind.FAIL, 0.0, "wrong", HELD),
    not_run("no_server", status=np.int64(503)),
    None,
    0.5,
    "pass",
]


@pytest.mark.parametrize("given", UNSOUND, ids=[f"unsound{place}" for place in range(len(UNSOUND))])
def test_what_is_no_sound_verdict_costs_its_sample_alone(judge, given):
    wrong, right = judge(rows(given=[given, scored(1.0, "right")]))
    assert (wrong.kind, wrong.reward, wrong.reason) == (VerdictKind.INFRA_ERROR, 0.0, "bad_reward")
    assert "Gives" in wrong.details["message"]
    assert decode(encode(wrong), Verdict) == wrong
    assert right == scored(1.0, "right")


@pytest.mark.parametrize("many", [[], [scored(1.0, "right")] * 5, 0.5], ids=["none", "more", "a number"])
def test_as_many_verdicts_as_samples_or_each_is_an_infra_error(judge, many):
    verdicts = judge(rows(many=[many, many]))
    assert [verdict.reason for verdict in verdicts] == ["verdicts_missing"] * 2
    assert all(
        verdict.kind is VerdictKind.INFRA_ERROR and "Gives" in verdict.details["message"] for verdict in verdicts
    )


def test_an_infra_error_tells_what_the_verifier_told(judge):
    broken = not_run("no_server", message="refused")
    assert judge(rows(given=[broken, broken])) == [broken, broken]


def replying(*replies: bytes) -> str:
    """A child that sends these whatever it is asked, and then waits for its end."""
    frames = b"".join(HEADER.pack(len(reply)) + reply for reply in replies)
    return f"import os, signal; os.write(1, {frames!r}); signal.pause()"


READY = msgspec.msgpack.encode(Reply())
UNREADABLE = [b"\xc1", b"", msgspec.msgpack.encode({"verdicts": [{"kind": "right"}]}), b"\x81\xa5fault\xa3odd"]


@pytest.mark.parametrize("reply", UNREADABLE)
def test_a_reply_that_cannot_be_read_is_a_fault_and_ends_the_process(monkeypatch, reply):
    monkeypatch.setattr(worker_process, "_BOOTSTRAP", replying(READY, reply))
    process = WorkerProcess(b"")
    process.start()
    assert process.pid is not None
    child = psutil.Process(process.pid)
    outcome = process.call(SAMPLES, seconds=30)
    assert (outcome.verdicts, outcome.fault) == ([], ChildFault.CRASH)
    assert "cannot be read" in outcome.message
    assert (process.pid, child.is_running()) == (None, False)


def test_a_first_reply_that_cannot_be_read_is_a_failed_start(monkeypatch):
    monkeypatch.setattr(worker_process, "_BOOTSTRAP", replying(b"\xc1"))
    process = WorkerProcess(b"")
    with pytest.raises(WorkerFailed, match="cannot be read"):
        process.start()
    assert process.pid is None


def fails(how: str) -> Verifier:
    class Fails(Verifier):
        def verify(self, sample: Sample) -> Verdict:
            match how:
                case "raises":
                    raise KeyError("answer")
                case "exhausts":
                    raise MemoryError
                case "hangs":
                    signal.pause()
            os.abort()

    return Fails()


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ("raises", ChildFault.EXCEPTION),
        ("exhausts", ChildFault.MEMORY),
        ("hangs", ChildFault.TIMEOUT),
        ("aborts", ChildFault.CRASH),
    ],
)
def test_why_a_batch_has_no_verdicts_is_one_of_the_known_faults(how, fault):
    process = WorkerProcess(cloudpickle.dumps(fails(how)))
    process.start()
    outcome: Outcome = process.call(SAMPLES, seconds=1.0)
    process.close()
    assert outcome.fault is fault and outcome.message


def test_a_closed_worker_gives_the_port_of_its_metrics_back():
    worker = VerificationWorker("run", "worker", "127.0.0.1", gives())
    port = int(worker.start().metrics_url.rpartition(":")[2].removesuffix("/metrics"))
    worker.close()
    structlog.reset_defaults()
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))
        again.listen()
