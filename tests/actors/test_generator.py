"""A generator round an engine that answers as it is told: groups, verdicts, weights, and an engine's death."""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from headrace.actors.engine import EngineDied, EngineSettings, Output, RequestFailed
from headrace.actors.generator import (
    BusyClock,
    EngineWatch,
    Generator,
    GeneratorSettings,
    StagingFailed,
    engine_environment,
    group_numbers,
)
from headrace.actors.small_engine import spans_of
from headrace.actors.weight_sync.receiver import StagingState, StagingStatus
from headrace.actors.weight_sync.transport import GroupAddress
from headrace.verifiers.base import not_run
from headrace.verifiers.errors import UserError
from headrace.verifiers.records import (
    Completion,
    Group,
    GroupNumbers,
    Lease,
    Prompt,
    Sample,
    Sampling,
    StopReason,
    Verdict,
    VerdictKind,
    WeightManifest,
    WeightSpan,
    decode,
)

SAMPLING = Sampling(max_tokens=4)
PROMPT = Prompt(1, 5, [7, 8, 9], {"prompt": "hi"})
SETTINGS = EngineSettings("model", 64, "float32", 0)
MANIFEST = WeightManifest(3, [])
SECONDS = 5.0  # nothing here takes a tenth of it


class FakeEngine:
    """Ends its n-th request as `outcomes[n]` says, a future when it is done, and the rest well."""

    version = 2
    slots = 8

    def __init__(self) -> None:
        self.outcomes: list[Output | Exception | asyncio.Future[Output]] = []
        self.requests = 0
        self.workers: list[StagingStatus] = []
        self.calls: list[str] = []

    async def start(self, settings: EngineSettings) -> None:
        self.settings = settings

    async def complete(self, token_ids: list[int], sampling: Sampling) -> Output:
        self.requests += 1
        outcome = self.outcomes.pop(0) if self.outcomes else output(f"answer {self.requests}")
        if isinstance(outcome, Exception):
            raise outcome
        return await outcome if isinstance(outcome, asyncio.Future) else outcome

    async def probe(self, sequences: list[list[int]]) -> list[list[float]]:
        return [[-1.0] * (len(sequence) - 1) for sequence in sequences]

    async def join(self, address: GroupAddress, rank: int) -> None:
        self.calls.append(f"join {rank}")

    async def receive(self, manifest: WeightManifest) -> None:
        self.calls.append(f"receive {manifest.version}")

    async def staging(self) -> list[StagingStatus]:
        return self.workers

    async def swap(self, version: int, clear_cache: bool) -> float:
        self.calls.append(f"swap {version}")
        return 0.5

    async def abort_update(self) -> None:
        self.calls.append("abort")

    async def pause(self) -> None:
        self.calls.append("pause")

    async def resume(self) -> None:
        self.calls.append("resume")

    async def close(self) -> None:
        self.calls.append("close")


