"""Reads UBJSON (https://ubjson.org), the format of XGBoost's saved models. Its numbers are big-endian."""

import struct
from typing import Any

import numpy as np

TYPES = {"i": "i1", "U": "u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}
CONSTANTS = {"Z": None, "T": True, "F": False}


def loads(data: bytes) -> Any:
    """The document as dicts, lists, NumPy arrays (arrays with a type), str, int, float, bool and None.

    Raises ValueError for data that is incomplete or is not UBJSON.
    """
    try:
        return Reader(data).value()
    except (struct.error, IndexError, KeyError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"not UBJSON: {error!r}") from error


class Reader:
    """Reads values one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if not 0 <= size <= len(self.data) - self.at:
            raise IndexError("the data ends in a value")
        self.at += size
        return self.data[self.at - size : self.at]

    def marker(self) -> str:
        return self.take(1).decode("ascii")

    def skip(self, marker: str) -> bool:
        """Whether the next byte is this marker, which is then skipped."""
        skipped = self.data[self.at : self.at + 1] == marker.encode()
        self.at += skipped
        return skipped

    def number(self, kind: str) -> Any:
        dtype = np.dtype(TYPES[kind])
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def text(self) -> str:
        return self.take(self.number(self.marker())).decode()

    def value(self, kind: str = "") -> Any:
        kind = kind or self.marker()
        if kind in CONSTANTS:
            return CONSTANTS[kind]
        if kind == "S":
            return self.text()
        if kind == "C":
            return self.marker()
        if kind == "[":
            return self.array()
        return self.mapping() if kind == "{" else self.number(kind)

    def array(self) -> Any:
        kind = self.marker() if self.skip("$") else ""
        if not self.skip("#"):
            values = []
            while not self.skip("]"):
                values.append(self.value())
            return values
        count = self.number(self.marker())
        if kind in TYPES:
            dtype = np.dtype(TYPES[kind])
            return np.frombuffer(self.take(count * dtype.itemsize), dtype)
        return [self.value(kind) for _ in range(count)]

    def mapping(self) -> dict[str, Any]:
        kind = self.marker() if self.skip("$") else ""
        if self.skip("#"):
            return {self.text(): self.value(kind) for _ in range(self.number(self.marker()))}
        values = {}
        while not self.skip("}"):
            name = self.text()
            values[name] = self.value()
        return values
