"""What may stand round an answer: the math verifier lets no second answer and no condition through, and little else."""

import contextlib
import doctest
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.verifiers import Sample, VerdictKind, math_after
from headrace.verifiers.math import MathVerifier
from headrace.verifiers.math_answer import AnswerFault, find_answer


@pytest.fixture(scope="module")
def verifier():
    return MathVerifier(sandbox=False)


def verify(verifier, completion, answer="42"):
    return verifier.verify(Sample(completion, {"answer": answer}))


# Each offers 41 beside 42, or 42 under a condition.
REFUSED = [
    # another answer after the box
    r"\boxed{42}. Alternatively, 41.", r"\boxed{42}. Correction: 43.", r"\boxed{42}. Otherwise: 41.",
    "\\boxed{42}\n\nOr 41.", "\\boxed{42}\n\nOr forty-one.", r"\boxed{42}; 41.", r"\boxed{42}, 41", r"\boxed{42} / 41",
    r"\boxed{42} (41)", r"\boxed{42} but 41 is also possible.", r"\boxed{42}. Actually, 41.", r"\boxed{42} and 41",
    r"\boxed{42}. Actually, it is $41$.", r"\boxed{42}. I mean 41.", r"\boxed{42}. n = 41.", r"\boxed{42}. Forty-one.",
    r"\boxed{42}. Second answer: 41.", r"\boxed{42}\text{ or }41", "\\boxed{42}\n- 41", "\\boxed{42}\n1. 41",
    r"\boxed{42}. Let me know if you prefer 41.", r"\boxed{42}. It is ４１.", r"\boxed{42}. Instead: $\frac{1}{2}$.",
    r"\boxed{42}. It is $\pi$.", r"\boxed{42}, step 41 or 41", r"\boxed{42}. It is two.", r"\boxed{42} 或 四十一",
    # what goes on behind the box, or only looks like a check
    r"\boxed{42} + 1", r"\boxed{42}^2", r"\boxed{42} = 41", r"\boxed{42} \approx 41", r"\boxed{42} \pm 1",
    r"$x = -\boxed{42}$", r"1\boxed{42}", r"\boxed{42}. Check: 41 = 41", r"\boxed{42}. Check: 41", r"\boxed{42}. 41 = 42",
    # a condition after the answer
    r"\boxed{42} when n is even and 41 when n is odd.", r"\boxed{42} for even n; 41 for odd n.",
    r"\boxed{42} for $n$ even.", r"\boxed{42} for n.", r"\boxed{42} ($n$ even)", r"\boxed{42} whenever n is even.",
    r"\boxed{42} where n is even.", r"\boxed{42}. For odd n: 41.", r"\boxed{42} when n is even.",
    r"\boxed{42} \text{ (n even)}", r"\boxed{42} in case x > 0", "\\boxed{42}\n\n$n$ odd: $41$",
    "\\boxed{42}.\n\nThis is the value if n is even.", r"\boxed{42}. Wait, that's wrong.",
    r"\boxed{42}\ (n\text{ even})", r"\boxed{42} (even n)", r"\boxed{42} on even days", r"\boxed{42} in the even case.",
    r"\boxed{42}. 41 because I said so", r"\boxed{42}\quad\text{for even }n", r"\boxed{42}\text{ when }n\text{ is even}",
    # a condition or a choice before it
    r"Given that n is even, \boxed{42}", r"Even n gives \boxed{42}", r"In the even case, \boxed{42}",
    r"f(n)=\begin{cases} 41 & n \text{ odd} \\ \boxed{42} & n \text{ even}\end{cases}",
    "If n is even: 41.\n\nElse:\n\n\\boxed{42}", r"For odd n, \boxed{42}.", r"For n odd: \boxed{42}", r"Odd n: \boxed{42}",
    r"Case 1: \boxed{42}", r"Case 2: 41. Case 1: \boxed{42}", r"When n is even, \boxed{42}.",
    r"Any of these: 41, \boxed{42}", r"For $n=3$ it is 41, for $n=4$ it is \boxed{42}.",
    r"When n is even, \boxed{1}. \boxed{42}",
    # without a box
    "The answer is 42; for n odd it is 41.", "The answer is 42. Alternatively 41.", "n even: 41. n odd: 42.",
    "The answer is one of the following: 42", "When n is even, the answer is 42.", "The answer is among: 42",
    "The answer is 42 or so.", "#### 42 or 41", "#### 42\n41", "#### 42\n\n#### 41",
    "The answer for $n=3$ is 41 and for $n=4$ is 42.", "The answer for $n=3$ is 42 and for $n=4$ is 41.",
    # other languages
    r"Wenn x gerade ist, \boxed{42}, sonst 41.", r"Si x es par, \boxed{42}", r"Si x es par, \boxed{42}.",
    "Falls n gerade ist: 42.", "Si n est pair, la réponse est 42.", r"Sinon: \boxed{42}", r"\boxed{42} si n est pair.",
    r"\boxed{42} se n è pari.", r"\boxed{42}, sinon 41", r"如果n是偶数，\boxed{42}，否则41", r"\boxed{42}，或41",
    r"\boxed{42} oder 41", r"Иначе: \boxed{42}", r"\boxed{42} если n чётно",
]  # fmt: skip


