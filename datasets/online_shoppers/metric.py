"""Area under the ROC curve and accuracy of predicted probabilities, and the submission file."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from buzzer.datasets.files import csv_blocks, new_file
from buzzer.errors import DataError

Array = npt.NDArray[Any]


def roc_auc(truth: Array, chance: Array) -> float:
    """The share of pairs (bought, not bought) that the predictions order correctly; ties count half. NaN if one class is empty.

    truth: 0 or 1, [rows]. chance: predicted probability, [rows]. Computed from mean ranks (Mann and Whitney, 1947).
    """
    _, at, counts = np.unique(chance, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[at]
    positive = truth == 1
    n = int(positive.sum())
    if n in (0, len(truth)):
        return float("nan")
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * (len(truth) - n)))


def scores(truth: Array, chance: Array) -> dict[str, float]:
    """AUC, and the accuracy of `chance > 0.5`."""
    return {"AUC": roc_auc(truth, chance), "accuracy": float(((chance > 0.5) == (truth == 1)).mean())}


def score(submission: Path, truth: Path) -> dict[str, float]:
    """The scores of a submission `row,chance` against a truth `row,bought`.

    AUC is NaN if the truth has only one class. Raises DataError unless both files have the same rows, each once.
    """
    return scores(*aligned(submission, truth, "bought"))


def aligned(submission: Path, truth: Path, label: str, chance: str = "float64") -> tuple[Array, Array]:
    """The labels of a truth `row,<label>` and the predictions of a submission `row,chance`, [rows].

    chance: the kind of the predictions. Raises DataError unless both files have the same rows, each once.
    """
    answers, expected = (
        pl.concat([block for _, block in csv_blocks(path, kinds)])
        for path, kinds in (
            (submission, {"row": "int64", "chance": chance}),
            (truth, {"row": "int64", label: "bit"}),
        )
    )
    joined = expected.join(answers, on="row")
    if not answers.height == expected.height == joined.height == answers["row"].n_unique():
        raise DataError(f"{submission}: it must have each row of {truth.name} exactly once")
    return joined[label].to_numpy(), joined["chance"].to_numpy()


def write_submission(path: Path, columns: dict[str, Array]) -> None:
    """Write a submission `row,chance`, or a truth `row,<label>`."""
    with new_file(path) as partial:
        pl.DataFrame(columns).write_csv(partial)
