"""The lookup tables that `fit` saves, and of which `predict` reads only the rows that its test rows ask for: memory then grows with
the users and tweets that are scored, not with the weeks before."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Lookup, by_keys, fill_of
from buzzer.models.recsys2021.features import Asked, same

Columns = Callable[[Sequence[str]], Frame]  # of a piece of coded rows, by name


def collected(e: Engine, tables: Mapping[str, Frame]) -> dict[str, Frame]:
    return {name: e.collect(table) for name, table in tables.items()}


def kept(e: Engine, tables: Mapping[str, Frame]) -> dict[str, Frame]:
    return {name: e.keep(table) for name, table in tables.items()}


def save(e: Engine, folder: Path, kind: str, tables: Mapping[str, Frame]) -> None:
    for name, table in tables.items():
        e.write_parquet(table, folder / f"{kind}-{name}.parquet")


def load(e: Engine, folder: Path, kind: str) -> dict[str, Frame]:
    """All tables of one kind, whole."""
    found = sorted(folder.glob(f"{kind}-*.parquet"))
    return {path.stem.removeprefix(f"{kind}-"): e.collect(e.read_parquet(path)) for path in found}


def load_wanted(
    e: Engine, folder: Path, kind: str, asked: Mapping[str, Asked], pieces: Sequence[Columns]
) -> dict[str, Frame]:
    """The rows of one kind's tables whose keys occur in the pieces."""
    return {
        name: e.collect(e.read_matching(folder / f"{kind}-{name}.parquet", occurring(e, by, pieces), by[0]))
        for name, by in asked.items()
    }


def occurring(e: Engine, asked: Asked, pieces: Sequence[Columns]) -> Frame:
    """The different keys of the pieces, named as the table names them."""
    keys, by = asked
    parts = [
        e.distinct(e.rename(piece(columns), dict(zip(columns, keys, strict=True))), keys)
        for piece in pieces
        for columns in by
    ]
    return e.keep(parts[0] if len(parts) == 1 else e.distinct(e.concat(parts), keys))


def merged(e: Engine, wanted: Sequence[Lookup]) -> list[Lookup]:
    """The same lookups, one for each set of the frame's keys, in tables that are kept where the engine computes: no table is merged or
    moved again for a piece, and rows are joined once a key set."""
    return [one(e, keys, together) for keys, together in by_keys(wanted).items()]


def one(e: Engine, keys: Sequence[str], wanted: Sequence[Lookup]) -> Lookup:
    """Lookups by the same columns of the frame as one, in a table that names all columns as the frame does."""
    alike = [renamed(e, each) for each in wanted]
    fills = {name: fill_of(each.fill, name) for each in alike for name in each.columns}
    if len(alike) == 1:
        table = e.select(alike[0].table, [*keys, *fills])
    else:
        every = e.distinct(e.concat([e.select(each.table, keys) for each in alike]), keys)
        table = e.lookups(every, alike)
    return Lookup(e.keep(table), same(keys), same(list(fills)), fills)


def renamed(e: Engine, wanted: Lookup) -> Lookup:
    """The same lookup in a table that names its columns as the frame does."""
    names = {right: left for left, right in wanted.on.items()} | dict(wanted.columns)
    table = e.rename(e.select(wanted.table, list(names)), names)
    return replace(wanted, table=table, on=same(list(wanted.on)), columns=same(list(wanted.columns.values())))
