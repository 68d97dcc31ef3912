"""Reader of data_full.json: an object of six splits, each a list of [sentence, label]."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from buzzer.datasets import strict_json
from buzzer.datasets.files import Files, fingerprint, new_folder, origin, present
from buzzer.datasets.lines import shown
from buzzer.errors import DataError

FILE = "data_full.json"
SPLITS = ("train", "val", "test", "oos_train", "oos_val", "oos_test")
OOS = "oos"  # label of what is out of scope
OFFICIAL_ROWS = {
    "train": 15_000,
    "val": 3_000,
    "test": 4_500,
    "oos_train": 100,
    "oos_val": 100,
    "oos_test": 1_000,
}
WHERE = "`buzzer data info clinc150` says where the official file is"

Progress = Callable[[float, str], None]
Split = list[tuple[str, str]]


def read(path: Path) -> dict[str, Split]:
    """All splits. Raises DataError for a file that is missing, cut, or of another form."""
    if not present(path):
        raise DataError(f"{path}: no such file", WHERE)
    content = strict_json.loads(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: no JSON object of splits", f"expected: {', '.join(SPLITS)}")
    if missing := [name for name in SPLITS if name not in content]:
        raise DataError(f"{path}: no split {missing[0]}", f"expected: {', '.join(SPLITS)}")
    splits = {name: pairs(path, name, content[name]) for name in SPLITS}
    check_labels(path, splits)
    return splits


def pairs(path: Path, name: str, entries: Any) -> Split:
    """One split's entries, each checked to be [sentence, label]."""
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}, split {name}: empty, or not a list")
    for at, entry in enumerate(entries):
        good = isinstance(entry, list) and len(entry) == 2 and all(map(is_text, entry))
        if not good:
            raise DataError(f"{path}, split {name}, entry {at}: {shown(entry)} is not [sentence, label]")
    return [(sentence, label) for sentence, label in entries]


def is_text(value: Any) -> bool:
    """Whether a value is a text that is not blank and that UTF-8 can write: JSON may escape half a surrogate pair."""
    try:
        return isinstance(value, str) and bool(value.strip()) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def check_labels(path: Path, splits: dict[str, Split]) -> None:
    """Raises DataError for a label that training does not have, or the out-of-scope label in the wrong split."""
    known = {label for _, label in splits["train"]}
    for name, entries in splits.items():
        allowed = {OOS} if name.startswith("oos") else known - {OOS}
        for at, (_, label) in enumerate(entries):
            if label not in allowed:
                raise DataError(
                    f"{path}, split {name}, entry {at}: label {shown(label)} does not belong there"
                )


def check(folder: Path, progress: Progress) -> Files:
    """Check the whole file. Raises DataError as `read`."""
    progress(0.0, "checking sentences")
    splits = read(folder / FILE)
    rows = {name: len(entries) for name, entries in splits.items()}
    facts = {"intents": len({label for _, label in splits["train"]})}
    found_in = origin(folder, rows["test"], OFFICIAL_ROWS["test"])
    return Files(folder, fingerprint([folder / FILE], folder), rows, facts, **vars(found_in))


def convert(folder: Path, out: Path, progress: Progress) -> None:
    """Check and write one Parquet file a split: `row`, `sentence`, `label`."""
    splits = read(folder / FILE)
    with new_folder(out) as aside:
        for i, (name, entries) in enumerate(splits.items()):
            progress(i / len(splits), f"writing {name}.parquet")
            table = pl.DataFrame(entries, schema=["sentence", "label"], orient="row")
            table.with_row_index("row").cast({"row": pl.Int64}).write_parquet(aside / f"{name}.parquet")
