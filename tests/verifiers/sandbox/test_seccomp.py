"""The filters as programs: run here on every call, without a kernel."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.verifiers.sandbox import seccomp, syscalls

EPERM, ENOSYS = seccomp.refuse(errno.EPERM), seccomp.refuse(errno.ENOSYS)
CONDITIONAL = "clone prctl prlimit64 tgkill ioctl fcntl socketpair sendto getsockopt open openat socket"
PLANS = [(False, True), (False, False), (True, True)]  # other programs, files of its own
U64 = st.integers(0, 2**64 - 1)


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: request.param)
    syscalls.numbers.cache_clear()
    yield request.param
    monkeypatch.undo()
    syscalls.numbers.cache_clear()


def answer(program: bytes, number: int, arguments: tuple[int, ...] = (), architecture: int | None = None) -> int:
    """What the kernel would get from `program` (seccomp(2), struct seccomp_data)."""
    if architecture is None:
        architecture = syscalls.AUDIT_ARCHITECTURE[syscalls.platform.machine()]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0, *(arguments + (0,) * 6)[:6])
    accumulator = place = 0
    instructions = list(struct.iter_unpack("=HBBI", program))
    while True:
        code, if_true, if_false, operand = instructions[place]
        place += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x15:
                place += if_true if accumulator == operand else if_false
            case 0x35:
                place += if_true if accumulator >= operand else if_false
            case 0x45:
                place += if_true if accumulator & operand else if_false
            case 0x06:
                return operand
            case _:
                raise AssertionError(f"no instruction {code:#x}")


def of_a_run(name: str | int, *arguments: int, programs: bool = False, own_files: bool = True, pid: int = 1) -> int:
    """Both filters, of which the stricter answer counts: to kill, then to refuse."""
    number = syscalls.numbers()[name] if isinstance(name, str) else name
    server = answer(seccomp.server_program(programs=programs), number, arguments)
    run = answer(seccomp.run_program(programs=programs, own_files=own_files, own_pid=pid), number, arguments)
    return min(server, run, key=lambda each: (each != seccomp.KILL, each == seccomp.ALLOW))


@pytest.mark.parametrize(("programs", "own_files"), PLANS)
def test_what_only_an_attack_needs_ends_the_run(machine, programs, own_files):
    for name in (*seccomp.ATTACKS.split(), *seccomp.SERVER_PRIVILEGED.split()):
        if name in syscalls.numbers():
            assert of_a_run(name, programs=programs, own_files=own_files) == seccomp.KILL, name


def test_a_call_on_no_list_is_refused(machine):
    known = set(syscalls.numbers().values())
    for number in range(600):
        if number not in known:
            assert of_a_run(number) == EPERM, number


def test_what_the_server_keeps_for_itself_is_refused_to_runs(machine):
    for name in seccomp.SERVER.split():
        if name in syscalls.numbers():
            assert of_a_run(name) == EPERM, name


def test_only_other_programs_may_start_processes(machine):
    for name in seccomp.PROGRAMS.split():
        if name in syscalls.numbers():
            assert of_a_run(name) == EPERM, name
            assert of_a_run(name, programs=True) == seccomp.ALLOW, name


def test_files_of_the_host_are_changed_by_nobody(machine):
    for name in seccomp.OWN_FILES.split():
        if name in syscalls.numbers():
            assert of_a_run(name) == seccomp.ALLOW, name
            assert of_a_run(name, own_files=False) == EPERM, name


@pytest.mark.parametrize(("programs", "own_files"), PLANS)
@given(number=st.integers(0, 600), arguments=st.tuples(U64, U64, U64, U64, U64, U64))
def test_no_arguments_free_a_forbidden_call(programs, own_files, number, arguments):
    given_none = of_a_run(number, programs=programs, own_files=own_files)
    with_arguments = of_a_run(number, *arguments, programs=programs, own_files=own_files)
    if number not in {syscalls.numbers()[name] for name in CONDITIONAL.split()}:
        assert with_arguments == given_none


def test_threads_are_started_but_no_processes_and_no_namespaces(machine):
    thread = 0x3D0F00  # what the C library passes: CLONE_VM, CLONE_THREAD and others
    assert of_a_run("clone", thread) == seccomp.ALLOW
    assert of_a_run("clone", 17) == EPERM
    assert of_a_run("clone", 17, programs=True) == seccomp.ALLOW
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert of_a_run("clone", thread | flag) == seccomp.KILL
        assert of_a_run("clone", 17 | flag, programs=True) == seccomp.KILL
    assert of_a_run("clone3") == ENOSYS


def test_signals_go_to_oneself(machine):
    assert of_a_run("tgkill", 1, 1, 6) == seccomp.ALLOW
    assert of_a_run("tgkill", 2, 2, 6) == EPERM
    assert of_a_run("tgkill", 77, 77, 6, pid=77) == seccomp.ALLOW
    assert of_a_run("tgkill", 1, 1, 6, pid=77) == EPERM


def test_limits_are_read_and_not_set(machine):
    assert of_a_run("prlimit64", 0, 7, 0, 0x7000_0000_0000) == seccomp.ALLOW
    assert of_a_run("prlimit64", 0, 7, 0x7000, 0) == EPERM
    assert of_a_run("prlimit64", 0, 7, 0x7000_0000_0000_0000 & ~0xFFFFFFFF, 0) == EPERM


def test_pairs_are_of_streams_and_speak_to_each_other(machine):
    assert of_a_run("socketpair", 1, 1 | 0o2000000) == seccomp.ALLOW
    assert of_a_run("socket", 2, 1) == of_a_run("socket", 16, 3) == seccomp.KILL
    assert of_a_run("socket", 1, 1) == EPERM
    assert of_a_run("socketpair", 1, 2) == EPERM
    assert of_a_run("socketpair", 2, 1) == seccomp.KILL
    assert of_a_run("sendto", 3, 0x7000, 5, 0, 0, 0) == seccomp.ALLOW
    assert of_a_run("sendto", 3, 0x7000, 5, 0, 0x7000, 16) == EPERM
    assert of_a_run("sendto", 3, 0x7000, 5, 0, 0x7000_0000_0000, 16) == EPERM
    assert of_a_run("getsockopt", 3, 1, 4) == seccomp.ALLOW
    for option in (17, 77):  # SO_PEERCRED, SO_PEERPIDFD
        assert of_a_run("getsockopt", 3, 1, option) == EPERM


def test_files_without_a_name_are_not_made(machine):
    for name in {"open", "openat"} & syscalls.numbers().keys():
        path = (0x7000,) if name == "open" else (0xFFFFFF9C, 0x7000)
        assert of_a_run(name, *path, 0o102) == seccomp.ALLOW
        assert of_a_run(name, *path, 0o20200002) == seccomp.refuse(errno.EOPNOTSUPP)


def test_descriptors_are_not_pointed_at_others(machine):
    for command in (0, 1, 2, 3, 4, 1030):
        assert of_a_run("fcntl", 3, command) == seccomp.ALLOW
    for command in (
        8,
        10,
        15,
        1024,
        1026,
        1031,
        1033,
    ):
        assert of_a_run("fcntl", 3, command) == EPERM
    assert of_a_run("ioctl", 0, 0x5412) == EPERM  # TIOCSTI: characters as if typed


@pytest.mark.parametrize("architecture", [0x40000003, 0x40000028, 0xC0000032, 0])
def test_another_architecture_ends_the_run(machine, architecture):
    for program in (seccomp.server_program(programs=True), seccomp.run_program(programs=True, own_files=True, own_pid=1),
                    seccomp.only(["read"])):  # fmt: skip
        for number in range(0, 500, 7):
            assert answer(program, number, architecture=architecture) == seccomp.KILL


def test_the_numbers_of_x32_and_below_zero_end_the_run(machine):
    for number in (0x40000000, 0x40000027, 0x40000208, -1, -5):
        assert of_a_run(number) == seccomp.KILL


def test_only_lets_pass_what_it_is_told(machine):
    program = seccomp.only(["read", "exit_group"])
    allowed = {syscalls.numbers()["read"], syscalls.numbers()["exit_group"]}
    for number in range(600):
        assert answer(program, number) == (seccomp.ALLOW if number in allowed else EPERM)
