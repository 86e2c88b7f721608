"""Completions that match a regular expression, on RE2: time is linear in the text, whatever the pattern."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import re2

from headrace.verifiers.base import Options, Verifier, not_run, parse_options, printable, scored
from headrace.verifiers.errors import WrongOption
from headrace.verifiers.records import Sample, Verdict

_SETTINGS = re2.Options()
_SETTINGS.log_errors = False  # the error is raised; RE2 would print it to stderr as well


class RegexOptions(Options):
    pattern: str | None = None
    """RE2 syntax (no back-references, no look-around); None: each row brings its own."""
    pattern_field: str = "pattern"
    """Row field with a pattern of the row's own; it goes before `pattern`."""
    full_match: bool = False
    """The whole completion must match, surrounding white space apart; false: some part of it."""


class RegexVerifier(Verifier):
    """Reward 1 for a completion that matches, else 0. Reasons: `match`, `no_match`; `bad_row` is an infra_error.

    Takes the fields of `RegexOptions` by name. Raises UserError for a wrong option or an invalid pattern.

    >>> RegexVerifier(pattern=r"\\d{4}").verify(Sample(completion="in 1984", row={})).reason
    'match'
    """

    def __init__(self, pattern: str | None = None, **options: Any) -> None:
        self.options = parse_options(RegexOptions, {"pattern": pattern, **options}, "regex")
        if self.options.pattern is not None:
            fault = _pattern_fault(self.options.pattern)
            if fault is not None:
                raise WrongOption("pattern", f"option `pattern` of verifier `regex`: {fault}")

    def verify(self, sample: Sample) -> Verdict:
        fault = self.check_row(sample.row)
        if fault is not None:
            return not_run("bad_row", message=fault)
        compiled = _compile(self._pattern(sample.row))
        text = sample.completion.encode("utf-8", "replace").decode("utf-8")  # RE2 takes no lone surrogates
        found = compiled.fullmatch(text.strip()) if self.options.full_match else compiled.search(text)
        return scored(1.0, "match") if found else scored(0.0, "no_match")

    def repeatable(self) -> bool:
        return True

    def check_row(self, row: dict[str, Any]) -> str | None:
        field = self.options.pattern_field
        pattern = self._pattern(row)
        if pattern is None:
            return f"field `{field}` is missing, and the verifier has no `pattern` of its own"
        if not isinstance(pattern, str):
            return f"field `{field}` is {type(pattern).__name__}, not a string"
        fault = _pattern_fault(pattern)
        return None if fault is None else f"field `{field}`: {fault}"

    def _pattern(self, row: dict[str, Any]) -> Any:
        own = row.get(self.options.pattern_field)
        return self.options.pattern if own is None else own


@lru_cache(maxsize=4096)
def _compile(pattern: str) -> Any:
    return re2.compile(pattern, options=_SETTINGS)


@lru_cache(maxsize=4096)
def _pattern_fault(pattern: str) -> str | None:
    try:
        _compile(pattern)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        return f"not a valid RE2 pattern ({reason}): {printable(pattern)!r}"
    except UnicodeEncodeError:
        return f"not valid Unicode: {printable(pattern)!r}"
    return None
