"""The controller's endpoint over real HTTP on this machine."""

import asyncio
import os

import msgspec
import pytest
from aiohttp import ClientSession
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from headrace.cluster.endpoint import ControllerAddress, Endpoint, ScaleRequest, Target, ask, targets
from headrace.cluster.run_records import MemberState, Pool, RunStatus
from headrace.verifiers.errors import UserError
from tests.factories import member_status, run_status

STATUS = run_status(
    run="letters",
    queue_metrics_url="http://10.0.0.9:8009/metrics",
    members=[
        member_status("rollout-0", metrics_url="http://10.0.0.1:8001/metrics"),
        member_status("rollout-1", state=MemberState.GONE, metrics_url="http://10.0.0.2:8001/metrics"),
        member_status("rollout-2", state=MemberState.STARTING),
        member_status("learner-0", Pool.LEARNER, metrics_url="http://[::1]:8002/metrics"),
    ],
)


class Controller:
    """What the endpoint speaks for."""

    def __init__(self) -> None:
        self.scaled: list[ScaleRequest] = []
        self.registry = CollectorRegistry()
        Gauge("headrace_controller_step", "The step.", registry=self.registry).set(3)

    async def status(self) -> RunStatus:
        return STATUS

    async def scale(self, request: ScaleRequest) -> None:
        self.scaled.append(request)


@pytest.fixture
async def served():
    controller = Controller()
    endpoint = Endpoint(controller.status, controller.scale, controller.registry)
    address = await endpoint.start("127.0.0.1", 0)
    yield controller, address
    await endpoint.close()


async def get(address: ControllerAddress, path: str, token: str | None, method: str = "GET") -> tuple[int, str]:
    headers = {} if token is None else {"Authorization": token}
    async with (
        ClientSession() as session,
        session.request(method, address.url + path, headers=headers, data=b'{"rollout": 2}') as response,
    ):
        return response.status, await response.text()


async def test_status_comes_back_as_it_is(served):
    _, address = served
    assert address.pid == os.getpid()
    assert await ask(address, "GET", "/status") == STATUS


@pytest.mark.parametrize("path", ["/status", "/sd", "/metrics", "/scale", "/nowhere"])
@pytest.mark.parametrize("token", [None, "", "Bearer ", "Bearer wrong"])
async def test_no_page_answers_without_the_token(served, path, token):
    controller, address = served
    status, text = await get(address, path, token, "POST" if path == "/scale" else "GET")
    assert status == 401
    assert "letters" not in text
    assert controller.scaled == []


async def test_a_token_of_bytes_that_are_no_text_is_refused_and_no_error(served):
    _, address = served
    host, port = address.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n\r\n")
    assert (await reader.readline()).split()[1] == b"401"
    writer.close()


async def test_the_token_without_its_scheme_is_refused(served):
    _, address = served
    assert (await get(address, "/status", address.token))[0] == 401


async def test_scaling_names_the_pools_and_answers_with_the_status(served):
    controller, address = served
    answer = await ask(address, "POST", "/scale", b'{"rollout": 2}')
    assert controller.scaled == [ScaleRequest(rollout=2, verification=None)]
    assert answer.run == "letters"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"rollout": 0}', "Expected `int` >= 1"),
        (b'{"rollout": 2, "verification": 0}', "Expected `int` >= 1"),
        (b'{"rollout": 20000000}', "Expected `int` <= 10000"),
        (b'{"rolout": 2}', "unknown field `rolout`"),
        (b'{"rollout": "two"}', "Expected `int | null`, got `str`"),
        (b'{"rollout": 1.5}', "Expected `int | null`"),
        (b"[]", "Expected `object`"),
        (b"", "truncated"),
        (b"not json", "malformed"),
    ],
)
async def test_a_scale_request_that_cannot_be_met_is_refused_with_the_reason(served, body, says):
    controller, address = served
    headers = {"Authorization": f"Bearer {address.token}"}
    async with ClientSession() as session, session.post(address.url + "/scale", data=body, headers=headers) as response:
        assert response.status == 400
        assert says in await response.text()
    assert controller.scaled == []
    with pytest.raises(UserError):
        await ask(address, "POST", "/scale", body)


async def test_metrics_are_a_page_that_prometheus_reads(served):
    _, address = served
    status, text = await get(address, "/metrics", f"Bearer {address.token}")
    assert status == 200
    values = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    assert values == {"headrace_controller_step": 3.0}


async def test_service_discovery_lists_every_process_that_lives_and_has_metrics(served):
    _, address = served
    status, text = await get(address, "/sd", f"Bearer {address.token}")
    assert status == 200
    found = msgspec.json.decode(text, type=list[Target])
    assert found == targets(STATUS, address.url.removeprefix("http://"))
    assert {target.labels["member"]: target.targets for target in found} == {
        "controller": [address.url.removeprefix("http://")],
        "queue": ["10.0.0.9:8009"],
        "rollout-0": ["10.0.0.1:8001"],
        "learner-0": ["[::1]:8002"],
    }
    assert {target.labels["pool"] for target in found} == {"controller", "queue", "rollout", "learner"}


def test_a_queue_whose_process_is_not_up_is_not_listed():
    found = targets(msgspec.structs.replace(STATUS, queue_metrics_url=None), "10.0.0.3:9400")
    assert "queue" not in {target.labels["member"] for target in found}


async def test_a_port_in_use_is_one_line_with_what_to_set(served):
    _, address = served
    other = Controller()
    second = Endpoint(other.status, other.scale, other.registry)
    with pytest.raises(UserError, match=r"metrics\.port: cannot listen on 127\.0\.0\.1:\d+: .*address already in use"):
        await second.start("127.0.0.1", int(address.url.rsplit(":", 1)[1]))
    await second.close()


async def test_a_run_that_has_ended_is_said_to_have(served):
    _, address = served
    gone = msgspec.structs.replace(address, url="http://127.0.0.1:9")
    with pytest.raises(UserError, match="the run has ended"):
        await ask(gone, "GET", "/status")


async def test_every_controller_has_a_token_of_its_own():
    addresses = []
    for _ in range(2):
        controller = Controller()
        endpoint = Endpoint(controller.status, controller.scale, controller.registry)
        addresses.append(await endpoint.start("127.0.0.1", 0))
        await endpoint.close()
    first, second = addresses
    assert first.token != second.token
    assert len(first.token) >= 32
