"""The probe on hosts that lack something: a process that takes it from itself, and then looks."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from headrace.verifiers.errors import UserError
from headrace.verifiers.sandbox import seccomp, syscalls
from headrace.verifiers.sandbox.layers import Layers, require
from headrace.verifiers.sandbox.probe import probe

PROJECT = Path(__file__).parents[3]

# As a container's profile does: the kernel has the call, and refuses it.
WITHOUT = """
import sys, msgspec
from headrace.verifiers.sandbox import seccomp
from headrace.verifiers.sandbox.probe import probe
seccomp.renounce_privileges()
seccomp.Filter(bytes.fromhex(sys.argv[1])).install()
sys.stdout.buffer.write(msgspec.json.encode(probe()))
"""


def found_without(*refused: str) -> Layers:
    """What the probe says where these system calls fail with EPERM."""
    blocks = {name: [seccomp._answer(seccomp.refuse(errno.EPERM))] for name in refused}
    program = seccomp._packed(
        [
            *seccomp._checks_architecture(),
            *seccomp._chain(syscalls.numbers(), blocks),
            seccomp._answer(seccomp.ALLOW),
        ]
    )
    command = [sys.executable, "-c", WITHOUT, program.hex()]
    run = subprocess.run(command, capture_output=True, cwd=PROJECT)
    assert run.returncode == 0, run.stderr.decode()
    return msgspec.json.decode(run.stdout, type=Layers)


def test_filters_that_are_refused_are_missing_and_nothing_else_is_blamed():
    layers, here = found_without("seccomp"), probe()
    assert not layers.seccomp and "seccomp: Operation not permitted" in layers.missing["seccomp"]
    assert (layers.namespaces, layers.landlock_abi) == (here.namespaces, here.landlock_abi)
    with pytest.raises(UserError, match=r"no seccomp here \(seccomp: .*Operation not permitted"):
        require(layers)


def test_namespaces_that_are_refused_are_missing_and_nothing_else_is_blamed():
    layers, here = found_without("unshare"), probe()
    assert not layers.namespaces and "unshare: Operation not permitted" in layers.missing["namespaces"]
    assert (layers.seccomp, layers.landlock_abi) == (here.seccomp, here.landlock_abi)
