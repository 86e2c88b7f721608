"""What a process takes from itself before it looks at a model's text: limits by rlimit, system calls by seccomp.

The filter is a list of what stays allowed: memory, the clock, and reading and writing of descriptors that are already
open. There is no socket, no open, no fork, no exec and no signal to others on it, so that no network namespace is needed
and no privilege either. Every other call fails with EPERM. It cannot be taken off again.
"""

from __future__ import annotations

import os
import resource
import socket

from headrace.verifiers.errors import UserError
from headrace.verifiers.sandbox import seccomp, syscalls


class ConfinementMissing(Exception):
    """This host cannot confine a process; the message says what it lacks."""


_PR_GET_SECCOMP = 21
# exit_group and rt_sigreturn are what ending takes; poll and getppid are how the child waits for work and notices that its
# parent is gone.
_CALLS = """
read write close poll ppoll mmap mprotect munmap mremap madvise brk rt_sigaction rt_sigprocmask rt_sigreturn sched_yield
setitimer getpid getppid gettid futex restart_syscall clock_gettime getrandom exit exit_group
"""


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
    if not syscalls.supported():
        raise ConfinementMissing(f"Linux on {' or '.join(syscalls.AUDIT_ARCHITECTURE)} (this is {syscalls.machine()})")
    try:
        syscalls.libc("prctl", _PR_GET_SECCOMP, 0, 0, 0, 0)
    except OSError as error:
        raise ConfinementMissing(f"a kernel with seccomp (CONFIG_SECCOMP_FILTER): {error.strerror}") from error


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
    try:
        seccomp.renounce_privileges()
        seccomp.Filter(seccomp.only(_CALLS.split())).install()
    except OSError as error:
        raise ConfinementMissing(f"leave to install a seccomp filter ({error.strerror})") from error


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
