"""Accuracy against latency: one model in every precision, and the same model cut to fewer layers.

Each point is a run of a precision task: both figures come from one session on the same sentences.
"""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from statistics import median
from typing import Any

from buzzer.suite.analysis import percentiles
from buzzer.suite.records.record import Record
from buzzer.suite.report import charts

LAYERS = "layers"  # of a precision task's parameters and details
SIMULATED_INT8 = ("int8", "int8-qat", "sparse-int8")
COLUMNS = (
    "",
    "layers",
    "precision",
    "backend",
    "accuracy",
    "of full fp32",
    "p50 ms",
    "98 % interval",
    "outcome",
)


@dataclass(frozen=True)
class Point:
    """One precision of a model of `layers` layers on one backend."""

    layers: int
    precision: str
    backend: str
    accuracy: float
    p50_ms: float  # of one sentence, from text to label
    interval_ms: tuple[float, float] | None  # of the median; None with too few samples
    counts: bool  # whether it may stand on the front: its gate was passed, and its speed is not simulated
    front: bool  # no other point that counts is both as fast and as accurate
    outcome: str
    run_id: str


def points(records: Iterable[Record], full: int) -> list[Point]:
    """The fastest first. `full`: layers of the model that is not cut. Repetitions are pooled."""
    groups: dict[tuple[int, str, str], list[Record]] = {}
    for r in records:
        if r.scores and r.samples.get("latency"):
            layers = r.config.get(LAYERS) or full
            groups.setdefault((layers, r.precision, r.backend), []).append(r)
    found = sorted(
        (point(*key, group) for key, group in groups.items()), key=lambda p: (p.p50_ms, -p.accuracy)
    )
    best, marked = -1.0, []
    for p in found:
        on = p.counts and p.accuracy > best
        best = p.accuracy if on else best
        marked.append(Point(**(vars(p) | {"front": on})))
    return marked


def point(layers: int, precision: str, backend: str, group: Sequence[Record]) -> Point:
    laps = [lap for r in group for lap in r.samples["latency"]]
    told = percentiles.quantile(laps, 0.5)
    simulated = any(map(is_simulated, group))
    wrong = next((r for r in group if r.outcome != "ok"), group[0])
    return Point(
        layers=layers,
        precision=precision,
        backend=backend,
        accuracy=group[-1].scores[group[-1].metric],
        p50_ms=1e3 * median(laps),
        interval_ms=(1e3 * told.low, 1e3 * told.high)
        if told and told.low is not None and told.high is not None
        else None,
        counts=wrong.outcome == "ok" and not simulated,
        front=False,
        outcome="simulated" if simulated and wrong.outcome == "ok" else wrong.outcome,
        run_id=group[-1].run_id,
    )


def is_simulated(record: Record) -> bool:
    """Whether the run's speed is not its precision's. Records before that fact was kept: FP8, and INT8 on torch eager."""
    told = record.details.get("simulated")
    if isinstance(told, bool):
        return told
    return record.precision == "fp8" or (
        record.backend == "torch_eager" and record.precision in SIMULATED_INT8
    )


def reference(found: Sequence[Point], full: int, backend: str) -> float | None:
    """Accuracy of the full model in FP32 on the reference backend."""
    same = [p for p in found if (p.layers, p.precision, p.backend) == (full, "fp32", backend)]
    return same[0].accuracy if same else None


def table(found: Sequence[Point], base: float | None) -> list[tuple[str, ...]]:
    """The cells, a tuple a line; `*` marks the front."""
    return [
        (
            "*" if p.front else "",
            str(p.layers),
            p.precision,
            p.backend,
            f"{p.accuracy:.4f}",
            "" if base is None else f"{p.accuracy / base:.2%}",
            f"{p.p50_ms:.2f}",
            "" if p.interval_ms is None else f"{p.interval_ms[0]:.2f}-{p.interval_ms[1]:.2f}",
            p.outcome,
        )
        for p in found
    ]


