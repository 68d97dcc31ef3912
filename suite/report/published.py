"""Published figures (configs/anchors.yaml). Others measured them under other conditions."""

from collections.abc import Iterable
from dataclasses import dataclass

from buzzer.configs import load_yaml
from buzzer.suite.escape import Markdown
from buzzer.suite.report.table import Table, table

TIMES = "Their times are without scoring, which was the organisers' work."
CONDITIONS = (
    "Published by others, not measured by buzzer; other data, other machines: an orientation, not a ranking."
)


@dataclass(frozen=True)
class PublishedFigure:
    """A published figure for a task."""

    task: str
    who: str
    conditions: str
    source: str
    score: str = ""
    time: str = ""
    time_s: float | None = None  # the published time in seconds
    budget_s: float | None = None  # time limit of the competition in seconds


def figures() -> list[PublishedFigure]:
    """All published figures."""
    return [PublishedFigure(**fields) for fields in load_yaml("anchors.yaml")]


def leaderboard(reported: Iterable[PublishedFigure]) -> Table:
    """Published figures of all tasks. They come from a file of this project, so their texts may contain Markdown."""
    lines = [
        [Markdown(text) for text in (a.task, a.who, a.score, a.time, a.conditions, a.source)]
        for a in reported
    ]
    header = ("task", "who", "score", "time", "conditions", "source")
    return table("Published", header, lines, caption=f"{CONDITIONS} {TIMES}")
