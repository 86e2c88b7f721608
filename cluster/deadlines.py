"""Waiting with a deadline. Python 3.11's `asyncio.wait_for` loses a cancellation that comes together with the answer, and
who is to be ended then goes on for ever: everything that waits here waits by `within`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

Answer = TypeVar("Answer")


async def within(seconds: float, answer: Awaitable[Answer]) -> Answer:
    """The answer, or TimeoutError."""
    async with asyncio.timeout(seconds):
        return await answer
