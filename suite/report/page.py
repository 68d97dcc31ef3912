"""The report as one static HTML page that can be opened from file:// without a network.

Everything is rendered here. The page's script only hides filtered-out elements and keeps the filters in the URL.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from buzzer import __version__
from buzzer.suite.analysis import comparison, published_job
from buzzer.suite.analysis.published_job import PublishedFigure
from buzzer.suite.bench import groups as bench_groups
from buzzer.suite.records import machine
from buzzer.suite.records.schema import Record
from buzzer.suite.report import (
    bench_table,
    charts,
    compare_text,
    headline,
    leaderboard,
    page_bench,
    page_runs,
    published,
    templates,
)
from buzzer.suite.report.charts import Axis, Chart
from buzzer.suite.report.headline import Headline
from buzzer.suite.report.page_runs import Board, Entry
from buzzer.suite.report.table import Column, Row, Table, table

FILTERS = ("task", "machine", "engine", "precision", "budget", "outcome")
PHASE_COLOURS = 12


@dataclass(frozen=True)
class MachineNoise:
    """A machine, and how much single A/A runs differ on it."""

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
    """The part of the page about one task: boards and published figures."""

    task: str
    boards: list[Board]
    figures: list[PublishedFigure]
    has_job: bool = (
        False  # whether the size of the published job is known, so that runs may stand beside its time
    )

    @property
    def table(self) -> Table:
        """The published figures."""
        header = (Column("who", "name"), "score", "time", "conditions", "source")
        lines = [Row((a.who, a.score, a.time, a.conditions, a.source), "published") for a in self.figures]
        return table("Published figures", header, lines)

    @property
    def timed(self) -> list[PublishedFigure]:
        """The published figures that have a wall time."""
        return [a for a in self.figures if a.time_s is not None]

    @property
    def ranked(self) -> list[Entry]:
        """The ranked runs of all boards."""
        return [entry for board in self.boards for entry in board.entries if entry.row.ranked]

    @property
    def beside(self) -> list[Entry]:
        """The ranked runs that are the same job as the published one."""
        return [e for e in self.ranked if (share := published.share_of(e.first)) and share.is_same_job]

    @property
    def apart(self) -> list[str]:
        """The shares of the published job of all other ranked runs, in words."""
        shares = [published.share_of(e.first) for e in self.ranked if e not in self.beside]
        return sorted({str(share) for share in shares if share is not None})

    @property
    def rule(self) -> str:
        """When a run stands beside the published times; empty if the size of the published job is not known."""
        return published.SAME_JOB if self.has_job else ""

    @property
    def axis(self) -> Axis:
        """The axis of published wall times and budgets, and of the runs beside them."""
        times = [s for a in self.timed for s in (a.time_s, a.budget_s) if s]
        return charts.time_axis([*times, *(e.row.wall_s for e in self.beside)], "wall time")


def sections(board_list: Iterable[Board], figures: Sequence[PublishedFigure]) -> list[TaskSection]:
    """A section for each task with runs or published figures, sorted by name."""
    by_task: dict[str, list[Board]] = {a.task: [] for a in figures}
    for board in board_list:
        by_task.setdefault(board.first.task, []).append(board)
    result = []
    for task, group in sorted(by_task.items()):
        job = published_job.job_of(task)  # its figures may be those of another task on the same data
        own = [a for a in figures if a.task == task] if job is None else list(job.figures)
        result.append(TaskSection(task, group, own, job is not None))
    return result


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
    headlines: list[Headline]
    speed_ups: list[Chart]
    truths: list[Table]
    frontiers: list[Chart]
    rooflines: list[Chart]
    benches: list[page_bench.Board]
    machines: list[MachineNoise]
    rules: str
    published_times: str
    phase_class: dict[str, int]  # colour of each phase
    newest: datetime | None
    counts: Counts


def content(records: Sequence[Record], links: Mapping[str, str]) -> Content:
    """Everything that the template shows. links: the record file of a run_id, relative to the page."""
    board_list = page_runs.boards(records, links)
    ran = [r for r in records if r.job != "fit"]
    names = list(dict.fromkeys(n for board in board_list for n in board.phase_names))
    return Content(
        version=__version__,
        tasks=sections(board_list, published_job.figures()),
        filters=filter_values(records, board_list),
        headlines=headline.headlines(records),
        speed_ups=page_runs.speed_up_charts(records),
        truths=truth_tables(records),
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


def truth_tables(records: Sequence[Record]) -> list[Table]:
    """For each task and machine with runs at the official size and at two smaller ones: projections, and the measured times."""
    tables = []
    for name in sorted({r.task for r in records}):
        for group in comparison.groups(records, name):
            if truths := comparison.truths(group):
                tables.append(compare_text.truth_table(truths, f"{compare_text.title_of(group)}. "))
    return tables


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
    """run_id -> link to its record file, if the file is in or below the page's folder. Links are relative and have no scheme."""
    home, links = page.resolve().parent, {}
    for run_id, path in files.items():
        if path.resolve().is_relative_to(home):
            links[run_id] = quote(os.fsencode(path.resolve().relative_to(home).as_posix()))
    return links
