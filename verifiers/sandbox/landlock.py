"""Landlock: which files code in the box may touch, and no TCP, no signals and no abstract sockets beyond it.

Needs no privilege, and cannot be taken off again. What the running kernel does not know yet is left out; `abi()` tells
what there is (1: files; 4: TCP; 6: signals and abstract sockets).

Standard library only.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from ctypes import create_string_buffer

from headrace.verifiers.sandbox import syscalls

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_FILES_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP = 0b11  # bind, connect
_SCOPES = 0b11  # abstract sockets, signals
_ONLY_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE  # rights that a rule on a file may have
_VERSION, _PATH_BENEATH = 1, 1


def abi() -> int:
    """The kernel's version of the interface; 0: there is none."""
    try:
        return syscalls.call("landlock_create_ruleset", None, 0, _VERSION)
    except OSError:  # not built in, or not switched on
        return 0


class Ruleset:
    """Rules under construction, as an open descriptor. Raises OSError where the kernel refuses."""

    def __init__(self) -> None:
        version = abi()
        self._files = _FILES_BY_ABI[max(known for known in _FILES_BY_ABI if known <= version)]
        tcp, scopes = (_TCP if version >= 4 else 0), (_SCOPES if version >= 6 else 0)
        attributes = struct.pack("=QQQ", self._files, tcp, scopes)[: 24 if version >= 6 else 16 if version >= 4 else 8]
        self.descriptor = syscalls.call("landlock_create_ruleset", create_string_buffer(attributes, len(attributes)),
                                        len(attributes), 0)  # fmt: skip

    def allow_reading(self, paths: Iterable[str], *, execute: bool) -> None:
        """Files and folders, with all that is beneath them."""
        for path in paths:
            self._allow(path, _READ_FILE | _READ_DIR | (_EXECUTE if execute else 0))

    def allow_listing(self, folders: Iterable[str]) -> None:
        """The names in them and in all folders beneath; no file's content."""
        for folder in folders:
            self._allow(folder, _READ_DIR)

    def allow_devices(self, paths: Iterable[str]) -> None:
        for path in paths:
            self._allow(path, _READ_FILE | _WRITE_FILE)

    def allow_all(self, folder: str, *, execute: bool) -> None:
        """Files, folders and links beneath `folder`, but no devices, sockets or pipes."""
        self._allow(
            folder,
            (_EXECUTE if execute else 0) | _WRITE_FILE | _READ_FILE | _READ_DIR | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR
            | _MAKE_REG | _MAKE_SYM | _REFER | _TRUNCATE,
        )  # fmt: skip

    def _allow(self, path: str, rights: int) -> None:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not os.path.isdir(path):
                rights &= _ONLY_FILES
            rule = struct.pack("=Qi", rights & self._files, descriptor)
            syscalls.call("landlock_add_rule", self.descriptor, _PATH_BENEATH, create_string_buffer(rule, len(rule)), 0)
        finally:
            os.close(descriptor)


def parts(folder: str, hidden: Iterable[str]) -> list[str]:
    """A rule holds for all that is beneath its path: so these are the paths for `folder` without its folders `hidden`."""
    names = set(hidden)
    if not names:
        return [folder]
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if entry.name not in names]
        # A link to a folder would be a rule for that one, which may be hidden; a link that leads nowhere cannot be opened.
        return sorted(entry.path for entry in shown if entry.is_dir(follow_symlinks=False) or entry.is_file())


def restriction(descriptor: int) -> Callable[[], None]:
    """What puts a ruleset on the thread that calls it, and on what that starts; it raises OSError, also for want of the
    no_new_privs bit."""
    return syscalls.prepare("landlock_restrict_self", descriptor, 0)
