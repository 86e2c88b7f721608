"""Landlock by itself: what its rules refuse where no filter and no namespace has refused it before."""

from __future__ import annotations

import contextlib
import os
import sysconfig
from pathlib import Path

import msgspec
import pytest

from headrace.verifiers.sandbox import landlock
from headrace.verifiers.sandbox.plan import BoxPlan
from headrace.verifiers.sandbox.probe import probe
from headrace.verifiers.sandbox.programs import call_function
from headrace.verifiers.sandbox.sandbox import Sandbox
from tests.verifiers.sandbox import suite
from tests.verifiers.sandbox.attacks import attack, function

FILES, TCP, SCOPES = 3, 4, 6  # the ABI from which on
_BY_NAME = {each.name: each for each in suite.ATTACKS}
_OWN = [
    attack("calls", "abstract_datagram", "forbidden_call", function(
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', '\\0@ABSTRACT_DATAGRAMS@')\nreturn 'BREACH'",
        "import socket")),
    attack("calls", "tcp_on_a_port_of_its_own", "forbidden_call", function(
        "with socket.socket() as s: s.bind(('0.0.0.0', 0))\nreturn 'BREACH'", "import socket")),
]  # fmt: skip
_CASES = {
    FILES: ("files_read", "files_written", "files_truncated_on_open", "files_truncated", "files_removed", "files_created",
            "files_linked", "files_through_a_symlink", "folders_listed", "site_packages_read", "site_packages_imported"),
    TCP: ("tcp_loopback", "tcp_listening", "tcp_on_a_port_of_its_own"),
    SCOPES: ("abstract_socket", "abstract_datagram", "signal_to_the_host", "signal_to_a_thread_of_the_host",
             "signal_by_descriptor"),
}  # fmt: skip


@pytest.fixture(scope="module")
def box():
    layers = msgspec.structs.replace(probe(), seccomp=False, namespaces=False, cgroup=False)
    if layers.landlock_abi < FILES:
        pytest.skip("this kernel has no Landlock, or an early one")
    sandbox = Sandbox(BoxPlan(suite.LIMITS), layers=layers, allow_degraded=True)
    with sandbox.box() as box:
        yield box
    sandbox.close()


@pytest.mark.parametrize(("abi", "name"), [(abi, name) for abi, names in _CASES.items() for name in names])
def test_landlock_alone_refuses(box, abi, name):
    if landlock.abi() < abi:
        pytest.skip(f"this kernel's Landlock is of version {landlock.abi()}, which has no rule for that")
    wanted = {each.name: each for each in _OWN} | _BY_NAME
    with contextlib.closing(suite.World("landlock_alone")) as world:
        outcome = suite.run_attack(box, world.filled(wanted[name]), world.marker)
        assert (outcome.violations, world.violations()) == ([], [])


def test_the_library_is_read_part_by_part(box):
    source = "import asyncio, ctypes, json, sqlite3, ssl, zoneinfo\ndef f(): return str(zoneinfo.ZoneInfo('UTC'))"
    assert call_function(box, source, "f", [[]]).answers[0].value == "UTC"


def test_parts_are_all_but_the_hidden_and_no_way_round(tmp_path):
    for name in ("a", "b", "site-packages"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    os.symlink(tmp_path / "file", tmp_path / "link")
    os.symlink(tmp_path / "site-packages", tmp_path / "round")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    shown = [Path(path).name for path in landlock.parts(str(tmp_path), ["site-packages"])]
    assert shown == ["a", "b", "file", "link"]
    assert landlock.parts(str(tmp_path), []) == [str(tmp_path)]
    library = sysconfig.get_path("stdlib")
    assert f"{library}/json" in landlock.parts(library, ["site-packages"])
