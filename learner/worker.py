"""One learner rank as a Ray actor: fetches its groups from the object store, and sends weights from rank 0.

Two threads: `compute` for everything collective, in the controller's order, and `transfer` for the weight broadcast, which
runs beside the next step. What they share is the send buffer inside `WeightSender`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import ray
import structlog
import torch

from headrace.actors.member import MemberReport
from headrace.actors.this_node import this_node
from headrace.actors.weight_sync.sender import WeightSender
from headrace.actors.weight_sync.transport import GroupAddress, free_port
from headrace.learner.rank import LearnerRank, StepMetrics
from headrace.learner.settings import LearnerSettings
from headrace.learner.supervised import SupervisedExample
from headrace.verifiers import telemetry
from headrace.verifiers.records import Group, WeightManifest, decode

log = structlog.get_logger()


class WorkerSettings(msgspec.Struct, frozen=True):
    """What a rank's actor needs beside the learner's own settings."""

    run: str
    host: str  # metrics bind to it
    learner: LearnerSettings
    world_size: int
    sync_backend: str  # "gloo" or "nccl"
    sync_timeout_seconds: float
    log_dir: str | None


class RankReport(MemberReport, frozen=True, kw_only=True):
    store_port: int  # where the ranks meet; of rank 0


class StepReport(msgspec.Struct, frozen=True):
    metrics: StepMetrics
    fetch_seconds: float
    seconds: float  # of the whole call


class Snapshot(msgspec.Struct, frozen=True):
    """A version that is ready to be sent, and what an engine that holds it must show."""

    manifest: WeightManifest
    probe_logprobs: list[list[float]]  # of the probe sequences: [i][t] is that of token t + 1
    seconds: float


def share_of_cores(cores: int, ranks: int) -> int:
    """Threads of each of the ranks that compute on the same cores: at least one.

    >>> share_of_cores(8, 3)
    2
    """
    return max(1, cores // ranks)


class LearnerWorker:
    """A shell round `LearnerRank`."""

    def __init__(self, settings: WorkerSettings, rank: int) -> None:
        name = f"learner-{rank}"
        telemetry.configure_logging(settings.run, name, telemetry.log_stream(settings.log_dir, name))
        self._settings = settings
        self._rank = LearnerRank(settings.learner, rank, settings.world_size)
        self._node = this_node()
        self._sender: WeightSender | None = None
        if rank == 0:
            self._sender = WeightSender(settings.sync_backend, self._node.address, settings.sync_timeout_seconds)
        self._metrics = telemetry.Telemetry(telemetry.LEARNER_METRICS, settings.run, name)
        self._server, port = telemetry.serve_metrics([self._metrics.registry], settings.host)
        self._url = telemetry.metrics_url(settings.host, port, self._node.address)

    @ray.method(concurrency_group="compute")
    def start(self) -> RankReport:
        """Offer a port for the ranks to meet on."""
        node = self._node
        port = free_port(node.address)
        return RankReport(os.getpid(), node.address, self._url, node.id, store_port=port)

    @ray.method(concurrency_group="compute")
    def setup(self, store_host: str, store_port: int, ranks_on_node: int) -> None:
        """Join the other ranks and load the policy."""
        learner = self._settings.learner
        if learner.device == "cpu" and learner.threads is None:
            torch.set_num_threads(share_of_cores(len(os.sched_getaffinity(0)), ranks_on_node))
        self._rank.setup(store_host, store_port)

    @ray.method(concurrency_group="compute")
    def train_step(self, payloads: list[Any], step: int) -> StepReport:
        """One optimizer step on this rank's groups, given as object references."""
        start = time.monotonic()
        groups = [decode(payload, Group) for payload in ray.get(payloads)]
        fetched = time.monotonic()
        metrics = self._rank.train_step(groups, step)
        seconds = time.monotonic() - start
        self._count(metrics)
        return StepReport(metrics, fetched - start, seconds)

    def _count(self, metrics: StepMetrics) -> None:
        self._metrics.add(telemetry.LEARNER_STEPS)
        self._metrics.add(telemetry.LEARNER_TOKENS, metrics.rank_tokens)
        for phase, spent in metrics.phases.items():
            self._metrics.add(telemetry.LEARNER_PHASE, spent, phase=phase)
        if torch.cuda.is_available():
            self._metrics.set(telemetry.LEARNER_DEVICE_MEMORY, torch.cuda.max_memory_allocated())

    @ray.method(concurrency_group="compute")
    def supervised_step(self, examples: list[SupervisedExample], learning_rate: float) -> float:
        return self._rank.supervised_step(examples, learning_rate)

    @ray.method(concurrency_group="compute")
    def finish_supervised(self) -> None:
        self._rank.finish_supervised()

    @ray.method(concurrency_group="compute")
    def snapshot(self, version: int, probe_sequences: list[list[int]]) -> Snapshot | None:
        """Make the present weights ready to be sent; every rank joins in, rank 0 answers."""
        start = time.monotonic()
        tensors = self._rank.named_full_tensors(self._settings.learner.served_dtype)
        manifest = None
        if self._sender is not None:
            manifest = self._sender.snapshot(version, tensors)
        else:
            for _ in tensors:  # gathering is collective
                pass
        logprobs = self._rank.probe(probe_sequences)
        self._metrics.set(telemetry.LEARNER_VERSION, version)
        return Snapshot(manifest, logprobs, time.monotonic() - start) if manifest else None

    @ray.method(concurrency_group="transfer")
    def open_group(self, world_size: int) -> GroupAddress:
        """Rank 0 only: a new weight-sync epoch."""
        return self._own_sender().open_group(world_size)

    @ray.method(concurrency_group="transfer")
    def send(self) -> str:
        """Rank 0 only: broadcast the snapshot; the digest of its bytes. Raises RuntimeError when a member is lost."""
        return self._own_sender().send()

    def _own_sender(self) -> WeightSender:
        if self._sender is None:
            raise RuntimeError("only rank 0 sends weights")
        return self._sender

    @ray.method(concurrency_group="compute")
    def save(self, folder: str) -> float:
        start = time.monotonic()
        self._rank.save(Path(folder))
        return time.monotonic() - start

    @ray.method(concurrency_group="compute")
    def load(self, folder: str) -> int:
        return self._rank.load(Path(folder))

    @ray.method(concurrency_group="compute")
    def export(self, folder: str) -> None:
        self._rank.export(Path(folder))

    @ray.method(concurrency_group="compute")
    def close(self) -> None:
        if self._sender is not None:
            self._sender.close_group()
        self._rank.close()
        telemetry.stop_serving(self._server)
