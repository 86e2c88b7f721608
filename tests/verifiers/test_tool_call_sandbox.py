"""The tool-call verifier through its limited process: the same verdicts, shipped, timed out, and fast."""

import json
import os
import pickle
import time

import pytest

from headrace.verifiers import Sample, ToolCallVerifier, VerdictKind

TOOLS = [
    {
        "name": "f",
        "parameters": {
            "properties": {
                "word": {"type": "string", "pattern": "^(a+)+$"},
                "day": {"type": "string", "format": "date"},
                "site": {"type": "string", "format": "idn-hostname"},
                "at": {"type": "string", "format": "time"},
            }
        },
    }
]


def sample(**arguments):
    return Sample(json.dumps({"name": "f", "arguments": arguments}), {"prompt": "x", "image": object()})


@pytest.fixture(scope="module")
def tools_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tools") / "tools.json"
    path.write_text(json.dumps(TOOLS))
    return path


@pytest.fixture(scope="module")
def boxed(tools_file):
    verifier = ToolCallVerifier(schema_path=tools_file, sandbox=True, timeout_seconds=0.3)
    yield verifier
    verifier.close()


def test_the_sandbox_changes_no_verdict(boxed, tools_file):
    samples = [
        sample(word="aaa"),
        sample(day="2026-02-30"),
        sample(day="2026-02-28", site="bücher.example", at="10:00:00Z"),
        sample(at="late", site="a..b", word=None, more=1),
        Sample("<tool_call>\ud800</tool_call>", {}),
        Sample("nothing", {"answer": 7}),
        Sample('{"name": "g", "arguments": {}}', {"tools": [{"name": "g"}], "answer": {"name": "g", "arguments": {}}}),
    ]
    plain = ToolCallVerifier(schema_path=tools_file, sandbox=False)
    assert boxed.verify_many(samples) == plain.verify_many(samples)


def test_a_pattern_that_backtracks_without_end_times_out_as_fail(boxed):
    verdicts = boxed.verify_many([sample(word="a"), sample(word="a" * 64 + "!"), sample(word="aa")])
    assert [verdict.reason for verdict in verdicts] == ["valid", "timeout", "valid"]
    assert verdicts[1].kind is VerdictKind.FAIL


def test_a_pickled_verifier_needs_no_file_and_no_process(tools_file, tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(tools_file.read_text())
    original = ToolCallVerifier(path, weights={"exact": 1})
    original.start()
    payload = pickle.dumps(original)
    original.close()
    path.unlink()
    shipped = pickle.loads(payload)
    try:
        assert shipped.options == original.options
        assert shipped.verify(sample(word="a")).reason == "valid"
    finally:
        shipped.close()


def test_building_a_verifier_starts_nothing(tools_file):
    before = os.listdir("/proc/self/fd")
    ToolCallVerifier(tools_file)
    assert os.listdir("/proc/self/fd") == before


def test_a_closed_verifier_starts_anew(tools_file):
    verifier = ToolCallVerifier(tools_file)
    verifier.start()
    verifier.close()
    assert verifier.verify(sample(word="a")).reason == "valid"
    verifier.close()


def test_a_batch_takes_less_than_a_millisecond_a_sample(boxed):
    samples = [sample(word="a", day="2026-01-01")] * 500
    boxed.verify_many(samples)
    start = time.perf_counter()
    boxed.verify_many(samples)
    assert (time.perf_counter() - start) / len(samples) < 1e-3
