"""The math verifier: what is the answer, what equals gold, what never passes, and what hostile input costs."""

import doctest
import importlib
import pickle
import subprocess
import sys
import textwrap
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.verifiers import Sample, UserError, VerdictKind
from headrace.verifiers.errors import WrongOption
from headrace.verifiers.math import MathVerifier
from headrace.verifiers.math_answer import AnswerFault, find_answer
from headrace.verifiers.math_form import clean
from headrace.verifiers.math_quantity import read_list, read_quantity


@pytest.fixture(scope="module")
def verifier():
    verifier = MathVerifier()
    verifier.start()
    yield verifier
    verifier.close()


@pytest.fixture(scope="module")
def lenient():
    """Takes an expression for a number, so that all of math-verify can be reached, bombs included."""
    verifier = MathVerifier(evaluated=False, timeout_seconds=0.5)
    yield verifier
    verifier.close()


def boxed(text):
    return f"Adding it all up gives $\\boxed{{{text}}}$."


def verify(verifier, completion, answer):
    return verifier.verify(Sample(completion, {"answer": answer}))


# (gold, what is in the box): forms of the right answer
RIGHT = [
    # numbers
    ("42", "42"), ("42", "42.0"), ("42", "042"), ("42", r"\text{42}"), ("42", r"\mathbf{42}"), ("42", "(42)"),
    ("42", r"\{42\}"), ("42", "x = 42"), ("42", "f(2)=42"), ("42", "a_1 = 42"), ("42", r"\text{Area} = 42"),
    ("42", "41+1 = 42"), ("42", "42."), ("-3", "−3"), ("1,234", "1234"), ("1234", "1,234"),
    ("1234567", r"1{,}234{,}567"), ("1234", r"1\,234"), ("1234", r"1,\!234"), ("42", r"\$42"), ("$42$", "42"),
    (42, "42"), (0.5, r"\frac{1}{2}"), ("#### 42", "42"), (r"the sum is \boxed{42}", "42"), ("x=42", "42"),
    ("+5", "5"),
    # fractions, decimals, powers of ten
    (r"\frac{1}{2}", "0.5"), (r"\frac12", "1/2"), (r"\dfrac{1}{2}", r"\tfrac{2}{4}"), (".5", "0.5"), ("0.50", "0.5"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"), (r"\frac{1}{3}", "0.333333"), (r"3\frac{1}{2}", "3.5"),
    ("3 1/2", r"\frac{7}{2}"), ("1500", r"1.5 \times 10^3"), ("1500", r"1.5 \cdot 10^{3}"), ("0.0015", "1.5e-3"),
    ("100000", "10^5"), (r"10^{-2}", "0.01"),
    # percent, units, money
    ("50%", "50"), (r"50\%", "0.5"), ("0.5", r"50\%"), ("50", r"50\%"), ("12", "12 percent"),
    ("42", r"42\text{ km}"), (r"42\text{ km}", "42"), (r"42\text{ cm}^2", r"42\,\mathrm{cm}^{2}"),
    (r"42\text{ square centimeters}", r"42\text{ cm}^2"), (r"5 \text{ miles per hour}", "5 mi/h"),
    ("90", r"90^\circ"), (r"90^{\circ}", r"90 \text{ degrees}"), ("3000000", r"3\text{ million}"), ("6", "6 apples"),
    ("7", r"7\text{ m/s}"), (r"42\text{ inches}", "42 in"), ("5", r"\text{5 dollars}"),
    # lists, sets, points
    (r"\{1,2\}", r"\{2,1\}"), ("1,2", "2, 1"), ("1,2", r"1 \text{ and } 2"), (r"1\text{ or }2", "x=1, x=2"),
    ("1,2", r"\{1, 2\}"), ("(1,2)", "(1, 2)"), ("(1,2)", r"\left(1, 2\right)"), ("(1,2)", "1,2"),
    (r"\left(3, \frac{\pi}{2}\right)", r"(3, \pi/2)"), ("3,-3", r"\pm 3"), (r"\pm 3", r"x = \pm 3"),
    (r"\{0.5\}", r"\frac12"), ("x=2, y=1", "(2,1)"), ("x=2, y=1", "y=1, x=2"), (r"\emptyset", r"\{\}"),
    # intervals and inequalities
    ("[1,2)", r"\left[1, 2\right)"), (r"(-\infty, 2]", r"x \in (-\infty, 2]"), ("x<2", r"(-\infty,2)"),
    (r"x\ge 2", r"[2,\infty)"), (r"(-\infty,0)\cup(1,\infty)", r"(1,\infty)\cup(-\infty,0)"), ("1<x<2", "(1,2)"),
    (r"x \geq 2", r"2 \leq x"),
    # expressions
    ("x+y", "y+x"), ("2x+1", "y=2x+1"), ("y=2x+1", "2x+1"), ("x^2-1", "(x-1)(x+1)"), (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"2\pi", r"2 \cdot \pi"), (r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"), ("1+i", "i+1"), (r"\infty", r"\infty"), (r"\pi", "3.141593"),
    (r"e^{2x}", r"(e^x)^2"), (r"2^{10}", "1024"), (r"5!", "120"), (r"\binom{5}{2}", "10"), ("y=2x+1", "2y=4x+2"),
    (r"\sqrt{2}", r"\sqrt{2} \approx 1.41"), ("42.4", r"42.4 \approx 42"), ("42", r"42.4 \approx 42"),
    # matrices
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1 & 2\\ 3 & 4\end{bmatrix}"),
    (r"\begin{pmatrix}1/2\\0\end{pmatrix}", r"\begin{pmatrix}0.5\\0\end{pmatrix}"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"A = \begin{bmatrix}1&2\end{bmatrix}"),
    (r"\begin{pmatrix}x\\1\end{pmatrix}", r"\begin{bmatrix}x\\1\end{bmatrix}"),
    (r"\begin{pmatrix}6&8\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}+\begin{pmatrix}5&6\end{pmatrix}"),
    # words, choices, other bases
    (r"\text{Evelyn}", "Evelyn"), ("Evelyn", r"\text{evelyn}"), ("yes", r"\textbf{Yes}"), ("A", "(A)"),
    (r"\text{(C)}", "C"), ("C", r"\text{(C) } 42"), ("B", r"\textbf{(B)}"), (r"\text{no solution}", "No solution"),
    ("1010_2", r"1010_{2}"), ("1010_2", "1010"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_every_form_of_the_right_answer_passes(verifier, gold, answer):
    verdict = verify(verifier, boxed(answer), gold)
    assert (verdict.kind, verdict.reward, verdict.reason) == (VerdictKind.PASS, 1.0, "match")


# (gold, what is in the box, reason)
WRONG = [
    ("42", "41", "wrong_answer"), ("42", "-42", "wrong_answer"), ("42", "42.1", "wrong_answer"),
    ("42", "4 2", "not_a_number"), ("42", "24", "wrong_answer"), (r"\frac{1}{3}", "0.33", "wrong_answer"),
    (r"\frac13", "0.333334", "wrong_answer"), ("0.0000001", "0", "wrong_answer"),
    ("0.0000001", "0.0000002", "wrong_answer"), ("1234", "1,23,4", "several_answers"),
    ("42", r"\frac{42}{0}", "not_a_number"), ("1000", "1", "wrong_answer"),
    ("42", r"42\text{ million}", "wrong_answer"),
    # several answers
    ("42", "41 = 42", "several_answers"), ("42", "41, 42", "several_answers"),
    ("42", r"41 \text{ or } 42", "several_answers"), ("42", "42 or 41", "several_answers"),
    ("42", r"\{41, 42\}", "several_answers"), ("42", "(41, 42)", "several_answers"),
    ("42", "[42, 42.5]", "several_answers"), ("42", r"x=41 \text{ or } x=42", "several_answers"),
    ("42", r"41 \lor 42", "several_answers"), ("42", r"41 \vee 42", "several_answers"),
    ("42", "41; 42", "several_answers"), ("42", r"\pm 42", "several_answers"),
    ("42", r"42 \approx 41", "several_answers"), ("42", r"x \in \{41, 42\}", "several_answers"),
    ("42", "42/41/43", "not_a_number"), ("42", r"41 \quad 42", "not_a_number"), ("42", r"41 \\ 42", "not_a_number"),
    ("42", r"42 \text{ (or 41)}", "not_a_number"), ("42", r"\text{41 or 42}", "not_a_number"),
    ("42", r"\text{either 41 or 42}", "hedged"), (r"\sqrt{2}", r"\sqrt{2}, \sqrt{3}", "several_answers"),
    ("2x", r"3x = 2x", "several_answers"), (r"\{1,2\}", r"\{1,2,3\}", "wrong_answer"),
    ("1,2", "1,2,3,4", "wrong_answer"), ("42", "42 forty one", "not_a_number"),
    ("42", r"42 \text{ (wrong)}", "not_a_number"), ("42", "--42", "not_a_number"), ("42", "42...", "not_a_number"),
    ("x+1", r"x+1 \approx x+2", "several_answers"), (r"\sqrt{2}", r"\sqrt{2} \approx 1.5", "several_answers"),
    # conditions and retractions
    ("42", r"42 \text{ if } x > 0", "hedged"), ("42", "42?", "hedged"), ("42", r"42 \ne 41", "hedged"),
    ("42", r"\text{not } 42", "hedged"), ("42", r"\text{maybe } 42", "hedged"), ("42", r"\phantom{41}42", "hedged"),
    ("2x", r"2x \text{ otherwise } 3x", "hedged"), ("42", r"\cancel{41} 42", "hedged"),
    (r"\text{Evelyn}", r"\text{Evelyn or Bob}", "wrong_answer"),
    # the question again
    ("5050", r"\sum_{i=1}^{100} i", "not_a_number"), ("42", "6*7", "not_a_number"), ("42", "41+1", "not_a_number"),
    ("1024", "2^{10}", "not_a_number"), ("4", r"\sqrt{16}", "not_a_number"), ("42", r"\max(41,42)", "not_a_number"),
    (r"\frac{\pi}{4}", r"\int_0^1 \frac{1}{1+x^2} dx", "unevaluated"),
    ("x^2", r"\frac{d}{dx} \frac{x^3}{3}", "unevaluated"), ("42", "42x", "not_a_number"),
    ("42", "42 x", "not_a_number"), ("42", r"42\pi", "not_a_number"), ("42", "42i", "not_a_number"),
    ("42", r"42\%\%", "not_a_number"), ("5", "5m", "not_a_number"),
    # units, bases
    (r"42\text{ m}", r"42\text{ km}", "wrong_unit"), (r"42\text{ cm}^2", r"42\text{ cm}^3", "wrong_unit"),
    (r"36\pi\text{ cm}^3", r"36\pi\text{ m}^3", "wrong_unit"),
    (r"\frac{\pi}{3}^\circ", r"\frac{\pi}{3}\text{ rad}", "wrong_unit"),
    (r"3\text{ cm}, 4\text{ cm}", r"3\text{ m}, 4\text{ m}", "wrong_unit"),
    (r"2\sqrt{3}\text{ cm}", r"2\sqrt{3}\text{ feet}", "wrong_unit"),
    (r"\$42", r"42\text{ euros}", "wrong_unit"), ("42_7", "42_8", "wrong_answer"),
    # lists and brackets
    ("(1,2)", "(2,1)", "wrong_answer"), ("(3,1)", "(5,2)", "wrong_answer"), ("[1,2]", "(1,2)", "wrong_answer"),
    ("(1,2)", r"\{2, 1\}", "wrong_answer"), ("1,2", "1,3", "wrong_answer"), ("1,2", "1", "wrong_answer"),
    ("x=2, y=1", "x=1, y=2", "wrong_answer"), ("x=2, y=1", "1, 2", "wrong_answer"),
    ("[1,2)", "[1,2]", "wrong_answer"), (r"(-\infty, 2)", r"(-\infty, 3)", "wrong_answer"),
    ("(a,1)", "(1,a)", "wrong_answer"),
    # expressions
    ("x^2=-1", "0=0", "wrong_answer"), ("x^2=-1", "1=2", "wrong_answer"), ("y=2x+1", "0=0", "wrong_answer"),
    ("2x", "2y", "wrong_answer"), (r"\sqrt{2}", "1.41", "wrong_answer"), ("x<2", "x>2", "wrong_answer"),
    (r"\infty", r"-\infty", "wrong_answer"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}", "wrong_answer"),
    (r"\begin{pmatrix}6&9\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}+\begin{pmatrix}5&6\end{pmatrix}", "wrong_answer"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", "wrong_answer"),
    (r"\begin{pmatrix}1&0\\0&1\end{pmatrix}", r"\begin{vmatrix}1&0\\0&1\end{vmatrix}", "wrong_answer"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\\3\end{pmatrix}", "wrong_answer"),
    (r"\infty", r"\frac{1}{0}", "wrong_answer"), ("x+1", "x+2", "wrong_answer"),
    ("0", r"\frac{0}{0}", "not_a_number"),
    # words
    (r"\text{Evelyn}", r"\text{nylevE}", "wrong_answer"), ("no", "on", "wrong_answer"),
    ("yes", r"\text{yes and no}", "wrong_answer"), ("A", "B", "wrong_answer"), ("A", "A or B", "wrong_answer"),
    ("A", "(A)(B)", "wrong_answer"), ("A", "ABCD", "wrong_answer"), ("A", r"\text{(A) or (B)}", "wrong_answer"),
    ("42", r"\text{forty-two}", "not_a_number"), ("42", r"\text{}", "not_a_number"), ("42", "", "no_answer"),
    ("42", " ", "no_answer"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer", "reason"), WRONG)
def test_what_is_not_the_answer_fails_with_its_reason(verifier, gold, answer, reason):
    verdict = verify(verifier, boxed(answer), gold)
    assert (verdict.kind, verdict.reward, verdict.reason) == (VerdictKind.FAIL, 0.0, reason)


# (completion, reason), against 42
COMPLETIONS = [
    (r"\boxed{42}", "match"),
    (r"First $\fbox{42}$.", "match"),
    (r"So \boxed{42}, that is \boxed{42}.", "match"),
    (r"So \boxed{42}, that is \boxed{42.0}.", "match"),
    (r"\boxed{\boxed{42}}", "match"),
    (r"\boxed{41} no wait \boxed{42}", "several_answers"),
    (r"\boxed{42} no wait \boxed{41}", "several_answers"),
    (r"If $x>0$ then \boxed{42}, otherwise \boxed{41}.", "hedged"),
    ("Case 1:\n\n\\boxed{41}\n\nCase 2:\n\n\\boxed{42}", "several_answers"),
    (r"If the expected answer is 42, then \boxed{42}.", "hedged"),
    (r"The result is \boxed{42} if x is positive.", "hedged"),
    (r"It is either \boxed{42} or something else.", "hedged"),
    (r"It is 41 or \boxed{42}.", "hedged"),
    (r"It is \boxed{42} or 41.", "hedged"),
    (r"It might be \boxed{42}.", "hedged"),
    (r"\boxed{42} unless I am mistaken.", "hedged"),
    (r"\boxed{42}. The answer is 41.", "several_answers"),
    (r"The equation holds if and only if $x=\boxed{42}$.", "match"),
    ("It works if x is even.\n\nSo \\boxed{42}.", "match"),
    (r"\boxed{42} or equivalently 42.0.", "match"),
    (r"\boxed{42", "unfinished_box"),
    (r"\boxed 42", "unfinished_box"),
    (r"\boxed{41}</think>So \boxed{42}.", "match"),
    (r"\boxed{42}</think>So \boxed{41}.", "wrong_answer"),
    (r"\boxed{42}</think>", "no_answer"),
    ("The answer is 42.", "match"),
    ("**Answer:** 42", "match"),
    ("Final Answer: $42$", "match"),
    ("The final answer is $x = 42$. I hope it is correct.", "match"),
    ("She sold 2 * 21 eggs.\n#### 42", "match"),
    ("Answer: \\[ 42 \\]", "match"),
    ("The answer is:\n\n42", "match"),
    ("42", "match"),
    ("So there are 6 * 7 = 42 eggs.", "match"),
    ("So there are 42 eggs", "match"),
    ("The answer is 41 or 42.", "several_answers"),
    ("The answer is 41, 42.", "several_answers"),
    ("The answer is 42, 41.", "several_answers"),
    ("The answer is 42 and 41.", "several_answers"),
    ("The answer is 41. The answer is 42.", "several_answers"),
    ("If x is even the answer is 42.", "hedged"),
    ("The answer is 42 if x is even.", "hedged"),
    ("The answer might be 42.", "hedged"),
    ("Maybe the answer is 42.", "hedged"),
    ("41 or 42", "several_answers"),
    ("It is one of 41, 42.", "several_answers"),
    ("40 41 42", "not_a_number"),
    ("I do not know.", "hedged"),
    ("", "no_answer"),
    ("   \n", "no_answer"),
    ("The answer is 41.", "wrong_answer"),
    ("Answer: $41$ or $42$", "several_answers"),
    ("Answer: 42? 41?", "hedged"),
    (r"Is it \boxed{42}?", "hedged"),
    (r"The answer is not \boxed{42}.", "hedged"),
    (r"It is false that the answer is \boxed{42}.", "hedged"),
    (r"\boxed{42} is not the answer.", "hedged"),
    (r"\boxed{42} is wrong.", "hedged"),
    ("The answer is not 42.", "hedged"),
    ("The answer isn't 42.", "hedged"),
    ("The answer is less than 42.", "hedged"),
    ("The answer is at most 42.", "hedged"),
    ("The answer is between 41 and 42.", "hedged"),
    ("\n".join(map(str, range(43))), "several_answers"),
    (", ".join(map(str, range(43))), "several_answers"),
    ("\n".join(f"- {number}" for number in range(43)), "several_answers"),
]


@pytest.mark.parametrize(("completion", "reason"), COMPLETIONS)
def test_one_unconditional_answer_is_taken_from_a_completion(verifier, completion, reason):
    verdict = verify(verifier, completion, "42")
    assert verdict.reason == reason
    assert verdict.kind is (VerdictKind.PASS if reason == "match" else VerdictKind.FAIL)


SOLUTIONS = [
    "Since $n$ is not divisible by 3, we have two cases.\n\nIn either case it is 2.\n\nThus the sum is $\\boxed{42}$.",
    "Let's see if $x = 41$ works: it does not. Next, $42 + 2 = 44$. The answer is $\\boxed{42}$.",
    "**Step 1.** 6 boxes of 7 eggs.\n\n**Step 2.** $6 \\cdot 7 = 42$\n\n**Answer:**\n\n$$\\boxed{42}$$\n\nAsk if in doubt.",
    "<think>Is it \\boxed{41}? Maybe, or 40. No.</think>\n\nThe total is $\\boxed{42\\text{ eggs}}$.",
    "Each of the 6 hens lays 7 eggs, which makes 6 * 7 = 42 eggs.\nThe answer is 42.",
    "We get\n\\[\n\\boxed{x = 42}.\n\\]\nThis can be checked by substitution.",
]


@pytest.mark.parametrize("completion", SOLUTIONS)
def test_a_solution_with_one_answer_passes(verifier, completion):
    assert verify(verifier, completion, "42").reason == "match"


def test_several_boxes_are_the_list_that_gold_is(verifier):
    assert verify(verifier, r"$x=\boxed{1}$ and $x=\boxed{2}$", "1,2").reason == "match"
    assert verify(verifier, r"\boxed{1}, \boxed{3}", "1,2").reason == "several_answers"
    assert verify(verifier, r"\boxed{1}, \boxed{2}, \boxed{3}", "1,2").reason == "several_answers"


def test_a_box_can_be_asked_for():
    verifier = MathVerifier(require_box=True, sandbox=False)
    assert verify(verifier, "The answer is 42.", "42").reason == "no_answer"
    assert verify(verifier, boxed("42"), "42").reason == "match"


def test_thinking_counts_where_no_mark_ends_it():
    verifier = MathVerifier(thinking_end=None, sandbox=False)
    assert verify(verifier, r"\boxed{41}</think>\boxed{42}", "42").reason == "several_answers"


def test_an_expression_may_be_taken_for_its_value(lenient):
    assert verify(lenient, boxed(r"\sum_{i=1}^{100} i"), "5050").reason == "match"
    assert verify(lenient, boxed("6*8"), "42").reason == "wrong_answer"
    assert verify(lenient, boxed("40+1=42"), "42").reason == "several_answers"


def test_units_may_be_ignored():
    verifier = MathVerifier(units=False, sandbox=False)
    assert verify(verifier, boxed(r"42\text{ km}"), r"42\text{ m}").reason == "match"


def test_the_row_field_has_the_name_that_is_asked_for():
    verifier = MathVerifier(answer_field="solution", sandbox=False)
    assert verifier.verify(Sample(boxed("42"), {"solution": "42"})).reason == "match"


# ---------------------------------------------------------------------------------------------- hostile input

BOMBS = [
    "9^{9^{9}}", "9**9**9", "999999999!", r"\binom{10^9}{5\cdot 10^8}", r"\sum_{i=1}^{10^{12}} i^i",
    "((((2^{99})^{99})^{99})^{99})^{99}", r"\int_0^1 \sin(\sin(\sin(\sin(x^{x^x})))) dx",
]  # fmt: skip
TANGLES = [
    "1" * 1900, "{" * 900+"1"+"}" * 900, "(" * 900+"1"+")" * 900, r"\sqrt{" * 250+"2"+"}" * 250,
    r"\frac{1}{1+" * 150+"1"+"}" * 150, "-" * 1500+"1", "1/" * 900+"1", r"\text{" * 300+"42"+"}" * 300, "," * 1500,
    "=" * 1500, r"\begin{pmatrix}"+"1&" * 400+r"1\end{pmatrix}", r"\lim_{x\to\infty} (1+1/x)^{x^{x^x}}",
    "+".join(f"x_{{{i}}}" for i in range(250)), "(x+1)^{100000}", r"\prod_{i=1}^{10^9} i",
]  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_ends_within_its_limit_as_a_failure(lenient, bomb):
    start = time.perf_counter()
    bad, good = lenient.verify_many([Sample(boxed(bomb), {"answer": "42"}), Sample(boxed("42"), {"answer": "42"})])
    assert bad.kind is VerdictKind.FAIL
    assert good.reason == "match"
    assert time.perf_counter() - start < 30  # half a second of processor time and a new process, on a busy machine


@pytest.mark.parametrize("tangle", TANGLES)
def test_a_tangle_never_reaches_the_algebra_where_a_number_is_wanted(verifier, tangle):
    bad = verify(verifier, boxed(tangle), "43")
    assert bad.kind is VerdictKind.FAIL
    assert bad.reason not in ("timeout", "memory", "crash")


def test_a_bomb_against_an_expression_ends_as_well(lenient):
    assert verify(lenient, boxed("9^{9^{9}}"), "x^2+1").reason == "timeout"


def test_a_long_answer_is_not_read(verifier):
    assert verify(verifier, boxed("x" * 3000), "42").reason == "too_long"


@given(st.text(st.characters(), max_size=200), st.sampled_from(["42", "1,2", "x+1", "yes", "(1,2]", r"\sqrt{2}"]))
@settings(max_examples=100, deadline=None)
def test_no_text_raises_and_none_earns_more_than_one(verifier, text, gold):
    for completion in (text, f"\\boxed{{{text}}}", f"The answer is {text}"):
        verdict = verify(verifier, completion, gold)
        assert verdict.kind in (VerdictKind.PASS, VerdictKind.FAIL)
        assert verdict.reward == float(verdict.kind is VerdictKind.PASS)


FRAGMENTS = [
    "42", "41", ",", " or ", "=", r"\text{", "}", "{", r"\frac", "^", "_", "(", ")", "[", r"\{", "x", "+", "-", "/",
    r"\pm", r"\infty", r"\boxed{", "$", "%", ".", r"\ ", "answer is ",
]  # fmt: skip


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join))
@settings(max_examples=120, deadline=None)
def test_scraps_of_formulas_never_pass_without_gold_and_never_raise(verifier, text):
    verdict = verify(verifier, boxed(text), "43")
    assert verdict.kind is VerdictKind.FAIL


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6))
@settings(max_examples=50, deadline=None)
def test_two_numbers_match_exactly_when_they_are_equal(top, bottom):
    verifier = MathVerifier(sandbox=False)
    gold = f"\\frac{{{top}}}{{{bottom}}}"
    assert verify(verifier, boxed(f"{3 * top}/{3 * bottom}"), gold).reason == "match"
    assert verify(verifier, boxed(f"\\frac{{{top + 1}}}{{{bottom}}}"), gold).reason == "wrong_answer"
    assert verify(verifier, boxed(f"{top}/{bottom}, {top + 1}/{bottom}"), gold).kind is VerdictKind.FAIL


GOLDS = [clean(gold) for gold, _ in RIGHT if isinstance(gold, str) and "#" not in gold and "boxed" not in gold]


@given(st.sampled_from(GOLDS), st.sampled_from(["41", "x", r"\text{Bob}", "(7,8)"]))
@settings(max_examples=50, deadline=None)
def test_gold_beside_another_answer_never_passes(verifier, gold, other):
    forms = (
        rf"{gold} \text{{ or }} {other}",
        rf"{other} \text{{ or }} {gold}",
        f"{other}; {gold}",
        f"{other} = {gold}?",
    )
    for text in forms:
        assert verify(verifier, boxed(text), gold).kind is VerdictKind.FAIL


# --------------------------------------------------------------------------------------------- rows and options


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({}, "`answer` is missing"),
        ({"answer": None}, "`answer` is missing"),
        ({"answer": ""}, "`answer` is empty"),
        ({"answer": True}, "is bool"),
        ({"answer": [1]}, "is list"),
        ({"answer": r"\boxed{4"}, "box without its end"),
        ({"answer": "$ $"}, "holds no answer"),
        ({"answer": "x" * 3000}, "3000 characters"),
    ],
)
def test_a_bad_row_is_named_and_never_scored(verifier, row, complaint):
    assert complaint in verifier.check_row(row)
    verdict = verifier.verify(Sample(boxed("42"), row))
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "bad_row")


def test_gold_that_cannot_be_checked_against_is_found_before_training(lenient):
    assert "(timeout)" in lenient.check_row({"answer": "x+9^{9^{9}}"})
    assert lenient.check_row({"answer": r"\frac{\pi}{4}"}) is None
    assert lenient.check_row({"answer": r"\text{Evelyn}"}) is None


@pytest.mark.parametrize(
    "options", [{"require_bx": True}, {"timeout_seconds": 0}, {"memory_bytes": 1}, {"units": "some"}]
)
def test_a_wrong_option_is_refused_by_name(options):
    with pytest.raises(WrongOption, match=f"`{next(iter(options))}` of verifier `math`"):
        MathVerifier(**options)


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UserError, match=r"pip install 'headrace\[math\]'"):
        MathVerifier()


