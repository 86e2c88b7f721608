"""What may stand inside an answer, in the box or the dollars, beside its value: units and names, and nothing else."""

import time

import pytest

from headrace.verifiers import Sample, VerdictKind
from headrace.verifiers.math import MathVerifier
from headrace.verifiers.math_answer import LONGEST_ANSWER
from headrace.verifiers.math_inside import limits_expression, limits_quantity
from headrace.verifiers.math_interval import as_interval
from headrace.verifiers.math_names import is_name


@pytest.fixture(scope="module")
def verifier():
    return MathVerifier(sandbox=False)


def verify(verifier, completion, answer="42"):
    return verifier.verify(Sample(completion, {"answer": answer}))


# (gold, what is in the box)
RIGHT = [
    # words that are a unit or a noun, or gold's own
    ("42", r"42 \text{ apples}"), ("42", r"42\text{ cm}"), ("5", r"5 \text{ square meters}"),
    ("42", r"42 \text{ odd integers}"), ("42", r"42 \text{ distinct real roots}"), ("42", r"42 \text{ km per h}"),
    ("42", r"42 \text{ batteries replaced}"), ("42", r"42 \text{ families}"), ("42", r"42 \mathrm{~cm}^2"),
    ("42", r"42 \text{ CDs}"), ("42", r"42 \text{ minutes until noon}"), ("42", r"42^\circ \text{C}"),
    ("42", r"42 \text{ dollars weekly}"), (r"2\sqrt{3}", r"2\sqrt{3} \text{ cm}"), ("42", r"42 \text{ exactly}"),
    (r"36\pi", r"V = 36\pi \text{ cubic inches}"), (r"x^2 \text{ if } x>0", r"x^2 \text{ if } x > 0"),
    # sides that name what is asked for, or work it out
    *[("42", f"{name} = 42") for name in (
        "m+n", "f(3)", "x_1", "|A|", r"\angle ABC", r"6 \cdot 7", "xy", "a-b", r"\frac{m}{n}",
        r"\text{Area of } \triangle ABC",
        "[ABC]", "AB", r"f^{-1}(3)", "f'(2)", "f(g(2))", "P(X > 3)", "S_{10}", r"x_{\text{max}}", r"V_{\text{cone}}",
        r"\theta",
        r"\alpha+\beta", r"\text{Number of odd integers}", r"\text{Answer: } x", r"\therefore x", r"\operatorname{lcm}(6,7)",
        r"\gcd(84,126)", r"|A \cap B|", r"\|v\|", r"\vec{a}\cdot\vec{b}", r"\text{base} \times \text{height}", "E[X]",
        r"6 \times 7 \text{ eggs}", r"6 \text{ boxes} \times 7 \text{ eggs}", "x = y", r"\sum_{i=1}^{6} 2i", r"\det A",
        "f(1,2)",
        "a+b+c+d+e", "f(f(3))", r"\$6 \times 7",
    )],
    ("2x", "f(x)=2x"), ("2x", "f^{-1}(x)=2x"), ("2x", "g(x+1)=2x"), ("n^2", "a_{n+1}=n^2"),
    (r"\frac{1}{2}", r"\sin 30^\circ = 0.5"),
    ("3", r"\log_2 8 = 3"), ("x=42", r"x = 42.4 \approx 42"), ("42", r"x \approx 42"), ("32349", r"32,\! 349"),
    # inequalities for intervals
    ("(1,2]", r"1 < x \le 2"), ("[1,2]", r"1 \le x \leq 2"), ("(1,2)", "1<x<2"), ("[1,2)", r"2 > x \geq 1"),
    (r"(-\infty, 2]", r"x \le 2"), (r"(-\infty, 2]", r"2 \ge x"), (r"(\sqrt{2},3]", r"\sqrt2 < x \le 3"),
    (r"[1,2)\cup(3,4]", r"1 \le x < 2 \text{ or } 3 < x \le 4"), (r"(-\infty,2)\cup(3,\infty)", r"x<2 \text{ or } x>3"),
    (r"1 < x \le 2", "(1,2]"),
]  # fmt: skip


@pytest.mark.parametrize("box_last", [False, True])
@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_units_names_and_calculations_are_let_through(box_last, gold, answer):
    verdict = verify(MathVerifier(sandbox=False, box_last=box_last), rf"So $\boxed{{{answer}}}$.", gold)
    assert (verdict.kind, verdict.reward, verdict.reason) == (VerdictKind.PASS, 1.0, "match")


