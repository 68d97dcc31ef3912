"""The lookup tables that `fit` saves. Of large ones `predict` reads only the rows whose keys occur in its test rows, so memory use grows
with the scored users and tweets and not with the training weeks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Lookup, by_keys, fill_of
from buzzer.models.recsys2021.features import KeyColumns, same

Columns = Callable[[Sequence[str]], Frame]  # columns of a piece of coded rows, by name
# A table is read with all its rows if its file has at most so many bytes for each row of the pieces. It then has about a third as many rows,
# and to find the keys that occur would take longer.
BYTES_OF_ROW = 4


class Occurring:
    """The distinct keys that occur in pieces of coded rows. Those of each set of columns are found once.

    rows: number of rows of the pieces.  known: by columns, tables that have one row for each of their distinct keys in the pieces.
    """

    def __init__(
        self,
        e: Engine,
        pieces: Sequence[Columns],
        rows: int,
        known: Iterable[tuple[Sequence[str], Frame]] = (),
    ) -> None:
        self._e, self._pieces, self.rows = e, pieces, rows
        self.found = {tuple(sorted(keys)): e.select(table, keys) for keys, table in known}

    def of(self, columns: Sequence[str]) -> Frame:
        """The keys of some columns of the pieces."""
        name = tuple(sorted(columns))
        if name not in self.found:
            self.found[name] = self._distinct([piece(columns) for piece in self._pieces], columns)
        return self.found[name]

    def in_table(self, key_columns: KeyColumns) -> Frame:
        """The keys of a table's rows that are looked up, under the table's column names."""
        keys, by = key_columns
        parts = [self._e.rename(self.of(columns), dict(zip(columns, keys, strict=True))) for columns in by]
        if len(parts) == 1:
            return parts[0]
        return self._distinct([self._e.select(part, keys) for part in parts], keys)

    def _distinct(self, parts: Sequence[Frame], keys: Sequence[str]) -> Frame:
        e = self._e
        each = [e.distinct(part, keys) for part in parts]
        return e.keep(each[0] if len(each) == 1 else e.distinct(e.concat(each), keys))


def collected(e: Engine, tables: Mapping[str, Frame]) -> dict[str, Frame]:
    """The tables, computed (`Engine.collect`)."""
    return {name: e.collect(table) for name, table in tables.items()}


def kept(e: Engine, tables: Mapping[str, Frame]) -> dict[str, Frame]:
    """The tables, computed and kept on the engine's device (`Engine.keep`)."""
    return {name: e.keep(table) for name, table in tables.items()}


def save(e: Engine, folder: Path, kind: str, tables: Mapping[str, Frame]) -> None:
    """Write the tables as <kind>-<name>.parquet."""
    for name, table in tables.items():
        e.write_parquet(table, folder / f"{kind}-{name}.parquet")


def load(e: Engine, folder: Path, kind: str) -> dict[str, Frame]:
    """All tables of one kind, with all rows."""
    files = sorted(folder.glob(f"{kind}-*.parquet"))
    return {path.stem.removeprefix(f"{kind}-"): e.collect(e.read_parquet(path)) for path in files}


def load_wanted(
    e: Engine, folder: Path, kind: str, wanted: Mapping[str, KeyColumns], occurring: Occurring
) -> dict[str, Frame]:
    """The tables of one kind: small ones with all rows, the others with the rows whose keys occur."""
    return {
        name: e.collect(rows_wanted(e, folder / f"{kind}-{name}.parquet", by, occurring))
        for name, by in wanted.items()
    }


def rows_wanted(e: Engine, path: Path, key_columns: KeyColumns, occurring: Occurring) -> Frame:
    """The rows of a table that may be looked up."""
    if path.stat().st_size <= BYTES_OF_ROW * occurring.rows:
        return e.read_parquet(path)
    return e.read_matching(path, occurring.in_table(key_columns), key_columns[0])


def merged(e: Engine, wanted: Sequence[Lookup], occurring: Occurring) -> list[Lookup]:
    """One lookup for each set of key columns, equivalent to `wanted` for the keys that occur.

    Then rows are joined once for each key set. The merged tables stay on the engine's device, so they are merged and moved only once for
    all pieces.
    """
    return [merge_one(e, keys, lookups, occurring) for keys, lookups in by_keys(wanted).items()]


def merge_one(e: Engine, keys: Sequence[str], wanted: Sequence[Lookup], occurring: Occurring) -> Lookup:
    """One lookup equivalent to several with the same key columns of the frame. Its table uses the frame's column names."""
    alike = [renamed(e, lookup) for lookup in wanted]
    fills = {name: fill_of(lookup.fill, name) for lookup in alike for name in lookup.columns}
    if len(alike) == 1:
        table = e.select(alike[0].table, [*keys, *fills])
    else:
        all_keys = occurring.found.get(tuple(keys))
        if all_keys is None:
            all_keys = e.distinct(e.concat([e.select(lookup.table, keys) for lookup in alike]), keys)
        table = e.lookups(all_keys, alike)
    return Lookup(e.keep(table), same(keys), same(list(fills)), fills)


def renamed(e: Engine, wanted: Lookup) -> Lookup:
    """The same lookup in a table that uses the frame's column names."""
    names = {right: left for left, right in wanted.on.items()} | dict(wanted.columns)
    table = e.rename(e.select(wanted.table, list(names)), names)
    return replace(wanted, table=table, on=same(list(wanted.on)), columns=same(list(wanted.columns.values())))
