"""The real engine: vLLM on a CPU with the demo model, started once for all tests of this file."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from headrace.actors import libnuma
from headrace.actors.engine import EngineSettings
from headrace.actors.generator import engine_environment
from headrace.actors.weight_sync.attestation import attest, probe_distance
from headrace.actors.weight_sync.receiver import StagingState
from headrace.actors.weight_sync.sender import WeightSender
from headrace.actors.weight_sync.transport import free_port
from headrace.cluster.base_model import demo_model_folder
from headrace.learner.rank import LearnerRank
from headrace.learner.settings import LearnerSettings
from headrace.verifiers.errors import UserError
from headrace.verifiers.records import Sampling, StopReason

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

TOLERANCE = 0.03
SALTED_BLOCK = 32


class Setup:
    """The engine, and a learner's side of it: the same model in float32."""

    def __init__(self, engine, model, tokenizer) -> None:
        self.engine = engine
        self.model = model
        self.tokenizer = tokenizer
        self.sender = WeightSender("gloo", "127.0.0.1", 60.0)
        self.sequences = [
            tokenizer("The capital of France is Paris, and that of Italy is Rome.")["input_ids"],
            tokenizer("Book a table for four people on Friday evening, please.")["input_ids"],
        ]
        self.joined = False

    async def update(self, version: int) -> float:
        """Bring the engine to the model's present weights; the pause."""
        await self.receive(version)
        return await self.engine.swap(version, clear_cache=False)

    async def receive(self, version: int) -> None:
        """Bring the model's present weights into the engine's staging buffers."""
        manifest = self.sender.snapshot(
            version, ((name, tensor.bfloat16()) for name, tensor in self.model.named_parameters())
        )
        if not self.joined:
            await self.engine.join(self.sender.open_group(2), 1)
            self.joined = True
        await self.engine.receive(manifest)
        sent = await asyncio.to_thread(self.sender.send)
        while (status := (await self.engine.staging())[0]).state is StagingState.RECEIVING:
            await asyncio.sleep(0.01)
        assert status.state is StagingState.READY, status.error
        assert status.checksum == sent

    @torch.no_grad()
    def logprobs(self, sequence: list[int]) -> list[float]:
        ids = torch.tensor(sequence)
        values = torch.log_softmax(self.model(ids[None]).logits[0, :-1].float(), -1)
        return values.gather(-1, ids[1:, None])[:, 0].tolist()

    def expected(self) -> list[list[float]]:
        return [self.logprobs(sequence) for sequence in self.sequences]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> str:
    """The demo model as a learner exports it: that vLLM and transformers load it is part of every test here."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    rank = LearnerRank(LearnerSettings(model=str(demo_model_folder()), total_steps=1), rank=0, world_size=1)
    rank.setup("127.0.0.1", free_port("127.0.0.1"))
    rank.export(folder)
    rank.close()
    return str(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def setup(exported):
    folder = exported
    settings = EngineSettings(
        model=folder,
        max_length=256,
        dtype="bfloat16",
        seed=0,
        options={
            "max_num_seqs": 16,
            "block_size": SALTED_BLOCK,
            "worker_extension_cls": "tampering.TamperingExtension",
        },
    )
    sys.path.insert(0, str(Path(__file__).parent))  # spawned workers are given this path
    os.environ.update(engine_environment(settings))
    # vLLM reads the environment when it is imported.
    from headrace.actors.vllm_engine import VllmEngine

    engine = VllmEngine()
    await engine.start(settings)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    yield Setup(engine, model, AutoTokenizer.from_pretrained(folder))
    await engine.close()
    sys.path.remove(str(Path(__file__).parent))


async def test_logprobs_are_those_of_the_model_that_sampled_the_tokens(setup):
    prompt = setup.sequences[0]
    output = await setup.engine.complete(prompt, Sampling(max_tokens=12, min_tokens=12))
    assert output.stop_reason is StopReason.LENGTH
    assert len(output.token_ids) == len(output.logprobs) == 12
    expected = setup.logprobs([*prompt, *output.token_ids])[-12:]
    assert sum(abs(a - b) for a, b in zip(output.logprobs, expected, strict=True)) / 12 < 0.1


async def test_logprobs_are_after_the_temperature(setup):
    prompt = setup.sequences[0]
    output = await setup.engine.complete(prompt, Sampling(max_tokens=8, min_tokens=8, temperature=0.5))
    with torch.no_grad():
        logits = setup.model(torch.tensor([[*prompt, *output.token_ids]])).logits[0, len(prompt) - 1 : -1].float()
    values = torch.log_softmax(logits / 0.5, -1).gather(-1, torch.tensor(output.token_ids)[:, None])[:, 0].tolist()
    assert sum(abs(a - b) for a, b in zip(output.logprobs, values, strict=True)) / 8 < 0.2


async def test_weights_change_in_flight_and_each_token_names_its_version(setup):
    await setup.update(1)
    before = setup.expected()
    attest(before, await setup.engine.probe(setup.sequences), TOLERANCE)
    running = asyncio.create_task(setup.engine.complete(setup.sequences[0], Sampling(max_tokens=150, min_tokens=150)))
    with torch.no_grad():
        for name, parameter in setup.model.named_parameters():
            if "layers.29.mlp" in name:
                parameter.mul_(1.5)
    await setup.update(2)
    output = await running
    assert [span.version for span in output.spans] == [1, 2]
    assert [output.spans[0].start, output.spans[-1].end] == [0, 150]
    assert output.spans[0].end == output.spans[1].start
    # The linear layers are packed on a CPU: the new weights count only if the swap has packed them anew.
    probed = await setup.engine.probe(setup.sequences)
    attest(setup.expected(), probed, TOLERANCE)
    with pytest.raises(ValueError, match="does not hold these weights"):
        attest(before, probed, TOLERANCE)


async def test_no_cached_block_of_older_weights_serves_a_new_request(setup):
    prompt = (setup.sequences[0] * 8)[: 3 * SALTED_BLOCK]
    greedy = Sampling(max_tokens=8, min_tokens=8, temperature=0.0)
    await setup.update(3)
    await setup.engine.complete(prompt, greedy)
    with torch.no_grad():
        for name, parameter in setup.model.named_parameters():
            if "layers.0.self_attn" in name:
                parameter.mul_(0.5)
    await setup.update(4)
    output = await setup.engine.complete(prompt, greedy)
    expected = setup.logprobs([*prompt, *output.token_ids])[-8:]
    assert sum(abs(a - b) for a, b in zip(output.logprobs, expected, strict=True)) / 8 < 0.1


async def test_attestation_refuses_an_engine_whose_layer_was_changed_behind_its_back(setup):
    await setup.update(5)
    attest(setup.expected(), await setup.engine.probe(setup.sequences), TOLERANCE)
    (changed,) = await setup.engine._engine.collective_rpc("scale_layer", args=(15, 1.5))
    assert changed > 0
    distance = probe_distance(setup.expected(), await setup.engine.probe(setup.sequences))
    assert distance > TOLERANCE


async def test_a_head_tied_to_the_embedding_changes_with_it(setup):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        embedding = setup.model.get_input_embeddings().weight
        embedding.add_(0.02 * torch.randn(embedding.shape, generator=generator))
    await setup.update(51)
    attest(setup.expected(), await setup.engine.probe(setup.sequences), TOLERANCE)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (".", r"model\.embed_tokens got 0 of \d+ values.* more"),
        (r"layers\.7\.input_layernorm", r"out: model\.layers\.7\.input_layernorm got 0 of 576 values"),
        (r"layers\.7\.mlp\.down_proj", r"out: model\.layers\.7\.mlp\.down_proj got 0 of \d+ values"),
        (r"layers\.7\.self_attn\.k_proj", r"out: model\.layers\.7\.self_attn\.qkv_proj got \d+ of \d+ values"),
    ],
)
async def test_a_swap_that_leaves_weights_out_is_refused_and_the_engine_generates_no_more(setup, pattern, said):
    await setup.update(52)
    await setup.receive(53)
    await setup.engine._engine.collective_rpc("leave_out", args=(pattern,))
    waiting = asyncio.create_task(setup.engine.complete(setup.sequences[0], Sampling(max_tokens=150, min_tokens=150)))
    with pytest.raises(Exception, match=said):
        await setup.engine.swap(53, clear_cache=False)
    assert setup.engine.version == 52
    assert await setup.engine._engine.is_paused()
    assert not waiting.done()
    setup.joined = False
    await setup.update(54)
    output = await waiting
    assert output.spans[-1].version == 54
    attest(setup.expected(), await setup.engine.probe(setup.sequences), TOLERANCE)


async def test_a_broken_transfer_leaves_the_engine_with_its_weights_and_able_to_go_on(setup):
    await setup.update(6)
    manifest = setup.sender.snapshot(7, ((n, t.bfloat16()) for n, t in setup.model.named_parameters()))
    await setup.engine.receive(manifest)  # nobody sends
    await setup.engine.abort_update()
    setup.joined = False
    output = await setup.engine.complete(setup.sequences[0], Sampling(max_tokens=4, min_tokens=4))
    assert [span.version for span in output.spans] == [6]
    await setup.update(8)
    attest(setup.expected(), await setup.engine.probe(setup.sequences), TOLERANCE)


async def test_weights_that_were_received_and_not_swapped_in_make_way_for_those_of_a_new_epoch(setup):
    await setup.receive(9)  # all bytes are there; another member of the group is not so lucky
    setup.joined = False
    await setup.update(9)
    attest(setup.expected(), await setup.engine.probe(setup.sequences), TOLERANCE)


@pytest.mark.parametrize(("on_gpu", "eager", "cache_bytes"), [(False, True, 2**28), (True, False, None)])
async def test_an_engine_on_a_gpu_compiles_and_takes_the_cache_that_fits(on_gpu, eager, cache_bytes):
    from headrace.actors.vllm_engine import engine_arguments

    arguments = engine_arguments(EngineSettings("m", 64, "float32", 0, kv_cache_bytes=2**28, on_gpu=on_gpu))
    assert (arguments.enforce_eager, arguments.kv_cache_memory_bytes) == (eager, cache_bytes)


async def test_an_engine_that_cannot_be_started_says_why_to_the_user(exported, monkeypatch):
    from headrace.actors import vllm_engine

    with pytest.raises(UserError, match="no engine argument `max_num_seq`; did you mean `max_num_seqs`"):
        vllm_engine.engine_arguments(EngineSettings("m", 64, "float32", 0, options={"max_num_seq": 2}))

    too_long = EngineSettings(exported, 100_000, "float32", 0)
    with pytest.raises(UserError, match=r"vLLM refuses the engine's arguments: .*max_model_len \(100000\)"):
        await vllm_engine.VllmEngine().start(too_long)

    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(libnuma.ctypes, "CDLL", missing)
    with pytest.raises(UserError, match="apt-get install libnuma1"):
        await vllm_engine.VllmEngine().start(EngineSettings("m", 64, "float32", 0))
