"""A root of the box's own, in namespaces of its own: other users, processes, mounts, network and IPC do not exist in it.

An unprivileged process may do all of this where the host allows user namespaces. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from collections.abc import Callable, Mapping, Sequence
from ctypes import create_string_buffer

from headrace.verifiers.sandbox import syscalls

BOX_USER = 65534  # whom the code runs as, in the box; where two users could be mapped, on the host too
WORK_RULE = "/work"  # what Landlock's rule is for; on the read-only root
WORK = "/work/run"  # the folder that code may write to, a file system of its own
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

_NEW_USER, _NEW_PID, _NEW_MOUNT = 0x10000000, 0x20000000, 0x00020000
_NEW_NET, _NEW_IPC, _NEW_UTS = 0x40000000, 0x08000000, 0x04000000
_READ_ONLY, _NO_SUID, _NO_DEV, _NO_ACCESS_TIMES = 1, 2, 4, 1024
_BIND, _RECURSIVE, _PRIVATE = 4096, 16384, 1 << 18
_DETACH = 2
_SET_PARENT_DEATH_SIGNAL = 1
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_ATTR_READ_ONLY, _ATTR_NO_SUID, _ATTR_NO_DEV = 1, 2, 4
_FOLDERS_TO_COVER = ("/mnt", "/media", "/srv", "/opt", "/sys")


def enter() -> None:
    """Into new namespaces; whoever started this process has to map users before it goes on. The next child is the first
    process of the new process namespace. Raises OSError."""
    syscalls.libc("unshare", _NEW_USER | _NEW_PID | _NEW_MOUNT | _NEW_NET | _NEW_IPC | _NEW_UTS)


def map_users(pid: int) -> bool:
    """From outside: give process `pid` its users. Whether the box has two, a keeper of its own beside `BOX_USER`.

    Raises OSError where the kernel refuses.
    """
    user, group = os.geteuid(), os.getegid()
    if BOX_USER not in (user, group):  # nobody is mapped twice
        with contextlib.suppress(PermissionError):
            _write_maps(pid, f"0 {user} 1\n{BOX_USER} {BOX_USER} 1\n", f"0 {group} 1\n{BOX_USER} {BOX_USER} 1\n")
            return True
    _write(pid, "setgroups", "deny")
    _write_maps(pid, f"{BOX_USER} {user} 1\n", f"{BOX_USER} {group} 1\n")
    return False


def _write_maps(pid: int, users: str, groups: str) -> None:
    _write(pid, "uid_map", users)
    _write(pid, "gid_map", groups)


def _write(pid: int, name: str, text: str) -> None:
    descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def build_root(readable: Sequence[tuple[str, str]], hidden: Mapping[str, Sequence[str]], scratch_bytes: int) -> None:
    """Leave the host's files: the new root holds `readable` (host path, path in the box), read-only, a few devices and
    `WORK`. The folders `hidden` (by path in the box: names in there) are empty. Raises OSError."""
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    sources = [source for source, _ in readable]
    root = next(
        folder for folder in _FOLDERS_TO_COVER
        if os.path.isdir(folder) and not any(source.startswith(folder + "/") for source in sources)
    )  # fmt: skip
    _mount("tmpfs", root, "tmpfs", _NO_SUID, f"size={1 << 20},mode=755")
    for source, target in readable:
        _bind(source, root + target, _ATTR_READ_ONLY | _ATTR_NO_SUID | _ATTR_NO_DEV)
    _cover([f"{root}{folder}/{name}" for folder, names in hidden.items() for name in names])
    for device in DEVICES:
        # Read-only is the node, with its times, which the next run could read; what is written to the device passes.
        _bind(device, root + device, _ATTR_READ_ONLY | _ATTR_NO_SUID)
    os.makedirs(root + WORK)
    os.chdir(root)
    syscalls.call("pivot_root", b".", b".")
    syscalls.libc("umount2", b".", _DETACH)
    os.chdir("/")
    _set_attributes("/", _ATTR_READ_ONLY | _ATTR_NO_SUID | _ATTR_NO_DEV, recursive=False)
    mount_work(scratch_bytes)
    syscalls.libc("sethostname", b"box", 3)


def mount_work(scratch_bytes: int) -> None:
    """An empty `WORK`."""
    inodes = max(64, scratch_bytes // 4096)
    options = f"size={scratch_bytes},nr_inodes={inodes},mode=1777"
    _mount("tmpfs", WORK, "tmpfs", _NO_SUID | _NO_DEV | _NO_ACCESS_TIMES, options)


def renew_work(scratch_bytes: int) -> None:
    """Throw away `WORK` with all that is in it, whatever that is: nobody walks through it."""
    syscalls.libc("umount2", WORK.encode(), _DETACH)
    mount_work(scratch_bytes)


class ProcessNamespaces:
    """Each child of this process in a process namespace of its own: it is the first there, and all end with it."""

    def __init__(self) -> None:
        # The kernel lets a process set up the namespace of its children once, until it is back in its own.
        self._renew = syscalls.prepare("unshare", _NEW_PID)
        self._return = syscalls.prepare("setns", os.pidfd_open(os.getpid()), _NEW_PID)

    def fork(self) -> int:
        """As os.fork. Raises OSError."""
        self._renew()
        try:
            pid = os.fork()
        except OSError:
            self._return()
            raise
        if pid:
            self._return()
        return pid


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [text.encode() if text is not None else None for text in (source, target, kind, options)]
    syscalls.libc("mount", *texts[:3], flags, texts[3])


def _bind(source: str, target: str, attributes: int) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    _mount(source, target, None, _BIND | _RECURSIVE)
    _set_attributes(target, attributes, recursive=True)


def _cover(folders: Sequence[str]) -> None:
    """One empty folder in the place of each."""
    for folder in folders[:1]:
        _mount("tmpfs", folder, "tmpfs", _READ_ONLY | _NO_SUID | _NO_DEV, "size=4096,nr_inodes=2,mode=555")
    for folder in folders[1:]:
        _mount(folders[0], folder, None, _BIND)


def _set_attributes(path: str, attributes: int, *, recursive: bool) -> None:
    change = create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, 0), 32)
    syscalls.call("mount_setattr", _AT_FDCWD, path.encode(), _AT_RECURSIVE if recursive else 0, change, 32)


def end_with_parent() -> None:
    """From now on this process is killed when its parent ends. Whether it has ended already is the caller's to ask."""
    syscalls.libc("prctl", _SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)


def become_box_user() -> None:
    """For a process with a user of its own: who leaves user 0 for good leaves its capabilities too. Raises OSError."""
    os.setgroups([])
    os.setresgid(BOX_USER, BOX_USER, BOX_USER)
    os.setresuid(BOX_USER, BOX_USER, BOX_USER)


def without_capabilities() -> Callable[[], None]:
    """What takes them all from the process that calls it, which stays the user that it is. Raises OSError."""
    header = create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8)  # _LINUX_CAPABILITY_VERSION_3
    return syscalls.prepare("capset", header, create_string_buffer(24))