# (gold, what is in the box, reason)
WRONG = [
    # words beside the value
    *[("42", rf"42 \text{{ {said}}}", "hedged") for said in (
        "when even", "for odd", "wenn gerade", "oder dreizehn", "oder einundvierzig", "versus XLI", "rejected", "sometimes",
        "provided even", "instead", "whenever positive", "hypothetically", "given even", "in the even case", "prime",
        "gerade",
        "trece", "quatorze", "xli", "fortyone", "supposedly", "answer rejected", "for odd integers", "iff even",
    )],
    ("42", r"42 \mathrm{ iff even}", "hedged"), ("42", "42 when even", "hedged"),
    ("42", r"x = 42 \textbf{ versus XLI}", "hedged"),
    ("42", r"42.4 \approx 42 \text{ when even}", "hedged"), ("1,2", r"1 \text{ when even}, 2", "hedged"),
    ("(1,2]", r"(1 \text{ when even}, 2]", "hedged"), ("(1,2]", r"(1,2] \text{ sometimes}", "wrong_answer"),
    *[("x^2", rf"x^2 \text{{ {said}}}", "hedged") for said in (
        "or x cubed", "versus x cubed", "oder x hoch drei", "when even", "wenn gerade", "or so", "o y", "或 y", "million",
        "when {even}",
    )],
    (r"\sqrt{2}", r"\sqrt{2} \text{ or the root of three}", "hedged"), ("2x", r"y = 2x \mathrm{ wenn}", "hedged"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1 \text{ when even}\\2\end{pmatrix}", "hedged"),
    # other sides that say something
    *[("42", f"{side} = 42", "several_answers") for side in (
        "2x", "x-1", "x^2", "-x", "41x", "41+0x", r"x \cdot 0", "n+41", "f(x)+1", "x+x", "xx", r"x\pi", "xe", "|x|",
        "x(x+1)",
        r"\sqrt{x}", r"\frac{1}{x}", r"\frac{x}{2}", "x = 41", r"41 \text{ apples}", r"\text{forty one}",
        r"\text{when even}",
        r"\text{odd case}", r"\text{one of these}", r"f(n \text{ even})", "f(2k)", "x_{odd}", r"x_{\text{even}}",
        r"\text{XLI}",
        r"\text{oder dreizehn}", r"6 \cdot 7 \text{ when even}", r"6 \cdot 6", r"2x = 84 \Rightarrow x",
    )],
    ("42", r"41x = 42.4 \approx 42", "several_answers"), ("42", r"2x \approx 42", "several_answers"),
    (r"\sqrt{2}", r"x_{odd} = \sqrt{2}", "several_answers"),
    # inequalities that are other intervals
    ("(1,2]", "1<x<2", "wrong_answer"), ("(1,2]", r"1 \le x \le 2", "wrong_answer"),
    ("(1,2]", r"1 < x \le 3", "wrong_answer"),
    ("(1,2]", r"2 < x \le 1", "wrong_answer"), ("(1,2]", r"1 > x \ge 2", "wrong_answer"), ("(1,2]", "1<x>2", "wrong_answer"),
    ("[1,2]", r"1 \le 2x \le 2", "wrong_answer"), (r"(-\infty,2)", r"x \le 2", "wrong_answer"),
    ("(1,2,3)", "1<x<2,3", "not_a_number"), ("(1,2]", r"1 < x \le 2 \text{ when even}", "hedged"),
]  # fmt: skip


@pytest.mark.parametrize("box_last", [False, True])
@pytest.mark.parametrize(("gold", "answer", "reason"), WRONG)
def test_a_condition_or_a_second_answer_inside_fails_with_its_reason(box_last, gold, answer, reason):
    verdict = verify(MathVerifier(sandbox=False, box_last=box_last), rf"So $\boxed{{{answer}}}$.", gold)
    assert (verdict.kind, verdict.reward, verdict.reason) == (VerdictKind.FAIL, 0.0, reason)


@pytest.mark.parametrize("form", ["$@$", "The answer is $@$.", "#### $@$", r"\\fbox{@}", "Answer: \\[@\\]"])
def test_what_stands_inside_counts_in_dollars_as_in_a_box(verifier, form):
    inside = {r"42 \text{ oder dreizehn}": "hedged", "2x = 42": "several_answers", "m+n = 42": "match"}
    for answer, reason in inside.items():
        assert verify(verifier, form.replace("@", answer)).reason == reason


SCRAPS = [
    "f(",
    "a",
    "2",
    ")",
    " ",
    "+",
    "-",
    "|",
    "_{",
    "}",
    "^",
    "\\text{",
    "=",
    ",",
    "\\angle",
    "[",
    "P(",
    "\\frac{",
    "x<",
    "\\le ",
    "'",
    "AB",
    ":",
]


@pytest.mark.parametrize("scrap", SCRAPS)
def test_a_long_hostile_side_is_read_in_linear_time(scrap):
    """As long as an answer may be, and each way to begin one: a pattern that goes back over it takes minutes."""
    for start in ("", "f(", "P(", "a", "|A", "\\text{a", "a<"):
        long = (start + scrap * LONGEST_ANSWER)[:LONGEST_ANSWER]
        began = time.process_time()
        is_name(long)
        as_interval(long)
        limits_quantity("42", long)
        limits_expression("42", long)
        assert time.process_time() - began < 0.5
