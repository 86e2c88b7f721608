"""The verifier of code: what is a program in a completion, what counts as right, and that mutants of right code do not pass."""

# ruff: noqa: E501 (programs and values by the row)
from __future__ import annotations

import ast
import math
import pickle
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.verifiers.code import CodeOptions, CodeVerifier, extract_code, same_value
from headrace.verifiers.errors import UserError, WrongOption
from headrace.verifiers.records import Sample, Verdict, VerdictKind
from headrace.verifiers.sandbox.plan import Limits
from headrace.verifiers.sandbox.probe import probe
from headrace.verifiers.sandbox.run import STARVED


@pytest.fixture(scope="module")
def verifier():
    verifier = CodeVerifier(wall_seconds=5.0, cpu_seconds=1)
    yield verifier
    verifier.close()


def judge(verifier: CodeVerifier, completion: str, **row: Any) -> Verdict:
    """As the pool does: again, where other work of this machine left the run no processor."""
    verdict = verifier.verify(Sample(completion, row))
    attempts = 1
    while verdict.reason == STARVED and attempts < 3:
        verdict = verifier.verify(Sample(completion, row))
        attempts += 1
    return verdict


# Written for this test in the style of such data sets: a prompt that a completion continues, and a test of the result.
TASKS = {
    "below_zero": (
        'from typing import List\n\n\ndef below_zero(changes: List[int]) -> bool:\n    """ Whether a balance that starts at 0 is '
        'ever negative.\n    >>> below_zero([1, -2])\n    True\n    """\n',
        "    balance = 0\n    for change in changes:\n        balance += change\n        if balance < 0:\n            return True\n"
        "    return False\n",
        "def check(candidate):\n    assert candidate([]) == False\n    assert candidate([1, 2, -3]) == False\n"
        "    assert candidate([1, -2, 9]) == True\n    assert candidate([0, 0, -1]) == True\n    assert candidate([5, -5, 1]) == False\n",
    ),
    "middle": (
        'def middle(numbers):\n    """ The median. """\n',
        "    ordered = sorted(numbers)\n    half = len(ordered) // 2\n    if len(ordered) % 2 == 1:\n        return ordered[half]\n"
        "    return (ordered[half - 1] + ordered[half]) / 2\n",
        "def check(candidate):\n    assert candidate([3, 1, 2]) == 2\n    assert candidate([7]) == 7\n    assert candidate([4, 1]) == 2.5\n"
        "    assert abs(candidate([1, 2, 3, 10]) - 2.5) < 1e-9\n    assert candidate([-5, -1, -3, 8, 2]) == -1\n",
    ),
    "vowels": (
        'VOWELS = "aeiou"\n\ndef vowels(text):\n    """ How many there are; y counts at the end. """\n',
        "    count = sum(letter in VOWELS for letter in text.lower())\n    if text and text[-1] in 'yY':\n        count += 1\n    return count\n",
        "def check(candidate):\n    assert candidate('abcde') == 2\n    assert candidate('ACEDY') == 3\n    assert candidate('') == 0\n"
        "    assert candidate('by') == 1\n    assert candidate('yb') == 0\n    assert candidate('keY') == 2\n",
    ),
    "digit_sum": (
        'def digit_sum(n):\n    """ Of the digits of n; negative for negative n. """\n',
        "    if n < 0:\n        return -digit_sum(-n)\n    total = 0\n    while n > 0:\n        total += n % 10\n        n = n // 10\n"
        "    return total\n",
        "def check(candidate):\n    assert candidate(0) == 0\n    assert candidate(1) == 1\n    assert candidate(199) == 19\n"
        "    assert candidate(-70) == -7\n    assert candidate(10 ** 20 + 5) == 6\n",
    ),
}  # fmt: skip

_SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Lt: ast.GtE, ast.Gt: ast.LtE, ast.Eq: ast.NotEq, ast.In: ast.NotIn, ast.And: ast.Or,
}  # fmt: skip


def mutants(source: str) -> list[str]:
    """The program with one operator, comparison, number or returned value changed, for each place where one can be."""
    found = []
    for place in range(sum(1 for _ in ast.walk(ast.parse(source)))):
        tree = ast.parse(source)
        node = list(ast.walk(tree))[place]
        match node:
            case ast.BinOp() | ast.AugAssign() if type(node.op) in _SWAPPED:
                node.op = _SWAPPED[type(node.op)]()
            case ast.Compare() if type(node.ops[0]) in _SWAPPED:
                node.ops[0] = _SWAPPED[type(node.ops[0])]()
            case ast.Return():
                node.value = ast.Constant(None)
            case ast.Constant() if type(node.value) is int:
                node.value += 1
            case ast.Constant() if type(node.value) is bool:
                node.value = not node.value
            case _:
                continue
        found.append(ast.unparse(tree))
    return found


