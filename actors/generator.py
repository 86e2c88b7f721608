"""One member of the rollout pool: a shell round an engine, which turns leases into finished groups.

    lease -> group_size requests to the engine -> each finished sample to a verification worker at once
          -> the group: (numbers, payload), returned, so that the queue owns both objects

The weight-sync calls are the engine's, in the order in which `cluster/publisher.py` makes them.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from typing import Any

import msgspec
import prometheus_client
import structlog

from headrace.actors.engine import Engine, EngineDied, EngineSettings, Output, RequestFailed
from headrace.actors.member import GeneratorReport
from headrace.actors.shared_memory import segments_of
from headrace.actors.this_node import this_node
from headrace.actors.verification_client import VerificationClient
from headrace.actors.weight_sync.receiver import StagingState
from headrace.actors.weight_sync.transport import GroupAddress
from headrace.verifiers import telemetry
from headrace.verifiers.base import not_run
from headrace.verifiers.errors import WrongValue
from headrace.verifiers.records import (
    Completion,
    Group,
    GroupNumbers,
    Lease,
    Sample,
    StopReason,
    VerdictKind,
    WeightManifest,
    WeightSpan,
    encode,
)

log = structlog.get_logger()

POLL_SECONDS = 0.02  # between looks at a transfer under way
LOOK_SECONDS = 5.0  # between looks at whether the engine answers


class GeneratorSettings(msgspec.Struct, frozen=True, kw_only=True):
    run: str
    name: str
    host: str  # metrics bind to it
    engine: EngineSettings
    engine_class: str  # module:name
    verify_timeout_seconds: float
    verify_attempts: int
    log_dir: str | None = None  # None: stderr, which Ray keeps
    verify_repeatable: bool = False  # a slow check may be given to a second worker


class GeneratorStatus(msgspec.Struct, frozen=True):
    inflight: int  # groups
    groups: int  # finished since the start
    tokens: int  # generated since the start
    busy_seconds: float  # with at least one group in hand and not frozen
    silent_seconds: float  # for which the engine has not answered by now; see `EngineWatch`


class StagedUpdate(msgspec.Struct, frozen=True):
    """What the engine's workers hold after a transfer."""

    checksums: list[str]  # one a worker


class StagingFailed(Exception):
    """A transfer ended without the weights; the engine keeps those that it has."""


