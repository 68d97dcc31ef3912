"""Records as a table: one row per run. docs/records.md lists the columns.

The schema defines the columns that every record has. Other columns (scores, phases, parameters, ...) depend on the records.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from buzzer import extras
from buzzer.suite.records import machine
from buzzer.suite.records.schema import Bench, BudgetFields, Machine, Record, WorkFields

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

Kind = Literal["string", "integer", "float", "boolean", "time"]
Cell = str | int | float | bool | datetime | None
Row = dict[str, Cell]

FIRST = (
    *("run_id", "created", "task", "job", "engine", "backend", "precision", "device", "scale", "repeat"),
    *("budget", "machine", "outcome", "gate", "metric", "score", "rows", "wall_s"),
)
PREFIXES = (
    "score_",
    "phase_",
    "lap_",
    "energy_",
    "param_",
    "version_",
)  # of columns that not every record has
PANDAS = {
    "string": "string",
    "integer": "Int64",
    "float": "Float64",
    "boolean": "boolean",
    "time": "datetime64[us, UTC]",
}
_KINDS: dict[str, Kind] = {
    "string": "string",
    "integer": "integer",
    "number": "float",
    "boolean": "boolean",
}


@dataclass(frozen=True)
class Field:
    """A column that every record has: its name, its kind, and a function that returns its cell for a record."""

    name: str
    kind: Kind
    cell: Callable[[Record], Cell]


@dataclass(frozen=True)
class Column:
    """One column of the table; null is None."""

    name: str
    kind: Kind
    values: Sequence[Cell]


def columns(records: Sequence[Record]) -> list[Column]:
    """The columns of the table: first the columns of every record, then scores, phases and so on in the order of first occurrence."""
    rows = [row(record) for record in records]
    occurring = [name for name in dict.fromkeys(chain(*rows)) if name not in fixed_columns()]
    others = sorted(occurring, key=lambda name: next(i for i, p in enumerate(PREFIXES) if name.startswith(p)))
    values = {name: [cells.get(name) for cells in rows] for name in [*fixed_columns(), *others]}
    kinds = dict(fixed_columns())
    kinds |= {name: _kind_of_values(values[name]) for name in others}
    return [Column(name, kinds[name], _of_kind(values[name], kinds[name])) for name in values]


def to_pandas(records: Sequence[Record]) -> "pd.DataFrame":
    """The table as a pandas frame, with nullable dtypes. Raises UnsupportedError without pandas."""
    extras.require("pandas", "`to_pandas`")
    import pandas as pd

    arrays = {c.name: pd.array(list(c.values), dtype=PANDAS[c.kind]) for c in columns(records)}  # type: ignore[call-overload]
    return pd.DataFrame(arrays)


def to_polars(records: Sequence[Record]) -> "pl.DataFrame":
    """The table as a Polars frame. Raises UnsupportedError without Polars."""
    extras.require("polars", "`to_polars`")
    import polars as pl

    dtypes: dict[Kind, Any] = {
        "string": pl.String,
        "integer": pl.Int64,
        "float": pl.Float64,
        "boolean": pl.Boolean,
        "time": pl.Datetime("us", "UTC"),
    }
    return pl.DataFrame([pl.Series(c.name, c.values, dtypes[c.kind]) for c in columns(records)])


def row(record: Record) -> Row:
    """The cells of one run. Scores, phases, ... that the record does not have are left out."""
    some: Row = {f"score_{name}": value for name, value in record.shown_scores.items()}
    some |= {f"phase_{phase.name}_s": phase.wall_s for phase in record.phases}
    some |= {f"lap_{name}_s": median(laps) for name, laps in record.samples.items() if laps}
    some |= {f"energy_{source}_j": joules for source, joules in (record.energy_j or {}).items()}
    some |= {f"param_{name}": _cell(value) for name, value in record.config.items()}
    some |= {f"version_{name}": version for name, version in record.versions.items()}
    return some | {field.name: field.cell(record) for field in fields()}


@cache
def fields() -> tuple[Field, ...]:
    """The columns that every record has, in order."""
    every = [
        *_fields_of(Record, lambda r: r),
        Field("scoring", "string", lambda r: r.scoring),
        Field("disturbed", "float", lambda r: r.disturbed),
        Field("score", "float", lambda r: r.score),
        Field("gate", "string", lambda r: r.gate.status),
        Field("gate_reference_run", "string", lambda r: r.gate.reference_run),
        Field("budget", "string", lambda r: r.budget.name),
        *(f for f in _fields_of(BudgetFields, lambda r: r.budget, "budget_") if f.name != "budget_name"),
        Field("budget_unmet", "string", lambda r: "; ".join(r.budget.unmet) or None),
        Field("machine", "string", lambda r: machine.describe(r.machine)),
        *_fields_of(Machine, lambda r: r.machine, "machine_"),
        Field("machine_gpus", "string", lambda r: ", ".join(gpu.name for gpu in r.machine.gpus) or None),
        *_fields_of(Bench, lambda r: r.bench, "bench_"),
        *_fields_of(WorkFields, lambda r: r.work, "work_"),
    ]
    order = {name: position for position, name in enumerate(FIRST)}
    return tuple(sorted(every, key=lambda field: order.get(field.name, len(order))))


@cache
def fixed_columns() -> Mapping[str, Kind]:
    """Name and kind of the columns that every record has, in order."""
    return {field.name: field.kind for field in fields()}


def _fields_of(
    model: type[BaseModel], part: Callable[[Record], BaseModel | None], prefix: str = ""
) -> Iterator[Field]:
    """The columns of a part of a record: its fields with one value."""
    for name, kind in scalars(model).items():
        yield Field(prefix + name, kind, lambda r, name=name: getattr(part(r), name, None))  # type: ignore[misc]


def scalars(model: type[BaseModel]) -> Mapping[str, Kind]:
    """The fields of a model with one value, and the kind of the value, in order."""
    properties = model.model_json_schema()["properties"]
    return {name: kind for name, field in properties.items() if (kind := _kind_of_schema(field))}


def _kind_of_schema(field: Mapping[str, Any]) -> Kind | None:
    """The kind of a field by its JSON Schema; None for objects and lists."""
    choices = [choice for choice in field.get("anyOf", [field]) if choice.get("type") != "null"]
    if choices[0].get("format") == "date-time":
        return "time"
    return _KINDS.get(choices[0].get("type", ""))


def _kind_of_values(values: Iterable[Cell]) -> Kind:
    """The narrowest kind that fits all values that are not null."""
    types = {type(value) for value in values if value is not None}
    kinds: dict[frozenset[type], Kind] = {
        frozenset({bool}): "boolean",
        frozenset({int}): "integer",
        frozenset({float}): "float",
        frozenset({int, float}): "float",
    }
    return kinds.get(frozenset(types), "string")


def _of_kind(values: Sequence[Cell], kind: Kind) -> list[Cell]:
    if kind == "string":
        return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    if kind == "float":
        return [None if value is None else float(value) for value in values]  # type: ignore[arg-type]
    return list(values)


def _cell(value: Any) -> Cell:
    """A parameter as a cell: lists and mappings as JSON."""
    return json.dumps(value) if isinstance(value, dict | list) else value
