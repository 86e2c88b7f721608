"""Code, judged by what it does: by calls with expected values, by a data set's own test, or by what it prints.

The model's code runs in the sandbox. What is expected of it never does: inputs go in, plain values or text come out, and the
comparison is made here, or, for a test that is code itself, in a process of the test's own (sandbox/programs.py).
"""

from __future__ import annotations

import ast
import json
import math
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from pydantic import Field

from headrace.verifiers.base import (
    Options,
    Verifier,
    after_thinking,
    not_run,
    parse_options,
    printable,
    rebuild,
    scored,
)
from headrace.verifiers.exact_test import with_exact_booleans
from headrace.verifiers.records import Sample, Verdict
from headrace.verifiers.sandbox.box import BoxFailed
from headrace.verifiers.sandbox.plain import NotPlain
from headrace.verifiers.sandbox.plan import BoxPlan, Limits
from headrace.verifiers.sandbox.programs import call_function, run_command, run_script, run_test
from headrace.verifiers.sandbox.run import STARVED
from headrace.verifiers.sandbox.sandbox import Sandbox

_LARGEST_KEY = 10**300  # an integer with more digits than these is not written out
_ATTEMPTS = 2  # of a run whose box failed


class CodeOptions(Options):
    thinking_end: str | None = "</think>"
    """What a completion says before the last of these marks is not looked at; none: all is."""
    command: list[str] | None = None
    """For other languages: a program and its arguments, run in a folder with the code in `file_name`; none: Python."""
    file_name: str = "main.py"
    """How the code's file is called, for `command`."""
    readable: tuple[str, ...] = ("/usr", "/bin")
    """Host paths that `command` may read and run."""
    partial_credit: bool = False
    """The reward is the share of tests that passed; false: all or nothing."""
    exact_types: bool = True
    """True is not 1, and 1 is not 1.0. A tuple passes for a list, since JSON has no tuples. A data set's own `test` compares
    by Python's `==`, where True is not 1 all the same in what the function gives."""
    float_tolerance: float = Field(1e-9, ge=0)
    """Relative and absolute, for floats where floats are expected."""
    compare_output: Literal["lines", "tokens", "exact"] = "lines"
    """Printed text: by lines without trailing blanks, by words, or to the last byte."""
    wall_seconds: float = Field(10.0, gt=0)
    """Of one run."""
    sample_seconds: float = Field(60.0, gt=0)
    """Of all runs of a sample that is judged by what it prints: after that no test is begun, and those that are left count
    as `timeout`."""
    cpu_seconds: int = Field(5, ge=1)
    memory_bytes: int = Field(512 << 20, ge=64 << 20)
    processes: int = Field(16, ge=1)
    """Threads count."""
    file_bytes: int = Field(16 << 20, ge=1024)
    """One file."""
    scratch_bytes: int = Field(32 << 20, ge=1 << 20)
    """All files together."""
    open_files: int = Field(64, ge=20)
    output_bytes: int = Field(1 << 20, ge=1024)
    boxes: int = Field(1, ge=1)
    """Runs at the same time, in a worker."""
    allow_degraded: bool = False
    """Run also where a layer of the sandbox that is needed is missing."""


