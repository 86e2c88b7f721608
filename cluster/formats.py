"""Numbers as people read them: in the display, on the command line, and in the report."""

from __future__ import annotations

from headrace.cluster.run_records import Interval


def interval(value: Interval, signed: bool = False) -> str:
    """
    >>> interval(Interval(0.42, 0.355, 0.48))
    '0.420 [0.355, 0.480]'
    """
    sign = "+" if signed else ""
    return f"{value.reward:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


def checks_ran(scored: int, checks: int, failure: str) -> str:
    """
    >>> checks_ran(9, 20, "ValueError: no answer")
    '9 of 20 checks ran; ValueError: no answer'
    """
    return f"{scored} of {checks} checks ran; {failure}"


def duration(value: float) -> str:
    """
    >>> duration(42.4), duration(90), duration(7300)
    ('42 s', '1 min 30 s', '2 h 1 min')
    """
    whole = max(0, int(value))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def clock_time(value: float) -> str:
    """
    >>> clock_time(75), clock_time(4000)
    (' 1:15', '1:06:40')
    """
    minutes, rest = divmod(max(0, int(value)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes:2}:{rest:02}"
