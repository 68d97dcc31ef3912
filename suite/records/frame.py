"""Records as a table: one row per run. docs/records.md lists the columns.

The columns that every record has are read off the schema. The others (scores, phases, parameters, ...) are those that occur.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from buzzer.suite.records import machine
from buzzer.suite.records.schema import Bench, BudgetFields, Machine, Record

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
class Column:
    """One column of the table; null is None."""

    name: str
    kind: Kind
    values: Sequence[Cell]


def columns(records: Sequence[Record]) -> list[Column]:
    """The columns of the table: those that every record has, then scores, phases and so on, each in the order of first occurrence."""
    rows = [row(record) for record in records]
    occurring = [name for name in dict.fromkeys(chain(*rows)) if name not in fixed_columns()]
    others = sorted(occurring, key=lambda name: next(i for i, p in enumerate(PREFIXES) if name.startswith(p)))
    values = {name: [cells.get(name) for cells in rows] for name in [*fixed_columns(), *others]}
    kinds = dict(fixed_columns())
    kinds |= {name: _kind_of_values(values[name]) for name in others}
    return [Column(name, kinds[name], _of_kind(values[name], kinds[name])) for name in values]


def to_pandas(records: Sequence[Record]) -> "pd.DataFrame":
    """The table as a pandas frame, with nullable dtypes."""
    import pandas as pd

    arrays = {c.name: pd.array(list(c.values), dtype=PANDAS[c.kind]) for c in columns(records)}  # type: ignore[call-overload]
    return pd.DataFrame(arrays)


def to_polars(records: Sequence[Record]) -> "pl.DataFrame":
    """The table as a Polars frame."""
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
    """The cells of one run, without those that are null because the record has no such score, phase, ..."""
    some: Row = {f"score_{name}": value for name, value in record.scores.items()}
    some |= {f"phase_{phase.name}_s": phase.wall_s for phase in record.phases}
    some |= {f"lap_{name}_s": median(laps) for name, laps in record.samples.items() if laps}
    some |= {f"energy_{source}_j": joules for source, joules in (record.energy_j or {}).items()}
    some |= {f"param_{name}": _cell(value) for name, value in record.config.items()}
    some |= {f"version_{name}": version for name, version in record.versions.items()}
    return some | _fixed_cells(record)


@cache
def fixed_columns() -> Mapping[str, Kind]:
    """Name and kind of the columns that every record has, in order."""
    kinds = dict(scalars(Record))
    kinds |= {"scoring": "string", "disturbed": "float", "score": "float", "gate": "string"}
    kinds |= {"gate_reference_run": "string", "budget": "string", "machine": "string"}
    kinds |= {f"budget_{name}": kind for name, kind in scalars(BudgetFields).items() if name != "name"}
    kinds |= {"budget_unmet": "string"}
    kinds |= {f"machine_{name}": kind for name, kind in scalars(Machine).items()}
    kinds |= {"machine_gpus": "string"}
    kinds |= {f"bench_{name}": kind for name, kind in scalars(Bench).items()}
    return {name: kinds[name] for name in [*FIRST, *(name for name in kinds if name not in FIRST)]}


def _fixed_cells(record: Record) -> Row:
    budget, where, bench = record.budget, record.machine, record.bench
    cells: Row = {name: getattr(record, name) for name in scalars(Record)}
    cells |= {"scoring": record.scoring, "disturbed": record.disturbed}
    cells |= {"score": record.scores.get(record.metric), "gate": record.gate.status}
    cells |= {"gate_reference_run": record.gate.reference_run}
    cells |= {"budget": budget.name, "machine": machine.describe(where)}
    cells |= {f"budget_{name}": getattr(budget, name) for name in scalars(BudgetFields) if name != "name"}
    cells |= {"budget_unmet": "; ".join(budget.unmet) or None}
    cells |= {f"machine_{name}": getattr(where, name) for name in scalars(Machine)}
    cells |= {"machine_gpus": ", ".join(gpu.name for gpu in where.gpus) or None}
    return cells | {f"bench_{name}": getattr(bench, name, None) for name in scalars(Bench)}


@cache
def scalars(model: type[BaseModel]) -> Mapping[str, Kind]:
    """The fields of a model that hold one value, and its kind, in order."""
    properties = model.model_json_schema()["properties"]
    return {name: kind for name, field in properties.items() if (kind := _kind_of_schema(field))}


def _kind_of_schema(field: Mapping[str, Any]) -> Kind | None:
    """The kind of a field by its JSON Schema; None for objects and lists."""
    choices = [choice for choice in field.get("anyOf", [field]) if choice.get("type") != "null"]
    if choices[0].get("format") == "date-time":
        return "time"
    return _KINDS.get(choices[0].get("type", ""))


def _kind_of_values(values: Iterable[Cell]) -> Kind:
    """The narrowest kind that holds all values that are not null."""
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
