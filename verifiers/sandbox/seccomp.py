"""Which system calls code in the box may make, as a seccomp filter. It cannot be taken off again.

What is on no list fails with EPERM, as it would for lack of a privilege. What only an attack has a use for ends the
process with SIGSYS, which the verdict shows as `forbidden_call`.

Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable, Sequence

from headrace.verifiers.sandbox import syscalls

OWN_PID = 0x7FFFFFFE  # in a program: that of the process that puts it on
ALLOW = 0x7FFF0000
KILL = 0x80000000


def refuse(number: int) -> int:
    """The answer "fails with this errno"."""
    return 0x00050000 | number


MEMORY_AND_THREADS = """
mmap mprotect munmap mremap madvise brk msync mincore futex futex_waitv get_robust_list set_robust_list set_tid_address
rseq membarrier arch_prctl sched_yield sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max
sched_get_priority_min getpriority getcpu exit exit_group restart_syscall
"""
OPEN_DESCRIPTORS = """
read write readv writev pread64 pwrite64 lseek close close_range dup dup2 dup3 fstat ftruncate fsync fdatasync fallocate
fadvise64 copy_file_range sendfile getdents getdents64 fchdir fstatfs poll ppoll select pselect6 epoll_create
epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2 pipe pipe2 recvfrom shutdown
"""
FILES = """
open openat stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat statfs getcwd chdir
"""
OWN_FILES = """
unlink unlinkat mkdir mkdirat rmdir rename renameat renameat2 truncate umask utime utimes utimensat chmod fchmod fchmodat
symlink symlinkat flock
"""
"""Only where the files that a run sees are the box's own: Landlock does not know of modes, times and locks."""
ITSELF = """
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait rt_sigpending rt_sigsuspend sigaltstack pause clock_gettime
clock_getres clock_nanosleep nanosleep gettimeofday time times setitimer getitimer alarm getpid getppid gettid getuid
geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid uname sysinfo getrusage getrlimit getrandom
"""
PROGRAMS = "execve execveat fork vfork wait4 waitid kill tkill setrlimit sched_setaffinity link linkat"
"""What other languages' compilers and interpreters need besides; only where the box has processes of its own."""
SERVER = """
fork vfork wait4 waitid kill pidfd_open pidfd_send_signal recvmsg sendmsg setsid setpgid setuid setgid setresuid setresgid
setgroups capset capget setrlimit seccomp landlock_restrict_self
"""
"""What the server has for itself, and a run does not."""
SERVER_PRIVILEGED = "unshare setns mount umount2"
"""The same, of which a run that tries is ended."""
ATTACKS = """
connect bind listen accept accept4 ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp keyctl
add_key request_key move_mount fsopen fsconfig fsmount fspick open_tree mount_setattr pivot_root chroot bpf perf_event_open
userfaultfd io_uring_setup io_uring_enter io_uring_register open_by_handle_at name_to_handle_at fanotify_init kexec_load
kexec_file_load init_module finit_module delete_module quotactl reboot swapon swapoff acct iopl ioperm syslog lookup_dcookie
"""

_TEMPORARY_FILE = 0o20000000  # O_TMPFILE without O_DIRECTORY, which architectures number differently
_CLONE_THREAD = 0x00010000
_NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag that clone takes
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE = 1, 1, 0xF
_TERMINAL_QUESTIONS = (0x5401, 0x5413, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONBIO, FIONCLEX, FIOCLEX
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_SETLK, F_SETLKW, F_DUPFD_CLOEXEC, F_GETPIPE_SZ: no signals to
# whomever, no leases on the host's files, no larger pipes.
_DESCRIPTOR_QUESTIONS = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)
_SOCKET_LEVEL = 1  # SOL_SOCKET
_SOCKET_QUESTIONS = (3, 4, 38, 39)  # SO_TYPE, SO_ERROR, SO_PROTOCOL, SO_DOMAIN; not who is at the other end
_PR_SET_NAME, _PR_GET_NAME = 15, 16

