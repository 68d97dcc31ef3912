"""Formats figures for readers. An unknown figure is an empty string, never a zero."""

import math


def clock_text(seconds: float) -> str:
    """Seconds as a countdown: 23:40:00, 4:59, 0:07."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


def seconds_text(seconds: float) -> str:
    """Seconds as in `significant`: 1,234 s, 2.20 s, 0.0123 s."""
    return f"{significant(seconds)} s"


def significant(value: float | None) -> str:
    """At least three significant digits, without powers of ten: 1,234, 2.20, 0.0123."""
    if value is None:
        return ""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, digits)}f}"


def grouped(value: float | None, digits: int = 2) -> str:
    """A number with `digits` decimals and thousands separators: 1,234.50."""
    return "" if value is None else f"{value:,.{digits}f}"


def decimal(value: float | None, digits: int = 2) -> str:
    """A number with `digits` decimals: 1234.50."""
    return "" if value is None else f"{value:.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 in per cent: 0.933 -> 93.3 %."""
    return "" if share is None else f"{100 * share:.{digits}f} %"


def three_digits(share: float | None) -> str:
    """A share of 1 in per cent as in `significant`: 0.000137 -> 0.0137 %."""
    return "" if share is None else f"{significant(100 * share)} %"
