"""Receiving beside the work: a thread takes the weights into staging buffers while the engine goes on generating.

One `StagedReceiver` per engine worker. Nothing touches the model here; whoever owns the model takes the finished buffers
(`take`) and swaps them in under a short pause.
"""

from __future__ import annotations

import threading
import time
from enum import StrEnum

import msgspec
import torch

from headrace.actors.weight_sync import transport
from headrace.actors.weight_sync.transport import Group, GroupAddress, Layout
from headrace.verifiers.records import WeightManifest


class StagingState(StrEnum):
    IDLE = "idle"  # nothing is under way
    RECEIVING = "receiving"  # joining the group, or bytes are on the wire
    READY = "ready"  # all bytes are there; whether they are the sender's is for who knows both digests
    FAILED = "failed"  # see `error`


class StagingStatus(msgspec.Struct, frozen=True):
    state: StagingState
    version: int | None
    seconds: float  # from the start of the transfer to its end, or until now
    checksum: str | None  # of the bytes received; None until they are all there
    error: str | None


class StagedReceiver:
    """One member's end of the weight broadcast. Methods return at once; the thread does the waiting."""

    def __init__(self, device: torch.device, local_host: str) -> None:
        self._device = device
        self._local_host = local_host
        self._lock = threading.Lock()
        self._address: GroupAddress | None = None
        self._rank = 0
        self._group: Group | None = None
        self._status = StagingStatus(StagingState.IDLE, None, 0.0, None, None)
        self._started = 0.0
        self._attempt = 0
        self._staged: tuple[WeightManifest, Layout, list[torch.Tensor]] | None = None

    def join(self, address: GroupAddress, rank: int) -> None:
        """Belong to a new epoch; the connection itself is made by the next `receive`."""
        with self._lock:
            self._address, self._rank, self._group = address, rank, None

    def receive(self, manifest: WeightManifest) -> None:
        """Start to receive. Raises RuntimeError when no epoch was joined or a transfer is under way."""
        with self._lock:
            if self._address is None:
                raise RuntimeError("receive before join: this member belongs to no weight-sync group")
            if self._status.state is StagingState.RECEIVING:
                raise RuntimeError(f"weights of version {self._status.version} are still being received")
            self._started = time.monotonic()
            self._status = StagingStatus(StagingState.RECEIVING, manifest.version, 0.0, None, None)
            self._staged = None
            self._attempt += 1
            arguments = (self._attempt, manifest, self._address, self._rank, self._group)
        threading.Thread(target=self._run, args=arguments, name=f"receive-v{manifest.version}", daemon=True).start()

    def status(self) -> StagingStatus:
        with self._lock:
            if self._status.state is StagingState.RECEIVING:
                return msgspec.structs.replace(self._status, seconds=time.monotonic() - self._started)
            return self._status

    def take(self) -> tuple[WeightManifest, Layout, list[torch.Tensor]]:
        """The finished buffers, once. Raises RuntimeError unless the state is READY."""
        with self._lock:
            if self._staged is None:
                raise RuntimeError(f"no complete weights are staged: {self._status.state}: {self._status.error}")
            staged, self._staged = self._staged, None
            self._status = msgspec.structs.replace(self._status, state=StagingState.IDLE)
            return staged

    def abort(self) -> None:
        """Forget the transfer under way and leave its group; its thread ends by itself, unheeded."""
        with self._lock:
            group, self._group = self._group, None
            self._attempt += 1
            self._staged = None
            self._status = StagingStatus(StagingState.IDLE, None, 0.0, None, None)
        if group is not None:
            group.abort()

    def _run(
        self, attempt: int, manifest: WeightManifest, address: GroupAddress, rank: int, group: Group | None
    ) -> None:
        try:
            if group is None:
                group = transport.make_group(transport.join_store(address), address, rank, self._local_host)
                with self._lock:
                    if self._attempt == attempt:
                        self._group = group
            layout = Layout(manifest.tensors)
            buckets = layout.allocate(self._device)
            transport.broadcast(group, buckets)
            digest, error = transport.checksum(buckets), None
        except Exception as failure:  # noqa: BLE001 (whatever ends the thread is what `status` says)
            digest, error, layout, buckets = None, f"{type(failure).__name__}: {failure}", None, []
        with self._lock:
            if self._attempt != attempt:
                return
            seconds = time.monotonic() - self._started
            state = StagingState.FAILED if error else StagingState.READY
            self._status = StagingStatus(state, manifest.version, seconds, digest, error)
            if error is None and layout is not None:
                self._staged = (manifest, layout, buckets)
            else:
                self._group = None
