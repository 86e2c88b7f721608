"""The verifier `entities`: its options, its rows, the process that it runs in, and the verdict over all fields."""

from __future__ import annotations

import importlib.util
import re
import zoneinfo
from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import Any, Literal

import msgspec
from pydantic import Field

from headrace.verifiers.base import after_thinking, nearest, not_run, parse_options, printable, rebuild, scored, shown
from headrace.verifiers.confined import ConfinedOptions, ConfinedVerifier
from headrace.verifiers.entities.dates import Date, DateTime, Time
from headrace.verifiers.entities.kinds import Context, EntityType, NotUnderstood, load_types
from headrace.verifiers.entities.objects import NoObject, read_object
from headrace.verifiers.entities.phones import Phone
from headrace.verifiers.entities.texts import Address, InsuranceId, InsuranceProvider, PartySize, Text
from headrace.verifiers.errors import UserError, WrongOption
from headrace.verifiers.records import Sample, Verdict

BUILT_IN: dict[str, EntityType] = {
    "date": Date(),
    "time": Time(),
    "datetime": DateTime(),
    "party_size": PartySize(),
    "phone": Phone(),
    "address": Address(),
    "insurance_provider": InsuranceProvider(),
    "insurance_id": InsuranceId(),
    "text": Text(),
    "free": Text(),
}
_FIELDS = ("answer", "fields", "reference_datetime", "time_zone", "locale")
_LOCALE = re.compile(r"([a-z]{2,3})[_-]([A-Z]{2})")
_MAX_VALUE = 300  # characters
_MAX_FIELDS = 64


class EntitiesOptions(ConfinedOptions):
    locale: str = "en_US"
    """For rows that do not say: language and country."""
    locales: list[str] = Field(default_factory=lambda: ["en_US", "en_GB", "de_DE", "es_ES", "fr_FR"])
    """What rows may say."""
    reference_datetime: str | None = None
    """"Now", for rows that do not say: ISO 8601. Without it nothing relative ("tomorrow") is understood."""
    time_zone: str | None = None
    """For rows that do not say: IANA's name of the zone that dates and times are in; none: the reference's offset."""
    thinking_end: str | None = "</think>"
    """What a completion says before the last of these marks is not looked at; none: all is."""
    partial_credit: bool = False
    """The reward is the share of fields that are right; false: all or nothing."""
    extra_fields: Literal["fail", "ignore"] = "fail"
    """What a field that gold does not have means. One that is null is none."""
    timeout_seconds: float = Field(2.0, gt=0, le=600)
    """Processor time of one check; sandbox only."""


class EntitiesVerifier(ConfinedVerifier):
    """The options of `EntitiesOptions` by name. A row has `answer` and, as it likes, `fields` (types by field; text where
    it does not say), `reference_datetime`, `time_zone` and `locale`.

    Raises UserError for a wrong option, where phonenumbers or dateparser is not installed, for a type of an installed
    package that cannot be loaded, and with `sandbox` on a host that cannot confine a process.

    >>> row = {"answer": {"day": "2026-11-20"}, "fields": {"day": "date"}, "reference_datetime": "2026-11-18T09:00"}
    >>> EntitiesVerifier(sandbox=False).verify(Sample('{"day": "this Friday"}', row)).reason
    'match'
    """

    def __init__(self, **options: Any) -> None:
        for library in ("phonenumbers", "dateparser"):
            if importlib.util.find_spec(library) is None:
                raise UserError(f"verifier `entities` needs {library}: pip install 'headrace[entities]'")
        self.options = parse_options(EntitiesOptions, options, "entities")
        check = self._rows = EntitiesCheck(self.options)
        self._set_up(self.options, load_check, self.options.model_dump(mode="json"), lambda: check.verify, _FIELDS)

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (type(self), self.options.model_dump())

    def check_row(self, row: dict[str, Any]) -> str | None:
        return self._rows.check_row(row)


