"""Dates, times of day, and both: in ISO form, in a locale's numbers, or in words, under a reference.

dateparser's own parser skips words that it does not know and some that it does ("und", "or"), so that a text that hedges
passes for its first date. Here its data are used, the names and phrases of each language, under a grammar that every word
of the text must have a place in.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Any

import msgspec

from headrace.verifiers.entities.kinds import Context, EntityType, NotUnderstood
from headrace.verifiers.entities.texts import folded, without_accents
from headrace.verifiers.entities.vocabulary import DATES, NUMBERS, TIMES, DateWords, TimeWords

_ISO_DATE = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})")
_NUMERIC = re.compile(r"(\d{1,2})([-/.]) ?(\d{1,2})(?:\2 ?(\d{4}|\d{2})?)?")
_ISO_DATETIME = re.compile(r"(\d{4}-\d{2}-\d{2})[t ](\d{2}:\d{2}(?::\d{2})?)(?:\.0+)?\s?(z|[+-]\d{2}:?\d{2})?")
_CLOCK = re.compile(r"(\d{1,2})(?:(?::|\.|\s?h\s?|\s?uhr\s|\s?heures?\s)(\d{2})(?::(\d{2}))?(?!\d))?\s?(.*)")
_HEDGES = frozenset(
    ("or", "oder", "ou", "o", "u", "and", "und", "et", "y", "e", "maybe", "perhaps", "vielleicht", "bis", "to", "through",
     "either", "entweder", "/", "-", "&", "|")
)  # fmt: skip
_AT_NIGHT = frozenset({"at night", "de la noche"})  # of 12 and of the small hours nobody can tell which night
_MAX_WORDS = 16
_MONTH_FIRST = frozenset({"US", "PH", "PR"})


class Date(EntityType):
    """A day: "2026-11-20", "11/20/2026" in the US, "20. November", "this Friday", "tomorrow", "in 3 days"."""

    def canonical(self, text: str, context: Context) -> str:
        return read_date(text, context).isoformat()

    def warm_up(self, context: Context) -> None:
        _language(context.language)


class Time(EntityType):
    """A time of day: "19:00", "7pm", "19 Uhr", "19h30", "noon". An hour alone ("7") is none."""

    def canonical(self, text: str, context: Context) -> str:
        return read_time(text, context).isoformat()


class DateTime(EntityType):
    """A day and a time of day. One with an offset is taken to the context's time zone, where there is one."""

    def canonical(self, text: str, context: Context) -> str:
        return read_datetime(text, context).isoformat()

    def warm_up(self, context: Context) -> None:
        _language(context.language)


def read_date(text: str, context: Context) -> date:
    """Raises NotUnderstood."""
    plain = _plain(text).strip(" .,")
    try:
        found = _iso_date(plain) or _numeric_date(plain, context) or _relative_day(plain, context)
        return found or _named_day(plain, context)
    except (ValueError, OverflowError):  # no such day
        raise NotUnderstood(_why(plain)) from None


def read_time(text: str, context: Context) -> time:
    """Raises NotUnderstood."""
    words = TIMES.get(context.language, TIMES["en"])
    plain = re.sub(r"\b([ap])\.? ?m\b\.?", r"\1m", _plain(text)).strip(" ,")
    plain = _without_front(plain, words.before)
    if plain in words.noon:
        return time(12)
    if plain in words.midnight:
        return time(0)
    first, space, rest = plain.partition(" ")
    number = NUMBERS.get(context.language, NUMBERS["en"]).get(first)
    clock = _CLOCK.fullmatch(f"{number}{space}{rest}" if number else plain)
    if clock is None:
        raise NotUnderstood(_why(plain))
    try:
        hour = _hour(int(clock[1]), clock[2] is not None, clock[4].strip(), words)
        return time(hour, int(clock[2] or 0), int(clock[3] or 0))
    except ValueError:
        raise NotUnderstood(_why(plain)) from None


