"""Held-out prompts through the serving generators: sampled at the training temperature, and greedy."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import ray
import structlog
from ray.exceptions import RayActorError, RayError

from headrace.actors.engine import EngineDied
from headrace.actors.generator import group_numbers
from headrace.cluster.deadlines import within
from headrace.cluster.errors import RunFailed
from headrace.cluster.formats import checks_ran
from headrace.cluster.members import CALL_SECONDS
from headrace.cluster.pool import ElasticPool, Member
from headrace.cluster.prompt_source import PromptFormat, PromptSource
from headrace.cluster.queue_actor import ATTEMPTS
from headrace.cluster.run_records import EvaluationRecord, SampleRecord, Scores
from headrace.cluster.statistics import difference_interval, mean_interval
from headrace.cluster.step_record import pass_rate
from headrace.verifiers.errors import cause_line
from headrace.verifiers.failed_checks import failed_checks, most_common_failure
from headrace.verifiers.records import Completion, Group, Lease, Prompt, Sampling, decode

log = structlog.get_logger()

SERVING_SECONDS = 900.0  # for a lost member's replacement to serve


class EvaluationResult(msgspec.Struct, frozen=True):
    """Mean rewards by prompt, [prompts] each, and the groups that they came from."""

    sampled: list[float]
    greedy: list[float]
    sampled_pass_rate: float
    greedy_pass_rate: float
    groups: list[Group]  # sampled groups, in the order of the prompts
    seconds: float
    checks: int  # of all samples, sampled and greedy
    scored_samples: int  # those whose check ran
    not_scored: str  # the most common reason of the others, with its message


class EvaluationFailed(RunFailed):
    """The rewards say nothing: most checks did not run to their end."""


class Evaluator:
    """Holds the held-out prompts. An evaluation is of one version: the newest that a generator serves when it begins."""

    def __init__(
        self,
        source: PromptSource,
        prompts: int | None,
        samples: int,
        sampling: Sampling,
        lease_seconds: float,
        cancel: Callable[[Any], None] = ray.cancel,
    ) -> None:
        """`lease_seconds`: for a generator to answer with one group, its wait behind others included."""
        count = min(prompts or len(source), len(source))
        self.prompts = [source.at(position) for position in range(count)]
        self.samples = samples
        self._sampling = sampling
        self._lease_seconds = lease_seconds
        self._cancel = cancel
        self._greedy = msgspec.structs.replace(sampling, temperature=0.0, top_p=1.0, top_k=0)

    async def run(self, pool: ElasticPool, progress: Callable[[int, int], None]) -> EvaluationResult:
        """Evaluate all prompts on the rollout pool's serving members with the newest weights; those of a member that is lost
        go to the others.

        Args:
            progress: called with (finished, all) requests as they finish.

        Raises:
            PoolFailed, TimeoutError: there is no such member any more.
            EvaluationFailed: more than half of the checks did not run to their end, or a prompt fails every time.
        """
        start = time.monotonic()
        ids = itertools.count(1)
        # A prompt's requests one behind the other: the second finds its prompt in the engine's cache.
        jobs = [
            Lease(-next(ids), prompt, count, sampling)
            for prompt in self.prompts
            for count, sampling in ((self.samples, self._sampling), (1, self._greedy))
        ]
        results: dict[int, Group] = {}
        errors: Counter[int] = Counter()  # by lease id
        waiting = deque(jobs)

        async def serve(member: Member) -> None:
            while waiting:
                lease = waiting.popleft()
                try:
                    payload = await self._generate(member, lease)
                except (RayError, TimeoutError) as error:
                    waiting.append(lease)  # behind the others: it may well be another member's turn then
                    if not isinstance(error, RayActorError | EngineDied):  # a hung engine is found out by its pool
                        note_error(errors, lease, cause_line(error) or f"no answer in {self._lease_seconds:g} s", error)
                        continue
                    member.fail(f"{type(error).__name__} in an evaluation")
                    log.warning("evaluation_member_lost", member=member.name, error=type(error).__name__)
                    return
                results[lease.id] = decode(payload, Group)
                progress(len(results), len(jobs))

        version: int | None = None
        while waiting:
            members = await serving_newest(pool, version)
            version = members[0].version
            slots = await asyncio.gather(*[slots_of(member) for member in members])
            # A lease more than fills the slots, so that none is idle; with many more each would take as many waves.
            counts = [-(-count * 2 // (self.samples + 1)) + 1 for count in slots]  # of leases: they alternate in size
            shares = zip(members, counts, strict=True)
            serving = [asyncio.create_task(serve(member)) for member, count in shares for _ in range(count)]
            try:
                await asyncio.gather(*serving)
            finally:
                for task in serving:
                    task.cancel()
        sampled = [
            results[lease.id] for lease in jobs if lease.group_size == self.samples and lease.sampling.temperature
        ]
        greedy = [results[lease.id] for lease in jobs if not lease.sampling.temperature]
        return evaluation_result(sampled, greedy, time.monotonic() - start)

    async def _generate(self, member: Member, lease: Lease) -> bytes:
        call = member.handle.generate.remote(lease)
        try:
            _, payload = await within(self._lease_seconds, call)
        except TimeoutError:
            self._cancel(call)  # what it still computes would slow down the next attempt
            raise
        return payload


async def serving_newest(pool: ElasticPool, version: int | None) -> list[Member]:
    """The serving members with the newest weights, of `version` at least. Where there is none, one more is waited for: one
    that has joined while versions were made may be behind, and is so until the next is published.

    Raises:
        PoolFailed, TimeoutError: none comes.
    """
    while True:
        serving = [(member.version, member) for member in pool.serving if member.version is not None]
        newest = max((held for held, _ in serving), default=None)
        if newest is not None and (version is None or newest >= version):
            return [member for held, member in serving if held == newest]
        await pool.wait_serving(len(pool.serving) + 1, SERVING_SECONDS)


async def slots_of(member: Member) -> int:
    """Requests that the member runs at a time, and so prompts that keep it full; 1 when it does not say: it is asked again
    by its first prompt."""
    try:
        return await within(CALL_SECONDS, member.handle.slots.remote())
    except (RayError, TimeoutError):
        return 1


def note_error(errors: Counter[int], lease: Lease, reason: str, error: Exception) -> None:
    """Count an error of the call itself, which any generator makes. Raises EvaluationFailed at the last attempt."""
    errors[lease.id] += 1
    log.warning("evaluation_call_failed", prompt=lease.prompt.id, attempt=errors[lease.id], error=reason)
    if errors[lease.id] == ATTEMPTS:
        raise EvaluationFailed(f"prompt {lease.prompt.id} failed {ATTEMPTS} times: {reason}") from error


def group_reward(group: Group) -> float:
    """The mean reward of the samples whose check ran; nan when none did."""
    rewards = group_numbers(group).scored
    return float(np.mean(rewards)) if rewards else float("nan")


def count_checks(groups: Sequence[Group]) -> tuple[int, int, str]:
    """How many samples there are, how many of them were scored, and why most of the others were not."""
    completions = [completion for group in groups for completion in group.completions]
    failures = failed_checks(completions)
    return len(completions), len(completions) - len(failures), most_common_failure(failures)


def refuse_unscored(groups: Sequence[Group]) -> None:
    """Raises EvaluationFailed when more than half of the checks did not run: a mean over the rest is of chosen samples."""
    checks, scored, not_scored = count_checks(groups)
    if 2 * scored < checks:
        raise EvaluationFailed(checks_ran(scored, checks, not_scored))


def evaluation_result(sampled: list[Group], greedy: list[Group], seconds: float) -> EvaluationResult:
    """Of the groups of both kinds, in the order of the prompts. Raises EvaluationFailed when too few checks ran."""
    for groups in (sampled, greedy):
        refuse_unscored(groups)
    checks, scored, not_scored = count_checks([*sampled, *greedy])
    return EvaluationResult(
        sampled=[group_reward(group) for group in sampled],
        greedy=[group_reward(group) for group in greedy],
        sampled_pass_rate=pass_rate([group_numbers(group) for group in sampled]),
        greedy_pass_rate=pass_rate([group_numbers(group) for group in greedy]),
        groups=sampled,
        seconds=seconds,
        checks=checks,
        scored_samples=scored,
        not_scored=not_scored,
    )


def evaluation_record(
    label: str, step: int, started: float, result: EvaluationResult, samples: int, seed: int
) -> EvaluationRecord:
    now = time.time()
    return EvaluationRecord(
        label=label,
        step=step,
        time=now,
        elapsed_seconds=now - started,
        sampled=mean_interval(result.sampled, seed=seed),
        greedy=mean_interval(result.greedy, seed=seed),
        sampled_pass_rate=result.sampled_pass_rate,
        greedy_pass_rate=result.greedy_pass_rate,
        prompts=len(result.sampled),
        samples=samples * len(result.sampled),
        seconds=result.seconds,
        checks=result.checks,
        scored_samples=result.scored_samples,
        not_scored=result.not_scored,
    )


def gain(after: EvaluationResult, base: EvaluationResult, seed: int) -> Scores:
    """After minus base, paired by prompt."""
    return Scores(
        difference_interval(base.sampled, after.sampled, seed=seed),
        difference_interval(base.greedy, after.greedy, seed=seed),
    )


def sample_records(
    label: str, step: int, groups: Sequence[Group], layout: PromptFormat, per_group: int = 1
) -> list[SampleRecord]:
    """Completions that a person can read, the first ones of each group."""
    return [
        sample_record(label, step, group.prompt, group.generator, completion, layout)
        for group in groups
        for completion in group.completions[:per_group]
    ]


def sample_record(
    label: str, step: int, prompt: Prompt, generator: str, completion: Completion, layout: PromptFormat
) -> SampleRecord:
    return SampleRecord(
        label=label,
        step=step,
        version=max((span.version for span in completion.spans), default=0),
        prompt_id=prompt.id,
        prompt=layout.text(prompt.row),
        completion=completion.text,
        reward=completion.verdict.reward if completion.counts else float("nan"),
        verdict=completion.verdict.kind,
        reason=completion.verdict.reason,
        generator=generator,
        answer=msgspec.json.encode(prompt.row["answer"]).decode() if "answer" in prompt.row else "",
    )
