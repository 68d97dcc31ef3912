"""Files of all data sets: atomic writes, fingerprints, and checks of CSV files line by line."""

import errno
import hashlib
import io
import os
import re
import shutil
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from buzzer.datasets.lines import header_line, line_blocks, shown
from buzzer.errors import DataError, disk_full

# Only ASCII digits: \d also matches digits of other scripts, which engines read as missing.
NUMBER = r"[0-9]{1,15}(\.[0-9]{1,30})?"
COMPONENT = (
    rf"-?{NUMBER}([eE](-[0-9]{{1,2}}|\+?[01]?[0-9]))?"  # a value of a vector, within the range of float32
)
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
    "hashes": "a list of hashes of 64 hexadecimal digits",
    "path": "hashes of 64 hexadecimal digits with / between them",
    "vector": "a list of numbers in brackets",
    "float64": "a number",
    "chance": "a number from 0 to 1",
    "tokens": "token ids of 0 to 119546 with tabs between them",
}

WRITE_ERRORS = (OSError, pl.exceptions.ComputeError)  # the errors that a full disk causes
Facts = TypeVar("Facts", bound="GeneratorFacts")


@dataclass(frozen=True)
class Files:
    """Input files that passed their checks."""

    folder: Path
    fingerprint: str  # sha256 over names and contents
    rows: Mapping[str, int]  # part -> number of rows
    facts: Mapping[str, int | str] = field(default_factory=dict)  # other results of the check, by name
    source: str = "official"  # or "generated"
    scale: float = 1.0  # size of the test part relative to the official one
    # The same of the training part, if it is a sample of the part of this scale.
    train_scale: float | None = None
    notes: tuple[str, ...] = ()  # remarks on source and scale for a record


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `out` when the block succeeds and removed when it fails.

    Raises DataError if the files cannot be written, or if another process has written `out` in the meantime.
    """
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(out)
    except WRITE_ERRORS as error:
        if getattr(error, "errno", None) in (errno.ENOTEMPTY, errno.EEXIST):
            raise DataError(f"{out} exists", "another process has written it") from error
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A temporary path that is renamed to `out` when the block succeeds and removed when it fails.

    Raises DataError if the file cannot be written.
    """
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(out)
    except WRITE_ERRORS as error:
        raise cannot_write(out, error) from error
    finally:
        partial.unlink(missing_ok=True)


def cannot_write(out: Path, error: Exception) -> Exception:
    """The DataError for an error during a write; the error itself if it is not about writing."""
    text = str(error)
    if not isinstance(error, OSError) and not text.startswith("parquet:"):
        return error
    # The message of Polars may contain only the last error of a chain.
    full = disk_full(error) or "transport error" in text
    hint = "free some space" if full else "choose another folder"
    return DataError(f"cannot write {out}: {getattr(error, 'strerror', None) or shown(text)}", hint)


def fingerprint(paths: Sequence[Path], folder: Path) -> str:
    """The sha256 over the names (relative to `folder`) and contents of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(os.fsencode(path.relative_to(folder)) + f"\0{content}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Origin:
    """Source, scale and notes of files, as in `Files`."""

    source: str
    scale: float
    notes: tuple[str, ...]
    train_scale: float | None = None


class GeneratorFacts(BaseModel):
    """The fields of generator.json that are read later."""

    model_config = ConfigDict(allow_inf_nan=False)

    scale: float = Field(gt=0)
    train_scale: float | None = Field(default=None, gt=0)
    test_scale: float | None = Field(default=None, gt=0)


def origin(folder: Path, rows: int, official: int, slack: float = 0.0) -> Origin:
    """The origin of the files in a folder. The scale is in generator.json; without this file it is `rows` divided by `official`.

    A scale that differs from 1 by at most `slack` counts as 1. Raises DataError for a generator.json that cannot be read.
    """
    facts = generator_facts(folder, GeneratorFacts)
    if facts is None:
        share = rows / official
        if abs(share - 1) <= slack:
            return Origin("official", 1.0, ())
        return Origin("official", share, (f"{rows} rows, the official files have {official}",))
    notes = []
    if facts.train_scale is not None:
        notes.append(
            f"training part: {facts.train_scale:g} of the official rows, a sample of scale {facts.scale:g}"
        )
    if facts.test_scale is not None:
        notes.append(f"training parts of scale {facts.scale:g}, test of {facts.test_scale:g}")
    return Origin("generated", facts.test_scale or facts.scale, tuple(notes), facts.train_scale)


def generator_facts(folder: Path, model: type[Facts]) -> Facts | None:
    """The generator.json in a folder, read by a pydantic model; None for files that were not generated."""
    path = folder / "generator.json"
    if not present(path):
        return None
    with opened(path) as file:
        data = file.read()
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise DataError(
            f"{path}: not the file that the generator wrote", "generate the data again"
        ) from error


def present(path: Path) -> bool:
    """Whether the path is a file. Raises DataError for a folder, a pipe, a device or a broken link."""
    if not os.path.lexists(path):
        return False
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "is it a broken link?") from error
    if not regular:
        raise DataError(f"{path}: not a regular file", "it is a folder, a pipe or a device")
    return True


def find(folder: Path, names: Sequence[str]) -> Path | None:
    """The first file of the folder that has one of `names`, plain or with .gz; None if there is none."""
    paths = (folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz"))
    return next(filter(present, paths), None)


def need(folder: Path, names: Sequence[str], where: str) -> Path:
    """Like `find`, but raises DataError with the hint `where` if there is no such file."""
    path = find(folder, names)
    if path is None:
        raise DataError(f"{folder}: no {' or '.join(names)} (nor .gz)", where)
    return path


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A gzipped or plain file, opened for reading bytes.

    Raises DataError if it is missing or cannot be opened, and for a gzip file that is truncated or damaged.
    """
    if not present(path):
        raise DataError(f"{path}: no such file")
    try:
        raw = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "check its permissions") from error
    with raw, io.BufferedReader(GzipMembers(raw), 1 << 16) if path.suffix == ".gz" else raw as file:
        try:
            yield file
        except (EOFError, zlib.error) as error:
            raise DataError(
                f"{path}: the gzip file is truncated or damaged: {error}", "copy or download it again"
            ) from error


