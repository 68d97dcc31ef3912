"""The report as one static HTML page that opens from file:// without a network.

Everything is rendered here; the page's script only hides what the filters leave out and keeps them in the URL.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from buzzer import __version__
from buzzer.configs import load_yaml
from buzzer.models.api.context import SCORE
from buzzer.suite import registry
from buzzer.suite.analysis import comparison
from buzzer.suite.analysis.comparison import Group, Variant
from buzzer.suite.analysis.statistics import Ratio, paired
from buzzer.suite.records import machine
from buzzer.suite.records.record import Record
from buzzer.suite.report import bench_table, charts, leaderboard
from buzzer.suite.report import page_bench as sessions
from buzzer.suite.report.charts import Chart, Mark
from buzzer.suite.report.format import clock_text
from buzzer.suite.report.leaderboard import RunGroup

ASSETS = Path(__file__).parent / "templates"
FILTERS = ("task", "machine", "engine", "precision", "budget", "outcome")
PHASE_COLOURS = 12


@dataclass(frozen=True)
class Entry:
    """One variant of a board: its repetitions summed up."""

    row: RunGroup
    rank: str
    number: int
    link: str

    @property
    def first(self) -> Record:
        return self.row.first

    @property
    def failed(self) -> bool:
        return any(r.outcome != "ok" for r in self.row.records)

    @property
    def outcome(self) -> str:
        return next((r.outcome for r in self.row.records if r.outcome != "ok"), "ok")

    @property
    def kind(self) -> str:
        return "failed" if self.failed else self.first.device

    @property
    def name(self) -> str:
        return " ".join(x for x in (self.first.engine_name, self.first.backend) if x != registry.NO_ENGINE)

    @property
    def filters(self) -> dict[str, str]:
        return charts.filters_of(self.first, self.outcome)

    @property
    def told(self) -> str:
        """Why it is not ranked, or what went wrong."""
        worst = next((r for r in self.row.records if r.outcome != "ok"), self.first)
        return worst.message or ("" if self.row.ranked else self.row.outcome)

    @property
    def score(self) -> float | None:
        return self.first.scores.get(self.first.metric)

    def phases(self) -> list[tuple[str, float]]:
        """The phases that make up the wall time."""
        names = dict.fromkeys(p.name for r in self.row.records for p in r.compared)
        return [(n, s) for n in names if (s := self.row.phase_s(n)) is not None]

    @property
    def outside_s(self) -> float | None:
        """Seconds of scoring outside the wall time."""
        return self.row.phase_s(SCORE) if any(r.score_s is not None for r in self.row.records) else None


@dataclass(frozen=True)
class Board:
    """Runs that are comparable, with their bars and their frontier."""

    group: list[Record]
    entries: list[Entry]

    @property
    def first(self) -> Record:
        return self.group[0]

    @property
    def facts(self) -> str:
        return leaderboard.board_facts(self.group)

    @property
    def machine(self) -> str:
        return machine.describe(self.first.machine)

    @property
    def notes(self) -> list[str]:
        return leaderboard.board_notes(self.group)

    @property
    def scored_outside(self) -> bool:
        """Whether any run was scored after its wall time."""
        return any(e.outside_s is not None for e in self.entries)

    @property
    def phase_names(self) -> list[str]:
        return list(dict.fromkeys(n for e in self.entries for n, _ in e.phases()))

    @property
    def axis(self) -> charts.Axis:
        limits = [r.budget.time_s for r in self.group if r.budget.time_s]
        return charts.time_axis([*(e.row.wall_s for e in self.entries), *limits], "wall time")

    @property
    def slowest_s(self) -> float:
        return max((e.row.wall_s for e in self.entries), default=0.0) or 1.0

    def frontier(self) -> Chart | None:
        """Score over wall time; the line joins the runs that none beats in both."""
        scored = [e for e in self.entries if e.score is not None and not e.failed]
        if not scored:
            return None
        axis = charts.time_axis([e.row.wall_s for e in self.entries], "wall time (log)")
        scores = charts.linear_axis([e.score for e in scored if e.score is not None], self.first.metric)
        marks = [_frontier_mark(e, axis, scores) for e in self.entries if e.row.wall_s > 0]
        best = charts.pareto([(e.row.wall_s, e.score) for e in scored if e.score is not None])
        line = charts.path([(axis.at(x), scores.at(y)) for x, y in best], "pareto")
        return Chart(
            f"{self.first.metric} against wall time",
            "Up and to the left is better. The line joins the runs that no other beats in both.",
            axis,
            scores,
            marks,
            [line],
            [(e.number, e.kind, f"{e.name}, {e.first.budget.name}", e.filters) for e in self.entries],
        )


def _frontier_mark(e: Entry, x: charts.Axis, y: charts.Axis) -> Mark:
    text, at = f"{e.name}, {e.first.budget.name}: {e.row.wall_s:.2f} s", x.at(e.row.wall_s)
    text += "" if e.score is None else f", {e.first.metric} {e.score:.4f}"
    if e.failed or e.score is None:
        return Mark(at, charts.FOOT, e.number, "failed", f"{text}, {e.outcome}", e.filters)
    return Mark(at, y.at(e.score), e.number, e.kind, text, e.filters)


def boards(records: Sequence[Record], links: Mapping[str, str]) -> list[Board]:
    """All boards, those of a task by falling scale."""
    found = []
    for group in leaderboard.boards(records).values():
        rows = leaderboard.rows(group)
        entries = [
            Entry(row, str(i) if row.ranked else "", i, links.get(row.first.run_id, ""))
            for i, row in enumerate(rows, 1)
        ]
        found.append(Board(group, entries))
    return sorted(found, key=lambda b: (b.first.task, -b.first.scale, b.machine, b.first.scoring))


def speed_up_charts(records: Sequence[Record]) -> list[Chart]:
    """Per task and machine, where there are two scales or more: speed-up against the plain CPU baseline."""
    made = []
    for name, task in sorted(registry.tasks().items()):
        for group in comparison.groups(records, name):
            base = comparison.baselines(group, task)["plain"]
            if base is not None and len(group.series(base)) >= 2:
                made.append(_speed_up_chart(group, base))
    return made


def _speed_up_chart(group: Group, base: Variant) -> Chart:
    ratios = _ratios(group, base)
    values = [ratio.value for series in ratios.values() for ratio in series.values()]
    x = charts.log_axis([s * group.rows_at_full for s in group.cells], "rows predicted (log)")
    y = charts.log_axis([1.0, *values], "times faster (log)", "×")
    marks, paths, legend = [], [charts.path([(0, y.at(1)), (100, y.at(1))], "even")], []
    for number, (variant, series) in enumerate(ratios.items(), 1):
        first = next(row[variant] for row in group.cells.values() if variant in row).first
        filters, kind = charts.filters_of(first, "ok"), variant.device
        legend.append((number, kind, str(variant), filters))
        points = [(x.at(s * group.rows_at_full), y.at(v.value)) for s, v in series.items()]
        paths.append(charts.path(points, kind, filters))
        for (scale, ratio), (px, py) in zip(series.items(), points, strict=True):
            interval = "" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})"
            text = f"{variant}: {ratio.value:.2f}×{interval} at scale {scale:g}"
            marks.append(Mark(px, py, number, kind, text, filters))
    marks += _failed_marks(group, x)
    title = f"{group.first.task}: speed-up against {base}"
    told = "Geometric mean over rounds by size of the job, 95 % interval in the label; the dashed line is the baseline."
    told = (
        f"{told} {'; '.join([machine.describe(group.first.machine), *leaderboard.rules_of(group.records)])}."
    )
    return Chart(title, told, x, y, marks, paths, legend)


def _ratios(group: Group, base: Variant) -> dict[Variant, dict[float, Ratio]]:
    """Speed-up by variant and scale, where both it and the baseline were good."""
    found: dict[Variant, dict[float, Ratio]] = defaultdict(dict)
    for scale, row in group.cells.items():
        if base not in row or not row[base].ranked:
            continue
        for variant, cell in row.items():
            ratio = paired(row[base].walls, cell.walls) if cell.ranked and variant != base else None
            if ratio is not None:
                found[variant][scale] = ratio
    return dict(sorted(found.items()))


def _failed_marks(group: Group, x: charts.Axis) -> list[Mark]:
    """Runs that failed stand at the foot of the chart, with what became of them."""
    marks = []
    for scale, row in group.cells.items():
        for variant, cell in row.items():
            if any(r.outcome != "ok" for r in cell.records):
                text = f"{variant}: {cell.outcome} at scale {scale:g}"
                at = x.at(scale * group.rows_at_full) if group.rows_at_full else 0.0
                marks.append(
                    Mark(at, charts.FOOT, 0, "failed", text, charts.filters_of(cell.first, cell.outcome))
                )
    return marks


def machines(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Each machine with its noise: how far single A/A runs differ on it."""
    newest = {machine.describe(r.machine): r for r in sorted(records, key=lambda r: r.created)}
    told = []
    for line, r in sorted(newest.items()):
        level = comparison.noise([x for x in records if x.control or x.outcome == "ok"], r, 1)
        told.append(
            (
                line,
                "no A/A pairs on record"
                if level is None
                else f"single A/A runs differ by up to {level.per_cent:.1f} % ({level.pairs} pairs)",
            )
        )
    return told


