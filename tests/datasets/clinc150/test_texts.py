"""Labelled sentences in tables and in SNIPS's files; BANKING77 and SNIPS as they are distributed if BUZZER_DATA has them."""

import json
import os
from pathlib import Path

import polars as pl
import pytest

from buzzer.datasets import clinc150
from buzzer.datasets.clinc150 import texts
from buzzer.datasets.contract import silent
from buzzer.errors import DataError

ROWS = [("book a flight", "book"), ('say "no", please', "cancel"), ("stop it", "cancel"), ("a trip", "book")]


def write(path: Path, rows: list[tuple[str, str]], columns: tuple[str, str] = ("text", "label")) -> None:
    frame = pl.DataFrame(rows, schema=columns, orient="row")
    {".csv": frame.write_csv, ".parquet": frame.write_parquet}.get(path.suffix, frame.write_ndjson)(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("columns", [("text", "category"), ("sentence", "intent"), ("Query", "Label")])
def test_tables_are_read_by_the_names_of_files_and_columns(
    suffix: str, columns: tuple[str, str], tmp_path: Path
) -> None:
    write(tmp_path / f"train{suffix}", ROWS, columns)
    write(tmp_path / f"validation{suffix}", ROWS[:1], columns)
    write(tmp_path / f"test{suffix}", ROWS[1:], columns)
    splits = clinc150.read(tmp_path)
    assert (splits["train"], splits["val"], splits["test"]) == (ROWS, ROWS[:1], ROWS[1:])
    assert not splits["oos_train"] + splits["oos_val"] + splits["oos_test"]
    files = clinc150.check(tmp_path, silent)
    assert files.rows == {"train": 4, "val": 1, "test": 3}
    assert (files.source, files.scale, files.facts) == ("official", 1.0, {"intents": 2})
    assert files.notes == (f"sentences of train{suffix}, validation{suffix}, test{suffix}, not of CLINC150",)


def test_one_file_is_split_by_the_hash_of_a_sentence(tmp_path: Path) -> None:
    rows = [(f"sentence {i}", f"label {i % 3}") for i in range(1000)]
    write(tmp_path / "mine.csv", rows)
    before = texts.read(tmp_path).splits
    assert sorted(row for split in before.values() for row in split) == sorted(rows)
    assert {name: round(len(split) / 1000, 1) for name, split in before.items()} == {
        "train": 0.7,
        "val": 0.1,
        "test": 0.2,
    }
    write(tmp_path / "mine.csv", [("another", "label 0"), *rows[::-1], rows[7]])
    after = texts.read(tmp_path).splits
    for name, split in before.items():
        assert set(split) <= set(after[name])
    assert [rows[7] in split for split in before.values()] == [rows[7] in split for split in after.values()]


def test_a_part_for_validation_is_taken_from_the_training_sentences(tmp_path: Path) -> None:
    rows = [(f"sentence {i}", f"label {i % 3}") for i in range(300)]
    write(tmp_path / "train.csv", rows)
    write(tmp_path / "test.csv", rows[:9])
    found = texts.read(tmp_path)
    assert sorted(found.splits["train"] + found.splits["val"]) == sorted(rows)
    assert found.splits["test"] == rows[:9]
    assert 15 < len(found.splits["val"]) < 45
    assert found.notes == ["validation: 10 % of the training sentences, by hash"]


def snips(folder: Path, kind: str, intent: str, sentences: list[list[str]], encoding: str = "utf-8") -> None:
    content = {intent: [{"data": [{"text": part} for part in parts]} for parts in sentences]}
    (folder / f"{kind}_{intent}.json").write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))


def test_snips_files_are_read(tmp_path: Path) -> None:
    """Also one in ISO 8859-1, as published; and a full file is read in place of the short one."""
    for i in range(30):
        many = [["play ", f"song {n}"] for n in range(i)]
    snips(tmp_path, "train", "PlayMusic", [*many, ["play ", "Así", "\n"]], "latin-1")
    snips(tmp_path, "train", "GetWeather", [["cold"]])
    (tmp_path / "train_GetWeather.json").rename(tmp_path / "train_GetWeather_full.json")
    snips(tmp_path, "train", "GetWeather", [["warm"]])
    snips(tmp_path, "validate", "GetWeather", [["is it ", "cold"]])
    splits = clinc150.read(tmp_path)
    assert splits["test"] == [("is it cold", "GetWeather")]
    both = splits["train"] + splits["val"]
    assert ("play Así", "PlayMusic") in both
    assert ("cold", "GetWeather") in both
    assert ("warm", "GetWeather") not in both


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.csv": "text,label\n", "b.csv": "text,label\n"}, "2 tables, and not one for training"),
        (
            {
                "train.csv": "text,label\nx,a\n",
                "test.csv": "text,label\ny,b\n",
                "val.csv": "text,label\nx,a\n",
            },
            "label 'b' of test",
        ),
        (
            {"train.csv": "text,label\nx,\n", "test.csv": "text,label\ny,a\n"},
            "train.csv, row 1: an empty text or label",
        ),
        (
            {"train.csv": "text,answer\nx,a\n", "test.csv": "text,label\ny,a\n"},
            "0 of the columns label, category, intent",
        ),
        (
            {"train.csv": "text,label,intent\nx,a,b\n", "test.csv": "text,label\ny,a\n"},
            "2 of the columns label",
        ),
        (
            {"train.csv": "text,label\nx,a\n", "train.jsonl": '{"text": "x", "label": "a"}\n'},
            "two files for train",
        ),
        ({"train.jsonl": "{", "test.csv": "text,label\ny,a\n"}, "train.jsonl: cannot be read"),
        ({"train_A.json": "[]", "validate_A.json": "{}"}, "not a file of SNIPS"),
        ({"mine.csv": "text,label\nx,a\n"}, "no sentences for"),
    ],
)
def test_other_files_are_refused(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        clinc150.check(tmp_path, silent)


def test_accuracy_alone_is_scored_without_sentences_out_of_scope(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write(data / "train.csv", ROWS)
    write(data / "val.csv", ROWS)
    write(data / "test.csv", ROWS)
    answers = {"test": ["book", "cancel", "book", "book"], "oos_test": []}
    clinc150.write_submission(tmp_path / "submission.csv", answers)
    assert clinc150.score(tmp_path / "submission.csv", data) == {"accuracy": 0.75}
    clinc150.convert(data, tmp_path / "parquet", silent)
    assert sorted(path.stem for path in (tmp_path / "parquet").iterdir()) == ["test", "train", "val"]


@pytest.mark.skipif("BUZZER_DATA" not in os.environ, reason="needs the real files in $BUZZER_DATA")
@pytest.mark.parametrize(
    ("name", "rows", "intents"),
    [("banking77", (10_003, 3_080), 77), ("snips", (13_784, 700), 7)],
)
def test_published_sets_are_read(name: str, rows: tuple[int, int], intents: int) -> None:
    files = clinc150.check(Path(os.environ["BUZZER_DATA"]) / "text" / name, silent)
    assert (files.rows["train"] + files.rows["val"], files.rows["test"]) == rows
    assert files.facts == {"intents": intents}
