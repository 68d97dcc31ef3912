"""Charts as data: marks and lines on two axes, with positions in per cent. `templates/chart.html.j2` and `svg` draw them.

The page needs no chart library: text stays HTML text, marks are list items that can be focused, and only lines are drawn.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TypeVar

from buzzer.suite.analysis import pareto
from buzzer.suite.records import machine
from buzzer.suite.records.schema import Record

T = TypeVar("T")

TIMES = (
    (0.001, "1 ms"), (0.01, "10 ms"), (0.1, "0.1 s"), (1, "1 s"), (10, "10 s"), (60, "1 min"), (600, "10 min"),
    (3600, "1 h"), (6 * 3600, "6 h"), (86400, "24 h"), (7 * 86400, "7 d"),
)  # fmt: skip

LEAST = 1e-9  # values on logarithmic axes are above this

FOOT = 5.0  # per cent: height of the marks of failed runs, above the axis


@dataclass(frozen=True)
class Axis:
    """Values to per cent of the axis; logarithmic if `log`."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    title: str
    log: bool = True

    def at(self, value: float) -> float:
        """Position of a value in per cent. Values beyond the axis are at its ends."""
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
    """A logarithmic axis of seconds with ticks in the usual units."""
    positive = [v for v in values if v > LEAST] or [1.0]
    low, high = min(positive) / 1.5, max(positive) * 1.5
    inside = [t for t in TIMES if low <= t[0] <= high]
    if len(inside) < 2:  # less than a decade: round figures instead
        inside = [(v, f"{v:,.12g} s") for v in _nice(low, high)]
    return Axis(low, high, tuple(inside), title)


def log_axis(values: Iterable[float], title: str, unit: str = "") -> Axis:
    """A logarithmic axis with a margin around the values."""
    positive = [v for v in values if v > LEAST] or [1.0]
    low, high = min(positive) / 1.4, max(positive) * 1.4
    ticks = tuple((v, f"{v:,.12g}{unit}") for v in _nice(low, high))
    return Axis(low, high, ticks, title)


def linear_axis(values: Sequence[float], title: str) -> Axis:
    """A linear axis with a margin around the values. It need not contain zero."""
    low, high = min(values), max(values)
    # Values that differ by rounding only are one value: a share of their difference would be no margin.
    margin = (abs(high) * 0.05 or 0.05) if math.isclose(low, high) else (high - low) * 0.15
    low, high = low - margin, high + margin
    step = 10 ** math.floor(math.log10((high - low) / 6))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6)
    first = math.ceil(low / step)
    ticks = tuple((i * step, f"{i * step:.4g}") for i in range(first, math.floor(high / step) + 1))
    return Axis(low, high, ticks, title, log=False)


def _nice(low: float, high: float) -> list[float]:
    """1, 2, 5 and their powers of ten in a range; only powers of ten if there are three, the range's middle if there is none."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(tens) >= 3:
        return tens
    values = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return values or [float(f"{math.sqrt(low * high):.2g}")]


@dataclass(frozen=True)
class Mark:
    """A point: its position in per cent, its text, and the values by which it is filtered."""

    x: float
    y: float
    number: int  # number in the legend; 0 = not in the legend
    kind: str  # a CSS class: cpu, cuda, published, failed
    text: str
    filters: dict[str, str] = field(default_factory=dict)
    series: str = ""  # points of the same series have the same colour in an image
    label: str = ""  # text next to the point in an image


@dataclass(frozen=True)
class Path:
    """A line through points, in per cent, y downwards as in SVG."""

    points: str
    kind: str
    filters: dict[str, str] = field(default_factory=dict)
    series: str = ""  # the series of the marks at its end, for a bar


def path(
    points: Iterable[tuple[float, float]], kind: str, filters: dict[str, str] | None = None, series: str = ""
) -> Path:
    """A line through points in per cent, y upwards."""
    return Path(" ".join(f"{x:g},{100 - y:g}" for x, y in points), kind, filters or {}, series)


@dataclass(frozen=True)
class Key:
    """A line of the legend: the number and kind of its marks, and their description."""

    number: int
    kind: str
    text: str
    filters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chart:
    """Marks and lines on two axes, and a description in words."""

    title: str
    summary: str
    x: Axis
    y: Axis
    marks: list[Mark]
    paths: list[Path] = field(default_factory=list)
    legend: list[Key] = field(default_factory=list)


def front(
    items: Iterable[T], x: Axis, y: Axis, cost: Callable[[T], float], value: Callable[[T], float]
) -> Path:
    """The line through the Pareto front of the items."""
    best = pareto.front(items, cost, value)
    return path([(x.at(cost(item)), y.at(value(item))) for item in best], "pareto")


def filters_of(r: Record, outcome: str) -> dict[str, str]:
    """The values by which the page filters a record's marks and rows."""
    return {
        "task": r.task,
        "machine": machine.describe(r.machine),
        "engine": r.engine,
        "backend": r.backend,
        "precision": r.precision,
        "budget": r.budget.name,
        "outcome": outcome,
    }


