"""The scrape configuration: what Headrace relies on in it, and promtool's opinion where promtool is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from headrace.cluster.metrics import TABLES
from headrace.verifiers.telemetry import COMMON_LABELS

DEPLOY = Path(__file__).parents[2] / "deploy"
CONFIG = DEPLOY / "prometheus.yml"
SECONDS = re.compile(r"(\d+)s")


def check(config: dict[str, Any]) -> None:
    """Raise AssertionError unless `config` finds the members of a run through the controller alone."""
    assert config.keys() <= {"global", "scrape_configs"}
    (scrape,) = config["scrape_configs"]
    assert scrape.keys() == {
        *("job_name", "honor_labels", "authorization"),
        *("http_sd_configs", "relabel_configs", "metric_relabel_configs"),
    }
    assert scrape["honor_labels"] is True
    (discovery,) = scrape["http_sd_configs"]
    assert discovery.keys() == {"url", "refresh_interval", "authorization"}
    assert urlsplit(discovery["url"]).path == "/sd"
    # The controller asks for its token everywhere. It is in a file of its own: this one is committed.
    for authorization in (discovery["authorization"], scrape["authorization"]):
        assert authorization.keys() == {"type", "credentials_file"}
        assert authorization["type"] == "Bearer"
    for duration in (config["global"]["scrape_interval"], discovery["refresh_interval"]):
        match = SECONDS.fullmatch(duration)
        assert match and 1 <= int(match[1]) <= 60
    for rule in scrape["relabel_configs"]:
        assert set(rule["source_labels"]) <= set(COMMON_LABELS)
        assert rule["target_label"] == "instance"
    rules = scrape["metric_relabel_configs"]
    for name in (metric.name for table in TABLES.values() for metric in table):
        assert relabelled(name, rules) == name
    # Prometheus before 3.0 is served vLLM's names with an underscore, later ones with the colon.
    for name in ("vllm:num_requests_running", "vllm_num_requests_running"):
        assert relabelled(name, rules) == "vllm:num_requests_running"


def relabelled(name: str, rules: list[dict[str, Any]]) -> str | None:
    """The name under which a series is stored; None where it is dropped."""
    for rule in rules:
        assert rule["source_labels"] == ["__name__"]
        match = re.fullmatch(rule["regex"], name)
        if match and rule.get("action") == "drop":
            return None
        if match:
            assert rule["target_label"] == "__name__"
            name = match.expand(rule["replacement"].replace("$", "\\"))
    return name


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load(CONFIG.read_text())


def test_members_are_found_through_the_controller(config: dict[str, Any]) -> None:
    check(config)


def test_discovery_asks_the_service_of_the_manifest(config: dict[str, Any]) -> None:
    address = urlsplit(config["scrape_configs"][0]["http_sd_configs"][0]["url"])
    documents = yaml.safe_load_all((DEPLOY / "rayjob.yaml").read_text())
    (service,) = [document for document in documents if document["kind"] == "Service"]
    assert address.hostname == service["metadata"]["name"]
    assert address.port == service["spec"]["ports"][0]["port"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("honor_labels",), False),
        (("http_sd_configs", 0, "url"), "http://headrace-controller:9400/metrics"),
        (("http_sd_configs", 0, "authorization"), {"type": "Bearer", "credentials": "secret"}),
        (("authorization",), {"type": "Bearer", "credentials": "secret"}),
        (("http_sd_configs", 0, "refresh_intervall"), "10s"),
        (("metric_relabel_configs", 0, "regex"), "headrace_.*"),
        (("metric_relabel_configs", 1, "replacement"), "vllm_$1"),
    ],
)
def test_check_refuses(config: dict[str, Any], path: tuple[str | int, ...], value: Any) -> None:
    place: Any = config["scrape_configs"][0]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(AssertionError):
        check(config)


def test_metrics_of_the_python_runtime_are_left_out(config: dict[str, Any]) -> None:
    rules = config["scrape_configs"][0]["metric_relabel_configs"]
    assert relabelled("python_gc_objects_collected_total", rules) is None


def test_promtool_accepts_it_where_it_is_installed(tmp_path: Path, config: dict[str, Any]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        # The same test without the tool: what the file holds, by our own reading.
        check(config)
        return
    shutil.copy(CONFIG, tmp_path)
    # promtool wants the file of the credentials to exist.
    (tmp_path / config["scrape_configs"][0]["http_sd_configs"][0]["authorization"]["credentials_file"]).touch()
    done = subprocess.run(
        [promtool, "check", "config", str(tmp_path / CONFIG.name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