# Classic BPF: (code, jump if true, jump if false, operand)
Instruction = tuple[int, int, int, int]
_LOAD, _AND, _EQUAL, _ANY_BIT, _AT_LEAST, _ANSWER = 0x20, 0x54, 0x15, 0x45, 0x35, 0x06


def server_program(*, programs: bool) -> bytes:
    """The filter that the server puts on when its box is built: what it needs itself, and what runs may have."""
    known = syscalls.numbers()
    lists = (MEMORY_AND_THREADS, OPEN_DESCRIPTORS, FILES, OWN_FILES, ITSELF, SERVER, SERVER_PRIVILEGED)
    allowed = " ".join((*lists, PROGRAMS if programs else "")).split()
    blocks = {
        **{key: [_answer(KILL)] for key in ATTACKS.split()},
        **{key: [_answer(ALLOW)] for key in allowed},
        **{key: [_answer(ALLOW)] for key in ("clone", "prctl", "prlimit64", "tgkill")},  # runs have conditions
        **_SHARED_CONDITIONS,
    }
    return _packed([*_checks_architecture(), *_chain(known, blocks), _answer(refuse(errno.EPERM))])


def run_program(*, programs: bool, own_files: bool, own_pid: int) -> bytes:
    """What a run puts on besides, as process `own_pid` as far as it can tell: it takes away what only the server needs.
    Short, since each run pays for it. With `programs` it may start other processes, with `own_files` change files."""
    known = syscalls.numbers()
    own = set(PROGRAMS.split()) if programs else set()
    blocks = {
        **{key: [_answer(KILL)] for key in SERVER_PRIVILEGED.split()},
        **{name: [_answer(refuse(errno.EPERM))] for name in SERVER.split() if name not in own},
        **{name: [_answer(refuse(errno.EPERM))] for name in OWN_FILES.split() if not own_files},
        **_run_conditions(programs, own_pid),
    }
    return _packed([*_checks_architecture(), *_chain(known, blocks), _answer(ALLOW)])


def only(names: Iterable[str]) -> bytes:
    """The filter that lets nothing but `names` pass; the rest fails with EPERM."""
    blocks = {key: [_answer(ALLOW)] for key in names}
    return _packed([*_checks_architecture(), *_chain(syscalls.numbers(), blocks), _answer(refuse(errno.EPERM))])


class Filter:
    """A program in the form in which the kernel takes it."""

    def __init__(self, program: bytes) -> None:
        self._code = ctypes.create_string_buffer(program, len(program))
        # struct sock_fprog: a 16-bit count of instructions, and their address at its natural alignment
        header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(self._code)))
        set_mode_filter, all_threads = 1, 1
        self._install = syscalls.prepare("seccomp", set_mode_filter, all_threads, header)
        unknown = struct.pack("=I", OWN_PID)
        self._holes = [place for place in range(4, len(program), 8) if program[place : place + 4] == unknown]

    def install(self) -> None:
        """On all threads of this process, whose no_new_privs bit is set. Raises OSError."""
        for place in self._holes:
            struct.pack_into("=I", self._code, place, os.getpid())
        self._install()


def renounce_privileges() -> None:
    """No program that this process starts can gain any: without that, nobody but root may install a filter."""
    no_new_privileges = 38
    syscalls.libc("prctl", no_new_privileges, 1, 0, 0, 0)


