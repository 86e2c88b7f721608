"""The queue's shell with generators that are no processes: what is handed out, what comes back, and what a death costs."""

import asyncio
from collections.abc import Callable, Generator
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import RayActorError, RayTaskError

from headrace.actors.engine import EngineDied
from headrace.cluster.metrics import QUEUE_METRICS
from headrace.cluster.queue_actor import (
    ATTEMPTS,
    HOPELESS_STEPS,
    ChecksFailed,
    GeneratorEntry,
    QueueActor,
    TakeTimeout,
)
from headrace.cluster.rollout_queue import Ledger
from headrace.verifiers.base import not_run
from headrace.verifiers.errors import UserError
from headrace.verifiers.records import Completion, Group, Lease, StopReason, Verdict, WeightSpan, encode
from headrace.verifiers.telemetry import COMMON_LABELS
from tests.factories import EndlessPrompts, group_numbers, queue_plan

SECONDS = 5.0  # nothing here takes a tenth of it
SHORT = 0.02


class Payload(str):
    """A reference to a group whose checks ended as `verdict`."""

    lease: Lease
    verdict: Verdict | Exception

    def __await__(self) -> Generator[Any, Any, bytes]:
        return self._group().__await__()

    async def _group(self) -> bytes:
        if isinstance(self.verdict, Exception):
            raise self.verdict
        completion = Completion("", [], [], [WeightSpan(0, 0, 0)], StopReason.STOP, self.verdict, 0.0)
        return encode(Group(self.lease.prompt, [completion] * 2, "g", self.lease.sampling))


