"""Wall times as bars against a time limit, the buzzer: a published job above, our runs below, and runs that a budget ended.

A run that is not the same job as the published one is hatched, and its name says how it differs.
"""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from buzzer.suite import registry
from buzzer.suite.analysis import comparison, published_job
from buzzer.suite.analysis.published_job import LEAST_ROWS, LEAST_WORK, PublishedJob, Share
from buzzer.suite.records.repetitions import RunGroup, boards, rows
from buzzer.suite.records.schema import Record
from buzzer.suite.report import published, summary, templates
from buzzer.suite.report.format import clock_text, seconds_text
from buzzer.suite.words import counted

MOST_BARS = 6  # bars of one panel for a group

# Seconds between two ticks.
STEPS = (
    0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 6 * 3600, 12 * 3600, 86400, 2 * 86400, 7 * 86400,
)  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """A wall time. `kind` is a CSS class: published, cpu, cuda, failed."""

    name: str
    seconds: float
    kind: str
    text: str  # beside the bar
    note: str = ""
    apart: bool = False  # whether it is another job than the published one; such a bar is hatched


@dataclass(frozen=True)
class Panel:
    """Bars on one axis from 0, in groups, with the time limit as a line."""

    title: str
    limit_s: float | None
    groups: list[tuple[str, list[Bar]]]  # name of a group -> its bars

    @property
    def bars(self) -> list[Bar]:
        """All bars."""
        return [bar for _, bars in self.groups for bar in bars]

    @property
    def end_s(self) -> float:
        """The end of the axis, behind all bars and the limit."""
        return 1.08 * max([self.limit_s or 0.0, *(bar.seconds for bar in self.bars)])

    def at(self, seconds: float) -> float:
        """Share of the axis in per cent."""
        return round(100 * seconds / self.end_s, 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Round times inside the axis: per cent and text."""
        step = next((step for step in STEPS if self.end_s / step <= 4.5), STEPS[-1])
        return [(self.at(i * step), _tick(i * step)) for i in range(int(self.end_s / step) + 1)]


def _tick(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:g} s" if seconds else "0"
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min"


def panels(records: Iterable[Record]) -> list[Panel]:
    """The published jobs with our runs of them, and the largest job that some runs finished within a budget and others did not."""
    records = list(records)
    jobs: dict[int, PublishedJob] = {}
    for task in sorted({r.task for r in records}):
        job = published_job.job_of(task)
        if job is not None and job.timed:
            jobs[id(job.work)] = job
    ended = buzzed(records)
    return [*(published_panel(job, records) for job in jobs.values()), *([ended] if ended else [])]


def published_panel(job: PublishedJob, records: Sequence[Record]) -> Panel:
    """A published job: its published times, and our runs on its data set at its true size, or else the largest."""
    published = [
        Bar(f.where or f.who, f.time_s or 0.0, "published", clock_text(f.time_s or 0.0)) for f in job.timed
    ]
    mine = [row for group in boards(records).values() for row in rows(group) if _is_run_of(row, job)]
    limit = min((f.budget_s for f in job.figures if f.budget_s), default=None)
    who = job.timed[0].who.partition(" (")[0]
    title = f"{job.figures[0].task}: {job.work.rows / 1e6:g} million rows"
    title += f", at most {_tick(limit)} on one core" if limit else ""
    return Panel(title, limit, [(f"published by {who}", published), ("measured by buzzer", ours(job, mine))])


def _is_run_of(row: RunGroup, job: PublishedJob) -> bool:
    """Whether a group of runs is of a job and reached its end, or the end of its budget."""
    mine = published_job.job_of(row.first.task)
    return mine == job and bool(row.first.rows) and row.worst.outcome in ("ok", "timeout")


def ours(job: PublishedJob, runs: Sequence[RunGroup]) -> list[Bar]:
    """The fastest run of each task, device and number of cores at the true size; the largest runs if there are none of that size.

    Runs of the same job come before faster runs of a smaller one.
    """
    if not runs:
        return []
    size = min(max(row.first.rows for row in runs), LEAST_ROWS * job.work.rows)
    fastest: dict[tuple[str, str, int], RunGroup] = {}
    for row in sorted(runs, key=lambda row: (row.failed, not published.is_same_job(row.first), row.wall_s)):
        r = row.first
        if r.rows >= size:
            fastest.setdefault((r.task, r.device, comparison.cores(r)), row)
    return [_own_bar(row) for row in list(fastest.values())[:MOST_BARS]]


def _own_bar(row: RunGroup) -> Bar:
    r = row.first
    share = published.share_of(r)
    apart = not published.is_same_job(r)
    place = "GPU" if r.device == "cuda" else summary.cores_text(r)
    notes = [f"not the same job: {lacks(share, r)}"] if share and apart else []
    if r.random_weights:
        notes.append(summary.RANDOM_WEIGHTS)
    if r.outcome == "ok" and not row.ranked:
        notes.append("not ranked: no reference run of this size")
    notes.append(f"{r.machine.cpu}, {counted(len(row.records), 'round')}")
    return _bar(f"{place}, {r.task}", row, "; ".join(notes), apart)


def lacks(share: Share, r: Record) -> str:
    """What a run lacks to be the published job, in words."""
    if share.trees is None or share.networks is None:
        return f"rows {published_job.fraction(share.rows)}, its work for a row is not recorded"
    shares = {"rows": share.rows, "trees": share.trees, "networks": share.networks, "tables": share.tables}
    least = {"rows": LEAST_ROWS}
    words = [
        f"{name} {published_job.fraction(value)}"
        for name, value in shares.items()
        if value is not None and value < least.get(name, LEAST_WORK)
    ]
    if share.tables is None:
        part = "an unknown part" if r.train_scale is None else f"{100 * r.train_scale:.2g} %"
        words.append(f"lookup tables of {part} of the training rows")
    return ", ".join(words)


def _bar(name: str, row: RunGroup, note: str = "", apart: bool = False) -> Bar:
    if row.failed:
        return Bar(name, row.wall_s, "failed", f"✕ {row.worst.outcome}", note, apart)
    text = clock_text(round(row.wall_s)) if row.wall_s >= 60 else seconds_text(row.wall_s)
    return Bar(name, row.wall_s, row.first.device, text, note, apart)


def buzzed(records: Iterable[Record]) -> Panel | None:
    """The largest job that some runs finished within a budget while others ran into its time limit; None if there is no such job."""
    races: list[list[RunGroup]] = []
    for group in boards(records).values():
        for name in {r.budget.name for r in group}:
            runs = [row for row in rows(group) if row.first.budget.name == name and _reached(row)]
            if {row.worst.outcome for row in runs} == {"ok", "timeout"}:
                races.append(runs)
    if not races:
        return None
    runs = max(races, key=lambda runs: (_size(runs), max(r.created for row in runs for r in row.records)))
    r = max((row.first for row in runs), key=lambda r: r.rows)
    bars = [_bar(_system(row), row) for row in sorted(runs, key=lambda row: (not row.failed, -row.wall_s))]
    limit = r.budget.time_s or 0.0
    cores = summary.cores_text(r)
    rounds = counted(max(len(row.records) for row in runs), "round")
    title = f"{r.task}: {_size(runs):,} rows, at most {_tick(limit)} on {cores}"
    measured = f"measured by buzzer on {r.machine.cpu}, {rounds}"
    return Panel(title, r.budget.time_s, [(measured, bars[:MOST_BARS])])


def _reached(row: RunGroup) -> bool:
    """Whether runs ended ok and are ranked, or ran into the time limit."""
    return row.ranked or row.worst.outcome == "timeout"


def _size(runs: Iterable[RunGroup]) -> int:
    return max(row.first.rows for row in runs)


def _system(row: RunGroup) -> str:
    engine, backend = row.first.engine, row.first.backend
    names = [] if engine == registry.NO_ENGINE else [summary.name_of(row.first.engine_name)]
    return ", ".join([*names, summary.name_of(backend)])


# ---- as an image -------------------------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT = 820, 250, 30
CHARACTERS = 88  # of a line of a note
TITLE, GROUP, LINE, SMALL, AXIS = 40, 24, 26, 15, 34  # heights in pixels
LIGHT = {
    "paper": "#ffffff", "ink": "#1a2230", "soft": "#58647a", "grid": "#e3e7ee", "published": "#7a6a9c", "cpu": "#2f6fde",
    "cuda": "#147c44", "failed": "#c62f26", "buzzer": "#d6342c",
}  # fmt: skip
DARK = {
    "paper": "#0d1117", "ink": "#e7ebf2", "soft": "#9aa7bb", "grid": "#2b3443", "published": "#b6a3dd", "cpu": "#6ea3ff",
    "cuda": "#45c781", "failed": "#ff7b70", "buzzer": "#ff5a4f",
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A line of the image: a bar, or the name of a group, with its position."""

    top: float
    text: str
    bar: Bar | None = None

    @property
    def notes(self) -> list[str]:
        """The note of its bar in lines that fit into the image."""
        return textwrap.wrap(self.bar.note, CHARACTERS) if self.bar else []


@dataclass(frozen=True)
class Frame:
    """A panel with the positions of its parts."""

    panel: Panel
    top: float
    lines: list[Line]
    bottom: float  # where the axis is

    def x(self, seconds: float) -> float:
        """Pixels from the left for a time."""
        return round(LEFT + self.panel.at(seconds) / 100 * (WIDTH - LEFT - RIGHT), 1)


def frames(shown: Iterable[Panel]) -> list[Frame]:
    """The panels one below the other."""
    top, result = 0.0, []
    for panel in shown:
        at, lines = top + TITLE, []
        for name, bars in panel.groups:
            lines.append(Line(at, name))
            at += GROUP
            for bar in bars:
                lines.append(Line(at, bar.name, bar))
                at += LINE + SMALL * len(lines[-1].notes)
        result.append(Frame(panel, top, lines, at + 4))
        top = at + AXIS
    return result


def svg(shown: Sequence[Panel], colours: dict[str, str]) -> str:
    """The panels as an SVG image in the colours of a theme."""
    placed = frames(shown)
    template = templates.environment().get_template("budget.svg.j2")
    geometry = {"width": WIDTH, "left": LEFT, "right": RIGHT, "height": placed[-1].bottom + AXIS}
    label = "; ".join(f"{panel.title}: {_words(panel)}" for panel in shown)
    return template.render(frames=placed, colour=colours, label=label, **geometry) + "\n"


def _words(panel: Panel) -> str:
    return ", ".join(f"{bar.name} {bar.text}" + (f" ({bar.note})" if bar.note else "") for bar in panel.bars)