def test_it_can_be_shipped():
    verifier = pickle.loads(pickle.dumps(MathVerifier(require_box=True, sandbox=False)))
    assert verifier.options.require_box
    assert verify(verifier, boxed("42"), "42").reason == "match"


def test_a_confined_check_misses_no_module(verifier):
    """Each expression with limits and without: a module that is loaded too late would make a difference."""
    open_air = MathVerifier(sandbox=False)
    for gold, answer in [*RIGHT, *[(gold, answer) for gold, answer, _ in WRONG]]:
        assert verify(verifier, boxed(answer), gold).reason == verify(open_air, boxed(answer), gold).reason


# ------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("42 km", "42", "km"),
        ("5 m", None, ""),
        (r"5\text{ m}", "5", "m"),
        ("1/2", "1/2", ""),
        ("3 million", "3000000", ""),
        ("42 mod 7", None, ""),
        ("1,23", None, ""),
        ("２", None, ""),
    ],
)
def test_a_quantity_is_a_number_and_its_unit(text, value, unit):
    quantity = read_quantity(clean(text))
    assert (None if quantity is None else str(quantity.value)) == value
    assert quantity is None or quantity.unit == unit


@pytest.mark.parametrize(
    "module", ["math_answer", "math_form", "math_quantity", "math_inside", "math_names", "math_interval", "math_marks"]
)
def test_the_examples_in_the_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(f"headrace.verifiers.{module}"))
    assert (result.attempted > 0, result.failed) == (True, 0)


