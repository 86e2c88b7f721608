"""Segments of a process that was killed are removed; those of a living one are left alone."""

import os
import signal
import subprocess
import sys

from headrace.actors.shared_memory import SHARED_MEMORY, release, segments_of

HOLDER = """
from multiprocessing import resource_tracker, shared_memory
segment = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(segment._name, "shared_memory")  # as if the tracker had been killed with its owner
print(segment.name, flush=True)
input()
"""


def test_a_killed_process_leaves_segments_that_are_released_and_a_living_one_keeps_its_own():
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    name = holder.stdout.readline().strip()
    assert name in segments_of(os.getpid()), "a child's segments are the parent's to name"
    assert release([name]) == []
    assert (SHARED_MEMORY / name).exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    assert (SHARED_MEMORY / name).exists()
    assert release([name]) == [name]
    assert not (SHARED_MEMORY / name).exists()
    assert release([name]) == []
