"""Accuracy against latency: one model in every precision, and the same model with fewer layers.

Each point is a run of a precision task. Both figures come from one session on the same sentences.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median

from buzzer.errors import UsageError
from buzzer.suite import registry
from buzzer.suite.analysis import pareto, percentiles
from buzzer.suite.records import comparable, machine
from buzzer.suite.records.schema import Record
from buzzer.suite.report import charts
from buzzer.suite.report.charts import Chart, Key, Mark
from buzzer.suite.report.format import decimal
from buzzer.suite.report.table import Table, table

LAYERS = "layers"  # key in a precision task's parameters and details
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
    p50_ms: float  # median latency of one sentence, from text to label
    interval_ms: tuple[float, float] | None  # 98 % interval of the median; None with too few samples
    counts: bool  # whether it may be on the front: it passed the gate, and its precision is not simulated
    front: bool  # whether no other point that counts is both as fast and as accurate
    outcome: str
    run_id: str

    @property
    def name(self) -> str:
        """Layers, precision and backend."""
        return f"{self.layers} layers, {self.precision}, {self.backend}"


@dataclass(frozen=True)
class FrontierReport:
    """The points of one model on one machine, fastest first."""

    task: str
    full_layers: int
    reference_accuracy: float | None  # accuracy of the full model in FP32 on the reference backend
    data_source: str
    machine: str
    notes: list[str]
    points: list[Point]

    @property
    def title(self) -> str:
        """The title of the table and of the chart."""
        return f"{self.task}: accuracy against latency, {self.machine}"

    def to_json(self) -> str:
        """Everything as one JSON object."""
        return json.dumps(asdict(self))

    def to_csv(self) -> str:
        """The points as CSV."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(Point)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            asdict(p) | {"interval_ms": "-".join(map(str, p.interval_ms or ()))} for p in self.points
        )
        return text.getvalue()

    def files(self, image: Path, records: Iterable[Record]) -> dict[Path, str]:
        """The fastest points as an SVG image, and all points in `<stem>.csv` beside it. records: the runs that they are of."""
        drawn = charts.svg(chart(fastest(self.points), records, self.title))
        return {image: drawn, image.with_suffix(".csv"): self.to_csv()}

    def table(self) -> Table:
        """The points as a table."""
        lines = [_cells(p, self.reference_accuracy) for p in self.points]
        return table(self.title, COLUMNS, lines, ["* on the Pareto front", *self.notes])


def frontier(ordered: list[Point], records: Sequence[Record], full: int, backend: str) -> FrontierReport:
    """The frontier of timed runs of one task. ordered: their `points`. full: layers of the model that is not cut. backend: the
    reference's."""
    r = records[0]
    same = [p for p in ordered if (p.layers, p.precision, p.backend) == (full, "fp32", backend)]
    accuracy = same[0].accuracy if same else None
    notes = sorted({note for r in records for note in r.notes})
    return FrontierReport(r.task, full, accuracy, r.data_source, machine.describe(r.machine), notes, ordered)


def models(records: Iterable[Record]) -> list[tuple[list[Record], list[Point]]]:
    """For each model that was run in several precisions, with all and with fewer layers, on the same data and machine: its records and
    its `points`."""
    by_model: dict[comparable.Key, list[Record]] = defaultdict(list)
    for r in records:
        if r.job in ("fit", "predict") and type(r.config.get(LAYERS)) is int and not r.control:
            same = {k: v for k, v in r.config.items() if k not in (LAYERS, "checkpoints")}
            key = (*comparable.times(r, without=("job", "parameters")), registry.params_hash(same))
            by_model[key].append(r)
    return [(group, found) for group in by_model.values() if (found := _of_model(group))]


def _of_model(group: Sequence[Record]) -> list[Point]:
    """The points of a model; none without models of fewer layers, or if the full depth is unknown."""
    fits = [r for r in group if r.job == "fit" and not r.config[LAYERS] and r.outcome == "ok"]
    depths = [r.details[LAYERS] for r in fits if LAYERS in r.details]
    found = points((r for r in group if r.job == "predict"), depths[-1]) if depths else []
    return found if len({p.layers for p in found}) > 1 else []


def fastest(ordered: Sequence[Point]) -> list[Point]:
    """Of several backends only the fastest, before those that do not count. ordered: the fastest first."""
    chosen: dict[tuple[int, str], Point] = {}
    for p in sorted(ordered, key=lambda p: not p.counts):
        chosen.setdefault((p.layers, p.precision), p)
    return [p for p in ordered if p in chosen.values()]