@pytest.mark.parametrize("name", TASKS)
def test_right_code_passes_however_it_is_written_down(verifier, name):
    prompt, solution, test = TASKS[name]
    whole = prompt + solution
    for completion in (solution, whole, f"Here it is:\n```python\n{whole}```\nIt works.", f"```\n{solution}```",
                       f"```python\n{whole}", f"{whole}\n```\n"):  # fmt: skip
        verdict = judge(verifier, completion, prompt=prompt, test=test, entry_point=name)
        assert (verdict.kind, verdict.reason, verdict.reward) == (VerdictKind.PASS, "passed", 1.0), completion


@pytest.mark.parametrize("name", TASKS)
def test_mutants_of_right_code_fail(verifier, name):
    prompt, solution, test = TASKS[name]
    kinds = {"wrong_answer", "exception", "timeout", "memory"}
    made = mutants(prompt + solution)
    assert len(made) >= 6
    for mutant in made:
        verdict = judge(verifier, mutant, prompt="", test=test, entry_point=name)
        assert verdict.kind is VerdictKind.FAIL and verdict.reason in kinds and verdict.reward == 0, (mutant, verdict)


def test_one_answer_for_all_is_not_enough(verifier):
    for name, (prompt, _, test) in TASKS.items():
        for constant in ("True", "False", "None", "0", "1", "[1]", "2"):
            body = f"    return {constant}\n"
            assert judge(verifier, body, prompt=prompt, test=test, entry_point=name).kind is VerdictKind.FAIL


TESTS = [{"input": [1], "expected": 2}, {"input": [5], "expected": 6}]


def test_calls_are_compared_outside(verifier):
    assert judge(verifier, "def f(x): return x + 1", entry_point="f", tests=TESTS).kind is VerdictKind.PASS
    verdict = judge(verifier, "def f(x): return 2", entry_point="f", tests=TESTS)
    assert (verdict.reason, verdict.reward, verdict.details) == ("wrong_answer", 0.0, {"passed": 1, "tests": 2})


def test_partial_credit_pays_by_the_share():
    verifier = CodeVerifier(partial_credit=True)
    assert judge(verifier, "def f(x): return 2", entry_point="f", tests=TESTS).reward == 0.5
    # What came before the end counts.
    verdict = judge(verifier, "def f(x):\n    if x > 1: raise SystemExit\n    return 2", entry_point="f", tests=TESTS)
    assert (verdict.kind, verdict.reward, verdict.reason) == (VerdictKind.FAIL, 0.5, "early_exit")
    tests = [{"stdin": "1", "stdout": "1"}, {"stdin": "2", "stdout": "4"}]
    assert judge(verifier, "print(input())", tests=tests).reward == 0.5
    verifier.close()


def test_printed_answers_are_compared_as_asked():
    tests = [{"stdin": "3 4\n", "stdout": "7\n8\n"}]
    program = "a, b = map(int, input().split())\nprint(a + b, end='{}')\nprint(a * 2 + 2)"
    for compare, good, bad in (("lines", " \n", " "), ("tokens", " ", ""), ("exact", "\n", " \n")):
        verifier = CodeVerifier(compare_output=compare)
        assert judge(verifier, program.format(good.replace("\n", "\\n")), tests=tests).kind is VerdictKind.PASS, compare
        assert judge(verifier, program.format(bad.replace("\n", "\\n")), tests=tests).reason == "wrong_answer", compare
        verifier.close()


def test_all_runs_of_a_sample_have_their_time_together():
    verifier = CodeVerifier(wall_seconds=0.2, sample_seconds=0.3, partial_credit=True)
    tests = [{"stdin": "", "stdout": "7\n"}] * 50
    started = time.monotonic()
    verdict = judge(verifier, "import time\ntime.sleep(60)", tests=tests)
    assert (verdict.reason, verdict.reward) == ("timeout", 0.0)
    assert time.monotonic() - started < 5
    verifier.close()


