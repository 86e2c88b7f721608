"""Verifiers made of verifiers: a weighted sum, all of them, the first that applies to a row, or the one that a row names.

A part that does not run to its end makes the whole an infra_error: never a reward of what is left. Each part has its samples
as one batch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec
from pydantic import Field

from headrace.verifiers.base import Options, Verifier, VerifierSpec, nearest, not_run, parse_options, printable
from headrace.verifiers.errors import UserError, WrongOption
from headrace.verifiers.records import Sample, Verdict, VerdictKind
from headrace.verifiers.soundness import judged

Build = Callable[[VerifierSpec], Verifier]

_TOLD = ("type", "message", "where")  # details of a check that did not run which are told of the whole as well


class Part(msgspec.Struct, frozen=True):
    """A verifier inside another one."""

    name: str  # in details, and in rows that choose
    verifier: Verifier
    weight: float = 1.0  # of a weighted sum
    when: str | None = None  # of first_applicable: the row field that says so


class PartOptions(Options):
    verifier: str | None = None
    """A registered verifier, by name."""
    function: str | None = None
    """A function of your own instead: `file.py:name`."""
    options: dict[str, Any] = Field({})
    """The part's own options."""
    name: str | None = None
    """How details, and rows, call it; by default as the verifier or the function is called."""


class WeightedPartOptions(PartOptions):
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Relative to the others' weights."""


class ApplicablePartOptions(PartOptions):
    when: str | None = None
    """The part is for rows that have this field; by default for those that it has no complaint about."""


class CompositeOptions(Options):
    parts: list[dict[str, Any]] = Field([])


class ChoiceOptions(CompositeOptions):
    field: str = "verifier"
    """Row field with a part's name, or with the name of a registered verifier that needs no options."""
    default: str | None = None
    """Who judges rows without the field; none: they are refused."""


class Composite(Verifier):
    """What the verifiers here share. `compose` is the way in from a job file, the constructor that from Python.

    Raises UserError when there are no parts, or two of one name.
    """

    name: ClassVar[str]
    options_model: ClassVar[type[CompositeOptions]] = CompositeOptions
    part_model: ClassVar[type[PartOptions]] = PartOptions

    def __init__(self, parts: Sequence[Part]) -> None:
        if not parts:
            raise WrongOption("parts", f"option `parts` of verifier `{self.name}` is empty")
        self._set_parts(parts)

    def _set_parts(self, parts: Sequence[Part]) -> None:
        seen: set[str] = set()
        for place, part in enumerate(parts):
            if part.name in seen:
                message = (
                    f"two parts of verifier `{self.name}` are called `{part.name}`; give one of them another `name`"
                )
                raise WrongOption(f"parts.{place}", message)
            seen.add(part.name)
        self.parts = tuple(parts)

    @classmethod
    def compose(cls, options: dict[str, Any], base_dir: Path, build: Build) -> Self:
        """From a job file's options; `build` makes each part's verifier. Raises UserError with the part at fault."""
        parsed = parse_options(cls.options_model, options, cls.name)
        return cls(cls._built(parsed, base_dir, build))

    @classmethod
    def _built(cls, options: CompositeOptions, base_dir: Path, build: Build) -> list[Part]:
        return [_built_part(cls, place, raw, base_dir, build) for place, raw in enumerate(options.parts)]

    @abstractmethod
    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        raise NotImplementedError

    def verify(self, sample: Sample) -> Verdict:
        return self.verify_many([sample])[0]

    def repeatable(self) -> bool:
        return all(part.verifier.repeatable() for part in self.parts)

    def check_row(self, row: dict[str, Any]) -> str | None:
        faults = ((part.name, part.verifier.check_row(row)) for part in self.parts)
        return next((f"{name}: {fault}" for name, fault in faults if fault), None)

    def start(self) -> None:
        for part in self.parts:
            part.verifier.start()

    def missing_layers(self) -> str:
        missing = ((part.name, part.verifier.missing_layers()) for part in self.parts)
        return "; ".join(f"{name}: {what}" for name, what in missing if what)

    def close(self) -> None:
        with ExitStack() as stack:  # each of them, also when one fails at it
            for part in self.parts:
                stack.callback(part.verifier.close)


