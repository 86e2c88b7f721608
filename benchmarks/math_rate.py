"""How fast the verifier `math` is beside plain math-verify, on the same rows, in one run.

    python -m benchmarks.math_rate

Plain math-verify parses gold and completion and compares them in this process, with its default time limits; the verifier
gets the same rows in batches, through its confined process. Rows differ in their numbers, so that no cache answers them.
Rates are rows per second of wall clock. The two take turns, batch by batch, so that both see the same machine.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import math_verify
import msgspec

from headrace.verifiers import Sample
from headrace.verifiers.math import MathVerifier

KINDS: dict[str, Callable[[int], tuple[str, str]]] = {
    "integer": lambda n: (str(n), str(n + n % 2)),
    "fraction": lambda n: (rf"\frac{{{n}}}{{7}}", rf"\frac{{{2 * n}}}{{14}}"),
    "set": lambda n: (rf"\{{{n}, {n + 1}\}}", rf"\{{{n + 1}, {n}\}}"),
    "radical": lambda n: (rf"{n}\sqrt{{3}}", rf"\sqrt{{{3 * n * n}}}"),
    "interval": lambda n: (rf"[{n}, \infty)", rf"x \in \left[{n}, \infty\right)"),
    "polynomial": lambda n: (f"x^2+{n}x+{n + 1}", f"{n + 1}+x^2+{n}x"),
    "matrix": lambda n: (
        rf"\begin{{pmatrix}}{n}&1\\0&2\end{{pmatrix}}",
        rf"\begin{{bmatrix}}{n} & 1\\ 0 & 2\end{{bmatrix}}",
    ),
}
"""Gold and an answer for a number, by what they are."""

_BATCH = 20
_REASONING = (
    "We write the condition as $a_{k+1} = a_k + 2k + 1$ and sum over $k$. This gives $a_n = n^2 + c$, where the constant is"
    " fixed by the first value. Checking the cases $n = 1$ and $n = 2$ confirms it, since $1 + c = 4$ and $4 + c = 7$. "
)


class MathRates(msgspec.Struct, frozen=True):
    """Rows per second of plain math-verify and of the verifier."""

    plain: float
    verifier: float

    @property
    def ratio(self) -> float:
        return self.verifier / self.plain


def rows(kind: str, count: int, first: int) -> list[Sample]:
    """`count` completions of one kind, each a short solution that ends in a box."""
    made = []
    for number in range(first, first + count):
        gold, answer = KINDS[kind](number)
        completion = f"{_REASONING * 3}Therefore the answer is $\\boxed{{{answer}}}$."
        made.append(Sample(completion, {"answer": gold}))
    return made


def measure(samples: list[Sample], warm: list[Sample]) -> MathRates:
    """The rates of both on the same samples, in turns of one batch; `warm` is run before and does not count."""
    verifier = MathVerifier()
    plain = ours = 0.0
    try:
        _run_plain(warm)
        verifier.verify_many(warm)
        for place in range(0, len(samples), _BATCH):
            batch = samples[place : place + _BATCH]
            start = time.perf_counter()
            _run_plain(batch)
            between = time.perf_counter()
            verifier.verify_many(batch)
            plain, ours = plain + between - start, ours + time.perf_counter() - between
    finally:
        verifier.close()
    return MathRates(plain=len(samples) / plain, verifier=len(samples) / ours)


def _run_plain(samples: list[Sample]) -> None:
    for sample in samples:
        math_verify.verify(math_verify.parse(f"${sample.row['answer']}$"), math_verify.parse(sample.completion))


def main() -> None:
    warm = [sample for kind in KINDS for sample in rows(kind, 3, 10)]
    mixed: list[Sample] = []
    print(f"{'kind':12} {'plain/s':>9} {'math/s':>9} {'ratio':>7}")
    for place, kind in enumerate(KINDS):
        _print(kind, measure(rows(kind, 60, 100 + 100 * place), warm))
        mixed += rows(kind, 30, 1100 + 100 * place)
    _print("all", measure(random.Random(0).sample(mixed, len(mixed)), warm))


def _print(kind: str, rates: MathRates) -> None:
    print(f"{kind:12} {rates.plain:9.0f} {rates.verifier:9.0f} {rates.ratio:7.2f}")


if __name__ == "__main__":
    main()
