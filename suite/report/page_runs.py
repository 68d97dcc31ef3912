"""The part of the report page about timed runs: boards with their bars, and speed-ups over scale."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from buzzer.models.api.context import SCORE
from buzzer.suite import registry
from buzzer.suite.analysis import comparison, published_job
from buzzer.suite.analysis.comparison import Group, Variant
from buzzer.suite.analysis.statistics import LEAST_ROUNDS, Ratio, paired
from buzzer.suite.records import machine, repetitions
from buzzer.suite.records.repetitions import RunGroup
from buzzer.suite.records.schema import Record
from buzzer.suite.report import charts, leaderboard, notes, published, summary
from buzzer.suite.report.charts import Axis, Chart, Key, Mark
from buzzer.suite.report.format import decimal
from buzzer.suite.report.summary import Gain, TaskSummary
from buzzer.suite.report.table import Cell, Column, Row, Table, table

LEAST_SPREAD = (
    1e-3  # share of the best score; if scores differ by less, a chart of them is flat and is left out
)
LONGEST = 40  # characters of a parameter in a heading


@dataclass(frozen=True)
class Entry:
    """One variant of a board: its repetitions, its rank, the link to its record, and its gain over the board's plain run."""

    row: RunGroup
    rank: str
    number: int
    link: str
    gain: Gain | None = None
    is_plain: bool = False  # whether it is the run that the gains compare with

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
        return charts.kind_of(self.first.device, self.outcome)

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

    @cached_property
    def phases(self) -> list[tuple[str, float]]:
        """The phases that make up the wall time, in seconds."""
        names = dict.fromkeys(p.name for r in self.row.records for p in r.compared)
        return [(n, s) for n in names if (s := self.row.phase_s(n)) is not None]

    @property
    def outside_s(self) -> float | None:
        """Seconds of scoring outside the wall time."""
        return self.row.phase_s(SCORE) if any(r.score_s is not None for r in self.row.records) else None

    @property
    def bar_text(self) -> str:
        """The text beside its bar: the outcome if it is not ok."""
        if not self.failed:
            return ""
        reached = f" in {self.first.phase_reached}" if self.first.phase_reached else ""
        return f"{'–' if self.kind == 'unsupported' else '✕'} {self.outcome}{reached}"

    def cells(self, with_work: bool) -> Row:
        """Its row of the leaderboard. with_work: whether it has the column with its share of a published job."""
        r, row, runs = self.first, self.row, len(self.row.records)
        repeats = f"/{runs}" if runs > 1 and row.started else ""
        badge = "good" if row.ranked else "bad" if self.kind == "failed" else "unranked"
        cells = (
            self.rank,
            Cell(self.name, link=self.link, chip="GPU" if r.device == "cuda" else ""),
            Cell(leaderboard.wall_text(row), small=repeats, title=f"median of {runs} runs"),
            Cell("1", title="the plain run") if self.is_plain else _ratio(self.gain),
            decimal(self.score, 4),
            leaderboard.megabytes(row.peak),
            decimal(row.cpu_s),
            r.precision,
            r.budget.name,
            leaderboard.time_used(row),
            leaderboard.memory_used(row),
            Cell(row.outcome, badge=badge, small=row.worst.message if self.failed else ""),
        )
        more = (published.work_text(r),) if with_work else ()
        return Row((*cells, *more), self.kind, self.filters, r.run_id)


def _ratio(gain: Gain | None) -> Cell:
    if gain is None:
        return Cell("")
    return Cell(summary.times(gain.ratio.value), small=" ≈" if gain.is_noise else "", title=gain.verdict)