def _built_part(kind: type[Composite], place: int, raw: dict[str, Any], base_dir: Path, build: Build) -> Part:
    where = f"parts.{place}"
    told = f"part {place + 1} of `{kind.name}`"
    try:
        options = parse_options(kind.part_model, raw, kind.name)
    except WrongOption as error:
        raise WrongOption(f"{where}.{error.option}", f"{told}: {error.message}") from error
    try:
        verifier = build(VerifierSpec(options.verifier, options.options, options.function, str(base_dir)))
    except WrongOption as error:
        raise WrongOption(f"{where}.options.{error.option}", f"{told}: {error.message}") from error
    except UserError as error:
        raise WrongOption(where, f"{told}: {error}") from error
    own = (options.function or "").rpartition(":")[2] or options.verifier or ""
    weight = options.weight if isinstance(options, WeightedPartOptions) else 1.0
    when = options.when if isinstance(options, ApplicablePartOptions) else None
    return Part(options.name or own, verifier, weight, when)


class WeightedSum(Composite):
    """The parts' rewards, weighted by `weight` and divided by the weights' sum. It passes when every part passes.

    Reasons: `all_passed`, else that of the first part that does not pass.
    """

    name = "weighted_sum"
    part_model = WeightedPartOptions

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        verdicts = _by_all(self.parts, samples, go_on=lambda verdict: verdict.kind is not VerdictKind.INFRA_ERROR)
        return [_ended(each) or self._weighted(each) for each in verdicts]

    def _weighted(self, verdicts: dict[str, Verdict]) -> Verdict:
        rewards = [verdicts[part.name].reward for part in self.parts]
        total = math.fsum(part.weight for part in self.parts)
        earned = math.fsum(part.weight * reward for part, reward in zip(self.parts, rewards, strict=True))
        # Where all have earned everything no rounding may take from it.
        reward = 1.0 if min(rewards) >= 1.0 else max(0.0, min(earned / total, _BELOW_ONE))
        return _judged(verdicts, reward)


_BELOW_ONE = math.nextafter(1.0, 0.0)


class AllOf(Composite):
    """Reward 1 when every part passes, else 0. Parts are asked in order, and a sample that one fails is not shown to the
    next: the cheap ones go first.

    Reasons: `all_passed`, else that of the part that does not pass.
    """

    name = "all_of"

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        verdicts = _by_all(self.parts, samples, go_on=lambda verdict: verdict.kind is VerdictKind.PASS)
        return [_ended(each) or _judged(each, 1.0 if _all_passed(each) else 0.0) for each in verdicts]


class FirstApplicable(Composite):
    """The verdict of the first part that a row is for: by the part's field `when`, or, where it names none, because the part
    has no complaint about the row.

    Reasons: the part's own. As infra_error also `bad_row`, when no part is for the row.
    """

    name = "first_applicable"
    part_model = ApplicablePartOptions

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        return _by_one(samples, [self._choice(sample.row) for sample in samples])

    def check_row(self, row: dict[str, Any]) -> str | None:
        choice = self._choice(row)
        if isinstance(choice, str):
            return choice
        fault = choice.verifier.check_row(row)
        return f"{choice.name}: {fault}" if fault else None

    def _choice(self, row: dict[str, Any]) -> Part | str:
        """The part for `row`, or why there is none."""
        faults = []
        for part in self.parts:
            fault = part.verifier.check_row(row) if part.when is None else _absence(row, part.when)
            if not fault:
                return part
            faults.append(f"{part.name}: {fault}")
        return f"no part is for this row ({'; '.join(faults)})"


