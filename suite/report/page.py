"""The report as one static HTML page that opens from file:// without a network.

Everything is rendered here; the page's script only hides what the filters leave out and keeps them in the URL.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from buzzer import __version__
from buzzer.models.api.job import SCORE
from buzzer.suite import registry
from buzzer.suite.analysis import comparison
from buzzer.suite.analysis.comparison import Group, Variant
from buzzer.suite.analysis.statistics import Ratio, paired
from buzzer.suite.bench import groups as bench_groups
from buzzer.suite.records import machine, repetitions
from buzzer.suite.records.record import Record
from buzzer.suite.records.repetitions import RunGroup
from buzzer.suite.report import bench_table, charts, leaderboard, notes, page_bench, published, templates
from buzzer.suite.report.charts import Axis, Chart, Key, Mark
from buzzer.suite.report.format import clock_text, plain, seconds_text
from buzzer.suite.report.published import Anchor
from buzzer.suite.report.table import Cell, Column, Row, Table, table

FILTERS = ("task", "machine", "engine", "precision", "budget", "outcome")
PHASE_COLOURS = 12


@dataclass(frozen=True)
class Entry:
    """One variant of a board: its repetitions, its rank and the link to its record."""

    row: RunGroup
    rank: str
    number: int
    link: str

    @property
    def first(self) -> Record:
        """The first repetition."""
        return self.row.first

    @property
    def failed(self) -> bool:
        """Whether any repetition failed."""
        return self.row.failed

    @property
    def outcome(self) -> str:
        """The worst outcome of all repetitions."""
        return self.row.worst.outcome

    @property
    def kind(self) -> str:
        """CSS class of its marks and rows."""
        return "failed" if self.failed else self.first.device

    @property
    def name(self) -> str:
        """Engine and backend."""
        return " ".join(x for x in (self.first.engine_name, self.first.backend) if x != registry.NO_ENGINE)

    @property
    def filters(self) -> dict[str, str]:
        """The values by which it is filtered."""
        return charts.filters_of(self.first, self.outcome)

    @property
    def score(self) -> float | None:
        """The score by which the task is ranked."""
        return self.row.score

    def phases(self) -> list[tuple[str, float]]:
        """The phases that make up the wall time, in seconds."""
        names = dict.fromkeys(p.name for r in self.row.records for p in r.compared)
        return [(n, s) for n in names if (s := self.row.phase_s(n)) is not None]

    @property
    def outside_s(self) -> float | None:
        """Seconds of scoring outside the wall time."""
        return self.row.phase_s(SCORE) if any(r.score_s is not None for r in self.row.records) else None

    def cells(self) -> Row:
        """Its row of the leaderboard."""
        r, row, runs = self.first, self.row, len(self.row.records)
        repeats = f"/{runs}" if runs > 1 and row.started else ""
        badge = "good" if row.ranked else "bad" if self.failed else "unranked"
        cells = (
            self.rank,
            Cell(self.name, link=self.link, chip="GPU" if r.device == "cuda" else ""),
            r.precision,
            r.budget.name,
            plain(self.score, 4),
            Cell(leaderboard.wall_text(row), small=repeats, title=f"median of {runs} runs"),
            leaderboard.megabytes(row.peak),
            leaderboard.time_left(row),
            leaderboard.memory_left(row),
            Cell(row.outcome, badge=badge, small=row.worst.message if self.failed else ""),
        )
        return Row(cells, self.kind, self.filters, r.run_id)


@dataclass(frozen=True)
class Board:
    """Runs that may be compared, as a table, as bars, and as score over time."""

    group: list[Record]
    entries: list[Entry]

    @property
    def first(self) -> Record:
        """A record, for what all have in common."""
        return self.group[0]

    @property
    def facts(self) -> str:
        """The data in one line."""
        return leaderboard.board_facts(self.group)

    @property
    def machine(self) -> str:
        """The machine in one line."""
        return machine.describe(self.first.machine)

    @property
    def notes(self) -> list[str]:
        """What a reader of the board must know."""
        return notes.board_notes(self.group)

    @property
    def table(self) -> Table:
        """The leaderboard."""
        header = (
            Column("#", "rank"),
            Column("engine and backend", "name"),
            Column("precision"),
            Column("budget"),
            Column(self.first.metric, "number", field="score"),
            Column("wall s", "number", field="wall"),
            Column("peak MB", "number", field="peak"),
            Column("time left", "number", field="left"),
            Column("memory left", "number", field="memory-left"),
            Column("outcome"),
        )
        return table("Leaderboard", header, (entry.cells() for entry in self.entries))

    @cached_property
    def phase_names(self) -> list[str]:
        """The phases that make up the wall times."""
        return list(dict.fromkeys(n for e in self.entries for n, _ in e.phases()))

    @property
    def phase_table(self) -> Table:
        """Wall seconds by phase."""
        outside = any(e.outside_s is not None for e in self.entries)
        numbers = [*self.phase_names, *(["score, after the wall time"] if outside else [])]
        header = (
            Column("engine and backend", "name"),
            Column("budget"),
            *(Column(n, "number") for n in numbers),
        )
        lines = []
        for e in self.entries:
            spent = [e.row.phase_s(n) for n in self.phase_names] + ([e.outside_s] if outside else [])
            cells = (e.name, e.first.budget.name, *(plain(s, 3) for s in spent))
            lines.append(Row(cells, filters=e.filters))
        return table("Wall seconds by phase", header, lines)

    @cached_property
    def axis(self) -> Axis:
        """The axis of wall times and time limits."""
        limits = [r.budget.time_s for r in self.group if r.budget.time_s]
        return charts.time_axis([*(e.row.wall_s for e in self.entries), *limits], "wall time")

    @property
    def slowest_s(self) -> float:
        """The longest wall time in seconds; 1 if no run was started."""
        return max((e.row.wall_s for e in self.entries), default=0.0) or 1.0

    def frontier(self) -> Chart | None:
        """Score over wall time; the line joins the Pareto front."""
        scored = [e for e in self.entries if e.score is not None and not e.failed]
        if not scored:
            return None
        x = charts.time_axis([e.row.wall_s for e in self.entries], "wall time (log)")
        y = charts.linear_axis(list(map(_score, scored)), self.first.metric)
        marks = [_frontier_mark(e, x, y) for e in self.entries if e.row.wall_s > 0]
        line = charts.front(scored, x, y, lambda e: e.row.wall_s, _score)
        return Chart(
            f"{self.first.metric} against wall time",
            "Up and to the left is better. The line joins the runs that no other one beats in both.",
            x,
            y,
            marks,
            [line],
            [Key(e.number, e.kind, f"{e.name}, {e.first.budget.name}", e.filters) for e in self.entries],
        )


def _score(e: Entry) -> float:
    return e.score or 0.0


def _frontier_mark(e: Entry, x: Axis, y: Axis) -> Mark:
    text, at = f"{e.name}, {e.first.budget.name}: {e.row.wall_s:.2f} s", x.at(e.row.wall_s)
    text += "" if e.score is None else f", {e.first.metric} {e.score:.4f}"
    if e.failed or e.score is None:
        return Mark(at, charts.FOOT, e.number, "failed", f"{text}, {e.outcome}", e.filters)
    return Mark(at, y.at(e.score), e.number, e.kind, text, e.filters)


def boards(records: Sequence[Record], links: Mapping[str, str]) -> list[Board]:
    """All boards, those of a task by falling scale."""
    result = []
    for group in repetitions.boards(records).values():
        entries = [
            Entry(row, str(i) if row.ranked else "", i, links.get(row.first.run_id, ""))
            for i, row in enumerate(repetitions.rows(group), 1)
        ]
        result.append(Board(group, entries))
    return sorted(result, key=lambda b: (b.first.task, -b.first.scale, b.machine, b.first.scoring))


def speed_up_charts(records: Sequence[Record]) -> list[Chart]:
    """Per task and machine, where there are two scales or more: speed-up against the plain CPU baseline."""
    result = []
    for name, task in sorted(registry.tasks().items()):
        for group in comparison.groups(records, name):
            base = comparison.baselines(group, task)["plain"]
            if base is not None and len(group.series(base)) >= 2:
                result.append(_speed_up_chart(group, base))
    return result


def _speed_up_chart(group: Group, base: Variant) -> Chart:
    ratios = _ratios(group, base)
    values = [ratio.value for series in ratios.values() for ratio in series.values()]
    x = charts.log_axis([s * group.rows_at_full for s in group.cells], "rows predicted (log)")
    y = charts.log_axis([1.0, *values], "times faster (log)", "×")
    marks, paths, legend = [], [charts.path([(0, y.at(1)), (100, y.at(1))], "even")], []
    for number, (variant, series) in enumerate(ratios.items(), 1):
        first = next(row[variant] for row in group.cells.values() if variant in row).first
        filters, kind = charts.filters_of(first, "ok"), variant.device
        legend.append(Key(number, kind, str(variant), filters))
        points = [(x.at(s * group.rows_at_full), y.at(v.value)) for s, v in series.items()]
        paths.append(charts.path(points, kind, filters))
        for (scale, ratio), (px, py) in zip(series.items(), points, strict=True):
            interval = "" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})"
            text = f"{variant}: {ratio.value:.2f}×{interval} at scale {scale:g}"
            marks.append(Mark(px, py, number, kind, text, filters))
    marks += _failed_marks(group, x)
    title = f"{group.first.task}: speed-up against {base}"
    where = "; ".join([machine.describe(group.first.machine), *notes.timing_notes(group.records)])
    summary = (
        "Geometric mean over rounds by size of the job, 95 % interval in the label; the dashed line is the"
        f" baseline. {where}."
    )
    return Chart(title, summary, x, y, marks, paths, legend)


def _ratios(group: Group, base: Variant) -> dict[Variant, dict[float, Ratio]]:
    """Speed-up by variant and scale, where both it and the baseline are ranked."""
    ratios: dict[Variant, dict[float, Ratio]] = defaultdict(dict)
    for scale, row in group.cells.items():
        if base not in row or not row[base].ranked:
            continue
        for variant, cell in row.items():
            ratio = paired(row[base].walls, cell.walls) if cell.ranked and variant != base else None
            if ratio is not None:
                ratios[variant][scale] = ratio
    return dict(sorted(ratios.items()))


def _failed_marks(group: Group, x: Axis) -> list[Mark]:
    """Failed runs at the foot of the chart, with their outcome."""
    marks = []
    for scale, row in group.cells.items():
        for variant, cell in row.items():
            if cell.failed:
                text = f"{variant}: {cell.outcome} at scale {scale:g}"
                at = x.at(scale * group.rows_at_full) if group.rows_at_full else 0.0
                marks.append(
                    Mark(at, charts.FOOT, 0, "failed", text, charts.filters_of(cell.first, cell.outcome))
                )
    return marks


@dataclass(frozen=True)
class MachineNoise:
    """A machine, and how far single A/A runs differ on it."""

    machine: str
    noise: str


def machines(records: Sequence[Record]) -> list[MachineNoise]:
    """Each machine with its noise."""
    newest = {machine.describe(r.machine): r for r in sorted(records, key=lambda r: r.created)}
    lines = []
    for facts, r in sorted(newest.items()):
        level = comparison.noise([x for x in records if x.control or x.outcome == "ok"], r, 1)
        text = (
            "no A/A pairs on record"
            if level is None
            else f"single A/A runs differ by up to {level.per_cent:.1f} % ({level.pairs} pairs)"
        )
        lines.append(MachineNoise(facts, text))
    return lines


@dataclass(frozen=True)
class TaskSection:
    """The part of the page on one task: boards, and what others published."""

    task: str
    boards: list[Board]
    anchors: list[Anchor]

    @property
    def table(self) -> Table:
        """The published figures."""
        header = (Column("who", "name"), "score", "time", "conditions", "source")
        lines = [Row((a.who, a.score, a.time, a.conditions, a.source), "published") for a in self.anchors]
        return table("Published figures", header, lines)

    @property
    def timed(self) -> list[Anchor]:
        """The published figures that have a wall time."""
        return [a for a in self.anchors if a.time_s is not None]

    @property
    def axis(self) -> Axis:
        """The axis of published wall times and budgets."""
        return charts.time_axis([s for a in self.timed for s in (a.time_s, a.budget_s) if s], "wall time")


def sections(board_list: Iterable[Board], figures: Sequence[Anchor]) -> list[TaskSection]:
    """A section per task that was run or of which others published figures, by name."""
    by_task: dict[str, list[Board]] = {a.task: [] for a in figures}
    for board in board_list:
        by_task.setdefault(board.first.task, []).append(board)
    return [
        TaskSection(task, group, [a for a in figures if a.task == task])
        for task, group in sorted(by_task.items())
    ]


@dataclass(frozen=True)
class Counts:
    """The figures at the top of the page."""

    runs: int
    failed: int
    unsupported: int
    boards: int
    machines: int


@dataclass(frozen=True)
class Content:
    """Everything that the template shows."""

    version: str
    tasks: list[TaskSection]
    filters: dict[str, list[str]]  # the values of each filter
    speed_ups: list[Chart]
    frontiers: list[Chart]
    rooflines: list[Chart]
    benches: list[page_bench.Board]
    machines: list[MachineNoise]
    rules: str
    published_times: str
    phase_class: dict[str, int]  # colour of each phase
    newest: datetime | None
    counts: Counts
    clock: Callable[[float], str] = clock_text
    seconds: Callable[[float], str] = seconds_text


def content(records: Sequence[Record], links: Mapping[str, str]) -> Content:
    """Everything that the template shows. links: the record file of a run_id, relative to the page."""
    board_list = boards(records, links)
    ran = [r for r in records if r.job != "fit"]
    names = list(dict.fromkeys(n for board in board_list for n in board.phase_names))
    return Content(
        version=__version__,
        tasks=sections(board_list, published.anchors()),
        filters=filter_values(records, board_list),
        speed_ups=speed_up_charts(records),
        frontiers=page_bench.frontiers(records),
        rooflines=page_bench.rooflines(records),
        benches=[page_bench.Board(group) for group in bench_groups.boards(records).values()],
        machines=machines(records),
        rules=leaderboard.RULES,
        published_times=published.TIMES,
        phase_class={name: i % PHASE_COLOURS for i, name in enumerate(names)},
        newest=max((r.created for r in records), default=None),
        counts=Counts(
            runs=len(ran),
            failed=sum(r.outcome not in ("ok", "unsupported") for r in ran),
            unsupported=sum(r.outcome == "unsupported" for r in ran),
            boards=len(board_list),
            machines=len({machine.describe(r.machine) for r in records}),
        ),
    )


def filter_values(records: Sequence[Record], board_list: Sequence[Board]) -> dict[str, list[str]]:
    """The values of each filter."""
    shown = [entry.filters for board in board_list for entry in board.entries]
    for group in bench_groups.boards(records).values():
        shown += [bench_table.filters(row) for row in bench_groups.rows(group)]
    return {name: sorted({filters[name] for filters in shown}) for name in FILTERS}


def html(records: Sequence[Record], links: Mapping[str, str]) -> str:
    """The page. links: the record file of a run_id, relative to the page."""
    template = templates.environment().get_template("page.html.j2")
    style, script = templates.text("style.css"), templates.text("page.js")
    return template.render(vars(content(records, links)), style=style, script=script) + "\n"


def links_of(files: Mapping[str, Path], page: Path) -> dict[str, str]:
    """Record files by run_id as the page links to them if they are in or below its folder: relative, never with a scheme."""
    home, links = page.resolve().parent, {}
    for run_id, path in files.items():
        if path.resolve().is_relative_to(home):
            links[run_id] = quote(os.fsencode(path.resolve().relative_to(home).as_posix()))
    return links
