"""Writes UBJSON, the binary form of JSON in which XGBoost saves models (https://ubjson.org, draft 12): the parts that these files use.

`buzzer.engine.infer.ubjson` reads it.
"""

from collections.abc import Sequence
from typing import Any


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
