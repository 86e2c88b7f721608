"""Boxes for whoever has code to run: as many as there are cores for, each with one run (and the test of it) at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import structlog

from headrace.verifiers.sandbox.box import Box, BoxFailed, BoxPlan
from headrace.verifiers.sandbox.layers import Layers, require
from headrace.verifiers.sandbox.probe import probe

log = structlog.get_logger()


class Sandbox:
    """Up to `boxes` boxes of one plan. Thread-safe; nothing is started before `start` or the first run."""

    def __init__(
        self, plan: BoxPlan, *, boxes: int = 1, allow_degraded: bool = False, layers: Layers | None = None
    ) -> None:
        """`layers`: which of the host's layers are used; None: all. `allow_degraded`: run also without those that are
        needed."""
        self.plan = plan
        self.boxes = boxes
        self._allow_degraded = allow_degraded
        self._layers = layers
        self._idle: list[Box] = []
        self._room = threading.Semaphore(boxes)

    def start(self) -> None:
        """Bring up a box, so that the first run does not wait for it. Raises UserError where this host lacks a layer that
        is needed, BoxFailed where the box does not come up."""
        with self.box():
            pass

    @property
    def layers(self) -> Layers:
        """Those that the boxes have. Raises UserError where one that is needed is missing."""
        if self._layers is None:
            self._layers = probe()
        try:
            require(self._layers)
        except Exception as error:
            if not self._allow_degraded:
                raise
            log.warning("sandbox_degraded", missing=str(error))
        return self._layers

    @contextlib.contextmanager
    def box(self) -> Iterator[Box]:
        """A box to oneself. One that fails, or is left with an error, is ended and not used again."""
        with self._room:
            box = self._idle.pop() if self._idle else Box(self.plan, self.layers)
            try:
                yield box
            except BaseException:
                box.close()
                raise
            self._idle.append(box)

    def close(self) -> None:
        """End the boxes, at once."""
        while self._idle:
            self._idle.pop().close()


__all__ = ["BoxFailed", "BoxPlan", "Sandbox"]
