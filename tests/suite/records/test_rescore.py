"""Saved submissions are scored again, and a record with another score is detected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from buzzer.errors import UsageError
from buzzer.models.api.context import Data
from buzzer.suite import registry
from buzzer.suite.records import record
from buzzer.suite.records.rescore import rescore
from buzzer.suite.records.schema import Record

RIGHT = "utrip_id,city_id_1,city_id_2,city_id_3,city_id_4\n1_1,10,11,12,13\n2_1,20,21,22,23\n"
CASES: dict[str, tuple[dict[str, Any], str | None, str, str]] = {  # changes, submission, problem, skipped
    "true": ({"scores": {"accuracy@4": 0.5, "accuracy@4_mlp": 0.4}}, RIGHT, "", ""),
    "a lie": ({"scores": {"accuracy@4": 1.0}}, RIGHT, "accuracy@4 is 1, its submission has 0.5", ""),
    "no such score": ({"scores": {"other": 0.5}}, RIGHT, "accuracy@4 is nan", ""),
    "no submission": ({"scores": {"accuracy@4": 0.5}}, None, "", "was not kept"),
    "half a submission": ({"scores": {"accuracy@4": 0.5}}, RIGHT[:70], "its submission is not valid", ""),
    "other data": ({"data_fingerprint": "e" * 64}, RIGHT, "", "it ran on other data"),
}


@pytest.fixture
def data(tmp_path: Path) -> Data:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "ground_truth.csv").write_text("utrip_id,city_id,hotel_country\n1_1,12,X\n2_1,99,Y\n")
    return Data(folder, "f" * 64, "official", {}, 1.0)


def keep(folder: Path, r: Record, submission: str) -> None:
    """Write a run's submission beside the records in `folder`."""
    kept = folder / "files" / r.run_id[:8] / "submission.csv"
    kept.parent.mkdir(parents=True)
    kept.write_text(submission)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_records_are_compared_with_their_submissions(
    tmp_path: Path, data: Data, make_record: Callable[..., Record], case: str, flat: bool
) -> None:
    """One of two trips is predicted right, so accuracy@4 is 0.5. `flat`: the layout of older versions."""
    changes, submission, problem, skipped = CASES[case]
    r = make_record(**({"task": "booking", "metric": "accuracy@4"} | changes))
    path = record.write(r, tmp_path / "out")
    if submission is not None:
        keep(tmp_path / "out", r, submission)
    if flat:
        path = path.rename(tmp_path / "out" / path.name)
    (result,) = rescore(registry.task("booking"), {path: r}, lambda _: data)
    assert result.path == path
    assert (problem in result.problem, bool(result.problem)) == (True, bool(problem))
    assert (skipped in result.skipped, bool(result.skipped)) == (True, bool(skipped))


def test_no_data_are_made_for_a_run_without_a_submission(
    tmp_path: Path, make_record: Callable[..., Record]
) -> None:
    def data_of(_: Record) -> Data:
        raise AssertionError("not needed")

    r = make_record(task="booking", metric="accuracy@4")
    (result,) = rescore(registry.task("booking"), {record.write(r, tmp_path): r}, data_of)
    assert "was not kept" in result.skipped


def test_data_without_true_labels_are_reported(
    tmp_path: Path, data: Data, make_record: Callable[..., Record]
) -> None:
    (data.folder / "ground_truth.csv").unlink()
    r = make_record(task="booking", metric="accuracy@4")
    path = record.write(r, tmp_path / "out")
    keep(tmp_path / "out", r, RIGHT)
    (result,) = rescore(registry.task("booking"), {path: r}, lambda _: data)
    assert "has no true labels" in result.skipped


def test_a_task_without_a_file_of_true_labels_is_refused(data: Data) -> None:
    with pytest.raises(UsageError, match="their own labels"):
        list(rescore(registry.task("online-shoppers"), {}, lambda _: data))


def test_every_task_names_its_submission() -> None:
    """Only the task that takes its true labels from its own rows cannot be scored again."""
    without = [task.name for task in registry.tasks().values() if not (task.submission and task.truth)]
    assert without == ["online-shoppers"]
