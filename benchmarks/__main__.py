"""`make bench`: every benchmark, one after the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TRL = Path(".venv-trl/bin/python")
SCRIPTS = (["benchmarks.rounding"], ["benchmarks.start_and_sync"], ["benchmarks.throughput", "--trl", str(TRL)])

for script in SCRIPTS:
    print(f"\n== {' '.join(script)}", flush=True)
    subprocess.run([sys.executable, "-m", *script], check=True)
