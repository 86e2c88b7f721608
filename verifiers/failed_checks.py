"""Why samples have no reward, in words for whoever reads the log or the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from headrace.verifiers.base import printable
from headrace.verifiers.records import Completion, StopReason, Verdict


class FailedCheck(msgspec.Struct, frozen=True):
    """Why a sample has no reward."""

    reason: str  # the verdict's, or the type of what the verifier raised
    message: str
    where: str = ""  # the line of a user's function that raised

    @property
    def told(self) -> str:
        """In one line: `KeyError: 'answer' (rewards.py:3)`."""
        where = f" ({self.where})" if self.where else ""
        return f"{self.reason}: {self.message}{where}" if self.message else f"{self.reason}{where}"


def failed_check(verdict: Verdict) -> FailedCheck:
    """What an `infra_error` says, on one line."""
    details = verdict.details
    message = " ".join(str(details.get("message", "")).split())
    reason, where = str(details.get("type", verdict.reason)), printable(str(details.get("where", "")))
    return FailedCheck(reason, printable(message), where)


def failed_checks(completions: Iterable[Completion]) -> list[FailedCheck]:
    """One for each sample without a reward."""
    return [
        FailedCheck("aborted", "the engine gave the sample up")
        if completion.stop_reason is StopReason.ABORTED
        else failed_check(completion.verdict)
        for completion in completions
        if not completion.counts
    ]


def most_common_failure(failures: Sequence[FailedCheck]) -> str:
    """The most common reason, with the message that it came with first; empty when there is none.

    >>> most_common_failure([FailedCheck("late", ""), FailedCheck("KeyError", "'a'"), FailedCheck("KeyError", "'b'")])
    "KeyError: 'a'"
    """
    for reason, _ in Counter(failure.reason for failure in failures).most_common(1):
        return next(failure.told for failure in failures if failure.reason == reason)
    return ""
