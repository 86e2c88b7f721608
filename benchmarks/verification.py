"""What verdicts cost: runs in the sandbox against fresh interpreters, cheap checks in batches, mathematics, and the way
through the pool.

    python -m benchmarks.verification

All on one core, the verifier and whatever processes it starts together, so that a rate is one a core. What is compared runs
in turns, and a ratio is of turns next to each other; printed are medians. The interpreter that a run is compared with is as
bare as one can be started (`-I -S`: no site packages, no environment), and has no sandbox round it. Exit status 1: a goal is
missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import math_verify
import psutil
import ray

from headrace.actors.verification import VerificationWorker
from headrace.actors.verification_client import VerificationClient
from headrace.verifiers import Sample, VerdictKind, Verifier, VerifierSpec, build_verifier
from headrace.verifiers.sandbox.box import Box
from headrace.verifiers.sandbox.layers import names
from headrace.verifiers.sandbox.plan import BoxPlan
from headrace.verifiers.sandbox.programs import call_function
from headrace.verifiers.sandbox.sandbox import Sandbox

SOURCE = "def f(x):\n    return x + 1\n"
FRESH = [sys.executable, "-I", "-S", "-c", f"{SOURCE}print(f(1))"]
FRESH_RUNS, RUNS = 50, 150  # a turn
LAST = 1000  # runs, of the first and of the last of many
BATCH = 256
POOLED = 500  # samples a turn
GOALS = {"runs": 3.0, "latency": 4.0, "verdicts": 2000, "math": 0.8, "pool": 0.7}
SLOWER = 1.1  # times the first runs' median: more is no noise

TOOL = {
    "name": "book_table",
    "description": "Book a table.",
    "parameters": {
        "type": "object",
        "properties": {
            "date": {"type": "string", "format": "date"},
            "time": {"type": "string", "pattern": "^[0-2][0-9]:[0-5][0-9]$"},
            "party": {"type": "integer", "minimum": 1, "maximum": 20},
            "area": {"enum": ["inside", "terrace", "bar"]},
            "names": {"type": "array", "items": {"type": "string"}, "maxItems": 20},
        },
        "required": ["date", "time", "party"],
    },
}
ARGUMENTS = {"date": "2026-11-20", "time": "19:00", "party": 4, "area": "terrace", "names": ["Ada", "Grace"]}
CALLS = [
    '{"name": "book_table", "arguments": {"date": "2026-11-20", "time": "19:00", "party": 4, "area": "terrace", '
    '"names": ["Ada", "Grace"]}}',
    '{"name": "book_table", "arguments": {"date": "2026-11-20", "time": "7pm", "party": "4"}}',
]
REGEX_TEXTS = ["The table is booked for four at 19:00. " * 20, "I would rather not say anything about it. " * 20]
MATH_ROWS = [
    ("4", r"So the answer is $\boxed{4}$."),
    (r"\frac{1}{2}", r"Hence $x = \boxed{0.5}$."),
    (r"\frac{3\sqrt{2}}{4}", r"We get $\boxed{\frac{3}{2\sqrt{2}}}$."),
    (r"\{1, 2, 3\}", r"The roots are $\boxed{\{3, 2, 1\}}$."),
    (r"(2, 5]", r"Therefore $x \in \boxed{(2, 5]}$."),
    (r"x^2 + 2x + 1", r"Expanding, $\boxed{(x+1)^2}$."),
    ("17", r"It is $\boxed{19}$."),
    (r"2\pi", r"The length is $\boxed{6.28}$."),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"$\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}}$"),
    ("25\\%", r"That is $\boxed{25\%}$ of it."),
    (r"\sqrt{3} + 1", r"$\boxed{1 + \sqrt{3}}$"),
    ("1000", r"In total $\boxed{1{,}000}$."),
]
BOMBS = [  # gold and completion
    ("4", r"$\boxed{9^{9^{9^{9}}}}$"),
    ("x^2", r"$\boxed{(x+1)^{9^{9^{9}}}}$"),
    ("x^2", r"$\boxed{" + "x^{" * 60 + "2" + "}" * 60 + "}$"),
    ("x", r"$\boxed{\sin(\cos(" + "x+" * 80 + "1))^{1000000}}$"),
    ("x+1", r"$\boxed{" + "(" * 40 + "x+1" + ")^{9}" * 40 + "}$"),
    ("4", r"$\boxed{" + "(" * 500 + "1" + ")" * 500 + "}$"),
]


_missed: list[str] = []  # goals, by what was measured


def goal(name: str, reached: bool) -> None:
    if not reached:
        _missed.append(name)


def rate(count: int, action: Callable[[], object]) -> float:
    """How often a second."""
    started = time.perf_counter()
    for _ in range(count):
        action()
    return count / (time.perf_counter() - started)


def fresh() -> None:
    subprocess.run(FRESH, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def run(box: Box) -> None:
    (answer,) = call_function(box, SOURCE, "f", [[1]]).answers
    assert answer.value == 2, answer


def sandboxed(pairs: int, many: int) -> None:
    sandbox = Sandbox(BoxPlan())
    print(f"Sandboxed runs of a small function; layers: {', '.join(names(sandbox.layers))}\n", flush=True)
    with sandbox.box() as box:
        rate(RUNS, lambda: run(box))
        turns = [(rate(FRESH_RUNS, fresh), rate(RUNS, lambda: run(box))) for _ in range(pairs)]
        ratios = [warm / bare for bare, warm in turns]
        bare, warm = statistics.median(turn[0] for turn in turns), statistics.median(turn[1] for turn in turns)
        print("| a second and core | fresh interpreters | sandboxed runs | ratio | goal |\n|---|---|---|---|---|")
        spread = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}x to {max(ratios):.2f}x)"
        print(f"| median of {pairs} turns | {bare:.0f} | {warm:.0f} | {spread} | {GOALS['runs']:g}x |", flush=True)
        goal("sandboxed runs", statistics.median(ratios) >= GOALS["runs"])
        flat(box, many)
    sandbox.close()


def flat(box: Box, many: int) -> None:
    """Latencies of many runs, and what has grown meanwhile."""
    host, server = psutil.Process(), psutil.Process(box.pid)
    tree = [host, server, *server.children(recursive=True)]
    gc.collect()
    before = [(process.num_fds(), process.memory_info().rss) for process in tree]
    seconds = []
    for _ in range(many):
        started = time.perf_counter()
        run(box)
        seconds.append(time.perf_counter() - started)
    gc.collect()
    after = [(process.num_fds(), process.memory_info().rss) for process in tree]
    milliseconds = [1000 * each for each in seconds]
    ordered = sorted(milliseconds)
    last = min(LAST, many // 2)
    first_median, last_median = statistics.median(milliseconds[:last]), statistics.median(milliseconds[-last:])
    descriptors = sum(now[0] - then[0] for now, then in zip(after, before, strict=True))
    grown = max(now[1] - then[1] for now, then in zip(after, before, strict=True))
    processes = len(server.children(recursive=True)) + 2 - len(tree)
    print(f"\n| {many} runs, one after the other | |\n|---|---|")
    print(f"| median latency (goal: under {GOALS['latency']:g} ms) | {statistics.median(ordered):.2f} ms |")
    print(f"| 99th percentile | {ordered[int(0.99 * many)]:.2f} ms |")
    print(f"| median of the first and of the last {last} | {first_median:.2f} ms, {last_median:.2f} ms |")
    print(
        f"| more descriptors, processes, memory afterwards | {descriptors}, {processes}, {grown / 2**20:.1f} MiB |",
        flush=True,
    )
    goal("latency", statistics.median(ordered) < GOALS["latency"])
    goal("no slower", last_median <= SLOWER * first_median)
    goal("nothing left behind", descriptors <= 0 and processes <= 0)


def batched(pairs: int) -> None:
    print("\n| verdicts a second and core, in batches | median | goal |\n|---|---|---|", flush=True)
    tool_row = {"tools": [TOOL], "answer": [{"name": "book_table", "arguments": ARGUMENTS}]}
    checks = {
        "regex": ({"pattern": r"\b\d{1,2}:\d{2}\b"}, [Sample(text, {}) for text in REGEX_TEXTS]),
        "tool_call": ({}, [Sample(call, tool_row) for call in CALLS]),
    }
    for name, (options, samples) in checks.items():
        verifier = build_verifier(VerifierSpec(verifier=name, options=options))
        batch = [samples[number % len(samples)] for number in range(BATCH)]
        verifier.verify_many(batch)
        rates = [BATCH * rate(4, lambda: verifier.verify_many(batch)) for _ in range(pairs)]  # noqa: B023 (called at once)
        verifier.close()
        print(f"| {name} | {statistics.median(rates):.0f} | {GOALS['verdicts']} |", flush=True)
        goal(name, statistics.median(rates) >= GOALS["verdicts"])


def plain(rows: Sequence[tuple[str, str]]) -> None:
    for gold, completion in rows:
        math_verify.verify(math_verify.parse(f"${gold}$"), math_verify.parse(completion))


def mathematics(pairs: int) -> None:
    verifier = build_verifier(VerifierSpec(verifier="math"))
    samples = [Sample(completion, {"answer": gold}) for gold, completion in MATH_ROWS]
    plain(MATH_ROWS)
    verifier.verify_many(samples)
    turns = [
        (
            len(samples) * rate(5, lambda: plain(MATH_ROWS)),
            len(samples) * rate(5, lambda: verifier.verify_many(samples)),
        )
        for _ in range(pairs)
    ]
    ratios = [own / reference for reference, own in turns]
    reference, own = statistics.median(turn[0] for turn in turns), statistics.median(turn[1] for turn in turns)
    print("\n| verdicts a second and core | plain math-verify | math | ratio | goal |\n|---|---|---|---|---|")
    print(
        f"| {len(MATH_ROWS)} rows | {reference:.0f} | {own:.0f} | {statistics.median(ratios):.0%} | {GOALS['math']:.0%} |"
    )
    goal("math", statistics.median(ratios) >= GOALS["math"])
    print(f"\nBombs: {survived(verifier)}", flush=True)
    verifier.close()


def survived(verifier: Verifier) -> str:
    samples = [Sample(bomb, {"answer": gold}) for gold, bomb in BOMBS]
    started = time.perf_counter()
    verdicts = verifier.verify_many(samples)
    seconds = time.perf_counter() - started
    goal("bombs", all(verdict.kind is VerdictKind.FAIL for verdict in verdicts))
    reasons = ", ".join(f"{verdict.kind.value} ({verdict.reason})" for verdict in verdicts)
    return f"{len(BOMBS)} in {seconds:.1f} s: {reasons}"


async def in_turns(
    box: Box, worker: ray.actor.ActorHandle, samples: Sequence[Sample], pairs: int
) -> list[tuple[float, float]]:
    """A second: bare runs in the box, and checks as a generator has them made by a worker of the pool, each of one run."""
    client = VerificationClient(timeout_seconds=30.0, attempts=3)
    client.set_workers({"verification-0": worker})

    async def through_the_pool() -> float:
        started = time.perf_counter()
        verdicts = await asyncio.gather(*[client.verify(sample) for sample in samples])
        seconds = time.perf_counter() - started
        assert all(verdict.reward == 1.0 for verdict in verdicts), verdicts
        return len(samples) / seconds

    run(box)
    await through_the_pool()  # its first calls are small
    turns = []
    for _ in range(pairs):
        bare = rate(len(samples), lambda: run(box))
        turns.append((bare, await through_the_pool()))
    await client.close()
    return turns


def pooled(pairs: int) -> None:
    verifier = build_verifier(VerifierSpec(verifier="code"))
    row = {"entry_point": "f", "tests": [{"input": [1], "expected": 2}]}
    samples = [Sample(SOURCE, row)] * POOLED
    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
    try:
        actor = ray.remote(num_cpus=1, concurrency_groups={"watch": 1})(VerificationWorker)
        worker = actor.remote("benchmark", "verification-0", "127.0.0.1", verifier)
        ray.get(worker.start.remote())
        sandbox = Sandbox(BoxPlan())
        with sandbox.box() as box:
            turns = asyncio.run(in_turns(box, worker, samples, pairs))
        sandbox.close()
        ray.get(worker.close.remote())
    finally:
        ray.shutdown()
        verifier.close()
    here, there = statistics.median(turn[0] for turn in turns), statistics.median(turn[1] for turn in turns)
    ratios = [pool / bare for bare, pool in turns]
    print("\n| a second and core | runs in the sandbox | checks of code through the pool | ratio | goal |")
    print("|---|---|---|---|---|")
    spread = f"{statistics.median(ratios):.0%} ({min(ratios):.0%} to {max(ratios):.0%})"
    print(f"| median of {pairs} turns | {here:.0f} | {there:.0f} | {spread} | {GOALS['pool']:.0%} |", flush=True)
    goal("pool", statistics.median(ratios) >= GOALS["pool"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=11, help="turns of each side that are compared")
    parser.add_argument("--runs", type=int, default=10_000, help="runs one after the other, to see that nothing grows")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    sandboxed(arguments.pairs, arguments.runs)
    batched(arguments.pairs)
    mathematics(arguments.pairs)
    pooled(arguments.pairs)
    if _missed:
        sys.exit(f"missed: {', '.join(_missed)}")


if __name__ == "__main__":
    main()
