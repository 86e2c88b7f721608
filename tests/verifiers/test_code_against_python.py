"""The verifier of code says what plain Python says: of right programs, and of mutants of them.

So also of HumanEval's tasks (tests/suites.py).
"""

from __future__ import annotations

import gzip
import json

import pytest

from headrace.verifiers.code import CodeVerifier
from headrace.verifiers.records import Sample, Verdict, VerdictKind
from tests.suites import HUMAN_EVAL, MISSING
from tests.verifiers.code_tasks import CPU_SECONDS, TASKS, Task, mutants, passes_in_python, spread

MOST = 12  # mutants of one task
# What a mutant that plain Python ends, or cannot end, may have for a reason.
REASONS = {"passed", "wrong_answer", "exception", "timeout", "memory", "not_plain", "crash"}


def human_eval() -> list[Task]:
    if not HUMAN_EVAL.exists():
        return []
    with gzip.open(HUMAN_EVAL, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return [Task(row["entry_point"], row["prompt"], row["canonical_solution"], row["test"]) for row in rows]


@pytest.fixture(scope="module")
def verifier():
    verifier = CodeVerifier(cpu_seconds=CPU_SECONDS, wall_seconds=30.0)
    yield verifier
    verifier.close()


def judge(verifier: CodeVerifier, task: Task, completion: str) -> Verdict:
    return verifier.verify(Sample(completion, {"prompt": task.prompt, "test": task.test, "entry_point": task.name}))


def differences(verifier: CodeVerifier, task: Task, most: int = MOST) -> list[tuple[str, bool, Verdict]]:
    """Programs of which plain Python and the verifier say different things."""
    programs = [task.program, *spread(mutants(task.program), most)]
    expected = passes_in_python((task, program) for program in programs)
    verdicts = [judge(verifier, task, program) for program in programs]
    return [
        (program, right, verdict)
        for program, right, verdict in zip(programs, expected, verdicts, strict=True)
        if (verdict.kind is VerdictKind.PASS) is not right
        or verdict.kind is VerdictKind.INFRA_ERROR
        or verdict.reason not in REASONS
    ]


def test_there_is_a_dozen_tasks_with_mutants_that_fail_and_such_that_do_not():
    assert len({task.name for task in TASKS}) >= 12
    cases = [(task, mutant) for task in TASKS for mutant in spread(mutants(task.program), MOST)]
    results = passes_in_python(cases)
    assert len(results) >= 80 and results.count(False) >= 60 and results.count(True) >= 2


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_right_programs_and_mutants_get_python_s_verdict(verifier, task):
    verdict = judge(verifier, task, task.solution)
    assert (verdict.kind, verdict.reward) == (VerdictKind.PASS, 1.0), verdict
    assert differences(verifier, task) == []


@pytest.mark.skipif(not HUMAN_EVAL.exists(), reason=MISSING)
@pytest.mark.parametrize("task", human_eval(), ids=lambda task: task.name)
def test_human_eval_gets_python_s_verdict(verifier, task):
    verdict = judge(verifier, task, task.solution)
    assert (verdict.kind, verdict.reward) == (VerdictKind.PASS, 1.0), verdict
    assert differences(verifier, task, most=2) == []  # some never end: each takes its second
