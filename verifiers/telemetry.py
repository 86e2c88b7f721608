"""What every process tells the outside: Prometheus metrics and log lines, the same way in all of them.

Metrics are declared as values in one table per kind of process (the controller's is in `cluster/metrics.py`) and named
by those values, so that a metric that is used is one that is declared, documented and exported:

    telemetry = Telemetry(GENERATOR_METRICS, run="booking", member="generator-0")
    telemetry.add(GENERATOR_TOKENS, 128)
    server, port = serve_metrics([telemetry.registry, prometheus_client.REGISTRY])

Names follow Prometheus' conventions: base units, `_total` for counters, `_ratio` for shares in [0, 1].
"""

from __future__ import annotations

import errno
import logging
import re
import socket
import sys
from collections.abc import MutableMapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO
from wsgiref.simple_server import WSGIServer

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from headrace.verifiers.errors import UserError


class MetricKind(StrEnum):
    COUNTER = "counter"  # only ever grows, from 0 at the process's start
    GAUGE = "gauge"  # the value of the moment
    HISTOGRAM = "histogram"  # how often which durations occurred


class Metric(msgspec.Struct, frozen=True):
    """One metric as it is exported. Every metric has the labels `run` and `member` besides its own."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()  # upper bounds, histograms only


COMMON_LABELS = ("run", "member")
LOOPBACK = "127.0.0.1"
WILDCARDS = ("0.0.0.0", "::")
REASON = re.compile("[a-z_]{1,40}")
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0, 600.0)


def counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, MetricKind.COUNTER, help, labels)


def gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, MetricKind.GAUGE, help, labels)


def histogram(name: str, help: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Metric:
    return Metric(name, MetricKind.HISTOGRAM, help, labels, buckets)


GENERATOR_SAMPLES = counter("headrace_generator_samples_total", "Samples finished, by why they ended.", "stop_reason")
GENERATOR_TOKENS = counter("headrace_generator_tokens_total", "Tokens generated.")
GENERATOR_GROUPS = counter("headrace_generator_groups_total", "Groups finished, with their verdicts.")
GENERATOR_VERSION = gauge("headrace_generator_weight_version", "Weight version that the engine computes with.")
GENERATOR_INFLIGHT = gauge("headrace_generator_inflight_groups", "Leases that the generator holds.")
GENERATOR_GENERATE = histogram("headrace_generator_generate_seconds", "Time to generate all samples of one group.")
GENERATOR_VERIFY = histogram(
    "headrace_generator_verify_seconds", "Time from a finished sample to its verdict, the wait for a worker included."
)
GENERATOR_RECEIVE = histogram("headrace_generator_receive_seconds", "Time to receive one weight update.")
GENERATOR_PAUSE = histogram("headrace_generator_pause_seconds", "Time that generation stood still for one update.")
GENERATOR_METRICS = (
    GENERATOR_SAMPLES,
    GENERATOR_TOKENS,
    GENERATOR_GROUPS,
    GENERATOR_VERSION,
    GENERATOR_INFLIGHT,
    GENERATOR_GENERATE,
    GENERATOR_VERIFY,
    GENERATOR_RECEIVE,
    GENERATOR_PAUSE,
)

VERIFICATION_VERDICTS = counter(
    "headrace_verification_verdicts_total",
    "Verdicts, by kind (pass, fail, infra_error) and reason; a reason that is no short identifier counts as `other`.",
    "kind",
    "reason",
)
VERIFICATION_SECONDS = histogram("headrace_verification_seconds", "Time to check one sample.")
VERIFICATION_INFLIGHT = gauge("headrace_verification_inflight_samples", "Samples that the worker holds.")
VERIFICATION_DEGRADED = gauge(
    "headrace_verification_sandbox_degraded",
    "1 where the worker runs code without a layer of the sandbox that is needed, as `allow_degraded` lets it.",
)
VERIFICATION_METRICS = (VERIFICATION_VERDICTS, VERIFICATION_SECONDS, VERIFICATION_INFLIGHT, VERIFICATION_DEGRADED)

LEARNER_STEPS = counter("headrace_learner_steps_total", "Optimizer steps of this rank.")
LEARNER_TOKENS = counter("headrace_learner_tokens_total", "Tokens through the forward pass of this rank.")
LEARNER_PHASE = counter("headrace_learner_phase_seconds_total", "Time of this rank, by phase of the step.", "phase")
LEARNER_VERSION = gauge("headrace_learner_weight_version", "Weight version that the rank holds.")
LEARNER_DEVICE_MEMORY = gauge(
    "headrace_learner_device_memory_peak_bytes", "Most device memory the rank has held; 0 on a CPU."
)
LEARNER_METRICS = (LEARNER_STEPS, LEARNER_TOKENS, LEARNER_PHASE, LEARNER_VERSION, LEARNER_DEVICE_MEMORY)


class Telemetry:
    """The metrics of one process, in a registry of its own.

    A metric that is not in the table, or is used as another kind than it was declared as, raises KeyError; a label that
    is missing or not declared raises ValueError. Threads may call it at the same time, `raise_to` apart: that belongs
    to the one thread that keeps the total.
    """

    def __init__(self, table: Sequence[Metric], run: str, member: str) -> None:
        self.registry = CollectorRegistry()
        self._common = {"run": run, "member": member}
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._totals: dict[tuple[str, ...], float] = {}
        for metric in table:
            labels = (*COMMON_LABELS, *metric.labels)
            match metric.kind:
                case MetricKind.COUNTER:
                    made = self._counters[metric.name] = Counter(
                        metric.name, metric.help, labels, registry=self.registry
                    )
                case MetricKind.GAUGE:
                    made = self._gauges[metric.name] = Gauge(metric.name, metric.help, labels, registry=self.registry)
                case MetricKind.HISTOGRAM:
                    made = self._histograms[metric.name] = Histogram(
                        metric.name, metric.help, labels, registry=self.registry, buckets=metric.buckets
                    )
            if not metric.labels:
                made.labels(**self._common)  # exported from the start: a rate needs the 0 before the first event

    def add(self, metric: Metric, amount: float = 1, **labels: str) -> None:
        """Count `amount` more. Raises ValueError when it is negative."""
        self._counters[metric.name].labels(**self._common, **labels).inc(amount)

    def raise_to(self, metric: Metric, total: float, **labels: str) -> None:
        """Bring a counter to a total that is kept elsewhere. A smaller total than last time (its keeper started anew)
        counts from 0 again, which Prometheus takes for a restart."""
        key = (metric.name, *(labels[label] for label in metric.labels))
        child = self._counters[metric.name].labels(**self._common, **labels)
        last = self._totals.get(key, 0.0)
        if total < last:
            child.reset()
            last = 0.0
        child.inc(total - last)
        self._totals[key] = total

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        self._gauges[metric.name].labels(**self._common, **labels).set(value)

    def observe(self, metric: Metric, seconds: float, **labels: str) -> None:
        self._histograms[metric.name].labels(**self._common, **labels).observe(seconds)


def reason_label(reason: str) -> str:
    """A verdict's reason as a label: whatever is no short identifier is `other`, since each new one is a series for ever.

    >>> reason_label("no_match"), reason_label("expected 41, got 17")
    ('no_match', 'other')
    """
    return reason if REASON.fullmatch(reason) else "other"


def serve_metrics(
    registries: Sequence[CollectorRegistry], host: str = LOOPBACK, port: int = 0
) -> tuple[WSGIServer, int]:
    """Serve the registries as one `/metrics` page from a daemon thread; returns the server and the port it listens on.

    A generator passes its own registry and `prometheus_client.REGISTRY`, where vLLM's metrics live. Stop it with
    `stop_serving`. Raises UserError when the address cannot be bound.
    """
    joined = CollectorRegistry()
    for registry in registries:
        # A registry is a collector too: what is registered in it later (vLLM makes its metrics late) is served as well.
        joined.register(registry)
    try:
        server, _ = start_http_server(port, addr=host, registry=joined)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno in (
            errno.EADDRINUSE,
            errno.EADDRNOTAVAIL,
            errno.EACCES,
        ):
            raise UserError(
                f"metrics: cannot listen on {host}:{port} ({error.strerror}); set metrics.host to an address of this "
                "node and metrics.port to a free port, or to 0 for any"
            ) from error
        raise
    return server, server.server_port


def stop_serving(server: WSGIServer) -> None:
    """End what `serve_metrics` started, and give its address back."""
    server.shutdown()
    server.server_close()


def metrics_url(host: str, port: int, node: str) -> str:
    """Where others find what `serve_metrics` serves: a process that listens everywhere is found by its node's address."""
    return f"http://{node if host in WILDCARDS else host}:{port}/metrics"


def log_stream(log_dir: str | None, member: str) -> TextIO | Path:
    """Where a member's log lines go: its own file in the run folder, or stderr, which Ray keeps."""
    return Path(log_dir) / f"{member}.jsonl" if log_dir else sys.stderr


def configure_logging(run: str, member: str, stream: TextIO | Path, level: int = logging.INFO) -> None:
    """Send this process's structlog lines to `stream` (a path is appended to) as JSON: `time`, `level`, `event`, `run`,
    `member` and what the call adds (`step=`, `version=`, ...). `exc_info=True` adds the trace."""
    if isinstance(stream, Path):
        stream.parent.mkdir(parents=True, exist_ok=True)
        stream = stream.open("a", encoding="utf-8")

    def bind_process(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {"run": run, "member": member, **event}

    structlog.configure(
        processors=[
            # A processor, not a bound context variable: a thread that is started later would not have that one.
            bind_process,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


def _to_json(event: dict[str, Any], **_: Any) -> str:
    # structlog passes its fallback for unknown types under `default`; `str` is readable and never fails a log line.
    return msgspec.json.encode(event, enc_hook=str).decode()
