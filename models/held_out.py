"""The held-out rows of a task as a table, for models whose columns are the task's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from buzzer.engine.infer import Array
from buzzer.models.api.bench import BenchSpec

FILE = "held-out.npz"
NOTE = "{:,} held-out rows of {} ({} data, {}), which has {}; --inputs FILE for others"


@dataclass(frozen=True)
class Rows:
    """float32 [rows, columns], with their origin: "official", or "generated"."""

    values: Array
    source: str


@dataclass(frozen=True)
class HeldOut:
    """A table of a task's held-out rows."""

    task: str
    what: str  # the columns, in words
    columns: Callable[[], Sequence[str]]  # their names, in order
    read: Callable[[BenchSpec], Rows]  # may write to `spec.work`
    nameless: bool = True  # whether it has the columns of the task's own models, whose files have no names


@dataclass(frozen=True)
class Fitting:
    """The columns of a table that are a model's, in the model's order."""

    table: HeldOut
    columns: tuple[int, ...]
    named: bool  # whether they were found by name; else the table has as many columns as the model

    def rows(self, spec: BenchSpec) -> Rows:
        """The rows with the model's columns. They are read once for a call of `buzzer bench`."""
        path = spec.work / FILE
        if not path.is_file():
            made = self.table.read(spec)
            values = np.ascontiguousarray(made.values[:, list(self.columns)], dtype="float32")
            np.savez(path, values=values, source=made.source)
        saved = np.load(path)
        return Rows(saved["values"], str(saved["source"]))

    def note(self, rows: Rows) -> str:
        """Which rows they are and why, in one line."""
        count = f"as many columns as the model, {len(self.columns)}, whose file does not name them"
        found = "the model's columns by name" if self.named else count
        return NOTE.format(len(rows.values), self.table.task, rows.source, self.table.what, found)


def fitting(tables: Sequence[HeldOut], names: Sequence[str], width: int) -> Fitting | None:
    """The first table that has all columns of a model, by name; for a model without names, the only one with `width` columns."""
    if names:
        for table in tables:
            at = {name: number for number, name in enumerate(table.columns())}
            if len(set(names)) == len(names) == width and at.keys() >= set(names):
                return Fitting(table, tuple(at[name] for name in names), named=True)
        return None
    same = [table for table in tables if table.nameless and len(table.columns()) == width]
    return Fitting(same[0], tuple(range(width)), named=False) if len(same) == 1 else None
