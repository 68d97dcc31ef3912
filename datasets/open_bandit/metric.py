"""The metrics of RecSys 2021 on one engagement, the click, and the submission file."""

from pathlib import Path

from buzzer.datasets.online_shoppers.metric import Array, aligned, write_submission
from buzzer.datasets.recsys2021.metric import average_precision, relative_cross_entropy

__all__ = ["aligned", "score", "scores", "write_submission"]


def scores(truth: Array, chance: Array) -> dict[str, float]:
    """`AP` and `RCE` of predicted probabilities, over all rows; NaN where a score is not defined.

    truth: 0 or 1, [rows].  chance: [rows].
    """
    return {"RCE": relative_cross_entropy(truth, chance), "AP": average_precision(truth, chance)}


def score(submission: Path, truth: Path) -> dict[str, float]:
    """The scores of a submission `row,chance` against a truth `row,click`.

    Raises DataError unless both files have the same rows, each once, and each chance is from 0 to 1.
    """
    return scores(*aligned(submission, truth, "click", "chance"))
