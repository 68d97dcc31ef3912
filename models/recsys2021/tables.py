"""The lookup tables that `fit` saves, and of which `predict` reads only the rows that its test rows ask for: memory then grows with
the users and tweets that are scored, not with the weeks before."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from buzzer.engine.frames import Engine, Frame
from buzzer.models.recsys2021.features import Lookups


def collected(e: Engine, tables: Mapping[str, Frame]) -> dict[str, Frame]:
    return {name: e.collect(table) for name, table in tables.items()}


def save(e: Engine, folder: Path, kind: str, tables: Mapping[str, Frame]) -> None:
    for name, table in tables.items():
        e.write_parquet(table, folder / f"{kind}-{name}.parquet")


def load(e: Engine, folder: Path, kind: str) -> dict[str, Frame]:
    """All tables of one kind, whole."""
    found = sorted(folder.glob(f"{kind}-*.parquet"))
    return {path.stem.removeprefix(f"{kind}-"): e.collect(e.read_parquet(path)) for path in found}


def load_wanted(
    e: Engine, folder: Path, kind: str, looked_up: Mapping[str, Lookups], pieces: Sequence[Path]
) -> dict[str, Frame]:
    """The rows of one kind's tables whose keys occur in the pieces (Parquet files of coded rows)."""
    return {
        name: e.collect(
            e.read_matching(folder / f"{kind}-{name}.parquet", occurring(e, lookups, pieces), lookups[0])
        )
        for name, lookups in looked_up.items()
    }


def occurring(e: Engine, lookups: Lookups, pieces: Sequence[Path]) -> Frame:
    """The different keys of the pieces, named as the table names them."""
    keys, by = lookups
    parts = [
        e.distinct(e.rename(e.read_parquet(piece, columns), dict(zip(columns, keys, strict=True))), keys)
        for piece in pieces
        for columns in by
    ]
    return e.collect(e.distinct(e.concat(parts), keys))
