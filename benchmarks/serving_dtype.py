"""What generation costs in bfloat16 and in float32 on this machine's CPU: what `rollout.dtype = "auto"` goes by.

    python -m benchmarks.serving_dtype

The engine of the demo, full of requests; each dtype in a process of its own, in turns. Printed are medians, and their ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time

from headrace.actors.engine import EngineSettings
from headrace.actors.generator import engine_environment
from headrace.cluster.base_model import resolve_base_model
from headrace.cluster.config import DEMO_MODEL
from headrace.cluster.dtypes import CPU_INFO, computes_bfloat16
from headrace.verifiers.records import Sampling

DTYPES = ("float32", "bfloat16")
REQUESTS, PROMPT_TOKENS, NEW_TOKENS = 72, 64, 48


async def generate(dtype: str) -> float:
    """Tokens a second."""
    from headrace.actors.vllm_engine import VllmEngine  # vLLM reads its environment when it is imported

    options = {"max_num_seqs": REQUESTS}
    engine = VllmEngine()
    await engine.start(EngineSettings(resolve_base_model(DEMO_MODEL), 256, dtype, 0, options=options))
    sampling = Sampling(max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS)
    prompts = [[100 + (7 * number + place) % 1000 for place in range(PROMPT_TOKENS)] for number in range(REQUESTS)]
    await engine.complete(prompts[0], sampling)
    start = time.perf_counter()
    await asyncio.gather(*[engine.complete(prompt, sampling) for prompt in prompts])
    seconds = time.perf_counter() - start
    await engine.close()
    return REQUESTS * NEW_TOKENS / seconds


def measured(dtype: str) -> float:
    settings = EngineSettings(DEMO_MODEL, 256, dtype, 0)
    command = [sys.executable, "-m", "benchmarks.serving_dtype", "--dtype", dtype]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | engine_environment(settings)
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="turns of each dtype")
    parser.add_argument("--dtype", choices=DTYPES, help="measure this one, once, in this process")
    arguments = parser.parse_args()
    if arguments.dtype:
        print(asyncio.run(generate(arguments.dtype)))
        return
    turns = [[measured(dtype) for dtype in DTYPES] for _ in range(arguments.pairs)]
    rates = [statistics.median(rate) for rate in zip(*turns, strict=True)]
    ratio = statistics.median(bfloat16 / float32 for float32, bfloat16 in turns)
    has = "has" if computes_bfloat16(CPU_INFO.read_text()) else "has no"
    print(f"This CPU {has} instructions for bfloat16.\n")
    print("| tokens a second, 72 requests | float32 | bfloat16 | ratio |\n|---|---|---|---|")
    print(f"| median of {arguments.pairs} | {rates[0]:.0f} | {rates[1]:.0f} | {ratio:.2f}x |")


if __name__ == "__main__":
    main()
