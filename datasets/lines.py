"""The strict rules for text files: blocks of whole lines that all engines parse in the same way.

A block is UTF-8 without control characters and blank lines. Each line ends with LF or CR LF; the last line may lack its end.
Quotes are allowed only around a whole field that is not empty and contains no quote and no line end. pandas, cuDF, Polars and
pyarrow read such lines alike. Everything else is refused with its file, line and column.
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
SHOWN = 40  # maximum number of characters of a value in a message
CONTROLS = bytes(code for code in (*range(32), 127) if chr(code) not in "\n\r")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PARQUET = b"PAR1"
BLANK = re.compile(rb"(?:^|\n)\r?\n")


def shown(value: object) -> str:
    """A value as messages show it: quoted, escaped and shortened."""
    text = repr(value) if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def header_line(path: Path, file: IO[bytes]) -> str:
    """The first line of an open file without its line end and byte order mark. Raises DataError if it is not text."""
    line = file.readline(LONGEST_HEADER)
    if not line:
        raise DataError(f"{path}: the file is empty", "copy or download it again")
    text = line.removesuffix(b"\n").removesuffix(b"\r")
    if b"\r" in text and b"\0" not in text:
        raise carriage_returns(path, 1)
    try:
        if len(line) == LONGEST_HEADER or b"\0" in text:
            raise ValueError("not text")
        return text.decode("utf-8-sig")
    except ValueError as error:
        raise DataError(
            f"{path}, line 1: the header is not text", "a gzipped file needs .gz at the end of its name"
        ) from error


def carriage_returns(path: Path, line: int) -> DataError:
    """The error for a file whose lines end with CR alone."""
    return DataError(
        f"{path}, line {line}: the line ends are carriage returns", "convert them to LF: tr '\\r' '\\n'"
    )


def line_blocks(
    path: Path, file: IO[bytes], names: Sequence[str], line: int, separator: str, quoted: bool
) -> Iterator[tuple[int, bytes]]:
    """The rest of an open file in blocks: pairs of (line number of the first line, whole lines as bytes).

    line: number of the next line of the file. names: of the columns, for messages. Raises DataError for the first line that
    breaks the rules.
    """
    rest, rules = b"", LineRules(path, names, separator.encode(), quoted)
    while data := file.read(BLOCK_BYTES):
        if data.startswith(PARQUET) and b"\0" in data[:1024]:
            raise DataError(f"{path}: a Parquet file, not text", "`buzzer data info` shows the format")
        data = rest + data
        end = data.rfind(b"\n") + 1
        if not end and len(data) >= BLOCK_BYTES:
            if b"\r" in data:
                raise carriage_returns(path, line)
            raise DataError(
                f"{path}, line {line}: longer than {BLOCK_BYTES >> 20} MiB", "it may not be a text file"
            )
        whole, rest = data[:end], data[end:]
        if whole:
            rules.check(line, whole)
            yield line, whole
            line += whole.count(b"\n")
    if rest:
        rules.check(line, rest)
        yield line, rest + b"\n"


class LineRules:
    """The rules for the lines of one file."""

    def __init__(self, path: Path, names: Sequence[str], separator: bytes, quoted: bool) -> None:
        self.path, self.names, self.separator, self.quoted = path, names, separator, quoted
        bare, sep = rf'[^"{re.escape(separator.decode())}]*', re.escape(separator.decode())
        self.row = rf'^(?:{bare}|"[^"]+")(?:{sep}(?:{bare}|"[^"]+"))*$'
        allowed = b"\t" + separator if not quoted else b""
        self.controls = bytes(code for code in CONTROLS if code not in allowed)

    def check(self, line: int, data: bytes) -> None:
        """Raises DataError unless all lines of the block follow the rules. line: number of its first line."""
        if not data.isascii():
            self.check_text(line, data)
        if len(data.translate(None, self.controls)) < len(data):
            at = next(i for i, code in enumerate(data) if code in self.controls)
            raise self.error(line, data, at, f"a control character, {data[at]:#04x}")
        if b"\r" in data and data.count(b"\r") != data.count(b"\r\n"):
            lone = re.search(rb"\r(?!\n)", data)
            assert lone is not None
            raise self.error(line, data, lone.start(), "a carriage return without a line feed")
        if b"\n\n" in data or b"\n\r\n" in data or data.startswith((b"\n", b"\r\n")):
            blank = BLANK.search(data)
            assert blank is not None
            at_line = line + data.count(b"\n", 0, blank.end()) - 1
            raise DataError(f"{self.path}, line {at_line}: a blank line", "delete it")
        if (at := data.find(b'"')) >= 0:
            if not self.quoted:
                raise self.error(line, data, at, "a quote")
            self.check_quotes(line, data.decode())

    def check_text(self, line: int, data: bytes) -> None:
        """Raises DataError unless the block is UTF-8 without byte order marks."""
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise self.error(line, data, error.start, "bytes that are not UTF-8") from error
        if (at := data.find(BYTE_ORDER_MARK)) >= 0:  # pyarrow drops it at the start of a block
            raise self.error(line, data, at, "a byte order mark")

    def check_quotes(self, line: int, text: str) -> None:
        """Raises DataError for a quote that does not enclose a whole field."""
        rows = pl.Series(text.replace("\r\n", "\n").removesuffix("\n").split("\n"))
        good = rows.str.contains(self.row)
        if not good.all():
            at = int((~good).arg_max() or 0)
            column, what = stray_quote(rows[at], self.separator.decode())
            raise DataError(f"{self.path}, line {line + at}, column {self.column(column)}: {what}")

    def error(self, line: int, data: bytes, at: int, what: str) -> DataError:
        """The error for byte `at` of a block that begins at `line`."""
        start = data.rfind(b"\n", 0, at) + 1
        before = data[start:at]
        if self.quoted:
            before = re.sub(rb'"[^"]*("|$)', b"", before)
        column, line = self.column(before.count(self.separator)), line + data.count(b"\n", 0, at)
        return DataError(
            f"{self.path}, line {line}, column {column}: {what}",
            "`buzzer data info` shows the format",
        )

    def column(self, column: int) -> str:
        """The name of a column, or its number from 1 if the row is too long."""
        return self.names[column] if column < len(self.names) else str(column + 1)


def stray_quote(row: str, separator: str) -> tuple[int, str]:
    """The index of the first field with a misplaced quote in an invalid row, and a description of the fault."""
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
