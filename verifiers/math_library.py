"""What math-verify says of two expressions, behind guards for what it lets pass."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import pkgutil
import re
from functools import lru_cache
from typing import Any

import msgspec

from headrace.verifiers.math_marks import lost_marks, marked

LEAST_PROPORTION = 1e-3  # by which two small constants must differ to be two


class Outcome(msgspec.Struct, frozen=True):
    """Whether an answer is right, and the verdict's reason."""

    right: bool
    reason: str


MATCH = Outcome(True, "match")
WRONG = Outcome(False, "wrong_answer")


def symbolic_match(gold: str, given: str) -> Outcome:
    """What math-verify says of two expressions, less what it says too easily.

    That is: equations without unknowns, empty intervals, lists for a value, what has no value, and constants that are both
    small. Its time limits are off: they work by signals and do not stop C code; the process has one that does.
    """
    wanted, offered = parsed(gold), parsed(given)
    if wanted is None or offered is None or _lost(gold, wanted) != _lost(given, offered):
        return WRONG
    sympy = library().sympy
    relation, empty = sympy.core.relational.Relational, sympy.S.EmptySet
    listed = (sympy.FiniteSet, sympy.Tuple)
    if offered in (sympy.nan, sympy.zoo):
        return WRONG
    if isinstance(wanted, relation) and isinstance(offered, relation) and wanted.free_symbols != offered.free_symbols:
        return WRONG
    if isinstance(offered, listed) and not isinstance(wanted, (*listed, sympy.Set)) and len(offered.args) != 1:
        return Outcome(False, "several_answers")
    if (wanted == empty) != (offered == empty) or (wanted == empty and not _EMPTY.search(gold)):
        return WRONG
    right = library().verify(wanted, offered, timeout_seconds=None)
    return MATCH if right and _has_value(offered) and not _differs_relatively(wanted, offered) else WRONG


def _has_value(expression: Any) -> bool:
    """Whether every number in it has a value: an infinity within one, or the logarithm of 0, is equal to whatever it is
    compared with. An infinity by itself may be the bound of an interval."""
    sympy = library().sympy
    infinities = (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)
    for part in sympy.preorder_traversal(expression):
        if not _is_number_like(part) or part.is_Atom or set(part.args) == {-1, sympy.oo}:
            continue
        if part.has(*infinities) and not part.has(sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit):
            return False
        if part.evalf().has(*infinities):
            return False
    return True


def _differs_relatively(wanted: Any, offered: Any) -> bool:
    """Whether two constants differ in proportion: the library looks at digits behind the point, and small ones have none."""
    sympy = library().sympy
    if not all(map(_is_number_like, (wanted, offered))):
        return False
    if wanted == offered or wanted.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan):
        return False
    one, other = sympy.Abs(wanted).evalf(), sympy.Abs(wanted - offered).evalf()
    return bool(one.is_number and other.is_number and one > 0 and other > LEAST_PROPORTION * one)


def _is_number_like(expression: Any) -> bool:
    """Whether it may have a number for its value: sums and products of matrices are expressions too, and have none."""
    sympy = library().sympy
    is_scalar = isinstance(expression, sympy.Expr) and not isinstance(expression, sympy.MatrixExpr)
    return is_scalar and not expression.free_symbols


def _lost(text: str, expression: Any) -> int:
    """What of the text is not in the expression: marks, and the braces in \\{x\\} + 1, of which no set has come."""
    braces = 0 if expression.has(library().sympy.Set) else text.count("\\{")
    return lost_marks(text) + braces


_EMPTY = re.compile(r"\\emptyset|\\\{\s*\\\}")


@lru_cache(maxsize=4096)
def parsed(text: str) -> Any | None:
    """The expression that a text is, None where it cannot be read as one."""
    math = library()
    # Dollars would end the formula; a currency sign says nothing here.
    formula = marked(text.replace("$", ""))
    found = math.parse(f"${formula}$", extraction_config=math.config, parsing_timeout=None)
    return found[0] if found and not isinstance(found[0], str) else None


class _Library(msgspec.Struct, frozen=True):
    parse: Any
    verify: Any
    config: Any
    sympy: Any


@lru_cache(maxsize=1)
def library() -> _Library:
    # The package is an extra, and takes seconds to load: only the process that checks does.
    import latex2sympy2_extended
    import math_verify
    import sympy

    # R and r are two radii. What math-verify calls has no such setting; the default that it takes does.
    convert = latex2sympy2_extended.latex2sympy
    defaults = list(convert.__defaults__ or ())
    defaults[-1] = dataclasses.replace(defaults[-1], lowercase_symbols=False)
    convert.__defaults__ = tuple(defaults)
    # It warns of the very thing that is done on purpose here, time limits switched off, and logs each text it cannot read.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    config = [math_verify.LatexExtractionConfig(boxed_match_priority=-1)]  # boxes are opened before
    return _Library(math_verify.parse, math_verify.verify, config, sympy)


def warm_up() -> None:
    """Load all that a check may load while it runs; a confined process cannot open files."""
    library()
    for package in _LOADED_LATE:
        names = [
            module.name for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        ]
        for name in names:
            if not {"tests", "benchmarks"} & set(name.split(".")):
                importlib.import_module(name)
    for gold, given in _WARM_UP:
        symbolic_match(gold, given)
    parsed.cache_clear()


# What an integral or a sum may want, depending on it.
_LOADED_LATE = ("sympy.concrete", "sympy.functions", "sympy.integrals", "sympy.polys", "sympy.series", "sympy.sets",
    "sympy.simplify", "sympy.solvers", "sympy.codegen")  # fmt: skip
_WARM_UP = (
    (r"\frac{1}{3}+\sqrt{2}", r"\sqrt{2}+1/3"), ("x^2-1", "(x-1)(x+1)"), (r"\{1,x\}", r"\{x,1\}"),
    ("(1,2]", "[1,2]"), ("x<2", "2>x"), (r"(-\infty,0)\cup(1,\infty)", r"(1,\infty)\cup(-\infty,0)"),
    ("y=2x+1", "2y=4x+2"), ("x^2=4", "x^2-4=0"), ("x^2>4", "4<x^2"),
    (r"\begin{pmatrix}1&x\\0&1\end{pmatrix}", r"\begin{bmatrix}1&x\\0&2\end{bmatrix}"), (r"\sin^2 x+\cos^2 x", "1"),
    (r"e^{i\pi}", "-1"), (r"\log_2 8", "3"), (r"\int_0^1 x^2 dx", r"\frac{1}{3}"),
    (r"\sum_{i=1}^{n} i", r"\frac{n(n+1)}{2}"), (r"\lim_{x\to 0}\frac{\sin x}{x}", "1"),
    (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"), ("5!", "120"), (r"|x|", r"\sqrt{x^2}"), ("x<2", r"(-\infty,2)"),
    ("1<x<2", "(1,2)"), (r"\frac{d}{dx}x^2", "2x"), (r"\arctan 1", r"\frac{\pi}{4}"), (r"\lfloor 3.5\rfloor", "3"),
    (r"\prod_{i=1}^{3} i", "6"), ("0.5x", r"\frac{x}{2}"), (r"\sqrt[3]{2}", "2^{1/3}"),
)  # fmt: skip