def read_datetime(text: str, context: Context) -> datetime:
    """Raises NotUnderstood. Without an offset, unless it was written with one and there is no zone to take it to."""
    plain = _plain(text)
    iso = _ISO_DATETIME.fullmatch(plain)
    if iso is not None:
        try:
            return _in_zone(datetime.fromisoformat(f"{iso[1]} {iso[2]}{(iso[3] or '').upper()}"), context)
        except (ValueError, OverflowError):
            raise NotUnderstood from None
    found = set(_splits(plain, context))
    if len(found) != 1:
        raise NotUnderstood("ambiguous" if found else _why(plain))
    return found.pop()


def _splits(plain: str, context: Context) -> Iterator[datetime]:
    """Every reading as a date and a time, in this order or the other."""
    words = plain.replace(",", " , ").split()
    if len(words) > _MAX_WORDS:
        return
    between = DATES.get(context.language, DATES["en"]).at
    for place in range(1, len(words)):
        front, back = " ".join(words[:place]).strip(" ,"), _without_front(" ".join(words[place:]).strip(" ,"), between)
        for day, clock in ((front, back), (back, front)):
            try:
                yield datetime.combine(read_date(day, context), read_time(clock, context))
            except NotUnderstood:
                continue


def _in_zone(moment: datetime, context: Context) -> datetime:
    if moment.tzinfo is None:
        return moment
    return moment.astimezone(UTC) if context.zone is None else moment.astimezone(context.zone).replace(tzinfo=None)


def _hour(hour: int, has_minutes: bool, tail: str, words: TimeWords) -> int:
    if tail in words.hour or (not tail and has_minutes):
        return hour
    if tail in words.morning and 1 <= hour <= 12:
        return hour % 12
    if tail in words.evening:
        if 13 <= hour <= 23 and tail != "pm":
            return hour
        if tail == "pm" and 1 <= hour <= 12:
            return hour % 12 + 12
        if 1 <= hour <= 11 and not (tail in _AT_NIGHT and hour < 6):
            return hour + 12
    raise ValueError


def _iso_date(plain: str) -> date | None:
    found = _ISO_DATE.fullmatch(plain)
    return date(int(found[1]), int(found[3]), int(found[4])) if found else None


def _numeric_date(plain: str, context: Context) -> date | None:
    found = _NUMERIC.fullmatch(plain)
    if found is None:
        return None
    first, second = int(found[1]), int(found[3])
    month_first = context.region in _MONTH_FIRST and found[2] != "."
    day, month = (second, first) if month_first else (first, second)
    if found[4] is None and found[2] == "-":
        raise NotUnderstood("ambiguous")  # "11-12": a day, or two of them
    if found[4] is None:
        return _next_such_day(day, month, context)
    return date(int(found[4]) + (2000 if len(found[4]) == 2 else 0), month, day)


def _relative_day(plain: str, context: Context) -> date | None:
    language = _language(context.language)
    if plain in language.days:
        return _today(context) + timedelta(days=language.days[plain])
    units = dict(language.words.units)
    for pattern in language.words.inside:
        found = re.fullmatch(pattern, plain)
        if found and found[2] in units:
            return _today(context) + timedelta(days=int(found[1]) * units[found[2]])
    return None


def _named_day(plain: str, context: Context) -> date:
    """A date with the name of a month, or of a day of the week. Every word must be one of the few that have a meaning."""
    language = _language(context.language)
    words = _words(plain, language.words)
    if not 1 <= len(words) <= _MAX_WORDS:
        raise NotUnderstood(_why(plain))
    numbers = [word for word in words if word[0].isdigit()]
    names = [word for word in words if not word[0].isdigit()]
    months = [language.months[name] for name in names if name in language.months and numbers]
    weekdays = [language.weekdays[name] for name in names if name in language.weekdays]
    weekdays = [] if months and len(names) == 1 else weekdays  # "mar" is a month beside a number
    if months:
        if len(months) != 1 or len(weekdays) + 1 != len(names):
            raise NotUnderstood(_why(plain))
        day = _day_of_month(numbers, months[0], language.words.ordinal, context)
        if weekdays and day.weekday() != weekdays[0]:
            raise NotUnderstood("contradiction")
        return day
    if numbers or len(weekdays) != 1:
        raise NotUnderstood(_why(plain))
    return _day_of_week(weekdays[0], [name for name in names if name not in language.weekdays], language, context)


