"""The part of the report page about inference sessions, from the records of `buzzer bench`: tables, frontiers, rooflines."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from buzzer.suite.bench import groups
from buzzer.suite.bench.groups import BenchGroup
from buzzer.suite.records import comparable, machine
from buzzer.suite.records.schema import Record
from buzzer.suite.report import bench_table, charts, frontier
from buzzer.suite.report.bench_table import filters, kind
from buzzer.suite.report.charts import Axis, Chart, Key, Mark
from buzzer.suite.report.table import Table


@dataclass(frozen=True)
class Board:
    """Inference sessions of one model that may be compared: their table, and cosine over latency."""

    group: list[Record]
    links: Mapping[str, str]  # the record file of a run_id

    @cached_property
    def table(self) -> Table:
        """The table of `buzzer bench`."""
        return bench_table.board(self.group, self.links).without_empty_columns()

    @property
    def machine(self) -> str:
        """The machine and the budget of the sessions."""
        return f"{machine.describe(self.group[0].machine)}, budget {self.group[0].budget.name}"

    @property
    def rows(self) -> list[BenchGroup]:
        """The sessions, best first."""
        return groups.rows(self.group)

    def frontier(self) -> Chart | None:
        """The least cosine with the FP32 reference over the median latency; None if all sessions are as accurate as FP32."""
        timed = [row for row in self.rows if row.samples("warm_run") and "cosine" in row.first.scores]
        if len({round(_cosine(row), 5) for row in timed}) < 2:
            return None
        x = charts.time_axis(map(_latency, timed), "median latency of a run (log)")
        y = charts.linear_axis([_cosine(row) for row in timed], "least cosine with FP32")
        marks, legend = [], []
        for i, row in enumerate(timed, 1):
            seconds, cosine = _latency(row), _cosine(row)
            text = f"{name(row)}: {1e3 * seconds:.2f} ms, cosine {cosine:.5f}"
            marks.append(Mark(x.at(seconds), y.at(cosine), i, kind(row), text, filters(row)))
            legend.append(Key(i, kind(row), name(row), filters(row)))
        ranked = (row for row in timed if row.ranked)
        line = charts.front(ranked, x, y, _latency, _cosine)
        summary = (
            "Up and to the left is better. The line joins the sessions that no other session beats in both."
        )
        return Chart("Accuracy against latency", summary, x, y, marks, [line], legend)


def _latency(row: BenchGroup) -> float:
    return median(row.samples("warm_run"))


def _cosine(row: BenchGroup) -> float:
    return row.first.scores["cosine"]


def name(row: BenchGroup) -> str:
    """Backend and precision."""
    return f"{row.first.backend} {row.first.precision}"


def frontiers(records: Iterable[Record]) -> list[Chart]:
    """One chart per model that was run in several precisions, with all and with fewer layers, on the same data and machine."""
    return [_frontier(group, points) for group, points in frontier_points(records)]


def frontier_points(records: Iterable[Record]) -> list[tuple[list[Record], list[frontier.Point]]]:
    """For each such model its records and its points, of several backends only the fastest."""
    return [(group, frontier.fastest(points)) for group, points in frontier.models(records)]


def _frontier(group: Sequence[Record], points: Sequence[frontier.Point]) -> Chart:
    where = "; ".join([machine.describe(group[0].machine), *comparable.differences(group)])
    summary = (
        f"{group[0].task} on {group[0].data_source} data, {where}. Only the fastest of several backends is shown."
        " Up and to the left is better. The line joins the points that no other point beats in both."
        " Crossed out: its gate failed, or its speed is simulated."
    )
    return frontier.chart(points, group, "Fewer bits or fewer layers", summary)


def rooflines(records: Iterable[Record]) -> list[Chart]:
    """One roofline (Williams et al., CACM 2009) per machine, device and budget."""
    return [_roofline(rows) for rows in roofline_rows(records)]


def roofline_rows(records: Iterable[Record]) -> list[list[BenchGroup]]:
    """For each machine, device and budget the timed bench runs whose FLOPs and bytes are known.

    Runs on rows of real lengths are left out: their FLOPs differ from run to run.
    """
    by_machine: dict[tuple[str, str, str], list[BenchGroup]] = defaultdict(list)
    for board in groups.boards(records).values():
        for row in groups.rows(board):
            r = row.first
            known = r.bench and r.bench.flops and r.bench.bytes_moved and r.bench.lengths == "fixed"
            if known and row.samples("warm_run"):
                by_machine[machine.describe(r.machine), r.device, r.budget.name].append(row)
    return [rows for _, rows in sorted(by_machine.items())]


def _roofline(rows: Sequence[BenchGroup]) -> Chart:
    points, measured_roofs = reached_by(rows), roofs(rows)
    ridges = [peak / bandwidth for peak, bandwidth in measured_roofs.values()]
    x = charts.log_axis([p[1] for p in points] + ridges, "FLOPs per byte moved (log)")
    y = charts.log_axis(
        [p[2] for p in points] + [peak for peak, _ in measured_roofs.values()], "GFLOP/s (log)"
    )
    marks, legend = [], []
    for i, (row, intensity, rate) in enumerate(points, 1):
        text = f"{title(row)}: {rate:,.3g} GFLOP/s at {intensity:,.3g} FLOPs per byte"
        marks.append(Mark(x.at(intensity), y.at(rate), i, kind(row), text, filters(row)))
        legend.append(Key(i, kind(row), title(row), filters(row)))
    paths = [charts.path(_roof(x, y, *roof), "roof") for roof in measured_roofs.values()]
    measured = "; ".join(
        f"{name}: {peak:,.3g} GFLOP/s, {bandwidth:,.3g} GB/s"
        for name, (peak, bandwidth) in measured_roofs.items()
    )
    r = rows[0].first
    where = "; ".join(
        [machine.describe(r.machine), *comparable.differences(x for row in rows for x in row.records)]
    )
    summary = f"The rate of each run, below the roof that was measured on this machine ({measured}). {where}."
    return Chart(f"Roofline, {r.device}, budget {r.budget.name}", summary, x, y, marks, paths, legend)


def reached_by(rows: Iterable[BenchGroup]) -> list[tuple[BenchGroup, float, float]]:
    """The runs, each with `reached`."""
    return [(row, *reached(row)) for row in rows]


def reached(row: BenchGroup) -> tuple[float, float]:
    """Arithmetic intensity in FLOPs per byte, and the rate of the median run in GFLOP/s."""
    bench = row.first.bench
    assert bench is not None
    assert bench.flops and bench.bytes_moved
    return bench.flops / bench.bytes_moved, bench.flops / median(row.samples("warm_run")) / 1e9


def roofs(rows: Sequence[BenchGroup]) -> dict[str, tuple[float, float]]:
    """Peak in GFLOP/s and bandwidth in GB/s by precision: medians of the measurements in the records."""
    measured: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        for r in row.records:
            if r.bench and r.bench.peak:
                measured[r.precision].append((r.bench.peak / 1e9, r.bench.bandwidth / 1e9))
    return {
        name: (median(p for p, _ in pairs), median(b for _, b in pairs))
        for name, pairs in sorted(measured.items())
    }


def _roof(x: Axis, y: Axis, peak: float, bandwidth: float) -> list[tuple[float, float]]:
    """The slope of the bandwidth up to the peak, inside the axes."""
    left = max(x.low, y.low / bandwidth)
    corners = [left, min(max(peak / bandwidth, left), x.high), x.high]
    return [(x.at(a), y.at(min(a * bandwidth, peak))) for a in corners]


def title(row: BenchGroup) -> str:
    """Model, sizes, backend and precision."""
    return f"{bench_table.title(row.first)}, {name(row)}"