@dataclass(frozen=True)
class Board:
    """Runs that may be compared, as a table, as bars, and as score over time."""

    group: list[Record]
    entries: list[Entry]
    apart: tuple[str, ...] = ()  # what tells it apart from other boards of its task with the same scale

    @property
    def first(self) -> Record:
        """A record, used for the facts that all records have in common."""
        return self.group[0]

    @property
    def label(self) -> str:
        """Its scale, and what tells it apart from other boards of its task: a heading and the text of a tab."""
        return ", ".join([f"Scale {self.first.scale:g}", *self.apart])

    @property
    def id(self) -> str:
        """An id for links that does not change when records are added."""
        text = f"{self.first.task} {self.label}"
        return f"{self.first.task}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"

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
        """Notes for readers of the board."""
        return notes.board_notes(self.group)

    @property
    def table(self) -> Table:
        """The leaderboard."""
        header = (
            Column("#", "rank"),
            Column("engine and backend", "name"),
            Column("wall s", "number", field="wall"),
            Column("× plain", "number", field="gain"),
            Column(self.first.metric, "number", field="score"),
            Column("peak MB", "number", field="peak"),
            Column("CPU s", "number", field="cpu"),
            Column("precision"),
            Column("budget"),
            Column("of time budget", "number", field="time-used"),
            Column("of memory budget", "number", field="memory-used"),
            Column("outcome"),
        )
        with_work = published_job.job_of(self.first.task) is not None
        columns = (*header, Column(published.WORK)) if with_work else header
        shown = table("Leaderboard", columns, (entry.cells(with_work) for entry in self.entries))
        return shown.without_empty_columns()

    @cached_property
    def phase_names(self) -> list[str]:
        """The phases that make up the wall times."""
        return list(dict.fromkeys(n for e in self.entries for n, _ in e.phases))

    @property
    def phase_table(self) -> Table:
        """Wall seconds by phase."""
        outside = any(e.outside_s is not None for e in self.entries)
        numbers = [*self.phase_names, *(["score, after the wall time"] if outside else [])]
        header = (
            Column("engine and backend", "name"),
            Column("precision"),
            Column("budget"),
            *(Column(n, "number") for n in numbers),
        )
        lines = []
        for e in self.entries:
            spent = [e.row.phase_s(n) for n in self.phase_names] + ([e.outside_s] if outside else [])
            cells = (e.name, e.first.precision, e.first.budget.name, *(decimal(s, 3) for s in spent))
            lines.append(Row(cells, filters=e.filters))
        return table("Wall seconds by phase", header, lines)

    @property
    def slowest_s(self) -> float:
        """The longest wall time in seconds; 1 if no run was started."""
        return max((e.row.wall_s for e in self.entries), default=0.0) or 1.0

    def frontier(self) -> Chart | None:
        """Score over wall time with the Pareto front; None if the scores hardly differ."""
        scored = [e for e in self.entries if e.score is not None and not e.failed]
        scores = list(map(_score, scored))
        if not scores or max(scores) - min(scores) <= LEAST_SPREAD * max(map(abs, scores)):
            return None
        x = charts.time_axis([e.row.wall_s for e in self.entries], "wall time (log)")
        y = charts.linear_axis(scores, self.first.metric)
        marks = [
            _frontier_mark(e, x, y) for e in self.entries if e.row.wall_s > 0 and e.kind != "unsupported"
        ]
        line = charts.front(scored, x, y, lambda e: e.row.wall_s, _score)
        return Chart(
            f"{self.first.metric} against wall time",
            "Up and to the left is better. The line joins the runs that no other run beats in both.",
            x,
            y,
            marks,
            [line],
            [
                Key(e.number, e.kind, f"{e.name} {e.first.precision}", e.filters)
                for e in self.entries
                if e.kind != "unsupported"
            ],
        )


def _score(e: Entry) -> float:
    return e.score or 0.0


def _frontier_mark(e: Entry, x: Axis, y: Axis) -> Mark:
    text = f"{e.name} {e.first.precision}, {e.first.budget.name}: {e.row.wall_s:.2f} s"
    text += "" if e.score is None else f", {e.first.metric} {e.score:.4f}"
    at = x.at(e.row.wall_s)
    if e.failed or e.score is None:
        return Mark(at, charts.FOOT, e.number, "failed", f"{text}, {e.outcome}", e.filters)
    return Mark(at, y.at(e.score), e.number, e.kind, text, e.filters)


def boards(records: Sequence[Record], links: Mapping[str, str]) -> list[Board]:
    """All boards. The boards of a task are sorted by descending scale; those timed by today's rule come first."""
    groups = sorted(repetitions.boards(records).values(), key=_order)
    pool, result = summary.noise_pool(records), []
    for _, same in groupby(groups, key=lambda g: (g[0].task, g[0].scale)):
        together = list(same)
        for group in together:
            result.append(Board(group, entries(group, pool, links), told_apart(group, together)))
    return result


def _order(group: Sequence[Record]) -> tuple[str, float, bool, str, float]:
    r = group[0]
    newest = max(x.created for x in group).timestamp()
    return r.task, -r.scale, r.scoring == "inside", machine.describe(r.machine), -newest


