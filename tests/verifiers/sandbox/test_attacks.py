"""The attacks of this folder at every level of layers, as the user of this process and as one without privileges."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.verifiers.sandbox.suite import ATTACKS, Outcome, levels, run_suite

PROJECT = Path(__file__).parents[3]
LEVELS = list(levels())


def violations(outcomes: dict[str, Outcome]) -> dict[str, list[str]]:
    return {name: outcome.violations for name, outcome in outcomes.items() if outcome.violations}


def test_there_are_enough_attacks_and_each_has_a_name_of_its_own():
    names = [attack.name for attack in ATTACKS]
    assert len(names) >= 100
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("level", LEVELS)
def test_no_attack_succeeds(level):
    assert violations(run_suite(level)) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="the tests above were without privileges")
@pytest.mark.parametrize("level", [level for level in LEVELS if level not in ("no_cgroup", "seccomp_landlock")])
def test_no_attack_succeeds_without_privileges(level):
    command = [sys.executable, "-m", "tests.verifiers.sandbox.as_nobody", sys.executable]
    run = subprocess.run([*command, "-m", "tests.verifiers.sandbox.suite", level], capture_output=True, cwd=PROJECT)
    assert run.returncode == 0, run.stderr.decode()
    assert violations(msgspec.json.decode(run.stdout, type=dict[str, Outcome])) == {}
