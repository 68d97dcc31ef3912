"""Reader of the official part files: checks, and conversion to Parquet."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import IO, Any

import polars as pl

from buzzer.datasets.files import Files, blocks, fingerprint, new_folder, opened, origin, present
from buzzer.datasets.lines import shown
from buzzer.datasets.recsys2021.schema import (
    EMPTY,
    LABELS,
    MEDIA,
    OFFICIAL_ROWS,
    PARTS,
    SEPARATOR,
    TYPES,
    WHERE,
)
from buzzer.errors import DataError, UnsupportedError

Progress = Callable[[float, str], None]
IDS = {"tweet": "tweet_id", "author": "engaged_with_user_id", "reader": "enaging_user_id", "lang": "language"}


def part_files(folder: Path) -> list[Path]:
    """The part files of a folder, in order, each once: lzop -d and gunzip -k leave the compressed file beside the plain
    one, which is preferred. Indices of .lzo files are left aside."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("part-*")):  # a plain name sorts before the same with a suffix
        if path.suffix != ".index":
            found.setdefault(path.name.removesuffix(".gz").removesuffix(".lzo"), path)
    if not found:
        raise DataError(f"{folder}: no part-* files", WHERE)
    return list(found.values())


def parts(folder: Path) -> dict[str, list[Path]]:
    """Part files by data set part: train, val, test, and test_truth where it is there."""
    found = {name: part_files(folder / name) for name in ("train", "val", "test")}
    if os.path.lexists(folder / "test_truth"):
        found["test_truth"] = part_files(folder / "test_truth")
    return found


@contextmanager
def open_part(path: Path) -> Iterator[IO[bytes]]:
    """A part file as bytes; .lzo through the program lzop."""
    if path.suffix != ".lzo" or not present(path):
        with opened(path) as file:
            yield file
        return
    if shutil.which("lzop") is None:
        raise UnsupportedError(
            f"{path}: compressed by LZO", "install lzop, or decompress the files yourself: lzop -d part-*.lzo"
        )
    with subprocess.Popen(
        ["lzop", "-dc", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        yield process.stdout
    if process.returncode:
        raise DataError(
            f"{path}: lzop cannot decompress it, the file is cut or damaged", "copy or download it again"
        )


def rows_of(path: Path, kinds: Mapping[str, str]) -> Iterator[tuple[int, pl.DataFrame]]:
    """A part file in blocks of bounded memory: (line of the first row, typed columns).

    Raises DataError with file, line and column for whatever is off the schema.
    """
    with open_part(path) as file:
        for line, block in blocks(path, file, list(kinds), kinds, EMPTY, separator=SEPARATOR, quoted=False):
            among(
                path,
                line,
                block,
                "tweet_type",
                block["tweet_type"].is_in([*TYPES]) | block["tweet_type"].is_null(),
            )
            media = block["present_media"].str.contains(f"^({'|'.join(MEDIA)})(\t({'|'.join(MEDIA)}))*$")
            among(path, line, block, "present_media", media | block["present_media"].is_null())
            yield line, block


def among(path: Path, line: int, block: pl.DataFrame, column: str, good: pl.Series) -> None:
    """Raises DataError for the first value that is not one of the known."""
    if not good.all():
        at = int((~good).arg_max() or 0)
        known = ", ".join(TYPES if column == "tweet_type" else MEDIA)
        raise DataError(
            f"{path}, line {line + at}, column {column}: {shown(block[column][at])} is none of {known}"
        )


def check(folder: Path, progress: Progress) -> Files:
    """Check every line of every part file, in bounded memory.

    Raises DataError that names file, line and column: a missing folder, a wrong number of columns, a field that is not of
    its kind, a file that is cut or empty.
    """
    found = parts(folder)
    files = [(name, path) for name, paths in found.items() for path in paths]
    rows = dict.fromkeys(found, 0)
    for number, (name, path) in enumerate(files):
        progress(number / len(files), f"checking {name}/{path.name}")
        rows[name] += sum(block.height for _, block in rows_of(path, PARTS[name]))
    if rows.get("test_truth", rows["test"]) != rows["test"]:
        raise DataError(f"{folder}: {rows['test_truth']} rows in test_truth, {rows['test']} in test")
    found_in = origin(
        folder, rows["test"], OFFICIAL_ROWS["test"], slack=0.15
    )  # deleted tweets made every copy smaller
    paths = [path for _, path in files]
    learned_from = fingerprint([path for name, path in files if name in ("train", "val")], folder)
    facts = {"parts": len(files), "learned_from": learned_from}
    return Files(folder, fingerprint(paths, folder), rows, facts, **vars(found_in))


def converted(block: pl.DataFrame, first_row: int) -> pl.DataFrame:
    """A block with `row` (int64, unique in its part of the set), labels 0 or 1 as int8, truth values as int8, and int64
    `tweet`, `author`, `reader`, `lang` from the last 16 digits of their ids, as the winners shortened them."""
    columns: list[Any] = [pl.int_range(first_row, first_row + block.height, dtype=pl.Int64).alias("row")]
    columns += [short_id(name).alias(out) for out, name in IDS.items()]
    columns += [
        pl.col(name).is_not_null().cast(pl.Int8).alias(label)
        for label, name in LABELS.items()
        if name in block.columns
    ]
    return block.with_columns(columns).with_columns(pl.selectors.boolean().cast(pl.Int8))


def pieces(path: Path, folder: Path, rows: int, wanted: Callable[[], bool] = lambda: True) -> Iterator[Path]:
    """A part file as plain files of at most `rows` rows: itself, or pieces written into `folder`, each gone when the next is
    asked for. `wanted` is asked once a piece; the others are passed over."""
    if path.suffix not in (".gz", ".lzo") and at_most(path, rows):
        if wanted():
            yield path
        return
    with open_part(path) as file:
        for number in count():
            lines = list(islice(file, rows))
            if not lines:
                return
            if not wanted():
                continue
            piece = folder / f".{path.name}.{number}.piece"
            try:
                piece.write_bytes(b"".join(lines))
                yield piece
            finally:
                piece.unlink(missing_ok=True)


def at_most(path: Path, rows: int) -> bool:
    """Whether a file has no more lines than `rows`."""
    with path.open("rb") as file:
        return next(islice(file, rows, None), None) is None


def short_id(name: str) -> pl.Expr:
    """The last 16 hexadecimal digits as int64 (two's complement)."""
    high, low = (
        pl.col(name).str.slice(start, 8).str.to_integer(base=16, dtype=pl.Int64) for start in (16, 24)
    )
    signed = pl.when(high >= 2**31).then(high - 2**32).otherwise(high)
    return signed * 2**32 + low


def convert(folder: Path, out: Path, progress: Progress) -> None:
    """Check and write one Parquet file a part file, in bounded memory; see `converted`."""
    import pyarrow.parquet as pq

    found = parts(folder)
    total, done = sum(map(len, found.values())), 0
    with new_folder(out) as aside:
        for name, paths in found.items():
            (aside / name).mkdir()
            row = 0
            for path in paths:
                progress(done / total, f"converting {name}/{path.name}")
                writer = None
                for _, block in rows_of(path, PARTS[name]):
                    table = converted(block, row).to_arrow()
                    row += block.height
                    writer = writer or pq.ParquetWriter(
                        aside / name / f"{path.name.split('.')[0]}.parquet", table.schema
                    )
                    writer.write_table(table)
                if writer is not None:
                    writer.close()
                done += 1
