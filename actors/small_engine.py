"""A small model in the actor's own process, behind the `Engine` interface: for tests of everything around an engine.
Weights, tokens and log-probabilities are real; what is simulated is time.

It starts in a second where vLLM needs half a minute, samples one token of every running request at each tick of
`token_seconds`, and receives weights through the same `StagedReceiver`.
"""

from __future__ import annotations

import asyncio
import time

import msgspec
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from headrace.actors.engine import UNSYNCED, EngineSettings, Output
from headrace.actors.weight_sync.receiver import StagedReceiver, StagingStatus
from headrace.actors.weight_sync.transport import GroupAddress, dtype_of
from headrace.verifiers.records import Sampling, StopReason, WeightManifest, WeightSpan


class SmallEngineOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`rollout.engine` of the job, for this engine."""

    token_seconds: float = 0.001  # between two tokens of one request
    slots: int = 32


class SmallEngine:
    async def start(self, settings: EngineSettings) -> None:
        self._options = msgspec.convert(settings.options, SmallEngineOptions)
        torch.set_num_threads(1)
        torch.manual_seed(settings.seed)
        self._model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            settings.model, dtype=dtype_of(settings.dtype)
        )
        self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(settings.model)
        self._receiver = StagedReceiver(torch.device("cpu"), settings.local_host)
        self._updating = False  # from `receive` to its swap or its end without one, as in vLLM's workers
        self._version = UNSYNCED
        self._running = asyncio.Event()
        self._running.set()
        self._slots = asyncio.Semaphore(self._options.slots)

    @property
    def version(self) -> int:
        return self._version

    @property
    def slots(self) -> int:
        return self._options.slots

    async def complete(self, token_ids: list[int], sampling: Sampling) -> Output:
        async with self._slots:
            return await self._complete(token_ids, sampling)

    async def _complete(self, token_ids: list[int], sampling: Sampling) -> Output:
        tokens: list[int] = []
        logprobs: list[float] = []
        versions: list[int] = []
        stop = StopReason.LENGTH
        while len(tokens) < sampling.max_tokens:
            await asyncio.sleep(self._options.token_seconds)
            await self._running.wait()
            token, logprob = self._next_token([*token_ids, *tokens], sampling.temperature)
            tokens.append(token)
            logprobs.append(logprob)
            versions.append(self._version)
            if token == self._tokenizer.eos_token_id and len(tokens) >= sampling.min_tokens:
                stop = StopReason.STOP
                break
        text = str(self._tokenizer.decode(tokens, skip_special_tokens=True))
        return Output(text, tokens, logprobs, spans_of(versions), stop)

    @torch.no_grad()
    def _next_token(self, token_ids: list[int], temperature: float) -> tuple[int, float]:
        logits = self._model(torch.tensor([token_ids]), use_cache=False).logits[0, -1].float()
        values = torch.log_softmax(logits / temperature if temperature else logits, -1)
        token = int(torch.multinomial(values.exp(), 1)) if temperature else int(values.argmax())
        return token, float(values[token])

    @torch.no_grad()
    def _sequence_logprobs(self, sequence: list[int]) -> list[float]:
        ids = torch.tensor(sequence)
        values = torch.log_softmax(self._model(ids[None], use_cache=False).logits[0, :-1].float(), -1)
        return values.gather(-1, ids[1:, None])[:, 0].tolist()

    async def probe(self, sequences: list[list[int]]) -> list[list[float]]:
        await self._running.wait()  # a probe is a request: a frozen engine does not answer it
        return [self._sequence_logprobs(sequence) for sequence in sequences]

    async def join(self, address: GroupAddress, rank: int) -> None:
        await self.abort_update()
        self._receiver.join(address, rank)

    async def receive(self, manifest: WeightManifest) -> None:
        if self._updating:
            raise RuntimeError("a weight update is already active: swap, join or abort it first")
        self._receiver.receive(manifest)
        self._updating = True

    async def staging(self) -> list[StagingStatus]:
        return [self._receiver.status()]

    async def swap(self, version: int, clear_cache: bool) -> float:
        start = time.monotonic()
        _, layout, buckets = self._receiver.take()
        parameters = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, tensor in layout.views(buckets):
                parameters[name].copy_(tensor)
        self._updating = False
        self._version = version
        return time.monotonic() - start

    async def abort_update(self) -> None:
        self._receiver.abort()
        self._updating = False

    async def pause(self) -> None:
        self._running.clear()

    async def resume(self) -> None:
        self._running.set()

    async def close(self) -> None:
        self._receiver.abort()


def spans_of(versions: list[int]) -> list[WeightSpan]:
    """Runs of equal versions, as half-open spans over the tokens.

    >>> spans_of([1, 1, 2])
    [WeightSpan(version=1, start=0, end=2), WeightSpan(version=2, start=2, end=3)]
    """
    spans: list[WeightSpan] = []
    for index, version in enumerate(versions):
        if spans and spans[-1].version == version:
            spans[-1] = WeightSpan(version, spans[-1].start, index + 1)
        else:
            spans.append(WeightSpan(version, index, index + 1))
    return spans
