"""The report as one static HTML page that can be opened from file:// without a network.

Everything is rendered here, and the rows are in the page a second time as JSON. The page's script filters, sorts, shows one task at
a time, compares two rows, makes a CSV file, and keeps all of this in the address.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from urllib.parse import quote

from buzzer import __version__
from buzzer.suite.analysis import comparison, published_job
from buzzer.suite.analysis.published_job import PublishedFigure
from buzzer.suite.bench import groups as bench_groups
from buzzer.suite.bench.groups import BenchGroup
from buzzer.suite.records import comparable, machine
from buzzer.suite.records.schema import Record
from buzzer.suite.report import (
    bench_table,
    budget_bars,
    compare_text,
    headline,
    leaderboard,
    page_bench,
    page_first,
    page_runs,
    published,
    summary,
    templates,
)
from buzzer.suite.report.budget_bars import Panel
from buzzer.suite.report.charts import Chart
from buzzer.suite.report.headline import Headline
from buzzer.suite.report.page_first import Answer, Dumbbells, HeatMap, Places, Races
from buzzer.suite.report.page_runs import Board, Entry
from buzzer.suite.report.table import Column, Row, Table, table

FILTERS = ("task", "machine", "engine", "backend", "precision", "budget", "outcome")


class Keys:
    """Numbers for sets of filter values, so that an element of the page names them by one number."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[tuple[str, str], ...], int] = {}

    def __call__(self, filters: Mapping[str, str]) -> int:
        """The number of these filter values."""
        return self._numbers.setdefault(tuple(filters.items()), len(self._numbers))

    @property
    def values(self) -> list[dict[str, str]]:
        """The filter values by number."""
        return [dict(items) for items in self._numbers]


@dataclass(frozen=True)
class MachineNoise:
    """A machine, and how much single A/A runs differ on it."""

    machine: str
    noise: str


def machines(records: Sequence[Record]) -> list[MachineNoise]:
    """Each machine with its noise: for each way in which its runs were limited and timed, if there are several with A/A pairs."""
    of_machine: dict[str, dict[comparable.Key, Record]] = {}
    for r in records:
        alike = of_machine.setdefault(machine.describe(r.machine), {})
        if r.outcome == "ok":
            alike[comparable.noise(r)] = r
    lines = []
    for facts, alike in sorted(of_machine.items()):
        levels = [
            level for r in alike.values() if (level := comparison.noise(records, r, 1, of_machine=True))
        ]
        texts = [f"single A/A runs differ by up to {x.per_cent:.1f} % ({x.pairs} pairs)" for x in levels]
        lines.append(MachineNoise(facts, "; ".join(texts) or "no A/A pairs on record"))
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

    runs: int  # of tasks
    sessions: int  # runs of `buzzer bench`
    failed: int
    unsupported: int
    tasks: int
    machines: int


@dataclass(frozen=True)
class Content:
    """Everything that the template shows."""

    version: str
    answer: Answer
    panels: list[Panel]
    places: Places
    races: Races
    heat_map: HeatMap
    dumbbells: Dumbbells
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
    phase_class: dict[str, int]  # number of the colour and of the letter of each phase
    newest: datetime | None
    counts: Counts


def content(records: Sequence[Record], links: Mapping[str, str]) -> Content:
    """Everything that the template shows. links: the record file of a run_id, relative to the page."""
    board_list = page_runs.boards(records, links)
    ran = [r for r in records if r.job != "fit" and not r.published]
    names = list(dict.fromkeys(n for board in board_list for n in board.phase_names))
    found = summary.summaries(records)
    return Content(
        version=__version__,
        answer=page_first.answer(found, records),
        panels=budget_bars.panels(records),
        places=page_first.Places(found),
        races=page_first.races(found, records),
        heat_map=page_first.heat_map(found),
        dumbbells=page_first.dumbbells(records),
        tasks=sections(board_list, published_job.figures_beside({r.task for r in records})),
        filters=filter_values(records, board_list),
        headlines=headline.headlines(records),
        speed_ups=page_runs.speed_up_charts(records),
        truths=truth_tables(records),
        frontiers=page_bench.frontiers(records),
        rooflines=page_bench.rooflines(records),
        benches=[page_bench.Board(group, links) for group in bench_groups.boards(records).values()],
        machines=machines(records),
        rules=leaderboard.RULES,
        published_times=published.TIMES,
        phase_class={name: i for i, name in enumerate(names)},
        newest=max((r.created for r in records), default=None),
        counts=Counts(
            runs=sum(r.job == "predict" for r in ran),
            sessions=sum(r.job == "bench" for r in ran),
            failed=sum(r.outcome not in ("ok", "unsupported") for r in ran),
            unsupported=sum(r.outcome == "unsupported" for r in ran),
            tasks=len({board.first.task for board in board_list}),
            machines=len({machine.describe(r.machine) for r in records}),
        ),
    )