class ByRow(Composite):
    """The verdict of the part that a row's `field` names, or of the registered verifier of that name, without options.

    Reasons: the part's own. As infra_error also `bad_row`, when the row names none that there is.
    """

    name = "by_row"
    options_model = ChoiceOptions

    def __init__(
        self,
        parts: Sequence[Part] = (),
        field: str = "verifier",
        default: str | None = None,
        build: Build | None = None,
    ) -> None:
        """`build` makes the registered verifiers that rows name; None: they can name parts alone."""
        self._set_parts(parts)
        self.field = field
        self.default = default
        self._build = build
        self._faults: dict[str, str] = {}
        if default is not None and isinstance(choice := self._named(default), str):
            raise WrongOption("default", f"option `default` of verifier `{self.name}`: {choice}")

    @classmethod
    def compose(cls, options: dict[str, Any], base_dir: Path, build: Build) -> Self:
        parsed = parse_options(ChoiceOptions, options, cls.name)
        return cls(cls._built(parsed, base_dir, build), parsed.field, parsed.default, build)

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        return _by_one(samples, [self._choice(sample.row) for sample in samples])

    def check_row(self, row: dict[str, Any]) -> str | None:
        choice = self._choice(row)
        if isinstance(choice, str):
            return choice
        fault = choice.verifier.check_row(row)
        return f"{choice.name}: {fault}" if fault else None

    def _choice(self, row: dict[str, Any]) -> Part | str:
        """The part for `row`, or why there is none."""
        name = row.get(self.field)
        if name is None:
            name = self.default
        if name is None:
            return f"field `{self.field}` is missing: it names the verifier"
        if not isinstance(name, str):
            return f"field `{self.field}` is {type(name).__name__}, not a verifier's name"
        choice = self._named(name)
        return f"field `{self.field}`: {choice}" if isinstance(choice, str) else choice

    def _named(self, name: str) -> Part | str:
        for part in self.parts:
            if part.name == name:
                return part
        if self._build is None:
            return f"no part is called `{printable(name, 80)}`{nearest(name[:80], [part.name for part in self.parts])}"
        if name in self._faults:
            return self._faults[name]
        try:
            part = Part(name, self._build(VerifierSpec(verifier=name)))
            if isinstance(part.verifier, ByRow):  # it would look for its own choice in the same field, for ever
                raise UserError(f"`{name}` is the one that chooses")
        except UserError as error:
            close = nearest(name[:80], [part.name for part in self.parts])
            fault = self._faults[name] = f"{error}{close if 'did you mean' in close else ''}"
            return fault
        self.parts += (part,)
        return part


def _absence(row: Mapping[str, Any], field: str) -> str:
    return "" if row.get(field) is not None else f"field `{field}` is missing"


def _by_all(
    parts: Iterable[Part], samples: Sequence[Sample], go_on: Callable[[Verdict], bool]
) -> list[dict[str, Verdict]]:
    """Each sample's verdicts by part, in the parts' order, up to the first on which there is no going on."""
    verdicts: list[dict[str, Verdict]] = [{} for _ in samples]
    left = list(range(len(samples)))
    for part in parts:
        if not left:
            break
        found = judged(part.verifier, [samples[index] for index in left])
        for index, verdict in zip(left, found, strict=True):
            verdicts[index][part.name] = verdict
        left = [index for index, verdict in zip(left, found, strict=True) if go_on(verdict)]
    return verdicts


def _by_one(samples: Sequence[Sample], choices: Sequence[Part | str]) -> list[Verdict]:
    """Each sample's verdict by the part that was chosen for it, or `bad_row` where none could be."""
    verdicts: dict[int, Verdict] = {}
    batches: dict[str, tuple[Part, list[int]]] = {}
    for index, choice in enumerate(choices):
        if isinstance(choice, str):
            verdicts[index] = not_run("bad_row", message=choice)
        else:
            batches.setdefault(choice.name, (choice, []))[1].append(index)
    for part, indices in batches.values():
        found = judged(part.verifier, [samples[index] for index in indices])
        for index, verdict in zip(indices, found, strict=True):
            verdicts[index] = msgspec.structs.replace(verdict, details=_details({part.name: verdict}, verdict))
    return [verdicts[index] for index in range(len(samples))]


def _ended(verdicts: dict[str, Verdict]) -> Verdict | None:
    """The whole's verdict where a part did not run to its end."""
    for verdict in verdicts.values():
        if verdict.kind is VerdictKind.INFRA_ERROR:
            return not_run(verdict.reason, **_details(verdicts, verdict))
    return None


def _judged(verdicts: dict[str, Verdict], reward: float) -> Verdict:
    if _all_passed(verdicts):
        return Verdict(VerdictKind.PASS, reward, "all_passed", _details(verdicts))
    first = next(verdict for verdict in verdicts.values() if verdict.kind is not VerdictKind.PASS)
    return Verdict(VerdictKind.FAIL, reward, first.reason, _details(verdicts, first))


def _all_passed(verdicts: dict[str, Verdict]) -> bool:
    return all(verdict.kind is VerdictKind.PASS for verdict in verdicts.values())


def _details(verdicts: dict[str, Verdict], decisive: Verdict | None = None) -> dict[str, Any]:
    """Every part's verdict by its name; and what the decisive one has to tell."""
    shown = {
        name: {"verdict": str(each.kind), "reward": each.reward, "reason": each.reason, "details": each.details}
        for name, each in verdicts.items()
    }
    told = {key: decisive.details[key] for key in _TOLD if key in decisive.details} if decisive is not None else {}
    return {**told, "parts": shown}
