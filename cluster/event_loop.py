"""The event loop of a run, and how Ctrl-C reaches it, wherever the run is started from: a command, a script, a notebook."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

Result = TypeVar("Result")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
HANGUP = signal.SIGHUP  # the terminal has closed
TAKE_BACK_SECONDS = 0.002  # for how long a signal may be somebody else's


def run_to_end(main: Coroutine[Any, Any, Result]) -> Result:
    """Run `main` in an event loop of its own; its result.

    Where this thread runs a loop already, as in a notebook, the new one gets a thread, and this thread waits.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main)
    with ThreadPoolExecutor(1, thread_name_prefix="run") as thread:
        return thread.submit(asyncio.run, main).result()


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP as calls in the run's event loop, while the `with` block goes on.

    A signal that comes before the loop is kept for it, so that what is being started can be ended in order. A second one
    breaks off a start (`breaking_off`) with KeyboardInterrupt, and nothing else: ending what was started is never
    interrupted, whether the start was broken off, failed, or led to a run.

    A closing terminal sends SIGHUP, and its shell another one: it is a call where nothing came before, and never the second.
    Whoever ignores it, as nohup does, is not asked to end.

    Python runs signal handlers in the main thread, whatever it waits for, and only there can they be set: a run that is
    started from another thread gets none.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._seen = False
        self._early = 0  # signals that came before anybody could take them
        self._starting = False
        self._take: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            taken = SIGNALS if signal.getsignal(HANGUP) is signal.SIG_IGN else (*SIGNALS, HANGUP)
            self._before = {number: signal.signal(number, self._arrived) for number in taken}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def breaking_off(self) -> Iterator[None]:
        """Around a start that a second signal may break off, since it can take long and leaves nothing that its owner does
        not end. Afterwards the signals are ours again, whoever took them meanwhile.

        Raises:
            KeyboardInterrupt: a second signal came, here or before.
        """
        try:
            self._starting = True
            self._break_off()
            yield
        finally:
            self._starting = False
            self._take_back()

    def keep_during(self, work: Callable[[], None]) -> None:
        """Do `work`, which takes the signals away from us underneath Python: Ray's shutdown gives SIGTERM its default
        effect, the end of this process there and then. So it gets a thread, and this one takes them back all the while."""
        if not self._before:
            work()
            return
        with ThreadPoolExecutor(1, thread_name_prefix="shutdown") as thread:
            working = thread.submit(work)
            while not working.done():
                self._take_back()
                wait([working], TAKE_BACK_SECONDS)
        self._take_back()
        working.result()

    def _take_back(self) -> None:
        for number in self._before:
            signal.signal(number, self._arrived)

    def _break_off(self) -> None:
        if self._starting and self._early >= 2:
            self._starting = False
            raise KeyboardInterrupt

    def deliver_to(self, handler: Callable[[], None]) -> None:
        """From now on every signal is a call of `handler` in the running event loop."""
        loop = asyncio.get_running_loop()

        def take() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(handler)

        self._take = take
        for _ in range(self._early):
            take()

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if number == HANGUP and self._seen:
            return
        self._seen = True
        if self._take is not None:
            self._take()
            return
        self._early += 1
        self._break_off()
