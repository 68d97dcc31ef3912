"""The official metrics, average precision and relative cross entropy by engagement and author group, and submissions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from buzzer.datasets.files import blocks, new_file, opened
from buzzer.datasets.lines import shown
from buzzer.datasets.recsys2021.reader import part_files, rows_of
from buzzer.datasets.recsys2021.schema import GROUPS, LABELLED, LABELS, SUBMISSION
from buzzer.errors import DataError

Array = npt.NDArray[Any]
Ids = Any  # Sequence[str] or pyarrow.ChunkedArray
KEYS = list(SUBMISSION[:2])
CLIP = 1e-15  # predictions are clipped to [CLIP, 1 - CLIP], as in the challenge's log loss


def average_precision(truth: Array, predicted: Array) -> float:
    """The sum over thresholds of the gain in recall times the precision, as scikit-learn's average_precision_score.

    truth: 0 or 1, [rows]. predicted: scores, [rows], higher is more likely; equal scores share a threshold. NaN if no row is
    positive.
    """
    order = np.argsort(-predicted, kind="stable")
    hits = np.cumsum(truth[order], dtype=np.float64)
    if not len(hits) or hits[-1] == 0:
        return float("nan")
    scores = predicted[order]
    last = np.append(scores[1:] != scores[:-1], True)  # the last of the rows that share a score
    hits, seen = hits[last], np.flatnonzero(last) + 1
    gains = np.diff(hits, prepend=0.0) / hits[-1]
    return float((gains * hits / seen).sum())


def log_loss(truth: Array, predicted: Array) -> float:
    """The mean binary cross entropy in nats, with predictions clipped to [1e-15, 1 - 1e-15]."""
    p = np.clip(predicted.astype(np.float64), CLIP, 1 - CLIP)
    return float(-np.where(truth == 1, np.log(p), np.log1p(-p)).mean())


def relative_cross_entropy(truth: Array, predicted: Array) -> float:
    """100 * (1 - log loss / log loss of a constant prediction), where the constant is the positive rate of the same rows.

    0 is as good as the constant, 100 is perfect; there is no lower bound. NaN if all rows have one class, where the constant is
    perfect.
    """
    rate = float(truth.mean()) if len(truth) else 0.0
    if rate in (0.0, 1.0):
        return float("nan")
    naive = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    return float(100 * (1 - log_loss(truth, predicted) / naive))


def author_group(followers: Array) -> Array:
    """The group, 0 to 4: the number of thresholds 240, 588, 1331, 3996 that the author's followers reach."""
    return np.searchsorted(np.asarray(GROUPS), followers, side="right")


def scores(truth: Mapping[str, Array], predicted: Mapping[str, Array], followers: Array) -> dict[str, float]:
    """`AP_*` and `RCE_*` for each engagement, means over the five author groups, and `AP` and `RCE`, their means over the
    engagements. The challenge added the ranks of AP and RCE (Schifferer et al., RecSys Challenge 2021, section 2).

    truth: 0 or 1 by engagement; predicted: probabilities by engagement; followers: of the author; all [rows]. A group without
    positives is left out of both means (scikit-learn's average precision would be 0 with a warning, the challenge's log loss
    ratio a division by nearly 0). A group without negatives has average precision 1 and no RCE. An engagement without any value
    scores 0. Raises DataError for predictions outside 0 to 1.
    """
    groups = author_group(followers)
    members = [np.flatnonzero(groups == g) for g in range(len(GROUPS) + 1)]
    out: dict[str, float] = {}
    for kind, formula in (("AP", average_precision), ("RCE", relative_cross_entropy)):
        for label in LABELS:
            y, p = truth[label], predicted[label]
            if not ((p >= 0) & (p <= 1)).all():
                raise DataError(f"predictions of {label} must be numbers from 0 to 1")
            values = np.array([formula(y[rows], p[rows]) for rows in members])
            defined = values[~np.isnan(values)]
            out[f"{kind}_{label}"] = float(defined.mean()) if len(defined) else 0.0
    means = {kind: float(np.mean([out[f"{kind}_{label}"] for label in LABELS])) for kind in ("AP", "RCE")}
    return means | out


def read_submission(path: Path) -> pl.DataFrame:
    """A submission as a table. Raises DataError with line and column unless each row has two ids and four numbers from 0 to 1."""
    kinds = {name: "str" if name.endswith("_id") else "chance" for name in SUBMISSION}
    with opened(path) as file:
        return pl.concat([block for _, block in blocks(path, file, list(SUBMISSION), kinds)])


@dataclass(frozen=True)
class Truth:
    """The true labels of the rows of a submission, in the order of the submission."""

    labels: dict[str, Array]  # 0 or 1 by engagement, [rows]
    followers: Array  # of the author, [rows]