def test_a_program_that_prints_the_answer_and_fails_has_failed(verifier):
    tests = [{"stdin": "", "stdout": "7\n"}]
    assert judge(verifier, "print(7)", tests=tests).kind is VerdictKind.PASS
    for end in ("raise ValueError", "import sys; sys.exit(1)", "import os; os.abort()", "while True: pass"):
        assert judge(verifier, f"print(7, flush=True)\n{end}", tests=tests).kind is VerdictKind.FAIL


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("def f(x) return x", "syntax_error"),
        ("def g(x): return x", "missing_function"),
        ("def f(x): return 1 / 0", "exception"),
        ("def f(x): return open('/etc/passwd').read()", "exception"),
        ("def f(x):\n    import socket\n    socket.socket()", "forbidden_call"),
        ("def f(x): return [0] * 10 ** 11", "memory"),
        ("def f(x):\n    while True: pass", "timeout"),
        ("def f(x):\n    import ctypes\n    ctypes.string_at(8)", "crash"),
        ("def f(x):\n    while True: print('x' * 9999)", "output_flood"),
        ("import os\nos._exit(0)", "early_exit"),
        ("def f(x): return f", "not_plain"),
        ("f = 7", "exception"),
        ("a\0b", "syntax_error"),
        ("", "missing_function"),
    ],
)  # fmt: skip
def test_reasons_tell_failures_apart(verifier, completion, reason):
    verdict = judge(verifier, completion, entry_point="f", tests=TESTS)
    if reason == "exception" and "passwd" in completion:
        assert verdict.reason in ("exception", "forbidden_call")  # it is not there, or not to be opened
    else:
        assert verdict.reason == reason
    assert (verdict.kind, verdict.reward) == (VerdictKind.FAIL, 0.0)


def test_a_test_that_is_wrong_is_an_infra_error(verifier):
    verdict = judge(verifier, "def f(x): return x", entry_point="f", test="def check(f): nobody(f(1))")
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "bad_test")
    assert "NameError" in verdict.details["message"]


@pytest.mark.parametrize(
    "test",
    [
        "def check(candidate):\n    for got, want in zip(map(candidate, [1, 2, 3]), [2, 3, 4]):\n        assert got == want",
        "def check(candidate):\n    assert all(map(lambda n: candidate(n) == n + 1, [1, 2, 3]))",
        "def check(candidate):\n    assert [*map(candidate, [1, 2])] in ([2, 3], [])",
    ],
)
@pytest.mark.parametrize("kind", ["StopIteration", "StopAsyncIteration"])
def test_code_cannot_end_the_loops_of_a_test(verifier, kind, test):
    verdict = judge(verifier, f"def f(x): raise {kind}", entry_point="f", test=test)
    assert (verdict.kind, verdict.reason) == (VerdictKind.FAIL, "exception")
    assert judge(verifier, "def f(x): return x + 1", entry_point="f", test=test).kind is VerdictKind.PASS


@pytest.mark.parametrize(
    ("completion", "test"),
    [
        ("def f(xs):\n    xs.clear()\n    return xs", "def check(f):\n    xs = [3, 1]\n    assert f(xs) == sorted(xs)"),
        ("def f(xs):\n    xs[:] = [0]\n    return 0", "def check(f):\n    xs = [3, 1]\n    assert f(xs) == max(xs)"),
    ],
)
def test_code_cannot_change_what_its_answer_is_compared_with(verifier, completion, test):
    assert judge(verifier, completion, entry_point="f", test=test).reason == "wrong_answer"


@pytest.mark.parametrize(
    ("gives", "test"),
    [
        ("True", "def check(candidate):\n    assert candidate(1) == 1"),
        ("1", "def check(given):\n    for n in (1, 2):\n        assert True == given(n)"),
        ("[1, (True, 2.5)]", "def check(candidate):\n    assert candidate(1) == [1, (1, 2.5)]"),
        ("{'a': [False]}", "assert f(1) == {'a': [0]}"),
    ],
)
def test_true_is_not_one_in_a_test_either_unless_asked(verifier, gives, test):
    code = f"def f(x): return {gives}"
    assert judge(verifier, code, entry_point="f", test=test).reason == "wrong_answer"
    assert judge(CodeVerifier(exact_types=False), code, entry_point="f", test=test).kind is VerdictKind.PASS


@pytest.mark.parametrize(
    ("gives", "test"),
    [
        ("1.0", "def check(candidate):\n    assert candidate(1) == 1"),
        ("True", "def check(candidate):\n    assert candidate(1)\n    assert candidate(1) == True != candidate(2) + 1"),
        ("[True, None]", "def check(candidate):\n    assert candidate(1) == [True, None]"),
        ("'a'", "def check(candidate, other=3):\n    assert candidate(1) == 'a' and not candidate(1) == other"),
    ],
)
def test_what_is_right_passes_a_test_that_is_exact_about_booleans(verifier, gives, test):
    assert judge(verifier, f"def f(x): return {gives}", entry_point="f", test=test).kind is VerdictKind.PASS