def load_check(state: dict[str, Any]) -> Callable[[Sample], Verdict]:
    """What the limited process runs, with every file read that a check may want."""
    check = EntitiesCheck(EntitiesOptions.model_validate(state))
    check.warm_up()
    return check.verify


class _BadRow(Exception):
    """The row cannot be checked against; the message says which field and why."""


class _Gold(msgspec.Struct, frozen=True):
    """One field as it should be; `value` is None where it must not be there."""

    name: str
    type: EntityType
    value: str | None
    canonical: str


class _FieldResult(msgspec.Struct, frozen=True):
    """`reason`: `match`, `wrong`, `missing`, `extra`, `wrong_kind`, `not_understood`, `ambiguous`, `contradiction`."""

    passed: bool
    expected: str | None
    found: str | None
    reason: str


class EntitiesCheck:
    """The check itself: a pure function of the sample. Raises UserError for a wrong option."""

    def __init__(self, options: EntitiesOptions) -> None:
        self._options = options
        self._types = load_types(BUILT_IN)
        self._zones: dict[str, tzinfo] = {}
        self._names = {name.replace("-", "_") for name in options.locales}
        for name in (*options.locales, options.locale):
            if _LOCALE.fullmatch(name) is None:
                raise _wrong("locale", f"{name!r} is not of the form en_US")
            try:
                Date().warm_up(_context_of(name))
            except ValueError:
                raise _wrong("locale", f"dateparser does not know the language of {name!r}") from None
        if options.locale.replace("-", "_") not in self._names:
            raise _wrong("locale", f"{options.locale!r} is not one of `locales`")
        try:
            self._context({})
        except _BadRow as fault:
            key = "time_zone" if "time_zone" in str(fault) else "reference_datetime"
            raise _wrong(key, str(fault)) from fault

    def warm_up(self) -> None:
        for name in zoneinfo.available_timezones():
            self._zones[name] = zoneinfo.ZoneInfo(name)
        for name in sorted(self._names):
            for kind in self._types.values():
                kind.warm_up(_context_of(name))

    def verify(self, sample: Sample) -> Verdict:
        try:
            context = self._context(sample.row)
            golds = self._golds(sample.row, context)
        except _BadRow as fault:
            return not_run("bad_row", message=str(fault))
        try:
            found = read_object(after_thinking(sample.completion, self._options.thinking_end))
        except NoObject as fault:
            return scored(0.0, fault.reason, message=printable(str(fault)))
        results = {gold.name: _compare(gold, found.get(gold.name), context) for gold in golds}
        if self._options.extra_fields == "fail":
            extra = [name for name in found if name not in results and found[name] is not None]
            results |= {name: _FieldResult(False, None, _shown(found[name]), "extra") for name in extra[:_MAX_FIELDS]}
        return self._scored(results)

    def check_row(self, row: dict[str, Any]) -> str | None:
        try:
            self._golds(row, self._context(row))
        except _BadRow as fault:
            return str(fault)
        return None

    def _scored(self, results: dict[str, _FieldResult]) -> Verdict:
        right = sum(result.passed for result in results.values())
        details = {printable(name, 80): msgspec.to_builtins(result) for name, result in results.items()}
        if right == len(results):
            return scored(1.0, "match", fields=details)
        reason = next(result.reason for result in results.values() if not result.passed)
        reason = f"{reason}_field" if reason in ("missing", "extra", "wrong") else reason
        return scored(right / len(results) if self._options.partial_credit else 0.0, reason, fields=details)

    def _context(self, row: dict[str, Any]) -> Context:
        """Raises _BadRow."""
        locale = row.get("locale") or self._options.locale
        if not isinstance(locale, str) or locale.replace("-", "_") not in self._names:
            raise _BadRow(f"field `locale` is {shown(locale, 40)}, which is not among the option `locales`")
        zone = self._zone(row.get("time_zone") or self._options.time_zone)
        given = row.get("reference_datetime") or self._options.reference_datetime
        reference = None
        if given is not None:
            try:
                reference = datetime.fromisoformat(given)
            except (TypeError, ValueError):
                raise _BadRow(f"`reference_datetime` is {shown(given, 40)}, not ISO 8601") from None
            if reference.tzinfo is not None:
                zone = zone or reference.tzinfo
                reference = reference.astimezone(zone).replace(tzinfo=None)
        return _context_of(locale, reference, zone)

    def _zone(self, name: Any) -> tzinfo | None:
        if name is None:
            return None
        if isinstance(name, str) and name not in self._zones:
            try:
                self._zones[name] = zoneinfo.ZoneInfo(name)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
                raise _BadRow(f"`time_zone` is {shown(name, 40)}, which is no zone of IANA's") from None
        if not isinstance(name, str):
            raise _BadRow(f"`time_zone` is {type(name).__name__}, not a string")
        return self._zones[name]

    def _golds(self, row: dict[str, Any], context: Context) -> list[_Gold]:
        """Raises _BadRow."""
        answer, kinds = row.get("answer"), row.get("fields") or {}
        if not isinstance(answer, dict) or not answer:
            raise _BadRow("field `answer` is not an object with at least one field")
        if len(answer) > _MAX_FIELDS:
            raise _BadRow(f"field `answer` has {len(answer)} fields; at most {_MAX_FIELDS} are compared")
        if not isinstance(kinds, dict):
            raise _BadRow(f"field `fields` is {type(kinds).__name__}, not an object")
        for name in kinds:
            if name not in answer:
                raise _BadRow(f"field `fields` has {shown(name, 80)}, and `answer` has not")
        return [self._gold(name, kinds.get(name, "text"), value, context) for name, value in answer.items()]

    def _gold(self, name: str, kind: Any, value: Any, context: Context) -> _Gold:
        told = shown(name, 80)
        if not isinstance(kind, str) or kind not in self._types:
            hint = nearest(kind, self._types) if isinstance(kind, str) else ""
            raise _BadRow(f"field `fields` gives {told} the unknown type {shown(kind, 40)}{hint}")
        if value is None:
            return _Gold(name, self._types[kind], None, "")
        text = _as_text(value)
        if text is None:
            raise _BadRow(f"field `answer` has a value for {told} that is no text and no number")
        try:
            return _Gold(name, self._types[kind], text, printable(self._types[kind].canonical(text, context), 100))
        except NotUnderstood as fault:
            raise _BadRow(f"field `answer`: {shown(text, 80)} for {told} is no {kind} ({fault})") from fault