@pytest.mark.parametrize("completion", REFUSED)
def test_a_second_answer_or_a_condition_is_refused(verifier, completion):
    verdict = verify(verifier, completion)
    assert (verdict.kind, verdict.reward) == (VerdictKind.FAIL, 0.0)
    assert verdict.reason in ("hedged", "several_answers")


HARMLESS = [
    # checks
    r"\boxed{42}. Check: 40 + 2 = 42.", r"\boxed{42}. Check: $40 + 2 = 42$.", "\\boxed{42}\n\nCheck: 2 * 42 + 1 = 85.",
    r"\boxed{42}. We used that $6 \cdot 7 = 42$.", r"\boxed{42} because 6 hens lay 7 eggs each.",
    "The answer is 42 because 6 * 7 = 42.", r"\boxed{42} \approx 42.0",
    # said again
    r"\boxed{42}, so the answer is 42.", r"\boxed{42}. Therefore, $x = 42$ is the solution.",
    "\\boxed{42}.\n\nThe answer is forty-two.", r"\boxed{42} for a total of 42 apples.", r"\boxed{42}, that is 42.0",
    # closing words
    r"\boxed{42}. Thank you!", r"\boxed{42}. Thanks for your question.", "\\boxed{42}\n\nI hope this helps!",
    "\\boxed{42}\n\nLet me know if you have any questions or need more help.", r"\boxed{42}, which is the final answer.",
    "$$\\boxed{42}$$\n\nThis completes the proof.", r"\boxed{42} is the largest value of $n$.",
    r"\boxed{42}, as required. $\blacksquare$", "Thus, the answer is $\\boxed{42}$.\n\\end{align*}",
    # units
    r"\boxed{42} apples.", r"\boxed{42} cm", r"\boxed{42}%", r"\boxed{42} \text{ cm}^2", r"\boxed{42}\text{ cm}^{2}.",
    r"$\boxed{42}^\circ$",
    # numbers that are no values
    r"\boxed{42} as shown in step 3.", r"\boxed{42}, by equation (2).", r"\boxed{42}. Solved on 3 May 2024.",
    r"\boxed{42}. Solved on May 3, 2024.", r"\boxed{42} (2024-05-03)", "\\boxed{42}\n\n1. Done\n2. Checked",
    # before the answer: how it was found, and what was asked for
    r"The remainder when $N$ is divided by 100 is \boxed{42}.", r"When we add these we get \boxed{42}.",
    r"Solving for $x$ gives \boxed{42}.", r"For all $n$ the value is \boxed{42}.",
    r"For positive integers $a$ and $b$, the sum is \boxed{42}.", "The number of eggs is 42.",
    r"Equality holds when $x = y$, so the minimum is \boxed{42}.", "Final Answer: The largest $n$ is 42.",
    r"The value of the expression when $x = 3$ is \boxed{42}.", r"Since n is even, we find \boxed{42}.",
    "The answer for $n=3$ is 42.", "The answer for n = 3 is 42.", "Therefore $n$ must be 42.",
    "the largest $n$ is $42$", "So $m+n$ is 42.", r"The value of $f(3)$ is $42$.", "The answer is 42 cm",
]  # fmt: skip