class FakeGenerator:
    """Its handle. Finishes a lease when told to, or at once; `call.remote` gives two references, as `num_returns=2` does."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.at_once = at_once
        self.leases: dict[str, Lease] = {}
        self.answers: dict[str, asyncio.Future[bytes]] = {}
        self.attempts: list[int] = []
        self.fault: Exception | None = None
        self.faults: list[Exception] = []  # of the next calls, one each
        self.generate = self
        self.verdict: Verdict | Exception = not_run("no_worker", message="none serves")

    def options(self, num_returns: int) -> "FakeGenerator":
        assert num_returns == 2
        return self

    def remote(self, lease: Lease) -> tuple[asyncio.Future[bytes], Any]:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.leases[lease.prompt.id], self.answers[lease.prompt.id] = lease, answer
        self.attempts.append(lease.attempt)
        if fault := self.faults.pop(0) if self.faults else self.fault:
            answer.set_exception(fault)
        elif self.at_once:
            self.finish(lease.prompt.id)
        payload = Payload(f"payload {lease.prompt.id}")
        payload.lease, payload.verdict = lease, self.verdict
        return answer, payload

    def finish(self, prompt_id: str, rewards: tuple[float, ...] = (0.0, 1.0), newest_version: int = 0) -> None:
        self.answers[prompt_id].set_result(encode(group_numbers(prompt_id, rewards, newest_version=newest_version)))

    def die(self, error: Exception) -> None:
        self.fault = error
        for answer in self.answers.values():
            if not answer.done():
                answer.set_exception(error)


def engine_died() -> Exception:
    """As Ray raises it in the caller: it is an EngineDied and a RayTaskError."""
    error = EngineDied("killed")
    return RayTaskError("generate", "Traceback\nEngineDied: killed", error).as_instanceof_cause()


def bug() -> Exception:
    return RayTaskError("generate", "Traceback\nKeyError: 'bug'", KeyError("bug")).as_instanceof_cause()


@pytest.fixture
def make(tmp_path) -> Callable[..., QueueActor]:
    def make_queue(
        ledger: Ledger | None = None, cancel: Callable[[Any], None] = lambda ref: None, **changes
    ) -> QueueActor:
        plan = queue_plan(**{"max_staleness": 0, "lease_seconds": SECONDS, **changes})
        return QueueActor("run", EndlessPrompts(), plan, ledger, str(tmp_path), cancel)

    return make_queue


def entry(generator: FakeGenerator, version: int = 0, inflight: int = 8) -> GeneratorEntry:
    return GeneratorEntry(generator, version, inflight)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0)


async def test_a_batch_is_taken_as_references_with_their_numbers(make):
    queue, generator = make(), FakeGenerator(at_once=True)
    await queue.set_generators({"g": entry(generator)})
    batch = await queue.take(SECONDS)
    assert [group.payload for group in batch.groups] == ["payload 0:0", "payload 0:1"]
    assert [group.numbers.prompt_id for group in batch.groups] == ["0:0", "0:1"]
    assert (await queue.commit(1)).trained == ["0:0", "0:1"]


async def test_a_queue_that_is_told_to_stop_leases_nothing_more_and_takes_what_comes_back(make):
    queue, generator = make(max_staleness=10), FakeGenerator()
    await queue.set_generators({"g": entry(generator, inflight=2)})
    await until(lambda: len(generator.answers) == 2)
    await queue.stop_leasing()
    for name in ("0:0", "0:1"):
        generator.finish(name)
    batch = await queue.take(SECONDS)
    assert [group.numbers.prompt_id for group in batch.groups] == ["0:0", "0:1"]
    await queue.commit(1)
    await queue.attested("g", 1)
    assert len(generator.answers) == 2
    assert (await queue.status()).leased == 0


async def test_leases_go_where_there_is_most_room_and_never_above_what_a_generator_may_hold(make):
    queue = make(max_staleness=10)
    small, large = FakeGenerator(), FakeGenerator()
    await queue.set_generators({"small": entry(small, inflight=1), "large": entry(large, inflight=3)})
    await until(lambda: len(small.leases) + len(large.leases) == 4)
    assert (len(small.leases), len(large.leases)) == (1, 3)


async def test_nothing_is_handed_out_beyond_what_staleness_allows(make):
    queue, generator = make(max_staleness=0), FakeGenerator()
    await queue.set_generators({"g": entry(generator)})
    await until(lambda: len(generator.leases) == 2)
    for name in list(generator.leases):
        generator.finish(name)
    await queue.take(SECONDS)
    await queue.commit(1)
    assert (await queue.status()).leased == 0, "the generator still holds the old weights"
    await queue.set_generators({"g": entry(generator, version=1)})
    await until(lambda: len(generator.leases) == 4)


async def test_a_finished_group_makes_room_for_the_next_lease(make):
    queue, generator = make(max_staleness=10), FakeGenerator()
    await queue.set_generators({"g": entry(generator, inflight=1)})
    await until(lambda: "0:0" in generator.leases)
    generator.finish("0:0")
    await until(lambda: "0:1" in generator.leases)


@pytest.mark.parametrize("death", [RayActorError(), engine_died()], ids=["its process", "its engine"])
async def test_leases_of_a_generator_that_died_are_handed_to_another_under_the_same_names(make, death):
    queue, dying, other = make(), FakeGenerator(), FakeGenerator(at_once=True)
    await queue.set_generators({"dying": entry(dying)})
    await until(lambda: len(dying.leases) == 2)
    dying.finish("0:0")
    dying.die(death)
    for _ in range(50):  # time enough to hand the lease to the dead one again
        await asyncio.sleep(0)
    await queue.set_generators({"other": entry(other)})
    batch = await queue.take(SECONDS)
    assert {group.numbers.prompt_id for group in batch.groups} == {"0:0", "0:1"}
    assert list(other.leases) == ["0:1"], "what was finished before the death is kept"
    assert other.leases["0:1"].attempt == 2
    assert dying.attempts == [1, 1], "a dead generator gets nothing more"
    assert (await queue.status()).reissued == 1


async def test_an_expired_lease_is_cancelled_and_handed_out_again(make):
    cancelled: list[Any] = []
    queue, generator = make(cancel=cancelled.append, lease_seconds=SHORT), FakeGenerator()
    await queue.set_generators({"g": entry(generator)})
    await until(lambda: generator.attempts.count(1) == 2)
    first = dict(generator.answers)
    await until(lambda: generator.attempts.count(2) >= 2)
    assert {id(ref) for ref in cancelled} >= {id(ref) for ref in first.values()}
    assert set(generator.leases) == {"0:0", "0:1"}


async def test_a_prompt_that_fails_every_time_without_a_death_fails_the_run(make):
    queue, generator = make(groups_per_step=1), FakeGenerator()
    generator.fault = bug()
    await queue.set_generators({"g": entry(generator)})
    await until(lambda: generator.attempts == list(range(1, ATTEMPTS + 1)))
    with pytest.raises(KeyError, match="bug"):
        await take_with_patience(queue)
    assert len(generator.attempts) == ATTEMPTS


@pytest.mark.parametrize("loss", [RayActorError(), engine_died(), TimeoutError()], ids=["process", "engine", "expiry"])
async def test_lost_leases_do_not_count_as_errors_of_their_prompt(make, loss):
    queue, generator = make(groups_per_step=1), FakeGenerator(at_once=True)
    generator.faults = [loss] * ATTEMPTS + [bug()] * (ATTEMPTS - 1)
    async with asyncio.timeout(SECONDS):
        while generator.faults:
            await queue.set_generators({"g": entry(generator)})  # whoever died is replaced
            await asyncio.sleep(0)
    batch = await take_with_patience(queue)
    assert [group.numbers.prompt_id for group in batch.groups] == ["0:0"]
    assert generator.attempts == list(range(1, 2 * ATTEMPTS + 1))


async def take_with_patience(queue: QueueActor) -> Any:
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                return await queue.take(SHORT)
            except TakeTimeout:
                continue


async def test_an_answer_that_is_no_record_fails_the_take_instead_of_hanging(make):
    queue, generator = make(), FakeGenerator()
    await queue.set_generators({"g": entry(generator)})
    await until(lambda: len(generator.leases) == 2)
    generator.answers["0:0"].set_result(b"not msgpack")
    with pytest.raises(Exception, match=r"MessagePack|truncated|malformed|Expected"):
        await take_with_patience(queue)


async def test_a_take_without_a_full_batch_says_what_it_waits_for(make):
    queue, generator = make(), FakeGenerator()
    with pytest.raises(TakeTimeout, match="0 of 2 groups ready, 0 being generated by 0 serving"):
        await queue.take(SHORT)
    await queue.set_generators({"g": entry(generator)})
    await until(lambda: len(generator.leases) == 2)
    generator.finish("0:0")
    with pytest.raises(TakeTimeout, match="1 of 2 groups ready, 1 being generated by 1 serving"):
        await queue.take(SHORT)


async def test_a_take_that_waits_is_woken_by_the_last_group(make):
    queue, generator = make(), FakeGenerator()
    await queue.set_generators({"g": entry(generator)})
    await until(lambda: len(generator.leases) == 2)
    taking = asyncio.create_task(queue.take(SECONDS))
    await asyncio.sleep(0)
    generator.finish("0:0")
    generator.finish("0:1")
    assert len((await taking).groups) == 2


async def test_filtered_and_dropped_groups_are_replaced_and_told_with_the_batch(make):
    queue, generator = make(groups_per_step=1, drop_uniform=True), FakeGenerator()
    nan = float("nan")
    await queue.set_generators({"g": entry(generator)})
    for name, rewards in (("0:0", (1.0, 1.0)), ("0:1", (nan, nan)), ("0:2", (0.0, 1.0))):
        await until(lambda name=name: name in generator.leases)
        generator.finish(name, rewards)
    batch = await queue.take(SECONDS)
    assert [group.numbers.prompt_id for group in batch.groups] == ["0:2"]
    assert [numbers.prompt_id for numbers in batch.filtered] == ["0:0"]
    assert batch.dropped == 1
    record = await queue.commit(1)
    assert (record.filtered, record.dropped) == (["0:0"], [("0:1", "infra_error")])


NOT_SCORED = (float("nan"), float("nan"))


async def drop(generator: FakeGenerator, ordinals: range) -> None:
    for name in (f"0:{ordinal}" for ordinal in ordinals):
        await until(lambda name=name: name in generator.leases)
        generator.finish(name, NOT_SCORED)


@pytest.mark.parametrize("lost", [False, True])
async def test_nothing_but_dropped_groups_fails_the_run_with_the_reason_of_most(make, lost):
    queue, generator = make(groups_per_step=2), FakeGenerator()
    generator.verdict = RayActorError() if lost else not_run("no_answer", message="the row has\nno 'answer'")
    await queue.set_generators({"g": entry(generator)})
    await drop(generator, range(2 * HOPELESS_STEPS - 1))
    with pytest.raises(TakeTimeout):
        await queue.take(SHORT)
    await drop(generator, range(2 * HOPELESS_STEPS - 1, 2 * HOPELESS_STEPS))
    says = "the reason is lost" if lost else "no_answer: the row has no 'answer'$"
    with pytest.raises(ChecksFailed, match=f"^4 groups in a row were dropped, .*; {says}"):
        await take_with_patience(queue)


async def test_a_group_that_is_of_use_between_the_dropped_ones_lets_the_run_go_on(make):
    queue, generator = make(groups_per_step=2), FakeGenerator()
    await queue.set_generators({"g": entry(generator)})
    await drop(generator, range(3))
    await until(lambda: "0:3" in generator.leases)
    generator.finish("0:3")
    await until(lambda: queue._queue.ready == 1)
    await drop(generator, range(4, 7))
    await until(lambda: "0:7" in generator.leases)
    generator.finish("0:7")
    assert len((await take_with_patience(queue)).groups) == 2


async def test_a_queue_from_a_ledger_hands_out_what_was_outstanding_first(make):
    ledger = Ledger(cursor=9, outstanding=[(0, 4), (0, 7)], trained=5, filtered=1, dropped=1, version=3)
    queue, generator = make(ledger), FakeGenerator(at_once=True)
    await queue.set_generators({"g": entry(generator, version=3)})
    batch = await queue.take(SECONDS)
    assert {group.numbers.prompt_id for group in batch.groups} == {"0:4", "0:7"}
    assert batch.dropped == 0, "the drops before the resume were told of then"
    assert (await queue.ledger()).trained == 5


async def test_a_generator_that_is_no_longer_named_finishes_what_it_holds(make):
    queue, leaving, staying = make(max_staleness=10), FakeGenerator(), FakeGenerator()
    await queue.set_generators({"leaving": entry(leaving, inflight=1), "staying": entry(staying, inflight=1)})
    await until(lambda: len(leaving.leases) == len(staying.leases) == 1)
    await queue.set_generators({"staying": entry(staying, inflight=1)})
    for generator in (leaving, staying):
        generator.finish(next(iter(generator.leases)))
    batch = await queue.take(SECONDS)
    assert {group.numbers.prompt_id for group in batch.groups} == {"0:0", "0:1"}
    await until(lambda: len(staying.leases) == 2)
    assert len(leaving.leases) == 1


async def test_a_group_with_tokens_of_weights_not_yet_attested_waits_for_that(make):
    queue, generator = make(groups_per_step=1, max_staleness=1), FakeGenerator()
    await queue.set_generators({"g": entry(generator, inflight=1)})
    await until(lambda: len(generator.leases) == 1)
    generator.finish("0:0", newest_version=1)
    with pytest.raises(TakeTimeout):
        await queue.take(SHORT)
    await queue.attested("g", 1)
    batch = await queue.take(SECONDS)
    assert [group.numbers.newest_version for group in batch.groups] == [1]


async def test_a_generator_is_given_what_its_new_version_allows_as_soon_as_it_is_attested(make):
    queue, generator = make(groups_per_step=1), FakeGenerator(at_once=True)
    await queue.set_generators({"g": entry(generator)})
    await queue.take(SECONDS)
    await queue.commit(1)
    assert list(generator.leases) == ["0:0"]
    await queue.attested("g", 1)
    await until(lambda: list(generator.leases) == ["0:0", "0:1"])


@pytest.mark.parametrize("finished", ["before the drain", "after it"])
async def test_a_group_of_a_generator_that_drains_during_a_publish_waits_for_its_attestation(make, finished):
    queue, draining, other = make(groups_per_step=1), FakeGenerator(), FakeGenerator(at_once=True)
    await queue.set_generators({"draining": entry(draining, inflight=1)})
    await until(lambda: len(draining.leases) == 1)
    if finished == "before the drain":
        draining.finish("0:0", newest_version=1)
    await queue.set_generators({"other": entry(other, inflight=1)})
    if finished != "before the drain":
        draining.finish("0:0", newest_version=1)
    with pytest.raises(TakeTimeout):
        await queue.take(SHORT)
    await queue.attested("draining", 1)
    batch = await queue.take(SECONDS)
    assert [group.payload.lease.attempt for group in batch.groups] == [1]
    assert other.leases == {}


@pytest.mark.parametrize("finished", ["before that", "after it"])
@pytest.mark.parametrize("draining", [False, True])
async def test_a_group_of_a_generator_that_is_given_up_during_a_publish_is_generated_by_another(
    make, finished, draining
):
    queue, refused, other = make(groups_per_step=1), FakeGenerator(), FakeGenerator(at_once=True)
    await queue.set_generators({"refused": entry(refused, inflight=1)})
    await until(lambda: len(refused.leases) == 1)
    others = {"other": entry(other, inflight=1)}
    await queue.set_generators(others if draining else {"refused": entry(refused, inflight=1), **others})
    if finished == "before that":
        refused.finish("0:0", newest_version=1)
        with pytest.raises(TakeTimeout):
            await queue.take(SHORT)
    await queue.given_up("refused")
    if finished != "before that":
        await queue.set_generators(others)
        refused.finish("0:0", newest_version=1)
    batch = await queue.take(SECONDS)
    assert [group.payload.lease.attempt for group in batch.groups] == [2]
    assert refused.attempts == [1], "who is given up gets nothing more"


async def test_a_group_of_attested_weights_is_kept_although_its_generator_is_given_up(make):
    queue, refused, other = make(groups_per_step=1), FakeGenerator(), FakeGenerator(at_once=True)
    await queue.set_generators({"refused": entry(refused, inflight=1)})
    await until(lambda: len(refused.leases) == 1)
    await queue.given_up("refused")
    await queue.set_generators({"other": entry(other, inflight=1)})
    refused.finish("0:0", newest_version=0)
    batch = await queue.take(SECONDS)
    assert [group.payload.lease.attempt for group in batch.groups] == [1]


async def test_a_generator_that_serves_again_is_waited_for_again(make):
    queue, generator = make(groups_per_step=1), FakeGenerator()
    generator.faults = [RayActorError()]  # it did not answer for a moment
    await queue.set_generators({"g": entry(generator, inflight=1)})
    await until(lambda: queue._queue.reissued == 1)
    await queue.set_generators({"g": entry(generator, inflight=1)})
    await until(lambda: generator.attempts == [1, 2])
    generator.finish("0:0", newest_version=1)
    with pytest.raises(TakeTimeout):
        await queue.take(SHORT)
    await queue.attested("g", 1)
    assert [group.payload.lease.attempt for group in (await queue.take(SECONDS)).groups] == [2]


async def test_a_group_does_not_wait_for_an_attestation_beyond_its_lease(make):
    queue, silent = make(groups_per_step=1, lease_seconds=SHORT), FakeGenerator()
    await queue.set_generators({"silent": entry(silent, inflight=1)})
    await until(lambda: len(silent.leases) == 1)
    silent.finish("0:0", newest_version=1)
    await until(lambda: silent.attempts[:2] == [1, 2])


async def scraped(url: str) -> dict[str, float]:
    """The values on the page, by name and by their own labels' values."""

    def read() -> str:
        with urlopen(url, timeout=SECONDS) as answer:
            return answer.read().decode()

    families = text_string_to_metric_families(await asyncio.to_thread(read))
    samples = [sample for family in families for sample in family.samples if not sample.name.endswith("_created")]
    assert all({"run": "run", "member": "queue"}.items() <= sample.labels.items() for sample in samples)
    own = [[value for label, value in sample.labels.items() if label not in COMMON_LABELS] for sample in samples]
    return {" ".join([sample.name, *labels]): sample.value for sample, labels in zip(samples, own, strict=True)}


