"""Weights in buckets, their digest, and real gloo groups between threads on this machine."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.actors.weight_sync import transport
from headrace.actors.weight_sync.sender import WeightSender
from headrace.actors.weight_sync.transport import ALIGNMENT, GroupAddress, Layout
from headrace.verifiers.records import WeightTensor

HOST = "127.0.0.1"
SECONDS = 20.0  # what a transfer may take here at most; those below take a fraction of one
DTYPES = ["float32", "bfloat16", "float16", "int64", "uint8", "bool", "float64"]

shapes = st.lists(st.integers(0, 7), max_size=3)
tensors = st.lists(st.tuples(st.sampled_from(DTYPES), shapes), min_size=1, max_size=8).map(
    lambda pairs: [WeightTensor(f"layer.{i}", dtype, shape) for i, (dtype, shape) in enumerate(pairs)]
)


def fill(layout: Layout, seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Buckets with random tensors in them, and those tensors."""
    generator = torch.Generator().manual_seed(seed)
    buckets, values = layout.allocate(torch.device("cpu")), []
    for _, view in layout.views(buckets):
        value = torch.randint(0, 100, view.shape, generator=generator).to(view.dtype)
        view.copy_(value)
        values.append(value)
    return buckets, values


@settings(max_examples=100, deadline=None)
@given(tensors, st.integers(1, 2048), st.integers(0, 2**31))
def test_tensors_of_every_shape_and_dtype_come_out_of_the_buckets_as_they_went_in(records, bucket_bytes, seed):
    layout = Layout(records, bucket_bytes)
    buckets, values = fill(layout, seed)
    other = Layout(records, bucket_bytes)
    received = [bucket.clone() for bucket in buckets]
    for record, value, (name, view) in zip(records, values, other.views(received), strict=True):
        assert name == record.name
        assert list(view.shape) == record.shape
        assert view.dtype == getattr(torch, record.dtype)
        assert torch.equal(view, value)
    assert transport.checksum(received) == transport.checksum(buckets)


@settings(max_examples=100, deadline=None)
@given(tensors, st.integers(1, 2048))
def test_tensors_lie_aligned_apart_from_each_other_and_inside_their_bucket(records, bucket_bytes):
    layout = Layout(records, bucket_bytes)
    ends = [0] * len(layout.bucket_sizes)
    for slot in layout.slots:
        assert slot.offset % ALIGNMENT == 0
        assert slot.offset >= ends[slot.bucket]
        ends[slot.bucket] = slot.offset + slot.size
        assert ends[slot.bucket] <= layout.bucket_sizes[slot.bucket]
    for index, size in enumerate(layout.bucket_sizes):
        held = [slot for slot in layout.slots if slot.bucket == index]
        assert size <= bucket_bytes + ALIGNMENT or len([slot for slot in held if slot.size]) == 1


@settings(max_examples=50, deadline=None)
@given(tensors.filter(lambda records: sum(Layout(records).bucket_sizes) > 0), st.data())
def test_one_byte_that_differs_changes_the_checksum(records, data):
    layout = Layout(records)
    buckets, _ = fill(layout, 0)
    before = transport.checksum(buckets)
    bucket = data.draw(st.sampled_from([b for b in buckets if b.numel()]))
    place = data.draw(st.integers(0, bucket.numel() - 1))
    bucket[place] ^= 1
    assert transport.checksum(buckets) != before


def test_an_unknown_dtype_is_refused_by_name():
    with pytest.raises(ValueError, match="'float3' names no torch dtype"):
        Layout([WeightTensor("a", "float3", [1])])
    with pytest.raises(ValueError, match="names no torch dtype"):
        transport.dtype_of("nn")


def test_an_unknown_backend_is_refused_by_name():
    store = transport.host_store(HOST, SECONDS)
    with pytest.raises(ValueError, match="unknown backend 'mpi': gloo or nccl"):
        transport.make_group(store, GroupAddress(1, HOST, store.port, 2, "mpi", SECONDS), 0, HOST)


class Threads:
    """Calls that run beside the test; `results` raises what one of them raised."""

    def __init__(self) -> None:
        self._outcomes: list[Any] = []
        self._threads: list[threading.Thread] = []

    def run(self, call: Callable[[], Any]) -> None:
        index = len(self._outcomes)
        self._outcomes.append(None)

        def target() -> None:
            try:
                self._outcomes[index] = call()
            except (RuntimeError, ValueError) as error:
                self._outcomes[index] = error

        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def outcomes(self) -> list[Any]:
        for thread in self._threads:
            thread.join(2 * SECONDS)
            assert not thread.is_alive(), "a transfer has no end"
        return self._outcomes

    def results(self) -> list[Any]:
        for outcome in self.outcomes():
            if isinstance(outcome, Exception):
                raise outcome
        return self._outcomes


@pytest.fixture
def threads() -> Threads:
    return Threads()


