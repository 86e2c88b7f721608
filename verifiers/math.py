"""Final answers to mathematical questions, against gold: our own strictness in front of math-verify's algebra.

Here are the options and the process that the check runs in; `math_answer.py` finds the answer in the completion,
`math_form.py` and `math_quantity.py` read it, `math_compare.py` decides, and asks math-verify (`math_library.py`).
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

from headrace.verifiers.base import not_run, parse_options, printable, rebuild, scored
from headrace.verifiers.confined import ConfinedOptions, ConfinedVerifier
from headrace.verifiers.errors import UserError
from headrace.verifiers.math_answer import LONGEST_ANSWER, AnswerFault, FoundAnswer, boxes, find_answer
from headrace.verifiers.math_compare import compare, is_word
from headrace.verifiers.math_form import clean
from headrace.verifiers.math_library import MATCH, Outcome, warm_up
from headrace.verifiers.math_quantity import read_list
from headrace.verifiers.records import Sample, Verdict, VerdictKind

_ITSELF = "check_gold"  # in place of a completion's row: gold against itself, through the whole algebra

_OTHERS = ("q_{7}+1", "7")


class MathOptions(ConfinedOptions):
    answer_field: str = "answer"
    """Row field with gold: text, LaTeX or a number."""
    require_box: bool = False
    """Only what is in a box is an answer."""
    box_last: bool = False
    """Only a box is an answer, and after the last one nothing may stand but spaces and punctuation."""
    thinking_end: str | None = "</think>"
    """What a completion says before the last of these marks is not looked at; none: all is."""
    evaluated: bool = True
    """A number must be given as a number: 2^{10}, \\sqrt{16} or a sum that restates the question are not taken for it."""
    units: bool = True
    """Two units that differ are an error; a missing one never is."""


class MathVerifier(ConfinedVerifier):
    """The options of `MathOptions` by name. Reward 1 for the right answer, else 0.

    Reasons: `match`; `wrong_answer`, `no_answer`, `unfinished_box`, `several_answers`, `hedged`, `text_after`,
    `not_a_number`, `unevaluated`, `wrong_unit`, `too_long`, `timeout`, `memory`, `crash`. As infra_error: `bad_row`,
    `verifier_error`, `verifier_died`, `verifier_failed`.

    Raises UserError for a wrong option, for a missing math-verify, and with `sandbox` where a process cannot be confined.
    """

    def __init__(self, **options: Any) -> None:
        self.options = parse_options(MathOptions, options, "math")
        if importlib.util.find_spec("math_verify") is None:
            raise UserError("verifier `math` needs the package math-verify: pip install 'headrace[math]'")
        state = self.options.model_dump(mode="json")
        self._set_up(
            self.options, load_check, state, lambda: MathCheck(self.options).verify, [self.options.answer_field]
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (type(self), self.options.model_dump())

    def check_row(self, row: dict[str, Any]) -> str | None:
        field = self.options.answer_field
        fault = gold_fault(row.get(field), field)
        if fault is not None:
            return fault
        verdict = self._run([Sample("", {field: row[field], _ITSELF: True})])[0]
        if verdict.kind is VerdictKind.PASS:
            return None
        return f"field `{field}`: {printable(str(row[field]), 80)!r} cannot be checked against ({verdict.reason})"


def load_check(state: dict[str, Any]) -> Callable[[Sample], Verdict]:
    """What the limited process runs. From here on an import is an error of this module's: see `_LateImports`."""
    check = MathCheck(MathOptions.model_validate(state))
    warm_up()
    late = _LateImports()
    sys.meta_path.append(late)

    def verify(sample: Sample) -> Verdict:
        late.missing.clear()
        verdict = check.verify(sample)
        if late.missing and verdict.kind is not VerdictKind.PASS:
            raise ImportError(f"not loaded before the process was confined: {', '.join(sorted(late.missing))}")
        return verdict

    return verify


_OPTIONAL = ("numpy", "scipy", "gmpy2", "flint", "numexpr")  # sympy goes on without


class _LateImports(importlib.abc.MetaPathFinder):
    """Takes note of modules that nobody finds.

    In a confined process that is any that is not loaded yet, and the library would swallow the ImportError and call the
    answer wrong.
    """

    def __init__(self) -> None:
        self.missing: set[str] = set()

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.partition(".")[0] not in _OPTIONAL:
            self.missing.add(fullname)


class MathCheck:
    """The check itself: a pure function of the sample, without limits."""

    def __init__(self, options: MathOptions) -> None:
        self._options = options

    def verify(self, sample: Sample) -> Verdict:
        options = self._options
        answer = sample.row.get(options.answer_field)
        fault = gold_fault(answer, options.answer_field)
        if fault is not None:
            return not_run("bad_row", message=fault)
        gold = gold_text(str(answer))
        if sample.row.get(_ITSELF):
            # Something that it is not, so that the whole comparison is gone through; what matters is that it ends.
            for other in _OTHERS:
                compare(gold, other, evaluated=False, units=False)
            return scored(1.0, "readable")
        try:
            found = find_answer(
                sample.completion,
                require_box=options.require_box,
                thinking_end=options.thinking_end,
                box_last=options.box_last,
            )
        except AnswerFault as error:
            return scored(0.0, error.reason)
        outcome = self._judge(gold, found)
        return scored(float(outcome.right), outcome.reason, answer=printable(" ; ".join(found.values)))

    def _judge(self, gold: str, found: FoundAnswer) -> Outcome:
        outcomes = [
            compare(gold, value, evaluated=self._options.evaluated, units=self._options.units) for value in found.values
        ]
        if len(outcomes) == 1:
            return outcomes[0]
        if all(outcome.right for outcome in outcomes):
            return MATCH
        listing = None if is_word(clean(gold)) else read_list(clean(gold))
        if listing is not None and len(listing.elements) == len(found.values):
            joined = compare(
                gold, ", ".join(found.values), evaluated=self._options.evaluated, units=self._options.units
            )
            if joined.right:
                return joined
        return Outcome(False, "several_answers")


def gold_fault(answer: Any, field: str) -> str | None:
    """What is wrong with a row's gold, in one clause."""
    if answer is None:
        return f"field `{field}` is missing"
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return f"field `{field}` is {type(answer).__name__}, not text or a number"
    text = str(answer)
    if not text.strip():
        return f"field `{field}` is empty"
    try:
        gold = gold_text(text)
    except AnswerFault:
        return f"field `{field}` has a box without its end"
    if not clean(gold):
        return f"field `{field}` holds no answer: {printable(text, 80)!r}"
    if len(gold) > LONGEST_ANSWER:
        return f"field `{field}` has {len(gold)} characters; an answer has at most {LONGEST_ANSWER}"
    return None


def gold_text(answer: str) -> str:
    """Gold without what data sets put round it: a box, or a solution that ends with "#### 42"."""
    text = answer.strip()
    found = boxes(text)
    if found:
        return found[-1][2]
    return text.rpartition("####")[2].strip()
