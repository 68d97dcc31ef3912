"""Checks of the official part files, and their conversion to Parquet."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

import polars as pl

from buzzer.datasets.contract import Progress
from buzzer.datasets.files import Files, blocks, fingerprint, new_folder, opened, origin, present, refuse_rows
from buzzer.datasets.pieces import Lines, temporary
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

IDS = {"tweet": "tweet_id", "author": "engaged_with_user_id", "reader": "enaging_user_id", "lang": "language"}


def part_files(folder: Path) -> list[Path]:
    """The part files of a folder in order, each once. Raises DataError if there is none.

    lzop -d and gunzip -k keep the compressed file; if both exist, the plain file is used. Index files of .lzo are ignored.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("part-*")):  # a plain name sorts before the same name with a suffix
        if path.suffix != ".index":
            files.setdefault(path.name.removesuffix(".gz").removesuffix(".lzo"), path)
    if not files:
        raise DataError(f"{folder}: no part-* files", WHERE)
    return list(files.values())


def parts(folder: Path) -> dict[str, list[Path]]:
    """The part files of train, val, test and, if there is one, test_truth."""
    files = {name: part_files(folder / name) for name in ("train", "val", "test")}
    if os.path.lexists(folder / "test_truth"):
        files["test_truth"] = part_files(folder / "test_truth")
    return files


@contextmanager
def open_part(path: Path) -> Iterator[IO[bytes]]:
    """A part file, opened for reading bytes. A .lzo file is decompressed by the program lzop.

    Raises UnsupportedError if lzop is not installed, and DataError for a file that cannot be read.
    """
    if path.suffix != ".lzo" or not present(path):
        with opened(path) as file:
            yield file
        return
    if shutil.which("lzop") is None:
        raise UnsupportedError(
            f"{path}: compressed with LZO",
            "install lzop, or decompress the files yourself: lzop -d part-*.lzo",
        )
    with subprocess.Popen(
        ["lzop", "-dc", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        yield process.stdout
    if process.returncode:
        raise DataError(
            f"{path}: lzop cannot decompress it: the file is truncated or damaged",
            "copy or download it again",
        )


def rows_of(path: Path, kinds: Mapping[str, str]) -> Iterator[tuple[int, pl.DataFrame]]:
    """A part file in blocks of bounded memory: pairs of (line number of the first row, typed columns).

    Raises DataError with file, line and column for rows that do not match the schema.
    """
    with open_part(path) as file:
        for line, block in blocks(path, file, list(kinds), kinds, EMPTY, separator=SEPARATOR, quoted=False):
            refuse_rows(
                path,
                line,
                block,
                ~pl.col("tweet_type").is_in(TYPES),
                "tweet_type",
                f"none of {', '.join(TYPES)}",
            )
            media, medium = pl.col("present_media"), f"({'|'.join(MEDIA)})"
            unknown = ~media.str.contains(f"^{medium}(\t{medium})*$")
            refuse_rows(path, line, block, unknown, "present_media", f"none of {', '.join(MEDIA)}")
            yield line, block


def check(folder: Path, progress: Progress) -> Files:
    """Check every line of every part file, in bounded memory.

    Raises DataError that names file, line and column: for a missing folder, a wrong number of columns, a field that is not of
    its kind, and a file that is cut or empty.
    """
    by_part = parts(folder)
    files = [(name, path) for name, paths in by_part.items() for path in paths]
    rows = dict.fromkeys(by_part, 0)
    for number, (name, path) in enumerate(files):
        progress(number / len(files), f"checking {name}/{path.name}")
        rows[name] += sum(block.height for _, block in rows_of(path, PARTS[name]))
    if rows.get("test_truth", rows["test"]) != rows["test"]:
        raise DataError(f"{folder}: {rows['test_truth']} rows in test_truth, {rows['test']} in test")
    # Tweets were deleted over time, so every download is smaller than the one before.
    source = origin(folder, rows["test"], OFFICIAL_ROWS["test"], slack=0.15)
    paths = [path for _, path in files]
    learned_from = fingerprint([path for name, path in files if name in ("train", "val")], folder)
    facts: dict[str, int | str] = {"parts": len(files), "learned_from": learned_from}
    return Files(folder, fingerprint(paths, folder), rows, facts, **vars(source))


def converted(block: pl.DataFrame, first_row: int) -> pl.DataFrame:
    """A block with more columns: `row` (int64, unique in its part), the labels 0 or 1 (int8), booleans as int8, and `tweet`,
    `author`, `reader`, `lang` (int64) from the last 16 digits of the ids, as the winners shortened them."""
    columns: list[Any] = [pl.int_range(first_row, first_row + block.height, dtype=pl.Int64).alias("row")]
    columns += [short_id(name).alias(out) for out, name in IDS.items()]
    columns += [
        pl.col(name).is_not_null().cast(pl.Int8).alias(label)
        for label, name in LABELS.items()
        if name in block.columns
    ]
    return block.with_columns(columns).with_columns(pl.selectors.boolean().cast(pl.Int8))


def pieces(path: Path, folder: Path, rows: int, wanted: Callable[[], bool] = lambda: True) -> Iterator[Path]:
    """A part file as plain files of at most `rows` rows: the file itself, or pieces written into `folder`.

    A piece is deleted when the next one is requested. `wanted()` is called once per piece; if it is false, the piece is skipped.
    """
    if path.suffix not in (".gz", ".lzo") and at_most(path, rows):
        if wanted():
            yield path
        return
    with open_part(path) as file:
        lines, numbers = Lines(file), count()
        while lines.more():
            number = next(numbers)
            if not wanted():
                lines.skip(rows)
                continue
            with temporary(folder / f".{path.name}.{number}.piece", lines.take(rows)) as piece:
                yield piece


def at_most(path: Path, rows: int) -> bool:
    """Whether a file has at most `rows` lines."""
    with path.open("rb") as file:
        lines = Lines(file)
        lines.skip(rows)
        return not lines.more()


def short_id(name: str) -> pl.Expr:
    """The last 16 hexadecimal digits of an id as int64, in two's complement."""
    high, low = (
        pl.col(name).str.slice(start, 8).str.to_integer(base=16, dtype=pl.Int64) for start in (16, 24)
    )
    signed = pl.when(high >= 2**31).then(high - 2**32).otherwise(high)
    return signed * 2**32 + low


def convert(folder: Path, out: Path, progress: Progress) -> None:
    """Check each part file and write it as Parquet into the new folder `out`, in bounded memory; see `converted`."""
    import pyarrow.parquet as pq

    by_part = parts(folder)
    total, done = sum(map(len, by_part.values())), 0
    with new_folder(out) as partial:
        for name, paths in by_part.items():
            (partial / name).mkdir()
            row = 0
            for path in paths:
                progress(done / total, f"converting {name}/{path.name}")
                writer = None
                for _, block in rows_of(path, PARTS[name]):
                    table = converted(block, row).to_arrow()
                    row += block.height
                    writer = writer or pq.ParquetWriter(
                        partial / name / f"{path.name.split('.')[0]}.parquet", table.schema
                    )
                    writer.write_table(table)
                if writer is not None:
                    writer.close()
                done += 1
