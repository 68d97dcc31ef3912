"""Charts as positions in per cent, which the page's HTML places: they are readable at any width and by any reader.

A chart here is marks on two axes. Text stays HTML text, marks stay list items that can be focused, and only lines are
drawn; no chart library is needed for that.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from buzzer.suite.records import machine
from buzzer.suite.records.record import Record

TIMES = (
    (0.001, "1 ms"), (0.01, "10 ms"), (0.1, "0.1 s"), (1, "1 s"), (10, "10 s"), (60, "1 min"), (600, "10 min"),
    (3600, "1 h"), (6 * 3600, "6 h"), (86400, "24 h"), (7 * 86400, "7 d"),
)  # fmt: skip

LEAST = 1e-9  # what is drawn on logarithmic axes is above it

FOOT = 5.0  # per cent: where marks of failed runs stand, above the axis


@dataclass(frozen=True)
class Axis:
    """Values to per cent of the axis; logarithmic where `log`."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    title: str
    log: bool = True

    def at(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(100 * share, 2)

    @property
    def marks(self) -> list[tuple[float, str]]:
        """Ticks inside the axis: per cent and text."""
        return [(self.at(v), text) for v, text in self.ticks if self.low <= v <= self.high]


def time_axis(values: Iterable[float], title: str) -> Axis:
    """A logarithmic axis of seconds with ticks that people read."""
    found = [v for v in values if v > LEAST] or [1.0]
    low, high = min(found) / 1.5, max(found) * 1.5
    inside = [t for t in TIMES if low <= t[0] <= high]
    if len(inside) < 2:  # less than a decade: round figures instead
        inside = [(v, f"{v:,.12g} s") for v in _nice(low, high)]
    return Axis(low, high, tuple(inside), title)


def log_axis(values: Iterable[float], title: str, unit: str = "") -> Axis:
    found = [v for v in values if v > LEAST] or [1.0]
    low, high = min(found) / 1.4, max(found) * 1.4
    ticks = tuple((v, f"{v:,.12g}{unit}") for v in _nice(low, high))
    return Axis(low, high, ticks, title)


def linear_axis(values: Sequence[float], title: str) -> Axis:
    """A linear axis with a margin around the values; scores need no zero."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.15 or abs(high) * 0.05 or 0.05
    low, high = low - margin, high + margin
    step = 10 ** math.floor(math.log10((high - low) / 2))
    step *= next(m for m in (1, 2, 5) if (high - low) / (step * m) <= 5)
    first = math.ceil(low / step)
    ticks = tuple((i * step, f"{i * step:.4g}") for i in range(first, math.floor(high / step) + 1))
    return Axis(low, high, ticks, title, log=False)


def _nice(low: float, high: float) -> list[float]:
    """1, 2, 5 and their powers of ten in a range; powers of ten alone, or the range's middle, where that is enough."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(tens) >= 3:
        return tens
    found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return found or [float(f"{math.sqrt(low * high):.2g}")]


@dataclass(frozen=True)
class Mark:
    """A point: where, what it says, and the attributes by which it is filtered."""

    x: float
    y: float
    number: int
    kind: str  # a CSS class: cpu, cuda, published, failed
    text: str
    filters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Path:
    """A line through points, in per cent, y downwards as SVG has it."""

    points: str
    kind: str
    filters: dict[str, str] = field(default_factory=dict)


def path(points: Iterable[tuple[float, float]], kind: str, filters: dict[str, str] | None = None) -> Path:
    return Path(" ".join(f"{x:g},{100 - y:g}" for x, y in points), kind, filters or {})


@dataclass(frozen=True)
class Chart:
    """Marks and lines on two axes, with what it shows in words."""

    title: str
    summary: str
    x: Axis
    y: Axis
    marks: list[Mark]
    paths: list[Path] = field(default_factory=list)
    legend: list[tuple[int, str, str, dict[str, str]]] = field(
        default_factory=list
    )  # number, kind, text, filters


def filters_of(r: Record, outcome: str) -> dict[str, str]:
    return {
        "task": r.task,
        "machine": machine.describe(r.machine),
        "engine": r.engine,
        "precision": r.precision,
        "budget": r.budget.name,
        "outcome": outcome,
    }


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other beats in both time and score, fastest first."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best
