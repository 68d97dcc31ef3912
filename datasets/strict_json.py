"""JSON without the liberties of Python's reader: no NaN or Infinity, no key twice, no bad UTF-8, nothing after the end."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from buzzer.datasets.files import opened
from buzzer.datasets.lines import shown
from buzzer.errors import DataError

CHUNK = 1 << 20  # bytes
LONGEST = 64 << 20  # characters of an object in a list
SPACE = re.compile(r"[ \t\n\r]*")
AGAIN = "copy or download it again"


def loads(path: Path) -> Any:
    """The one JSON value that a file holds. Raises DataError, with line and column where there is one."""
    with opened(path) as file:
        reader = Reader(path, file)
        reader.longest = path.stat().st_size
        found = reader.value("not JSON, or cut")
        reader.end()
    return found


def objects(path: Path, *, known: bool = False) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list, in memory for one of them and a chunk. known: the file has passed its check, so that keys and
    constants need not be looked at again.

    Raises DataError, with line and column where there is one, for a file that is missing, cut, or no list of objects.
    """
    return (item for _, item in numbered(path, known=known))


def numbered(path: Path, *, known: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `objects`, each with the number of the line where it begins (0 of a file that is known)."""
    with opened(path) as file:
        reader, number = Reader(path, file, known), 0
        if reader.take() != "[":
            raise DataError(f"{path}: not a list of queries", "is it the organisers' test file?")
        going = reader.peek() != "]"
        if not going:
            reader.take()
        while going:
            told = f"cut or damaged after {number} queries"
            if reader.peek() not in ("{", ""):
                raise reader.error(f"query {number} is not an object")
            yield 0 if known else reader.line_here(), reader.value(told)
            number += 1
            if reader.peek() not in (",", "]"):
                raise reader.error(f"cut or damaged after {number} queries: no comma and no end of the list")
            going = reader.take() == ","
        reader.end()


class Refused(ValueError):
    """What Python's reader would take."""


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Refused(f"the key {shown(twice)} stands twice in an object")
    return found


def refuse(constant: str) -> Any:
    raise Refused(f"{constant} is no number of JSON")


class Reader:
    """A file as text that is read as far as is needed; `at` is the place of the next character."""

    def __init__(self, path: Path, file: IO[bytes], known: bool = False) -> None:
        self.path, self.file, self.longest = path, file, LONGEST
        hooks: Any = {} if known else {"object_pairs_hook": unique, "parse_constant": refuse}
        self.decode = json.JSONDecoder(**hooks).raw_decode
        self.utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self.text, self.at, self.lines_before, self.column_before = "", 0, 0, 0
        self.counted = 0, 0  # characters of the text, and their line ends

    def more(self) -> bool:
        """Read as much again as is waiting, so that the work for one long value grows with its length only."""
        data = self.file.read(max(CHUNK, len(self.text) - self.at))
        self.column_before = self.column(self.at) - 1
        self.lines_before += self.text.count("\n", 0, self.at)
        self.text, self.at, self.counted = self.text[self.at :], 0, (0, 0)
        try:
            self.text += self.utf8.decode(data, final=not data)
        except UnicodeDecodeError as error:
            line = self.line(len(self.text)) + error.object[: error.start].count(b"\n")
            raise DataError(f"{self.path}, line {line}: bytes that are not UTF-8", AGAIN) from error
        return bool(data)

    def peek(self) -> str:
        """The next character that is no space; "" at the end of the file."""
        while True:
            space = SPACE.match(self.text, self.at)
            assert space is not None
            self.at = space.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self) -> str:
        """As `peek`, and go on behind it."""
        found = self.peek()
        self.at += len(found)
        return found

    def value(self, told: str) -> Any:
        """The value that begins at the next character; told: what is said of one that is cut or damaged."""
        self.peek()
        while True:
            try:
                found, self.at = self.decode(self.text, self.at)
                return found
            except json.JSONDecodeError as error:
                start = self.at
                if len(self.text) - start <= self.longest and self.more():
                    continue
                raise self.error(f"{told}: {error.msg}", error.pos - start + self.at) from error
            except RecursionError as error:
                raise self.error("lists or objects nested too deeply") from error
            except ValueError as error:  # Refused, or a whole number of thousands of digits
                raise self.error(str(error)) from error

    def end(self) -> None:
        """Raises DataError unless the file ends here."""
        if self.peek():
            raise self.error("text after the end")

    def line(self, at: int) -> int:
        return self.lines_before + self.text.count("\n", 0, at) + 1

    def line_here(self) -> int:
        """As `line(self.at)`, counting only from where it counted last."""
        start, lines = self.counted
        self.counted = self.at, lines + self.text.count("\n", start, self.at)
        return self.lines_before + self.counted[1] + 1

    def column(self, at: int) -> int:
        end = self.text.rfind("\n", 0, at)
        return at - end if end >= 0 else at + 1 + self.column_before

    def error(self, what: str, at: int | None = None) -> DataError:
        place = self.at if at is None else at
        return DataError(f"{self.path}, line {self.line(place)}, column {self.column(place)}: {what}", AGAIN)