class Remote:
    """A method of an actor handle."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.remote = call


class Worker:
    """A verification worker that passes what has an even number in it."""

    def __init__(self) -> None:
        self.verify = Remote(self._verify)
        self.asked: asyncio.Queue[str] = asyncio.Queue()

    async def _verify(self, samples: list[Sample]) -> list[Verdict]:
        for sample in samples:
            self.asked.put_nowait(sample.completion)
        return [
            Verdict(VerdictKind.PASS, 1.0, "even") if sample.completion[-1:] in "02468" else not_run("odd", message="")
            for sample in samples
        ]


def output(text: str, spans: list[WeightSpan] | None = None) -> Output:
    return Output(text, [1, 2], [-0.1, -0.2], spans or [WeightSpan(2, 0, 2)], StopReason.STOP)


def lease(group_size: int) -> Lease:
    return Lease(1, PROMPT, group_size, SAMPLING)


def settings_of(engine: str, log_dir: Path) -> GeneratorSettings:
    return GeneratorSettings(
        run="run",
        name="rollout-0",
        host="127.0.0.1",
        engine=SETTINGS,
        verify_timeout_seconds=5.0,
        verify_attempts=1,
        log_dir=str(log_dir),
        engine_class=f"{__name__}:{engine}",
    )


@pytest.fixture
async def generator(tmp_path):
    settings = settings_of("FakeEngine", tmp_path)
    with mock.patch.dict(os.environ):
        generator = Generator(settings)
        report = await generator.start()
    assert report.pid == os.getpid()
    await generator.set_workers({"w": Worker()})
    yield generator
    await generator.close()


def engine_of(generator: Generator) -> FakeEngine:
    engine = generator._started
    assert isinstance(engine, FakeEngine)
    return engine


async def test_a_lease_becomes_a_group_with_its_provenance_and_numbers(generator):
    numbers_bytes, group_bytes = await generator.generate(lease(3))
    group, numbers = decode(group_bytes, Group), decode(numbers_bytes, GroupNumbers)
    assert (group.prompt, group.generator, group.sampling) == (PROMPT, "rollout-0", SAMPLING)
    assert {completion.text: completion.verdict.reason for completion in group.completions} == {
        "answer 1": "odd",
        "answer 2": "even",
        "answer 3": "odd",
    }
    assert numbers.scored == [1.0]
    assert numbers.prompt_id == "1:5"
    status = await generator.status()
    assert (status.groups, status.tokens, status.inflight) == (1, 6, 0)


async def test_a_sample_is_scored_while_its_siblings_still_generate(generator):
    first, second = (asyncio.get_running_loop().create_future() for _ in range(2))
    engine_of(generator).outcomes = [first, second]
    worker = Worker()
    await generator.set_workers({"another": worker})
    generating = asyncio.create_task(generator.generate(lease(2)))
    first.set_result(output("2"))
    assert await asyncio.wait_for(worker.asked.get(), SECONDS) == "2"
    assert not second.done()
    second.set_result(output("4"))
    numbers, _ = await generating
    assert decode(numbers, GroupNumbers).scored == [1.0, 1.0]


async def test_a_request_that_the_engine_gives_up_is_an_aborted_sample_of_its_group(generator):
    engine_of(generator).outcomes = [output("2"), RequestFailed("too long"), output("4")]
    worker = Worker()
    await generator.set_workers({"another": worker})
    _, payload = await generator.generate(lease(3))
    assert worker.asked.qsize() == 2, "what the engine gave up is not checked"
    group = decode(payload, Group)
    assert [completion.stop_reason for completion in group.completions].count(StopReason.ABORTED) == 1
    assert sorted(group_numbers(group).scored) == [1.0, 1.0]


async def test_an_engine_that_died_fails_its_leases_and_every_look_at_it(generator):
    engine_of(generator).outcomes = [EngineDied("its process was killed")]
    await generator.status()
    with pytest.raises(EngineDied):
        await generator.generate(lease(1))
    with pytest.raises(EngineDied, match="its process was killed"):
        await generator.status()


async def test_a_generator_whose_engine_was_not_started_says_so(tmp_path):
    settings = settings_of("FakeEngine", tmp_path)
    generator = Generator(settings)
    with pytest.raises(RuntimeError, match="has not been started"):
        await generator.slots()
    await generator.close()


class BrokenEngine(FakeEngine):
    async def start(self, settings: EngineSettings) -> None:
        raise OSError("no weights in the folder")


async def test_what_an_engine_fails_to_start_with_is_in_the_members_log(tmp_path):
    settings = settings_of("BrokenEngine", tmp_path)
    with mock.patch.dict(os.environ), pytest.raises(OSError, match="no weights"):
        await Generator(settings).start()
    [line] = [json.loads(line) for line in (tmp_path / "rollout-0.jsonl").read_text().splitlines()]
    assert line["event"] == "start_failed"
    assert "OSError: no weights in the folder" in line["exception"]


@pytest.mark.parametrize("threads", ["auto", "0-x", "0-", ""])
def test_threads_that_are_no_list_of_cores_are_the_users_mistake(threads):
    with pytest.raises(UserError, match=r"^rollout\.threads: .* is no list of cores"):
        engine_environment(EngineSettings("m", 64, "float32", 0, threads=threads))


def staging(state: StagingState, checksum: str | None = None, error: str | None = None) -> StagingStatus:
    return StagingStatus(state, 3, 0.25, checksum, error)


async def test_an_update_is_staged_once_every_worker_of_the_engine_has_it(generator):
    engine = engine_of(generator)
    engine.workers = [staging(StagingState.READY, "a"), staging(StagingState.RECEIVING)]
    receiving = asyncio.create_task(generator.receive(MANIFEST, 5.0))
    done, _ = await asyncio.wait({receiving}, timeout=0.1)
    assert not done
    engine.workers = [staging(StagingState.READY, "a"), staging(StagingState.READY, "b")]
    update = await receiving
    assert update.checksums == ["a", "b"]
    assert engine.calls == ["receive 3"]


async def test_a_transfer_that_fails_in_one_worker_is_aborted_in_all(generator):
    engine = engine_of(generator)
    engine.workers = [staging(StagingState.READY, "a"), staging(StagingState.FAILED, error="connection reset")]
    with pytest.raises(StagingFailed, match="connection reset"):
        await generator.receive(MANIFEST, 5.0)
    assert engine.calls == ["receive 3", "abort"]


async def test_a_transfer_that_does_not_end_is_aborted_at_its_deadline(generator):
    engine = engine_of(generator)
    engine.workers = [staging(StagingState.RECEIVING)]
    with pytest.raises(StagingFailed, match="no complete weights after"):
        await generator.receive(MANIFEST, 0.05)
    assert engine.calls == ["receive 3", "abort"]


class SilentEngine(FakeEngine):
    """Answers a look at it when it is let go, with an error if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.lives = asyncio.Event()
        self.looks = 0
        self.fault: Exception | None = None

    async def staging(self) -> list[StagingStatus]:
        self.looks += 1
        await self.lives.wait()
        if self.fault is not None:
            raise self.fault
        return []


