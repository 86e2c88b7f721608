"""The learner as one thing: N rank actors that act together. A rank that dies ends the job, with its name."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import ray
import structlog
import torch
from ray.exceptions import RayActorError

from headrace.cluster.deadlines import within
from headrace.cluster.errors import PoolFailed, RunFailed
from headrace.cluster.members import Requirements
from headrace.cluster.queue_actor import TakenGroup
from headrace.cluster.run_records import MemberState, MemberStatus, Pool
from headrace.learner.advantages import most_varied
from headrace.learner.checkpoint import check_whole
from headrace.learner.settings import LearnerSettings
from headrace.learner.supervised import SupervisedExample
from headrace.learner.worker import LearnerWorker, RankReport, Snapshot, StepReport, WorkerSettings
from headrace.verifiers.errors import UserError, cause_line

log = structlog.get_logger()

START_SECONDS = 900.0  # a large model's weights come from a disk or a hub
STEP_SECONDS = 3600.0
CLOSE_SECONDS = 10.0


def launch_ranks(settings: WorkerSettings, requirements: Requirements) -> list[Any]:
    """Create the actors of all ranks; returns their handles at once."""
    actor = cast(Any, ray.remote)(max_restarts=0, concurrency_groups={"compute": 1, "transfer": 1})(LearnerWorker)
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    options = {**requirements.options(), "runtime_env": {"env_vars": environment}}
    return [actor.options(**options).remote(settings, rank) for rank in range(settings.world_size)]


class LearnerPool:
    """Collective calls go to every rank, in the same order; answers are rank 0's where they are the same."""

    def __init__(self, ranks: Sequence[Any], settings: LearnerSettings) -> None:
        """`ranks`: actor handles of the ranks, in their order (`launch_ranks`). `settings`: the ranks'."""
        self._ranks = list(ranks)
        self._settings = settings
        self._reports: list[RankReport] = []
        self._state = MemberState.STARTING
        self.steps = 0
        # No step was begun whose end is not known: else the ranks may be one on, or not of one mind.
        self.settled = True
        self.busy_seconds = 0.0

    @property
    def sender(self) -> Any:
        """The rank that broadcasts weights."""
        return self._ranks[0]

    async def start(self) -> None:
        """Load the model on every rank and connect them."""
        self._reports = await self._all("start", deadline=START_SECONDS)
        first = self._reports[0]
        on_node = Counter(report.node for report in self._reports)
        calls = [
            rank.setup.remote(first.node, first.store_port, on_node[report.node])
            for rank, report in zip(self._ranks, self._reports, strict=True)
        ]
        await gather_ranks("setup", calls, START_SECONDS)
        self._state = MemberState.SERVING

    async def train_step(self, groups: Sequence[TakenGroup], step: int) -> StepReport:
        """One optimizer step; each rank fetches its share of the groups from the object store."""
        costs = [group_tokens(group, self._settings) for group in groups]
        shares = share_groups(costs, len(self._ranks))
        calls = [
            rank.train_step.remote([groups[index].payload for index in share], step)
            for rank, share in zip(self._ranks, shares, strict=True)
        ]
        self.settled = False
        try:
            reports: list[StepReport] = await gather_ranks("train_step", calls, STEP_SECONDS)
        except FloatingPointError:
            self.settled = True  # every rank has refused the step: they hold what they held before
            raise
        self.steps, self.settled = step, True
        self.busy_seconds += max(report.seconds for report in reports)
        slowest = max(reports, key=lambda report: report.fetch_seconds)
        return msgspec.structs.replace(reports[0], fetch_seconds=slowest.fetch_seconds)

    async def supervised_step(self, examples: Sequence[SupervisedExample], learning_rate: float) -> float:
        """One step of cross-entropy; the loss in nats a token."""
        count = len(self._ranks)
        calls = [
            rank.supervised_step.remote(list(examples[index::count]), learning_rate)
            for index, rank in enumerate(self._ranks)
        ]
        return (await gather_ranks("supervised_step", calls, STEP_SECONDS))[0]

    async def finish_supervised(self) -> None:
        await self._all("finish_supervised")

    async def snapshot(self, version: int, probe_sequences: list[list[int]]) -> Snapshot:
        """The present weights, ready to be sent as `version`."""
        answers = await self._all("snapshot", version, probe_sequences)
        return answers[0]

    async def save(self, folder: str) -> float:
        """The seconds of the slowest rank.

        Raises:
            RunFailed: what the ranks wrote is not to be seen from here, where the run is taken up again.
        """
        seconds = max(await self._all("save", folder))
        try:
            await asyncio.to_thread(check_whole, Path(folder))
        except UserError as error:
            raise RunFailed(
                f"{error}, though all ranks have written theirs: job.run_dir must be a folder that all nodes share"
            ) from error
        return seconds

    async def load(self, folder: str) -> int:
        """The step that the checkpoint was written after."""
        self.steps = (await self._all("load", folder))[0]
        return self.steps

    async def export(self, folder: str) -> None:
        await self._all("export", folder)

    async def close(self) -> None:
        closing = [rank.close.remote() for rank in self._ranks]
        outcomes = await asyncio.gather(*[within(CLOSE_SECONDS, call) for call in closing], return_exceptions=True)
        for rank, outcome in enumerate(outcomes):
            if isinstance(outcome, BaseException):
                log.info("rank_did_not_close", rank=rank, error=repr(outcome))
        for actor in self._ranks:
            ray.kill(actor)
        self._state = MemberState.GONE

    async def _all(self, method: str, *arguments: Any, deadline: float = STEP_SECONDS) -> list[Any]:
        return await gather_ranks(method, [getattr(rank, method).remote(*arguments) for rank in self._ranks], deadline)

    def status(self, version: int | None, since: float) -> list[MemberStatus]:
        return [
            MemberStatus(
                name=f"learner-{rank}",
                pool=Pool.LEARNER,
                state=self._state,
                version=version if self._reports else None,
                node=self._reports[rank].node if self._reports else "",
                pid=self._reports[rank].pid if self._reports else None,
                since=since,
                inflight=0,
                done=self.steps,
                tokens_per_second=0.0,
                restarts=0,
                metrics_url=self._reports[rank].metrics_url if self._reports else None,
                note="",
            )
            for rank in range(len(self._ranks))
        ]


