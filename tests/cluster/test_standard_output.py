"""A run's console whose reader has left."""

import subprocess
import sys

PROGRAM = """
import sys
from headrace.cluster.display import PlainDisplay
from headrace.cluster.standard_output import run_console

display = PlainDisplay(run_console(), lambda: 0.0)
display.event("first")
sys.stdin.readline()  # the reader has left
for number in range(3):
    display.event(f"{number}")
display.close()
print("done", file=sys.stderr)
"""


def test_a_reader_that_leaves_ends_the_output_and_not_the_run():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "first" in process.stdout.readline()
    process.stdout.close()
    _, errors = process.communicate("\n", timeout=60)
    assert process.returncode == 0, errors
    assert errors == "headrace: standard output takes no more (Broken pipe); the run goes on\ndone\n"