@pytest.mark.parametrize("completion", HARMLESS)
def test_harmless_words_round_an_answer_are_let_through(verifier, completion):
    assert verify(verifier, completion).reason == "match"


# (gold, completion, whether it passes): answers that are no numbers
OTHER_KINDS = [
    (r"\sqrt{2}", r"$\boxed{\sqrt{2}} \approx 1.41$", True),
    (r"\sqrt{2}", r"\boxed{\sqrt{2}}. So $x = \sqrt{2}$.", True),
    (r"\sqrt{2}", r"\boxed{\sqrt{2}}, \sqrt{3}", False),
    ("x+1", r"\boxed{x+1}, where $x$ is the width.", True),
    ("x+1", r"\boxed{x+1}; $x-1$", False),
    ("x+1", r"\boxed{x+1} for odd $x$", False),
    ("1,2", r"\boxed{1, 2}. Check: $1 + 2 = 3$.", True),
    ("1,2", r"\boxed{1, 2}, 3", False),
    ("B", r"\boxed{B}. This choice is right.", True),
    ("B", r"\boxed{B}. (C)", False),
    ("B", r"\boxed{B}, C", False),
    ("yes", r"\boxed{yes}. Done.", True),
    ("yes", r"\boxed{yes}. No.", False),
    ("Evelyn", r"\boxed{Evelyn}, who ran 5 miles.", True),
    ("Evelyn", r"\boxed{Evelyn}. Alternatively, Bob.", False),
]


@pytest.mark.parametrize(("gold", "completion", "right"), OTHER_KINDS)
def test_the_rule_holds_for_expressions_lists_and_words(verifier, gold, completion, right):
    assert (verify(verifier, completion, gold).kind is VerdictKind.PASS) == right


ANSWERS = ["\\boxed{@}", "The answer is @", "**Answer:** @", "#### @", "So $x = \\boxed{@}$", "It is $\\fbox{@}$"]
OPENINGS = [
    "If $~$ is even, then ", "For odd ~, ", "Alternatively, ", "Otherwise:\n\n", "Else, ", "Either that or ",
    "For even $~$: ",
    "When ~ is odd, ", "Case 2: ", "Wenn ~ gerade ist, ", "Si ~ est pair, ", "Si ~ es impar, ", "Se $~$ è pari, ", "Sonst: ",
    "Maybe ", "Assuming ~ is prime, ", "Unless ~ is zero, ", "In that case ",
]  # fmt: skip
ENDINGS = [
    ". Alternatively #.", ". Correction: #.", " or #.", " and #.", ", #", "; #", ". Or: $#$", "\n\n#", " if ~ is even.",
    " when $~$ is odd.", " for even ~; # for odd ~.", " for $~$ odd.", ", otherwise #.", " (or #).", " but maybe #.",
    ". Actually #.", ". Instead, $#$.", ". For ~ odd: #.", ", sonst #.", ", sinon #.", " o #.", ". No, $~ = #$.",
    ". Also #.", "\n- #", "\n\n2. #", " - #", ". ~ odd: #", "，否则#", " whenever ~ > 0.", ". The answer is #.",
    "\n\nThank you. Or #.", " as long as ~ is prime.", " = #", "\n\nElse: #", ". $#$", " vs. #", " unless ~ is odd.",
]  # fmt: skip
NUMBERS = st.integers(-(10**6), 10**6)


def filled(template, answer, other, symbol):
    return template.replace("@", str(answer)).replace("#", str(other)).replace("~", symbol)