def test_other_languages_run_by_a_command():
    if not probe().namespaces:
        pytest.skip("other programs need namespaces")
    verifier = CodeVerifier(command=["/bin/sh", "main.sh"], file_name="main.sh")
    tests = [{"stdin": "3 4\n", "stdout": "7\n"}]
    assert judge(verifier, "```sh\nread a b\necho $((a + b))\n```", tests=tests).kind is VerdictKind.PASS
    assert judge(verifier, "echo 8", tests=tests).reason == "wrong_answer"
    assert judge(verifier, "exit 3", tests=tests).reason == "exception"
    assert judge(verifier, "cat main.sh", tests=tests).kind is VerdictKind.FAIL
    assert (
        verifier.check_row({"tests": TESTS, "entry_point": "f"})
        == "with `command` a row has `tests` of {stdin, stdout}"
    )
    verifier.close()


def test_batches_run_in_several_boxes_and_keep_their_order():
    verifier = CodeVerifier(boxes=2)
    samples = [
        Sample(f"def f(x): return {n % 3}", {"entry_point": "f", "tests": [{"input": [0], "expected": 0}]})
        for n in range(12)
    ]
    assert [verdict.kind is VerdictKind.PASS for verdict in verifier.verify_many(samples)] == [
        n % 3 == 0 for n in range(12)
    ]
    verifier.close()


def test_it_travels_by_pickle_and_works_again_after_close(verifier):
    copy = pickle.loads(pickle.dumps(verifier))
    assert copy.options == verifier.options
    for _ in range(2):
        assert judge(copy, "def f(x): return x + 1", entry_point="f", tests=TESTS).kind is VerdictKind.PASS
        copy.close()


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({}, "neither `test` nor `tests`"),
        ({"test": 7}, "field `test` is int"),
        ({"test": "def", "entry_point": "f"}, "not Python"),
        ({"test": "pass"}, "`entry_point` is not the name"),
        ({"test": "pass", "entry_point": "f(1)"}, "`entry_point` is not the name"),
        ({"tests": []}, "not a list of tests"),
        ({"tests": "x"}, "not a list of tests"),
        ({"tests": [7]}, "tests[0] is int"),
        ({"tests": [{"input": [1]}], "entry_point": "f"}, "tests[0] has no `expected`"),
        ({"tests": [{"input": 1, "expected": 1}], "entry_point": "f"}, "`input` is int"),
        ({"tests": [{"stdin": ""}]}, "tests[0] has no `stdout`"),
        ({"tests": [{"stdin": "", "stdout": ""}, {"input": [], "expected": 1}]}, "tests[1] has no `stdin`"),
        ({"tests": [{"stdin": "", "stdout": 7}]}, "`stdin` and `stdout` are strings"),
        ({"tests": TESTS}, "`entry_point` is not the name"),
    ],
)  # fmt: skip
def test_a_row_that_is_wrong_is_told_before(verifier, row, fault):
    assert fault in str(verifier.check_row(row))
    verdict = judge(verifier, "def f(x): return x", **row)
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "bad_row")


def test_every_limit_of_a_run_is_an_option():
    for name in Limits.__struct_fields__:
        assert CodeOptions.model_fields[name].default == getattr(Limits(), name), name


def test_files_are_limited_as_asked():
    if not probe().namespaces:
        pytest.skip("without namespaces code has no folder to write to")
    kept = "import os\nfiles = [open(f'{n}', 'wb') for n in range(%d)]\nprint(files[0].write(bytes(%d)), flush=True)"
    tests = [{"stdin": "", "stdout": "5000"}]
    program, small, large = kept % (40, 5000), CodeVerifier(file_bytes=4096), CodeVerifier(file_bytes=8192)
    few, fewer_files = CodeVerifier(open_files=24), kept % (10, 5000)
    program += "\nfiles[0].flush()"
    assert judge(large, program, tests=tests).kind is VerdictKind.PASS
    assert judge(few, fewer_files, tests=tests).kind is VerdictKind.PASS
    too_large, too_many = judge(small, program, tests=tests), judge(few, program, tests=tests)
    assert too_large.reason == "exception" and "File too large" in too_large.details["message"]
    assert too_many.reason == "exception" and "Too many open files" in too_many.details["message"]
    for verifier in (small, large, few):
        verifier.close()


