"""Who owns a finished group: the queue's actor and a generator on a real Ray cluster, and a generator that is killed."""

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import ObjectRef
from ray.exceptions import OwnerDiedError

from headrace.actors.engine import EngineSettings, Output
from headrace.actors.generator import Generator, GeneratorSettings
from headrace.cluster.event_loop import Interrupts
from headrace.cluster.job_file import load_job
from headrace.cluster.members import Requirements, VerificationKind
from headrace.cluster.queue_actor import GeneratorEntry, QueueActor
from headrace.cluster.ray_cluster import ray_cluster
from headrace.verifiers.function import CallableVerifier
from headrace.verifiers.records import Group, Prompt, Sampling, StopReason, WeightSpan, decode
from tests.factories import EndlessPrompts, queue_plan

SECONDS = 240.0  # for all: processes start, and others may hold the cores
LONG = "a row this long lies in the object store, and not beside its reference " * 3000
GROUPS = 2


class LongRows(EndlessPrompts):
    def prompt(self, epoch: int, ordinal: int) -> Prompt:
        return Prompt(epoch, ordinal, [1, 2], {"prompt": LONG})


class Engine:
    """Answers at once."""

    version = 0

    async def start(self, settings: EngineSettings) -> None:
        """Nothing is loaded."""

    async def complete(self, token_ids: list[int], sampling: Sampling) -> Output:
        return Output("hello", [3, 4], [-0.1, -0.2], [WeightSpan(self.version, 0, 2)], StopReason.STOP)


class OwningGenerator(Generator):
    """A generator that also keeps an object of its own, which ends with it."""

    async def keep(self) -> list[ObjectRef]:
        return [ray.put(LONG)]


@pytest.fixture
def cluster(letters_job) -> Iterator[None]:
    ray.shutdown()  # a test before may have left one
    before = signal.getsignal(signal.SIGTERM)
    with ray_cluster(load_job(letters_job), Interrupts()):
        assert signal.getsignal(signal.SIGTERM) is before, "Ray's own handler would interrupt the end of the cluster"
        yield


def launch(actor_class: type, *arguments: object) -> Any:
    actor: Any = ray.remote(actor_class)
    return actor.options(num_cpus=0, max_concurrency=100).remote(*arguments)


async def until_lost(ref: ObjectRef) -> None:
    """The cluster takes a moment to notice that an object's owner is dead."""
    while True:
        try:
            await ref
        except OwnerDiedError:
            return


async def test_finished_groups_outlive_the_generator_that_made_them(cluster, tmp_path):
    logs, host = str(tmp_path), "127.0.0.1"
    settings = GeneratorSettings(
        run="run",
        name="g",
        host=host,
        engine=EngineSettings("m", 64, "float32", 0),
        verify_timeout_seconds=SECONDS,
        verify_attempts=1,
        log_dir=logs,
        engine_class=f"{__name__}:Engine",
    )
    generator = launch(OwningGenerator, settings)
    queue = launch(QueueActor, "run", LongRows(), queue_plan(groups_per_step=GROUPS, lease_seconds=SECONDS), None, logs)
    verifier = CallableVerifier(lambda completion, row: 0.5)
    worker = VerificationKind("run", host, verifier, Requirements({}), logs, SECONDS).launch("verification-0")
    async with asyncio.timeout(SECONDS):
        report, _ = await asyncio.gather(generator.start.remote(), worker.start.remote())
        await generator.set_workers.remote({"verification-0": worker})
        [own] = await generator.keep.remote()
        await queue.set_generators.remote({"g": GeneratorEntry(generator, 0, GROUPS)})
        while (await queue.status.remote()).ready < GROUPS:
            pass
        os.kill(report.pid, signal.SIGKILL)
        await until_lost(own)
        batch = await queue.take.remote(SECONDS)
        groups = [decode(each, Group) for each in await asyncio.gather(*[taken.payload for taken in batch.groups])]
    assert {group.prompt.id for group in groups} == {"0:0", "0:1"}
    assert all(group.prompt.row == {"prompt": LONG} for group in groups)
