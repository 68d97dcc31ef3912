"""Reader, generator and metric of CLINC150; the official file too if BUZZER_DATA has it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from buzzer.datasets import clinc150
from buzzer.datasets.clinc150.reader import OFFICIAL_ROWS, SPLITS
from buzzer.datasets.contract import silent
from buzzer.errors import DataError

TINY: dict[str, Any] = {
    "train": [["book a flight", "book"], ["cancel it", "cancel"]],
    "val": [["book me in", "book"]],
    "test": [
        ["please book", "book"],
        ["please cancel", "cancel"],
        ["book, please", "book"],
        ["stop it", "cancel"],
    ],
    "oos_train": [["how deep is the sea", "oos"]],
    "oos_val": [["who are you", "oos"]],
    "oos_test": [["what is up", "oos"], ["is it so", "oos"]],
}


def write(folder: Path, content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "data_full.json").write_text(json.dumps(content))
    return folder / "data_full.json"


def test_the_generator_has_the_official_form_and_sizes(tmp_path: Path) -> None:
    clinc150.generate(tmp_path / "a", 1.0, 0, silent)
    clinc150.generate(tmp_path / "b", 1.0, 0, silent)
    clinc150.generate(tmp_path / "c", 0.1, 1, silent)
    files = clinc150.check(tmp_path / "a", silent)
    assert files.rows == OFFICIAL_ROWS
    assert files.facts == {"intents": 150}
    assert (files.source, files.scale) == ("generated", 1.0)
    assert files.fingerprint == clinc150.check(tmp_path / "b", silent).fingerprint
    assert clinc150.check(tmp_path / "c", silent).rows["train"] == 1500


def test_convert_writes_every_split(tmp_path: Path) -> None:
    write(tmp_path / "in", TINY)
    clinc150.convert(tmp_path / "in", tmp_path / "out", silent)
    for split in SPLITS:
        table = pd.read_parquet(tmp_path / "out" / f"{split}.parquet")
        assert table[["sentence", "label"]].to_numpy().tolist() == TINY[split]


def damaged(change: Callable[[dict[str, Any]], Any]) -> str:
    content = json.loads(json.dumps(TINY))
    change(content)
    return json.dumps(content)


BAD = {
    "cut": (json.dumps(TINY)[:200], "not JSON, or cut"),
    "a list": ("[]", "not a JSON object of splits"),
    "no split": (damaged(lambda c: c.pop("oos_val")), "no split oos_val"),
    "empty split": (damaged(lambda c: c.update(val=[])), "split val: empty"),
    "no label": (damaged(lambda c: c["test"][2].pop()), "split test, entry 2"),
    "a number": (
        damaged(lambda c: c["train"].append([7, "book"])),
        "split train, entry 2: [7, 'book'] is not",
    ),
    "blank": (damaged(lambda c: c["train"].append([" ", "book"])), "split train, entry 2"),
    "new label": (damaged(lambda c: c["test"].append(["x", "pay"])), "split test, entry 4: label 'pay'"),
    "oos in scope": (damaged(lambda c: c["val"].append(["x", "oos"])), "split val, entry 1: label 'oos'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(tmp_path: Path, case: str) -> None:
    text, message = BAD[case]
    (tmp_path / "data_full.json").write_text(text)
    with pytest.raises(DataError) as error:
        clinc150.check(tmp_path, silent)
    assert message in error.value.message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        clinc150.check(tmp_path, silent)


def test_scores_by_hand(tmp_path: Path) -> None:
    truth = write(tmp_path, TINY)
    labels = {"test": ["book", "book", "oos", "cancel"], "oos_test": ["oos", "book"]}
    clinc150.write_submission(tmp_path / "s.csv", labels)
    assert clinc150.score(tmp_path / "s.csv", truth) == {"accuracy": 0.5, "oos_recall": 0.5}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("test,3,cancel\n", "", "1 sentences are missing, such as ('test', 3)"),
        ("test,3,", "test,9,", "1 are not in the test, such as ('test', 9)"),
        ("test,3,", "test,2,", "line 5: test 2 occurs in it more than once"),
        ("test,3,", "test,three,", "line 5, column id: 'three' is not a whole number"),
    ],
)
def test_submissions_must_have_each_sentence_once(tmp_path: Path, old: str, new: str, message: str) -> None:
    truth = write(tmp_path, TINY)
    labels = {"test": ["book", "book", "oos", "cancel"], "oos_test": ["oos", "book"]}
    clinc150.write_submission(tmp_path / "s.csv", labels)
    text = (tmp_path / "s.csv").read_text()
    assert old in text
    (tmp_path / "s.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(DataError) as error:
        clinc150.score(tmp_path / "s.csv", truth)
    assert message in error.value.message


@pytest.mark.skipif("BUZZER_DATA" not in os.environ, reason="the real file is the user's own copy")
def test_the_real_file_passes() -> None:
    files = clinc150.check(Path(os.environ["BUZZER_DATA"]) / "text" / "clinc150", silent)
    assert files.rows == OFFICIAL_ROWS
    assert files.facts["intents"] == 150
