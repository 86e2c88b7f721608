"""vLLM behind the `Engine` interface: token ids in, token ids, log-probabilities and weight-version spans out.

This module imports vLLM and is itself imported late, by name, once the environment that vLLM reads at import is set
(`generator.engine_environment`). Only public names of vLLM are used; the pinned version is the truth about them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time

import msgspec
import pydantic
from vllm import AsyncEngineArgs, SamplingParams, TokensPrompt
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from headrace.actors.engine import UNSYNCED, EngineDied, EngineSettings, Output, RequestFailed
from headrace.actors.libnuma import check_libnuma
from headrace.actors.weight_sync import vllm_backend
from headrace.actors.weight_sync.receiver import StagingStatus
from headrace.actors.weight_sync.transport import GroupAddress
from headrace.verifiers.base import nearest
from headrace.verifiers.errors import UserError, WrongValue
from headrace.verifiers.records import Sampling, StopReason, WeightManifest, WeightSpan


class VllmEngine:
    def __init__(self) -> None:
        self._requests = itertools.count()
        self._version = UNSYNCED
        self._pauses = 0
        self._pausing = asyncio.Lock()
        self._admitting = asyncio.Event()
        self._admitting.set()

    async def start(self, settings: EngineSettings) -> None:
        self._settings = settings
        if not settings.on_gpu:
            check_libnuma()
        arguments = engine_arguments(settings)
        # One place stays free, for the probes that attest new weights: behind long requests they would miss their deadline.
        self._slots = max(1, (arguments.max_num_seqs or 32) - 1)
        self._free_slots = asyncio.Semaphore(self._slots)
        # Building the engine blocks for tens of seconds; the actor's loop goes on answering.
        loop = asyncio.get_running_loop()
        try:
            config = await loop.run_in_executor(None, arguments.create_engine_config)
        except ValueError as error:
            raise UserError(f"vLLM refuses the engine's arguments: {reason_of(error)}") from error
        self._engine = AsyncLLM.from_vllm_config(config)

    @property
    def version(self) -> int:
        return self._version

    @property
    def slots(self) -> int:
        return self._slots

    async def complete(self, token_ids: list[int], sampling: Sampling) -> Output:
        params = SamplingParams(
            max_tokens=sampling.max_tokens,
            min_tokens=sampling.min_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop=list(sampling.stop) or None,
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        # Blocks computed under other weights carry another salt: a request does not start from a stale prefix. vLLM fixes
        # the salt when it takes a request, so what it cannot compute yet waits here, and so does all during a swap.
        async with self._free_slots:
            await self._admitting.wait()
            prompt = TokensPrompt(prompt_token_ids=token_ids, cache_salt=str(self._version))
            final = await self._run(prompt, params)
        return to_output(final.outputs[0])

    async def probe(self, sequences: list[list[int]]) -> list[list[float]]:
        return list(await asyncio.gather(*[self._probe_one(sequence) for sequence in sequences]))

    async def _probe_one(self, sequence: list[int]) -> list[float]:
        params = SamplingParams(
            max_tokens=1, temperature=1.0, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY
        )
        prompt = TokensPrompt(prompt_token_ids=sequence, cache_salt=f"probe {self._version} {next(self._requests)}")
        final = await self._run(prompt, params)
        if final.prompt_logprobs is None:
            raise RequestFailed("the engine returned no prompt log-probabilities")
        pairs = zip(sequence[1:], final.prompt_logprobs[1:], strict=True)
        return [entry[token].logprob for token, entry in pairs if entry is not None]

    async def _run(self, prompt: TokensPrompt, params: SamplingParams) -> RequestOutput:
        final: RequestOutput | None = None
        try:
            async for output in self._engine.generate(prompt, params, f"r{next(self._requests)}"):
                final = output
        except EngineDeadError as error:
            raise EngineDied(str(error)) from error
        except ValueError as error:
            raise RequestFailed(str(error)) from error
        if final is None or not final.finished:
            raise RequestFailed("the request ended without a final output")
        return final

    async def join(self, address: GroupAddress, rank: int) -> None:
        # Weights that came in the group before and were not swapped in, since another of its members died, are an update
        # under way to vLLM, which takes no second one beside it.
        await self.abort_update()
        await self._engine.init_weight_transfer_engine(
            WeightTransferInitRequest(
                {
                    "address": msgspec.to_builtins(address),
                    "rank_offset": rank,
                    "local_host": self._settings.local_host,
                }
            )
        )

    async def receive(self, manifest: WeightManifest) -> None:
        await self._engine.start_weight_update()
        await self._engine.update_weights(WeightTransferUpdateRequest({"manifest": msgspec.to_builtins(manifest)}))

    async def staging(self) -> list[StagingStatus]:
        answers = await self._engine.collective_rpc("headrace_staging")
        return [msgspec.convert(answer, StagingStatus) for answer in answers]

    async def swap(self, version: int, clear_cache: bool) -> float:
        start = time.monotonic()
        self._admitting.clear()
        await self._engine.pause_generation(mode="keep", clear_cache=clear_cache)
        # When this fails, the model may be a mixture of two versions: it generates no more, and its requests stay frozen
        # until the generator is given up for it.
        await self._engine.finish_weight_update(str(version))
        self._version = version
        self._admitting.set()
        await self._resume_unless_held()
        return time.monotonic() - start

    async def abort_update(self) -> None:
        await self._engine.collective_rpc("headrace_abort_update")

    async def pause(self) -> None:
        async with self._pausing:
            self._pauses += 1
            if self._pauses == 1:
                await self._engine.pause_generation(mode="keep", clear_cache=False)

    async def resume(self) -> None:
        async with self._pausing:
            self._pauses = max(0, self._pauses - 1)
            if self._pauses == 0:
                await self._engine.resume_generation()

    async def _resume_unless_held(self) -> None:
        async with self._pausing:
            if self._pauses == 0:
                await self._engine.resume_generation()

    async def close(self) -> None:
        self._engine.shutdown()


def reason_of(error: ValueError) -> str:
    """The sentence that says what is wrong, in one line: pydantic puts it between a title and an address."""
    text = error.errors()[0]["msg"] if isinstance(error, pydantic.ValidationError) else str(error)
    return " ".join(text.split())


def engine_arguments(settings: EngineSettings) -> AsyncEngineArgs:
    """vLLM's arguments: our defaults, then the user's own by name.

    Raises:
        WrongValue: an option that vLLM does not know.
    """
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for name in settings.options:
        if name not in known:
            raise WrongValue(f"rollout.engine.{name}", f"vLLM has no engine argument `{name}`{nearest(name, known)}")
    values: dict[str, object] = {
        "model": settings.model,
        "dtype": settings.dtype,
        "max_model_len": settings.max_length,
        "max_num_seqs": 64,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "seed": settings.seed,
        "enforce_eager": not settings.on_gpu,
        "enable_prefix_caching": True,
        "kv_cache_memory_bytes": None if settings.on_gpu else settings.kv_cache_bytes,
        "disable_log_stats": False,
        "logprobs_mode": "processed_logprobs",
        "weight_transfer_config": WeightTransferConfig(backend=vllm_backend.BACKEND),
        "worker_extension_cls": f"{vllm_backend.__name__}.{vllm_backend.WorkerExtension.__name__}",
        **settings.options,
    }
    return AsyncEngineArgs(**values)  # type: ignore[arg-type]


def to_output(completion: CompletionOutput) -> Output:
    """vLLM's completion as ours."""
    token_ids = list(completion.token_ids)
    logprobs = completion.logprobs
    if logprobs is None or len(logprobs) != len(token_ids):
        raise RequestFailed("the engine returned no log-probability for some tokens")
    reasons = {"stop": StopReason.STOP, "length": StopReason.LENGTH}
    return Output(
        text=completion.text,
        token_ids=token_ids,
        logprobs=[entry[token].logprob for token, entry in zip(token_ids, logprobs, strict=True) if entry is not None],
        spans=[
            WeightSpan(UNSYNCED if span.version == "default" else int(span.version), span.start, span.end)
            for span in completion.weight_versions or []
        ],
        stop_reason=reasons.get(completion.finish_reason or "", StopReason.ABORTED),
    )
