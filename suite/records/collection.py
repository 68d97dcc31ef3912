"""Records read from files and folders, as a sequence and as a table."""

import csv
import html
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from buzzer.errors import UsageError, brief, unknown_name
from buzzer.suite.escape import printable
from buzzer.suite.records import frame, integrity, record
from buzzer.suite.records.schema import Record
from buzzer.suite.requests import Paths, each, paths

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # first characters of cells that spreadsheets compute
SHOWN_TASKS, SHOWN_ROWS = 3, 20  # in the text and in the HTML of a collection
SHOWN_COLUMNS = (
    *("created", "task", "job", "engine", "backend", "precision", "budget"),
    *("outcome", "gate", "score", "wall_s"),
)


def inert(value: object) -> object:
    """The value of a CSV cell. Texts from records that begin like a formula are marked as texts."""
    return f"'{value}" if isinstance(value, str) and value[:1] in FORMULA else value


class Records(Sequence[Record]):
    """An immutable sequence of records, which can be filtered and made a data frame. Raises UsageError for what is not a record.

    >>> records = load_records("runs/booking")
    >>> records
    Records(5 runs of booking; 5 ok)
    >>> records[0].job, records[0].engine
    ('fit', 'polars')
    >>> len(records[:3]), len(records + records[:3])
    (3, 8)
    >>> records.filter(job="predict", engine="pandas").to_polars()["wall_s"].median() < 60
    True
    """

    __slots__ = ("_records",)

    def __init__(self, records: Record | Iterable[Record] = ()) -> None:
        values = each(records)
        for value in values:
            if not isinstance(value, Record):
                raise UsageError(
                    f"{brief(value)} is not a record", "buzzer.load_records reads them from files and folders"
                )
        self._records: tuple[Record, ...] = tuple(values)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> "Records": ...

    def __getitem__(self, index: int | slice) -> "Record | Records":
        return Records(self._records[index]) if isinstance(index, slice) else self._records[index]

    def __add__(self, others: Record | Iterable[Record]) -> "Records":
        return Records((*self._records, *Records(others)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Records) and self._records == other._records

    __hash__ = None  # type: ignore[assignment]  # records are compared by their fields

    def filter(self, predicate: Callable[[Record], bool] | None = None, /, **columns: object) -> "Records":
        """The records for which the predicate is true and whose columns have the given values.

        Columns are those of the data frames. A value may be a list, tuple or set of allowed values; None selects null. A value
        that no record has selects none. Raises UsageError for a column that does not exist, and for a predicate that is no function.

        >>> records = load_records("runs/booking")
        >>> len(records.filter(job="predict", engine=["pandas", "polars"], backend="onnxruntime"))
        2
        >>> len(records.filter(lambda r: r.wall_s < 2.0, budget_cores=1))
        3
        """
        if predicate is not None and not callable(predicate):
            raise UsageError(
                f"{brief(predicate)} is not a function of a record",
                'name the column: filter(engine="pandas"); or filter(lambda r: r.wall_s < 60)',
            )
        rows = [frame.row(r) for r in self._records]
        names = set(frame.fixed_columns()).union(*rows)
        for name in columns:
            if name not in names and self._records:
                raise unknown_name("column", name, names)
        wanted = {name: _allowed(value) for name, value in columns.items()}
        return Records(
            r
            for r, row in zip(self._records, rows, strict=True)
            if all(row.get(name) in allowed for name, allowed in wanted.items())
            and (predicate is None or predicate(r))
        )

    def to_pandas(self) -> "pd.DataFrame":
        """A pandas frame with one row per run, with nullable dtypes; docs/records.md lists the columns.

        >>> df = load_records("runs/booking").to_pandas()
        >>> df.groupby(["job", "engine"])["phase_predict_s"].count().to_dict()
        {('fit', 'polars'): 0, ('predict', 'pandas'): 2, ('predict', 'polars'): 2}
        """
        return frame.to_pandas(self)

    def to_polars(self) -> "pl.DataFrame":
        """A Polars frame with one row per run; docs/records.md lists the columns.

        >>> df = load_records("runs/booking").to_polars()
        >>> df.select("wall_s", "phase_predict_s", "score_accuracy@4").dtypes
        [Float64, Float64, Float64]
        """
        return frame.to_polars(self)

    def to_csv(self) -> str:
        """The same table as CSV, without pandas or Polars. Null is empty; times are in ISO 8601. A text that a spreadsheet would
        compute begins with an apostrophe.

        >>> load_records("runs/booking").to_csv().splitlines()[0].split(",")[:4]
        ['run_id', 'created', 'task', 'job']
        """
        columns, text = frame.columns(self), io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(column.name for column in columns)
        writer.writerows(zip(*(map(inert, column.values) for column in columns), strict=True))
        return text.getvalue()

    def __repr__(self) -> str:
        if not self._records:
            return "Records(no runs)"
        tasks = {r.task: None for r in self._records}
        named = ", ".join(tasks) if len(tasks) <= SHOWN_TASKS else f"{len(tasks)} tasks"
        outcomes = Counter(r.outcome for r in self._records)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        runs = "1 run" if len(self) == 1 else f"{len(self)} runs"
        return f"Records({runs} of {named}; {counts})"

    def _repr_html_(self) -> str:
        """The first rows as an HTML table, for notebooks."""
        heads = "".join(f"<th>{name}</th>" for name in SHOWN_COLUMNS)
        rows = "".join(f"<tr>{_html_cells(r)}</tr>" for r in self._records[:SHOWN_ROWS])
        more = f" The first {SHOWN_ROWS} are shown." if len(self) > SHOWN_ROWS else ""
        table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        return f"{table}<p>{html.escape(repr(self))}.{more}</p>"


def load_records(*sources: Paths) -> Records:
    """The records in files and folders, in the order in which the runs ended; without paths, those in `results`.

    Folders are searched at any depth. A record that `buzzer check` finds a problem with is left out with a warning. Raises UsageError
    for a path that does not exist.

    >>> load_records("runs/booking", "runs/gbdt")
    Records(7 runs of booking, gbdt; 6 ok, 1 unsupported)
    """
    files = record_files([path for source in sources or ["results"] for path in paths(source)])
    checked = integrity.examine(files)
    for line in checked.left_out():
        warnings.warn(line, stacklevel=2)
    return Records(checked.good.values())


def record_files(sources: Sequence[Path]) -> list[Path]:
    """The record files among files and folders, each once. Raises UsageError for a path that does not exist."""
    for source in sources:
        if not source.exists():
            raise UsageError(printable(f"{source}: no such file or folder"))
    return list(dict.fromkeys(record.paths(sources)))


def some_record_files(sources: Sequence[Path]) -> list[Path]:
    """As `record_files`. Raises UsageError if there are none."""
    if files := record_files(sources):
        return files
    raise UsageError("no records found", "give record files or folders of records; `buzzer run` writes them")


def _allowed(value: object) -> Sequence[object]:
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def _html_cells(r: Record) -> str:
    row = frame.row(r)
    row |= {"created": f"{r.created:%Y-%m-%d %H:%M}"}
    return "".join(f"<td>{html.escape(_cell_text(row[name]))}</td>" for name in SHOWN_COLUMNS)


def _cell_text(cell: frame.Cell) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