@given(
    st.sampled_from(ANSWERS).flatmap(
        lambda answer: st.one_of(
            st.tuples(st.sampled_from(OPENINGS), st.just(answer), st.sampled_from([".", "", *ENDINGS])),
            st.tuples(st.sampled_from(["", "We add. ", "So "]), st.just(answer), st.sampled_from(ENDINGS)),
        )
    ),
    st.tuples(NUMBERS, NUMBERS).filter(lambda both: both[0] != both[1]),
    st.sampled_from("nxkm"),
)
@settings(max_examples=500, deadline=None)
def test_no_mixture_of_conditions_and_alternatives_passes(parts, numbers, symbol):
    verifier = MathVerifier(sandbox=False)
    opening, answer, ending = parts
    answer = answer.replace("@", str(numbers[0]))  # its own "#" stays
    completion = filled(opening, *numbers, symbol) + answer + filled(ending, *numbers, symbol)
    assert verify(verifier, completion, str(numbers[0])).kind is VerdictKind.FAIL


CLOSINGS = [
    ".", "", " apples.", ". Thank you!", "\n\nI hope this helps.", ". Check: 0 + @ = @.", ", as required.", " cm",
    " (see step 3).", ". Solved on 3 May 2024.", " for a total of @ apples.", ". So $~ = @$.",
]  # fmt: skip


@given(st.sampled_from(ANSWERS), st.sampled_from(CLOSINGS), NUMBERS, st.sampled_from("nxkm"))
@settings(max_examples=300, deadline=None)
def test_no_harmless_closing_costs_the_answer(form, closing, number, symbol):
    completion = form.replace("@", str(number)) + filled(closing, number, number, symbol)
    assert verify(MathVerifier(sandbox=False), completion, str(number)).reason == "match"


LONG = [
    "42 ", " ", "\n ", r"\[", r"\(", "$", "$$", "$x$ is ", "if ", "for all ", "for $n=3$ ", "where n ", "not ", "1,234,",
    "1/", "42=", "{", "$x", r"\boxed{42} ", "answer ", "answer is 42. ", ". ", "May 3 ", r"\frac{1}", r"\text{", "-", "\\",
    "one of ", "x is ", "1. ", "because 4 ", "a = ",
]  # fmt: skip


@pytest.mark.parametrize("unit", LONG)
def test_a_long_hostile_text_is_read_in_linear_time(unit):
    """Where a pattern goes back over the text this takes minutes. Processor time: the machine may be busy."""
    long = (unit * 100_000)[:100_000]
    for text in (rf"\boxed{{42}}{long}", rf"{long}\boxed{{42}}", f"The answer is 42 {long}", f"{long} 42x"):
        start = time.process_time()
        with contextlib.suppress(AnswerFault):
            find_answer(text, require_box=False, thinking_end="</think>")
        assert time.process_time() - start < 10


def test_boxes_in_boxes_without_end_are_no_answer(verifier):
    deep = r"\boxed{" * 5000 + "42" + "}" * 5000
    assert verify(verifier, deep).reason == "several_answers"


def test_a_base_that_gold_lacks_is_another_number(verifier):
    assert verify(verifier, r"\boxed{42_{8}}").reason == "wrong_answer"
    assert verify(verifier, r"\boxed{42_8}").reason == "wrong_answer"
    assert verify(verifier, r"\boxed{42_{10}}").reason == "match"
    assert verify(verifier, r"\boxed{52}", "52_8").reason == "match"
    assert verify(verifier, r"\boxed{52_{8}}", "52_8").reason == "match"


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        (r"So $x = \boxed{42}$.", "match"),
        ("\\begin{align*}\n\\boxed{42}.\n\\end{align*}\n", "match"),
        (r"\boxed{42}. Thanks", "text_after"),
        (r"\boxed{42} cm", "text_after"),
        (r"\boxed{42}. 41", "text_after"),
        (r"If $n$ is even, \boxed{42}.", "hedged"),
        (r"So \boxed{42 \text{ when even}}.", "hedged"),
        (r"So $\boxed{42 \text{ oder dreizehn}}$", "hedged"),
        (r"So \boxed{\text{odd case} = 42}", "several_answers"),
        (r"So \boxed{42 \text{ apples}}.", "match"),
        ("The answer is 42.", "no_answer"),
    ],
)
def test_the_strict_way_wants_the_box_at_the_end(completion, reason):
    assert verify(MathVerifier(box_last=True, sandbox=False), completion).reason == reason


def test_the_examples_in_the_docstrings_run():
    result = doctest.testmod(math_after)
    assert (result.attempted > 0, result.failed) == (True, 0)