def test_wrong_options_are_refused_by_name():
    with pytest.raises(WrongOption, match="did you mean `cpu_seconds`"):
        CodeVerifier(cpu_second=1)
    with pytest.raises(WrongOption, match="wall_seconds"):
        CodeVerifier(wall_seconds=-1)
    for name in ("file_bytes", "open_files"):
        with pytest.raises(WrongOption, match=name):
            CodeVerifier(**{name: 1})
    with pytest.raises(UserError):
        CodeVerifier(compare_output="loosely")


@given(completion=st.text(), test=st.sampled_from(["calls", "test", "prints"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_completion_holds_there_is_a_verdict(verifier, completion, test):
    rows = {
        "calls": {"entry_point": "f", "tests": TESTS},
        "test": {"entry_point": "f", "prompt": "def f(x):\n", "test": "def check(f): assert f(1) == 2"},
        "prints": {"tests": [{"stdin": "", "stdout": "\u2603 never printed by chance"}]},
    }
    for text in (completion, f"```python\n{completion}\n```"):
        verdict = verifier.verify(Sample(text, rows[test]))
        assert verdict.kind is VerdictKind.FAIL and verdict.reward == 0


FENCE = "```"


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("def f(): 1", "def f(): 1"),
        (f"a\n{FENCE}python\ndef f(): 1\n{FENCE}\nb", "def f(): 1\n"),
        (f"{FENCE}\ndef f(): 1\n{FENCE}\n{FENCE}\ndef g(): 2\n{FENCE}", "def f(): 1\n"),
        (f"{FENCE}\ndef f(): 1\n{FENCE}\n{FENCE}\ndef f(): 2\n{FENCE}", "def f(): 2\n"),
        (f"{FENCE}py\ndef f(): 1", "def f(): 1"),
        (f"def f(): 1\n{FENCE}\n", "def f(): 1\n"),
        (f"  {FENCE}\n  def g(): 1\n  {FENCE}", "P\n  def g(): 1\n"),
        (f"{FENCE}\nf = lambda: 1\n{FENCE}", "f = lambda: 1\n"),
        ("    return 1", "P\n    return 1"),
    ],
)  # fmt: skip
def test_the_program_is_found_in_the_completion(completion, code):
    assert extract_code(completion, "P\n", "f") == code


def test_a_prompt_s_imports_stay_with_a_function_that_is_written_anew():
    prompt = "import math\nfrom typing import List\n\ndef f(x):\n    pass\n"
    assert extract_code("def f(x): return math.pi", prompt, "f").startswith("import math\nfrom typing import List\n")


@pytest.mark.parametrize("text", ["`" * 200_000, "```" + " " * 200_000, "```" + "a" * 200_000, "```\n" * 60_000, "def f" * 50_000,
                                  "async " * 50_000 + "\n" * 50_000, "\n" * 200_000 + "```"])  # fmt: skip
def test_no_completion_makes_the_search_for_the_program_slow(text):
    extract_code(text, "", "f")  # the limit on tests is the check: with backtracking these take hours


@pytest.mark.parametrize(
    ("value", "expected", "equal"),
    [
        (1, 1, True), (1, True, False), (True, 1, False), (1, 1.0, False), (1.0, 1, False), (1.0, 1.0, True),
        (0.1 + 0.2, 0.3, True), (0.3001, 0.3, False), (math.inf, math.inf, True), (-math.inf, math.inf, False),
        (math.nan, math.nan, False), (math.nan, 1.0, False), ("1", 1, False), ("a", "a", True), (None, None, True), (None, 0, False),
        ([1, 2], [1, 2], True), ((1, 2), [1, 2], True), ([1], [1, 2], False), ({1, 2}, [1, 2], False), ([True], [1], False),
        ([[1], [2]], [[1], [2]], True), ({"a": 1}, {"a": 1}, True), ({"a": 1}, {"a": True}, False), ({1: 2}, {"1": 2}, True),
        ({True: 2}, {"true": 2}, True), ({None: 2}, {"null": 2}, True), ({(1,): 2}, {"(1,)": 2}, False),
        ({1: 2, "1": 2}, {"1": 2}, False), ({10**5000: 2}, {"1": 2}, False), ([10**5000], [1.0], False), ([10**5000], [1], False),
        (b"a", "a", False), (range(2), [0, 1], False), (1 + 0j, 1.0, False), (-0.0, 0.0, True),
    ],
)  # fmt: skip
def test_values_are_compared_by_type_too(value, expected, equal):
    assert same_value(value, expected, exact=True, tolerance=1e-9) is equal


def test_types_may_be_left_aside():
    for value, expected in ((1, True), (1.0, 1), ([1.0], [True])):
        assert same_value(value, expected, exact=False, tolerance=1e-9)
    assert not same_value("1", 1, exact=False, tolerance=1e-9)
