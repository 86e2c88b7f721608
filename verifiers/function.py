"""Rewards from a plain Python function: `f(completion, row) -> float | bool | Verdict`, also `async`.

The function is the user's and trusted: it runs in the verification worker itself, or, with limits of time and memory, in a
process beside it. What it raises is a bug of its own, and becomes `infra_error`, never a reward of 0; so does a call that
exceeds a limit or ends its process.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import inspect
import pickle
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import msgspec
from pydantic import Field

from headrace.verifiers.base import Options, Verifier, nearest, not_run, parse_options, printable, scored, shown
from headrace.verifiers.errors import UserError, WrongOption
from headrace.verifiers.records import Sample, Verdict
from headrace.verifiers.soundness import is_reward, plain_number, sound, text_of
from headrace.verifiers.worker_process import WorkerFailed, WorkerProcess

_LONGEST_SECONDS = 300.0  # of a call with a limit of memory alone
_LOOP_GRACE_SECONDS = 2.0

Score = float | bool | Verdict
RewardFunction = Callable[[str, dict[str, Any]], Score | Awaitable[Score]]


class FunctionSource(msgspec.Struct, frozen=True):
    """A function with its file's text: what travels to a worker on a node that does not have the file."""

    path: str
    name: str
    text: str


class FunctionOptions(Options):
    function: str | None = None
    """`file.py:name`."""
    timeout_seconds: float | None = Field(None, gt=0)
    """Of wall clock for one call. With it, or with `memory_bytes` (then 300), calls are made in a process of their own."""
    memory_bytes: int | None = Field(None, ge=64 << 20)
    """Address space beyond what that process holds once the function is loaded."""


class CallableVerifier(Verifier):
    """Scores with `function(completion, row)`; True or 1 passes, a number in [0, 1] is the reward.

    Without a limit the function runs in this process; with one, in a process of its own, which is replaced when a call
    takes too long or ends it.

    Reasons: `scored`, or the function's own in a Verdict. As infra_error: `exception`, `bad_reward`; with limits also
    `timeout`, `memory`, `crash`, `verifier_failed`. Raises UserError for what cannot be called with two arguments, and for
    a wrong limit.

    >>> CallableVerifier(lambda completion, row: completion == row["answer"]).verify(Sample("4", {"answer": "4"})).kind
    <VerdictKind.PASS: 'pass'>
    """

    def __init__(
        self,
        function: RewardFunction,
        source: FunctionSource | None = None,
        *,
        timeout_seconds: float | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        given = {"timeout_seconds": timeout_seconds, "memory_bytes": memory_bytes}
        self._limits = parse_options(FunctionOptions, given, "python")
        self._calls = FunctionCalls(function, source, timeout_seconds)
        self._process: WorkerProcess | None = None

    @classmethod
    def from_file(cls, function: str, base_dir: Path, **limits: Any) -> Self:
        """From "file.py:name", the file relative to `base_dir`. Raises UserError for what is missing or does not load."""
        file, separator, name = function.rpartition(":")
        if not separator or not file or not name:
            raise UserError(f"reward function `{function}`: write it as `file.py:name`")
        path = (base_dir / file).resolve()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"reward function `{function}`: cannot read {path}: {error}") from error
        return cls.from_source(FunctionSource(path=str(path), name=name, text=text), **limits)

    @classmethod
    def from_source(cls, source: FunctionSource, **limits: Any) -> Self:
        return cls(loaded(source), source, **limits)

    @classmethod
    def from_options(cls, options: dict[str, Any], base_dir: Path) -> Self:
        parsed = parse_options(FunctionOptions, options, "python")
        if parsed.function is None:
            raise WrongOption(
                "function", "option `function` of verifier `python` is missing: write it as `file.py:name`"
            )
        limits = parsed.model_dump(exclude={"function"})
        return cls.from_file(parsed.function, base_dir, **limits)

    def start(self) -> None:
        if self._limited:
            try:
                self._worker().start()
            except WorkerFailed as error:
                raise UserError(
                    f"reward function `{self._calls.name}` does not start in its process: {error}"
                ) from error

    def verify(self, sample: Sample) -> Verdict:
        return self.verify_many([sample])[0]

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Asynchronous functions run side by side, all in one event loop that lives as long as the verifier."""
        if not self._limited:
            return self._calls.verify_many(samples)
        try:
            return self._in_process(samples)
        except WorkerFailed as error:
            return [not_run("verifier_failed", message=printable(str(error), 500))] * len(samples)

    def close(self) -> None:
        self._calls.close()
        if self._process is not None:
            self._process.close()
            self._process = None

    @property
    def _limited(self) -> bool:
        return self._limits.timeout_seconds is not None or self._limits.memory_bytes is not None

    def _worker(self) -> WorkerProcess:
        if self._process is None:
            self._process = WorkerProcess(
                _shipped(self._calls), one_by_one=not self._calls.asynchronous, memory_bytes=self._limits.memory_bytes
            )
        return self._process

    def _in_process(self, samples: Sequence[Sample]) -> list[Verdict]:
        """One by one, whoever is next when the process ends is to blame; side by side nobody is, and each goes again
        alone."""
        worker, seconds = self._worker(), self._limits.timeout_seconds or _LONGEST_SECONDS
        verdicts: list[Verdict] = []
        side_by_side = self._calls.asynchronous and len(samples) > 1
        while len(verdicts) < len(samples):
            # In its event loop each call has its own time; a loop that stands still is noticed by the process's.
            grace = _LOOP_GRACE_SECONDS if self._calls.asynchronous else 0.0
            rest = samples[len(verdicts) :]
            outcome = worker.call(rest[:1] if self._calls.asynchronous and not side_by_side else rest, seconds + grace)
            verdicts += outcome.verdicts
            if outcome.fault and side_by_side:
                side_by_side = False
            elif outcome.fault:
                verdicts.append(not_run(str(outcome.fault), message=outcome.message))
        return verdicts

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._calls, self._limits.model_dump(exclude={"function"}))


def _rebuild(kind: type[CallableVerifier], calls: FunctionCalls, limits: dict[str, Any]) -> CallableVerifier:
    return kind(calls.function, calls.source, **limits)


class FunctionCalls(Verifier):
    """The calls themselves, in this process. `seconds`: for one asynchronous call."""

    def __init__(
        self, function: RewardFunction, source: FunctionSource | None = None, seconds: float | None = None
    ) -> None:
        self.function = function
        self.source = source
        self.name = source.name if source else getattr(function, "__qualname__", type(function).__name__)
        self._seconds = seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        _refuse_wrong_signature(function, self.name)

    @property
    def asynchronous(self) -> bool:
        """Whether it is one by its definition; another may still return something to wait for."""
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(type(self.function).__call__)

    def verify(self, sample: Sample) -> Verdict:
        return self.verify_many([sample])[0]

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        answers: list[Any] = [self._call(sample) for sample in samples]
        waiting = [index for index, answer in enumerate(answers) if inspect.isawaitable(answer)]
        if waiting:
            for index, verdict in zip(waiting, self._wait_for([answers[index] for index in waiting]), strict=True):
                answers[index] = verdict
        return answers

    def close(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def _call(self, sample: Sample) -> Any:
        try:
            answer = self.function(sample.completion, sample.row)
            return answer if inspect.isawaitable(answer) else _verdict(answer)
        except KeyboardInterrupt:  # Ctrl-C is for whoever waits
            raise
        except BaseException as error:  # noqa: BLE001 (whatever the user's code raises is its own failure)
            return _raised(error)

    def _wait_for(self, answers: list[Awaitable[Any]]) -> list[Verdict]:
        if self._loop is None:
            # One loop for all calls: HTTP clients and locks that the function keeps belong to the loop they began in.
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_run_loop, args=(self._loop,), name="reward-function", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(_all_verdicts(answers, self._seconds), self._loop).result()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source is not None:
            return _calls_from_source, (self.source, self._seconds)
        return type(self), (self.function, None, self._seconds)


def _calls_from_source(source: FunctionSource, seconds: float | None) -> FunctionCalls:
    return FunctionCalls(loaded(source), source, seconds)


def loaded(source: FunctionSource) -> RewardFunction:
    """The function. Raises UserError where its file does not load or has none of that name."""
    module = _load_module(source)
    if not hasattr(module, source.name):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UserError(f"{source.path} has no function `{source.name}`{nearest(source.name, known)}")
    return getattr(module, source.name)


def _shipped(calls: FunctionCalls) -> bytes:
    """A pickle for another process, which has the same packages but not this one's main module."""
    if calls.source is not None:
        return pickle.dumps(calls)
    # Ray takes a second to import, and only a function that is in no file needs its way to ship code.
    from ray import cloudpickle

    return cloudpickle.dumps(calls)