async def reach(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


async def test_an_engine_that_does_not_answer_is_silent_until_it_does():
    engine = SilentEngine()
    watch = EngineWatch(engine, look_seconds=0.001)
    assert watch.silent_seconds() == 0.0
    await reach(lambda: watch.silent_seconds() > 0.02)
    engine.lives.set()
    await reach(lambda: engine.looks > 3)
    assert watch.silent_seconds() < 0.02
    engine.fault = EngineDied("its process was killed")
    with pytest.raises(EngineDied, match="its process was killed"):
        await reach(lambda: watch.silent_seconds() < 0)
    await watch.close()


async def test_a_generator_whose_engine_is_stopped_while_it_generates_says_for_how_long(tmp_path):
    settings = settings_of("SilentEngine", tmp_path)
    generator = Generator(settings)
    with mock.patch.dict(os.environ):
        await generator.start()
    assert (await generator.status()).silent_seconds == 0.0
    await generator.join(GroupAddress(1, "127.0.0.1", 1, 2, "gloo", 5.0), 1)
    engine_of(generator).outcomes = [asyncio.get_running_loop().create_future()]
    generating = asyncio.create_task(generator.generate(lease(1)))
    await asyncio.sleep(0)
    before = await generator.status()
    async with asyncio.timeout(SECONDS):
        while (await generator.status()).silent_seconds <= before.silent_seconds + 0.02:
            await asyncio.sleep(0.001)
    assert (await generator.status()).inflight == 1
    generating.cancel()
    await generator.close()
    assert engine_of(generator).calls == ["join 1", "close"]


def test_busy_seconds_count_work_that_is_not_frozen():
    clock = BusyClock()
    assert not grows(clock)
    clock.set(working=True)
    assert grows(clock)
    clock.freeze(frozen=True)
    assert not grows(clock)
    clock.freeze(frozen=False)
    assert grows(clock)
    clock.set(working=False)
    assert not grows(clock)


def grows(clock: BusyClock) -> bool:
    before, end = clock.seconds(), time.monotonic() + 0.002
    while time.monotonic() < end:
        pass
    return clock.seconds() > before


def completion(
    verdict: Verdict, stop: StopReason = StopReason.STOP, spans: list[WeightSpan] | None = None
) -> Completion:
    return Completion("", [1], [-0.1], spans or [WeightSpan(4, 0, 1)], stop, verdict, 1.0)


def test_numbers_mask_out_samples_without_a_verdict_and_aborted_ones():
    passed = Verdict(VerdictKind.PASS, 1.0, "match")
    group = Group(
        PROMPT,
        [
            completion(passed),
            completion(Verdict(VerdictKind.FAIL, 0.25, "near")),
            completion(not_run("timeout", message="")),
            completion(passed, StopReason.ABORTED),
        ],
        "g",
        SAMPLING,
    )
    numbers = group_numbers(group)
    assert numbers.scored == [1.0, 0.25]
    assert len(numbers.rewards) == 4
    assert numbers.has_variance


def test_numbers_name_the_oldest_and_the_newest_weights_of_any_token():
    verdict = Verdict(VerdictKind.PASS, 1.0, "match")
    group = Group(
        PROMPT,
        [completion(verdict, spans=spans_of([5, 5, 6])), completion(verdict, spans=spans_of([4]))],
        "g",
        SAMPLING,
    )
    numbers = group_numbers(group)
    assert (numbers.oldest_version, numbers.newest_version) == (4, 6)
    assert numbers.prompt_tokens == 3


def test_an_engine_on_a_cpu_computes_where_the_job_says():
    chosen = engine_environment(EngineSettings("m", 64, "float32", 0, threads="0-3"))
    assert chosen["VLLM_CPU_OMP_THREADS_BIND"] == "0-3"
    assert (chosen["GOMP_CPU_AFFINITY"], chosen["OMP_NUM_THREADS"]) == ("0 1 2 3", "4")
    free = engine_environment(EngineSettings("m", 64, "float32", 0, threads="nobind"))
    assert "GOMP_CPU_AFFINITY" not in free
    assert int(free["OMP_NUM_THREADS"]) == len(os.sched_getaffinity(0))
    everything = engine_environment(EngineSettings("m", 64, "float32", 0, threads="all"))["VLLM_CPU_OMP_THREADS_BIND"]
    assert {int(core) for core in everything.split(",")} == os.sched_getaffinity(0)
    split = engine_environment(EngineSettings("m", 64, "float32", 0, threads="all", tensor_parallel_size=2))
    assert split["VLLM_CPU_OMP_THREADS_BIND"].count("|") == 1
    assert "OMP_NUM_THREADS" not in split  # vLLM sets it for each of its worker processes
    shared = engine_environment(EngineSettings("m", 64, "float32", 0, tensor_parallel_size=2))
    assert int(shared["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert "VLLM_CPU_OMP_THREADS_BIND" not in engine_environment(EngineSettings("m", 64, "bfloat16", 0, on_gpu=True))
