"""Receiving beside the work, from a real sender over gloo: what is staged, what is refused, what is forgotten."""

import threading
import time
from collections.abc import Iterator, Sequence

import msgspec
import pytest
import torch

from headrace.actors.weight_sync import transport
from headrace.actors.weight_sync.receiver import StagedReceiver, StagingState, StagingStatus
from headrace.actors.weight_sync.sender import WeightSender
from headrace.actors.weight_sync.transport import GroupAddress
from headrace.verifiers.records import WeightManifest

HOST = "127.0.0.1"
SECONDS = 20.0


def weights(value: float) -> Iterator[tuple[str, torch.Tensor]]:
    yield "embed", torch.full((50, 4), value, dtype=torch.bfloat16)
    yield "norm", torch.full((4,), -value, dtype=torch.float32)


def receiver_in(address: GroupAddress, rank: int = 1) -> StagedReceiver:
    receiver = StagedReceiver(torch.device("cpu"), HOST)
    receiver.join(address, rank)
    return receiver


def settled(receiver: StagedReceiver) -> StagingStatus:
    """The status once the transfer under way has ended."""
    end = time.monotonic() + 2 * SECONDS
    while (status := receiver.status()).state is StagingState.RECEIVING:
        assert time.monotonic() < end, "the transfer has no end"
        threading.Event().wait(0.005)
    return status


def receiving_threads(version: int) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"receive-v{version}"]


@pytest.fixture
def sender() -> Iterator[WeightSender]:
    sender = WeightSender("gloo", HOST, SECONDS)
    yield sender
    sender.close_group()


@pytest.fixture
def manifest(sender: WeightSender) -> WeightManifest:
    """Of the snapshot that the sender begins with."""
    return sender.snapshot(1, weights(0.5))


def test_the_weights_are_staged_under_their_names_and_taken_once(sender, manifest):
    receiver = receiver_in(sender.open_group(2))
    receiver.receive(manifest)
    sent = sender.send()
    status = settled(receiver)
    assert (status.state, status.version, status.checksum) == (StagingState.READY, 1, sent)
    manifest, layout, buckets = receiver.take()
    assert manifest.version == 1
    received = {name: tensor.float().unique().tolist() for name, tensor in layout.views(buckets)}
    assert received == {"embed": [0.5], "norm": [-0.5]}
    assert receiver.status().state is StagingState.IDLE
    with pytest.raises(RuntimeError, match="no complete weights are staged"):
        receiver.take()


def test_the_next_version_comes_over_the_same_group(sender):
    receiver = receiver_in(sender.open_group(2))
    for version, value in ((1, 0.5), (2, 0.25)):
        manifest = sender.snapshot(version, weights(value))
        receiver.receive(manifest)
        assert sender.send() == settled(receiver).checksum
        receiver.take()


def test_bytes_that_change_on_their_way_have_another_digest_than_the_senders(sender, manifest, monkeypatch):
    broadcast = transport.broadcast

    def broadcast_and_garble(group: transport.Group, buckets: Sequence[torch.Tensor]) -> None:
        broadcast(group, buckets)
        if threading.current_thread().name.startswith("receive-"):
            buckets[0][3] ^= 1

    monkeypatch.setattr(transport, "broadcast", broadcast_and_garble)
    receiver = receiver_in(sender.open_group(2))
    receiver.receive(manifest)
    sent = sender.send()
    assert settled(receiver).checksum not in (None, sent)


def test_a_sender_that_dies_in_the_transfer_fails_it_within_the_deadline():
    sender = WeightSender("gloo", HOST, 1.0)
    manifest = sender.snapshot(1, weights(0.5))
    address = sender.open_group(2)
    receiver = receiver_in(address)
    receiver.receive(manifest)
    group = transport.make_group(sender._store, address, 0, HOST)
    group.abort()
    status = settled(receiver)
    assert status.state is StagingState.FAILED
    assert status.error
    assert status.seconds < 10


def test_a_sender_that_is_not_there_fails_the_transfer_within_the_deadline():
    receiver = receiver_in(GroupAddress(1, HOST, transport.free_port(HOST), 2, "gloo", 0.5))
    receiver.receive(WeightManifest(1, []))
    assert settled(receiver).state is StagingState.FAILED


