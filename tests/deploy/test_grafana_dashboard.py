"""The dashboard asks only for metrics and labels that a run exports."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.cluster.metrics import QUEUE_METRICS, TABLES
from headrace.verifiers.telemetry import COMMON_LABELS, MetricKind

DASHBOARD = json.loads((Path(__file__).parents[2] / "deploy" / "grafana" / "headrace.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool", "offset"}
TARGET_LABELS = {*COMMON_LABELS, "instance", "job"}


def headrace_series() -> dict[str, set[str]]:
    """Every series name that Headrace exports, with its labels."""
    series: dict[str, set[str]] = {}
    for metric in (metric for table in TABLES.values() for metric in table):
        labels = {*metric.labels, *TARGET_LABELS}
        if metric.kind is MetricKind.HISTOGRAM:
            series |= {f"{metric.name}_sum": labels, f"{metric.name}_count": labels}
            series[f"{metric.name}_bucket"] = {*labels, "le"}
        else:
            series[metric.name] = labels
    return series


def vllm_series() -> dict[str, set[str]]:
    """Every gauge and counter that the installed vLLM declares, read from its source: importing it takes long."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "v1" / "metrics" / "loggers.py").read_text()
    series: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        names = [
            word.value.value for word in node.keywords if word.arg == "name" and isinstance(word.value, ast.Constant)
        ]
        if names and isinstance(names[0], str) and node.func.attr in {"_gauge_cls", "_counter_cls"}:
            suffix = "_total" if node.func.attr == "_counter_cls" and not names[0].endswith("_total") else ""
            series[names[0] + suffix] = {*TARGET_LABELS, "model_name", "engine"}
    return series


SERIES = headrace_series() | vllm_series()


def selectors(query: str) -> Iterator[tuple[str, list[str]]]:
    """Every series name in a PromQL expression, with the labels that its selector names."""
    # Label lists of aggregations and joins, and ranges, hold words that are no series.
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)|\[[^\]]*\]", " ", query)
    for match in re.finditer(rf"(?<![\w:$.\"])({NAME})(\s*\{{([^}}]*)\}})?(?!\s*\()(?![\w:])", outside_strings(bare)):
        if match[1] not in WORDS:
            yield match[1], re.findall(rf"({NAME})\s*(?:=~|!~|!=|=)", match[3] or "")


def outside_strings(query: str) -> str:
    return re.sub(r'"[^"]*"', '""', query)


def grouping_labels(query: str) -> set[str]:
    lists = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", query)
    return {label.strip() for found in lists for label in found.split(",") if label.strip()}


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_query_names_only_what_a_run_exports(title: str, query: str) -> None:
    found = list(selectors(query))
    assert found, title
    for name, labels in found:
        assert name in SERIES, f"{title}: no process exports {name}"
        assert set(labels) <= SERIES[name], f"{title}: {name} has no label {set(labels) - SERIES[name]}"
        assert "run" in labels, f"{title}: {name} would mix runs"


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_query_groups_by_labels_that_exist(title: str, query: str) -> None:
    known = set().union(*(SERIES[name] for name, _ in selectors(query)))
    assert grouping_labels(query) <= known, title


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_legend_shows_labels_that_the_query_keeps(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        shown = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"]))
        grouped = re.match(r"\w+ by \(([^)]*)\)", target["expr"])
        kept = (
            {label.strip() for label in grouped[1].split(",")} | grouping_labels(target["expr"])
            if grouped
            else set().union(*(SERIES[name] for name, _ in selectors(target["expr"])))
        )
        assert shown <= kept, panel["title"]


@pytest.mark.parametrize(
    "query",
    [
        "headrace_no_such_metric",
        'rate(headrace_samples{run="$run"}[$window])',
        'sum by (le) (rate(headrace_weight_pause_seconds{run="$run"}[5m]))',
        "1 + vllm:gpu_cache_usage_perc",
    ],
)
def test_unknown_series_is_seen(query: str) -> None:
    assert [name for name, _ in selectors(query) if name not in SERIES]


def test_selectors_are_read_out_of_a_nested_query() -> None:
    query = 'histogram_quantile(0.95, sum by (le) (rate(a_bucket{x="by", y=~"b c"}[$w]))) - on (run) group_left () b:c'
    assert list(selectors(query)) == [("a_bucket", ["x", "y"]), ("b:c", [])]


def test_dashboard_shows_every_part_of_a_run() -> None:
    asked = {name for _, query in QUERIES for name, _ in selectors(query)}
    for name in (
        *("headrace_reward", "headrace_staleness_max_versions", "headrace_members"),
        *(metric.name for metric in QUEUE_METRICS),
        *("headrace_generated_tokens_total", "headrace_phase_seconds_total", "headrace_mismatch_kl_nats"),
        *("headrace_weight_publish_seconds_sum", "headrace_weight_pause_seconds_sum"),
        *("headrace_verification_verdicts_total", "vllm:num_requests_running", "vllm:num_requests_waiting"),
        "vllm:kv_cache_usage_perc",
    ):
        assert name in asked


def test_panels_do_not_overlap_and_have_one_identity_each() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_queries_use_only_variables_of_the_dashboard() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used == variables


def test_promtool_parses_every_query_where_it_is_installed(tmp_path: Path) -> None:
    expressions = [query.replace("$run", "booking").replace("$window", "5m") for _, query in QUERIES]
    assert not any("$" in expression for expression in expressions)
    for expression in expressions:
        bare = outside_strings(expression)
        assert [bare.count(mark) for mark in "([{"] == [bare.count(mark) for mark in ")]}"], expression
    promtool = shutil.which("promtool")
    if promtool is None:
        return
    rules = [{"record": f"dashboard:{index}", "expr": text} for index, text in enumerate(expressions)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
