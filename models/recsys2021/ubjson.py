"""UBJSON, the binary form of JSON in which XGBoost saves models (https://ubjson.org, draft 12): the parts that these files use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# UBJSON's mark of a type -> the type of NumPy.
TYPES = {"i": ">i1", "U": ">u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}


def length(n: int) -> bytes:
    """A length, an int64."""
    return b"L" + n.to_bytes(8, "big")


def key(name: str) -> bytes:
    """The name of a field."""
    return length(len(name)) + name.encode()


def text(value: str) -> bytes:
    """A string."""
    return b"S" + key(value)


def words(values: dict[str, Any]) -> bytes:
    """An object of strings."""
    return b"{" + b"".join(key(name) + text(str(value)) for name, value in values.items()) + b"}"


def typed_head(mark: str, n: int) -> bytes:
    """The bytes before the values of an array whose values have one type."""
    return b"[$" + mark.encode() + b"#" + length(n)


def listed(values: Sequence[int]) -> bytes:
    """An array of integers, each with its type."""
    return b"[#" + length(len(values)) + b"".join(b"l" + v.to_bytes(4, "big") for v in values)


class Reader:
    """Reads values one after the other. Arrays of one type are returned as NumPy arrays, others as lists."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def value(self) -> Any:
        """The next value."""
        return self._value(self._mark())

    def _mark(self) -> str:
        self.at += 1
        return chr(self.content[self.at - 1])

    def _value(self, mark: str) -> Any:
        if mark in TYPES:
            return self._numbers(mark, 1)[0].item()
        if mark == "S":
            return self._text()
        if mark in "TF":
            return mark == "T"
        if mark == "{":
            return self._object()
        if mark == "[":
            return self._array()
        raise ValueError(f"UBJSON mark {mark!r} at byte {self.at - 1}")

    def _numbers(self, mark: str, count: int) -> Any:
        found = np.frombuffer(self.content, TYPES[mark], count, self.at)
        self.at += found.nbytes
        return found

    def _text(self) -> str:
        size = self.value()
        self.at += size
        return self.content[self.at - size : self.at].decode()

    def _object(self) -> dict[str, Any]:
        found = {}
        while self.content[self.at] != ord("}"):
            name = self._text()
            found[name] = self.value()
        self.at += 1
        return found

    def _array(self) -> Any:
        kind = ""
        if self.content[self.at] == ord("$"):
            self.at += 1
            kind = self._mark()
        if self.content[self.at] != ord("#"):
            return self._until_end()
        self.at += 1
        count = self.value()
        return self._numbers(kind, count) if kind else [self.value() for _ in range(count)]

    def _until_end(self) -> list[Any]:
        found = []
        while self.content[self.at] != ord("]"):
            found.append(self.value())
        self.at += 1
        return found


def read(path: Path) -> Any:
    """The value in a file. Raises ValueError for a mark that this reader does not know."""
    return Reader(path.read_bytes()).value()