class CodeVerifier(Verifier):
    """The options of `CodeOptions` by name. A row has `entry_point` with `test` (a test's code) or `tests` (a list of
    `{input, expected}`), or `tests` as a list of `{stdin, stdout}`; and `prompt` where the completion continues code.

    Reasons: `passed`; `wrong_answer`, `exception`, `timeout`, `memory`, `crash`, `output_flood`, `forbidden_call`,
    `early_exit`, `not_plain`, `syntax_error`, `missing_function`, `bad_answer`. As infra_error: `bad_row`, `bad_test`,
    `starved`, `sandbox_failed`.
    """

    def __init__(self, **options: Any) -> None:
        self.options = parse_options(CodeOptions, options, "code")
        given = self.options
        limits = Limits(**{name: getattr(given, name) for name in Limits.__struct_fields__})
        plan = BoxPlan(limits, programs=given.command is not None,
                       readable=given.readable if given.command else ())  # fmt: skip
        self._sandbox = Sandbox(plan, boxes=given.boxes, allow_degraded=given.allow_degraded)

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (type(self), self.options.model_dump())

    def repeatable(self) -> bool:
        return True

    def start(self) -> None:
        self._sandbox.start()

    def missing_layers(self) -> str:
        return self._sandbox.missing

    def close(self) -> None:
        self._sandbox.close()

    def verify(self, sample: Sample) -> Verdict:
        fault = self.check_row(sample.row)
        if fault is not None:
            return not_run("bad_row", message=fault)
        for attempt in range(_ATTEMPTS):
            try:
                return self._judge(sample)
            except BoxFailed as error:
                if attempt + 1 == _ATTEMPTS:
                    return not_run("sandbox_failed", message=printable(str(error)))
        raise AssertionError("unreachable")

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        if self.options.boxes == 1 or len(samples) == 1:
            return [self.verify(sample) for sample in samples]
        with ThreadPoolExecutor(self.options.boxes) as threads:
            return list(threads.map(self.verify, samples))

    def check_row(self, row: dict[str, Any]) -> str | None:
        test, tests = row.get("test"), row.get("tests")
        if test is None and tests is None:
            return "it has neither `test` nor `tests`"
        if test is not None:
            if not isinstance(test, str):
                return f"field `test` is {type(test).__name__}, not a string"
            if self.options.command:
                return "field `test` is Python; with `command` a row has `tests` of {stdin, stdout}"
            try:
                ast.parse(test)
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                return f"field `test` is not Python: {printable(str(error))}"
            return _entry_point_fault(row)
        if not isinstance(tests, list) or not tests:
            return "field `tests` is not a list of tests"
        for index, each in enumerate(tests):
            if not isinstance(each, dict):
                return f"tests[{index}] is {type(each).__name__}, not an object"
            keys = ("stdin", "stdout") if _printed(tests) else ("input", "expected")
            if missing := [key for key in keys if key not in each]:
                return f"tests[{index}] has no `{missing[0]}`"
            if _printed(tests):
                if not all(isinstance(each[key], str) for key in keys):
                    return f"tests[{index}]: `stdin` and `stdout` are strings"
            elif not isinstance(each["input"], list):
                return f"tests[{index}]: `input` is {type(each['input']).__name__}, not a list of arguments"
        if _printed(tests):
            return None
        if self.options.command:
            return "with `command` a row has `tests` of {stdin, stdout}"
        return _entry_point_fault(row)

    def _judge(self, sample: Sample) -> Verdict:
        row = sample.row
        said = after_thinking(sample.completion, self.options.thinking_end)
        code = extract_code(said, str(row.get("prompt") or ""), row.get("entry_point"))
        if "\0" in code:
            return scored(0.0, "syntax_error")
        if row.get("test") is not None:
            return self._judge_by_test(code, row)
        return self._judge_prints(code, row["tests"]) if _printed(row["tests"]) else self._judge_calls(code, row)

    def _judge_by_test(self, code: str, row: dict[str, Any]) -> Verdict:
        test = with_exact_booleans(row["test"], row["entry_point"]) if self.options.exact_types else row["test"]
        with self._sandbox.box() as box:
            result = run_test(box, code, row["entry_point"], prelude(str(row.get("prompt") or "")), test)
        if result.test_fault:
            return not_run("bad_test", message=printable(result.test_fault))
        if result.reason == STARVED:
            return not_run(STARVED)
        return scored(1.0, "passed") if result.passed else _failed(0.0, result.reason, result.message)

    def _judge_calls(self, code: str, row: dict[str, Any]) -> Verdict:
        tests = row["tests"]
        try:
            with self._sandbox.box() as box:
                result = call_function(box, code, row["entry_point"], [test["input"] for test in tests])
        except NotPlain as error:
            return not_run("bad_row", message=printable(str(error)))
        if result.reason == STARVED:
            return not_run(STARVED)
        right, first = 0, ("", "")
        for test, answer in zip(tests, result.answers, strict=False):
            if not answer.reason and self._equal(answer.value, test["expected"]):
                right += 1
            elif not first[0]:
                first = (answer.reason or "wrong_answer", answer.message)
        if len(result.answers) < len(tests) and not first[0]:
            first = (result.reason, result.message)
        return self._scored(right, len(tests), *first)

    def _judge_prints(self, code: str, tests: list[dict[str, Any]]) -> Verdict:
        right, first = 0, ("", "")
        deadline = time.monotonic() + self.options.sample_seconds
        for test in tests:
            if time.monotonic() > deadline:
                first = first if first[0] else ("timeout", f"{self.options.sample_seconds:g} s for all tests together")
                break
            with self._sandbox.box() as box:
                if self.options.command is None:
                    result = run_script(box, code, test["stdin"])
                else:
                    files = {self.options.file_name: code}
                    result = run_command(box, self.options.command, files, test["stdin"], _ENVIRONMENT)
            if result.reason == STARVED:
                return not_run(STARVED)
            if result.reason:
                reason, message = result.reason, result.message
            elif result.status != 0:
                reason, message = "exception", f"status {result.status}: {result.err[-200:]}"
            else:
                reason, message = "wrong_answer", ""
                if self._same_text(result.out, test["stdout"]):
                    right += 1
                    continue
            first = first if first[0] else (reason, message)
            if not self.options.partial_credit:
                break
        return self._scored(right, len(tests), *first)

    def _scored(self, right: int, count: int, reason: str, message: str) -> Verdict:
        if right == count:
            return scored(1.0, "passed", passed=right, tests=count)
        reward = right / count if self.options.partial_credit else 0.0
        return _failed(reward, reason, message, passed=right, tests=count)

    def _equal(self, value: Any, expected: Any) -> bool:
        return same_value(value, expected, exact=self.options.exact_types, tolerance=self.options.float_tolerance)

    def _same_text(self, printed: str, expected: str) -> bool:
        match self.options.compare_output:
            case "exact":
                return printed == expected
            case "tokens":
                return printed.split() == expected.split()
            case _:
                return _lines(printed) == _lines(expected)


