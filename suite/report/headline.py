"""A published job stage by stage: the times of others, and of the fastest run that is the same job, on one core and on a GPU."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from buzzer.suite.analysis import published_job
from buzzer.suite.analysis.published_job import OTHER, PublishedFigure, PublishedJob
from buzzer.suite.records import machine
from buzzer.suite.records.repetitions import RunGroup, boards, rows
from buzzer.suite.records.schema import Record
from buzzer.suite.report import charts, published, summary
from buzzer.suite.report.charts import Axis, Chart, Key, Mark, Path
from buzzer.suite.report.format import clock_text, grouped, seconds_text
from buzzer.suite.report.table import Table, table
from buzzer.suite.words import counted

WHOLE = "whole job"
ROOM = 2.0  # the axis ends at least at this multiple of the longest time, so that its label fits
FILL = 0.8  # share of a stage's height that its bars fill
MISSING = (
    "Not yet: a run of buzzer that is the same job. The chart gets its bars from the record of such a run."
)


@dataclass(frozen=True)
class Series:
    """Seconds by stage; a stage that is not known is missing."""

    name: str  # whose job, and where it ran
    kind: str  # CSS class: published, cpu, cuda
    seconds: dict[str, float]
    measured: str = ""  # how it was measured; empty for a published job


@dataclass(frozen=True)
class Headline:
    """The times of one published job."""

    title: str
    series: list[Series]
    limit_s: float | None  # time limit of the competition

    @property
    def stages(self) -> list[str]:
        """The stages, and then the whole job."""
        names = dict.fromkeys(
            stage for s in self.series for stage in s.seconds if stage not in (OTHER, WHOLE)
        )
        other = [OTHER] if any(OTHER in s.seconds for s in self.series) else []
        return [*names, *other, WHOLE]

    @property
    def note(self) -> str:
        """Where the times come from, and whether a run of ours is among them."""
        ours = [s for s in self.series if s.kind != "published"]
        measured = [f"{s.name}: {s.measured}." for s in ours]
        return " ".join([published.SAME_JOB, published.TIMES if ours else MISSING, *measured])

    def table(self) -> Table:
        """Seconds by stage."""
        lines = [(stage, *(grouped(s.seconds.get(stage), 0) for s in self.series)) for stage in self.stages]
        return table(self.title, ("seconds", *(s.name for s in self.series)), lines, [self.note])

    def chart(self) -> Chart:
        """A group of bars for each stage, on a logarithmic axis, with the time limit as a line."""
        times = [wall for s in self.series for wall in s.seconds.values()] + [self.limit_s or 0.0]
        x = charts.time_axis([*times, ROOM * max(times)], "wall time (log)")
        y = stage_axis(self.stages)
        marks, paths = list[Mark](), list[Path]()
        for number, s in enumerate(self.series, 1):
            for stage, wall in s.seconds.items():
                at = y.at(place(self.stages.index(stage), number, len(self.stages), len(self.series)))
                right, text = x.at(wall), seconds_text(wall)
                paths.append(charts.path([(0.0, at), (right, at)], f"bar {s.kind}", series=s.name))
                words = f"{s.name}, {stage}: {text}"
                marks.append(Mark(right, at, number, s.kind, words, series=s.name, label=text))
        if self.limit_s:
            paths.append(charts.path([(x.at(self.limit_s), 0.0), (x.at(self.limit_s), 100.0)], "limit"))
        legend = [Key(number, s.kind, s.name) for number, s in enumerate(self.series, 1)]
        limit = f" The line is the time limit, {clock_text(self.limit_s)}." if self.limit_s else ""
        summary = f"Published stages, and ours in the same stages.{limit} {self.note}"
        return Chart(self.title, summary, x, y, marks, paths, legend)


def stage_axis(stages: Sequence[str]) -> Axis:
    """An axis with the first stage at the top."""
    ticks = tuple((len(stages) - i - 0.5, stage) for i, stage in enumerate(stages))
    return Axis(0.0, float(len(stages)), ticks, "", log=False)


def place(stage: int, number: int, stages: int, series: int) -> float:
    """The height of a bar on `stage_axis`. stage: from 0; number: of the series, from 1."""
    return stages - stage - 0.5 + FILL * (0.5 - (number - 0.5) / series)


def headlines(records: Iterable[Record]) -> list[Headline]:
    """A headline for each job whose stages are published and that is the job of a task among the records."""
    records, found = list(records), dict[str, Headline]()
    for task in sorted({r.task for r in records}):
        job = published_job.job_of(task)
        if job is not None and job.staged:
            title = f"The published job of {job.figures[0].task}, stage by stage"
            found.setdefault(title, headline(job, title, [r for r in records if is_of(r, job)]))
    return list(found.values())


def is_of(r: Record, job: PublishedJob) -> bool:
    """Whether a record is a timed run on the data set of a published job."""
    return r.job == "predict" and published_job.job_of(r.task) == job


def headline(job: PublishedJob, title: str, records: Sequence[Record]) -> Headline:
    """The times of a job. `records` are runs on its data set, of any size."""
    staged = [Series(name_of(f), "published", whole(f)) for f in job.staged]
    known = {s.name for s in staged}
    others = [f for f in job.timed if name_of(f) not in known]
    timed = [Series(name_of(f), "published", {WHOLE: f.time_s or 0.0}) for f in others]
    limits = [figure.budget_s for figure in job.figures if figure.budget_s]
    return Headline(title, [*staged, *timed, *ours(job, records)], min(limits, default=None))


def name_of(figure: PublishedFigure) -> str:
    """Who reported a time, and on which machine: `NVIDIA, 8 CPU cores`."""
    return f"{figure.who.partition(' (')[0]}, {figure.where}"


def whole(figure: PublishedFigure) -> dict[str, float]:
    """The published stages and their published sum, which may differ from the sum of rounded stages."""
    return {**figure.stages, WHOLE: figure.stages_s or sum(figure.stages.values())}


def ours(job: PublishedJob, records: Sequence[Record]) -> list[Series]:
    """The fastest run on one core and the fastest on a GPU among those that are the same job; ranked runs before runs of a size at which
    the reference was not run."""
    same = [
        row
        for group in boards(records).values()
        for row in rows(group)
        if _counts(row) and published.is_same_job(row.first)
    ]
    one_core = [row for row in same if row.first.device == "cpu" and row.first.budget.cores == 1]
    on_gpu = [row for row in same if row.first.device == "cuda"]
    fastest = [
        min(group, key=lambda row: (not row.ranked, row.wall_s)) for group in (one_core, on_gpu) if group
    ]
    return [series_of(job, row) for row in fastest]


def _counts(row: RunGroup) -> bool:
    return row.ranked or all(r.outcome == "ok" and r.gate.status == "no-reference" for r in row.records)


def series_of(job: PublishedJob, row: RunGroup) -> Series:
    """The times of a run by the published stages. Phases of no stage are a stage of their own."""
    r = row.first
    phases = {p.name: row.phase_s(p.name) or 0.0 for p in r.compared}
    stages = list(job.staged[0].stages)
    spent = published_job.stage_times(job.work, phases, stages)
    where = "1 core" if r.device == "cpu" else "GPU"
    measured = [machine.describe(r.machine), counted(len(row.records), "round")]
    measured += [summary.RANDOM_WEIGHTS] if r.random_weights else []
    measured += [] if row.ranked else ["not ranked: no reference run"]
    return Series(f"buzzer, {where}", r.device, spent | {WHOLE: row.wall_s}, ", ".join(measured))
