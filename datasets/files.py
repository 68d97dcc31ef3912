"""What every data set does with files: write complete or not at all, fingerprint, and check CSV line by line."""

import errno
import gzip
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import polars as pl

from buzzer.errors import DataError

BLOCK_BYTES = 16 << 20
PATTERNS = {
    "int64": r"^-?\d{1,18}$",
    "date": r"^\d{4}-\d{2}-\d{2}$",
    "bool": r"^(true|false)$",
    "hash": r"^[0-9A-Fa-f]{32}$",
    "hash64": r"^[0-9A-Fa-f]{64}$",
    "hashes": r"^\[('[0-9A-Fa-f]{64}'(, )?)*\]$",
    "path": r"^[0-9A-Fa-f]{64}(/[0-9A-Fa-f]{64})*$",
    "vector": r"^\[-?\d[-+.e\d]*(, -?\d[-+.e\d]*)*\]$",
    "float64": r"^-?\d{1,15}(\.\d*)?([eE][-+]?\d{1,2})?$",
    "integers": r"^\d{1,9}(\t\d{1,9})*$",
}
KINDS = {
    "int64": "a whole number",
    "date": "a date YYYY-MM-DD",
    "str": "a value",
    "bool": "true or false",
    "hash": "32 hexadecimal digits",
    "hash64": "64 hexadecimal digits",
    "hashes": "a list of 64 hexadecimal digits each",
    "path": "64 hexadecimal digits, or several with / between them",
    "vector": "a list of numbers in brackets",
    "float64": "a number",
    "integers": "whole numbers with tabs between them",
}


@dataclass(frozen=True)
class Files:
    """Input files that passed their checks."""

    folder: Path
    fingerprint: str  # sha256 over names and contents
    rows: Mapping[str, int]  # rows by file
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the check counted on the way
    source: str = "official"  # or "generated"
    scale: float = 1.0  # share of the official size, of the test part
    notes: tuple[str, ...] = ()  # on these two, for a record


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes `out` when the block ends well, and vanishes when it does not."""
    aside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        aside.mkdir(parents=True)
        yield aside
        aside.rename(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A path to write to that becomes `out` when the block ends well, and vanishes when it does not."""
    aside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        yield aside
        aside.replace(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        aside.unlink(missing_ok=True)


def cannot_write(out: Path, error: OSError) -> DataError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(
        error
    )  # Polars sets no errno
    hint = "free some space" if full else "choose another folder"
    return DataError(f"cannot write {out}: {error.strerror or error}", hint)


def fingerprint(paths: Sequence[Path], folder: Path) -> str:
    """sha256 over the names (under `folder`) and contents of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            digest.update(
                f"{path.relative_to(folder)}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()
            )
    return digest.hexdigest()


@dataclass(frozen=True)
class Origin:
    """Where files come from: the fields of `Files` that records show."""

    source: str
    scale: float
    notes: tuple[str, ...]


def origin(folder: Path, rows: int, official: int, slack: float = 0.0) -> Origin:
    """Of generated files, what their generator.json says; of others, the share that `rows` are of the `official` ones, which is 1
    where it differs by no more than `slack`. Raises DataError for a generator.json that cannot be read."""
    made = generator_facts(folder)
    if made is None:
        share = rows / official
        if abs(share - 1) <= slack:
            return Origin("official", 1.0, ())
        return Origin("official", share, (f"{rows} rows, the official files have {official}",))
    scale, test_scale = made["scale"], made.get("test_scale")
    if test_scale is None:
        return Origin("generated", scale, ())
    return Origin("generated", test_scale, (f"training parts of scale {scale:g}, test of {test_scale:g}",))


def generator_facts(folder: Path) -> dict[str, Any] | None:
    """The generator.json of generated files; None for others."""
    path = folder / "generator.json"
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_bytes())
        return facts | {
            name: float(facts[name]) for name in ("scale", "test_scale") if name in facts or name == "scale"
        }
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: not the file that the generator wrote", "generate the data again"
        ) from error


def find(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of `names` in the folder, plain or gzipped."""
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def need(folder: Path, names: Sequence[str], where: str) -> Path:
    """As `find`; raises DataError that says where to get the file."""
    path = find(folder, names)
    if path is None:
        raise DataError(f"{folder}: no {' or '.join(names)} (nor .gz)", where)
    return path


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file, gzipped or plain, as bytes; a cut gzip ends in a DataError."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: the gzip file is cut or damaged: {error}", "copy or download it again"
        ) from error


