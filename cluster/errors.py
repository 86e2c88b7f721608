"""How a run fails, and what an error from another process says of its cause."""

from __future__ import annotations

from typing import TypeVar, cast

from ray.exceptions import RayTaskError

Failure = TypeVar("Failure", bound=Exception)


class RunFailed(Exception):
    """The run cannot go on; the message says why."""


class PoolFailed(RunFailed):
    """The pool has no members left and may start no more."""


class AttestationFailed(Exception):
    """A member does not hold the weights that it should."""


def original(error: Failure) -> Failure:
    """The error as it was raised in another process: Ray's own is of both types, and its text is a trace."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return cast(Failure, cause)


def first_line(error: BaseException) -> str:
    """The line of an error that names its cause: Ray puts the trace of the other process before it, and pydantic a link
    and what it was given behind it.

    >>> first_line(ValueError("1 validation error for VllmConfig\\n  Value error, too long [type=value_error, input=1]"))
    'Value error, too long'
    """
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith("For further information visit")]
    return telling[-1].split(" [type=")[0] if telling else ""
