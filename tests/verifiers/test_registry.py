import doctest
import importlib
import json
import sys

import pytest

from headrace.verifiers import (
    RegexVerifier,
    Sample,
    ToolCallVerifier,
    UserError,
    Verifier,
    VerifierSpec,
    build_verifier,
    scored,
    verifier_names,
)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (VerifierSpec(verifier="tool_cal"), "unknown verifier `tool_cal`; did you mean `tool_call`"),
        (VerifierSpec(verifier="zzz"), "unknown verifier `zzz`; there are: all_of, by_row, .*, weighted_sum"),
        (VerifierSpec(verifier="regex", options={"patern": "a"}), "unknown option `patern` .*did you mean `pattern`"),
        (VerifierSpec(verifier="regex", options={"full_match": "maybe"}), "option `full_match` of verifier `regex`"),
        (VerifierSpec(verifier="regex", options={"pattern": 7}), "option `pattern` of verifier `regex`"),
        (VerifierSpec(verifier="tool_call", options={"form": "xml"}), "option `form` of verifier `tool_call`"),
        (VerifierSpec(verifier="tool_call", options={"schema_path": 7}), "option `schema_path`"),
        (
            VerifierSpec(verifier="tool_call", options={"weights": {"schemas": 1}}),
            "unknown option `weights.schemas` .*did you mean `schema`",
        ),
        (VerifierSpec(verifier="tool_call", options={"weights": {"tool": -1}}), "option `weights.tool`"),
        (VerifierSpec(), "neither a `verifier`"),
        (VerifierSpec(verifier="regex", function="f.py:g"), "both a `verifier` and a `function`"),
        (VerifierSpec(function="f.py:g", options={"a": 1}), "option `a`"),
    ],
)
def test_a_wrong_spec_is_refused_by_its_key(spec, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        build_verifier(spec)
    assert "\n" not in str(error.value)


def test_a_spec_builds_its_verifier_with_paths_from_the_jobs_folder(tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps([{"name": "f"}]))
    spec = VerifierSpec(
        verifier="tool_call", options={"schema_path": "tools.json", "sandbox": False}, base_dir=str(tmp_path)
    )
    verifier = build_verifier(spec)
    assert isinstance(verifier, ToolCallVerifier)
    assert verifier.verify(Sample('{"name": "f", "arguments": {}}', {})).reason == "valid"
    assert isinstance(build_verifier(VerifierSpec(verifier="regex")), RegexVerifier)


@pytest.fixture
def installed_package(tmp_path, monkeypatch):
    """A distribution with two entry points, as pip would leave it."""
    (tmp_path / "case_checks.py").write_text(
        "from headrace.verifiers import Verifier, scored\n"
        "class CaseVerifier(Verifier):\n"
        "    def __init__(self, upper=True): self.upper = upper\n"
        "    def verify(self, sample): return scored(float(sample.completion.isupper() == self.upper), 'case')\n"
    )
    metadata = tmp_path / "case_checks-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: case-checks\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[headrace.verifiers]\ncase = case_checks:CaseVerifier\nbroken = case_checks:NoSuch\nplain = case_checks:scored\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("case_checks", None)


@pytest.mark.usefixtures("installed_package")
def test_an_installed_package_adds_a_verifier():
    verifier = build_verifier(VerifierSpec(verifier="case", options={"upper": False}))
    assert verifier.verify(Sample("quiet", {})).reward == 1.0
    assert "case" in verifier_names()


@pytest.mark.usefixtures("installed_package")
@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("case", {"uper": True}, "unknown option `uper` of CaseVerifier; did you mean `upper`"),
        ("broken", {}, "cannot be loaded"),
        ("plain", {}, "no subclass"),
    ],
)
def test_a_wrong_entry_point_or_option_is_refused(name, options, complaint):
    with pytest.raises(UserError, match=complaint):
        build_verifier(VerifierSpec(verifier=name, options=options))


class NeedsGold(Verifier):
    def __init__(self, field):
        self.field = field

    def verify(self, sample):
        return scored(float(sample.completion == sample.row[self.field]), "equal")


def test_an_option_without_a_default_is_asked_for(tmp_path):
    with pytest.raises(UserError, match="option `field` of NeedsGold is missing"):
        NeedsGold.from_options({}, tmp_path)


def test_a_verifier_of_ones_own_needs_nothing_but_verify():
    verifier = NeedsGold("gold")
    verifier.start()
    assert [verdict.reward for verdict in verifier.verify_many([Sample("a", {"gold": "a"})] * 2)] == [1.0, 1.0]
    assert verifier.check_row({}) is None
    verifier.close()


@pytest.mark.parametrize("module", ["base", "regex", "function", "tool_call", "call_reward"])
def test_the_examples_in_the_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(f"headrace.verifiers.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
