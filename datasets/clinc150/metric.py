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
    """`accuracy` over the in-scope test sentences, and `oos_recall`, the share of out-of-scope sentences with label `oos`
    (Larson et al., EMNLP 2019, section 3.2); only `accuracy` if there are no out-of-scope sentences. truth: data_full.json, or the folder
    of other labelled sentences.

    Raises DataError unless the submission has each sentence of `test` and `oos_test` once.
    """
    splits = read(truth)
    answers: dict[tuple[str, int], str] = {}
    for line, block in csv_blocks(submission, SUBMISSION):
        for at, (split, row, label) in enumerate(block.iter_rows()):
            if (split, row) in answers:
                raise DataError(f"{submission}, line {line + at}: {split} {row} occurs in it more than once")
            answers[split, row] = label
    expected = {(split, row) for split in TESTED for row in range(len(splits[split]))}
    if answers.keys() != expected:
        missing, extra = sorted(expected - answers.keys()), sorted(answers.keys() - expected)
        problems = [f"{len(missing)} sentences are missing, such as {missing[0]}"] if missing else []
        problems += [f"{len(extra)} are not in the test, such as {extra[0]}"] if extra else []
        raise DataError(
            f"{submission}: {'; '.join(problems)}", f"it must have each test sentence of {truth.name} once"
        )
    hits = [answers["test", row] == label for row, (_, label) in enumerate(splits["test"])]
    recalled = [answers["oos_test", row] == OOS for row in range(len(splits["oos_test"]))]
    scores = {"accuracy": sum(hits) / len(hits)}
    return scores | ({"oos_recall": sum(recalled) / len(recalled)} if recalled else {})


def write_submission(path: Path, labels: dict[str, Sequence[str]]) -> None:
    """Write the rows `split,id,label`. labels: for each tested split, in the order of its sentences."""
    parts = [
        pl.DataFrame({"split": split, "id": range(len(values)), "label": list(values)})
        for split, values in labels.items()
        if values
    ]
    with new_file(path) as partial:
        pl.concat(parts).write_csv(partial)
