"""Reader of data_full.json, an object with six splits, and of folders with other labelled sentences (`texts`)."""

from pathlib import Path
from typing import Any

import polars as pl

from buzzer.datasets import strict_json
from buzzer.datasets.clinc150 import texts
from buzzer.datasets.clinc150.texts import Split
from buzzer.datasets.contract import Progress
from buzzer.datasets.files import Files, fingerprint, new_folder, origin, present
from buzzer.datasets.lines import shown
from buzzer.errors import DataError

FILE = "data_full.json"
SPLITS = ("train", "val", "test", "oos_train", "oos_val", "oos_test")
OOS = "oos"  # label of sentences that are out of scope
OFFICIAL_ROWS = {
    "train": 15_000,
    "val": 3_000,
    "test": 4_500,
    "oos_train": 100,
    "oos_val": 100,
    "oos_test": 1_000,
}
WHERE = "`buzzer data info clinc150` says where to get the official file"


def read(path: Path) -> dict[str, Split]:
    """All splits of data_full.json, or of a folder with it or with other labelled sentences, which have none that are out of scope.

    Raises DataError for files that are missing, truncated, or have another structure.
    """
    if path.is_dir() and not present(path / FILE) and has_texts(path):
        return {name: [] for name in SPLITS} | texts.read(path).splits
    return read_official(path / FILE if path.is_dir() else path)


def has_texts(folder: Path) -> bool:
    """Whether a folder has tables or SNIPS's files."""
    return any(p.suffix in texts.SUFFIXES for p in folder.iterdir()) or any(folder.glob(texts.SNIPS))


def read_official(path: Path) -> dict[str, Split]:
    """All splits of data_full.json."""
    if not present(path):
        raise DataError(f"{path}: no such file", WHERE)
    content = strict_json.loads(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object of splits", f"expected: {', '.join(SPLITS)}")
    if missing := [name for name in SPLITS if name not in content]:
        raise DataError(f"{path}: no split {missing[0]}", f"expected: {', '.join(SPLITS)}")
    splits = {name: pairs(path, name, content[name]) for name in SPLITS}
    check_labels(path, splits)
    return splits


def pairs(path: Path, name: str, entries: Any) -> Split:
    """The entries of one split. Raises DataError unless each is [sentence, label]."""
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}, split {name}: empty, or not a list")
    for at, entry in enumerate(entries):
        valid = isinstance(entry, list) and len(entry) == 2 and all(map(is_text, entry))
        if not valid:
            raise DataError(f"{path}, split {name}, entry {at}: {shown(entry)} is not [sentence, label]")
    return [(sentence, label) for sentence, label in entries]


def is_text(value: Any) -> bool:
    """Whether a value is a string that is not blank and can be encoded as UTF-8; JSON can escape half a surrogate pair."""
    try:
        return isinstance(value, str) and bool(value.strip()) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def check_labels(path: Path, splits: dict[str, Split]) -> None:
    """Raises DataError for a label that is not in the training split, or `oos` in the wrong split."""
    train_labels = {label for _, label in splits["train"]}
    for name, entries in splits.items():
        allowed = {OOS} if name.startswith("oos") else train_labels - {OOS}
        for at, (_, label) in enumerate(entries):
            if label not in allowed:
                raise DataError(
                    f"{path}, split {name}, entry {at}: label {shown(label)} is not allowed in this split"
                )


def check(folder: Path, progress: Progress) -> Files:
    """Check all files. Raises DataError as `read` does."""
    progress(0.0, "checking sentences")
    if not present(folder / FILE) and folder.is_dir() and has_texts(folder):
        return check_texts(folder)
    splits = read(folder / FILE)
    rows = {name: len(entries) for name, entries in splits.items()}
    facts = {"intents": len({label for _, label in splits["train"]})}
    source = origin(folder, rows["test"], OFFICIAL_ROWS["test"])
    return Files(folder, fingerprint([folder / FILE], folder), rows, facts, **vars(source))


def check_texts(folder: Path) -> Files:
    """Check a folder of other labelled sentences. Its size has no official one to be compared with, so its scale is 1."""
    found = texts.read(folder)
    rows = {name: len(split) for name, split in found.splits.items()}
    facts = {"intents": len({label for _, label in found.splits["train"]})}
    names = ", ".join(path.name for path in found.files[:3]) + (", .." if len(found.files) > 3 else "")
    notes = (f"sentences of {names}, not of CLINC150", *found.notes)
    return Files(folder, fingerprint(found.files, folder), rows, facts, notes=notes)


def convert(folder: Path, out: Path, progress: Progress) -> None:
    """Check the file and write one Parquet file per split into the new folder `out`: `row`, `sentence`, `label`."""
    splits = {name: split for name, split in read(folder).items() if split}
    with new_folder(out) as partial:
        for i, (name, entries) in enumerate(splits.items()):
            progress(i / len(splits), f"writing {name}.parquet")
            table = pl.DataFrame(entries, schema=["sentence", "label"], orient="row")
            table.with_row_index("row").cast({"row": pl.Int64}).write_parquet(partial / f"{name}.parquet")