def csv_blocks(
    path: Path,
    kinds: Mapping[str, str],
    *,
    optional: Sequence[str] = (),
    empty: Sequence[str] = (),
    rowless: bool = False,
) -> Iterator[tuple[int, pl.DataFrame]]:
    """A CSV file in blocks of bounded memory: (line of the block's first row, its columns as typed).

    kinds: column -> a key of KINDS; the header may have them in any order, and those of `optional` too.
    empty: columns whose fields may be empty.  rowless: the file may have a header only.
    Raises DataError with file, line and column for the first field that is not of its kind, for a wrong header,
    a row of the wrong width, a file that is empty or ends in mid-line.
    """
    with opened(path) as file:
        names = header(path, file, kinds, optional)
        yield from blocks(path, file, names, kinds, empty, first_line=2, rowless=rowless)


def blocks(
    path: Path,
    file: IO[bytes],
    names: Sequence[str],
    kinds: Mapping[str, str],
    empty: Sequence[str] = (),
    *,
    first_line: int = 1,
    separator: str = ",",
    quoted: bool = True,
    rowless: bool = False,
) -> Iterator[tuple[int, pl.DataFrame]]:
    """As `csv_blocks`, of an open file whose next line is a row of the columns `names`.

    Blank lines are left out of quoted files, as spreadsheets add them, and are an error in others.
    """
    import pyarrow as pa
    import pyarrow.csv as pcsv

    line, whole = first_line, EndsWithNewline(file)
    read = pcsv.ReadOptions(column_names=list(names), block_size=BLOCK_BYTES, use_threads=False)
    parse = pcsv.ParseOptions(
        delimiter=separator, quote_char='"' if quoted else False, ignore_empty_lines=quoted
    )
    convert = pcsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    try:
        for batch in pcsv.open_csv(whole, read, parse, convert):
            text = pl.DataFrame(batch).select(list(kinds))
            yield line, typed(path, line, text, kinds, empty)
            line += batch.num_rows
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            if rowless:
                return
            raise DataError(f"{path}: no rows", "copy or download it again") from error
        raise DataError(
            f"{path}, {place(str(error), line, first_line)}", "is the file cut, or of another kind?"
        ) from error
    if not whole.newline_last:
        raise DataError(
            f"{path}, line {line - 1}: the last line has no end, the file is cut", "copy or download it again"
        )


def place(error: str, line: int, first_line: int) -> str:
    """pyarrow's message with the line it is about: its rows count from the first that it was given."""
    row = re.match(r"CSV parse error: Row #(\d+): (.*)", error, re.DOTALL)
    if row is None:
        return f"after line {line - 1}: {error}"
    return f"line {first_line - 1 + int(row[1])}: {row[2]}"


class EndsWithNewline:
    """A reader that remembers whether the last byte was a newline, for pyarrow to read through."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.newline_last, self.closed = file, True, False

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if data:
            self.newline_last = data.endswith(b"\n")
        return data


def header(path: Path, file: IO[bytes], kinds: Mapping[str, str], optional: Sequence[str]) -> list[str]:
    """The column names of a CSV file's first line, checked."""
    first = file.readline()
    if not first:
        raise DataError(f"{path}: the file is empty", "copy or download it again")
    try:
        names = [name.strip().strip('"') for name in first.decode("utf-8-sig").split(",")]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: the header is not text", "is it gzipped without .gz at its name?"
        ) from error
    expected = f"expected: {', '.join(kinds)}"
    if missing := [name for name in kinds if name not in names]:
        raise DataError(f"{path}: no column {missing[0]} in the header {', '.join(names)}", expected)
    if extra := [name for name in names if name not in kinds and name not in optional]:
        raise DataError(f"{path}: unknown column {extra[0]!r}", expected)
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a column stands twice in the header", expected)
    return names


def typed(
    path: Path, line: int, text: pl.DataFrame, kinds: Mapping[str, str], empty: Sequence[str]
) -> pl.DataFrame:
    """Text columns as int64, date, bool and str, with missing for empty where that is allowed."""
    columns = []
    for name, kind in kinds.items():
        column = text[name]
        good = column.str.contains(PATTERNS[kind]) if kind in PATTERNS else column != ""
        value = column
        match kind:
            case "date":
                value = column.str.to_date("%Y-%m-%d", strict=False)
                good &= value.is_not_null()
            case "int64":
                value = column.cast(pl.Int64, strict=False)
            case "float64":
                value = column.cast(pl.Float64, strict=False)
            case "bool":
                value = column == "true"
        if name in empty:
            good |= column == ""
        if not good.all():
            at = int((~good).arg_max() or 0)
            raise DataError(
                f"{path}, line {line + at}, column {name}: {column[at]!r} is not {KINDS[kind]}",
                "`buzzer data info` shows the format",
            )
        columns.append(value.set(column == "", None) if name in empty else value)
    return pl.DataFrame(columns)
