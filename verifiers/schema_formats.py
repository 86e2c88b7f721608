"""The formats of JSON Schema, as an assertion: the schema library's checks, and our own where those let wrong values
pass."""

from __future__ import annotations

import ipaddress
import re

import idna
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import FormatError

from headrace.verifiers.schema_patterns import to_python

_LINE_END = re.compile(r"[\n\r\x00\u2028\u2029]")
_HOLDS_LINE_ENDS = frozenset({"regex", "json-pointer", "relative-json-pointer"})
_TIME = re.compile(
    r"([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9]|60)(?:\.[0-9]+)?(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)
_DURATION = re.compile(  # RFC 3339, appendix A: a unit may only be left out at the ends
    r"P(?:[0-9]+W"
    r"|(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)(?:T{time})?"
    r"|T{time})".replace("{time}", r"(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)")
)
_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_LOCAL_PART = re.compile(  # RFC 5321: a dot-atom, or in quotes
    r"""(?:[\w!#$%&'*+/=?^`{|}~-]+(?:\.[\w!#$%&'*+/=?^`{|}~-]+)*|"(?:[ !#-\[\]-~]|\\[ -~])+")""", re.ASCII
)
_RELATIVE_POINTER = re.compile(r"(?:0|[1-9][0-9]*)(?:#|(?:/(?:[^~/]|~[01])*)*)", re.DOTALL)


class _Formats(FormatChecker):
    def check(self, instance: object, format: str) -> None:
        """No value of most formats holds a line's end; some of the library's checks overlook a last one."""
        bare = format in self.checkers and format not in _HOLDS_LINE_ENDS
        if bare and isinstance(instance, str) and _LINE_END.search(instance):
            raise FormatError(f"{instance!r} is not a {format!r}")
        super().check(instance, format)


FORMATS = _Formats(())
FORMATS.checkers = dict(Draft202012Validator.FORMAT_CHECKER.checkers)


# Of the wrong ones `re` says so in three ways: too large a repetition overflows, too deep a nesting ends the stack.
@FORMATS.checks("regex", raises=(ValueError, re.error, OverflowError, RecursionError))
def is_regex(value: object) -> bool:
    return not isinstance(value, str) or bool(re.compile(to_python(value)))


@FORMATS.checks("email")
def is_email(value: object) -> bool:
    if not isinstance(value, str):
        return True
    local, _, domain = value.rpartition("@")
    literal = re.fullmatch(r"\[(IPv6:)?([0-9A-Fa-f.:]+)\]", domain)
    if literal is not None:
        return bool(_LOCAL_PART.fullmatch(local)) and FORMATS.conforms(literal[2], "ipv6" if literal[1] else "ipv4")
    return bool(_LOCAL_PART.fullmatch(local)) and is_hostname(domain)


@FORMATS.checks("idn-email")
def is_international_email(value: object) -> bool:
    return not isinstance(value, str) or bool(re.fullmatch(r"[^\s@]+@[^\s@]+", value))


@FORMATS.checks("hostname")
def is_hostname(value: object) -> bool:
    """RFC 1123, with A-labels that are ones (RFC 5890)."""
    if not isinstance(value, str):
        return True
    return len(value) <= 253 and all(_LABEL.fullmatch(label) and _is_a_label(label) for label in value.split("."))


def _is_a_label(label: str) -> bool:
    if label[2:4] != "--":
        return True
    try:
        return label[:2].lower() == "xn" and bool(idna.ulabel(label))
    except (idna.IDNAError, UnicodeError):
        return False


@FORMATS.checks("idn-hostname", raises=(idna.IDNAError, UnicodeError))
def is_international_hostname(value: object) -> bool:
    return not isinstance(value, str) or (
        value[-1:] not in (".", "\u3002", "\uff0e", "\uff61") and bool(idna.encode(value))
    )


@FORMATS.checks("ipv4", raises=ValueError)
def is_ipv4(value: object) -> bool:
    return not isinstance(value, str) or bool(ipaddress.IPv4Address(value))


@FORMATS.checks("uuid")
def is_uuid(value: object) -> bool:
    return not isinstance(value, str) or bool(_UUID.fullmatch(value))


@FORMATS.checks("duration")
def is_duration(value: object) -> bool:
    return not isinstance(value, str) or bool(_DURATION.fullmatch(value))


@FORMATS.checks("relative-json-pointer")
def is_relative_pointer(value: object) -> bool:
    return not isinstance(value, str) or bool(_RELATIVE_POINTER.fullmatch(value))


@FORMATS.checks("time")
def is_time(value: object) -> bool:
    """RFC 3339's full-time. A leap second is the last one of a day in UTC."""
    if not isinstance(value, str):
        return True
    found = _TIME.fullmatch(value)
    if found is None or found[3] != "60":
        return found is not None
    ahead = int(f"{found[4]}1") * (int(found[5]) * 60 + int(found[6])) if found[4] else 0
    return (int(found[1]) * 60 + int(found[2]) - ahead) % (24 * 60) == 24 * 60 - 1


@FORMATS.checks("date-time")
def is_date_time(value: object) -> bool:
    """RFC 3339's date-time."""
    if not isinstance(value, str):
        return True
    return value[10:11] in ("T", "t") and FORMATS.conforms(value[:10], "date") and is_time(value[11:])