def choices(records: Sequence[Record], found: Sequence[Board]) -> dict[str, list[str]]:
    """The values of each filter."""
    shown = [entry.filters for board in found for entry in board.entries]
    shown += [
        sessions.filters(row)
        for group in bench_table.boards(records).values()
        for row in bench_table.rows(group)
    ]
    return {name: sorted({filters[name] for filters in shown}) for name in FILTERS}


def content(records: Sequence[Record], links: Mapping[str, str]) -> dict[str, Any]:
    """What the template shows."""
    found = boards(records, links)
    ran = [r for r in records if r.job != "fit"]
    names = list(dict.fromkeys(n for b in found for e in b.entries for n, _ in e.phases()))
    return {
        "version": __version__,
        "boards": found,
        "tasks": _by_task(found),
        "filters": choices(records, found),
        "speed_ups": speed_up_charts(records),
        "frontiers": sessions.frontiers(records),
        "rooflines": sessions.rooflines(records),
        "benches": [sessions.Board(group) for group in bench_table.boards(records).values()],
        "bench_columns": bench_table.COLUMNS,
        "anchors": [
            a | {"time_text": clock_text(a["time_s"])} if "time_s" in a else a
            for a in load_yaml("anchors.yaml")
        ],
        "published_axis": published_axis,
        "machines": machines(records),
        "rules": leaderboard.RULES,
        "published_times": leaderboard.PUBLISHED_TIMES,
        "phase_class": {name: i % PHASE_COLOURS for i, name in enumerate(names)},
        "newest": max((r.created for r in records), default=None),
        "counts": {
            "runs": len(ran),
            "failed": sum(r.outcome not in ("ok", "unsupported") for r in ran),
            "unsupported": sum(r.outcome == "unsupported" for r in ran),
            "boards": len(found),
            "machines": len({machine.describe(r.machine) for r in records}),
        },
        "clock": clock_text,
        "seconds": seconds,
    }