def data(found: Sequence[Point], facts: dict[str, Any]) -> dict[str, Any]:
    """The chart's data, JSON-able."""
    return facts | {"points": [asdict(p) for p in found]}


def csv_text(found: Sequence[Point]) -> str:
    """The points as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Point)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(p) | {"interval_ms": "-".join(map(str, p.interval_ms or ()))} for p in found)
    return text.getvalue()


# ---- the chart ---------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 460, 70, 20, 48, 52
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito
STYLE = "text{font:12px system-ui,sans-serif;fill:#222} .axis{stroke:#999} .front{stroke:#222;fill:none}"
PAPER = '<rect width="100%" height="100%" fill="white"/>'  # readers may have a dark page


def chart(found: Sequence[Point], title: str) -> str:
    """An SVG image: latency from left to right (log), accuracy upwards, a colour a precision, the front as a line.

    Hollow marks do not count (gate failed, or speed simulated); the number beside a mark is its layers.
    """
    if not found:
        raise ValueError("no points")
    axis = charts.log_axis([p.p50_ms for p in found], "ms a sentence, median (log)")
    low, high = span([p.accuracy for p in found])

    def x(ms: float) -> float:
        return LEFT + axis.at(ms) / 100 * (WIDTH - LEFT - RIGHT)

    def y(accuracy: float) -> float:
        return HEIGHT - BOTTOM - (accuracy - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    names = list(dict.fromkeys(p.precision for p in sorted(found, key=lambda p: (-p.layers, p.precision))))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    parts = [
        f'<text x="{LEFT}" y="20" font-weight="600">{escape(title)}</text>',
        *axes(x, y, axis, low, high),
    ]
    line = " ".join(f"{x(p.p50_ms):.1f},{y(p.accuracy):.1f}" for p in found if p.front)
    parts.append(f'<polyline class="front" points="{line}"/>')
    parts += [mark(p, x(p.p50_ms), y(p.accuracy), colours[p.precision]) for p in found]
    for i, name in enumerate(names):
        at = LEFT + i * 96
        parts.append(f'<circle cx="{at}" cy="36" r="4" fill="{colours[name]}"/>')
        parts.append(f'<text x="{at + 8}" y="40">{escape(name)}</text>')
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>\n<style>{STYLE}</style>\n{PAPER}\n{body}\n</svg>\n'
    )


Place = Callable[[float], float]  # a value's place on the image


def span(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis: the values and a tenth more on each side."""
    room = max(max(values) - min(values), 0.01) * 0.1
    return min(values) - room, max(values) + room


def axes(x: Place, y: Place, latency: charts.Axis, low: float, high: float) -> list[str]:
    """Two axes with their marks and titles."""
    foot = HEIGHT - BOTTOM
    parts = [f'<path class="axis" fill="none" d="M{LEFT} {TOP} V{foot} H{WIDTH - RIGHT}"/>']
    for ms, told in latency.ticks:
        parts.append(f'<text x="{x(ms):.1f}" y="{foot + 18}" text-anchor="middle">{told}</text>')
    for i in range(6):
        accuracy = low + (high - low) * i / 5
        parts.append(
            f'<text x="{LEFT - 8}" y="{y(accuracy) + 4:.1f}" text-anchor="end">{accuracy:.3f}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) // 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{latency.title}</text>')
    height = (TOP + foot) // 2
    parts.append(f'<text transform="rotate(-90 14 {height})" x="14" y="{height}">accuracy</text>')
    return parts


def mark(p: Point, x: float, y: float, colour: str) -> str:
    """A circle with its tooltip and the number of layers."""
    told = f"{p.layers} layers, {p.precision}, {p.backend}: {p.accuracy:.4f}, {p.p50_ms:.2f} ms, {p.outcome}"
    fill = colour if p.counts else "white"
    circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{colour}"'
    label = f'<text x="{x + 7:.1f}" y="{y + 4:.1f}">{p.layers}</text>'
    return f"{circle}><title>{escape(told)}</title></circle>{label}"
