"""Requests to an OpenAI-compatible endpoint, side by side, each with bounded retries inside a deadline.

Imported only where a judge is used: httpx and tenacity come with an extra.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import httpx
import msgspec
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from headrace.verifiers.base import printable
from headrace.verifiers.errors import UserError

_ANSWER_BYTES = 1 << 20
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # statuses that another attempt may not meet
_MOST_WAIT_SECONDS = 8.0
_CLOSE_SECONDS = 5.0

T = TypeVar("T")


class Endpoint(msgspec.Struct, frozen=True):
    """Where to ask, and how patiently. `attempts` counts requests; `deadline_seconds` is for all of one question's, with the
    waits between them, from the moment that it has one of the `concurrency` slots."""

    base_url: str
    attempts: int
    request_seconds: float
    deadline_seconds: float
    concurrency: int


class JudgeAnswer(msgspec.Struct, frozen=True):
    """The text of the judge's message."""

    text: str
    requests: int


class JudgeFailure(Exception):
    """No answer. `reason` is one of `judge_unreachable`, `judge_timeout`, `judge_rate_limited`, `judge_http_error`,
    `judge_unreadable`; `passing` when another attempt may do better, `wait_seconds` when the server says how much later."""

    def __init__(
        self, reason: str, message: str, *, status: int | None = None, passing: bool = False, wait_seconds: float = 0.0
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.status = status
        self.passing = passing
        self.wait_seconds = wait_seconds


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Response(msgspec.Struct):
    choices: list[_Choice]


class JudgeClient:
    """A connection pool in an event loop of its own thread, so that callers may be synchronous and in any thread."""

    def __init__(self, endpoint: Endpoint, api_key: str | None) -> None:
        self._endpoint = endpoint
        self._url = endpoint.base_url.rstrip("/") + "/chat/completions"
        self._api_key = api_key
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()
        try:
            self._slots, self._http = self._wait_for(self._connect())
        except (ValueError, ImportError) as error:
            self._end_loop()
            raise UserError(f"verifier `judge`: the environment's proxy settings cannot be used: {error}") from error

    def ask_many(self, bodies: Sequence[bytes]) -> list[JudgeAnswer | JudgeFailure]:
        """One outcome for each request body, in order."""
        return self._wait_for(self._ask_all(bodies))

    def close(self) -> None:
        """Ends requests under way: whoever waits for them gets a CancelledError."""
        self._wait_for(self._disconnect())
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # the caller was interrupted: nobody waits for the requests any more
            raise

    async def _connect(self) -> tuple[asyncio.Semaphore, httpx.AsyncClient]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"
        concurrency = self._endpoint.concurrency
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        http = httpx.AsyncClient(headers=headers, timeout=self._endpoint.request_seconds, limits=limits)
        return asyncio.Semaphore(concurrency), http

    async def _disconnect(self) -> None:
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._http.aclose()

    async def _ask_all(self, bodies: Sequence[bytes]) -> list[JudgeAnswer | JudgeFailure]:
        return await asyncio.gather(*[self._ask(body) for body in bodies])

    async def _ask(self, body: bytes) -> JudgeAnswer | JudgeFailure:
        endpoint = self._endpoint
        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, JudgeFailure) and error.passing),
            wait=_wait_seconds,
            stop=stop_after_attempt(endpoint.attempts) | stop_before_delay(endpoint.deadline_seconds),
            reraise=True,
        )
        met = ""  # what the last attempt that ended has met
        async with self._slots:
            try:
                async with asyncio.timeout(endpoint.deadline_seconds):
                    async for attempt in retrying:
                        with attempt:
                            try:
                                text = await self._post(body)
                            except JudgeFailure as failure:
                                met = f"; the attempt before: {failure.message}"
                                raise
                            return JudgeAnswer(text, attempt.retry_state.attempt_number)
            except JudgeFailure as failure:
                return failure
            except TimeoutError:
                return JudgeFailure("judge_timeout", f"no answer within {endpoint.deadline_seconds:g} s{met}")
        raise AssertionError("unreachable")

    async def _post(self, body: bytes) -> str:
        """The text of the answer. Raises JudgeFailure."""
        try:
            async with self._http.stream("POST", self._url, content=body) as response:
                received = await _read(response)
        except httpx.TimeoutException as error:
            message = f"{type(error).__name__} after {self._endpoint.request_seconds:g} s"
            raise JudgeFailure("judge_timeout", message, passing=True) from error
        except httpx.HTTPError as error:
            message = self._clean(f"{type(error).__name__}: {error}")
            raise JudgeFailure("judge_unreachable", message, passing=True) from error
        if response.status_code != 200:
            raise self._refused(response, received)
        if len(received) > _ANSWER_BYTES:
            raise JudgeFailure("judge_unreadable", f"the response is longer than {_ANSWER_BYTES} bytes")
        return self._content(received)

    def _content(self, received: bytes) -> str:
        try:
            choice = msgspec.json.decode(received, type=_Response).choices[0]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError) as error:
            raise JudgeFailure("judge_unreadable", self._clean(f"not a chat completion: {error}")) from error
        if choice.finish_reason not in (None, "stop"):
            message = self._clean(f"it ended with finish_reason {choice.finish_reason!r}, not `stop`")
            raise JudgeFailure("judge_unreadable", message)
        if not choice.message.content:
            raise JudgeFailure("judge_unreadable", "the message has no content")
        return choice.message.content

    def _refused(self, response: httpx.Response, received: bytes) -> JudgeFailure:
        status = response.status_code
        reason = "judge_rate_limited" if status == 429 else "judge_http_error"
        # Servers quote a wrong key, or a part of it, in these two: only the status is kept.
        said = "" if status in (401, 403) else self._clean(received[:4096].decode("utf-8", "replace"))
        return JudgeFailure(
            reason,
            f"status {status} {said}".strip(),
            status=status,
            passing=status in _PASSING,
            wait_seconds=_retry_after(response.headers.get("retry-after", "")),
        )

    def _clean(self, text: str) -> str:
        """One line for the details, without the key."""
        if self._api_key:
            text = text.replace(self._api_key, "***")
        return printable(" ".join(text.split()), 300)


async def _read(response: httpx.Response) -> bytes:
    """The body, at most a little more than what is read of one."""
    received = bytearray()
    async for chunk in response.aiter_bytes():
        received += chunk
        if len(received) > _ANSWER_BYTES:
            break
    return bytes(received)


def _wait_seconds(state: RetryCallState) -> float:
    """Seconds before the next attempt: at random up to 0.5, 1, 2, ... 8, and no less than what the server asks for."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait_seconds if isinstance(error, JudgeFailure) else 0.0
    return max(asked, wait_random_exponential(multiplier=0.5, max=_MOST_WAIT_SECONDS)(state))


def _retry_after(value: str) -> float:
    """Seconds of a Retry-After header; 0 for none, and for a date, which needs both clocks to agree."""
    return float(value) if value.isascii() and value.isdigit() else 0.0


def address_fault(base_url: str) -> str | None:
    """What keeps requests from being sent there, in one clause, or None."""
    try:
        httpx.URL(base_url)
    except (httpx.InvalidURL, ValueError) as error:
        return f"it is no address: {error}"
    return None


def encode_body(body: dict[str, Any]) -> bytes:
    """A request's body; the same body always gives the same bytes."""
    return json.dumps(body, sort_keys=True).encode()
