"""The queue of rollouts, as a state machine without a clock, a thread or a cluster: leases, admission, take, commit.

Every prompt that was ever handed out is in exactly one place:

    waiting -> leased -> ready -> taken -> trained
       ^         |         |        |
       +---------+                          given back: a death, an expired lease
                 +-> filtered (no variance) | dropped (infra errors), by name

A queue that is made from a ledger begins with everything waiting that was leased, ready or taken then.

Admission (the AReaL capacity rule, arXiv 2505.24298): a generator that holds weight version g gets a new lease only while

    accepted + running < (max_staleness + g + 1) * groups_per_step

where `accepted` are the groups trained, taken or ready. Staleness is thereby bounded before anything is generated, and
nothing is generated to be thrown away. The rule alone does not bound a group that runs longer than others: `take` also
waits until what it leaves behind can be trained in time by the steps that follow. `queue_actor.py` puts Ray round this.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from enum import StrEnum
from typing import Generic, TypeVar

import msgspec

from headrace.cluster.prompt_source import PromptSource
from headrace.verifiers.records import GroupNumbers, Lease, Prompt, Sampling

Payload = TypeVar("Payload")


class QueuePlan(msgspec.Struct, frozen=True):
    """What the queue keeps to."""

    group_size: int
    groups_per_step: int
    steps: int  # of the whole job: nothing is leased beyond what they take
    max_staleness: int
    sampling: Sampling
    lease_seconds: float
    drop_uniform: bool  # filter groups without variance and replace them (dynamic sampling)


class Outcome(StrEnum):
    """What became of a submitted group."""

    READY = "ready"
    FILTERED = "filtered"
    DROPPED = "dropped"


class Ledger(msgspec.Struct, frozen=True):
    """What a checkpoint keeps: with it no prompt is lost or trained twice."""

    cursor: int  # places of the prompt sequence handed out so far
    outstanding: list[tuple[int, int]]  # (epoch, ordinal) below the cursor that are in no final state
    trained: int
    filtered: int
    dropped: int
    version: int
    filtered_ids: list[str] = []  # settled since the last commit, and so named by the next
    dropped_ids: list[tuple[str, str]] = []


class CommitRecord(msgspec.Struct, frozen=True):
    """What one step settled, by prompt id: one line of `ledger.jsonl`."""

    step: int
    version: int
    trained: list[str]
    filtered: list[str]
    dropped: list[tuple[str, str]]  # (prompt id, reason)


class Running(msgspec.Struct, frozen=True):
    lease: Lease
    member: str
    version: int  # of the member when the lease was granted: no token of the group is older
    since: float  # seconds, the caller's clock


class Ready(msgspec.Struct, Generic[Payload], frozen=True):
    lease_id: int
    prompt: Prompt
    numbers: GroupNumbers
    payload: Payload


class RolloutQueue(Generic[Payload]):
    """State changes happen in the methods below and nowhere else. `Payload` is what the shell keeps for a group."""

    def __init__(self, source: PromptSource, plan: QueuePlan, ledger: Ledger | None = None) -> None:
        self._source = source
        self.plan = plan
        self.version = ledger.version if ledger else 0
        self._cursor = ledger.cursor if ledger else 0
        self._waiting = [source.prompt(epoch, ordinal) for epoch, ordinal in (ledger.outstanding if ledger else [])]
        self._attempts: dict[str, int] = {}
        self._running: OrderedDict[int, Running] = OrderedDict()
        self._held: Counter[str] = Counter()  # of those, by member
        self._ready: list[Ready[Payload]] = []
        self._taken: list[Ready[Payload]] = []
        self._filtered_ids: list[str] = list(ledger.filtered_ids) if ledger else []
        self._dropped_ids: list[tuple[str, str]] = list(ledger.dropped_ids) if ledger else []
        self._filtered_numbers: list[GroupNumbers] = []
        self._lease_ids = 0
        self.trained = ledger.trained if ledger else 0
        self.filtered = ledger.filtered if ledger else 0
        self.dropped = ledger.dropped if ledger else 0
        self.reissued = 0

    @property
    def leased(self) -> int:
        return len(self._running)

    @property
    def ready(self) -> int:
        return len(self._ready)

    def held_by(self, member: str) -> int:
        """Leases that the member has not settled."""
        return self._held[member]

    def oldest_lease_seconds(self, now: float) -> float:
        return max((now - running.since for running in self._running.values()), default=0.0)

    def capacity(self, member_version: int) -> int:
        """Leases that a generator holding `member_version` may still get; at least 0."""
        plan = self.plan
        accepted = self.version * plan.groups_per_step + len(self._ready) + len(self._taken)
        bound = min(plan.max_staleness + member_version + 1, plan.steps) * plan.groups_per_step
        return max(0, bound - accepted - len(self._running))

    def lease(self, member: str, member_version: int, now: float) -> Lease:
        """The next prompt, for a member that holds `member_version`.

        Raises:
            RuntimeError: admission allows no lease; `capacity` says so before.
        """
        if self.capacity(member_version) == 0:
            raise RuntimeError(f"admission allows no lease to {member} with version {member_version}")
        prompt = self._waiting.pop(0) if self._waiting else self._next_prompt()
        self._lease_ids += 1
        attempt = self._attempts[prompt.id] = self._attempts.get(prompt.id, 0) + 1
        lease = Lease(self._lease_ids, prompt, self.plan.group_size, self.plan.sampling, attempt)
        self._running[lease.id] = Running(lease, member, member_version, now)
        self._held[member] += 1
        return lease

    def _next_prompt(self) -> Prompt:
        prompt = self._source.at(self._cursor)
        self._cursor += 1
        return prompt

    def submit(self, lease_id: int, numbers: GroupNumbers, payload: Payload) -> Outcome:
        """A finished group comes back.

        Raises:
            RuntimeError: the lease has ended before.
        """
        prompt = self._end(lease_id)
        del self._attempts[prompt.id]
        if len(numbers.scored) < 2:
            self.dropped += 1
            self._dropped_ids.append((prompt.id, "infra_error"))
            return Outcome.DROPPED
        if self.plan.drop_uniform and not numbers.has_variance:
            self.filtered += 1
            self._filtered_ids.append(prompt.id)
            self._filtered_numbers.append(numbers)
            return Outcome.FILTERED
        self._ready.append(Ready(lease_id, prompt, numbers, payload))
        return Outcome.READY

    def give_back(self, lease_id: int) -> None:
        """The lease came to nothing; its prompt is the next to be handed out.

        Raises:
            RuntimeError: the lease has ended before.
        """
        self._waiting.insert(0, self._end(lease_id))
        self.reissued += 1

    def _end(self, lease_id: int) -> Prompt:
        running = self._running.pop(lease_id, None)
        if running is None:
            raise RuntimeError(f"lease {lease_id} has ended before, or was never granted")
        self._held[running.member] -= 1
        if not self._held[running.member]:
            del self._held[running.member]
        return running.lease.prompt

    def take(self) -> list[Ready[Payload]] | None:
        """The groups of one step, oldest first; None while there are too few of them, or while others still run that would
        be too stale when later steps have room for them.

        Raises:
            RuntimeError: the step before was not committed.
        """
        if self._taken:
            raise RuntimeError("take: the groups of the step before were not committed")
        if len(self._ready) < self.plan.groups_per_step:
            return None
        self._ready.sort(key=lambda ready: (ready.numbers.oldest_version, ready.lease_id))
        left = self._ready[self.plan.groups_per_step :]
        if not self._fit_later(
            [ready.numbers.oldest_version for ready in left] + [running.version for running in self._running.values()]
        ):
            return None
        self._taken, self._ready = self._ready[: self.plan.groups_per_step], left
        return list(self._taken)

    def _fit_later(self, versions: list[int]) -> bool:
        """Whether the steps after the next one can train groups of these versions before any of them is too stale.

        Oldest first is the best order, so the i-th oldest is trained at version `self.version + 1 + i // groups_per_step`.
        Admission and this rule together keep room for every group: once those that are waited for have come back, it holds.
        """
        return all(
            self.version + 1 + place // self.plan.groups_per_step - version <= self.plan.max_staleness
            for place, version in enumerate(sorted(versions))
        )

    def take_filtered(self) -> list[GroupNumbers]:
        """The numbers of the groups filtered since the last call: what they cost belongs in the step's metrics."""
        filtered, self._filtered_numbers = self._filtered_numbers, []
        return filtered

    def commit(self, step: int) -> CommitRecord:
        """The taken groups are trained, and the learner is one version on."""
        self.version += 1
        self.trained += len(self._taken)
        record = CommitRecord(
            step, self.version, [ready.prompt.id for ready in self._taken], self._filtered_ids, self._dropped_ids
        )
        self._taken, self._filtered_ids, self._dropped_ids = [], [], []
        return record

    def ledger(self) -> Ledger:
        """The state of every prompt handed out, for a checkpoint of the weights of `version`."""
        unfinished = [running.lease.prompt for running in self._running.values()]
        unfinished += [ready.prompt for ready in (*self._taken, *self._ready)] + self._waiting
        return Ledger(
            cursor=self._cursor,
            outstanding=[(prompt.epoch, prompt.ordinal) for prompt in unfinished],
            trained=self.trained,
            filtered=self.filtered,
            dropped=self.dropped,
            version=self.version,
            filtered_ids=list(self._filtered_ids),
            dropped_ids=list(self._dropped_ids),
        )