class Generator:
    """All methods run in the actor's event loop; many `generate` calls are under way at a time."""

    def __init__(self, settings: GeneratorSettings) -> None:
        telemetry.configure_logging(settings.run, settings.name, telemetry.log_stream(settings.log_dir, settings.name))
        self._settings = settings
        self._metrics = telemetry.Telemetry(telemetry.GENERATOR_METRICS, settings.run, settings.name)
        self._verification = VerificationClient(
            settings.verify_timeout_seconds, settings.verify_attempts, repeatable=settings.verify_repeatable
        )
        self._engine: Engine | None = None
        self._death: EngineDied | None = None
        self._watch: EngineWatch | None = None
        self._inflight = 0
        self._groups = 0
        self._tokens = 0
        self._busy = BusyClock()

    async def start(self) -> GeneratorReport:
        """Start the engine; returns when it can serve.

        Raises:
            UserError: with these settings no engine ever starts.
        """
        try:
            return await self._start()
        except Exception:
            log.error("start_failed", exc_info=True)
            raise

    async def _start(self) -> GeneratorReport:
        os.environ.update(engine_environment(self._settings.engine))
        module, name = self._settings.engine_class.split(":")
        # vLLM reads its environment when it is imported, so it is imported here and by name.
        engine: Engine = getattr(importlib.import_module(module), name)()
        start = time.monotonic()
        node = this_node()
        await engine.start(msgspec.structs.replace(self._settings.engine, local_host=node.address))
        self._engine = engine
        _, port = telemetry.serve_metrics([self._metrics.registry, prometheus_client.REGISTRY], self._settings.host)
        log.info("engine_started", seconds=round(time.monotonic() - start, 1))
        return GeneratorReport(
            pid=os.getpid(),
            node=node.address,
            metrics_url=telemetry.metrics_url(self._settings.host, port, node.address),
            node_id=node.id,
            shared_memory=segments_of(os.getpid()),
        )

    @property
    def _started(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the engine has not been started")
        return self._engine

    async def slots(self) -> int:
        """Requests that the engine computes at once."""
        return self._started.slots

    async def set_workers(self, workers: dict[str, Any]) -> None:
        """The verification pool's serving members, actor handles by name."""
        self._verification.set_workers(workers)

    async def generate(self, lease: Lease) -> tuple[bytes, bytes]:
        """One finished group: GroupNumbers and Group, encoded.

        Raises:
            EngineDied: the generator is of no more use.
        """
        self._hold(1)
        try:
            finished = await asyncio.gather(*[self._sample(lease) for _ in range(lease.group_size)])
        finally:
            self._hold(-1)
        self._groups += 1
        self._metrics.add(telemetry.GENERATOR_GROUPS)
        group = Group(lease.prompt, list(finished), self._settings.name, lease.sampling)
        numbers = group_numbers(group)
        self._metrics.observe(telemetry.GENERATOR_GENERATE, numbers.generate_seconds)
        return encode(numbers), encode(group)

    async def _sample(self, lease: Lease) -> Completion:
        start = time.monotonic()
        try:
            output = await self._started.complete(lease.prompt.token_ids, lease.sampling)
        except RequestFailed as error:
            log.warning("request_failed", prompt=lease.prompt.id, error=str(error))
            output = Output("", [], [], [WeightSpan(self._started.version, 0, 0)], StopReason.ABORTED)
        except EngineDied as error:
            self._death = error
            raise
        generated = time.monotonic()
        self._tokens += len(output.token_ids)
        self._metrics.add(telemetry.GENERATOR_TOKENS, len(output.token_ids))
        self._metrics.add(telemetry.GENERATOR_SAMPLES, stop_reason=output.stop_reason)
        if output.stop_reason is StopReason.ABORTED:
            verdict = not_run("aborted", message="the engine gave the sample up")
        else:
            verdict = await self._verification.verify(Sample(output.text, lease.prompt.row))
            self._metrics.observe(telemetry.GENERATOR_VERIFY, time.monotonic() - generated)
        return Completion(
            text=output.text,
            token_ids=output.token_ids,
            logprobs=output.logprobs,
            spans=output.spans,
            stop_reason=output.stop_reason,
            verdict=verdict,
            generate_seconds=generated - start,
        )

    def _hold(self, change: int) -> None:
        self._inflight += change
        self._busy.set(working=self._inflight > 0)
        self._metrics.set(telemetry.GENERATOR_INFLIGHT, self._inflight)

    async def join(self, address: GroupAddress, rank: int) -> None:
        await self._started.join(address, rank)
        if self._watch is None:  # a worker that has joined no group answers no look
            self._watch = EngineWatch(self._started)

    async def receive(self, manifest: WeightManifest, deadline_seconds: float) -> StagedUpdate:
        """Take a version's weights into staging buffers, beside generation.

        Raises:
            StagingFailed: the transfer failed or missed its deadline.
        """
        await self._started.receive(manifest)
        start = time.monotonic()
        while True:
            workers = await self._started.staging()
            failed = [worker.error for worker in workers if worker.state is StagingState.FAILED]
            late = time.monotonic() - start > deadline_seconds
            if failed or late:
                await self._started.abort_update()
                raise StagingFailed(failed[0] if failed else f"no complete weights after {deadline_seconds:.0f} s")
            if all(worker.state is StagingState.READY for worker in workers):
                self._metrics.observe(telemetry.GENERATOR_RECEIVE, max(worker.seconds for worker in workers))
                return StagedUpdate([worker.checksum or "" for worker in workers])
            await asyncio.sleep(POLL_SECONDS)

    async def swap(self, version: int, clear_cache: bool) -> float:
        """Put the staged weights in use; the seconds that generation stood still."""
        groups = self._inflight
        seconds = await self._started.swap(version, clear_cache)
        log.info("weights_swapped", version=version, groups=groups, seconds=round(seconds, 3))
        self._metrics.observe(telemetry.GENERATOR_PAUSE, seconds)
        self._metrics.set(telemetry.GENERATOR_VERSION, version)
        return seconds

    async def probe(self, sequences: list[list[int]]) -> list[list[float]]:
        return await self._started.probe(sequences)

    async def pause(self) -> None:
        await self._started.pause()
        self._busy.freeze(frozen=True)

    async def resume(self) -> None:
        await self._started.resume()
        self._busy.freeze(frozen=False)

    async def status(self) -> GeneratorStatus:
        """Raises EngineDied once a request has found that out, or what a look at the engine failed with: this process lives
        on, but is of no more use."""
        if self._death is not None:
            raise self._death
        return GeneratorStatus(
            inflight=self._inflight,
            groups=self._groups,
            tokens=self._tokens,
            busy_seconds=self._busy.seconds(),
            silent_seconds=self._watch.silent_seconds() if self._watch is not None else 0.0,
        )

    async def close(self) -> None:
        await self._verification.close()
        if self._watch is not None:
            await self._watch.close()
        if self._engine is not None:
            await self._engine.close()


class EngineWatch:
    """Asks the engine, again and again, for what its own processes answer between two of their steps, frozen or not: how
    far its staging is. One that is stopped, or stuck in a step, does not answer, although the actor round it does."""

    def __init__(self, engine: Engine, look_seconds: float = LOOK_SECONDS) -> None:
        self._engine = engine
        self._look_seconds = look_seconds
        self._asked: float | None = None  # when the question was put that has no answer yet
        self._task = asyncio.create_task(self._look(), name="watch the engine")

    async def _look(self) -> None:
        while True:
            self._asked = time.monotonic()
            await self._engine.staging()
            self._asked = None
            await asyncio.sleep(self._look_seconds)

    def silent_seconds(self) -> float:
        """How long the last question has waited for its answer. Raises what a look failed with."""
        if self._task.done() and not self._task.cancelled():
            self._task.result()
        asked = self._asked
        return time.monotonic() - asked if asked is not None else 0.0

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class BusyClock:
    """Seconds in which there was work and it was not frozen."""

    def __init__(self) -> None:
        self._frozen = False
        self._working = False
        self._total = 0.0
        self._since: float | None = None

    def set(self, *, working: bool) -> None:
        self._working = working
        self._update()

    def freeze(self, *, frozen: bool) -> None:
        self._frozen = frozen
        self._update()

    def _update(self) -> None:
        runs = self._working and not self._frozen
        if runs and self._since is None:
            self._since = time.monotonic()
        elif not runs and self._since is not None:
            self._total += time.monotonic() - self._since
            self._since = None

    def seconds(self) -> float:
        return self._total + (time.monotonic() - self._since if self._since is not None else 0.0)


def engine_environment(settings: EngineSettings) -> dict[str, str]:
    """What vLLM and OpenMP read from the environment when the engine's processes start.

    Raises:
        WrongValue: `threads` is no list of cores.
    """
    values = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING")}
    if settings.on_gpu:
        return values
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // settings.tensor_parallel_size)
    by_worker = [cores[i * share : (i + 1) * share] or cores for i in range(settings.tensor_parallel_size)]
    everything = "|".join(",".join(map(str, part)) for part in by_worker)
    return {
        **values,
        # A thread that waits for work sleeps: spinning takes the core away from the other pools on this machine.
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "VLLM_CPU_OMP_THREADS_BIND": everything if settings.threads == "all" else settings.threads,
        # Ray's own choice is one thread for each CPU that the actor asks for.
        **({"OMP_NUM_THREADS": str(share)} if settings.threads == "nobind" else {}),
        **(_one_process(settings.threads, cores) if settings.tensor_parallel_size == 1 else {}),
    }


def _one_process(threads: str, cores: list[int]) -> dict[str, str]:
    """Scheduler and worker in one process, which is ten seconds sooner up and half a gigabyte smaller than two.

    vLLM gives a lone CPU worker a process of its own only to start it with its OpenMP environment. Here that is set
    before, for the scheduler's process, and this variable makes vLLM leave the worker in it.
    """
    if threads not in ("all", "nobind"):
        cores = parse_cores(threads)
    binding = {} if threads == "nobind" else {"GOMP_CPU_AFFINITY": " ".join(map(str, cores))}
    return {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(len(cores)), **binding}


def parse_cores(text: str) -> list[int]:
    """The cores of a list such as `0-3,6`. Raises WrongValue when it is none.

    >>> parse_cores("0-3,6")
    [0, 1, 2, 3, 6]
    """
    cores: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            cores += range(int(first), int(last if dash else first) + 1)
    except ValueError as error:
        raise WrongValue(
            "rollout.threads", f"{text!r} is no list of cores such as 0-3,6; `all`, or `nobind`"
        ) from error
    return cores


def group_numbers(group: Group) -> GroupNumbers:
    """The small part of a group that decisions are made on."""
    versions = [span.version for completion in group.completions for span in completion.spans]
    return GroupNumbers(
        prompt_id=group.prompt.id,
        generator=group.generator,
        oldest_version=min(versions),
        newest_version=max(versions),
        prompt_tokens=len(group.prompt.token_ids),
        completion_tokens=[len(completion.token_ids) for completion in group.completions],
        rewards=[c.verdict.reward if c.counts else float("nan") for c in group.completions],
        passed=sum(c.counts and c.verdict.kind is VerdictKind.PASS for c in group.completions),
        stop_reasons=[completion.stop_reason for completion in group.completions],
        generate_seconds=max(completion.generate_seconds for completion in group.completions),
    )
