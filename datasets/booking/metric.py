"""Accuracy@4 and the submission file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from buzzer.datasets.booking.schema import SUBMISSION, TRUTH
from buzzer.datasets.files import csv_blocks, new_file
from buzzer.datasets.lines import shown
from buzzer.errors import DataError

CITIES = [name for name in SUBMISSION if name != "utrip_id"]


def score(submission: Path, truth: Path) -> dict[str, float]:
    """Accuracy@4: the share of trips whose true last city is among the four submitted cities, in any order
    (Goldenberg et al., SIGIR 2021, section 4; the website of the challenge calls it precision@4).

    A city that occurs twice in a row of the submission counts once. The organisers' script takes the mean over the rows of the
    submission that it can join, so trips that are left out do not count there. Here the submission must have exactly the trips
    of the truth, each once. Raises DataError with the number of trips that differ.
    """
    answers = read_csv(submission, SUBMISSION)
    expected = read_csv(truth, TRUTH)
    same_trips(submission, answers["utrip_id"], truth, expected["utrip_id"])
    joined = expected.join(answers, on="utrip_id", how="left")
    hits = pl.any_horizontal(pl.col(name) == pl.col("city_id") for name in CITIES)
    return {"accuracy@4": float(joined.select(hits.mean()).item())}


def read_csv(path: Path, kinds: dict[str, str]) -> pl.DataFrame:
    """A whole CSV file, checked."""
    empty = ["hotel_country"] if "hotel_country" in kinds else []
    return pl.concat([block for _, block in csv_blocks(path, kinds, empty=empty)])


def same_trips(submission: Path, submitted: pl.Series, truth: Path, expected: pl.Series) -> None:
    """Raises DataError unless both files have the same trips, each once."""
    for path, trips in ((submission, submitted), (truth, expected)):
        if trips.n_unique() < len(trips):
            twice = trips.filter(trips.is_duplicated())
            raise DataError(
                f"{path}: {twice.n_unique()} trips occur in it more than once, such as {shown(twice[0])}"
            )
    missing = expected.filter(~expected.is_in(submitted.implode()))
    extra = submitted.filter(~submitted.is_in(expected.implode()))
    problems = []
    if len(missing):
        problems.append(f"{len(missing)} trips of the truth are missing, such as {shown(missing[0])}")
    if len(extra):
        problems.append(f"{len(extra)} trips are not in the truth, such as {shown(extra[0])}")
    if problems:
        raise DataError(
            f"{submission}: {'; '.join(problems)}", f"it must have exactly the trips of {truth.name}"
        )


def write_submission(path: Path, trips: Sequence[str] | pl.Series, cities: npt.NDArray[np.int64]) -> None:
    """Write the official format, `utrip_id,city_id_1,city_id_2,city_id_3,city_id_4`. cities: shape [trips, 4]."""
    table = pl.DataFrame({"utrip_id": trips} | {name: cities[:, i] for i, name in enumerate(CITIES)})
    with new_file(path) as partial:
        table.write_csv(partial)
