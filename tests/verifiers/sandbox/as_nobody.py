"""Runs a command as the user `nobody`, who has no capabilities; started by root.

    python -m tests.verifiers.sandbox.as_nobody COMMAND ...

The interpreter may lie where nobody else can look, below /root say. So the command gets a mount namespace of its own, where
such a folder shows nothing but the interpreter and this project.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from headrace.verifiers.sandbox import syscalls

NOBODY = 65534
_NEW_MOUNT, _BIND, _MOVE, _RECURSIVE, _PRIVATE = 0x00020000, 4096, 8192, 16384, 1 << 18


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    syscalls.libc("mount", source.encode(), target.encode(), kind.encode(), flags, None)


def show(paths: list[Path]) -> None:
    """Make `paths` reachable for all, in this process's own mount namespace."""
    syscalls.libc("unshare", _NEW_MOUNT)
    _mount("none", "/", "none", _RECURSIVE | _PRIVATE)
    closed: dict[Path, list[Path]] = {}
    # What lies inside another of them is shown with it: an environment in its project, say.
    for path in (each for each in paths if not any(parent in paths for parent in each.parents)):
        for folder in reversed(path.parents):
            if not folder.stat().st_mode & 0o001:
                closed.setdefault(folder, []).append(path)
                break
    for folder, inside in closed.items():
        stage = tempfile.mkdtemp()
        _mount("tmpfs", stage, "tmpfs", 0)
        os.chmod(stage, 0o755)
        for path in inside:
            target = stage / path.relative_to(folder)
            target.mkdir(parents=True)
            _mount(str(path), str(target), "none", _BIND | _RECURSIVE)
        _mount(stage, str(folder), "none", _MOVE)
        os.rmdir(stage)


def main() -> None:
    show(sorted({Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), Path(__file__).resolve().parents[3]}))
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/"}
    os.execvpe(sys.argv[1], sys.argv[1:], environment)


if __name__ == "__main__":
    main()