def kind_of(device: str, outcome: str) -> str:
    """The CSS class of a run: its device, `unsupported` if the machine could not run it, or `failed`."""
    return device if outcome == "ok" else "unsupported" if outcome == "unsupported" else "failed"


# ---- a chart as an SVG image -------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 460, 70, 20, 48, 52
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito
STYLE = "text{font:12px system-ui,sans-serif;fill:#222} .axis{stroke:#999;fill:none} .front{stroke:#222;fill:none}"
PAPER = '<rect width="100%" height="100%" fill="white"/>'  # the page around the image may be dark


def svg(chart: Chart) -> str:
    """A chart as an SVG image, with a colour per series and hollow marks for failed runs."""
    series = sorted({mark.series for mark in chart.marks})
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(series)}
    title = escape(chart.title)
    parts = [
        f'<text x="{LEFT}" y="20" font-weight="600">{title}</text>',
        *_legend(colours),
        *_axes(chart.x, chart.y),
    ]
    for line in chart.paths:
        places = (map(float, point.split(",")) for point in line.points.split())
        points = " ".join(f"{_left(x):.1f},{_top(100 - y):.1f}" for x, y in places)
        parts.append(f'<polyline class="front" points="{points}"/>')
    parts += [_circle(mark, colours[mark.series]) for mark in chart.marks]
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}"'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>\n<style>{STYLE}</style>\n{PAPER}\n{body}\n</svg>\n'
    )


def _left(x: float) -> float:
    """Pixels from the left edge for a position in per cent."""
    return LEFT + x / 100 * (WIDTH - LEFT - RIGHT)


def _top(y: float) -> float:
    """Pixels from the top edge for a position in per cent, which counts upwards."""
    return HEIGHT - BOTTOM - y / 100 * (HEIGHT - TOP - BOTTOM)


def _legend(colours: dict[str, str]) -> list[str]:
    parts, x = [], LEFT
    for name, colour in colours.items():
        parts.append(f'<circle cx="{x}" cy="36" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 8}" y="40">{escape(name)}</text>')
        x += max(96, 7 * len(name) + 24)
    return parts


def _axes(x: Axis, y: Axis) -> list[str]:
    foot, middle, height = HEIGHT - BOTTOM, (LEFT + WIDTH - RIGHT) // 2, (TOP + HEIGHT - BOTTOM) // 2
    parts = [f'<path class="axis" d="M{LEFT} {TOP} V{foot} H{WIDTH - RIGHT}"/>']
    for at, text in x.marks:
        parts.append(f'<text x="{_left(at):.1f}" y="{foot + 18}" text-anchor="middle">{escape(text)}</text>')
    for at, text in y.marks:
        place = f'x="{LEFT - 8}" y="{_top(at) + 4:.1f}" text-anchor="end"'
        parts.append(f"<text {place}>{escape(text)}</text>")
    parts.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x.title)}</text>')
    parts.append(f'<text transform="rotate(-90 14 {height})" x="14" y="{height}">{escape(y.title)}</text>')
    return parts


def _circle(mark: Mark, colour: str) -> str:
    """A point with its tooltip and its label."""
    x, y = _left(mark.x), _top(mark.y)
    fill = "white" if mark.kind == "failed" else colour
    circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{colour}"'
    label = f'<text x="{x + 7:.1f}" y="{y + 4:.1f}">{escape(mark.label)}</text>'
    return f"{circle}><title>{escape(mark.text)}</title></circle>{label}"
