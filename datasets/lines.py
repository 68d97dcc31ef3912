"""The strict contract of line-based files: blocks of whole lines that every engine takes apart in the same way.

What stands in a block is UTF-8 without control characters, without blank lines, each line ended by LF or CR LF (the last may
lack it); a quote stands only around a whole field that is not empty, and such a field holds no quote and no line end. On such lines
pandas, cuDF, Polars and pyarrow agree. Everything else is refused with its file, line and column.
"""

import re
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import polars as pl

from buzzer.errors import DataError

BLOCK_BYTES = 16 << 20
LONGEST_HEADER = 1 << 16
SHOWN = 40  # characters of a value in a message
CONTROLS = bytes(code for code in (*range(32), 127) if chr(code) not in "\n\r")
MARK = b"\xef\xbb\xbf"
PARQUET = b"PAR1"
BLANK = re.compile(rb"(?:^|\n)\r?\n")


def shown(value: object) -> str:
    """A value as a message shows it: quoted, escaped and short."""
    text = repr(value) if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def header_line(path: Path, file: IO[bytes]) -> str:
    """The first line of an open file, without its end and without a byte order mark."""
    line = file.readline(LONGEST_HEADER)
    if not line:
        raise DataError(f"{path}: the file is empty", "copy or download it again")
    text = line.removesuffix(b"\n").removesuffix(b"\r")
    if b"\r" in text and b"\0" not in text:
        raise carriage_returns(path, 1)
    try:
        if len(line) == LONGEST_HEADER or b"\0" in text:
            raise ValueError("no text")
        return text.decode("utf-8-sig")
    except ValueError as error:
        raise DataError(
            f"{path}, line 1: the header is not text", "is it gzipped without .gz at its name?"
        ) from error


def carriage_returns(path: Path, line: int) -> DataError:
    return DataError(
        f"{path}, line {line}: the line ends are carriage returns", "convert them to LF: tr '\\r' '\\n'"
    )


def line_blocks(
    path: Path, file: IO[bytes], names: Sequence[str], line: int, separator: str, quoted: bool
) -> Iterator[tuple[int, bytes]]:
    """The rest of an open file as (line number of the first, whole lines), each keeping to the contract.

    names: of the columns, for messages. Raises DataError for the first block that does not.
    """
    rest, form = b"", Form(path, names, separator.encode(), quoted)
    while data := file.read(BLOCK_BYTES):
        if data.startswith(PARQUET) and b"\0" in data[:1024]:
            raise DataError(f"{path}: a Parquet file, and not text", "`buzzer data info` shows the format")
        data = rest + data
        end = data.rfind(b"\n") + 1
        if not end and len(data) >= BLOCK_BYTES:
            if b"\r" in data:
                raise carriage_returns(path, line)
            raise DataError(f"{path}, line {line}: longer than {BLOCK_BYTES >> 20} MiB", "is it a text file?")
        whole, rest = data[:end], data[end:]
        if whole:
            form.check(line, whole)
            yield line, whole
            line += whole.count(b"\n")
    if rest:
        form.check(line, rest)
        yield line, rest + b"\n"


class Form:
    """What lines of a file must look like."""

    def __init__(self, path: Path, names: Sequence[str], separator: bytes, quoted: bool) -> None:
        self.path, self.names, self.separator, self.quoted = path, names, separator, quoted
        bare, sep = rf'[^"{re.escape(separator.decode())}]*', re.escape(separator.decode())
        self.row = rf'^(?:{bare}|"[^"]+")(?:{sep}(?:{bare}|"[^"]+"))*$'
        allowed = b"\t" + separator if not quoted else b""
        self.controls = bytes(code for code in CONTROLS if code not in allowed)

    def check(self, line: int, data: bytes) -> None:
        """Raises DataError unless all lines of the block have the form; line: number of its first."""
        if not data.isascii():
            self.check_text(line, data)
        if len(data.translate(None, self.controls)) < len(data):
            at = next(i for i, code in enumerate(data) if code in self.controls)
            raise self.told(line, data, at, f"a control character, {data[at]:#04x}")
        if b"\r" in data and data.count(b"\r") != data.count(b"\r\n"):
            lone = re.search(rb"\r(?!\n)", data)
            assert lone is not None
            raise self.told(line, data, lone.start(), "a carriage return that ends no line")
        if b"\n\n" in data or b"\n\r\n" in data or data.startswith((b"\n", b"\r\n")):
            blank = BLANK.search(data)
            assert blank is not None
            at_line = line + data.count(b"\n", 0, blank.end()) - 1
            raise DataError(f"{self.path}, line {at_line}: a blank line", "delete it")
        if (at := data.find(b'"')) >= 0:
            if not self.quoted:
                raise self.told(line, data, at, "a quote")
            self.check_quotes(line, data.decode())

    def check_text(self, line: int, data: bytes) -> None:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise self.told(line, data, error.start, "bytes that are not UTF-8") from error
        if (at := data.find(MARK)) >= 0:  # which pyarrow drops at the start of a block
            raise self.told(line, data, at, "a byte order mark")

    def check_quotes(self, line: int, text: str) -> None:
        rows = pl.Series(text.replace("\r\n", "\n").removesuffix("\n").split("\n"))
        good = rows.str.contains(self.row)
        if not good.all():
            at = int((~good).arg_max() or 0)
            column, what = stray_quote(rows[at], self.separator.decode())
            raise DataError(f"{self.path}, line {line + at}, column {self.name(column)}: {what}")

    def told(self, line: int, data: bytes, at: int, what: str) -> DataError:
        """The error of the byte `at` of a block."""
        start = data.rfind(b"\n", 0, at) + 1
        before = data[start:at]
        if self.quoted:
            before = re.sub(rb'"[^"]*("|$)', b"", before)
        column, line = self.name(before.count(self.separator)), line + data.count(b"\n", 0, at)
        return DataError(
            f"{self.path}, line {line}, column {column}: {what}",
            "`buzzer data info` shows the format",
        )

    def name(self, column: int) -> str:
        return self.names[column] if column < len(self.names) else str(column + 1)


def stray_quote(row: str, separator: str) -> tuple[int, str]:
    """Which field of a row that has not the form has a wrong quote, and what is wrong with it."""
    column, at = 0, 0
    while True:
        if row.startswith('"', at):
            end = row.find('"', at + 1)
            if end < 0:
                return column, "a quote is never closed"
            if end == at + 1 and not row.startswith('"', end + 1):
                return column, "quotes around nothing"
            at = end + 1
            if at < len(row) and row[at] != separator:
                return column, "text after the closing quote"
        else:
            end = row.find(separator, at)
            end = len(row) if end < 0 else end
            if '"' in row[at:end]:
                return column, "a quote within the field"
            at = end
        column, at = column + 1, at + 1
        if at > len(row):
            return column, "a stray quote"
