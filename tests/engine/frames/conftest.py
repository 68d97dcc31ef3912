import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from buzzer.engine.frames import Engine, Frame


def make_frame(engine: Engine, columns: Mapping[str, list[Any]]) -> Frame:
    """A frame; `row` counts from 0 unless it is given."""
    rows = len(next(iter(columns.values())))
    return engine.from_arrow(pa.table({"row": np.arange(rows)} | dict(columns)))


def plain(value: Any) -> Any:
    """NumPy scalars as Python values, NaN as None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value


def read(engine: Engine, t: Frame, *columns: str) -> Any:
    """Columns as lists of plain values, sorted by `row`: one list, or a tuple for several columns."""
    arrays = engine.to_numpy(t, columns)
    lists = tuple([plain(v) for v in arrays[name]] for name in columns)
    return lists[0] if len(lists) == 1 else lists


def rows_of(engine: Engine, table: Frame, *columns: str) -> set[tuple[Any, ...]]:
    """A table without `row` as a set of tuples."""
    numbered = engine.with_columns(table, row=lambda c: c(columns[0]) == c(columns[0]))
    arrays = engine.to_numpy(numbered, columns)
    return {tuple(plain(arrays[name][i]) for name in columns) for i in range(len(arrays[columns[0]]))}


@pytest.fixture
def frame(e: Engine) -> Callable[[Mapping[str, list[Any]]], Frame]:
    return lambda columns: make_frame(e, columns)


@pytest.fixture
def values(e: Engine) -> Callable[..., Any]:
    return lambda t, *columns: read(e, t, *columns)


@pytest.fixture
def rows(e: Engine) -> Callable[..., set[tuple[Any, ...]]]:
    return lambda table, *columns: rows_of(e, table, *columns)
