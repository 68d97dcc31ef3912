"""A strict JSON reader: unlike Python's, it refuses NaN, Infinity, repeated keys, bad UTF-8 and text after the end."""

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
LONGEST = 64 << 20  # maximum number of characters of an object in a list
SPACE = re.compile(r"[ \t\n\r]*")
HINT = "copy or download it again"
JsonObject = dict[str, Any]


def loads(path: Path) -> Any:
    """The one JSON value in a file. Raises DataError with line and column for a fault."""
    with opened(path) as file:
        reader = Reader(path, file)
        reader.longest = path.stat().st_size
        value = reader.value("not JSON, or cut")
        reader.end()
    return value


def objects(path: Path, *, checked: bool = False) -> Iterator[JsonObject]:
    """The objects of a JSON list, one after the other. Only one object and one chunk of the file are in memory.

    checked: the file has passed its check, so repeated keys and constants are not searched for.
    Raises DataError with line and column for a file that is missing, truncated, or not a list of objects.
    """
    return (item for _, item in numbered(path, checked=checked))


def numbered(path: Path, *, checked: bool = False) -> Iterator[tuple[int, JsonObject]]:
    """Like `objects`, with the number of each object's first line; 0 if `checked`."""
    with opened(path) as file:
        reader, number = Reader(path, file, checked), 0
        if reader.take() != "[":
            raise DataError(f"{path}: not a list of queries", "is it the organisers' test file?")
        more = reader.peek() != "]"
        if not more:
            reader.take()
        while more:
            if reader.peek() not in ("{", ""):
                raise reader.error(f"query {number} is not an object")
            fault = f"truncated or damaged after {number} queries"
            yield 0 if checked else reader.line_here(), reader.value(fault)
            number += 1
            if reader.peek() not in (",", "]"):
                raise reader.error(
                    f"truncated or damaged after {number} queries: no comma and no end of the list"
                )
            more = reader.take() == ","
        reader.end()


class Refused(ValueError):
    """JSON that Python's reader accepts and this reader refuses."""


def unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    """The object with these keys and values. Raises Refused for a repeated key."""
    item = dict(pairs)
    if len(item) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Refused(f"the key {shown(twice)} occurs twice in an object")
    return item


def refuse(constant: str) -> Any:
    """Raises Refused for NaN, Infinity or -Infinity."""
    raise Refused(f"{constant} is not a JSON number")


class Reader:
    """A file that is read as text in chunks. `at` is the index in `text` of the next character."""

    def __init__(self, path: Path, file: IO[bytes], checked: bool = False) -> None:
        self.path, self.file, self.longest = path, file, LONGEST
        hooks: Any = {} if checked else {"object_pairs_hook": unique, "parse_constant": refuse}
        self.decode = json.JSONDecoder(**hooks).raw_decode
        self.utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self.text, self.at, self.lines_before, self.column_before = "", 0, 0, 0
        self.counted = 0, 0  # a number of characters of `text`, and the number of line ends in them

    def more(self) -> bool:
        """Read a chunk, or as many characters as are unread in `text`, so that a long value takes linear time. Returns whether there was
        more to read."""
        data = self.file.read(max(CHUNK, len(self.text) - self.at))
        self.column_before = self.column(self.at) - 1
        self.lines_before += self.text.count("\n", 0, self.at)
        self.text, self.at, self.counted = self.text[self.at :], 0, (0, 0)
        try:
            self.text += self.utf8.decode(data, final=not data)
        except UnicodeDecodeError as error:
            line = self.line(len(self.text)) + error.object[: error.start].count(b"\n")
            raise DataError(f"{self.path}, line {line}: bytes that are not UTF-8", HINT) from error
        return bool(data)

    def peek(self) -> str:
        """The next character after white space, or "" at the end of the file."""
        while True:
            space = SPACE.match(self.text, self.at)
            assert space is not None
            self.at = space.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self) -> str:
        """Like `peek`, and moves past the character."""
        character = self.peek()
        self.at += len(character)
        return character

    def value(self, fault: str) -> Any:
        """The value that begins at the next character. Raises DataError; `fault` begins the message for a damaged value."""
        self.peek()
        while True:
            try:
                value, self.at = self.decode(self.text, self.at)
                return value
            except json.JSONDecodeError as error:
                start = self.at
                if len(self.text) - start <= self.longest and self.more():
                    continue
                raise self.error(f"{fault}: {error.msg}", error.pos - start + self.at) from error
            except RecursionError as error:
                raise self.error("lists or objects nested too deeply") from error
            except ValueError as error:  # Refused, or an integer with thousands of digits
                raise self.error(str(error)) from error

    def end(self) -> None:
        """Raises DataError unless the file ends here."""
        if self.peek():
            raise self.error("text after the end")

    def line(self, at: int) -> int:
        """The line number, from 1, of the character at index `at` of `text`."""
        return self.lines_before + self.text.count("\n", 0, at) + 1

    def line_here(self) -> int:
        """Like `line(self.at)`, but counts only from the position of the previous call."""
        start, lines = self.counted
        self.counted = self.at, lines + self.text.count("\n", start, self.at)
        return self.lines_before + self.counted[1] + 1

    def column(self, at: int) -> int:
        """The column, from 1, of the character at index `at` of `text`."""
        end = self.text.rfind("\n", 0, at)
        return at - end if end >= 0 else at + 1 + self.column_before

    def error(self, what: str, at: int | None = None) -> DataError:
        """The error at index `at` of `text`, or at the next character."""
        place = self.at if at is None else at
        return DataError(f"{self.path}, line {self.line(place)}, column {self.column(place)}: {what}", HINT)