def test_an_error_of_any_kind_fails_the_transfer_with_its_reason(sender, manifest, monkeypatch):
    def make_group(*arguments: object) -> transport.Group:
        raise ImportError("this torch was built without NCCL")

    receiver = receiver_in(sender.open_group(2))
    monkeypatch.setattr(transport, "make_group", make_group)
    receiver.receive(manifest)
    status = settled(receiver)
    assert (status.state, status.error) == (StagingState.FAILED, "ImportError: this torch was built without NCCL")
    with pytest.raises(RuntimeError, match="no complete weights are staged"):
        receiver.take()


class BrokenGroup:
    """A group whose broadcast fails for a reason that is not the network's."""

    def __init__(self) -> None:
        self.aborted = False

    def broadcast(self, tensor: torch.Tensor, root: int) -> None:
        raise AttributeError("no broadcast")

    def abort(self) -> None:
        self.aborted = True


def test_after_an_error_of_any_kind_the_members_do_not_wait_for_the_sender(sender, manifest, monkeypatch):
    group = BrokenGroup()
    monkeypatch.setattr(transport, "make_group", lambda *arguments: group)
    sender.open_group(2)
    with pytest.raises(AttributeError, match="no broadcast"):
        sender.send()
    assert group.aborted
    with pytest.raises(RuntimeError, match="call open_group first"):
        sender.send()


def test_an_aborted_transfer_is_forgotten_even_when_its_bytes_still_arrive(sender, manifest):
    receiver = receiver_in(sender.open_group(2))
    receiver.receive(manifest)
    (thread,) = receiving_threads(1)
    receiver.abort()
    assert receiver.status() == StagingStatus(StagingState.IDLE, None, 0.0, None, None)
    sender.send()  # its thread had the address, and joins all the same
    thread.join(SECONDS)
    assert receiver.status().state is StagingState.IDLE
    with pytest.raises(RuntimeError, match="no complete weights are staged"):
        receiver.take()


def test_a_late_thread_of_an_aborted_transfer_does_not_touch_the_next_one(sender, manifest):
    receiver = receiver_in(sender.open_group(2))
    receiver.receive(msgspec.structs.replace(manifest, version=0))
    (late,) = receiving_threads(0)
    receiver.abort()
    new = WeightSender("gloo", HOST, SECONDS)
    manifest = new.snapshot(5, weights(0.125))
    receiver.join(new.open_group(2), 1)
    receiver.receive(manifest)
    sender.send()
    late.join(SECONDS)
    assert receiver.status().state is StagingState.RECEIVING
    assert new.send() == settled(receiver).checksum
    assert receiver.take()[0].version == 5
    new.close_group()


def test_a_late_joiner_receives_in_an_epoch_of_its_own_and_then_with_the_others(sender, manifest):
    early, late = receiver_in(sender.open_group(2)), StagedReceiver(torch.device("cpu"), HOST)
    early.receive(manifest)
    sender.send()
    assert settled(early).state is StagingState.READY
    early.take()
    late.join(sender.open_group(2), 1)
    late.receive(manifest)
    assert sender.send() == settled(late).checksum
    late.take()
    manifest = sender.snapshot(2, weights(0.25))
    address = sender.open_group(3)
    for rank, receiver in enumerate((early, late), 1):
        receiver.join(address, rank)
        receiver.receive(manifest)
    sent = sender.send()
    assert [settled(receiver).checksum for receiver in (early, late)] == [sent] * 2


def test_receiving_is_refused_before_an_epoch_is_joined_and_while_it_is_under_way(sender, manifest):
    receiver = StagedReceiver(torch.device("cpu"), HOST)
    with pytest.raises(RuntimeError, match="receive before join"):
        receiver.receive(manifest)
    receiver.join(sender.open_group(2), 1)
    receiver.receive(manifest)
    with pytest.raises(RuntimeError, match="version 1 are still being received"):
        receiver.receive(manifest)
    sender.send()
    assert settled(receiver).state is StagingState.READY
