"""The lookup tables that `fit` saves. `predict` reads only the rows whose keys occur in its test rows, so memory use grows with the
scored users and tweets and not with the training weeks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Lookup, by_keys, fill_of
from buzzer.models.recsys2021.features import KeyColumns, same

Columns = Callable[[Sequence[str]], Frame]  # columns of a piece of coded rows, by name


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
    e: Engine, folder: Path, kind: str, wanted: Mapping[str, KeyColumns], pieces: Sequence[Columns]
) -> dict[str, Frame]:
    """The tables of one kind, with the rows whose keys occur in the pieces."""
    return {
        name: e.collect(e.read_matching(folder / f"{kind}-{name}.parquet", occurring(e, by, pieces), by[0]))
        for name, by in wanted.items()
    }


def occurring(e: Engine, key_columns: KeyColumns, pieces: Sequence[Columns]) -> Frame:
    """The distinct keys of the pieces, under the table's column names."""
    keys, by = key_columns
    parts = [
        e.distinct(e.rename(piece(columns), dict(zip(columns, keys, strict=True))), keys)
        for piece in pieces
        for columns in by
    ]
    return e.keep(parts[0] if len(parts) == 1 else e.distinct(e.concat(parts), keys))


def merged(e: Engine, wanted: Sequence[Lookup]) -> list[Lookup]:
    """One lookup for each set of key columns, equivalent to `wanted`.

    Then rows are joined once for each key set. The merged tables stay on the engine's device, so they are merged and moved only once for
    all pieces.
    """
    return [merge_one(e, keys, lookups) for keys, lookups in by_keys(wanted).items()]


def merge_one(e: Engine, keys: Sequence[str], wanted: Sequence[Lookup]) -> Lookup:
    """One lookup equivalent to several with the same key columns of the frame. Its table uses the frame's column names."""
    alike = [renamed(e, lookup) for lookup in wanted]
    fills = {name: fill_of(lookup.fill, name) for lookup in alike for name in lookup.columns}
    if len(alike) == 1:
        table = e.select(alike[0].table, [*keys, *fills])
    else:
        all_keys = e.distinct(e.concat([e.select(lookup.table, keys) for lookup in alike]), keys)
        table = e.lookups(all_keys, alike)
    return Lookup(e.keep(table), same(keys), same(list(fills)), fills)


def renamed(e: Engine, wanted: Lookup) -> Lookup:
    """The same lookup in a table that uses the frame's column names."""
    names = {right: left for left, right in wanted.on.items()} | dict(wanted.columns)
    table = e.rename(e.select(wanted.table, list(names)), names)
    return replace(wanted, table=table, on=same(list(wanted.on)), columns=same(list(wanted.columns.values())))
