from __future__ import annotations

import io
import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from headrace.verifiers.errors import UserError
from headrace.verifiers.telemetry import (
    GENERATOR_METRICS,
    GENERATOR_PAUSE,
    GENERATOR_SAMPLES,
    GENERATOR_TOKENS,
    GENERATOR_VERSION,
    LEARNER_STEPS,
    Telemetry,
    configure_logging,
    serve_metrics,
)

LABELS = {"run": "booking", "member": "generator-0"}


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry(GENERATOR_METRICS, run="booking", member="generator-0")


@pytest.fixture
def _structlog_as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_every_value_carries_the_run_the_member_and_its_own_labels(telemetry: Telemetry) -> None:
    telemetry.add(GENERATOR_SAMPLES, 3, stop_reason="length")
    telemetry.set(GENERATOR_VERSION, 7)
    telemetry.observe(GENERATOR_PAUSE, 0.2)
    value = telemetry.registry.get_sample_value
    assert value("headrace_generator_samples_total", LABELS | {"stop_reason": "length"}) == 3
    assert value("headrace_generator_weight_version", LABELS) == 7
    assert value("headrace_generator_pause_seconds_sum", LABELS) == 0.2


def test_a_counter_is_exported_before_its_first_event(telemetry: Telemetry) -> None:
    assert telemetry.registry.get_sample_value("headrace_generator_tokens_total", LABELS) == 0


def test_a_total_kept_elsewhere_is_followed_and_counts_anew_when_its_keeper_does(telemetry: Telemetry) -> None:
    seen = []
    for total in (4, 9, 9, 2, 3):
        telemetry.raise_to(GENERATOR_TOKENS, total)
        seen.append(telemetry.registry.get_sample_value("headrace_generator_tokens_total", LABELS))
    assert seen == [4, 9, 9, 2, 3]


def test_a_metric_outside_the_table_or_of_another_kind_is_refused(telemetry: Telemetry) -> None:
    with pytest.raises(KeyError):
        telemetry.add(LEARNER_STEPS)
    with pytest.raises(KeyError):
        telemetry.set(GENERATOR_TOKENS, 1)
    with pytest.raises(ValueError, match=r"[Ll]abel"):
        telemetry.add(GENERATOR_SAMPLES)


def test_several_registries_are_served_as_one_page_with_what_is_registered_later(telemetry: Telemetry) -> None:
    engine = CollectorRegistry()
    server, port = serve_metrics([telemetry.registry, engine])
    Gauge("vllm_late", "Registered after the server started.", registry=engine).set(5)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            page = response.read().decode()
    finally:
        server.shutdown()
        server.server_close()
    assert 'headrace_generator_tokens_total{member="generator-0",run="booking"} 0.0' in page
    assert "vllm_late 5.0" in page


def test_metrics_listen_on_the_loopback_address_unless_told_otherwise(telemetry: Telemetry) -> None:
    server, port = serve_metrics([telemetry.registry])
    try:
        assert server.server_address == ("127.0.0.1", port)
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}.*metrics\.port"):
            serve_metrics([telemetry.registry], port=port)
    finally:
        server.shutdown()
        server.server_close()


def test_registries_that_export_the_same_name_are_both_served() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    Counter("same", "One.", ["member"], registry=first).labels("a").inc()
    Counter("same", "One.", ["member"], registry=second).labels("b").inc()
    server, port = serve_metrics([first, second])
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            page = response.read().decode()
    finally:
        server.shutdown()
        server.server_close()
    assert 'same_total{member="a"} 1.0' in page
    assert 'same_total{member="b"} 1.0' in page


@pytest.mark.usefixtures("_structlog_as_it_was")
def test_log_lines_are_json_bound_to_run_and_member_in_every_thread() -> None:
    stream = io.StringIO()
    configure_logging("booking", "generator-0", stream)
    log = structlog.get_logger()
    log.info("weights received", version=3, path=Path("x"))
    thread = threading.Thread(target=lambda: log.warning("late", step=2))
    thread.start()
    thread.join()
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "run": "booking",
        "member": "generator-0",
        "level": "info",
        "event": "weights received",
        "version": 3,
        "path": "x",
    }
    assert (second["member"], second["level"], second["step"]) == ("generator-0", "warning", 2)


@pytest.mark.usefixtures("_structlog_as_it_was")
def test_a_log_file_is_appended_to_and_carries_traces(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "generator-0.jsonl"
    for _ in range(2):
        configure_logging("booking", "generator-0", path)
        try:
            raise RuntimeError("engine lost")
        except RuntimeError:
            structlog.get_logger().error("failed", exc_info=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 2
    assert all("RuntimeError: engine lost" in line["exception"] for line in lines)
