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

failed = []
for script in SCRIPTS:
    print(f"\n== {' '.join(script)}", flush=True)
    if subprocess.run([sys.executable, "-m", *script], check=False).returncode:
        failed.append(script[0])
if failed:
    sys.exit(f"failed, or missed a goal: {', '.join(failed)}")