def _day_of_month(numbers: list[str], month: int, ordinal: str, context: Context) -> date:
    days = [found for number in numbers if (found := re.fullmatch(rf"(\d{{1,2}}){ordinal}", number))]
    years = [number for number in numbers if re.fullmatch(r"\d{4}", number)]
    if len(days) != 1 or len(years) > 1 or len(numbers) != len(days) + len(years):
        raise NotUnderstood("ambiguous")
    day = int(days[0][1])
    return date(int(years[0]), month, day) if years else _next_such_day(day, month, context)


def _day_of_week(weekday: int, rest: list[str], language: _Language, context: Context) -> date:
    today = _today(context)
    monday = today - timedelta(days=today.weekday())
    phrase = " ".join(rest)
    if not rest or all(word in language.words.this for word in rest):
        return today + timedelta(days=(weekday - today.weekday()) % 7)
    if all(word in language.words.next for word in rest) or phrase in language.next_week:
        return monday + timedelta(days=7 + weekday)
    if phrase in language.this_week:
        return monday + timedelta(days=weekday)
    raise NotUnderstood(_why(phrase))


def _next_such_day(day: int, month: int, context: Context) -> date:
    """The first such day from today on."""
    today = _today(context)
    for year in range(today.year, today.year + 9):
        if day <= calendar.monthrange(year, month)[1] and date(year, month, day) >= today:
            return date(year, month, day)
    raise ValueError


def _today(context: Context) -> date:
    if context.reference is None:
        raise NotUnderstood
    return context.reference.date()


def _why(plain: str) -> str:
    """A word for the report: whether the text looks like several answers."""
    parts = set(re.split(r"[\s,]+", plain))
    if re.search(r"[^\W\d_]{2}", plain):  # "7-8pm", and not a date in numbers
        parts |= set(re.findall(r"[/&|-]", plain))
    return "ambiguous" if _HEDGES & parts else "not_understood"


def _plain(text: str) -> str:
    return without_accents(folded(text))


def _without_front(plain: str, phrases: frozenset[str]) -> str:
    for phrase in sorted(phrases, key=len, reverse=True):
        if phrase and plain.startswith(phrase) and (not phrase[-1].isalpha() or plain[len(phrase) :].startswith(" ")):
            return plain[len(phrase) :].strip()
    return plain


def _words(plain: str, words: DateWords) -> list[str]:
    parts = (part.rstrip(".") for part in re.split(r"[\s,]+", plain))
    return [part for part in parts if part and part not in words.before]


class _Language(msgspec.Struct, frozen=True):
    """What dateparser knows of a language, with the words of ours."""

    words: DateWords
    months: dict[str, int]
    weekdays: dict[str, int]
    days: dict[str, int]  # "tomorrow": days from today
    this_week: frozenset[str]
    next_week: frozenset[str]


@lru_cache(maxsize=64)
def _language(name: str) -> _Language:
    """Raises KeyError for a language that dateparser does not know."""
    # Optional and slow to import. verifier.py has seen to it that it is there.
    from dateparser.languages import default_loader

    info: dict[str, Any] = default_loader.get_locale(name).info
    words = DATES.get(name, DateWords())
    relative: dict[str, list[str]] = info.get("relative-type", {})
    days: dict[str, int] = {}
    for key, listed in relative.items():
        offset = re.fullmatch(r"(in )?(\d) day( ago)?", key)
        if offset:
            days |= {_plain(phrase): int(offset[2]) * (1 if offset[1] else -1) for phrase in listed}
    days |= {_plain(phrase): away for phrase, away in words.soon}

    def phrases(key: str) -> frozenset[str]:
        return frozenset(" ".join(_words(_plain(phrase), words)) for phrase in relative.get(key, ()))

    def names(keys: list[str], first: int) -> dict[str, int]:
        listed = [
            (_plain(each).rstrip("."), number) for number, key in enumerate(keys, first) for each in info.get(key, ())
        ]
        return dict(listed)

    months = names([month.lower() for month in calendar.month_name[1:]], 1)
    weekdays = names([weekday.lower() for weekday in calendar.day_name], 0)
    return _Language(words, months, weekdays, days, phrases("0 week ago"), phrases("in 1 week"))
