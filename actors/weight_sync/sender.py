"""The learner's end: a snapshot of the weights in send buffers, and groups to broadcast it over.

`snapshot` copies; the learner trains on while `send` broadcasts and digests in a thread. There is one set of buffers: a new
snapshot waits for the transfers of the old one, which is what keeps a late joiner's weights whole.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch
from torch.distributed import TCPStore

from headrace.actors.weight_sync import transport
from headrace.actors.weight_sync.transport import Group, GroupAddress, Layout
from headrace.verifiers.records import WeightManifest, WeightTensor


class WeightSender:
    """Lives in the learner's rank 0. Thread-safe; one transfer at a time."""

    def __init__(self, backend: str, host: str, timeout_seconds: float) -> None:
        self._backend = backend
        self._host = host
        self._timeout_seconds = timeout_seconds
        self._busy = threading.Lock()
        self._epoch = 0
        self._address: GroupAddress | None = None
        self._store: TCPStore | None = None
        self._group: Group | None = None
        self._layout: Layout | None = None
        self._buckets: list[torch.Tensor] = []
        self._checksum: str | None = None  # of what is in the buckets, once it has been sent

    def snapshot(self, version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> WeightManifest:
        """Copy the weights into the send buffers. Their digest is left to `send`: the learner waits for this call.

        Args:
            version: of these weights.
            tensors: full tensors by Hugging Face name, in the serving dtype. The names, dtypes and shapes are the same
                at every call.

        Raises:
            TimeoutError: the transfer of the version before did not end within the deadline.
        """
        if not self._busy.acquire(timeout=self._timeout_seconds):
            raise TimeoutError(f"snapshot of version {version}: the transfer before it did not end in time")
        try:
            if self._layout is None:
                held = [(name, tensor.detach()) for name, tensor in tensors]
                records = [WeightTensor(n, str(t.dtype).removeprefix("torch."), list(t.shape)) for n, t in held]
                self._layout = Layout(records)
                self._buckets = self._layout.allocate(held[0][1].device)
                tensors = held
            for (name, source), (expected, target) in zip(tensors, self._layout.views(self._buckets), strict=True):
                if name != expected:
                    raise ValueError(f"snapshot of version {version}: tensor {name!r} where {expected!r} was before")
                target.copy_(source)
            self._checksum = None
            return WeightManifest(version, self._layout.tensors)
        finally:
            self._busy.release()

    def open_group(self, world_size: int) -> GroupAddress:
        """Start a new epoch for `world_size` processes, this one included; the group before it is dropped."""
        self.close_group()
        self._epoch += 1
        self._store = transport.host_store(self._host, self._timeout_seconds)
        self._address = GroupAddress(
            self._epoch, self._host, self._store.port, world_size, self._backend, self._timeout_seconds
        )
        return self._address

    def send(self) -> str:
        """Broadcast the snapshot to the epoch's members, and digest it while they digest what they received; the digest
        (`transport.checksum`). Call it in a thread.

        After any error the group is dropped, so that the members that wait in it see its end at once.

        Raises:
            RuntimeError: a member died or missed the deadline.
        """
        with self._busy:
            if self._address is None or self._store is None:
                raise RuntimeError("send without a group: call open_group first")
            try:
                if self._group is None:
                    self._group = transport.make_group(self._store, self._address, 0, self._host)
                transport.broadcast(self._group, self._buckets)
                if self._checksum is None:
                    self._checksum = transport.checksum(self._buckets)
                return self._checksum
            except Exception:
                self.close_group()
                raise

    def close_group(self) -> None:
        group, self._group, self._store, self._address = self._group, None, None, None
        if group is not None:
            group.abort()