def weights(value: float) -> Iterator[tuple[str, torch.Tensor]]:
    yield "embed", torch.full((100, 8), value, dtype=torch.bfloat16)
    yield "norm", torch.full((8,), -value, dtype=torch.float32)


def receive(address: GroupAddress, rank: int, layout: Layout) -> str:
    """One member's whole part in one transfer; the digest of what it got."""
    group = transport.make_group(transport.join_store(address), address, rank, HOST)
    buckets = layout.allocate(torch.device("cpu"))
    transport.broadcast(group, buckets)
    return transport.checksum(buckets)


def test_every_member_receives_the_senders_bytes(threads):
    sender = WeightSender("gloo", HOST, SECONDS)
    manifest = sender.snapshot(1, weights(0.5))
    address = sender.open_group(3)
    for rank in (1, 2):
        threads.run(lambda rank=rank: receive(address, rank, Layout(manifest.tensors)))
    sent = sender.send()
    assert threads.results() == [sent] * 2
    sender.close_group()


def test_a_group_serves_one_version_after_the_other(threads):
    sender = WeightSender("gloo", HOST, SECONDS)
    layout = Layout(sender.snapshot(1, weights(0.5)).tensors)
    address = sender.open_group(2)
    first_is_there = threading.Event()

    def member() -> list[str]:
        group = transport.make_group(transport.join_store(address), address, 1, HOST)
        digests = []
        for _ in range(2):
            buckets = layout.allocate(torch.device("cpu"))
            transport.broadcast(group, buckets)
            digests.append(transport.checksum(buckets))
            first_is_there.set()
        return digests

    threads.run(member)
    sent = [sender.send()]
    assert first_is_there.wait(SECONDS)
    sender.snapshot(2, weights(0.25))
    sent.append(sender.send())
    assert sent[0] != sent[1]
    assert threads.results() == [sent]
    sender.close_group()


def test_a_member_that_never_comes_ends_the_transfer_at_the_deadline_for_all(threads):
    sender = WeightSender("gloo", HOST, 1.0)
    manifest = sender.snapshot(1, weights(0.5))
    address = sender.open_group(3)
    threads.run(lambda: receive(address, 1, Layout(manifest.tensors)))
    with pytest.raises(RuntimeError):
        sender.send()
    assert isinstance(threads.outcomes()[0], RuntimeError)
    with pytest.raises(RuntimeError, match="open_group first"):
        sender.send()


def test_a_new_epoch_without_the_dead_member_carries_the_weights(threads):
    sender = WeightSender("gloo", HOST, 1.0)
    manifest = sender.snapshot(1, weights(0.5))
    sender.open_group(3)
    with pytest.raises(RuntimeError):
        sender.send()
    address = sender.open_group(2)
    assert address.epoch == 2
    threads.run(lambda: receive(address, 1, Layout(manifest.tensors)))
    sent = sender.send()
    assert threads.results() == [sent]
    sender.close_group()


def test_a_snapshot_waits_for_the_transfer_before_it_so_that_a_version_stays_whole(threads):
    sender = WeightSender("gloo", HOST, SECONDS)
    manifest = sender.snapshot(1, weights(0.5))
    address = sender.open_group(2)
    threads.run(sender.send)
    while not sender._busy.locked():
        threading.Event().wait(0.001)
    threads.run(lambda: sender.snapshot(2, weights(0.25)).version)
    received = receive(address, 1, Layout(manifest.tensors))
    sent, version = threads.results()
    assert (received, version) == (sent, 2)
    sender.close_group()


def test_the_digest_is_taken_in_the_transfer_and_not_in_the_snapshot_that_the_learner_waits_for(threads, monkeypatch):
    digested = []
    checksum = transport.checksum
    monkeypatch.setattr(transport, "checksum", lambda buckets: digested.append(1) or checksum(buckets))
    sender = WeightSender("gloo", HOST, SECONDS)
    manifest = sender.snapshot(1, weights(0.5))
    assert not digested
    address = sender.open_group(2)
    threads.run(sender.send)
    received = receive(address, 1, Layout(manifest.tensors))
    assert threads.results()[0] == received
    sender.close_group()


def test_a_snapshot_does_not_wait_for_a_transfer_without_end():
    sender = WeightSender("gloo", HOST, 0.05)
    with sender._busy, pytest.raises(TimeoutError, match="snapshot of version 2"):
        sender.snapshot(2, weights(0.25))


def test_a_snapshot_of_other_tensors_than_before_is_refused():
    sender = WeightSender("gloo", HOST, SECONDS)
    sender.snapshot(1, weights(0.5))
    with pytest.raises(ValueError, match="tensor 'head' where 'embed' was before"):
        sender.snapshot(2, [("head", torch.zeros(100, 8)), ("norm", torch.zeros(8))])


def test_sending_without_a_group_is_refused():
    sender = WeightSender("gloo", HOST, SECONDS)
    sender.snapshot(1, weights(0.5))
    with pytest.raises(RuntimeError, match="open_group first"):
        sender.send()
