"""In-scope accuracy and out-of-scope recall, and the submission file."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from buzzer.datasets.clinc150.reader import OOS, read
from buzzer.datasets.files import csv_blocks, new_file
from buzzer.errors import DataError

SUBMISSION = {"split": "str", "id": "int64", "label": "str"}
TESTED = ("test", "oos_test")


def score(submission: Path, truth: Path) -> dict[str, float]:
    """Accuracy over the in-scope test sentences, and the share of out-of-scope ones that are labelled `oos`
    (Larson et al., EMNLP 2019, section 3.2). truth: data_full.json.

    Raises DataError unless the submission has each sentence of `test` and `oos_test` once.
    """
    splits = read(truth)
    given: dict[tuple[str, int], str] = {}
    for line, block in csv_blocks(submission, SUBMISSION):
        for at, (split, row, label) in enumerate(block.iter_rows()):
            if (split, row) in given:
                raise DataError(f"{submission}, line {line + at}: {split} {row} stands in it more than once")
            given[split, row] = label
    asked = {(split, row) for split in TESTED for row in range(len(splits[split]))}
    if given.keys() != asked:
        missing, extra = sorted(asked - given.keys()), sorted(given.keys() - asked)
        told = [f"{len(missing)} sentences are missing, as {missing[0]}"] if missing else []
        told += [f"{len(extra)} are not in the test, as {extra[0]}"] if extra else []
        raise DataError(
            f"{submission}: {'; '.join(told)}", f"it must have each test sentence of {truth.name} once"
        )
    hits = [given["test", row] == label for row, (_, label) in enumerate(splits["test"])]
    found = [given["oos_test", row] == OOS for row in range(len(splits["oos_test"]))]
    return {"accuracy": sum(hits) / len(hits), "oos_recall": sum(found) / len(found)}


def write_submission(path: Path, labels: dict[str, Sequence[str]]) -> None:
    """`split,id,label`; labels by tested split, in the file's order."""
    parts = [
        pl.DataFrame({"split": split, "id": range(len(found)), "label": list(found)})
        for split, found in labels.items()
    ]
    with new_file(path) as aside:
        pl.concat(parts).write_csv(aside)
