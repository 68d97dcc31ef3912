"""Published figures (configs/anchors.yaml), which others measured under other conditions, and whether a run may stand beside them.

A published time is comparable with a run only if the run does the same job: as many rows, and as much work for each row.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from pydantic import TypeAdapter

from buzzer.configs import load_yaml
from buzzer.suite import registry

LEAST_ROWS, LEAST_WORK = 0.95, 0.9  # least shares of the published job with which a run is the same job
OTHER = "other"  # name of the stage of phases that no published stage covers


class RowWork(Protocol):
    """The work of a run's models for one row: `models.api.context.Work`, or the same in a record."""

    @property
    def tree_nodes(self) -> float: ...
    @property
    def network_flops(self) -> float: ...
    @property
    def summed_rows(self) -> int | None: ...


@dataclass(frozen=True)
class PublishedWork:
    """The size of a published job. A range is the least and the most that the sources allow."""

    rows: int  # rows that it predicts
    trees: tuple[float, float]  # trees that a row meets
    tree_nodes: tuple[float, float]  # inner nodes that a row visits in them
    network_flops: float  # of one row; a multiply-add counts as two
    summed_rows: int  # training rows that the lookup tables sum up
    source: str
    phases: Mapping[str, str] = field(
        default_factory=dict
    )  # phase of a run -> stage of `PublishedFigure.stages`


@dataclass(frozen=True)
class PublishedFigure:
    """A published figure for a task."""

    task: str
    who: str
    conditions: str
    source: str
    score: str = ""
    where: str = ""  # the machine, in a few words, of a published time
    time: str = ""
    time_s: float | None = None  # the published time in seconds
    budget_s: float | None = None  # time limit of the competition in seconds
    stages: Mapping[str, float] = field(default_factory=dict)  # stage -> seconds, where they were published
    stages_s: float | None = None  # the sum of the stages as it was published
    work: PublishedWork | None = None  # size of the job, with the first figure of a task that has one


@cache
def figures() -> tuple[PublishedFigure, ...]:
    """All published figures."""
    return tuple(TypeAdapter(list[PublishedFigure]).validate_python(load_yaml("anchors.yaml")))


def figures_beside(tasks: Iterable[str]) -> list[PublishedFigure]:
    """The published figures of tasks that share a data set with one of `tasks`. A task without a data set shares none."""
    every = registry.tasks()
    used = {every[name].dataset for name in tasks if name in every} - {""}
    return [figure for figure in figures() if every[figure.task].dataset in used]


@dataclass(frozen=True)
class PublishedJob:
    """A job whose size and times are published."""

    work: PublishedWork
    figures: tuple[PublishedFigure, ...]

    @property
    def timed(self) -> list[PublishedFigure]:
        """The figures of a whole job with its time."""
        return [figure for figure in self.figures if figure.time_s is not None and not figure.stages]

    @property
    def staged(self) -> list[PublishedFigure]:
        """The figures with the times of stages."""
        return [figure for figure in self.figures if figure.stages]


def job_of(task: str) -> PublishedJob | None:
    """The published job on the data set of a task; None if none is published, or for an unknown task.

    Tasks on one data set may differ in the size of their models. That is why their work is compared, not their name.
    """
    config = registry.tasks().get(task)
    if config is None or not config.dataset:
        return None
    same = {name for name, other in registry.tasks().items() if other.dataset == config.dataset}
    chosen = tuple(figure for figure in figures() if figure.task in same)
    work = next((figure.work for figure in chosen if figure.work is not None), None)
    return None if work is None else PublishedJob(work, chosen)


@dataclass(frozen=True)
class Share:
    """The share that a run has of a published job: of its rows, and of its work for one row. None = not recorded."""

    rows: float
    trees: float | None
    networks: float | None
    tables: float | None

    @property
    def is_same_job(self) -> bool:
        """Whether the run may stand beside the published time. A run whose work is not recorded may not."""
        if self.trees is None or self.networks is None or self.tables is None:
            return False
        return self.rows >= LEAST_ROWS and min(self.trees, self.networks, self.tables) >= LEAST_WORK

    @property
    def work(self) -> str:
        """The work for one row in words: `trees 1/76, networks 1/1,250, tables 1/200`."""
        shares = {"trees": self.trees, "networks": self.networks, "tables": self.tables}
        recorded = [f"{name} {fraction(share)}" for name, share in shares.items() if share is not None]
        return ", ".join(recorded) or "not recorded"

    def __str__(self) -> str:
        work = self.work if self.trees is not None else f"work for a row {self.work}"
        return f"rows {fraction(self.rows)}, {work}"


def share(job: PublishedWork, rows: float, work: RowWork | None) -> Share:
    """The share that a run of `rows` rows with this work for each has of a published job.

    Trees are compared by the inner nodes that a row visits, against the most that the sources allow, networks by FLOPs, and lookup tables
    by the training rows that they sum up.
    """
    if work is None:
        return Share(rows / job.rows, None, None, None)
    return Share(
        rows / job.rows,
        work.tree_nodes / job.tree_nodes[1],
        work.network_flops / job.network_flops,
        None if work.summed_rows is None else work.summed_rows / job.summed_rows,
    )


def fraction(value: float) -> str:
    """A share in words: 1.02, 0.93, 1/2.5, 1/76, 0.

    >>> fraction(0.93), fraction(0.4), fraction(0.0131), fraction(0)
    ('0.93', '1/2.5', '1/76', '0')
    """
    if value >= 0.5 or value <= 0:
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return f"1/{1 / value:.1f}" if value > 0.1 else f"1/{1 / value:,.0f}"


def stage_times(job: PublishedWork, phases: Mapping[str, float], stages: Sequence[str]) -> dict[str, float]:
    """Seconds of a run's phases by published stage, in the order of `stages`; those of no stage are in `OTHER`, the last."""
    spent = dict.fromkeys([*stages, OTHER], 0.0)
    for name, seconds in phases.items():
        spent[job.phases.get(name, OTHER)] += seconds
    return spent
