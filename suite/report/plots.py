"""Plots of records for notebooks, made with Altair: `buzzer.plots`. Their figures are those of the report page.

Each function takes records and returns an Altair chart, which a notebook shows and `chart.save("plot.html")` writes. Other values raise
UsageError. They need the extra `plots`: without it they raise UnsupportedError.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from buzzer import extras
from buzzer.errors import UsageError
from buzzer.suite.analysis.comparison import Variant
from buzzer.suite.bench.groups import BenchGroup
from buzzer.suite.records import machine
from buzzer.suite.records.collection import Records
from buzzer.suite.records.schema import Record
from buzzer.suite.report import page_bench, summary
from buzzer.suite.report.charts import COLOURS
from buzzer.suite.report.frontier import Point

WIDTH = 480  # pixels
# Fields of a speed-up, with their kinds and formats.
HOVER = (
    ("variant", "N", ""),
    ("times faster", "Q", ".3"),
    ("low", "Q", ".3"),
    ("high", "Q", ".3"),
    ("rounds", "Q", ""),
    ("noise", "N", ""),
)


def speed_up(records: Record | Iterable[Record]) -> Any:
    """How many times faster each variant is than the task's plain run: its reference engine and backend on one core.

    A chart for each task that has a plain run, on its main board, as the README shows it. A line is the 95 % interval; a variant with
    fewer than three rounds has none. Hollow marks: within noise. Raises UsageError if there is nothing to show.
    """
    alt = altair()
    shown = [(s, gains) for s in summary.summaries(Records(records)) if (gains := gains_of(s))]
    if not shown:
        raise UsageError(
            "no variant beside a task's plain run among these records",
            "run the reference engine and backend on one core, and others: buzzer compare online-shoppers",
        )
    return together(alt, [_speed_ups(alt, s, gains) for s, gains in shown])


def gains_of(s: summary.TaskSummary) -> list[summary.Gain]:
    """What each other ranked variant of a task's main board gains over the plain run, the fastest first."""
    return [gain for row in s.ranked if row is not s.plain and (gain := s.gain_of(row))]


def _speed_ups(alt: Any, s: summary.TaskSummary, gains: Sequence[summary.Gain]) -> Any:
    rows = [
        {
            "variant": str(Variant.of(gain.row.first)),
            "device": gain.row.first.device,
            "times faster": gain.ratio.value,
            "low": gain.ratio.low,
            "high": gain.ratio.high,
            "rounds": gain.ratio.pairs,
            "noise": bool(gain.is_noise),
        }
        for gain in gains
    ]
    title = f"{s.task}: times faster than {Variant.of(s.first)}, {s.first.rows:,} rows"
    base = alt.Chart(data(alt, rows), title=titled(alt, title, s.first), width=WIDTH)
    x = alt.X("times faster:Q", scale=log(alt), title="times faster (log)")
    y = alt.Y("variant:N", sort=[row["variant"] for row in rows], title=None)
    colours = alt.Scale(domain=["cpu", "cuda"], range=list(COLOURS[:2]))
    hover = [alt.Tooltip(f"{name}:{kind}", format=form) for name, kind, form in HOVER]
    points = marks(alt, base, "device", colours, "!datum.noise").encode(x=x, y=y, tooltip=hover)
    bars = base.transform_filter("datum.low != null").mark_rule()
    bars = bars.encode(x="low:Q", x2="high:Q", y=y, stroke=alt.Stroke("device:N", scale=colours))
    one = alt.Chart(data(alt, [{"one": 1}])).mark_rule(strokeDash=[4, 4]).encode(x="one:Q")
    return one + bars + points


def frontier(records: Record | Iterable[Record]) -> Any:
    """Accuracy over median latency of a model that was run in several precisions, with all and with fewer layers.

    A chart for each such model, as `buzzer frontier` records it. The line joins the Pareto front. Hollow marks: the gate failed, or the
    precision is only simulated. Raises UsageError if there is nothing to show.
    """
    alt = altair()
    shown = page_bench.frontier_points(Records(records))
    if not shown:
        raise UsageError(
            "no model with all and with fewer layers among these records", "buzzer frontier makes one"
        )
    return together(alt, [_frontier(alt, group[0], points) for group, points in shown])


