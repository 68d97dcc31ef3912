"""The best possible scores on generated test rows: those of the probabilities that their labels are drawn with.

While the rows are written, a file collects these probabilities in ten bytes a row. They are rounded to a step of 1 / 1024 in log odds, which
changes the scores by less than 0.0001. So the scores need a table of fixed size, not a sort of all rows.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from buzzer.datasets.recsys2021.metric import Array, author_group
from buzzer.datasets.recsys2021.schema import GROUPS, LABELS

STEPS_PER_UNIT, FARTHEST = 1024, 16  # log odds beyond 16 count as 16
STEPS = 2 * FARTHEST * STEPS_PER_UNIT
BLOCK = 1 << 20  # rows that are read at a time

Floats = npt.NDArray[np.float64]


def packed(
    truth: Mapping[str, Array], best: Mapping[str, Floats], followers: Array
) -> npt.NDArray[np.uint16]:
    """Rows of the file, [rows, labels + 1]: for each label twice the step of its log odds plus the label, and the author's group."""
    columns = []
    for label in LABELS:
        with np.errstate(divide="ignore"):  # 0 and 1 count as the farthest log odds
            log_odds = np.log(best[label]) - np.log1p(-best[label])
        step = np.floor((log_odds + FARTHEST) * STEPS_PER_UNIT).clip(0, STEPS - 1)
        columns.append(2 * step.astype(np.int64) + truth[label])
    return np.stack([*columns, author_group(followers)], axis=1).astype(np.uint16)


def scores(path: Path) -> dict[str, float]:
    """The scores of the best probabilities in a file of `packed` rows, as `metric.scores` defines them."""
    width, groups = len(LABELS) + 1, len(GROUPS) + 1
    rows = np.memmap(path, np.uint16, "r").reshape(-1, width)
    counts = np.zeros((len(LABELS), groups * STEPS * 2), dtype=np.int64)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK].astype(np.int64)
        for of_label, step in zip(counts, block.T, strict=False):
            of_label += np.bincount(block[:, -1] * STEPS * 2 + step, minlength=counts.shape[1])
    out: dict[str, float] = {}
    tables = counts.reshape(len(LABELS), groups, STEPS, 2)
    for kind, formula in (("AP", average_precision), ("RCE", relative_cross_entropy)):
        for label, of_label in zip(LABELS, tables, strict=True):
            values = np.array(
                [formula(negatives, positives) for negatives, positives in of_label.swapaxes(1, 2)]
            )
            out[f"{kind}_{label}"] = float(np.nanmean(values)) if not np.isnan(values).all() else 0.0
    means = {kind: float(np.mean([out[f"{kind}_{label}"] for label in LABELS])) for kind in ("AP", "RCE")}
    return means | out


def average_precision(negatives: Array, positives: Array) -> float:
    """`metric.average_precision` of rows that are counted by step."""
    hits, seen = np.cumsum(positives[::-1]), np.cumsum((negatives + positives)[::-1])
    if not hits[-1]:
        return float("nan")
    return float((positives[::-1] * hits / np.maximum(seen, 1)).sum() / hits[-1])


def relative_cross_entropy(negatives: Array, positives: Array) -> float:
    """`metric.relative_cross_entropy` of rows that are counted by step."""
    yes, no = int(positives.sum()), int(negatives.sum())
    if not yes or not no:
        return float("nan")
    log_odds = (np.arange(STEPS) + 0.5) / STEPS_PER_UNIT - FARTHEST
    loss = (positives * np.logaddexp(0, -log_odds) + negatives * np.logaddexp(0, log_odds)).sum()
    naive = -(yes * np.log(yes / (yes + no)) + no * np.log(no / (yes + no)))
    return float(100 * (1 - loss / naive))