_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/work/run", "LANG": "C.UTF-8"}


def _printed(tests: list[Any]) -> bool:
    return isinstance(tests[0], dict) and ("stdin" in tests[0] or "stdout" in tests[0])


def _entry_point_fault(row: dict[str, Any]) -> str | None:
    name = row.get("entry_point")
    if not isinstance(name, str) or not name.isidentifier():
        return "field `entry_point` is not the name of a function"
    return None


def _failed(reward: float, reason: str, message: str, **details: Any) -> Verdict:
    return scored(reward, reason, **({"message": printable(message)} if message else {}), **details)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def extract_code(completion: str, prompt: str, entry_point: str | None) -> str:
    """The program in a completion: its last fenced block that defines `entry_point`, else its last one, else all of it; and
    behind `prompt` where it goes on with code that begins there."""
    blocks = _fenced(completion)
    if blocks:
        defining = [text for text in blocks if entry_point and _defines(text, entry_point)]
        code = (defining or blocks)[-1]
    else:
        code = completion
    if not entry_point or _defines(code, entry_point):
        return f"{prelude_imports(prompt)}{code}"
    return prompt + code


def _fenced(text: str) -> list[str]:
    """What stands between fences. A lone fence opens a block that was cut off, or closes one that the prompt has opened."""
    blocks: list[str] = []
    block: list[str] | None = None
    before: list[str] = []
    for line in text.splitlines(keepends=True):
        if line.lstrip(" \t").startswith("```"):
            if block is not None:
                blocks.append("".join(block))
            block = None if block is not None else []
        elif block is not None:
            block.append(line)
        elif not blocks:
            before.append(line)
    if block is not None:
        cut_off = "".join(block)
        blocks.append(cut_off if cut_off.strip() or blocks else "".join(before))
    return blocks


def _defines(code: str, name: str) -> bool:
    return (
        re.search(rf"^(?:async\s+)?def\s+{re.escape(name)}\b|^{re.escape(name)}\s*[=:]", code, re.MULTILINE) is not None
    )


def prelude(prompt: str) -> str:
    """A prompt that is code, as a test may want what it defines; empty when it is none."""
    return prompt if _parsed(prompt) is not None else ""


def prelude_imports(prompt: str) -> str:
    """The imports that a prompt's code begins with."""
    tree = _parsed(prompt)
    if tree is None:
        return ""
    imports = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "".join(f"{line}\n" for line in imports)


def _parsed(code: str) -> ast.Module | None:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a prompt in prose
        return None


def same_value(value: Any, expected: Any, *, exact: bool, tolerance: float) -> bool:
    """Whether a plain value is the expected one, which came as JSON."""
    if isinstance(expected, list):
        return (
            type(value) in (list, tuple)
            and len(value) == len(expected)
            and all(same_value(*pair, exact=exact, tolerance=tolerance) for pair in zip(value, expected, strict=True))
        )
    if isinstance(expected, dict):
        if type(value) is not dict or len(value) != len(expected):
            return False
        named = {_json_key(key): each for key, each in value.items()}
        return named.keys() == expected.keys() and all(
            same_value(named[key], expected[key], exact=exact, tolerance=tolerance) for key in expected
        )
    if exact and type(value) is not type(expected):
        return False
    if (
        type(value) in (int, float, bool)
        and type(expected) in (int, float, bool)
        and float in (type(value), type(expected))
    ):
        return _close(value, expected, tolerance)
    return type(value) in (int, float, bool, str, type(None)) and value == expected


def _json_key(key: Any) -> str | None:
    """A key as JSON's objects have it; None for what has none there."""
    if type(key) is str:
        return key
    if type(key) in (bool, type(None)) or (type(key) is int and abs(key) < _LARGEST_KEY):
        return json.dumps(key)
    return None


def _close(value: float, expected: float, tolerance: float) -> bool:
    try:
        return value == expected or math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an integer that no float can hold
        return False
