"""The other end of `worker_process.py`: holds one verifier and answers one batch of samples after another.

It trusts its parent and what the parent sends: a verifier, and rows. Its own answers are msgpack of known types. It has the
parent's environment, since it may run a function of the user's.
"""

from __future__ import annotations

import os
import pickle
import queue
import resource
import select
import signal
import struct
import threading
from enum import StrEnum

import msgspec

from headrace.verifiers.base import Verifier, not_run, printable
from headrace.verifiers.errors import UserError
from headrace.verifiers.records import Sample, Verdict
from headrace.verifiers.soundness import judged

HEADER = struct.Struct(">Q")  # a frame's length
_PARENT_CHECK_MILLISECONDS = 5000
_MOST_SAID = 500  # characters of an exception's text


class Setting(msgspec.Struct, frozen=True):
    """The first frame's head: how the verifier, which follows it, is used."""

    parent: int
    one_by_one: bool  # answer each sample as soon as it is judged; else the batch, by the verifier's `verify_many`
    memory_bytes: int | None  # beyond what the process holds once the verifier is loaded


class ChildFault(StrEnum):
    """Why samples have no verdicts."""

    TIMEOUT = "timeout"  # the process did not answer in time, and was ended
    CRASH = "crash"  # the process ended by itself, or sent what cannot be read
    EXCEPTION = "exception"  # the verifier raised; the process goes on
    MEMORY = "memory"  # the verifier needed more memory than it may have; the process goes on
    FAILED = "failed"  # there was no process, and none could be brought up


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Verdicts in the samples' order, or in `fault` why a batch has none: EXCEPTION or MEMORY."""

    verdicts: list[Verdict] = []
    fault: ChildFault | None = None
    message: str = ""


def main() -> None:
    # Whatever is printed goes where the parent's errors go, and never between the frames.
    replies = os.dup(1)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end this process notices
    frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(os.dup(0), os.getppid(), frames), name="frames", daemon=True).start()
    setting = msgspec.msgpack.decode(frames.get(), type=Setting)
    if setting.parent != os.getppid():
        os._exit(0)
    reply, verifier = _loaded(frames.get(), setting)
    _write(replies, msgspec.msgpack.encode(reply))
    while verifier is not None:
        samples: list[Sample] = pickle.loads(frames.get())
        if not setting.one_by_one:
            _write(replies, _reply(verifier, samples))
            continue
        for sample in samples:
            _write(replies, _reply(verifier, [sample], alone=True))


def _loaded(payload: bytes, setting: Setting) -> tuple[Reply, Verifier | None]:
    try:
        verifier: Verifier = pickle.loads(payload)
        verifier.start()
    except (Exception, SystemExit) as error:  # noqa: BLE001 (it goes on as the parent's error)
        return _fault(error), None
    if setting.memory_bytes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = _address_space_bytes() + setting.memory_bytes
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return Reply(), verifier


def _reply(verifier: Verifier, samples: list[Sample], *, alone: bool = False) -> bytes:
    """The reply to a batch, encoded. `alone`: a sample that was sent by itself has its fault as a verdict."""
    try:
        return msgspec.msgpack.encode(Reply(judged(verifier, samples)))
    except (Exception, SystemExit) as error:  # noqa: BLE001 (a bug of the verifier's becomes a verdict at the process's border)
        reply = _fault(error)
        if alone:
            reply = Reply([not_run(str(reply.fault), message=reply.message)])
        return msgspec.msgpack.encode(reply)


def _fault(error: BaseException) -> Reply:
    fault = ChildFault.MEMORY if isinstance(error, MemoryError) else ChildFault.EXCEPTION
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return Reply(fault=fault, message=printable(message, _MOST_SAID))


def _address_space_bytes() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _read(descriptor: int, parent: int, frames: queue.SimpleQueue[bytes]) -> None:
    """Put every frame into `frames`; end the process, whatever it is doing, when the parent is gone."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    received = bytearray()
    while True:
        # The pipe's end tells that the parent is gone, unless a fork of the parent's still holds it open: then this does.
        while not poll.poll(_PARENT_CHECK_MILLISECONDS):
            if os.getppid() != parent:
                os._exit(0)
        chunk = os.read(descriptor, 1 << 18)
        if not chunk:
            os._exit(0)
        received += chunk
        while len(received) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(received)[0]
            if len(received) < end:
                break
            frames.put(bytes(received[HEADER.size : end]))
            del received[:end]


def _write(descriptor: int, payload: bytes) -> None:
    view = memoryview(HEADER.pack(len(payload)) + payload)
    while view:
        view = view[os.write(descriptor, view) :]
