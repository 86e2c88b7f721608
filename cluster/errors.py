"""How a run fails, and what an error from another process says of its cause."""

from __future__ import annotations

from typing import TypeVar, cast

from ray.exceptions import RayTaskError

Failure = TypeVar("Failure", bound=Exception)


class RunFailed(Exception):
    """The run cannot go on; the message says why."""


class PoolFailed(RunFailed):
    """The pool has no members left and may start no more."""


class MemberUnfit(Exception):
    """A member answers, and is of no use."""


class AttestationFailed(MemberUnfit):
    """A member does not hold the weights that it should."""


def original(error: Failure) -> Failure:
    """The error as it was raised in another process: Ray's own is of both types, and its text is a trace."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return cast(Failure, cause)
