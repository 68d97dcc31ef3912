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
    """Accuracy@4: the share of the truth's trips whose city is among the four submitted, in any order
    (Goldenberg et al., SIGIR 2021, section 4; the challenge's site calls it precision@4).

    A city that stands twice in a row only wastes a place. The organisers' script takes the mean over the submission's
    rows that it can join, so that trips that are left out vanish from the denominator; here the submission must have
    exactly the truth's trips, each once, or a DataError tells how many differ.
    """
    answers = whole(submission, SUBMISSION)
    expected = whole(truth, TRUTH)
    same_trips(submission, answers["utrip_id"], truth, expected["utrip_id"])
    joined = expected.join(answers, on="utrip_id", how="left")
    hits = pl.any_horizontal(pl.col(name) == pl.col("city_id") for name in CITIES)
    return {"accuracy@4": float(joined.select(hits.mean()).item())}


def whole(path: Path, kinds: dict[str, str]) -> pl.DataFrame:
    """A checked CSV file in memory."""
    empty = ["hotel_country"] if "hotel_country" in kinds else []
    return pl.concat([block for _, block in csv_blocks(path, kinds, empty=empty)])


def same_trips(submission: Path, submitted: pl.Series, truth: Path, expected: pl.Series) -> None:
    """Raises DataError unless both have the same trips, each once."""
    for path, trips in ((submission, submitted), (truth, expected)):
        if trips.n_unique() < len(trips):
            twice = trips.filter(trips.is_duplicated())
            raise DataError(
                f"{path}: {twice.n_unique()} trips stand in it more than once, as {shown(twice[0])}"
            )
    missing = expected.filter(~expected.is_in(submitted.implode()))
    extra = submitted.filter(~submitted.is_in(expected.implode()))
    told = [f"{len(missing)} trips of the truth are missing, as {shown(missing[0])}"] if len(missing) else []
    told += [f"{len(extra)} trips are not in the truth, as {shown(extra[0])}"] if len(extra) else []
    if told:
        raise DataError(f"{submission}: {'; '.join(told)}", f"it must have exactly the trips of {truth.name}")


def write_submission(path: Path, trips: Sequence[str] | pl.Series, cities: npt.NDArray[np.int64]) -> None:
    """The official format: `utrip_id,city_id_1,city_id_2,city_id_3,city_id_4`; cities of shape [trips, 4]."""
    table = pl.DataFrame({"utrip_id": trips} | {name: cities[:, i] for i, name in enumerate(CITIES)})
    with new_file(path) as aside:
        table.write_csv(aside)