def files(image: Path, records: Iterable[Record]) -> dict[Path, str]:
    """The `files` of the newest of the `models`. Raises UsageError without one."""
    found = models(records)
    if not found:
        raise UsageError(
            "no records of a model in several precisions, whole and cut", "`buzzer frontier` makes them"
        )
    group, ordered = max(found, key=lambda model: max(r.created for r in model[0]))
    runs = [r for r in group if r.job == "predict"]
    full = max(p.layers for p in ordered)
    return frontier(ordered, runs, full, registry.task(runs[0].task).reference.backend).files(image, runs)


def points(records: Iterable[Record], full: int) -> list[Point]:
    """The fastest first. full: layers of the model that is not cut. Repetitions are pooled."""
    groups: dict[tuple[int, str, str], list[Record]] = {}
    for r in records:
        if r.score is not None and r.samples.get("latency"):
            layers = r.config.get(LAYERS) or full
            groups.setdefault((layers, r.precision, r.backend), []).append(r)
    ordered = sorted(
        (_point(*key, group) for key, group in groups.items()), key=lambda p: (p.p50_ms, -p.accuracy)
    )
    best = pareto.front((p for p in ordered if p.counts), _latency, _accuracy)
    return [replace(p, front=p in best) for p in ordered]


def _latency(p: Point) -> float:
    return p.p50_ms / 1e3


def _accuracy(p: Point) -> float:
    return p.accuracy


def _point(layers: int, precision: str, backend: str, group: Sequence[Record]) -> Point:
    laps = [lap for r in group for lap in r.samples["latency"]]
    p50 = percentiles.quantile(laps, 0.5)
    simulated = any(map(is_simulated, group))
    worst = next((r for r in group if r.outcome != "ok"), group[0])
    return Point(
        layers=layers,
        precision=precision,
        backend=backend,
        accuracy=group[-1].shown_scores[group[-1].metric],
        p50_ms=1e3 * median(laps),
        interval_ms=(1e3 * p50.low, 1e3 * p50.high)
        if p50 and p50.low is not None and p50.high is not None
        else None,
        counts=worst.outcome == "ok" and not simulated,
        front=False,
        outcome="simulated" if simulated and worst.outcome == "ok" else worst.outcome,
        run_id=group[-1].run_id,
    )


def is_simulated(record: Record) -> bool:
    """Whether a run only simulates its precision, so that its speed means nothing.

    Older records have no `details.simulated`. In these, FP8 is simulated, and so is INT8 on torch eager.
    """
    simulated = record.details.get("simulated")
    if isinstance(simulated, bool):
        return simulated
    return record.precision == "fp8" or (
        record.backend == "torch_eager" and record.precision in SIMULATED_INT8
    )


def _cells(p: Point, reference: float | None) -> tuple[str, ...]:
    """A row of the table; `*` marks the front."""
    return (
        "*" if p.front else "",
        str(p.layers),
        p.precision,
        p.backend,
        decimal(p.accuracy, 4),
        "" if reference is None else f"{p.accuracy / reference:.2%}",
        decimal(p.p50_ms),
        "" if p.interval_ms is None else f"{p.interval_ms[0]:.2f}-{p.interval_ms[1]:.2f}",
        p.outcome,
    )


def chart(shown: Sequence[Point], records: Iterable[Record], title: str, summary: str = "") -> Chart:
    """Accuracy over median latency. The line joins the front. In an image, the number next to a mark is its number of layers.

    Marks of points that do not count (gate failed, or precision simulated) have the kind `failed`.
    """
    if not shown:
        raise ValueError("no points")
    x = charts.time_axis([_latency(p) for p in shown], "median latency of a sentence (log)")
    y = charts.linear_axis([p.accuracy for p in shown], "accuracy")
    by_run = {r.run_id: r for r in records}
    marks, legend = [], []
    for i, p in enumerate(shown, 1):
        r = by_run[p.run_id]
        kind, filters = r.device if p.counts else "failed", charts.filters_of(r, r.outcome)
        text = f"{p.name}: {p.p50_ms:.2f} ms, accuracy {p.accuracy:.4f}"
        text += "" if p.counts else f", {p.outcome}"
        at = x.at(_latency(p)), y.at(p.accuracy)
        marks.append(Mark(*at, i, kind, text, filters, series=p.precision, label=str(p.layers)))
        legend.append(Key(i, kind, p.name, filters))
    line = charts.front((p for p in shown if p.counts), x, y, _latency, _accuracy)
    return Chart(title, summary, x, y, marks, [line], legend)
