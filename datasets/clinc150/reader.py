"""Reader of data_full.json, an object with six splits. A split is a list of [sentence, label]."""

from pathlib import Path
from typing import Any

import polars as pl

from buzzer.datasets import strict_json
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

Split = list[tuple[str, str]]


def read(path: Path) -> dict[str, Split]:
    """All splits. Raises DataError for a file that is missing, truncated, or has another structure."""
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
    """Check the whole file. Raises DataError as `read` does."""
    progress(0.0, "checking sentences")
    splits = read(folder / FILE)
    rows = {name: len(entries) for name, entries in splits.items()}
    facts = {"intents": len({label for _, label in splits["train"]})}
    source = origin(folder, rows["test"], OFFICIAL_ROWS["test"])
    return Files(folder, fingerprint([folder / FILE], folder), rows, facts, **vars(source))


def convert(folder: Path, out: Path, progress: Progress) -> None:
    """Check the file and write one Parquet file per split into the new folder `out`: `row`, `sentence`, `label`."""
    splits = read(folder / FILE)
    with new_folder(out) as partial:
        for i, (name, entries) in enumerate(splits.items()):
            progress(i / len(splits), f"writing {name}.parquet")
            table = pl.DataFrame(entries, schema=["sentence", "label"], orient="row")
            table.with_row_index("row").cast({"row": pl.Int64}).write_parquet(partial / f"{name}.parquet")