def _frontier(alt: Any, first: Record, points: Sequence[Point]) -> Any:
    rows = [
        {
            "name": p.name,
            "layers": p.layers,
            "precision": p.precision,
            "accuracy": p.accuracy,
            "ms": p.p50_ms,
            "counts": p.counts,
            "front": p.front,
        }
        for p in points
    ]
    title = f"{first.task}: accuracy against latency"
    base = alt.Chart(data(alt, rows), title=titled(alt, title, first), width=WIDTH)
    x = alt.X("ms:Q", scale=log(alt), title="median latency of a sentence, ms (log)")
    y = alt.Y("accuracy:Q", scale=alt.Scale(zero=False))
    hover = ["name:N", alt.Tooltip("ms:Q", format=".3"), alt.Tooltip("accuracy:Q", format=".4f")]
    line = base.transform_filter("datum.front").mark_line(color="black").encode(x=x, y=y)
    shown = marks(alt, base, "precision", alt.Scale(range=list(COLOURS)), "datum.counts")
    labels = base.mark_text(dx=10).encode(x=x, y=y, text="layers:Q")
    return line + shown.encode(x=x, y=y, tooltip=hover) + labels


def roofline(records: Record | Iterable[Record]) -> Any:
    """The rate of each run of `buzzer bench` over its arithmetic intensity, below the roof that was measured on the machine.

    A chart for each machine, device and budget (Williams et al., CACM 2009), of runs whose FLOPs and bytes are known. Raises UsageError
    if there is nothing to show.
    """
    alt = altair()
    shown = page_bench.roofline_rows(Records(records))
    if not shown:
        raise UsageError(
            "no bench runs with known FLOPs and bytes among these records", "buzzer bench bert-base"
        )
    return together(alt, [_roofline(alt, rows) for rows in shown])


def _roofline(alt: Any, rows: Sequence[BenchGroup]) -> Any:
    reached, roofs = page_bench.reached_by(rows), page_bench.roofs(rows)
    points = [
        {
            "run": page_bench.title(row),
            "backend": row.first.backend,
            "precision": row.first.precision,
            "intensity": intensity,
            "GFLOP/s": rate,
        }
        for row, intensity, rate in reached
    ]
    at = [intensity for _, intensity, _ in reached] + [peak / bandwidth for peak, bandwidth in roofs.values()]
    corners = [
        {"precision": name, "intensity": x, "GFLOP/s": min(x * bandwidth, peak)}
        for name, (peak, bandwidth) in roofs.items()
        for x in sorted({min(at) / 2, peak / bandwidth, max(at) * 2})
    ]
    r = rows[0].first
    title = titled(alt, f"Roofline, {r.device}, budget {r.budget.name}", r)
    x = alt.X("intensity:Q", scale=log(alt), title="FLOPs per byte moved (log)")
    y = alt.Y("GFLOP/s:Q", scale=log(alt), title="GFLOP/s (log)")
    hover = ["run:N", alt.Tooltip("intensity:Q", format=".3"), alt.Tooltip("GFLOP/s:Q", format=".3")]
    base = alt.Chart(data(alt, points), title=title, width=WIDTH).mark_point(filled=True, size=50)
    colour = alt.Color("backend:N", scale=alt.Scale(range=list(COLOURS)))
    sessions = base.encode(x=x, y=y, color=colour, shape="precision:N", tooltip=hover)
    roof = alt.Chart(data(alt, corners)).mark_line(color="black")
    return roof.encode(x=x, y=y, strokeDash=alt.StrokeDash("precision:N", title="roof")) + sessions


def altair() -> Any:
    """The module altair. Raises UnsupportedError if the extra `plots` is not installed."""
    extras.require("altair", "a plot")
    import altair as alt

    return alt


def titled(alt: Any, text: str, r: Record) -> Any:
    """A chart's title, with the machine of its records below."""
    return alt.Title(text, subtitle=machine.describe(r.machine))


def log(alt: Any) -> Any:
    """A logarithmic scale with a margin around the values."""
    return alt.Scale(type="log", nice=False, padding=20)


def marks(alt: Any, base: Any, field: str, colours: Any, filled: str) -> Any:
    """A mark for each row, coloured by a field; hollow unless the expression `filled` is true."""
    return base.mark_point(size=60, strokeWidth=2).encode(
        stroke=alt.Stroke(f"{field}:N", scale=colours),
        fill=alt.Fill(f"{field}:N", scale=colours, legend=None),
        fillOpacity=alt.condition(filled, alt.value(1), alt.value(0)),
    )


def data(alt: Any, rows: Sequence[dict[str, Any]]) -> Any:
    """Rows as the data of a chart."""
    return alt.InlineData(values=list(rows))


def together(alt: Any, parts: Sequence[Any]) -> Any:
    """One chart, or several one below the other, each with its own colours."""
    own = dict.fromkeys(("color", "stroke", "fill", "shape", "strokeDash"), "independent")
    return parts[0] if len(parts) == 1 else alt.vconcat(*parts).resolve_scale(**own)
