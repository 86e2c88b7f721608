"""The controller's HTTP endpoint: status, scaling, metrics, and Prometheus' service discovery.

    GET  /status    RunStatus as JSON
    POST /scale     ScaleRequest as JSON
    GET  /sd        targets for Prometheus' http_sd_configs
    GET  /metrics   the controller's own metrics

Every request carries `Authorization: Bearer TOKEN`; the token lies in RUN/controller.json, which only the run's user reads.
"""

from __future__ import annotations

import errno
import hmac
import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, web
from prometheus_client import CollectorRegistry, generate_latest

from headrace.cluster.metrics import QUEUE_MEMBER
from headrace.cluster.run_records import MAX_MEMBERS, MemberState, RunStatus
from headrace.verifiers.errors import UserError, WrongValue
from headrace.verifiers.telemetry import LOOPBACK, WILDCARDS

CLIENT_SECONDS = 10.0

Members = Annotated[int, msgspec.Meta(ge=1, le=MAX_MEMBERS)]


class ControllerAddress(msgspec.Struct, frozen=True):
    """controller.json."""

    url: str
    token: str
    pid: int


class ScaleRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Members that the pools should have; None leaves a pool as it is."""

    rollout: Members | None = None
    verification: Members | None = None


def cannot_listen(host: str, port: int, error: OSError) -> WrongValue:
    """What to tell when an address of the job's `[metrics]` cannot be bound, with the key that is at fault."""
    key = "metrics.port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "metrics.host"
    return WrongValue(key, f"cannot listen on {host}:{port}: {error.strerror}")


class Endpoint:
    """Serves one controller. `scale` raises UserError for a request that cannot be met."""

    def __init__(
        self,
        status: Callable[[], Awaitable[RunStatus]],
        scale: Callable[[ScaleRequest], Awaitable[None]],
        registry: CollectorRegistry,
    ) -> None:
        self._status = status
        self._scale = scale
        self._registry = registry
        self._token = secrets.token_urlsafe(32)
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> ControllerAddress:
        """Raises UserError when the address cannot be bound."""
        application = web.Application(middlewares=[self._authorize])
        application.add_routes(
            [
                web.get("/status", self._get_status),
                web.post("/scale", self._post_scale),
                web.get("/sd", self._get_targets),
                web.get("/metrics", self._get_metrics),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise cannot_listen(host, port, error) from error
        bound = self._runner.addresses[0]
        reached = LOOPBACK if bound[0] in WILDCARDS else bound[0]
        return ControllerAddress(f"http://{reached}:{bound[1]}", self._token, os.getpid())

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _authorize(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        # A header may hold any bytes; aiohttp keeps those that are no UTF-8 as surrogates.
        if not hmac.compare_digest(given.encode(errors="surrogateescape"), f"Bearer {self._token}".encode()):
            raise web.HTTPUnauthorized(text="give the token of RUN/controller.json as `Authorization: Bearer TOKEN`\n")
        return await handler(request)

    async def _get_status(self, request: web.Request) -> web.Response:
        return json_response(await self._status())

    async def _post_scale(self, request: web.Request) -> web.Response:
        try:
            await self._scale(msgspec.json.decode(await request.read(), type=ScaleRequest))
        except (msgspec.MsgspecError, UserError) as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        return json_response(await self._status())

    async def _get_targets(self, request: web.Request) -> web.Response:
        return json_response(targets(await self._status(), request.host))

    async def _get_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), content_type="text/plain", charset="utf-8")


class Target(msgspec.Struct, frozen=True):
    """One entry of Prometheus' HTTP service discovery."""

    targets: list[str]  # host:port
    labels: dict[str, str]


def targets(status: RunStatus, controller: str) -> list[Target]:
    """Every process of the run that has metrics. `controller` is its host:port."""
    found = [Target([controller], {"run": status.run, "member": "controller", "pool": "controller"})]
    pages = [(QUEUE_MEMBER, QUEUE_MEMBER, status.queue_metrics_url)]
    pages += [(each.name, each.pool, each.metrics_url) for each in status.members if each.state is not MemberState.GONE]
    for member, pool, url in pages:
        if url is not None:
            found.append(Target([urlsplit(url).netloc], {"run": status.run, "member": member, "pool": pool}))
    return found


def json_response(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


async def ask(address: ControllerAddress, method: str, path: str, body: bytes | None = None) -> RunStatus:
    """One request to a live controller.

    Raises:
        UserError: it does not answer, or refuses.
    """
    headers = {"Authorization": f"Bearer {address.token}"}
    try:
        async with (
            ClientSession(timeout=ClientTimeout(total=CLIENT_SECONDS)) as session,
            session.request(method, address.url + path, data=body, headers=headers) as response,
        ):
            content = await response.read()
            if response.status != 200:
                raise UserError(content.decode(errors="replace").strip())
            return msgspec.json.decode(content, type=RunStatus)
    except TimeoutError as error:
        late = f"has not answered in {CLIENT_SECONDS:g} s; ask again, the machine may be busy"
        raise UserError(f"the run's controller (process {address.pid}) {late}") from error
    except ClientError as error:
        raise UserError(f"the run's controller (process {address.pid}) does not answer: the run has ended") from error
