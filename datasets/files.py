"""What every data set does with files: write complete or not at all, fingerprint, and check CSV line by line."""

import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import polars as pl

from buzzer.datasets.lines import header_line, line_blocks, shown
from buzzer.errors import DataError

# Digits are those of ASCII: \d would match those of every script, which engines then read as missing.
NUMBER = r"[0-9]{1,15}(\.[0-9]{1,30})?"
COMPONENT = rf"-?{NUMBER}([eE](-[0-9]{{1,2}}|\+?[01]?[0-9]))?"  # of a vector: within float32
TOKEN = "(0|[1-9][0-9]{0,4}|1(0[0-9]{4}|1([0-8][0-9]{3}|9([0-4][0-9]{2}|5([0-3][0-9]|4[0-6])))))"
PATTERNS = {
    "int64": r"^-?[0-9]{1,18}$",
    "date": r"^(19|20)[0-9]{2}-[0-9]{2}-[0-9]{2}$",
    "bool": r"^(true|false)$",
    "bit": r"^[01]$",
    "hash": r"^[0-9A-Fa-f]{32}$",
    "hash64": r"^[0-9A-Fa-f]{64}$",
    "hashes": r"^\[('[0-9A-Fa-f]{64}'(, '[0-9A-Fa-f]{64}')*)?\]$",
    "path": r"^[0-9A-Fa-f]{64}(/[0-9A-Fa-f]{64})*$",
    "vector": rf"^\[{COMPONENT}(, {COMPONENT})*\]$",
    "float64": rf"^-?{NUMBER}([eE][-+]?[0-9]{{1,2}})?$",
    "chance": r"^([0-9]{1,15}(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?$",
    "tokens": rf"^{TOKEN}(\t{TOKEN})*$",
}
KINDS = {
    "int64": "a whole number",
    "date": "a date YYYY-MM-DD of 1900 to 2099",
    "str": "a value",
    "bool": "true or false",
    "bit": "0 or 1",
    "hash": "32 hexadecimal digits",
    "hash64": "64 hexadecimal digits",
    "hashes": "a list of 64 hexadecimal digits each",
    "path": "64 hexadecimal digits, or several with / between them",
    "vector": "a list of numbers in brackets",
    "float64": "a number",
    "chance": "a number from 0 to 1",
    "tokens": "token ids of 0 to 119546 with tabs between them",
}


WRITING = (OSError, pl.exceptions.ComputeError)  # what a full disk raises
FULL = re.compile("No space left|transport error")


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
    except WRITING as error:
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
    except WRITING as error:
        raise cannot_write(out, error) from error
    finally:
        aside.unlink(missing_ok=True)


def cannot_write(out: Path, error: Exception) -> Exception:
    """What is said of an error met while writing; the error itself where it is another of Polars'."""
    text = str(error)
    if not isinstance(error, OSError) and not text.startswith("parquet:"):
        return error
    # Polars sets no errno, and of a full disk may tell the last link of the chain only.
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or bool(FULL.search(text))
    hint = "free some space" if full else "choose another folder"
    return DataError(f"cannot write {out}: {getattr(error, 'strerror', None) or shown(text)}", hint)


