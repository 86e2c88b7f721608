"""How a run waits: what for is shown by name, and what makes it futile ends it.

A weight version may be on its way to the generators beside all else (`publish_beside`), and so may other work (`beside`);
their failure too ends what is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from headrace.cluster.fleet import Fleet
from headrace.cluster.publisher import PublishReport
from headrace.cluster.run_recorder import RunRecorder
from headrace.cluster.run_records import PHASE_ENDED

Result = TypeVar("Result")

POLL_SECONDS = 1.0  # between looks at what ends a wait: a stop request waits no longer than that


class Stopped(Exception):
    """The user asked the run to stop; what is done is saved."""


class Waits:
    """One per run, in the controller's event loop."""

    def __init__(self, fleet: Fleet, recorder: RunRecorder) -> None:
        self._fleet = fleet
        self._recorder = recorder
        self._stop = asyncio.Event()
        self._publishing: asyncio.Task[PublishReport] | None = None
        self._beside: set[asyncio.Task[Any]] = set()

    def request_stop(self) -> None:
        """End the run in order, at the next point where nothing is lost."""
        self._stop.set()

    @property
    def stop_requested(self) -> bool:
        return self._stop.is_set()

    @contextmanager
    def phase(self, what: str) -> Iterator[str]:
        """What goes on inside, for the display. One that fails stays: it is where the run ended."""
        self._recorder.set_phase(what)
        yield what
        self._recorder.set_phase(what + PHASE_ENDED)

    async def until(self, work: Awaitable[Result], *, stoppable: bool = True) -> Result:
        """Await `work`, but end with the pool's own error if a pool fails meanwhile, or with Stopped when the user asks
        and nothing is lost by it."""
        task = asyncio.ensure_future(work)
        try:
            while True:
                done, _ = await asyncio.wait({task}, timeout=POLL_SECONDS)
                if done:
                    return task.result()
                self._fleet.raise_failure()
                for other in (self._publishing, *self._beside):
                    if other is not None and other.done():
                        other.result()  # raises what it has failed with
                if stoppable and self.stop_requested:
                    raise Stopped
        finally:
            task.cancel()

    @asynccontextmanager
    async def beside(self, work: Coroutine[Any, Any, Result], name: str) -> AsyncIterator[asyncio.Task[Result]]:
        """Do `work` beside what is waited for inside, which its failure ends; left early, it is cancelled."""
        task = asyncio.create_task(work, name=name)
        self._beside.add(task)
        try:
            yield task
        finally:
            self._beside.discard(task)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # `until` has raised its failure, or something was first

    async def publish(self) -> PublishReport:
        """Bring the newest version to the generators."""
        report = await self._fleet.publish()
        self._recorder.published(report)
        return report

    def publish_beside(self) -> None:
        """The same, beside what follows; `published` is to be awaited before the next."""
        self._publishing = asyncio.create_task(self.publish(), name=f"publish version {self._fleet.publisher.version}")

    async def published(self) -> PublishReport | None:
        """The newest version's way to the generators ends; None when none is under way."""
        publishing, self._publishing = self._publishing, None
        if publishing is None:
            return None
        with self.phase(f"waiting for version {self._fleet.publisher.version} to reach the generators"):
            return await self.until(publishing, stoppable=False)

    async def forget_publishing(self) -> None:
        """On the way out with an error nobody waits for the newest version's way to the generators."""
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.gather(self._publishing, return_exceptions=True)
