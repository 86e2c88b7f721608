"""What a process takes from itself before it looks at a model's text: limits by rlimit, system calls by seccomp.

The filter is a list of what stays allowed: memory, the clock, and reading and writing of descriptors that are already
open. There is no socket, no open, no fork, no exec and no signal to others on it, so that no network namespace is needed
and no privilege either. Every other call fails with EPERM. It cannot be taken off again.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import socket
import struct
import sys

from headrace.verifiers.errors import UserError


class ConfinementMissing(Exception):
    """This host cannot confine a process; the message says what it lacks."""


_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_SECCOMP = 21
_SECCOMP_SET_MODE_FILTER = 1
_FILTER_ALL_THREADS = 1  # SECCOMP_FILTER_FLAG_TSYNC: a thread that a library started is confined as well
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM
_KILL = 0x80000000

_CALLS = {
    # Numbers from the kernel's system call tables. exit_group and rt_sigreturn are what ending takes; poll and getppid
    # are how the child waits for work and notices that its parent is gone.
    "x86_64": (
        0xC000003E,  # AUDIT_ARCH_X86_64
        317,  # seccomp
        {
            "read": 0, "write": 1, "close": 3, "poll": 7, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
            "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sched_yield": 24, "mremap": 25,
            "madvise": 28, "setitimer": 38, "getpid": 39, "exit": 60, "getppid": 110, "gettid": 186, "futex": 202,
            "restart_syscall": 219, "clock_gettime": 228, "exit_group": 231, "ppoll": 271, "getrandom": 318,
        },
    ),
    "aarch64": (
        0xC00000B7,  # AUDIT_ARCH_AARCH64
        277,
        {
            "close": 57, "read": 63, "write": 64, "ppoll": 73, "exit": 93, "exit_group": 94, "futex": 98,
            "setitimer": 103, "clock_gettime": 113, "sched_yield": 124, "restart_syscall": 128, "rt_sigaction": 134,
            "rt_sigprocmask": 135, "rt_sigreturn": 139, "getpid": 172, "getppid": 173, "gettid": 178, "brk": 214,
            "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226, "madvise": 233, "getrandom": 278,
        },
    ),
}  # fmt: skip


def require_confinement() -> None:
    """Raises UserError, naming what is missing, where this host cannot confine a check."""
    try:
        _probe()
    except ConfinementMissing as error:
        raise UserError(refusal(str(error))) from error


def refusal(missing: str) -> str:
    """The line for the user of a host that lacks `missing`."""
    return f"`sandbox = true` needs {missing}; run on such a host, or set `sandbox = false` to check without limits"


def confine(memory_bytes: int) -> None:
    """Confine this process for good; it may use `memory_bytes` more address space than it holds now.

    Raises ConfinementMissing where the host refuses, or where a socket can still be made afterwards.
    """
    _probe()
    _limit("RLIMIT_AS", _address_space_bytes() + memory_bytes)
    _limit("RLIMIT_FSIZE", 0)
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_NOFILE", 3)
    _limit("RLIMIT_NPROC", 0)
    _install_filter()
    _attest()


def _probe() -> None:
    if sys.platform != "linux" or platform.machine() not in _CALLS:
        raise ConfinementMissing(f"Linux on {' or '.join(_CALLS)} (this is {sys.platform} on {platform.machine()})")
    if _libc().prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) < 0:
        raise ConfinementMissing("a kernel with seccomp (CONFIG_SECCOMP_FILTER)")


def _limit(name: str, value: int) -> None:
    kind = getattr(resource, name)
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _address_space_bytes() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _install_filter() -> None:
    architecture, seccomp_call, calls = _CALLS[platform.machine()]
    program = _program(architecture, sorted(calls.values()))
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a 16-bit count of instructions, and their address at its natural alignment
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    libc = _libc()
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise ConfinementMissing(f"the no_new_privs bit ({os.strerror(ctypes.get_errno())})")
    arguments = ctypes.c_long(_SECCOMP_SET_MODE_FILTER), ctypes.c_long(_FILTER_ALL_THREADS)
    if libc.syscall(ctypes.c_long(seccomp_call), *arguments, header) != 0:
        raise ConfinementMissing(f"leave to install a seccomp filter ({os.strerror(ctypes.get_errno())})")


def _program(architecture: int, allowed: list[int]) -> bytes:
    """Classic BPF: kill on another architecture's calls, allow the numbers in `allowed`, refuse the rest.

    On x86_64 the x32 calls carry the same architecture and bit 30 in their number, so that none of them is allowed.
    """
    load, jump_if_equal, answer = 0x20, 0x15, 0x06
    instructions = [(load, 0, 0, 4), (jump_if_equal, 1, 0, architecture), (answer, 0, 0, _KILL), (load, 0, 0, 0)]
    for place, number in enumerate(allowed):
        instructions.append((jump_if_equal, len(allowed) - place, 0, number))
    instructions += [(answer, 0, 0, _REFUSE), (answer, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _attest() -> None:
    """Try what must fail now."""
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        try:
            socket.socket(family, socket.SOCK_STREAM).close()
        except PermissionError:
            continue
        except OSError as error:  # the limit on descriptors, which comes after the filter
            raise ConfinementMissing(f"a seccomp filter that holds (it let `socket` pass: {error})") from error
        raise ConfinementMissing("a seccomp filter that holds (a socket could be made under it)")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
