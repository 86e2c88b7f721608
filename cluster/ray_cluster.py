"""The Ray cluster that a run uses: the one that `RAY_ADDRESS` names, or one of its own on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial

import grpc
import msgspec
import psutil
import ray
import structlog
from ray._private import utils as ray_utils  # for what `ray.init` leaves no choice
from ray._private.grpc_utils import init_grpc_channel  # with the cluster's TLS and token
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS  # no HTTP proxy
from ray._private.state import available_resources_per_node  # DeveloperAPI, and nowhere else by node
from ray.exceptions import AuthenticationError

from headrace.actors.shared_memory import release, segments_of
from headrace.cluster.config import JobConfig
from headrace.cluster.errors import RunFailed
from headrace.cluster.event_loop import Interrupts
from headrace.cluster.placement import Bundle, bundles, check_fits, custom_resources, free_nodes, ray_nodes
from headrace.verifiers.child_status import keep_child_statuses
from headrace.verifiers.errors import UserError, cause_line
from headrace.verifiers.telemetry import LOOPBACK

log = structlog.get_logger()

CONNECT_SECONDS = 5.0
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
NO_CLUSTER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED)
FREE_SECONDS = 10.0
POLL_SECONDS = 0.5
END_SECONDS = 10.0  # for the processes of a cluster of our own to end by themselves
KILLED_SECONDS = 10.0  # for a killed process to be gone
RAY_SETTINGS = {
    # A worker that dies takes the processes that it started with it: an engine is two of them.
    "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}
OBJECT_STORE_BYTES = 512 * 2**20  # of a cluster of our own; finished groups are kilobytes each


class ClusterInfo(msgspec.Struct, frozen=True):
    is_local: bool
    custom: frozenset[str]  # custom resources


@contextmanager
def ray_cluster(job: JobConfig, interrupts: Interrupts) -> Iterator[ClusterInfo]:
    """Connect, or start a cluster; leave it, or end it, at the end. Signals may break off the start, and never the end: of
    a cluster that is left half something would stay.

    Raises:
        UserError: the cluster cannot be reached, or the job does not fit it, or this process is in a Ray cluster already.
    """
    if ray.is_initialized():
        raise UserError(
            "Ray: this process has called ray.init already, and a run does that itself; ray.shutdown() first"
        )
    address = os.environ.get("RAY_ADDRESS") or None
    if address:
        check_answers(address)
    with environment(RAY_SETTINGS), nullcontext() if address else scratch_folder() as scratch:
        try:
            with interrupts.breaking_off(), sigterm_left_alone(), hangup_held_back():
                start_ray(job, address, scratch)
                nodes = ray_nodes(ray.nodes())
                custom = custom_resources(nodes)
                wanted = bundles(job, custom)
                check_fits(wanted, nodes)
                if address:
                    check_free(wanted)
            yield ClusterInfo(is_local=address is None, custom=custom)
        finally:
            interrupts.keep_during(partial(leave, scratch))
            keep_child_statuses()  # Ray has let this process ignore them, and whoever runs a job from Python has others


@contextmanager
def sigterm_left_alone() -> Iterator[None]:
    """`ray.init` has a handler of its own for SIGTERM, which raises SystemExit wherever the process happens to be, also
    where it ends what was started; and no option to do without."""
    before = ray_utils.set_sigterm_handler
    ray_utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler = before


@contextmanager
def hangup_held_back() -> Iterator[None]:
    """What is started meanwhile never gets SIGHUP: a terminal that closes sends it to all of its processes, and a run that
    is to end in order needs its cluster until then. One for this process itself comes when the block ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def environment(defaults: dict[str, str]) -> Iterator[None]:
    """These variables, where they are not set otherwise, for what is started meanwhile and no longer."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def check_free(wanted: list[Bundle]) -> None:
    """What other jobs hold is not waited for: members would stay pending. Raises UserError.

    What an ended job has held comes back within seconds, and for so long it is waited.
    """
    deadline = time.monotonic() + FREE_SECONDS
    while True:
        try:
            return check_fits(wanted, free_nodes(ray.nodes(), available_resources_per_node()))
        except UserError as error:
            if time.monotonic() > deadline:
                raise UserError(f"{error}. The cluster is large enough, but other jobs hold the rest of it") from error
        time.sleep(POLL_SECONDS)


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """For the files of a cluster of our own. Its path is short: sockets lie in it, and their paths may have 107 bytes."""
    return tempfile.TemporaryDirectory(prefix="headrace-", ignore_cleanup_errors=True)


class RayNotStarted(RunFailed):
    """Ray's own processes did not come up on this machine."""


def start_ray(job: JobConfig, address: str | None, scratch: str | None) -> None:
    """Connect to `address`, or start a cluster that keeps its files in `scratch`. Raises UserError, RayNotStarted."""
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                num_cpus=job.placement.local_cpus or max(8, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address=LOOPBACK,
                _temp_dir=scratch,
            )
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        if not address:
            raise UserError(f"Ray: {error}") from error
        raise UserError(
            f"RAY_ADDRESS: cannot join the Ray cluster at {address!r}: {cause_line(error)}; one that asks for a token wants "
            "RAY_AUTH_MODE=token and the token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
        ) from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        # So plain is what Ray raises when its node is not up in time, as on a machine that is very busy.
        raise RayNotStarted(f"Ray: {cause_line(error)}") from error


def leave(scratch: str | None) -> None:
    """Leave the cluster. Of one of our own (its files are in `scratch`) nothing stays: no process, and no shared memory of
    one that was killed in the middle of something, as a second Ctrl-C does."""
    roots = [] if scratch is None else [each for each in psutil.Process().children() if started_in(each, scratch)]
    family: list[psutil.Process] = []
    segments: set[str] = set()
    for root in roots:
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            family += [root, *root.children(recursive=True)]
            segments.update(segments_of(root.pid))
            if not ray.is_initialized():  # the start was broken off, and Ray does not know what it has started
                root.terminate()
    ray.shutdown()
    _, alive = psutil.wait_procs(family, timeout=END_SECONDS)
    for process in alive:
        log.warning("process_killed", pid=process.pid, waited_seconds=END_SECONDS)
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=KILLED_SECONDS)
    release(segments)


def started_in(process: psutil.Process, scratch: str) -> bool:
    """Whether it is one of Ray's own, which name their folder in their arguments."""
    try:
        return any(scratch in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def check_answers(address: str) -> None:
    """Ray itself waits for minutes where nobody listens, and without end, deaf to Ctrl-C, where somebody else does.

    Addresses without a port are Ray's to resolve.

    Raises:
        UserError: within seconds, nothing at `address` answers as a Ray cluster does.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        with closing(init_grpc_channel(address, GLOBAL_GRPC_OPTIONS)) as channel:
            channel.unary_unary(CHECK_ALIVE)(b"", timeout=CONNECT_SECONDS)  # what an empty request is in protobuf
    except OSError as error:
        reason = error.strerror or "no answer"
        raise UserError(f"RAY_ADDRESS: no Ray cluster at {address!r}: {reason.lower()}") from error
    except grpc.RpcError as error:
        if error.code() not in NO_CLUSTER:  # one that wants a token, for example: Ray says what it lacks
            return
        raise UserError(
            f"RAY_ADDRESS: something listens at {address!r}, but it is no Ray cluster: it wants the address that "
            "`ray start --head` prints for joining (port 6379), not the dashboard's (8265) or the client's (10001)"
        ) from error
