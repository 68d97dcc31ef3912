"""Reads CSV files for the eager engines.

For pandas, Arrow reads the file, several times as fast as pandas' own parser. For cuDF, all columns are read as strings and checked
before they are converted, because libcudf reads an invalid number as null, as 0, or as its leading digits.
"""

import re
from collections.abc import Mapping, Sequence
from csv import QUOTE_NONE
from pathlib import Path
from typing import Any

from buzzer.engine import faults
from buzzer.engine.frames.base import CHECK_HINT, Frame
from buzzer.errors import DataError

# Type of a column -> the pattern that its fields match, and the type's name in messages.
FORMS = {
    "int64": (r"^[+-]?[0-9]+$", "an integer"),
    "float64": (r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$", "a number"),
    "date": (r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$", "a date like 2020-01-31"),
}
ROUNDING = 2**20  # more than the rounding error of a float64 below 2**63, less than the error of an overflow


def on_host(path: Path, schema: Mapping[str, str], names: Sequence[str] | None, separator: str) -> Frame:
    """A CSV file's columns as a pandas frame. Arguments as in `Engine.read_csv`. Raises DataError."""
    import pyarrow as pa
    from pyarrow import csv

    types = {"int64": pa.int64(), "float64": pa.float64(), "str": pa.large_string(), "date": pa.date32()}
    plain = names is not None
    read = csv.ReadOptions(column_names=names)
    parse = csv.ParseOptions(
        delimiter=separator, quote_char=False if plain else '"', newlines_in_values=not plain
    )
    convert = csv.ConvertOptions(
        column_types={name: types[kind] for name, kind in schema.items()},
        include_columns=list(schema),
        null_values=[""],
        strings_can_be_null=True,
    )
    try:
        table = csv.read_csv(path, read, parse, convert)
    except (ValueError, KeyError, OSError) as error:  # Arrow's errors are subclasses
        message = str(error.args[0] if error.args else error)
        raise DataError(f"{path}: {named(message, path, names, separator)}", CHECK_HINT) from error
    for name, kind in schema.items():
        if kind in ("int64", "date") and table[name].null_count:
            raise DataError(f"{path}: column {name} has rows without a value", CHECK_HINT)
        if kind == "date":
            days = table[name].cast(pa.int32()).cast(pa.int64())
            table = table.set_column(table.column_names.index(name), name, days)
    return table.to_pandas(split_blocks=True, self_destruct=True)


def named(message: str, path: Path, names: Sequence[str] | None, separator: str) -> str:
    """Arrow's message, with the column's name in place of its number."""
    import pandas as pd

    if not (match := re.search(r"In CSV column #(\d+)", message)):
        return message
    header = names or list(pd.read_csv(path, sep=separator, nrows=0).columns)
    return message.replace(match[0], f"column {header[int(match[1])]}")


def on_device(
    xp: Any, path: Path, schema: Mapping[str, str], names: Sequence[str] | None, separator: str
) -> Frame:
    """A CSV file's columns as a cuDF frame. xp: the module cudf; other arguments as in `Engine.read_csv`. Raises DataError."""
    form: dict[str, Any] = (
        {} if names is None else {"header": None, "names": list(names), "quoting": QUOTE_NONE}
    )
    form |= {"sep": separator, "keep_default_na": False, "na_values": [""]}
    try:
        t = xp.read_csv(path, usecols=list(schema), dtype=dict.fromkeys(schema, "str"), **form)
        if missing := [name for name in schema if name not in t.columns]:
            raise ValueError(f"no column {missing[0]}")
        t = t[list(schema)]
        for name, kind in schema.items():
            if kind != "str":
                t[name] = typed(xp, t[name], kind)
    except (ValueError, OSError, EOFError, RuntimeError) as error:  # libcudf raises RuntimeError
        if faults.classify(error) or "CUDA error" in str(error):
            raise
        raise DataError(f"{path}: {error}", CHECK_HINT) from error
    return t


def typed(xp: Any, text: Any, kind: str) -> Any:
    """A string column as int64 or float64. Raises ValueError with the first invalid field."""
    form, name = FORMS[kind]
    fields = text.dropna()
    if kind != "float64" and len(fields) < len(text):
        raise ValueError(f"column {text.name} has rows without a value")
    wrong = fields[~fields.str.match(form)]
    if len(wrong):
        raise ValueError(f"column {text.name}: {wrong.iloc[0]!r} is not {name}")
    if kind == "date":
        times = xp.to_datetime(text, format="%Y-%m-%d")
        return times.astype("datetime64[s]").astype("int64") // 86400
    numbers = text.astype(kind)
    if kind == "int64":
        difference = (numbers.astype("float64") - text.astype("float64")).abs()
        if (difference > ROUNDING).any():
            raise ValueError(f"column {text.name} has an integer beyond 64 bits")
    return numbers