def _run_conditions(programs: bool, own_pid: int) -> dict[str, list[Instruction]]:
    """What a run may call with certain arguments only."""
    yes, no = _answer(ALLOW), _answer(refuse(errno.EPERM))
    return {
        # A thread, or a process where those are allowed, but never a namespace.
        "clone": [
            _argument(0),
            (_ANY_BIT, 0, 1, _NEW_NAMESPACES), _answer(KILL),
            (_ANY_BIT, 0, 1, _CLONE_THREAD), yes, yes if programs else no,
        ],
        # A file without a name leaves no trace in its folder, but a number that the next run could see.
        "open": [_argument(1), (_ANY_BIT, 0, 1, _TEMPORARY_FILE), _answer(refuse(errno.EOPNOTSUPP)), yes],
        "openat": [_argument(2), (_ANY_BIT, 0, 1, _TEMPORARY_FILE), _answer(refuse(errno.EOPNOTSUPP)), yes],
        "prctl": [_argument(0), *_one_of((_PR_SET_NAME, _PR_GET_NAME), yes), no],
        # To look at a limit, not to set one.
        "prlimit64": [_argument(2), (_EQUAL, 1, 0, 0), no, _argument(2, high=True), (_EQUAL, 0, 1, 0), yes, no],
        # A signal to itself, as abort() sends one.
        "tgkill": [yes] if programs else [_argument(0), (_EQUAL, 0, 1, own_pid), yes, no],
    }  # fmt: skip


def _checks_architecture() -> list[Instruction]:
    """Another architecture's numbers mean other calls; x32 has x86_64's name and bit 30 in its numbers."""
    architecture = syscalls.AUDIT_ARCHITECTURE[platform.machine()]
    return [
        (_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), _answer(KILL),
        (_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, 0x40000000), _answer(KILL),
    ]  # fmt: skip


def _chain(known: dict[str, int], blocks: dict[str, list[Instruction]]) -> list[Instruction]:
    """For each call of `blocks` its block, which ends in an answer; nothing for those that this machine does not have."""
    return [
        instruction
        for name, block in blocks.items()
        if name in known
        for instruction in ((_EQUAL, 0, len(block), known[name]), *block)
    ]


def _one_of(values: Sequence[int], answer: Instruction) -> list[Instruction]:
    return [part for value in values for part in ((_EQUAL, 0, 1, value), answer)]


def _argument(index: int, high: bool = False) -> Instruction:
    """Load half of an argument: both architectures are little-endian."""
    return _LOAD, 0, 0, 16 + 8 * index + 4 * high


def _answer(value: int) -> Instruction:
    return _ANSWER, 0, 0, value


def _packed(instructions: Sequence[Instruction]) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


_SHARED_CONDITIONS: dict[str, list[Instruction]] = {
    # The C library asks a name service on a socket of this machine who a user is, and does without when it gets none.
    "socket": [_argument(0), (_EQUAL, 1, 0, _AF_UNIX), _answer(KILL), _answer(refuse(errno.EPERM))],
    # Its flags lie in memory, where no filter sees them; the C library then takes clone.
    "clone3": [_answer(refuse(errno.ENOSYS))],
    "ioctl": [_argument(1), *_one_of(_TERMINAL_QUESTIONS, _answer(ALLOW)), _answer(refuse(errno.EPERM))],
    "fcntl": [_argument(1), *_one_of(_DESCRIPTOR_QUESTIONS, _answer(ALLOW)), _answer(refuse(errno.EPERM))],
    "getsockopt": [
        _argument(1), (_EQUAL, 1, 0, _SOCKET_LEVEL), _answer(refuse(errno.EPERM)),
        _argument(2), *_one_of(_SOCKET_QUESTIONS, _answer(ALLOW)), _answer(refuse(errno.EPERM)),
    ],
    # A connected pair, as asyncio makes one for itself; a datagram socket of it could send to others.
    "socketpair": [
        _argument(0), (_EQUAL, 1, 0, _AF_UNIX), _answer(KILL),
        _argument(1), (_AND, 0, 0, _SOCK_TYPE), (_EQUAL, 0, 1, _SOCK_STREAM), _answer(ALLOW),
        _answer(refuse(errno.EPERM)),
    ],
    # To whom it is connected, and nobody else.
    "sendto": [
        _argument(4), (_EQUAL, 1, 0, 0), _answer(refuse(errno.EPERM)),
        _argument(4, high=True), (_EQUAL, 0, 1, 0), _answer(ALLOW),
        _answer(refuse(errno.EPERM)),
    ],
}  # fmt: skip
