"""The official metrics: average precision and relative cross entropy, by engagement and author group."""

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
CLIP = 1e-15  # of predictions, as the scorer's log loss


def average_precision(truth: Array, predicted: Array) -> float:
    """Sum over thresholds of the gain in recall times the precision (scikit-learn's average_precision_score).

    truth: 0 or 1, [rows]; predicted: scores, [rows], higher is likelier; equal scores share a threshold. NaN where
    there is no positive row.
    """
    order = np.argsort(-predicted, kind="stable")
    hits = np.cumsum(truth[order], dtype=np.float64)
    if not len(hits) or hits[-1] == 0:
        return float("nan")
    scores = predicted[order]
    last = np.append(scores[1:] != scores[:-1], True)  # of the rows that share a score
    hits, seen = hits[last], np.flatnonzero(last) + 1
    gains = np.diff(hits, prepend=0.0) / hits[-1]
    return float((gains * hits / seen).sum())


def log_loss(truth: Array, predicted: Array) -> float:
    """Mean binary cross entropy in nats, predictions clipped to [1e-15, 1 - 1e-15]."""
    p = np.clip(predicted.astype(np.float64), CLIP, 1 - CLIP)
    return float(-np.where(truth == 1, np.log(p), np.log1p(-p)).mean())


def relative_cross_entropy(truth: Array, predicted: Array) -> float:
    """100 * (1 - log loss / log loss of the constant that is the positive rate of the same rows).

    0 = no better than the constant, 100 = perfect, without a lower bound. NaN where all rows are of one class: the
    constant is perfect there.
    """
    rate = float(truth.mean()) if len(truth) else 0.0
    if rate in (0.0, 1.0):
        return float("nan")
    naive = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    return float(100 * (1 - log_loss(truth, predicted) / naive))


def author_group(followers: Array) -> Array:
    """0 to 4: how many of the thresholds 240, 588, 1331, 3996 the author's followers reach."""
    return np.searchsorted(np.asarray(GROUPS), followers, side="right")


def scores(truth: Mapping[str, Array], predicted: Mapping[str, Array], followers: Array) -> dict[str, float]:
    """AP_ and RCE_ of reply, retweet, quote, like, each the plain mean over the five author groups, and the means over the
    engagements `AP` and `RCE`, whose ranks the ranking adds up (Schifferer et al., RecSys Challenge 2021, section 2).

    truth: 0 or 1 by engagement, predicted: probabilities, followers: of the author; all [rows]. A group without
    positives has no value and is left out of both means (scikit-learn's average precision would be 0 with a warning, the
    challenge's log loss ratio a division by nearly 0); one without negatives has average precision 1 and no RCE; an
    engagement none of whose groups has a value scores 0. Raises DataError for predictions that are not in 0..1.
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
            known = values[~np.isnan(values)]
            out[f"{kind}_{label}"] = float(known.mean()) if len(known) else 0.0
    means = {kind: float(np.mean([out[f"{kind}_{label}"] for label in LABELS])) for kind in ("AP", "RCE")}
    return means | out


def read_submission(path: Path) -> pl.DataFrame:
    """A submission as columns. Raises DataError with line and column of a row that has not two ids and four numbers from 0 to 1."""
    kinds = {name: "str" if name.endswith("_id") else "chance" for name in SUBMISSION}
    with opened(path) as file:
        return pl.concat([block for _, block in blocks(path, file, list(SUBMISSION), kinds)])


@dataclass(frozen=True)
class Truth:
    """What the rows of a submission are scored against, in the submission's order."""

    labels: dict[str, Array]  # engagement -> 0 or 1 [rows]
    followers: Array  # of the author [rows]


def score(submission: Path, truth: Path) -> dict[str, float]:
    """The official scores of a submission (`tweet_id,engaging_user_id,reply,retweet,quote,like`, no header).

    truth: a labelled part file, or a folder of them. Raises DataError unless the submission has exactly the truth's
    (tweet, reader) pairs, each once.
    """
    answers = read_submission(submission)
    known = align(submission, answers, truth)
    return scores(known.labels, {label: answers[label].to_numpy() for label in LABELS}, known.followers)


def align(submission: Path, answers: pl.DataFrame, truth: Path) -> Truth:
    """The truth of each row of a submission. Raises DataError as `score` does."""
    files = part_files(truth) if truth.is_dir() else [truth]
    found = in_order(answers, files)
    return joined(submission, answers, truth, files) if found is None else found


def in_order(answers: pl.DataFrame, files: Sequence[Path]) -> Truth | None:
    """The truth of a submission whose rows are the files', one after the other, a block at a time: ten million pairs of ids are too
    many to be joined within a budget's memory. None for any other submission."""
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
    pairs = answers.select(pl.struct(KEYS).hash())  # two of one hash need not be one pair: `joined` tells
    return Truth(y, followers) if row == answers.height == pairs.n_unique() else None


def joined(submission: Path, answers: pl.DataFrame, truth: Path, files: Sequence[Path]) -> Truth:
    """The truth of a submission in any order."""
    known = pl.concat([block for path in files for block in labels_of(path)])
    for path, table in ((submission, answers), (truth, known)):
        if (twice := table.select(KEYS).is_duplicated()).any():
            raise DataError(
                f"{path}: {twice.sum()} rows share their pair of tweet and reader, as {shown(table.row(int(twice.arg_max() or 0))[:2])}"
            )
    same_pairs(submission, answers.select(KEYS), known.select(KEYS))
    whole = answers.select(KEYS).join(known, on=KEYS, how="left", maintain_order="left")
    y = {label: whole[f"true_{label}"].to_numpy() for label in LABELS}
    return Truth(y, whole["followers"].to_numpy())


def same_pairs(submission: Path, submitted: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Raises DataError unless both have the same pairs; no pair stands in either twice."""
    missing = expected.join(submitted, on=expected.columns, how="anti")
    extra = submitted.join(expected, on=expected.columns, how="anti")
    told = (
        [f"{missing.height} pairs of the truth are missing, as {shown(missing.row(0))}"]
        if missing.height
        else []
    )
    told += [f"{extra.height} pairs are not in the truth, as {shown(extra.row(0))}"] if extra.height else []
    if told:
        raise DataError(
            f"{submission}: {'; '.join(told)}",
            "a submission must have exactly the tweets and readers of the test",
        )


def labels_of(path: Path) -> Iterator[pl.DataFrame]:
    """Keys, labels (int8) and the author's followers of a labelled part file, in blocks."""
    wanted = [
        pl.col("tweet_id"),
        pl.col("enaging_user_id").alias(SUBMISSION[1]),
        pl.col("engaged_with_user_follower_count").alias("followers"),
        *(pl.col(name).is_not_null().cast(pl.Int8).alias(f"true_{label}") for label, name in LABELS.items()),
    ]
    for _, block in rows_of(path, LABELLED):
        yield block.select(wanted)


def append_submission(path: Path, tweets: Ids, readers: Ids, predicted: Mapping[str, Array]) -> None:
    """Add rows in the official format; probabilities by engagement, [rows]."""
    columns = {"tweet_id": tweets, SUBMISSION[1]: readers}
    table = pl.DataFrame(columns | {label: predicted[label] for label in SUBMISSION[2:]})
    with path.open("ab") as file:
        table.write_csv(file, include_header=False)


def write_submission(path: Path, tweets: Ids, readers: Ids, predicted: Mapping[str, Array]) -> None:
    """A whole submission; see `append_submission`."""
    with new_file(path) as aside:
        append_submission(aside, tweets, readers, predicted)
