"""Reads UBJSON (https://ubjson.org), the format of XGBoost's saved models. Its numbers are big-endian."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

TYPES = {"i": "i1", "U": "u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}
# By marker: how one number is read, its bytes, and the type of an array.
NUMBERS = {
    ord(kind): (struct.Struct(f">{code}").unpack_from, struct.calcsize(f">{code}"), np.dtype(TYPES[kind]))
    for kind, code in {"i": "b", "U": "B", "I": "h", "l": "i", "L": "q", "d": "f", "D": "d"}.items()
}
LENGTHS = {ord(kind): NUMBERS[ord(kind)] for kind in "iUIlL"}
CONSTANTS = {ord("Z"): None, ord("T"): True, ord("F"): False}
TYPE, COUNT, END_OF_ARRAY, END_OF_MAPPING = b"$#]}"


def loads(data: bytes) -> Any:
    """The document as dicts, lists, NumPy arrays (arrays with a type), str, int, float, bool and None.

    Raises ValueError for data that is incomplete or is not UBJSON.
    """
    try:
        return Reader(data).value()
    except (struct.error, IndexError, KeyError, RecursionError, ValueError) as error:
        raise ValueError(f"not UBJSON: {error!r}") from error


class Reader:
    """Reads values one after the other. A marker is a byte. A model has a million values, so each takes few calls."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def marker(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def skip(self, marker: int) -> bool:
        """Whether the next byte is this marker, which is then skipped."""
        skipped = self.data[self.at] == marker
        self.at += skipped
        return skipped

    def number(self, kind: int) -> Any:
        unpack, size, _ = NUMBERS[kind]
        self.at += size
        return unpack(self.data, self.at - size)[0]

    def length(self) -> int:
        """The length of a text, or the number of values in an array or object."""
        unpack, size, _ = LENGTHS[self.data[self.at]]
        self.at += 1 + size
        length: int = unpack(self.data, self.at - size)[0]
        if length < 0:
            raise IndexError("a length is negative")
        return length

    def text(self) -> str:
        size = self.length()
        self.at += size
        if self.at > len(self.data):
            raise IndexError("the data ends in a text")
        return self.data[self.at - size : self.at].decode()

    def character(self) -> str:
        return bytes([self.marker()]).decode("ascii")

    def value(self, kind: int | None = None) -> Any:
        """The next value. kind: its marker, if all values of an array or object have one."""
        kind = self.marker() if kind is None else kind
        if kind in NUMBERS:
            return self.number(kind)
        return CONSTANTS[kind] if kind in CONSTANTS else OTHERS[kind](self)

    def array(self) -> Any:
        kind = self.marker() if self.skip(TYPE) else None
        if not self.skip(COUNT):
            values = []
            while not self.skip(END_OF_ARRAY):
                values.append(self.value())
            return values
        count = self.length()
        if kind not in NUMBERS:
            return [self.value(kind) for _ in range(count)]
        _, size, dtype = NUMBERS[kind]
        start, self.at = self.at, self.at + count * size
        return np.frombuffer(self.data, dtype, count, start) if count else np.empty(0, dtype)

    def mapping(self) -> dict[str, Any]:
        kind = self.marker() if self.skip(TYPE) else None
        if self.skip(COUNT):
            return {self.text(): self.value(kind) for _ in range(self.length())}
        values = {}
        while not self.skip(END_OF_MAPPING):
            name = self.text()
            values[name] = self.value()
        return values


OTHERS: dict[int, Callable[[Reader], Any]] = {
    ord("S"): Reader.text,
    ord("C"): Reader.character,
    ord("["): Reader.array,
    ord("{"): Reader.mapping,
}