class GzipMembers(io.RawIOBase):
    """The content of a gzip file of complete members and nothing else.

    Python's gzip module skips zeros between and after members, where the readers of the engines stop.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._unread, self._member = file, b"", zlib.decompressobj(wbits=31)
        self._inside_member = False

    def readable(self) -> bool:
        """True, as io.RawIOBase requires."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer. Returns the number of bytes, 0 at the end. Raises EOFError if the file ends inside a member."""
        while True:
            data = self._unread or self._file.read(1 << 16)
            if not data:
                if self._inside_member:
                    raise EOFError("the file ends inside a member")
                return 0
            if self._member.eof:
                self._member = zlib.decompressobj(wbits=31)
            content = self._member.decompress(data, len(buffer))
            self._unread = self._member.unused_data or self._member.unconsumed_tail
            self._inside_member = not self._member.eof
            if content:
                buffer[: len(content)] = content
                return len(content)


def csv_blocks(
    path: Path,
    kinds: Mapping[str, str],
    *,
    optional: Sequence[str] = (),
    empty: Sequence[str] = (),
    rowless: bool = False,
    separator: str = ",",
) -> Iterator[tuple[int, pl.DataFrame]]:
    """A CSV file in blocks of bounded memory: pairs of (line number of the first row, typed columns).

    kinds: a key of KINDS for each column. The header may have the columns in any order, and also the columns of `optional`.
    empty: columns whose fields may be empty. rowless: the file may have no row after the header.
    Raises DataError with file, line and column for the first field that is not of its kind or breaks the rules of `lines.py`,
    for a wrong header, a row of the wrong width, and an empty file.
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
    """Like `csv_blocks`, but from an open file whose next line is a row with the columns `names`."""
    count = 0
    for line, data in line_blocks(path, file, names, first_line, separator, quoted):
        yield line, typed(path, line, fields(path, line, data, names, separator, quoted), kinds, empty)
        count += 1
    if not count and not rowless:
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
        if width is None:  # earlier checks report all other known faults
            raise DataError(f"{path}, after line {line - 1}: {shown(str(error))}") from error
        raise DataError(
            f"{path}, line {line - 1 + int(width[1])}: {width[2]}",
            "the file may be truncated, or a different kind of file",
        ) from error


def header(
    path: Path, file: IO[bytes], kinds: Mapping[str, str], optional: Sequence[str], separator: str = ","
) -> list[str]:
    """The column names in the first line of a CSV file, without their quotes.

    Raises DataError for a missing, unknown or repeated column.
    """
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
        raise DataError(f"{path}, line 1: a column occurs twice in the header", expected)
    return names


def typed(
    path: Path, line: int, text: pl.DataFrame, kinds: Mapping[str, str], empty: Sequence[str]
) -> pl.DataFrame:
    """Text columns converted to int64, date, float64, bool and str; an empty field becomes missing in the columns `empty`.

    Raises DataError with line and column of the first invalid field.
    """
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


def refuse_rows(path: Path, line: int, block: pl.DataFrame, bad: pl.Expr, column: str, what: str) -> None:
    """Raises DataError for the first row of a block for which `bad` is true; missing counts as false.

    line: of the first row. column: whose value the message shows. what: the end of the message, "VALUE is ...".
    """
    flags = block.select(bad.fill_null(False).alias("bad"))["bad"]
    if flags.any():
        at = int(flags.arg_max() or 0)
        value = block[column][at]
        text = shown(value) if isinstance(value, str) else "nothing" if value is None else str(value)
        raise DataError(f"{path}, line {line + at}, column {column}: {text} is {what}")


def append_csv(file: IO[bytes], table: pl.DataFrame) -> None:
    """Append rows to a CSV file, with a header if the file is empty."""
    table.write_csv(file, include_header=file.tell() == 0)


def scan(path: Path, kinds: Mapping[str, str], separator: str = ",") -> pl.LazyFrame:
    """A checked CSV file as a lazy frame with typed columns."""
    types: dict[str, type[pl.DataType]] = {"int64": pl.Int64, "float64": pl.Float64, "date": pl.Date}
    overrides = {name: types.get(kind, pl.String) for name, kind in kinds.items()}
    t = pl.scan_csv(path, separator=separator, schema_overrides=overrides, infer_schema=False)
    return t.select(list(kinds))
