"""How a run fails, or is refused, and what an error from another process says of its cause."""

from __future__ import annotations

from typing import TypeVar, cast

from ray.exceptions import RayTaskError

from headrace.verifiers.errors import UserError

Failure = TypeVar("Failure", bound=Exception)


class WrongValue(UserError):
    """The value of one key of the job is wrong, which only what it names could tell."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(key, message)
        self.key = key  # dotted: "reward.options.weights"
        self.message = message

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


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