async def gather_ranks(method: str, calls: Sequence[Awaitable[Any]], deadline_seconds: float) -> list[Any]:
    """The answers of all ranks to one call each.

    Raises:
        PoolFailed: a rank died; names it.
        TimeoutError: not within the deadline.
    """
    try:
        async with asyncio.timeout(deadline_seconds):
            return await asyncio.gather(*[_answer(rank, call) for rank, call in enumerate(calls)])
    except TimeoutError as error:
        raise TimeoutError(f"the learner's {method} did not end within {deadline_seconds:.0f} s") from error


async def _answer(rank: int, call: Awaitable[Any]) -> Any:
    try:
        return await call
    except RayActorError as error:
        raise PoolFailed(f"learner-{rank} is lost: {cause_line(error)}") from error


def group_tokens(group: TakenGroup, settings: LearnerSettings) -> int:
    """Tokens that the group costs the learner: those of the samples that it trains on (`packing.documents_of`), and its
    prompt once. A group without variance costs nothing, unless the settings say that it goes through the model."""
    numbers = group.numbers
    if not (settings.flat_groups_cost or numbers.has_variance):
        return 0
    lengths = [
        tokens
        for tokens, reward in zip(numbers.completion_tokens, numbers.rewards, strict=True)
        if not math.isnan(reward)
    ]
    if settings.trained_samples is not None:
        rewards = torch.tensor(numbers.scored, dtype=torch.float32)
        lengths = [lengths[place] for place in most_varied(rewards, settings.trained_samples)]
    return numbers.prompt_tokens + sum(lengths) if lengths else 0


def share_groups(tokens: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices of the groups for each rank, so that the ranks' tokens are close: largest first, to the lightest rank."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for index in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        lightest = min(range(ranks), key=lambda rank: (loads[rank], rank))
        shares[lightest].append(index)
        loads[lightest] += tokens[index]
    return [sorted(share) for share in shares]