def score(submission: Path, truth: Path) -> dict[str, float]:
    """The official scores of a submission `tweet_id,engaging_user_id,reply,retweet,quote,like` without header.

    truth: a labelled part file, or a folder of them. Raises DataError unless the submission has exactly the pairs of tweet and
    reader in the truth, each once.
    """
    answers = read_submission(submission)
    aligned = align(submission, answers, truth)
    predicted = {label: answers[label].to_numpy() for label in LABELS}
    return scores(aligned.labels, predicted, aligned.followers)


def align(submission: Path, answers: pl.DataFrame, truth: Path) -> Truth:
    """The truth for each row of a submission. Raises DataError as `score` does."""
    files = part_files(truth) if truth.is_dir() else [truth]
    aligned = align_in_order(answers, files)
    return align_by_join(submission, answers, truth, files) if aligned is None else aligned


def align_in_order(answers: pl.DataFrame, files: Sequence[Path]) -> Truth | None:
    """The truth for a submission that has the rows of the files in the same order; None for any other submission.

    It reads the files in blocks: a join of ten million pairs of ids takes more memory than budgets allow.
    """
    y = {label: np.empty(answers.height, dtype=np.int8) for label in LABELS}
    followers, row = np.empty(answers.height, dtype=np.int64), 0
    for path in files:
        for block in labels_of(path):
            rows = slice(row, row + block.height)
            if not block.select(KEYS).equals(answers[rows].select(KEYS)):
                return None
            for label in LABELS:
                y[label][rows] = block[f"true_{label}"].to_numpy()
            followers[rows] = block["followers"].to_numpy()
            row = rows.stop
    pairs = answers.select(
        pl.struct(KEYS).hash()
    )  # equal hashes may be of different pairs: `align_by_join` decides
    return Truth(y, followers) if row == answers.height == pairs.n_unique() else None


def align_by_join(submission: Path, answers: pl.DataFrame, truth: Path, files: Sequence[Path]) -> Truth:
    """The truth for a submission in any order. Raises DataError for pairs that are missing, unknown or repeated."""
    expected = pl.concat([block for path in files for block in labels_of(path)])
    for path, table in ((submission, answers), (truth, expected)):
        if (twice := table.select(KEYS).is_duplicated()).any():
            pair = table.row(int(twice.arg_max() or 0))[:2]
            raise DataError(
                f"{path}: {twice.sum()} rows share their pair of tweet and reader, such as {shown(pair)}"
            )
    same_pairs(submission, answers.select(KEYS), expected.select(KEYS))
    matched = answers.select(KEYS).join(expected, on=KEYS, how="left", maintain_order="left")
    y = {label: matched[f"true_{label}"].to_numpy() for label in LABELS}
    return Truth(y, matched["followers"].to_numpy())


def same_pairs(submission: Path, submitted: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Raises DataError unless both tables have the same pairs. Each must have every pair once."""
    missing = expected.join(submitted, on=expected.columns, how="anti")
    extra = submitted.join(expected, on=expected.columns, how="anti")
    problems = []
    if missing.height:
        problems.append(f"{missing.height} pairs of the truth are missing, such as {shown(missing.row(0))}")
    if extra.height:
        problems.append(f"{extra.height} pairs are not in the truth, such as {shown(extra.row(0))}")
    if problems:
        raise DataError(
            f"{submission}: {'; '.join(problems)}",
            "a submission must have exactly the tweets and readers of the test",
        )


def labels_of(path: Path) -> Iterator[pl.DataFrame]:
    """Blocks of a labelled part file: the keys, the labels as int8, and the author's followers."""
    columns = [
        pl.col("tweet_id"),
        pl.col("enaging_user_id").alias(SUBMISSION[1]),
        pl.col("engaged_with_user_follower_count").alias("followers"),
        *(pl.col(name).is_not_null().cast(pl.Int8).alias(f"true_{label}") for label, name in LABELS.items()),
    ]
    for _, block in rows_of(path, LABELLED):
        yield block.select(columns)


def append_submission(path: Path, tweets: Ids, readers: Ids, predicted: Mapping[str, Array]) -> None:
    """Append rows in the official format. predicted: probabilities by engagement, [rows]."""
    columns = {"tweet_id": tweets, SUBMISSION[1]: readers}
    table = pl.DataFrame(columns | {label: predicted[label] for label in SUBMISSION[2:]})
    with path.open("ab") as file:
        table.write_csv(file, include_header=False)


def write_submission(path: Path, tweets: Ids, readers: Ids, predicted: Mapping[str, Array]) -> None:
    """Write a whole submission; see `append_submission`."""
    with new_file(path) as partial:
        append_submission(partial, tweets, readers, predicted)
