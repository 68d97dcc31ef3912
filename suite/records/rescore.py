"""Scores the submissions of runs again, in another process, and compares the scores with the records.

The score in a record is computed by the run itself. Here the data set's official metric is applied to the submission file and the
true labels, as the organisers of a competition do.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from buzzer.errors import BuzzerError, UsageError
from buzzer.models.api.context import Data
from buzzer.suite import registry
from buzzer.suite.records import layout
from buzzer.suite.records.schema import Record
from buzzer.suite.registry import TaskConfig

TOLERANCE = 1e-9  # maximum difference of the same score computed twice


@dataclass(frozen=True)
class Rescored:
    """The outcome of scoring the submission of one record again."""

    path: Path
    problem: str  # how the record's scores differ from those of its submission; empty if they agree
    skipped: str = ""  # why it was not scored; empty if it was


def rescore(
    task: TaskConfig, records: Mapping[Path, Record], data_of: Callable[[Record], Data]
) -> Iterator[Rescored]:
    """Score every `ok` timed run of the task among the records again. Raises UsageError if the data of the task have no true labels.

    records: each by its file. data_of: returns the data of a run; only called if the run's submission was kept.
    """
    if not task.submission or not task.truth:
        raise UsageError(
            f"the runs of {task.name} generate their own labels: there are none to score against"
        )
    for path, r in records.items():
        if (r.task, r.job, r.outcome) != (task.name, "predict", "ok"):
            continue
        submission = layout.files(layout.root(path, r), r.run_id) / task.submission
        if submission.is_file():
            yield rescored(task, path, r, submission, data_of(r))
        else:
            yield Rescored(path, "", "its submission was not kept")


def rescored(task: TaskConfig, path: Path, r: Record, submission: Path, data: Data) -> Rescored:
    """The outcome of scoring one submission again, against the true labels in `data`."""
    truths = task.truths(data.folder)
    if not truths:
        return Rescored(path, "", f"{data.folder} has no true labels, {task.truth}")
    if r.data_fingerprint != data.fingerprint:
        ran = f"{r.data_source}, scale {r.scale:g}, seed {r.seed}"
        return Rescored(path, "", f"it ran on other data: {ran}; name the folder of its files with --data")
    return Rescored(path, disagreement(r, task, submission, truths[-1]))  # of several phases the last


def disagreement(r: Record, task: TaskConfig, submission: Path, truth: Path) -> str:
    """How a record's scores differ from those of its submission, or an empty string."""
    try:
        scores = registry.dataset(task.dataset).score(submission, truth)
    except BuzzerError as error:
        return f"its submission is not valid: {error.message}"
    differences = [
        f"{name} is {r.scores.get(name, math.nan):.9g}, its submission has {value:.9g}"
        for name, value in scores.items()
        if not abs(r.scores.get(name, math.nan) - value) <= TOLERANCE
    ]
    return "; ".join(differences)