def seconds(value: float) -> str:
    """Three figures at least, and no powers of ten."""
    return f"{value:,.0f} s" if value >= 100 else f"{value:.3g} s"


def published_axis(anchors: Sequence[Mapping[str, Any]]) -> charts.Axis:
    times = [float(a[key]) for a in anchors for key in ("time_s", "budget_s") if key in a]
    return charts.time_axis(times, "wall time")


def _by_task(found: Sequence[Board]) -> dict[str, list[Board]]:
    by_task: dict[str, list[Board]] = {a["task"]: [] for a in load_yaml("anchors.yaml")}
    for board in found:
        by_task.setdefault(board.first.task, []).append(board)
    return dict(sorted(by_task.items()))


def html(records: Sequence[Record], links: Mapping[str, str]) -> str:
    """The page. `links` gives the record file of a run_id, relative to the page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["attributes"] = attributes
    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    template = environment.get_template("page.html.j2")
    return template.render(content(records, links), style=style, script=script) + "\n"


def attributes(filters: Mapping[str, str]) -> Any:
    """Filter values as data attributes, escaped."""
    from markupsafe import Markup, escape

    return Markup(" ").join(Markup('data-{}="{}"').format(k, escape(v)) for k, v in filters.items())


def links_of(files: Mapping[str, Path], page: Path) -> dict[str, str]:
    """Record files by run_id as the page links to them, where they lie in or below its folder: relative, never with a scheme."""
    home, found = page.resolve().parent, {}
    for run_id, path in files.items():
        if path.resolve().is_relative_to(home):
            found[run_id] = quote(os.fsencode(path.resolve().relative_to(home).as_posix()))
    return found
