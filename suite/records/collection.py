"""Records as a sequence, and as a data frame."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from buzzer.errors import UsageError
from buzzer.suite.escape import printable
from buzzer.suite.records import integrity, record
from buzzer.suite.records.record import Record

if TYPE_CHECKING:
    import pandas
    import polars


class Records(Sequence[Record]):
    """Records in order; one row each as a data frame."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = tuple(records)

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Record | Records":
        return Records(self._records[index]) if isinstance(index, slice) else self._records[index]

    def _rows(self) -> list[dict[str, Any]]:
        plain = ("run_id", "task", "job", "engine", "backend", "precision", "device", "scale", "repeat")
        figures = ("outcome", "message", "wall_s", "cpu_s", "peak_memory_bytes")
        return [
            {name: getattr(r, name) for name in (*plain, *figures)}
            | {"budget": r.budget.name}
            | {f"phase_{p.name}_s": p.wall_s for p in r.phases}
            | {f"score_{name}": value for name, value in r.scores.items()}
            for r in self
        ]

    def to_pandas(self) -> "pandas.DataFrame":
        """A data frame of one row a record."""
        import pandas

        return pandas.DataFrame(self._rows())

    def to_polars(self) -> "polars.DataFrame":
        """A data frame of one row a record."""
        import polars

        return polars.DataFrame(self._rows(), infer_schema_length=None)


def load_records(*paths: str | Path) -> Records:
    """The valid records in files and folders."""
    return Records(
        integrity.examine(record_files([Path(path) for path in paths or ["results"]])).good.values()
    )


def record_files(sources: Sequence[Path]) -> list[Path]:
    """The record files among files and folders. Raises UsageError for a path that does not exist."""
    for source in sources:
        if not source.exists():
            raise UsageError(printable(f"{source}: no such file or folder"))
    return record.paths(sources)