async def _all_verdicts(answers: list[Awaitable[Any]], seconds: float | None) -> list[Verdict]:
    return await asyncio.gather(*[_one_verdict(answer, seconds) for answer in answers])


async def _one_verdict(answer: Awaitable[Any], seconds: float | None) -> Verdict:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return _verdict(await answer)
    except BaseException as error:  # as in `_call`; Ctrl-C never comes to the thread of the loop
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        if limit.expired():
            return not_run("timeout", message=f"no answer within {seconds:g} s")
        return _raised(error)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _verdict(answer: Any) -> Verdict:
    """A function's answer as a verdict; what is no reward becomes infra_error."""
    answer = plain_number(answer)
    if isinstance(answer, Verdict):
        return sound(answer, "the function")
    if not is_reward(answer):
        message = f"returned {shown(answer)} ({type(answer).__name__}), not a number in [0, 1]"
        return not_run("bad_reward", message=message)
    return scored(float(answer), "scored")


def _raised(error: BaseException) -> Verdict:
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    reason = "memory" if isinstance(error, MemoryError) else "exception"
    return not_run(
        reason, type=type(error).__name__, message=printable(text_of(error), 500), where=printable(where, 500)
    )


def _refuse_wrong_signature(function: RewardFunction, name: str) -> None:
    if not callable(function):
        raise UserError(f"reward function `{name}` is {type(function).__name__}, not a function")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in functions tell no signature; the first call will
        return
    if {"prompts", "completions"} == set(list(signature.parameters)[:2]):  # as other trainers call theirs
        raise UserError(
            f"reward function `{name}{signature}` is called as {name}(completion, row), one sample at a time; take these two"
        )
    try:
        signature.bind("completion", {})
    except TypeError as error:
        raise UserError(f"reward function `{name}{signature}` must take (completion, row): {error}") from error


def _load_module(source: FunctionSource) -> ModuleType:
    """The module of `source`, run anew from its text. Its folder can be imported from, after all that is installed."""
    digest = hashlib.sha256(f"{source.path}\0{source.text}".encode()).hexdigest()[:12]
    name = f"headrace_reward_{Path(source.path).stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_loader(name, loader=None, origin=source.path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = source.path
    folder = str(Path(source.path).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    sys.modules[name] = module
    try:
        exec(compile(source.text, source.path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything while it loads
        del sys.modules[name]
        where = _line_in(error, source.path)
        reason = " ".join(str(error).split())
        raise UserError(f"{source.path}{where} does not load: {type(error).__name__}: {reason}") from error
    return module


def _line_in(error: BaseException, path: str) -> str:
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f":{lines[-1]}" if lines else ""
