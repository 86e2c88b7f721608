"""Programs to run in a box, and what came of them, with the reason when that is nothing."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.verifiers.sandbox import plain
from headrace.verifiers.sandbox.box import Box
from headrace.verifiers.sandbox.run import STARVED, Run

_PATIENCE = 0.05  # seconds for a program that has said all to end: to let it costs less than to kill it
_MOST_SHOWN = 500  # characters of what a program says, in details


class Answer(msgspec.Struct, frozen=True):
    """What one call of a function came to: a plain value, or in `reason` why there is none."""

    value: Any = None
    reason: str = ""
    message: str = ""


class CallsResult(msgspec.Struct, frozen=True):
    """The answers to the calls, in order, as far as they came; in `reason` why the rest is missing."""

    answers: list[Answer]
    reason: str = ""
    message: str = ""


class ScriptResult(msgspec.Struct, frozen=True):
    """What a program has printed. `reason` is empty when it ended by itself, with `status`."""

    out: str
    err: str
    status: int
    reason: str = ""
    message: str = ""


class TestResult(msgspec.Struct, frozen=True):
    """How a test went: `passed`, or who failed: the code under test (`reason`), or the test itself (`test_fault`)."""

    passed: bool
    reason: str = ""
    message: str = ""
    test_fault: str = ""


def call_function(box: Box, source: str, entry_point: str, calls: Sequence[Sequence[Any]]) -> CallsResult:
    """Call `entry_point` of `source` with each list of arguments, in one process, one after the other.

    Raises BoxFailed, and plain.NotPlain when an argument is not plain.
    """
    packed = [[[plain.pack(argument) for argument in arguments], []] for arguments in calls]
    run = _start_calls(box, source, entry_point, packed, more=False)
    box.wait(lambda: len(run.answers) > len(calls) or run.ended is not None)
    reason, message = _finish(box, run, _PATIENCE)
    answers = list(run.answers)
    if not _is_defined(answers):
        return CallsResult([], *_not_defined(answers, reason, message, entry_point))
    given = zip(answers[1:], calls, strict=False)
    return CallsResult([_answer(answer, len(call)) for answer, call in given], reason or "early_exit", message)


def run_script(box: Box, source: str, stdin: str) -> ScriptResult:
    """Run a Python program. Raises BoxFailed."""
    run = box.start_run(scratch=True, stdin=_bytes(stdin))
    run.send(kind="script", nonce=run.nonce, source=source)
    return _to_its_end(box, run)


def run_command(
    box: Box, argv: Sequence[str], files: dict[str, str], stdin: str, environment: dict[str, str]
) -> ScriptResult:
    """Write `files`, then run another program in their folder. Raises BoxFailed."""
    run = box.start_run(scratch=True, stdin=_bytes(stdin))
    run.send(kind="command", nonce=run.nonce, argv=list(argv), files=files, environment=environment)
    return _to_its_end(box, run)


def run_test(box: Box, source: str, entry_point: str, prelude: str, test: str) -> TestResult:
    """Run `test`, which calls `entry_point` and raises when it is wrong, against `source`.

    They are in processes of their own: the test has a stand-in for the function, whose calls are carried over. So what the
    test expects is never where the code could see it. Raises BoxFailed.
    """
    judge = box.start_run()  # first: the code might leave no room for another process
    judge.send(kind="tests", nonce=judge.nonce, prelude=prelude, test=test, entry_point=entry_point)
    code = _start_calls(box, source, entry_point, [], more=True)
    judge.deadline = code.deadline  # their time is one: who has it left to the other is in `carried`
    box.wait(lambda: bool(code.answers) or code.ended is not None)
    first = [code.answers.popleft()] if code.answers else []
    carried = _carry(box, code, judge) if _is_defined(first) else _Carried()
    at_work = not judge.fault and not judge.ended_by_itself  # the test still was, when it was broken off
    code_end, judge_end = _finish(box, code), _finish(box, judge)
    if STARVED in (code_end[0], judge_end[0]):
        return TestResult(False, STARVED)
    if not _is_defined(first):
        return TestResult(False, *_not_defined(first, *code_end, entry_point))
    if carried.verdict is not None and not code_end[0]:
        return _judged(carried.verdict, carried.last)
    if carried.asked:
        return TestResult(False, code_end[0] or "early_exit", code_end[1])
    if code_end[0] and carried.answered:
        return TestResult(False, *code_end)
    if at_work and not carried.answered:
        return TestResult(False, code_end[0] or "early_exit", code_end[1])
    reason, message = judge_end[0] or code_end[0] or "early_exit", judge_end[1]
    if carried.answered:  # by what it was answered: a number too large to count to, a text too long to print
        return TestResult(False, reason, f"in the test, after {carried.answered} answers {message}".rstrip())
    return TestResult(False, test_fault=f"the test ended before it had an answer: {reason} {message}".rstrip())


def _start_calls(box: Box, source: str, entry_point: str, calls: list[Any], *, more: bool) -> Run:
    run = box.start_run(scratch=not more)
    run.send(kind="calls", nonce=run.nonce, source=source, entry_point=entry_point, calls=calls, more=more)
    return run


class _Carried(msgspec.Struct):
    """What has gone between a test and the code."""

    verdict: dict[str, Any] | None = None  # what the test has said at last
    last: Answer = Answer()  # the code's
    answered: int = 0  # calls
    asked: bool = False  # an answer is owed


def _carry(box: Box, code: Run, judge: Run) -> _Carried:
    """Calls from the test to the code and answers back, until the test has a verdict or one of them is over."""
    carried = _Carried()
    while True:
        box.wait(lambda: bool(judge.answers) or judge.ended is not None or code.ended is not None)
        if code.fault or judge.fault or not judge.answers:
            return carried
        said = judge.answers.popleft()
        if "call" not in said:
            carried.verdict = said
            return carried
        code.send(call=said["call"])
        carried.asked = True
        box.wait(lambda: bool(code.answers) or code.ended is not None or judge.ended is not None)
        if not code.answers:
            return carried
        answer = code.answers.popleft()
        carried.asked = False
        carried.answered += 1
        carried.last = _answer(answer, len(said["call"][0]))
        judge.send(**_checked(answer, carried.last))


def _checked(answer: dict[str, Any], read: Answer) -> dict[str, Any]:
    """An answer of the code's as the test may have it: plain values, or an exception's name and text."""
    if not read.reason:
        return {"value": answer["value"]}
    return {"raised": _word(answer, "raised") or read.reason, "message": _word(answer, "message") or read.message}


def _answer(answer: dict[str, Any], arguments: int) -> Answer:
    """What the code's process says of a call with so many arguments. It may say anything."""
    if "value" in answer:
        match answer["value"]:
            case [value, [*after]] if len(after) == arguments:
                try:
                    for changed in after:
                        plain.unpack(changed)
                    return Answer(plain.unpack(value))
                except plain.NotPlain as error:
                    return Answer(reason="not_plain", message=str(error)[:_MOST_SHOWN])
        return Answer(reason="bad_answer")
    if "not_plain" in answer:
        return Answer(reason="not_plain", message=_word(answer, "not_plain"))
    return _raised(answer)


