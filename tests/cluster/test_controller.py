"""How a run ends, whatever it does before."""

import asyncio
import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from headrace.cluster.config import WarmStartSection
from headrace.cluster.controller import Controller
from headrace.cluster.display import PlainDisplay
from headrace.cluster.errors import PoolFailed
from headrace.cluster.job_file import load_job
from headrace.cluster.prompt_source import PromptFormat
from headrace.cluster.publisher import PublishReport
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_recorder import RunRecorder
from headrace.cluster.waits import Stopped
from tests.factories import step_record


class OneStep(Controller):
    """A run that ends in `error` after its first step."""

    def __init__(self, job: Any, folder: RunFolder, recorder: RunRecorder, error: Exception) -> None:
        prepared: Any = SimpleNamespace(job=job, held_out=None)
        fleet: Any = None
        super().__init__(prepared, fleet, folder, recorder)
        self._error = error

    async def _run(self) -> None:
        self._recorder.step(step_record(1))
        raise self._error


class Run:
    def __init__(self, job: Any, path: Any) -> None:
        self.job = job
        self.folder = RunFolder(path)
        self.folder.create()
        self.folder.write_job("")
        self.output = io.StringIO()
        display = PlainDisplay(Console(file=self.output, width=1000), lambda: 0.0)
        self.recorder = RunRecorder(job, self.folder, display, PromptFormat("prompt", None, False), None, 0.0)

    async def end_in(self, error: Exception) -> None:
        await OneStep(self.job, self.folder, self.recorder, error).run()


@pytest.fixture
def run(letters_job) -> Run:
    return Run(load_job(letters_job), letters_job.parent / "run")


@pytest.mark.parametrize("error", [Stopped(), PoolFailed("the rollout pool has no members left")])
async def test_a_run_that_stops_or_fails_leaves_a_report_of_what_it_did(run, error):
    with pytest.raises(type(error)):
        await run.end_in(error)
    page = run.folder.report.read_text()
    assert "reward, last step" in page
    assert "report.html" not in run.output.getvalue()


async def test_a_report_that_cannot_be_written_does_not_hide_how_the_run_ended(run):
    with run.folder.samples.open("ab") as samples:
        samples.write(b"{}\n")
    with pytest.raises(PoolFailed, match="no members left"):
        await run.end_in(PoolFailed("the rollout pool has no members left"))
    assert not run.folder.report.exists()
    assert "report.html is not written: UserError: " in run.output.getvalue()
    assert "samples.jsonl:1: not a record" in run.output.getvalue()


class Warming(Controller):
    """A run up to its first step; what happens is noted in `order`. Side by side with the warm start, the base model is
    scored only once that is over."""

    def __init__(self, run: Run, *, take_turns: bool = False, failure: Exception | None = None) -> None:
        settings = WarmStartSection(data=run.folder.path, epochs=2, batch_size=2, learning_rate=1e-4)
        placement = run.job.placement.model_copy(update={"take_turns": take_turns})
        job = run.job.model_copy(update={"warm_start": settings, "placement": placement})
        prepared: Any = SimpleNamespace(job=job, held_out=None, warm_start=[1, 2, 3])
        fleet: Any = self
        super().__init__(prepared, fleet, run.folder, run.recorder)
        self.order: list[str] = []
        self.learner = self
        self._warm = asyncio.Event()
        self._failure = failure
        if take_turns:
            self._warm.set()

    async def begin(self) -> None:
        await self._begin()

    async def _evaluate(self, label: str, step: int) -> None:
        if label == "before":
            await self._waits.until(asyncio.wait_for(self._warm.wait(), 10))
        self.order.append(f"scored {label}")

    async def supervised_step(self, examples: list[int], learning_rate: float) -> float:
        if self._failure is not None:
            raise self._failure
        self.order.append(f"learned {examples}")
        return 1.0

    async def finish_supervised(self) -> None:
        self._warm.set()

    async def hold_snapshot(self, version: int) -> None:
        self.order.append(f"snapshot {version}")

    async def publish(self) -> PublishReport:
        return PublishReport(0, [], 0.0, 0.0, 0.0, 0.0)

    def raise_failure(self) -> None: ...


async def test_the_warm_start_and_the_base_models_score_do_not_wait_for_each_other(run):
    warming = Warming(run)
    await warming.begin()
    learned = ["learned [1, 2]", "learned [3]"] * 2
    assert warming.order == [*learned, "scored before", "snapshot 0", "scored warm"]
    assert "warm start: epoch 2/2, loss 1.000 nats a token" in run.output.getvalue()


async def test_where_the_pools_take_turns_the_warm_start_comes_after_the_base_models_score(run):
    warming = Warming(run, take_turns=True)
    await warming.begin()
    assert warming.order[:2] == ["scored before", "learned [1, 2]"]
    assert warming.order[-2:] == ["snapshot 0", "scored warm"]


async def test_a_warm_start_that_fails_ends_the_run_while_the_base_model_is_scored(run):
    warming = Warming(run, failure=PoolFailed("learner-0 is lost"))
    with pytest.raises(PoolFailed, match="learner-0 is lost"):
        await warming.begin()
    assert warming.order == []
