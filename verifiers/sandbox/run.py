"""The host's end of one run: what goes to it, what comes of it, and how much of that is taken."""

from __future__ import annotations

import json
import os
import secrets
import select
import socket
import struct
import time
from collections import deque
from typing import Any

import msgspec

_CHUNK = 1 << 16
STARVED = "starved"  # the fault of a run that had no processor for most of its time: not the code's


class Ended(msgspec.Struct, frozen=True):
    """How a run ended. `status` as subprocess has it: negative is a signal."""

    status: int
    cpu_seconds: float
    memory_bytes: int


class Run:
    """One run: what is sent to it, and what has come of it so far. Made by `Box.start_run`."""

    def __init__(
        self, number: int, control: socket.socket, out: int, err: int, seconds: float, most_bytes: int
    ) -> None:
        self.number = number
        self.started = time.monotonic()
        self.deadline = self.started + seconds
        self.nonce = secrets.token_hex(8)
        self.answers: deque[dict[str, Any]] = deque()
        self.ended: Ended | None = None
        self.ended_by_itself = False
        self.fault = ""  # why the host ended it: "timeout", STARVED, "output_flood", "bad_answer"
        self._control = control
        self._most_bytes = most_bytes
        self._texts = {out: bytearray(), err: bytearray()}
        self._out, self._err = out, err
        self._received = bytearray()
        self._received_bytes = 0
        self._unsent = bytearray()
        self._open = {control.fileno(), out, err}

    @property
    def out(self) -> bytes:
        """What it has printed."""
        return bytes(self._texts[self._out])

    @property
    def err(self) -> bytes:
        return bytes(self._texts[self._err])

    def send(self, **message: Any) -> None:
        """Queue a message; it leaves while the box is waited for."""
        payload = json.dumps(message, separators=(",", ":")).encode()
        self._unsent += struct.pack(">I", len(payload)) + payload

    def events(self) -> dict[int, int]:
        """What to poll for, by descriptor."""
        wanted = dict.fromkeys(self._open, select.POLLIN)
        if self._unsent and self._control.fileno() in wanted:
            wanted[self._control.fileno()] |= select.POLLOUT
        return wanted

    def handle(self, descriptor: int, event: int) -> None:
        """Take what has come, and send what can go."""
        if event & select.POLLOUT and self._unsent:
            try:
                del self._unsent[: self._control.send(self._unsent)]
            except (BrokenPipeError, ConnectionResetError):
                self._unsent.clear()  # it has closed its end: what it says, or how it ends, tells
            except BlockingIOError:
                return
        if event & ~select.POLLOUT:
            self._read(descriptor)

    def _read(self, descriptor: int) -> None:
        try:
            chunk = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            self._open.discard(descriptor)
        elif descriptor in self._texts:
            self._texts[descriptor] += chunk
            if len(self._texts[descriptor]) > self._most_bytes:
                self._stop_for("output_flood", descriptor)
        else:
            self._received += chunk
            self._received_bytes += len(chunk)
            if self._received_bytes > self._most_bytes:
                self._stop_for("output_flood", descriptor)
            else:
                self._take_answers(descriptor)

    def _take_answers(self, descriptor: int) -> None:
        while len(self._received) >= 4:
            (length,) = struct.unpack_from(">I", self._received)
            if length > self._most_bytes:
                self._stop_for("output_flood", descriptor)
                return
            if len(self._received) < 4 + length:
                return
            payload = bytes(self._received[4 : 4 + length])
            del self._received[: 4 + length]
            try:
                answer = json.loads(payload)
            except (ValueError, RecursionError):
                answer = None
            if not isinstance(answer, dict) or answer.pop("nonce", None) != self.nonce:
                self._stop_for("bad_answer", descriptor)
                return
            self.answers.append(answer)

    def _stop_for(self, fault: str, descriptor: int) -> None:
        self.fault = self.fault or fault
        self._open.discard(descriptor)

    def drain(self) -> None:
        """What is left in the pipes of a run that is over: nobody writes to them any more."""
        for descriptor in list(self._open):
            os.set_blocking(descriptor, False)
            while descriptor in self._open:
                before = self._size()
                self._read(descriptor)
                if self._size() == before:
                    break

    def _size(self) -> int:
        return self._received_bytes + sum(len(text) for text in self._texts.values())

    def close(self) -> None:
        self._control.close()
        os.close(self._out)
        os.close(self._err)
