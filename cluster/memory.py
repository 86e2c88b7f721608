"""Memory of a run whose cluster is its own: proportional set sizes, so that shared pages count once.

On a cluster that the run has joined its members are the children of the nodes' raylets, and not of this process.
"""

from __future__ import annotations

import psutil


def tree_pss_bytes() -> int:
    """Bytes held by this process and everything that it started, at any depth."""
    own = psutil.Process()
    return sum(_pss_bytes(process.pid) for process in [own, *own.children(recursive=True)])


def _pss_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass  # it ended between the listing and the look
    return 0
