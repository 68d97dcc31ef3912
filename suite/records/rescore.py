"""Scores the submissions that runs have kept again, in another process than theirs: a run's own score is what the run says.

As in the competitions, the organisers' side scores: the data set's official metric over the file that was handed in and the truth.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from buzzer.errors import BuzzerError, UsageError
from buzzer.models.api.context import Data
from buzzer.suite import registry
from buzzer.suite.records import record
from buzzer.suite.records.record import Record
from buzzer.suite.registry import TaskConfig

SAME = 1e-9  # by which the same score computed twice may differ


@dataclass(frozen=True)
class Rescored:
    """A record whose submission was scored again, or why it was not."""

    path: Path
    problem: str  # what its scores and its submission's do not agree in
    skipped: str = ""  # why it was not scored


def rescore(task: TaskConfig, sources: Iterable[Path], data: Data) -> Iterator[Rescored]:
    """Every `ok` timed run of the task among the records. Raises UsageError where the task's truth is in no file."""
    if not task.submission or not task.truth:
        raise UsageError(f"the runs of {task.name} make their own truth: there is none to hold them against")
    truths = sorted(data.folder.glob(task.truth))  # of several, readers take the last phase
    for path in record.paths(sources):
        r = record.read(path)
        if (r.task, r.job, r.outcome) != (task.name, "predict", "ok"):
            continue
        submission = path.parent / "files" / r.run_id[:8] / task.submission
        if not truths:
            yield Rescored(path, "", f"{data.folder} has no truth, {task.truth}")
        elif r.data_fingerprint != data.fingerprint:
            yield Rescored(
                path, "", f"it ran on other data: {r.data_source}, scale {r.scale:g}, seed {r.seed}"
            )
        elif not submission.is_file():
            yield Rescored(path, "", "its submission was not kept")
        else:
            yield Rescored(path, disagreement(r, task, submission, truths[-1]))


def disagreement(r: Record, task: TaskConfig, submission: Path, truth: Path) -> str:
    """What a record's scores are off those of its submission, or ""."""
    try:
        made = registry.dataset(task.dataset).score(submission, truth)
    except BuzzerError as error:
        return f"its submission is none: {error.message}"
    off = [
        f"{name} is {r.scores.get(name, math.nan):.9g}, its submission has {value:.9g}"
        for name, value in made.items()
        if not abs(r.scores.get(name, math.nan) - value) <= SAME
    ]
    return "; ".join(off)
