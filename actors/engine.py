"""What a generator needs of an inference engine. `VllmEngine` is the real one; `SmallEngine` runs a small model in the
actor's own process, for tests of everything around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from headrace.verifiers.records import Sampling, StopReason, WeightManifest, WeightSpan

if TYPE_CHECKING:  # the queue's process knows EngineDied from here, and has no use for torch
    from headrace.actors.weight_sync.receiver import StagingStatus
    from headrace.actors.weight_sync.transport import GroupAddress

UNSYNCED = -2  # version of an engine's weights before its first swap: the model folder's, attested by nobody


class EngineSettings(msgspec.Struct, frozen=True):
    """What an engine is started with."""

    model: str  # folder or hub id
    max_length: int  # tokens
    dtype: str
    seed: int
    tensor_parallel_size: int = 1
    threads: str = "nobind"  # CPU only: cores, see RolloutSection.threads
    kv_cache_bytes: int = 2**30  # CPU only
    on_gpu: bool = False
    local_host: str = "127.0.0.1"
    options: dict[str, Any] = {}  # vLLM's engine arguments by their own names


class Output(msgspec.Struct, frozen=True):
    """A finished request. `logprobs` are of the sampling distribution, [tokens]."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    spans: list[WeightSpan]
    stop_reason: StopReason


class Engine(Protocol):
    """Methods raise `EngineDied` (below) once the engine can serve no more."""

    async def start(self, settings: EngineSettings) -> None: ...

    async def complete(self, token_ids: list[int], sampling: Sampling) -> Output:
        """One sample of one prompt."""
        ...

    async def probe(self, sequences: list[list[int]]) -> list[list[float]]:
        """Log-probabilities, at temperature 1, of tokens 1.. of each sequence; never from a cache. Waits while paused."""
        ...

    @property
    def version(self) -> int:
        """Of the weights in use; UNSYNCED before the first swap."""
        ...

    @property
    def slots(self) -> int:
        """Requests that the engine computes at once."""
        ...

    async def join(self, address: GroupAddress, rank: int) -> None: ...

    async def receive(self, manifest: WeightManifest) -> None:
        """Start to receive beside generation; `staging` says how far it is."""
        ...

    async def staging(self) -> list[StagingStatus]:
        """One for each worker of the engine."""
        ...

    async def swap(self, version: int, clear_cache: bool) -> float:
        """Put the staged weights in use; the seconds that generation stood still."""
        ...

    async def abort_update(self) -> None: ...

    async def pause(self) -> None:
        """Freeze requests where they are. Pauses nest with the swap's own."""
        ...

    async def resume(self) -> None: ...

    async def close(self) -> None: ...


class EngineDied(Exception):
    """The engine behind the generator is gone."""


class RequestFailed(Exception):
    """The engine refused or gave up one request, and goes on with the others."""
