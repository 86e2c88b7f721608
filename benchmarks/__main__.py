"""`make bench`: every benchmark, one after the other; about 27 minutes on two cores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TRL = Path(".venv-trl/bin/python")
SCRIPTS = (
    ["benchmarks.verification"],
    ["benchmarks.rounding"],
    ["benchmarks.serving_dtype"],
    ["benchmarks.start_and_sync"],
    # TRL takes about a minute a step, and its first is not counted: two steps in each of the pairs.
    ["benchmarks.throughput", "--trl", str(TRL), "--steps", "2"],
)

for script in SCRIPTS:
    print(f"\n== {' '.join(script)}", flush=True)
    subprocess.run([sys.executable, "-m", *script], check=True)
