"""Programs to run in a box, and what came of them, with the reason when that is nothing."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.verifiers.sandbox import plain
from headrace.verifiers.sandbox.box import Box, Run

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
    reason, message = _finish(box, run)
    answers = list(run.answers)
    if not answers or answers[0].get("defined", {}).get("value") is not True:
        return CallsResult([], *_not_defined(answers, reason, message, entry_point))
    return CallsResult([_answer(answer) for answer in answers[1 : len(calls) + 1]], reason or "early_exit", message)


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
    code = _start_calls(box, source, entry_point, [], more=True)
    judge = box.start_run()
    judge.send(kind="tests", nonce=judge.nonce, prelude=prelude, test=test, entry_point=entry_point)
    box.wait(lambda: bool(code.answers) or code.ended is not None)
    defined = code.answers.popleft() if code.answers else {}
    verdict: dict[str, Any] | None = None
    last = Answer()
    if defined.get("defined", {}).get("value") is True:
        verdict, last = _carry(box, code, judge)
    code_reason, code_message = _finish(box, code)
    judge_reason, judge_message = _finish(box, judge)
    if defined.get("defined", {}).get("value") is not True:
        return TestResult(False, *_not_defined([defined] if defined else [], code_reason, code_message, entry_point))
    if code_reason:
        return TestResult(False, code_reason, code_message)
    if verdict is None and code.ended_by_itself:
        return TestResult(False, "early_exit")
    if verdict is None:
        fault = f"the test ended without a word: {judge_reason or 'early_exit'} {judge_message}".strip()
        return TestResult(False, test_fault=fault)
    return _judged(verdict, last)


def _start_calls(box: Box, source: str, entry_point: str, calls: list[Any], *, more: bool) -> Run:
    run = box.start_run(scratch=not more)
    run.send(kind="calls", nonce=run.nonce, source=source, entry_point=entry_point, calls=calls, more=more)
    return run


def _carry(box: Box, code: Run, judge: Run) -> tuple[dict[str, Any] | None, Answer]:
    """Calls from the test to the code and answers back, until the test has a verdict or one of them is over; with the code's
    last answer."""
    last = Answer()
    while True:
        box.wait(lambda: bool(judge.answers) or judge.ended is not None or code.ended is not None)
        if code.fault or judge.fault or not judge.answers:
            return None, last
        said = judge.answers.popleft()
        if "call" not in said:
            return said, last
        code.send(call=said["call"])
        box.wait(lambda: bool(code.answers) or code.ended is not None or judge.ended is not None)
        if not code.answers:
            return None, last
        answer = code.answers.popleft()
        last = _answer(answer)
        judge.send(**_checked(answer, last))


def _checked(answer: dict[str, Any], read: Answer) -> dict[str, Any]:
    """An answer of the code's as the test may have it: plain values, or an exception's name and text."""
    if not read.reason:
        return {"value": answer["value"]}
    return {"raised": str(answer.get("raised", read.reason)), "message": read.message}


def _answer(answer: dict[str, Any]) -> Answer:
    """What the code's process says of a call. It may say anything."""
    if "value" in answer:
        try:
            value, after = answer["value"]
            for changed in after:
                plain.unpack(changed)
            return Answer(plain.unpack(value))
        except (plain.NotPlain, TypeError, ValueError, RecursionError) as error:
            return Answer(reason="not_plain", message=str(error)[:_MOST_SHOWN])
    if "not_plain" in answer:
        return Answer(reason="not_plain", message=str(answer["not_plain"])[:_MOST_SHOWN])
    return _raised(answer)


_REASONS = {"MemoryError": "memory", "PermissionError": "forbidden_call", "SystemExit": "early_exit", "SyntaxError": "syntax_error",
            "IndentationError": "syntax_error", "TabError": "syntax_error"}  # fmt: skip


def _raised(answer: dict[str, Any]) -> Answer:
    kind, message = str(answer.get("raised"))[:100], str(answer.get("message", ""))[:_MOST_SHOWN]
    return Answer(reason=_REASONS.get(kind, "exception"), message=f"{kind}: {message}")


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
    kind, message = str(tested.get("raised")), str(tested.get("message", ""))
    if last.reason:
        return TestResult(False, last.reason, last.message)
    if kind in ("SyntaxError", "IndentationError", "NameError", "ImportError", "ModuleNotFoundError"):
        return TestResult(False, test_fault=f"{kind}: {message}")
    return TestResult(False, "wrong_answer", f"{kind}: {message}"[:_MOST_SHOWN])


def _to_its_end(box: Box, run: Run) -> ScriptResult:
    box.wait(lambda: run.ended is not None)
    reason, message = _finish(box, run)
    status = run.ended.status if run.ended else -1
    if not reason and run.answers:
        raised = _raised(run.answers[0])
        reason, message = raised.reason, raised.message
    return ScriptResult(_text(run.out), _text(run.err), status, reason, message)


def _finish(box: Box, run: Run) -> tuple[str, str]:
    """End the run; why it did not come to its end by itself, if so, and in what state."""
    by_itself = run.ended_by_itself
    ended = box.end(run)
    if run.fault:
        return run.fault, ""
    if not by_itself or ended.status >= 0:
        return "", ""
    number = -ended.status
    if number == signal.SIGSYS:
        return "forbidden_call", ""
    if number in (signal.SIGKILL, signal.SIGXCPU):
        if ended.cpu_seconds >= box.plan.limits.cpu_seconds - 0.1:
            return "timeout", f"{ended.cpu_seconds:.1f} s of processor time"
        if box.memory_kills() > 0:
            return "memory", ""
    return "crash", signal.Signals(number).name


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
