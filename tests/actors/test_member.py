"""What the members of the three pools say of themselves: one record, whatever their kind."""

import os
from unittest import mock

import pytest

from headrace.actors import generator, verification
from headrace.actors.engine import EngineSettings
from headrace.actors.generator import Generator, GeneratorSettings
from headrace.actors.member import GeneratorReport, MemberReport
from headrace.actors.this_node import ThisNode
from headrace.actors.verification import VerificationWorker
from headrace.learner import worker
from headrace.learner.settings import LearnerSettings
from headrace.learner.worker import LearnerWorker, WorkerSettings
from headrace.verifiers.function import CallableVerifier

HERE = ThisNode("an id of Ray's", "127.0.0.1")


class Engine:
    """Starts at once."""

    async def start(self, settings: EngineSettings) -> None:
        """Nothing is loaded."""

    async def close(self) -> None:
        """Nothing was."""


@pytest.fixture(autouse=True)
def node(monkeypatch):
    for module in (generator, verification, worker):
        monkeypatch.setattr(module, "this_node", lambda: HERE)


def assert_of_this_process(report: MemberReport) -> None:
    assert (report.pid, report.node, report.node_id) == (os.getpid(), HERE.address, HERE.id)
    assert report.metrics_url.startswith(f"http://{HERE.address}:")


def test_a_verification_worker(tmp_path):
    checks = CallableVerifier(lambda completion, row: 1.0)
    assert_of_this_process(VerificationWorker("run", "verification-0", HERE.address, checks, str(tmp_path)).start())


async def test_a_generator(tmp_path):
    settings = GeneratorSettings(
        run="run",
        name="rollout-0",
        host=HERE.address,
        engine=EngineSettings("model", 64, "float32", 0),
        engine_class=f"{__name__}:Engine",
        verify_timeout_seconds=5.0,
        verify_attempts=1,
        log_dir=str(tmp_path),
    )
    generator = Generator(settings)
    with mock.patch.dict(os.environ):
        report = await generator.start()
    await generator.close()
    assert isinstance(report, GeneratorReport)
    assert_of_this_process(report)


def test_a_rank_of_the_learner(tmp_path):
    learner = LearnerSettings(model="none", total_steps=1)
    rank = LearnerWorker(WorkerSettings("run", HERE.address, learner, 1, "gloo", 1.0, str(tmp_path)), rank=0)
    report = rank.start()
    rank.close()
    assert_of_this_process(report)
    assert report.store_port > 0
