"""Reads JSON from untrusted files. It limits the depth of nesting and the values."""

import json
import math
from typing import Any, NoReturn

from buzzer.suite.budget import LARGEST

MAX_DEPTH = 30  # maximum depth of nesting


def parse(text: str) -> dict[str, Any]:
    """The JSON object in `text`. It can be written as JSON again. Raises ValueError, RecursionError."""
    fields = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    if not isinstance(fields, dict):
        raise ValueError("the file does not contain a JSON object")  # noqa: TRY004  about a file, not an argument
    check(fields)
    return fields


def check(value: Any, finite: bool = True) -> None:
    """Check that a JSON value can be written and computed with.

    Raises ValueError for a value nested deeper than MAX_DEPTH, a string that is not valid Unicode, an integer beyond 64 bits and,
    with `finite`, an infinite number.
    """
    rest = [(value, 1)]
    while rest:
        value, depth = rest.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            rest += [(part, depth + 1) for item in value.items() for part in item]
        elif isinstance(value, list):
            rest += [(part, depth + 1) for part in value]
        elif isinstance(value, str):
            value.encode()  # raises for lone surrogates
        elif finite and isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number is infinite")
        elif isinstance(value, int) and not -LARGEST <= value < LARGEST:
            raise ValueError(f"an integer of {value.bit_length()} bits")


def without_nan(value: Any) -> Any:
    """`value` with null in place of NaN and infinite numbers, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")
