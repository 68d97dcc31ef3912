"""The report page's part on inference sessions, from the records of `buzzer bench`: tables, frontiers, rooflines."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from buzzer.suite import registry
from buzzer.suite.records import comparable, machine
from buzzer.suite.records.record import Record
from buzzer.suite.report import bench_table, charts, frontier, leaderboard
from buzzer.suite.report.charts import Chart, Mark


@dataclass(frozen=True)
class Board:
    """Inference sessions of one model that are comparable: `buzzer bench`'s own table, and cosine over latency."""

    group: list[Record]

    @property
    def title(self) -> str:
        return bench_table.title(self.group[0])

    @property
    def machine(self) -> str:
        return f"{machine.describe(self.group[0].machine)}, budget {self.group[0].budget.name}"

    @property
    def notes(self) -> list[str]:
        return leaderboard.bench_notes(self.group)

    @property
    def rows(self) -> list[bench_table.BenchGroup]:
        return bench_table.rows(self.group)

    @property
    def lines(self) -> list[tuple[dict[str, str], str, tuple[str, ...]]]:
        """Filters, kind and cells of each line."""
        cells = bench_table.table(self.group)
        return [(filters(r), kind(r), c) for r, c in zip(self.rows, cells, strict=True)]

    def frontier(self) -> Chart | None:
        """How near the outputs are to the FP32 reference's, over the median latency."""
        timed = [(r, median(r.pooled("warm_run"))) for r in self.rows if r.pooled("warm_run")]
        told = [(r, x, r.first.scores["cosine"]) for r, x in timed if "cosine" in r.first.scores]
        if len({round(y, 5) for *_, y in told}) < 2:
            return None  # all are as good as FP32: nothing to trade
        axis = charts.time_axis([x for _, x, _ in told], "median latency of a run (log)")
        cosines = charts.linear_axis([y for *_, y in told], "least cosine with FP32")
        marks = [
            Mark(axis.at(x), cosines.at(y), i, kind(r), f"{name(r)}: {1e3 * x:.2f} ms, cosine {y:.5f}", filters(r))
            for i, (r, x, y) in enumerate(told, 1)
        ]  # fmt: skip
        best = charts.pareto([(x, y) for r, x, y in told if r.ranked])
        line = charts.path([(axis.at(x), cosines.at(y)) for x, y in best], "pareto")
        legend = [(i, kind(r), name(r), filters(r)) for i, (r, *_) in enumerate(told, 1)]
        told_in_words = (
            "Up and to the left is better. The line joins the sessions that no other beats in both."
        )
        return Chart("Accuracy against latency", told_in_words, axis, cosines, marks, [line], legend)


def name(row: bench_table.BenchGroup) -> str:
    return f"{row.first.backend} {row.first.precision}"


def kind(row: bench_table.BenchGroup) -> str:
    return "failed" if any(r.outcome != "ok" for r in row.records) else row.first.device


def filters(row: bench_table.BenchGroup) -> dict[str, str]:
    return charts.filters_of(row.first, next((r.outcome for r in row.records if r.outcome != "ok"), "ok"))


def frontiers(records: Iterable[Record]) -> list[Chart]:
    """One chart for each model that was run in several precisions, whole and cut to fewer layers, on the same data and machine."""
    groups: dict[comparable.Key, list[Record]] = defaultdict(list)
    for r in records:
        if r.job in ("fit", "predict") and type(r.config.get(frontier.LAYERS)) is int and not r.control:
            same = {k: v for k, v in r.config.items() if k not in (frontier.LAYERS, "checkpoints")}
            groups[*comparable.times(r, without=("job", "parameters")), registry.params_hash(same)].append(r)
    return [chart for group in groups.values() if (chart := _frontier(group))]


