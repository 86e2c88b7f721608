"""How a child process ended, in a process of Ray's.

Ray has SIGCHLD ignored in every process that belongs to a cluster, the driver included, as soon as it is told to end the
processes that a dead worker leaves behind. The kernel then forgets how a child ended: `subprocess` says status 0 for all.
"""

from __future__ import annotations

import ctypes
import signal


def keep_child_statuses() -> None:
    """From now on the statuses of this process's children are kept until they are waited for, as ever.

    By libc: `signal.signal` may be called in the main thread only.
    """
    ctypes.CDLL(None).signal(int(signal.SIGCHLD), ctypes.c_void_p(int(signal.SIG_DFL)))