def _context_of(locale: str, reference: datetime | None = None, zone: tzinfo | None = None) -> Context:
    language, _, region = locale.replace("-", "_").partition("_")
    return Context(language, region, reference, zone)


def _compare(gold: _Gold, value: Any, context: Context) -> _FieldResult:
    if value is None or gold.value is None:
        if value is None and gold.value is None:
            return _FieldResult(True, None, None, "match")
        missing = value is None
        return _FieldResult(False, gold.canonical or None, _shown(value), "missing" if missing else "extra")
    text = _as_text(value)
    if text is None:
        return _FieldResult(False, gold.canonical, _shown(value), "wrong_kind")
    try:
        same = gold.type.same(text, gold.value, context)
        found = gold.type.canonical(text, context)
    except NotUnderstood as fault:
        return _FieldResult(False, gold.canonical, printable(text, 100), fault.reason)
    return _FieldResult(same, gold.canonical, printable(found, 100), "match" if same else "wrong")


def _as_text(value: Any) -> str | None:
    """A string, or a number as one writes it; None for what is neither, or is too long."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value) if isinstance(value, str | int | float) else None
    return text if text is not None and len(text) <= _MAX_VALUE else None


def _shown(value: Any) -> str | None:
    return None if value is None else printable(str(value), 100)


def _wrong(option: str, message: str) -> WrongOption:
    return WrongOption(option, f"option `{option}` of verifier `entities`: {message}")
