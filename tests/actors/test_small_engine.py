"""The small engine takes weights by the same rules as vLLM."""

import asyncio
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from headrace.actors.engine import EngineSettings
from headrace.actors.small_engine import SmallEngine
from headrace.actors.weight_sync.receiver import StagingState
from headrace.actors.weight_sync.sender import WeightSender
from headrace.verifiers.records import WeightManifest

HOST = "127.0.0.1"
SECONDS = 20.0


class Setup:
    def __init__(self, engine: SmallEngine, model: Path) -> None:
        self.engine = engine
        self.sender = WeightSender("gloo", HOST, SECONDS)
        parameters = AutoModelForCausalLM.from_pretrained(model).named_parameters()
        self.weights = [(name, tensor.detach().zero_()) for name, tensor in parameters]

    async def join(self) -> None:
        await self.engine.join(self.sender.open_group(2), 1)

    async def receive(self, version: int) -> WeightManifest:
        manifest = self.sender.snapshot(version, self.weights)
        await self.engine.receive(manifest)
        await asyncio.to_thread(self.sender.send)
        deadline = time.monotonic() + SECONDS
        while (status := (await self.engine.staging())[0]).state is StagingState.RECEIVING:
            assert time.monotonic() < deadline
            await asyncio.to_thread(lambda: None)
        assert status.state is StagingState.READY, status.error
        return manifest


@pytest.fixture
async def setup(tiny_model):
    engine = SmallEngine()
    await engine.start(EngineSettings(str(tiny_model), 64, "float32", 0))
    yield Setup(engine, tiny_model)
    await engine.close()


async def test_received_weights_are_swapped_in_or_given_up_before_others_are_received(setup):
    await setup.join()
    manifest = await setup.receive(1)
    with pytest.raises(RuntimeError, match="already active"):
        await setup.engine.receive(manifest)
    await setup.engine.swap(1, clear_cache=False)
    await setup.receive(2)
    await setup.engine.swap(2, clear_cache=False)
    assert setup.engine.version == 2


@pytest.mark.parametrize("by", ["join", "abort"])
async def test_weights_that_were_not_swapped_in_make_way(setup, by):
    await setup.join()
    await setup.receive(1)
    if by == "abort":
        await setup.engine.abort_update()
    await setup.join()
    await setup.receive(2)
    await setup.engine.swap(2, clear_cache=False)
    assert setup.engine.version == 2
