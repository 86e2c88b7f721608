"""Control groups on a root folder of the test's own, with the kernel's rules for what is written there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from headrace.verifiers.sandbox import cgroup
from headrace.verifiers.sandbox.cgroup import Cgroup, CgroupMissing


class Kernel:
    """Takes what is written, in order. v2: groups beneath a group that has processes get no limits."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.writes: list[tuple[str, str]] = []
        self.refuses: set[str] = set()
        self.over: set[str] = set()  # processes that are gone before they can be moved
        self.newcomers: list[str] = []  # started in the group while others are moved

    def write(self, file: Path, text: str) -> None:
        self.writes.append((str(file.relative_to(self.root)), text))
        if str(file.relative_to(self.root)) in self.refuses:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        if file.name == "cgroup.subtree_control" and (file.parent / "cgroup.procs").read_text().split():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(file))
        if file.name == "cgroup.procs":
            self._move(file, text)
        else:
            file.write_text(text)

    def _move(self, file: Path, pid: str) -> None:
        for procs in self.root.rglob("cgroup.procs"):
            left = [each for each in procs.read_text().split() if each != pid]
            if procs != file and self.newcomers and procs.parent == file.parent.parent:
                left.append(self.newcomers.pop())
            procs.write_text("\n".join(left))
        if pid in self.over:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH), str(file))
        before = file.read_text() if file.exists() else ""
        file.write_text(f"{before}\n{pid}".strip())


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    kernel = Kernel(tmp_path / "fs")
    kernel.root.mkdir()
    monkeypatch.setattr(cgroup, "_ROOT", kernel.root)
    monkeypatch.setattr(cgroup, "_OWN", tmp_path / "own")
    monkeypatch.setattr(cgroup, "_write", kernel.write)
    return kernel


def host(kernel: Kernel, own: str, groups: dict[str, str]) -> None:
    """`own` as /proc/self/cgroup has it; folders, each with its processes."""
    cgroup._OWN.write_text(own)
    for path, processes in groups.items():
        (kernel.root / path).mkdir(parents=True, exist_ok=True)
        (kernel.root / path / "cgroup.procs").write_text(processes)


def made(name: str) -> str:
    return f"headrace-{os.getpid()}-{name}"


V1 = "9:name=systemd:/s\n8:pids:/p/q\n4:cpu,memory:/m\n0::/u\n"


def test_v1_has_a_folder_for_each_controller(kernel):
    host(kernel, V1, {"memory/m": "7", "pids/p/q": "7", "u": "7"})
    group = Cgroup.create("x")
    group.limit(1 << 20, 5)
    group.add(77)
    assert sorted(kernel.writes) == [
        (f"memory/m/{made('x')}/cgroup.procs", "77"),
        (f"memory/m/{made('x')}/memory.limit_in_bytes", str(1 << 20)),
        (f"pids/p/q/{made('x')}/cgroup.procs", "77"),
        (f"pids/p/q/{made('x')}/pids.max", "5"),
    ]
    limits, joins = kernel.writes[:2], kernel.writes[2:]
    assert not any(file.endswith("procs") for file, _ in limits) and all(file.endswith("procs") for file, _ in joins)


def test_swap_is_limited_after_memory_where_it_is_counted(kernel):
    host(kernel, V1, {"memory/m": "", "pids/p/q": ""})
    group = Cgroup.create("x")
    (kernel.root / "memory/m" / made("x") / "memory.memsw.limit_in_bytes").touch()
    group.limit(4096, 5)
    assert [Path(file).name for file, _ in kernel.writes] == [
        "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "pids.max",
    ]  # fmt: skip


def test_v2_has_one_folder_below_its_own_group(kernel):
    host(kernel, "0::/a/b\n", {"a/b": ""})
    group = Cgroup.create("x")
    (kernel.root / "a/b" / made("x") / "memory.swap.max").touch()
    group.limit(4096, 5)
    group.add(77)
    folder = f"a/b/{made('x')}"
    assert kernel.writes == [
        ("a/b/cgroup.subtree_control", "+memory +pids"),
        (f"{folder}/memory.max", "4096"),
        (f"{folder}/memory.swap.max", "0"),
        (f"{folder}/pids.max", "5"),
        (f"{folder}/cgroup.procs", "77"),
    ]


def test_a_group_with_processes_is_emptied_into_a_leaf_first(kernel):
    host(kernel, "0::/a\n", {"a": "7\n8\n9"})
    kernel.over, kernel.newcomers = {"8"}, ["10"]
    Cgroup.create("x")
    assert kernel.writes == [
        ("a/cgroup.subtree_control", "+memory +pids"),
        *[("a/headrace-host/cgroup.procs", pid) for pid in ("7", "8", "9", "10")],
        ("a/cgroup.subtree_control", "+memory +pids"),
    ]
    assert (kernel.root / "a" / made("x")).is_dir()


def test_a_process_that_is_in_the_leaf_already_makes_no_other(kernel):
    host(kernel, "0::/a/headrace-host\n", {"a": "", "a/headrace-host": "7"})
    Cgroup.create("x")
    assert kernel.writes == [("a/cgroup.subtree_control", "+memory +pids")]
    assert (kernel.root / "a" / made("x")).is_dir()


def test_the_leaf_is_not_swept_and_what_killed_processes_left_is(kernel):
    host(kernel, "0::/a\n", {"a": "", "a/headrace-host": "7"})
    for name in ("headrace-999999999-old", f"headrace-{os.getpid()}-mine"):
        (kernel.root / "a" / name).mkdir()
    Cgroup.create("x")
    assert {path.name for path in (kernel.root / "a").iterdir() if path.is_dir()} == {
        "headrace-host", made("mine"), made("x"),
    }  # fmt: skip


@pytest.mark.parametrize("refused", ["a/cgroup.subtree_control", "a/headrace-host/cgroup.procs"])
def test_a_refusal_says_which_file_it_was(kernel, refused):
    host(kernel, "0::/a\n", {"a": "7"})
    kernel.refuses = {refused}
    with pytest.raises(CgroupMissing, match=rf"{refused}: Permission denied"):
        Cgroup.create("x")


def test_a_group_that_cannot_be_emptied_is_no_layer(kernel):
    host(kernel, "0::/a\n", {"a": "7"})
    kernel.newcomers = [str(number) for number in range(100, 200)]
    with pytest.raises(CgroupMissing, match=r"a/cgroup.subtree_control: Device or resource busy"):
        Cgroup.create("x")
    assert len(kernel.writes) < 100


@pytest.mark.parametrize("own", ["", "9:name=systemd:/\n", "4:memory:/m\n"])
def test_without_both_controllers_there_is_no_layer(kernel, own):
    host(kernel, own, {"memory/m": ""})
    with pytest.raises(CgroupMissing, match="no control group with memory and pids"):
        Cgroup.create("x")


def test_the_kernel_s_own_refusal_of_a_text_names_the_file():
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        cgroup._write(Path("/dev/full"), "1")


def test_kills_are_read_as_either_version_has_them(tmp_path):
    (tmp_path / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    assert Cgroup(tmp_path, tmp_path, unified=True).kills() == 2
    assert Cgroup(tmp_path, tmp_path, unified=False).kills() == 4
