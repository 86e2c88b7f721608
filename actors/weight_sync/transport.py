"""The wire: how weights lie in buffers, how they are digested, and the group that broadcasts them.

The learner's rank 0 is rank 0 of every group and its only sender. A group belongs to one *epoch* of membership: it is made
for the members of the day and thrown away when they change. Nothing here knows of vLLM or of Ray; `gloo` carries the
bytes between CPUs and `nccl` between GPUs, over the same calls.
"""

from __future__ import annotations

import hashlib
import math
import socket
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Protocol, cast

import msgspec
import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

from headrace.verifiers.records import WeightTensor

BUCKET_BYTES = 256 * 2**20
ALIGNMENT = 256  # bytes; every tensor of a bucket starts at a multiple, so that it can be viewed in its own dtype


class Group(Protocol):
    """What is used of torch's process groups, whose stubs name neither."""

    def broadcast(self, tensor: torch.Tensor, root: int) -> Any: ...

    def abort(self) -> None:
        """End every call under way in this process; the other members see the connection close."""


class GroupAddress(msgspec.Struct, frozen=True):
    """Where the members of one epoch meet."""

    epoch: int
    host: str
    port: int
    world_size: int  # sender included
    backend: str  # "gloo" or "nccl"
    timeout_seconds: float


class Slot(msgspec.Struct, frozen=True):
    """A tensor's place: bytes [offset, offset + size) of one bucket."""

    bucket: int
    offset: int
    size: int


class Layout:
    """Places tensors in buckets, in order: the same on both sides, since it follows from the tensors alone."""

    def __init__(self, tensors: Sequence[WeightTensor], bucket_bytes: int = BUCKET_BYTES) -> None:
        self.tensors = list(tensors)
        self.slots: list[Slot] = []
        self.bucket_sizes: list[int] = []
        used = 0
        for tensor in self.tensors:
            size = math.prod(tensor.shape) * dtype_of(tensor.dtype).itemsize
            if not self.bucket_sizes or (used + size > bucket_bytes and used > 0):
                self.bucket_sizes.append(0)
                used = 0
            self.slots.append(Slot(len(self.bucket_sizes) - 1, used, size))
            used += math.ceil(size / ALIGNMENT) * ALIGNMENT
            self.bucket_sizes[-1] = used

    def allocate(self, device: torch.device) -> list[torch.Tensor]:
        """Zeroed buckets, uint8 [bucket bytes] each; the padding is digested too, so it must be the same everywhere."""
        return [torch.zeros(size, dtype=torch.uint8, device=device) for size in self.bucket_sizes]

    def views(self, buckets: Sequence[torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Each tensor by name, as a view into its bucket."""
        for tensor, slot in zip(self.tensors, self.slots, strict=True):
            flat = buckets[slot.bucket][slot.offset : slot.offset + slot.size]
            yield tensor.name, flat.view(dtype_of(tensor.dtype)).view(tensor.shape)


def dtype_of(name: str) -> torch.dtype:
    """The torch dtype of that name. Raises ValueError when there is none."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} names no torch dtype")
    return dtype


def checksum(buckets: Iterable[torch.Tensor]) -> str:
    """sha256 of all bytes of the buckets, in order."""
    digest = hashlib.sha256()
    for bucket in buckets:
        digest.update(bucket.cpu().numpy().data)
    return digest.hexdigest()


def free_port(host: str) -> int:
    """A TCP port of `host` that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def host_store(host: str, timeout_seconds: float) -> TCPStore:
    """The sender's store, on a free port of `host` (its `.port`)."""
    return TCPStore(
        host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_seconds), use_libuv=True
    )


def join_store(address: GroupAddress) -> TCPStore:
    """A receiver's connection to the sender's store. Raises torch.distributed.DistNetworkError past the deadline."""
    return TCPStore(
        address.host,
        address.port,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=address.timeout_seconds),
        use_libuv=True,
    )


def make_group(store: TCPStore, address: GroupAddress, rank: int, local_host: str) -> Group:
    """Connect to every member of the epoch; blocks until all are there.

    Raises:
        RuntimeError: not all of them came within the deadline.
    """
    timeout = timedelta(seconds=address.timeout_seconds)
    prefixed = PrefixStore(f"headrace/{address.epoch}", store)
    if address.backend == "gloo":
        options = cast(Any, ProcessGroupGloo)._Options()
        options._timeout = timeout
        options._devices = [ProcessGroupGloo.create_device(hostname=local_host)]
        return cast(Any, ProcessGroupGloo)(prefixed, rank, address.world_size, options)
    if address.backend == "nccl":
        # Exists in GPU builds only, so it cannot be imported at the top of the file.
        from torch.distributed import ProcessGroupNCCL

        nccl_options = ProcessGroupNCCL.Options()
        nccl_options._timeout = timeout
        return cast(Any, ProcessGroupNCCL)(prefixed, rank, address.world_size, nccl_options)
    raise ValueError(f"unknown backend {address.backend!r}: gloo or nccl")


def broadcast(group: Group, buckets: Sequence[torch.Tensor]) -> None:
    """Send (rank 0) or receive (the others) all buckets; returns when they are complete.

    Raises:
        RuntimeError: a member died, or the deadline passed.
    """
    works = [group.broadcast(bucket, 0) for bucket in buckets]
    for work in works:
        work.wait()
    if buckets and buckets[0].is_cuda:
        torch.cuda.synchronize(buckets[0].device)
