"""What a verifier is, and what describes one in a job file.

A verifier is a small class with typed options and one duty, `verify(sample) -> Verdict`. It is built once per process,
holds no state that a verdict depends on, and can be pickled: Ray ships it to the verification workers.
"""

from __future__ import annotations

import difflib
import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, get_args, runtime_checkable

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError

from headrace.verifiers.errors import WrongOption
from headrace.verifiers.records import Sample, Verdict, VerdictKind

MOST_LISTED = 40  # names in a message


@runtime_checkable
class Verifier(Protocol):
    """The interface of every verifier; subclass it and write `verify`, the rest has defaults that serve.

    >>> class Shouting(Verifier):
    ...     def verify(self, sample):
    ...         return scored(float(sample.completion.isupper()), "case")
    >>> Shouting().verify(Sample(completion="YES", row={})).reward
    1.0
    """

    @abstractmethod
    def verify(self, sample: Sample) -> Verdict:
        """The verdict on one sample. Whatever the completion holds, this returns; the reward is in [0, 1]."""
        raise NotImplementedError

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Verdicts in the order of the samples; override it where a batch is cheaper than its parts."""
        return [self.verify(sample) for sample in samples]

    def repeatable(self) -> bool:
        """Whether a second check of the same sample costs time and nothing else (no money, no trace, no other verdict), so
        that a slow one may be given to a second worker meanwhile."""
        return False

    def check_row(self, row: dict[str, Any]) -> str | None:
        """What is wrong with a data row, in one clause, or None; the caller knows file and line and adds them."""
        return None

    def start(self) -> None:
        """Bring up what the first verdict would otherwise wait for. Raises UserError where this host cannot run it."""

    def missing_layers(self) -> str:
        """What this host lacks of the sandbox that the checks should have, where they run all the same because
        `allow_degraded` says so; empty where nothing is missing. Asked after `start`."""
        return ""

    def close(self) -> None:
        """Release processes and threads; the verifier may be used again afterwards and then starts them anew."""

    @classmethod
    def from_options(cls, options: dict[str, Any], base_dir: Path) -> Self:
        """Build from a job file's options; override it to resolve relative paths against `base_dir`.

        Raises UserError, naming the option, for one that the constructor does not take.
        """
        parameters = inspect.signature(cls).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        if not takes_any:
            for key in options:
                if key not in parameters:
                    raise WrongOption(key, f"unknown option `{key}` of {cls.__name__}{nearest(key, parameters)}")
        for name, parameter in parameters.items():
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if named and parameter.default is parameter.empty and name not in options:
                raise WrongOption(name, f"option `{name}` of {cls.__name__} is missing; it has no default")
        return cls(**options)


class VerifierSpec(msgspec.Struct, frozen=True):
    """A verifier as a job file names it: either a registered name with options, or a function in a file."""

    verifier: str | None = None
    options: dict[str, Any] = {}
    function: str | None = None  # "file.py:name"
    base_dir: str = "."  # relative paths in `options` and `function` start here


class Options(BaseModel):
    """Base of a verifier's own options: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


OptionsModel = TypeVar("OptionsModel", bound=Options)
VerifierKind = TypeVar("VerifierKind", bound=Verifier)


def rebuild(kind: Callable[..., VerifierKind], options: dict[str, Any]) -> VerifierKind:
    """What a verifier that is its options is unpickled by: `return rebuild, (type(self), self.options.model_dump())`."""
    return kind(**options)


def parse_options(model: type[OptionsModel], options: dict[str, Any], verifier: str) -> OptionsModel:
    """`options` as a `model`. Raises UserError with the first wrong key, its place and the nearest valid name."""
    try:
        return model.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _known_keys(model, first["loc"])
            hint = nearest(str(first["loc"][-1]), known)
            raise WrongOption(key, f"unknown option `{key}` of verifier `{verifier}`{hint}") from None
        place = f"option `{key}`" if key else "the options"
        message = f"{place} of verifier `{verifier}`: {first['msg'].removeprefix('Value error, ')}"
        raise WrongOption(key, message) from None


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> Iterable[str]:
    for part in location[:-1]:
        kind = model.model_fields[str(part)].annotation
        inner = [each for each in (kind, *get_args(kind)) if isinstance(each, type) and issubclass(each, BaseModel)]
        if not inner:
            return ()
        model = inner[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that helps someone who misspelt `name`; starts with a semicolon. Empty when no name is near and there are
    none, or too many to list.

    >>> nearest("tool_cal", ["regex", "tool_call"])
    '; did you mean `tool_call`?'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean `{printable(close[0], 80)}`?"
    return f"; there are: {', '.join(printable(each, 80) for each in names)}" if 0 < len(names) <= MOST_LISTED else ""


def scored(reward: float, reason: str, **details: Any) -> Verdict:
    """The verdict of a check that ran: `pass` for the full reward of 1, `fail` below it."""
    kind = VerdictKind.PASS if reward >= 1.0 else VerdictKind.FAIL
    return Verdict(kind=kind, reward=reward, reason=reason, details=details)


def not_run(reason: str, **details: Any) -> Verdict:
    """The verdict of a check that did not run to its end, through no fault of the sample."""
    return Verdict(kind=VerdictKind.INFRA_ERROR, reward=0.0, reason=reason, details=details)


def after_thinking(completion: str, mark: str | None) -> str:
    """What a completion says behind the last `mark`, where it has one: all else was thinking.

    >>> after_thinking("<think>4?</think>5", "</think>")
    '5'
    """
    return completion.rpartition(mark)[2] if mark else completion


def deeper_than(value: Any, limit: int) -> bool:
    """Whether values are nested in it more than `limit` levels deep.

    >>> deeper_than([[]], 1), deeper_than([[]], 2)
    (True, False)
    """
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def printable(text: str, limit: int = 200) -> str:
    """`text` as every encoder takes it: lone surrogates replaced, cut to `limit` characters."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return cut.encode("utf-8", "replace").decode("utf-8")


def shown(value: Any, limit: int = 200) -> str:
    """A value of a row as it is told in a message: its `repr`, printable; its type where it is nested too deep for one.

    >>> shown({"day": 1})
    "{'day': 1}"
    """
    try:
        return printable(repr(value), limit)
    except RecursionError:
        return f"a {type(value).__name__}, nested too deep to be shown"
