"""Labelled sentences in other files than CLINC150's: tables with a text and a label (BANKING77, your own), and SNIPS as it is distributed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from buzzer.datasets import strict_json
from buzzer.datasets.lines import shown
from buzzer.errors import DataError, first_line

TEXTS, LABELS = (
    ("text", "sentence", "query", "utterance"),
    ("label", "category", "intent"),
)  # names of columns
SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet")
# Split -> names of its file, without the suffix.
NAMES = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}
SNIPS = "train_*.json"  # one file for each intent; `validate_*.json` is the test
TEST_SHARE, VAL_SHARE = 20, 10  # per cent of the sentences of a file that is split here
HINT = "needs train and test (and perhaps val), or one file, as .csv, .jsonl or .parquet with a text and a label; or SNIPS's files"

Split = list[tuple[str, str]]


@dataclass
class Texts:
    """Sentences and their labels by split: train, val, test. notes: how the splits were made."""

    splits: dict[str, Split]
    files: list[Path]
    notes: list[str] = field(default_factory=list)


def read(folder: Path) -> Texts:
    """The sentences of a folder. Raises DataError for other files than HINT names, and for damaged ones.

    Without a file for validation, a tenth of the training sentences is used; one file alone is split in three. A hash of a sentence
    decides its split, so equal sentences are in one split, and adding a sentence does not move others.
    """
    snips = sorted(folder.glob(SNIPS))
    texts = snips_of(folder, snips) if snips else tables_of(folder)
    if "val" not in texts.splits:
        parts = by_hash(texts.splits["train"], {"val": VAL_SHARE, "train": 100})
        texts.splits |= parts
        texts.notes.append(f"validation: {VAL_SHARE} % of the training sentences, by hash")
    known = {label for _, label in texts.splits["train"]}
    for name, split in texts.splits.items():
        if not split:
            raise DataError(f"{folder}: no sentences for {name}", HINT)
        if foreign := sorted({label for _, label in split} - known):
            raise DataError(f"{folder}: label {shown(foreign[0])} of {name} is not in the training sentences")
    return texts


def tables_of(folder: Path) -> Texts:
    """The sentences of the tables in a folder."""
    tables = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES) if folder.is_dir() else []
    found: dict[str, Path] = {}
    for split, names in NAMES.items():
        files = [path for path in tables if path.stem.lower() in names]
        if len(files) > 1:
            raise DataError(f"{folder}: two files for {split}: {files[0].name} and {files[1].name}")
        if files:
            found[split] = files[0]
    if {"train", "test"} <= found.keys():
        return Texts({split: table(path) for split, path in found.items()}, list(found.values()))
    if len(tables) != 1:
        raise DataError(
            f"{folder}: {len(tables)} tables, and not one for training and one for the test", HINT
        )
    shares = {"test": TEST_SHARE, "val": TEST_SHARE + VAL_SHARE, "train": 100}
    note = f"test and validation: {TEST_SHARE} % and {VAL_SHARE} % of the sentences, by hash"
    return Texts(by_hash(table(tables[0]), shares), tables, [note])


def by_hash(split: Split, shares: Mapping[str, int]) -> dict[str, Split]:
    """The sentences in parts. shares: part -> the per cent of sentences in it and in the parts before it."""
    parts: dict[str, Split] = {name: [] for name in shares}
    for text, label in split:
        place = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 100
        name = next(name for name, share in shares.items() if place < share)
        parts[name].append((text, label))
    return parts


def table(path: Path) -> Split:
    """The rows of a table. Raises DataError for a table without the columns, or with an empty text or label."""
    try:
        if path.suffix == ".csv":
            rows = pl.read_csv(path, infer_schema=False)
        else:
            rows = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_ndjson(path)
        columns = [column(path, rows.columns, names) for names in (TEXTS, LABELS)]
        pairs = rows.select(pl.col(columns).cast(pl.String)).rows()
    except DataError:
        raise
    except Exception as error:  # Polars raises many types
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from error
    for number, (text, label) in enumerate(pairs, 1):
        if not text or not text.strip() or not label or not label.strip():
            raise DataError(f"{path}, row {number}: an empty text or label")
    return pairs


def column(path: Path, have: Sequence[str], names: Sequence[str]) -> str:
    """The one column that has one of these names. Raises DataError if there is none, or several."""
    found = [name for name in have if name.lower() in names]
    if len(found) != 1:
        problem = f"{len(found)} of the columns {', '.join(names)}, needs one"
        raise DataError(f"{path}: {problem}", f"its columns: {', '.join(have)[:200]}")
    return found[0]


def snips_of(folder: Path, train: Sequence[Path]) -> Texts:
    """SNIPS's sentences. Where there are `train_X.json` and `train_X_full.json`, the full file is read."""
    names = {path.stem for path in train}
    train = [path for path in train if f"{path.stem}_full" not in names]
    test = sorted(folder.glob("validate_*.json"))
    splits = {
        "train": [pair for path in train for pair in snips_file(path)],
        "test": [pair for path in test for pair in snips_file(path)],
    }
    return Texts(splits, [*train, *test])


def snips_file(path: Path) -> Split:
    """The sentences of one intent: an object {intent: [{"data": [{"text": part}, ..]}, ..]}."""
    try:
        content = strict_json.loads(path)
    except DataError:
        content = strict_json_of_latin(path)
    try:
        ((intent, sentences),) = content.items()
        joined = ["".join(part["text"] for part in sentence["data"]).strip() for sentence in sentences]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a file of SNIPS: {type(error).__name__} {error}") from error
    return [(text, str(intent)) for text in joined if text]


def strict_json_of_latin(path: Path) -> Any:
    """The JSON value of a file in ISO 8859-1, which some of SNIPS's published files are in. Raises DataError for other faults."""
    import json

    try:
        return json.loads(path.read_bytes().decode("latin-1"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from error
