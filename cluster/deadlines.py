"""Waiting with a deadline, and tasks that nobody waits for any more.

Python 3.11's `asyncio.wait_for` loses a cancellation that comes together with the answer, and who is to be ended then goes
on for ever: everything that waits here waits by `within`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import structlog

log = structlog.get_logger()

Answer = TypeVar("Answer")


async def within(seconds: float, answer: Awaitable[Answer]) -> Answer:
    """The answer, or TimeoutError."""
    async with asyncio.timeout(seconds):
        return await answer


def note_outcome(task: asyncio.Task[Any]) -> None:
    """For `add_done_callback` of a task that goes on when its waiter is gone: what it failed with is in the log then too."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("task_failed", task=task.get_name(), error=repr(error))