DATA = (
    "f", "run", "job", "board", "data", "scale", "rows", "device", "cores", "rank", "rounds", "metric", "score", "wall_s", "cpu_s",
    "peak_bytes", "limit_s", "times_plain", "noise", "phases", "run_s", "rows_per_s",
)  # fmt: skip


def data(shown: Content, keys: Keys) -> dict[str, object]:
    """The rows of all boards for the page's script, which makes the CSV and the comparison of two rows from them.

    Rows are lists in the order of `columns`. Phases are seconds in the order of `phases`.
    """
    names = list(shown.phase_class)
    rows = [
        _run_row(board, entry, keys, names)
        for section in shown.tasks
        for board in section.boards
        for entry in board.entries
    ]
    rows += [_session_row(row, i, keys) for bench in shown.benches for i, row in enumerate(bench.rows, 1)]
    lines = [[row.get(name) for name in DATA] for row in rows]
    return {"columns": DATA, "phases": names, "rows": lines}


def _run_row(board: Board, entry: Entry, keys: Keys, names: Sequence[str]) -> dict[str, object]:
    r, row, seconds = entry.first, entry.row, dict(entry.phases)
    return {
        "f": keys(entry.filters),
        "run": r.run_id,
        "job": "predict",
        "board": board.id,
        "data": r.data_source,
        "scale": r.scale,
        "rows": r.rows,
        "device": r.device,
        "cores": r.budget.cores,
        "rank": entry.rank,
        "rounds": len(row.records),
        "metric": r.metric,
        "score": entry.score,
        "wall_s": _figure(row.wall_s) if row.started else None,
        "cpu_s": _figure(row.cpu_s),
        "peak_bytes": row.peak,
        "limit_s": r.budget.time_s,
        "times_plain": 1.0 if entry.is_plain else _figure(entry.gain.ratio.value) if entry.gain else None,
        "noise": None if entry.gain is None else entry.gain.is_noise,
        "phases": [_figure(seconds.get(name)) for name in names],
    }


def _session_row(row: BenchGroup, rank: int, keys: Keys) -> dict[str, object]:
    r, warm = row.first, row.samples("warm_run")
    return {
        "f": keys(bench_table.filters(row)),
        "run": r.run_id,
        "job": "bench",
        "board": bench_table.title(r),
        "device": r.device,
        "cores": r.budget.cores,
        "rank": str(rank) if row.ranked else "",
        "rounds": len(row.records),
        "metric": r.metric,
        "score": bench_table.least_cosine(row),
        "phases": [],
        "run_s": _figure(median(warm)) if warm else None,
        "rows_per_s": _figure(row.rows_s),
    }


def _figure(value: float | None) -> float | None:
    """A figure with six significant digits."""
    return None if value is None else float(f"{value:.6g}")


def truth_tables(records: Sequence[Record]) -> list[Table]:
    """For each task and machine with runs at the official size and at two smaller ones: projections, and the measured times."""
    tables = []
    for name in sorted({r.task for r in records}):
        for group in comparison.groups(records, name):
            if truths := comparison.truths(group):
                tables.append(compare_text.truth_table(truths, f"{compare_text.title_of(group)}. "))
    return tables


def filter_values(records: Sequence[Record], board_list: Sequence[Board]) -> dict[str, list[str]]:
    """The values of each filter that has more than one."""
    shown = [entry.filters for board in board_list for entry in board.entries]
    for group in bench_groups.boards(records).values():
        shown += [bench_table.filters(row) for row in bench_groups.rows(group)]
    values = {name: sorted({filters[name] for filters in shown}) for name in FILTERS}
    return {name: found for name, found in values.items() if len(found) > 1}


def html(records: Sequence[Record], links: Mapping[str, str]) -> str:
    """The page. links: the record file of a run_id, relative to the page."""
    template = templates.environment().get_template("page.html.j2")
    style, script = templates.text("style.css"), templates.text("page.js")
    shown, keys = content(records, links), Keys()
    rows = data(shown, keys)
    text = template.render(vars(shown), key=keys, data=rows, style=style, script=script)
    return re.sub(r"\n\s+", "\n", text) + "\n"  # without indentation the page is a tenth smaller


def links_of(files: Mapping[str, Path], page: Path) -> dict[str, str]:
    """run_id -> link to its record file, if the file is in or below the page's folder. Links are relative and have no scheme."""
    home, links = page.resolve().parent, {}
    for run_id, path in files.items():
        if path.resolve().is_relative_to(home):
            links[run_id] = quote(os.fsencode(path.resolve().relative_to(home).as_posix()))
    return links