def _frontier(group: Sequence[Record]) -> Chart | None:
    fits = [r for r in group if r.job == "fit" and not r.config[frontier.LAYERS] and r.outcome == "ok"]
    whole = [r.details[frontier.LAYERS] for r in fits if frontier.LAYERS in r.details]
    if not whole:
        return None
    found = frontier.points((r for r in group if r.job == "predict" and r.metric in r.scores), whole[-1])
    fastest: dict[tuple[int, str], frontier.Point] = {}
    for p in sorted(found, key=lambda p: not p.counts):  # the fastest first, within each
        fastest.setdefault((p.layers, p.precision), p)
    found = [p for p in found if p in fastest.values()]
    if len({p.layers for p in found}) < 2:
        return None
    first = {r.run_id: r for r in group}
    x = charts.time_axis([p.p50_ms / 1e3 for p in found], "median latency of a sentence (log)")
    y = charts.linear_axis([p.accuracy for p in found], "accuracy")
    marks: list[Mark] = []
    legend: list[tuple[int, str, str, dict[str, str]]] = []
    for i, p in enumerate(found, 1):
        kind = first[p.run_id].device if p.counts else "failed"
        name = f"{p.layers} layers, {p.precision}, {p.backend}"
        told = f"{name}: {p.p50_ms:.2f} ms, accuracy {p.accuracy:.4f}" + (
            f", {p.outcome}" if not p.counts else ""
        )
        filters = charts.filters_of(first[p.run_id], first[p.run_id].outcome)
        marks.append(Mark(x.at(p.p50_ms / 1e3), y.at(p.accuracy), i, kind, told, filters))
        legend.append((i, kind, name, filters))
    best = charts.pareto([(p.p50_ms / 1e3, p.accuracy) for p in found if p.counts])
    line = charts.path([(x.at(s), y.at(a)) for s, a in best], "pareto")
    on = "; ".join([machine.describe(group[0].machine), *comparable.differences(group)])
    words = (
        f"{group[0].task} on {group[0].data_source} data, {on}. Of several backends the fastest."
        " Up and to the left is better; the line joins what no other beats in both. Crossed out: below its gate, or its speed is simulated."
    )
    return Chart("Fewer bits or fewer layers", words, x, y, marks, [line], legend)


def rooflines(records: Iterable[Record]) -> list[Chart]:
    """One roofline (Williams et al., CACM 2009) a machine and budget, of bench runs whose FLOPs and bytes are told.

    Runs on rows of real lengths are left out: their FLOPs differ from run to run.
    """
    groups: dict[tuple[str, str, str], list[bench_table.BenchGroup]] = defaultdict(list)
    for board in bench_table.boards(records).values():
        for row in bench_table.rows(board):
            r = row.first
            if r.bench and r.bench.flops and r.bench.bytes_moved and r.bench.lengths == "fixed":
                groups[machine.describe(r.machine), r.device, r.budget.name].append(row)
    return [_roofline(rows) for _, rows in sorted(groups.items())]


def _roofline(rows: Sequence[bench_table.BenchGroup]) -> Chart:
    points = [(row, *reached(row)) for row in rows if row.pooled("warm_run")]
    roofs = _roofs(rows)
    ridges = [peak / bandwidth for peak, bandwidth in roofs.values()]
    x = charts.log_axis([p[1] for p in points] + ridges, "FLOPs per byte moved (log)")
    y = charts.log_axis([p[2] for p in points] + [peak for peak, _ in roofs.values()], "GFLOP/s (log)")
    marks, legend = [], []
    for i, (row, intensity, rate) in enumerate(points, 1):
        text = f"{title(row)}: {rate:,.3g} GFLOP/s at {intensity:,.3g} FLOPs a byte"
        marks.append(Mark(x.at(intensity), y.at(rate), i, kind(row), text, filters(row)))
        legend.append((i, kind(row), title(row), filters(row)))
    paths = [charts.path(_roof(x, y, *roof), "roof") for roof in roofs.values()]
    told = "; ".join(
        f"{name}: {peak:,.3g} GFLOP/s, {bandwidth:,.3g} GB/s" for name, (peak, bandwidth) in roofs.items()
    )
    r = rows[0].first
    on = "; ".join(
        [machine.describe(r.machine), *comparable.differences(x for row in rows for x in row.records)]
    )
    words = f"What a run reached below the roof that was measured here ({told}). {on}."
    return Chart(f"Roofline, {r.device}, budget {r.budget.name}", words, x, y, marks, paths, legend)


def reached(row: bench_table.BenchGroup) -> tuple[float, float]:
    """Arithmetic intensity in FLOPs a byte, and what the median run reached in GFLOP/s."""
    bench = row.first.bench
    assert bench is not None
    assert bench.flops and bench.bytes_moved
    return bench.flops / bench.bytes_moved, bench.flops / median(row.pooled("warm_run")) / 1e9


def _roofs(rows: Sequence[bench_table.BenchGroup]) -> dict[str, tuple[float, float]]:
    """Peak in GFLOP/s and bandwidth in GB/s by precision: medians of what the records measured."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        for r in row.records:
            if r.bench and r.bench.peak:
                found[r.precision].append((r.bench.peak / 1e9, r.bench.bandwidth / 1e9))
    return {
        name: (median(p for p, _ in roofs), median(b for _, b in roofs))
        for name, roofs in sorted(found.items())
    }


def _roof(x: charts.Axis, y: charts.Axis, peak: float, bandwidth: float) -> list[tuple[float, float]]:
    """The slope of the bandwidth up to the peak, inside the axes."""
    left = max(x.low, y.low / bandwidth)
    corners = [left, min(max(peak / bandwidth, left), x.high), x.high]
    return [(x.at(a), y.at(min(a * bandwidth, peak))) for a in corners]


def title(row: bench_table.BenchGroup) -> str:
    return f"{bench_table.title(row.first)}, {name(row)}"
