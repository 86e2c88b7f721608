"""Boxes for whoever has code to run: as many as there are cores for, each with one run (and the test of it) at a time."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator

import structlog

from headrace.verifiers.errors import UserError
from headrace.verifiers.sandbox.box import Box
from headrace.verifiers.sandbox.layers import Layers, require, require_for_programs
from headrace.verifiers.sandbox.plan import BoxPlan
from headrace.verifiers.sandbox.probe import probe

log = structlog.get_logger()


class Sandbox:
    """Up to `boxes` boxes of one plan. Thread-safe; nothing is started before `start` or the first run.

    Whoever has made it closes it; what is left when the process ends is closed then.
    """

    def __init__(
        self, plan: BoxPlan, *, boxes: int = 1, allow_degraded: bool = False, layers: Layers | None = None
    ) -> None:
        """`layers`: which of the host's layers are used; None: all. `allow_degraded`: run also without those that are
        needed."""
        self.plan = plan
        self.boxes = boxes
        self._allow_degraded = allow_degraded
        self._wanted = layers
        self._layers: Layers | None = None
        self.missing = ""  # what a host without a layer that is needed has to say of it; known after `start`
        self._idle: list[Box] = []
        self._lock = threading.Lock()
        self._closings = 0
        self._room = threading.Semaphore(boxes)
        weakref.finalize(self, _close_all, self._idle)

    def start(self) -> None:
        """Bring up a box, so that the first run does not wait for it. Raises UserError where this host lacks a layer that
        is needed, BoxFailed where the box does not come up."""
        with self.box():
            pass

    @property
    def layers(self) -> Layers:
        """Those that the boxes have. Raises UserError where one that is needed is missing."""
        with self._lock:
            if self._layers is None:
                self._layers = self._checked(self._wanted or probe())
            return self._layers

    def _checked(self, layers: Layers) -> Layers:
        try:
            require(layers)
        except UserError as error:
            if not self._allow_degraded:
                raise UserError(f"{error}. With `allow_degraded` code runs all the same") from error
            self.missing = str(error)
            log.warning("sandbox_degraded", missing=self.missing)
        if self.plan.programs:
            require_for_programs(layers)
        return layers

    @contextlib.contextmanager
    def box(self) -> Iterator[Box]:
        """A box to oneself. One that fails, or is left with an error, is ended and not used again."""
        with self._room:
            closings = self._closings
            box = self._take() or Box(self.plan, self.layers)
            try:
                yield box
            except BaseException:
                box.close()
                raise
            with self._lock:
                keep = self._closings == closings
                if keep:
                    self._idle.append(box)
            if not keep:
                box.close()

    def _take(self) -> Box | None:
        """One that is there and alive."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                box = self._idle.pop()
            if box.alive:
                return box
            box.close()

    def close(self) -> None:
        """End the boxes, at once; one that is in use ends when it is given back. Later runs have new ones."""
        with self._lock:
            self._closings += 1
            boxes = self._idle[:]
            self._idle.clear()
        _close_all(boxes)


def _close_all(boxes: list[Box]) -> None:
    while boxes:
        boxes.pop().close()
