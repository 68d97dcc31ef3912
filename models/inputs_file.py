"""Real inputs of a bench model from a file: `buzzer bench --inputs FILE`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.infer import Array
from buzzer.errors import DataError, UsageError, first_line
from buzzer.models.api.bench import Batch, BenchSpec

FORMATS = {
    ".npz": "arrays with the names of the model's inputs",
    ".npy": "one array",
    ".parquet": "a table of numbers",
    ".csv": "a table of numbers with a header",
}  # a model of questions and answers also takes SQuAD's .json (models/bert/squad.py)
UNNAMED = ""  # name of the only array of a file without names
LEAST = 2  # batches of a bench
SMALL = 64 << 20  # larger files, in bytes, are not read before a run
NOTE = "inputs from {}, {:,} rows"
REPEATED = "{:,} different rows, repeated"


@dataclass(frozen=True)
class Wanted:
    """An input of a model. shape: a size for each axis, None for an axis that may have any size; axis 0 has the rows."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class GivenInputs:
    """Batches of a file, each of the same number of rows, and notes for the record."""

    batches: list[Batch]
    notes: tuple[str, ...]


def given(spec: BenchSpec, wanted: Sequence[Wanted], optional: Sequence[str] = ()) -> GivenInputs:
    """The inputs in the file `spec.file`, cut into batches of `spec.batch` rows; after the last row the first follows.

    optional: names of `wanted` that the file may lack. Raises DataError for a file that does not fit the model.
    """
    path = spec.file
    assert path is not None
    arrays = fitted(path, read(path), wanted, optional)
    rows = len(next(iter(arrays.values())))
    return GivenInputs(batches(arrays, spec), (NOTE.format(path.name, rows), *repeated(rows, spec)))


def is_small(path: Path | None) -> bool:
    """Whether there is a file that is small enough to be read before a run, to check it."""
    return path is not None and path.stat().st_size <= SMALL


def batches(arrays: Mapping[str, Array], spec: BenchSpec) -> list[Batch]:
    """Arrays [rows, ...] as batches of `spec.batch` rows, at least LEAST and at most `spec.inputs`; after the last row the first follows."""
    rows = len(next(iter(arrays.values())))
    cut: list[Batch] = []
    for number in range(min(spec.inputs, max(LEAST, -(-rows // spec.batch)))):
        at = (np.arange(spec.batch) + number * spec.batch) % rows
        cut.append({name: np.ascontiguousarray(array[at]) for name, array in arrays.items()})
    return cut


def repeated(rows: int, spec: BenchSpec) -> tuple[str, ...]:
    """A note if a batch has rows more than once."""
    return (REPEATED.format(rows),) if rows < spec.batch else ()


def read(path: Path) -> dict[str, Array]:
    """The arrays of a file by name, or one array named UNNAMED. Raises UsageError for another kind of file, DataError for a damaged one."""
    if path.suffix not in FORMATS:
        known = ", ".join(f"{suffix}: {what}" for suffix, what in FORMATS.items())
        raise UsageError(f"--inputs {path}: neither a number nor a kind of file with inputs", known)
    try:
        if path.suffix in (".npz", ".npy"):
            loaded = np.load(path, allow_pickle=False)
            return {UNNAMED: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        import polars as pl

        if path.suffix == ".csv":
            check_lines(path)
            table = pl.read_csv(path)
        else:
            table = pl.read_parquet(path)
        if odd := [
            name for name, kind in table.schema.items() if not (kind.is_numeric() or kind == pl.Boolean)
        ]:
            raise DataError(f"{path}: column {odd[0][:80]!r} has no numbers", "leave out such columns")
        return {UNNAMED: table.cast(pl.Float64).to_numpy()}
    except DataError:
        raise
    except Exception as error:  # zipfile, NumPy and Polars raise many types
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from error


def check_lines(path: Path) -> None:
    """Raises DataError for a CSV file without a header, and for a line with another number of fields."""
    with path.open("rb") as file:
        header = file.readline().rstrip(b"\r\n").split(b",")
        if all(map(is_number, header)):
            raise DataError(f"{path}: the first line has numbers", "its first line must be a header")
        for number, line in enumerate(file, 2):
            if line.strip() and (fields := line.count(b",") + 1) != len(header):
                raise DataError(f"{path}, line {number}: {fields} fields, the header has {len(header)}")


def is_number(field: bytes) -> bool:
    """Whether a field of a CSV file is a number."""
    try:
        float(field)
    except ValueError:
        return False
    return True


def fitted(
    path: Path, arrays: Mapping[str, Array], wanted: Sequence[Wanted], optional: Sequence[str]
) -> dict[str, Array]:
    """The arrays in the order and types of the model's inputs. Raises DataError for arrays that the model cannot take."""
    if set(arrays) == {UNNAMED} and len(wanted) == 1:
        arrays = {wanted[0].name: arrays[UNNAMED]}
    names = ", ".join(entry.name for entry in wanted)
    if missing := [entry.name for entry in wanted if entry.name not in {*arrays, *optional}]:
        raise DataError(f"{path}: no array {missing[0]}", f"the model's inputs: {names}")
    if foreign := sorted(arrays.keys() - {entry.name for entry in wanted}):
        raise DataError(f"{path}: the model has no input {foreign[0][:80]!r}", f"its inputs: {names}")
    converted = {
        entry.name: as_input(path, arrays[entry.name], entry) for entry in wanted if entry.name in arrays
    }
    if len(rows := {len(array) for array in converted.values()}) > 1 or 0 in rows:
        raise DataError(f"{path}: the arrays have {sorted(rows)} rows; all need the same number, at least 1")
    return converted


def as_input(path: Path, array: Array, wanted: Wanted) -> Array:
    """An array in the type of an input. Raises DataError if its shape or type is not that of the input."""
    described = f"{path}: {wanted.name} is {array.dtype} {list(array.shape)}"
    sizes = ["rows", *("any" if size is None else str(size) for size in wanted.shape[1:])]
    expected = f"the model takes {wanted.dtype} [{', '.join(sizes)}]"
    fits = array.ndim == len(wanted.shape) > 0 and all(
        size in (None, have) for size, have in zip(wanted.shape[1:], array.shape[1:], strict=True)
    )
    text = wanted.dtype.kind == "U"
    if not fits or text != (array.dtype.kind == "U"):
        raise DataError(described, expected)
    if text:
        return array
    whole = wanted.dtype.kind in "iu" and array.dtype.kind == "f"  # tables are read as float64
    if not np.can_cast(array.dtype, wanted.dtype, "same_kind") and not whole:
        raise DataError(described, expected)
    with np.errstate(invalid="ignore", over="ignore"):
        converted = array.astype(wanted.dtype)
    if wanted.dtype.kind != "f" and not np.array_equal(converted, array):
        raise DataError(f"{described}, and some values are beyond {wanted.dtype}", expected)
    return converted