def fingerprint(paths: Sequence[Path], folder: Path) -> str:
    """sha256 over the names (under `folder`) and contents of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(os.fsencode(path.relative_to(folder)) + f"\0{content}\n".encode())
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
    if not present(path):
        return None
    with opened(path) as file:
        data = file.read()
    try:
        facts = json.loads(data.decode())
        for name in ("scale", "test_scale"):
            if name in facts or name == "scale":
                facts[name] = float(facts[name])
                if not 0 < facts[name] < math.inf:
                    raise ValueError(f"{name} is {facts[name]}")
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{path}: not the file that the generator wrote", "generate the data again"
        ) from error
    return facts


def present(path: Path) -> bool:
    """Whether a file has this path. Raises DataError where something else has it: a folder, a pipe, a broken link."""
    if not os.path.lexists(path):
        return False
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "is it a broken link?") from error
    if not regular:
        raise DataError(f"{path}: not a regular file", "a folder, a pipe or a device has its name")
    return True


def find(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of `names` in the folder, plain or gzipped."""
    paths = (folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz"))
    return next(filter(present, paths), None)


def need(folder: Path, names: Sequence[str], where: str) -> Path:
    """As `find`; raises DataError that says where to get the file."""
    path = find(folder, names)
    if path is None:
        raise DataError(f"{folder}: no {' or '.join(names)} (nor .gz)", where)
    return path


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file, gzipped or plain, as bytes. Raises DataError for one that is missing or cannot be opened, and for a cut gzip."""
    if not present(path):
        raise DataError(f"{path}: no such file")
    try:
        raw = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "may you read it?") from error
    with raw, io.BufferedReader(Members(raw), 1 << 16) if path.suffix == ".gz" else raw as file:
        try:
            yield file
        except (EOFError, zlib.error) as error:
            raise DataError(
                f"{path}: the gzip file is cut or damaged: {error}", "copy or download it again"
            ) from error


class Members(io.RawIOBase):
    """A gzip file's content: whole members one after the other, and nothing else. Python's own reader passes over zeros
    between and after them, at which those of the engines stop."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._waiting, self._member = file, b"", zlib.decompressobj(wbits=31)
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            data = self._waiting or self._file.read(1 << 16)
            if not data:
                if self._begun:
                    raise EOFError("it ends within a member")
                return 0
            if self._member.eof:
                self._member = zlib.decompressobj(wbits=31)
            found = self._member.decompress(data, len(buffer))
            self._waiting = self._member.unused_data or self._member.unconsumed_tail
            self._begun = not self._member.eof
            if found:
                buffer[: len(found)] = found
                return len(found)


def csv_blocks(
    path: Path,
    kinds: Mapping[str, str],
    *,
    optional: Sequence[str] = (),
    empty: Sequence[str] = (),
    rowless: bool = False,
    separator: str = ",",
) -> Iterator[tuple[int, pl.DataFrame]]:
    """A CSV file in blocks of bounded memory: (line of the block's first row, its columns as typed).

    kinds: column -> a key of KINDS; the header may have them in any order, and those of `optional` too.
    empty: columns whose fields may be empty.  rowless: the file may have a header only.
    Raises DataError with file, line and column for what breaks the contract of `lines.py`, for the first field that is not of
    its kind, for a wrong header, a row of the wrong width, an empty file.
    """
    with opened(path) as file:
        names = header(path, file, kinds, optional, separator)
        yield from blocks(path, file, names, kinds, empty, first_line=2, rowless=rowless, separator=separator)


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
    """As `csv_blocks`, of an open file whose next line is a row of the columns `names`."""
    rows = 0
    for line, data in line_blocks(path, file, names, first_line, separator, quoted):
        yield line, typed(path, line, fields(path, line, data, names, separator, quoted), kinds, empty)
        rows += 1
    if not rows and not rowless:
        raise DataError(f"{path}: no rows", "copy or download it again")


def fields(
    path: Path, line: int, data: bytes, names: Sequence[str], separator: str, quoted: bool
) -> pl.DataFrame:
    """The fields of a block of lines as text. Raises DataError for a row of the wrong width."""
    import pyarrow as pa
    import pyarrow.csv as pcsv

    read = pcsv.ReadOptions(column_names=list(names), block_size=len(data) + 1, use_threads=False)
    parse = pcsv.ParseOptions(
        delimiter=separator, quote_char='"' if quoted else False, ignore_empty_lines=False
    )
    convert = pcsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    try:
        return pl.DataFrame(pcsv.read_csv(io.BytesIO(data), read, parse, convert))
    except pa.ArrowInvalid as error:
        width = re.search(r"Row #(\d+): (Expected \d+ columns, got \d+)", str(error))
        if width is None:  # none is known that passes the checks before
            raise DataError(f"{path}, after line {line - 1}: {shown(str(error))}") from error
        raise DataError(
            f"{path}, line {line - 1 + int(width[1])}: {width[2]}", "is the file cut, or of another kind?"
        ) from error


def header(
    path: Path, file: IO[bytes], kinds: Mapping[str, str], optional: Sequence[str], separator: str = ","
) -> list[str]:
    """The column names of a CSV file's first line, checked. They may be in quotes."""
    names = [
        name[1:-1] if len(name) > 1 and name[0] == name[-1] == '"' else name
        for name in header_line(path, file).split(separator)
    ]
    expected = f"expected: {separator.join(kinds)}"
    unknown = [name for name in names if name not in kinds and name not in optional]
    if spaced := [name.strip() for name in unknown if name.strip() in kinds]:
        raise DataError(f"{path}, line 1: spaces around {spaced[0]} in the header", expected)
    if missing := [name for name in kinds if name not in names]:
        raise DataError(f"{path}, line 1: no column {missing[0]} in the header", expected)
    if unknown:
        raise DataError(f"{path}, line 1: unknown column {shown(unknown[0])} in the header", expected)
    if len(set(names)) < len(names):
        raise DataError(f"{path}, line 1: a column stands twice in the header", expected)
    return names


def typed(
    path: Path, line: int, text: pl.DataFrame, kinds: Mapping[str, str], empty: Sequence[str]
) -> pl.DataFrame:
    """Text columns as int64, date, float64, bool and str, with missing for empty where that is allowed."""
    columns = []
    for name, kind in kinds.items():
        column = text[name]
        value = column
        good = column.str.contains(PATTERNS[kind]) if kind in PATTERNS else column != ""
        match kind:
            case "date":
                value = column.str.to_date("%Y-%m-%d", strict=False)
                good &= value.is_not_null()
            case "int64" | "bit":
                value = column.cast(pl.Int64, strict=False)
                good &= value.is_not_null()
            case "float64" | "chance":
                value = column.cast(pl.Float64, strict=False)
                good &= value.is_finite().fill_null(False)
                if kind == "chance":
                    good &= value.is_between(0, 1)
            case "bool":
                value = column == "true"
        if name in empty:
            good |= column == ""
        if not good.all():
            at = int((~good).arg_max() or 0)
            raise DataError(
                f"{path}, line {line + at}, column {name}: {shown(column[at])} is not {KINDS[kind]}",
                "`buzzer data info` shows the format",
            )
        columns.append(value.set(column == "", None) if name in empty else value)
    return pl.DataFrame(columns)


def scan(path: Path, kinds: Mapping[str, str], separator: str = ",") -> pl.LazyFrame:
    """A checked CSV file as a lazy frame of typed columns."""
    types: dict[str, Any] = {"int64": pl.Int64, "float64": pl.Float64, "date": pl.Date}
    overrides = {name: types.get(kind, pl.String) for name, kind in kinds.items()}
    t = pl.scan_csv(path, separator=separator, schema_overrides=overrides, infer_schema=False)
    return t.select(list(kinds))