def _word(answer: dict[str, Any], key: str) -> str:
    """A text in it, cut; empty where there is none."""
    text = answer.get(key)
    return text[:_MOST_SHOWN] if isinstance(text, str) else ""


def _is_defined(answers: list[dict[str, Any]]) -> bool:
    """Whether the first answer says that the function is there."""
    outcome = answers[0].get("defined") if answers else None
    return isinstance(outcome, dict) and outcome.get("value") is True


_REASONS = {
    "MemoryError": "memory",
    "PermissionError": "forbidden_call",
    "SystemExit": "early_exit",
    "SyntaxError": "syntax_error",
    "IndentationError": "syntax_error",
    "TabError": "syntax_error",
}
_FAULTS_OF_TESTS = ("SyntaxError", "IndentationError", "NameError", "ImportError", "ModuleNotFoundError", "SystemExit")


def _raised(answer: dict[str, Any]) -> Answer:
    kind = _word(answer, "raised")
    if not kind:
        return Answer(reason="bad_answer")
    return Answer(reason=_REASONS.get(kind, "exception"), message=f"{kind[:100]}: {_word(answer, 'message')}")


def _not_defined(answers: list[dict[str, Any]], reason: str, message: str, entry_point: str) -> tuple[str, str]:
    """Why there is no function to call."""
    if not answers:
        return reason or "early_exit", message
    outcome = answers[0].get("defined")
    if not isinstance(outcome, dict):
        return "bad_answer", ""
    if "raised" in outcome:
        raised = _raised(outcome)
        return raised.reason, raised.message
    return "missing_function", f"the code defines no `{entry_point}`"


def _judged(verdict: dict[str, Any], last: Answer) -> TestResult:
    tested = verdict["tested"]
    if "value" in tested:
        if tested["value"] == 0:
            return TestResult(False, test_fault="the test never calls the function")
        return TestResult(True)
    if "not_plain" in tested:
        return TestResult(False, test_fault=f"the test passes {tested['not_plain']}, which cannot be carried over")
    kind, message = tested["raised"], tested["message"]
    if last.reason:
        return TestResult(False, last.reason, last.message)
    if kind in _FAULTS_OF_TESTS:
        return TestResult(False, test_fault=f"{kind}: {message}")
    return TestResult(False, "wrong_answer", f"{kind}: {message}"[:_MOST_SHOWN])


def _to_its_end(box: Box, run: Run) -> ScriptResult:
    box.wait(lambda: run.ended is not None)
    reason, message = _finish(box, run)
    assert run.ended is not None
    status = run.ended.status
    if not reason and run.answers:
        raised = _raised(run.answers[0])
        reason, message = raised.reason, raised.message
    return ScriptResult(_text(run.out), _text(run.err), status, reason, message)


def _finish(box: Box, run: Run, patience: float = 0.0) -> tuple[str, str]:
    """End the run, unless it does so itself in time; why it did not come to its end as it should, and in what state."""
    by_itself = run.ended_by_itself
    ended = box.end(run, 0.0 if run.fault else patience)
    killed = by_itself and ended.status in (-signal.SIGKILL, -signal.SIGXCPU)
    out_of_memory = (killed or box.plan.programs) and box.memory_kills() > 0
    if run.fault:
        return run.fault, ""
    if not by_itself or ended.status == 0:
        return "", ""
    # The limit counts whole ticks of the clock, of which a process on a busy machine gets parts.
    if killed and not out_of_memory and ended.cpu_seconds >= box.plan.limits.cpu_seconds / 2:
        return "timeout", f"{ended.cpu_seconds:.1f} s of processor time"
    if out_of_memory:
        return "memory", ""
    if ended.status > 0:
        return "", ""
    if ended.status == -signal.SIGSYS:
        return "forbidden_call", ""
    return "crash", signal.Signals(-ended.status).name


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
