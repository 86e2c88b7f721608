from __future__ import annotations

import msgspec
import pytest
import structlog

from headrace.verifiers import UserError
from headrace.verifiers.sandbox.layers import Layers, names, require, require_for_programs
from headrace.verifiers.sandbox.plan import BoxPlan
from headrace.verifiers.sandbox.probe import probe
from headrace.verifiers.sandbox.programs import call_function
from headrace.verifiers.sandbox.sandbox import Sandbox

ALL = Layers(seccomp=True, landlock_abi=7, namespaces=True, cgroup=True)


def without(**changed: object) -> Layers:
    return msgspec.structs.replace(ALL, **changed)


def test_all_layers_and_either_of_two_that_hide_files_will_do():
    for layers in (ALL, without(landlock_abi=0), without(namespaces=False), without(cgroup=False)):
        require(layers)
    assert names(ALL) == ["seccomp", "rlimits", "landlock", "namespaces", "cgroup"]


@pytest.mark.parametrize(
    ("layers", "line"),
    [
        (without(seccomp=False, missing={"seccomp": "no"}), r"no seccomp here \(seccomp: no\).*CONFIG_SECCOMP_FILTER"),
        (without(landlock_abi=0, namespaces=False), r"no landlock and no namespaces here;.*Linux 6\.2.*user namespaces"),
        (without(landlock_abi=2, namespaces=False, missing={"landlock": "ABI 2"}), r"no landlock .*\(landlock: ABI 2\)"),
    ],
)  # fmt: skip
def test_a_missing_layer_refuses_and_says_how_to_get_it(layers, line):
    with pytest.raises(UserError, match=line):
        require(layers)
    with pytest.raises(UserError, match=r"`allow_degraded` code runs all the same"):
        Sandbox(BoxPlan(), layers=layers).start()


def test_all_that_is_missing_is_in_one_line():
    with pytest.raises(UserError, match=r"no seccomp.*no landlock and no namespaces"):
        require(without(seccomp=False, landlock_abi=0, namespaces=False))


def test_other_programs_need_namespaces_whatever_is_allowed():
    layers = msgspec.structs.replace(probe(), namespaces=False)
    with pytest.raises(UserError, match="no namespaces"):
        require_for_programs(layers)
    with pytest.raises(UserError, match="no namespaces"):
        Sandbox(BoxPlan(programs=True), layers=layers, allow_degraded=True).start()


@pytest.mark.parametrize(
    "lacks",
    [
        {"seccomp": False},
        {"landlock_abi": 0, "namespaces": False},
        {"seccomp": False, "landlock_abi": 0, "namespaces": False},
    ],
)  # fmt: skip
def test_a_degraded_sandbox_runs_and_says_so(lacks):
    layers = msgspec.structs.replace(probe(), **lacks)
    with structlog.testing.capture_logs() as logs:
        sandbox = Sandbox(BoxPlan(), layers=layers, allow_degraded=True)
        with sandbox.box() as box:
            result = call_function(box, "def f(x): return x + 1", "f", [[1]])
        sandbox.close()
    assert result.answers[0].value == 2
    assert sandbox.missing == logs[0]["missing"]
    assert [(line["event"], line["log_level"]) for line in logs] == [("sandbox_degraded", "warning")]
    assert "the sandbox has no" in logs[0]["missing"]


def test_what_the_probe_finds_is_there():
    layers = probe()
    assert set(names(layers)) | set(layers.missing) >= {"seccomp", "landlock", "namespaces", "cgroup"}
    assert not set(names(layers)) & set(layers.missing)
    sandbox = Sandbox(BoxPlan(), layers=layers)
    sandbox.start()
    sandbox.close()