def test_a_module_that_is_missing_in_the_box_is_an_error_and_no_wrong_answer():
    script = textwrap.dedent("""
        from headrace.verifiers import Sample, math, scored

        class Forgetful:
            def __init__(self, options):
                pass

            def verify(self, sample):
                try:
                    import nowhere_to_be_found
                except ImportError:
                    return scored(0.0, "wrong_answer")

        math.MathCheck = Forgetful
        try:
            math.load_check({})(Sample("", {}))
        except ImportError as error:
            print(error)
    """)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "nowhere_to_be_found" in run.stdout


def test_a_list_is_split_outside_its_brackets():
    assert read_list("(1,2), (3,4)").elements == ("(1,2)", "(3,4)")
    assert read_list(r"\frac{1}{2}") is None


def test_the_last_box_is_preferred_to_words():
    assert find_answer(r"The answer is 7, so \boxed{42}", require_box=False, thinking_end=None).values == ("42",)
    with pytest.raises(AnswerFault):
        find_answer("nothing", require_box=True, thinking_end=None)


@pytest.mark.parametrize(
    ("gold", "given"),
    [
        (r"\pi", r"|\infty|"),
        (r"\frac{\pi}{4}", r"|\infty^{\pi}|"),
        (r"\{\sqrt2,-\sqrt2\}", r"|\infty^{\pi}|"),
        (r"\sqrt{2}", r"|\ln 0|"),
        ("e^{-40}", "e^{-50}"),
        (r"\frac{R}{r}", r"\frac{r}{R}"),
        (r"\pi(R^2-r^2)", "0"),
        (r"\binom{N}{n}", "1"),
        ("f'(x)", "f(x)"),
        ("A^T", "A"),
        ("x^T A x", "xAx"),
        (r"f^{-1}(x)", r"\frac{1}{f(x)}"),
        (r"f^{(3)}(x)", "f^3(x)"),
        (r"\{x\}+1", "x+1"),
        ("(a,b)", r"\{a,b\}"),
        ("(a,b)", "b,a"),
        (r"x<1 \text{ or } x>3", r"x<1 \text{ and } x>3"),
        (r"x<1 \lor x>3", r"x<1 \land x>3"),
        ("y'=2x", "y=2x"),
        ("y''+2y'=0", "y'+2y''=0"),
        ("(fg)'", "fg"),
        (r"\int e^{x^2} dx", "7"),
    ],
)
def test_what_the_library_takes_for_equal_and_is_not_fails(verifier, gold, given):
    assert verifier.check_row({"answer": gold}) is None
    assert verifier.verify(Sample(rf"\boxed{{{given}}}", {"answer": gold})).kind is VerdictKind.FAIL


@pytest.mark.parametrize(
    ("gold", "given"),
    [
        (r"\infty", r"+\infty"),
        ("y'=2x", "2x=y'"),
        ("f'(x)+1", r"1+f^{\prime}(x)"),
        ("2R-r", "-r+2R"),
        ("A^T+B", r"B+A^{\top}"),
        ("2x^T y+1", "1+2x^Ty"),
        (r"1+f^{-1}(x)", r"f^{-1}(x)+1"),
        (r"f^{(2)}(x)+1", "1+f''(x)"),
        (r"f^{-1}(2x)", r"f^{-1}(x+x)"),
        (r"\sin^{-1}(x)", r"\arcsin x"),
        ("(a,b)", "a,b"),
        ("(a,2b)", "(a, b+b)"),
        (r"\{a,b\}", "b,a"),
        (r"x<1 \text{ or } x>3", r"x>3 \text{ or } x<1"),
        (r"x=1 \text{ or } x=3", r"x=1 \text{ and } x=3"),
    ],
)
def test_what_the_guards_look_at_still_passes(verifier, gold, given):
    assert verifier.verify(Sample(rf"\boxed{{{given}}}", {"answer": gold})).kind is VerdictKind.PASS