def entries(group: Sequence[Record], pool: Sequence[Record], links: Mapping[str, str]) -> list[Entry]:
    """The variants of a board in the order of their rank. pool: records of A/A pairs."""
    rows = repetitions.rows(group)
    ranked = [row for row in rows if row.ranked]
    plain = summary.plain_run(ranked)
    board = None if plain is None else TaskSummary(ranked, plain, pool)
    return [
        Entry(
            row,
            str(i) if row.ranked else "",
            i,
            links.get(row.first.run_id, ""),
            board.gain_of(row) if board is not None and row.ranked and row is not plain else None,
            row is plain,
        )
        for i, row in enumerate(rows, 1)
    ]


FACTS: tuple[Callable[[Record], str], ...] = (
    lambda r: f"{r.data_source} data",
    lambda r: "" if r.train_scale is None else f"training rows {r.train_scale:g}",
    lambda r: f"seed {r.seed}",
    lambda r: machine.describe(r.machine),
    lambda r: f"scoring {r.scoring}",
)


def told_apart(group: Sequence[Record], boards: Sequence[Sequence[Record]]) -> tuple[str, ...]:
    """The facts and parameters by which a board differs from other boards of its task and scale: as few as tell it apart."""
    firsts = [g[0] for g in boards]
    words = [own_words(fact(group[0]), [fact(r) for r in firsts]) for fact in FACTS]
    alike = [r for r in firsts if all(fact(r) == fact(group[0]) for fact in FACTS)]
    words += [f"{name}={value(group[0], name)[:LONGEST]}" for name in telling(alike)]
    if len({r.data_fingerprint for r in alike}) > 1:
        words.append(f"files {group[0].data_fingerprint[:6]}")
    return tuple(word for word in words if word)


def own_words(text: str, others: Sequence[str]) -> str:
    """The parts of a text between commas that not all others have; empty if all texts are equal."""
    every = set.intersection(*(set(other.split(", ")) for other in others))
    return ", ".join(part for part in text.split(", ") if part not in every)


def telling(records: Sequence[Record]) -> list[str]:
    """The fewest parameters that tell runs apart as well as all of them do, those with short values first."""
    names = {name for r in records for name in r.config if len({value(r, name) for r in records}) > 1}
    ordered = sorted(names, key=lambda name: (max(len(value(r, name)) for r in records), name))
    chosen: list[str] = []

    def kinds(of: Sequence[str]) -> int:
        return len({tuple(value(r, name) for name in of) for r in records})

    while kinds(chosen) < kinds(ordered):
        chosen.append(max(ordered, key=lambda name: kinds([*chosen, name])))
    return chosen


def value(r: Record, name: str) -> str:
    """A parameter as JSON; empty if the run has none of that name."""
    return json.dumps(r.config[name]) if name in r.config else ""


def speed_up_charts(records: Sequence[Record]) -> list[Chart]:
    """Speed-up against the plain CPU baseline, for each task and machine with at least two scales."""
    result = []
    for name, task in sorted(registry.tasks().items()):
        bases = [(g, comparison.baselines(g, task)["plain"]) for g in comparison.groups(records, name)]
        shown = [(g, base) for g, base in bases if base is not None and len(g.series(base)) >= 2]
        for group, base in shown:
            own = told_apart(group.records, [g.records for g, _ in shown])
            result.append(_speed_up_chart(group, base, own))
    return result


def _speed_up_chart(group: Group, base: Variant, own: Sequence[str]) -> Chart:
    """own: the facts by which the group differs from other groups of its task."""
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
    title = ", ".join([f"{group.first.task}: speed-up against {base}", *own])
    where = "; ".join([machine.describe(group.first.machine), *notes.timing_notes(group.records)])
    summary_text = (
        "Geometric mean over rounds by size of the job, in the label with its 95 % interval"
        f" from {LEAST_ROUNDS} rounds on; the dashed line is the baseline. {where}."
    )
    return Chart(title, summary_text, x, y, marks, paths, legend)


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
    """Failed runs at the foot of the chart, with their outcome. Runs that the machine could not start are left out."""
    marks = []
    for scale, row in group.cells.items():
        for variant, cell in row.items():
            if cell.failed and cell.worst.outcome != "unsupported":
                text = f"{variant}: {cell.outcome} at scale {scale:g}"
                at = x.at(scale * group.rows_at_full) if group.rows_at_full else 0.0
                marks.append(
                    Mark(at, charts.FOOT, 0, "failed", text, charts.filters_of(cell.first, cell.outcome))
                )
    return marks
