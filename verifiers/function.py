"""Rewards from a plain Python function: `f(completion, row) -> float | bool | Verdict`, also `async`.

The function is the user's and trusted: it runs in the verification worker itself. What it raises is a bug of its own, and
becomes `infra_error`, never a reward of 0.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import inspect
import numbers
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import msgspec

from headrace.verifiers.base import Verifier, nearest, not_run, printable, scored
from headrace.verifiers.errors import UserError
from headrace.verifiers.records import Sample, Verdict, VerdictKind

Score = float | bool | Verdict
RewardFunction = Callable[[str, dict[str, Any]], Score | Awaitable[Score]]


class FunctionSource(msgspec.Struct, frozen=True):
    """A function with its file's text: what travels to a worker on a node that does not have the file."""

    path: str
    name: str
    text: str


class CallableVerifier(Verifier):
    """Scores with `function(completion, row)`; True or 1 passes, a number in [0, 1] is the reward.

    Reasons: `scored`, or the function's own in a Verdict. As infra_error: `exception`, `bad_reward`. Raises UserError for
    what cannot be called with two arguments.

    >>> CallableVerifier(lambda completion, row: completion == row["answer"]).verify(Sample("4", {"answer": "4"})).kind
    <VerdictKind.PASS: 'pass'>
    """

    def __init__(self, function: RewardFunction, source: FunctionSource | None = None) -> None:
        self._function = function
        self._source = source
        self._name = source.name if source else getattr(function, "__qualname__", type(function).__name__)
        self._loop: asyncio.AbstractEventLoop | None = None
        _refuse_wrong_signature(function, self._name)

    @classmethod
    def from_file(cls, function: str, base_dir: Path) -> Self:
        """From "file.py:name", the file relative to `base_dir`. Raises UserError for what is missing or does not load."""
        file, separator, name = function.rpartition(":")
        if not separator or not file or not name:
            raise UserError(f"reward function `{function}`: write it as `file.py:name`")
        path = (base_dir / file).resolve()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"reward function `{function}`: cannot read {path}: {error}") from error
        return cls.from_source(FunctionSource(path=str(path), name=name, text=text))

    @classmethod
    def from_source(cls, source: FunctionSource) -> Self:
        module = _load_module(source)
        if not hasattr(module, source.name):
            known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise UserError(f"{source.path} has no function `{source.name}`{nearest(source.name, known)}")
        return cls(getattr(module, source.name), source)

    def verify(self, sample: Sample) -> Verdict:
        return self.verify_many([sample])[0]

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Asynchronous functions run side by side, all in one event loop that lives as long as the verifier."""
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
            answer = self._function(sample.completion, sample.row)
            return answer if inspect.isawaitable(answer) else _verdict(answer)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever the user's code raises is its own failure)
            return _raised(error)

    def _wait_for(self, answers: list[Awaitable[Any]]) -> list[Verdict]:
        if self._loop is None:
            # One loop for all calls: HTTP clients and locks that the function keeps belong to the loop they began in.
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_run_loop, args=(self._loop,), name="reward-function", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(_all_verdicts(answers), self._loop).result()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is not None:
            return type(self).from_source, (self._source,)
        return type(self), (self._function,)


async def _all_verdicts(answers: list[Awaitable[Any]]) -> list[Verdict]:
    return await asyncio.gather(*[_one_verdict(answer) for answer in answers])


async def _one_verdict(answer: Awaitable[Any]) -> Verdict:
    try:
        return _verdict(await answer)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (as in `_call`)
        return _raised(error)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _verdict(answer: Any) -> Verdict:
    """A function's answer as a verdict; what is no reward becomes infra_error."""
    answer = _plain(answer)
    if isinstance(answer, Verdict):
        if answer.kind is VerdictKind.INFRA_ERROR:
            return answer
        reward = _plain(answer.reward)
        if _is_reward(reward):
            return msgspec.structs.replace(answer, reward=float(reward))
        return not_run("bad_reward", message=f"the verdict's reward is {printable(repr(answer.reward))}, not in [0, 1]")
    if not _is_reward(answer):
        message = f"returned {printable(repr(answer))} ({type(answer).__name__}), not a number in [0, 1]"
        return not_run("bad_reward", message=message)
    return scored(float(answer), "scored")


def _plain(value: Any) -> Any:
    """A number of numpy's as Python's own. Whoever returns one has loaded numpy; nobody else needs it here."""
    numpy = sys.modules.get("numpy")
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value


def _is_reward(value: Any) -> bool:
    return isinstance(value, numbers.Real) and 0.0 <= float(value) <= 1.0


def _raised(error: BaseException) -> Verdict:
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return not_run("exception", type=type(error).__name__, message=printable(str(error), 500), where=where)


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