async def test_its_page_holds_every_metric_of_the_queue_as_it_is_at_the_scrape(make):
    ledger = Ledger(cursor=9, outstanding=[], trained=5, filtered=1, dropped=1, version=0)
    queue, generator = make(ledger, max_staleness=1), FakeGenerator()
    url = await queue.start("127.0.0.1")
    before = await scraped(url)
    assert {name.partition(" ")[0] for name in before} == {metric.name for metric in QUEUE_METRICS}
    assert set(before.values()) == {0.0}, "what the ledger holds was counted by the process before"
    await queue.set_generators({"g": entry(generator, inflight=3)})
    await until(lambda: len(generator.leases) == 3)
    for name, rewards in (("0:9", (0.0, 1.0)), ("0:10", (0.0, 1.0))):
        generator.finish(name, rewards)
    await queue.take(SECONDS)
    await queue.commit(1)
    generator.finish("0:11", NOT_SCORED)
    await until(lambda: len(generator.leases) == 5)
    after = await scraped(url)
    assert after.pop("headrace_queue_oldest_lease_seconds") > 0
    assert after == {
        "headrace_queue_groups leased": 2,
        "headrace_queue_groups ready": 0,
        "headrace_queue_capacity_groups": 0,
        "headrace_groups_total trained": 2,
        "headrace_groups_total filtered": 0,
        "headrace_groups_total dropped": 1,
        "headrace_groups_reissued_total": 0,
    }
    generator.die(RayActorError())
    await until(lambda: queue._queue.leased == 0)
    assert (await scraped(url))["headrace_groups_reissued_total"] == 2


async def test_an_address_that_the_queue_cannot_listen_on_is_one_line(make):
    with pytest.raises(UserError, match=r"metrics: cannot listen on 192\.0\.2\.1:0"):
        await make().start("192.0.2.1")


async def test_what_is_known_of_generators_that_are_gone_is_forgotten(make):
    queue, gone, other = make(groups_per_step=1), FakeGenerator(), FakeGenerator()
    await queue.set_generators({"gone": entry(gone, inflight=1)})
    await until(lambda: len(gone.leases) == 1)
    await queue.given_up("gone")
    gone.die(RayActorError())
    await until(lambda: queue._queue.leased == 0)
    await queue.set_generators({"other": entry(other)})
    assert (queue._given_up, queue._attested) == (set(), {"other": 0})
