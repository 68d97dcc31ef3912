"""Published figures as tables, and a run's share of the published job."""

from collections.abc import Iterable

from buzzer.suite.analysis import published_job
from buzzer.suite.analysis.published_job import LEAST_ROWS, LEAST_WORK, PublishedFigure, Share
from buzzer.suite.escape import Markdown
from buzzer.suite.records.schema import Record
from buzzer.suite.report.format import percent
from buzzer.suite.report.table import Table, table

TIMES = "Their times are without scoring, which was the organisers' work."
CONDITIONS = (
    "Published by others, not measured by buzzer; other data, other machines: an orientation, not a ranking."
)
SAME_JOB = (
    "A run stands beside a published time only if it is the same job: at least"
    f" {percent(LEAST_ROWS, 0)} of the rows and {percent(LEAST_WORK, 0)} of the"
    " trees and networks for each row and of the training rows in the lookup tables."
)
WORK = "work against the winners'"  # name of a column


def share_of(r: Record) -> Share | None:
    """The share that a run has of the published job of its task; None if none is published, or for a run without rows."""
    job = published_job.job_of(r.task)
    return None if job is None or not r.rows else published_job.share(job.work, r.rows, r.work)


def is_same_job(r: Record) -> bool:
    """Whether a run is the published job of its task."""
    share = share_of(r)
    return share is not None and share.is_same_job


def work_text(r: Record) -> str:
    """The work of a run's models for one row as a share of the published job's; empty where `share_of` is None."""
    share = share_of(r)
    return "" if share is None else share.work


def work_note(r: Record) -> str:
    """The work of a run's models for one row, in words; empty if the record has none."""
    if (work := r.work) is None:
        return ""
    summed = "" if work.summed_rows is None else f", sums of {work.summed_rows:,} training rows"
    return (
        f"work for one row: {work.trees:,.0f} trees with {work.tree_nodes:,.0f} nodes,"
        f" networks of {work.network_flops / 1e6:,.3g} MFLOP; lookup tables of {work.table_rows:,} rows{summed}"
    )


def leaderboard(reported: Iterable[PublishedFigure]) -> Table:
    """Published figures of all tasks. They come from a file of this project, so their texts may contain Markdown."""
    lines = [
        [Markdown(text) for text in (a.task, a.who, a.score, a.time, a.conditions, a.source)]
        for a in reported
    ]
    header = ("task", "who", "score", "time", "conditions", "source")
    return table("Published", header, lines, caption=f"{CONDITIONS} {TIMES} {SAME_JOB}")
