"""The predict job, a piece of rows at a time; in one process, or each of several workers for pieces of its own."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets.recsys2021.reader import part_files, pieces
from buzzer.engine import frames
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array, on_host
from buzzer.models.api.context import RunContext
from buzzer.models.recsys2021 import ensemble, features, fitting, second_stage_features, sizes
from buzzer.models.recsys2021.ensemble import ModelSelection
from buzzer.models.recsys2021.fitting import Fitted
from buzzer.models.recsys2021.lookup_tables import Columns, kept, load, load_wanted, merged

IDS = ("tweet_id", "enaging_user_id")
FIRST = "first"


@dataclass(frozen=True)
class Predicted:
    """Rows of the submission, on the host."""

    ids: Any  # pyarrow.Table of IDS
    found: Mapping[str, Array]  # model -> probabilities float32 [rows, targets]
    blend: Array  # float32 [rows, targets]


def pieces_of_test(job: RunContext, rank: int = 0, of: int = 1) -> Iterator[tuple[int, Path]]:
    """The test's part files, cut where they are too large to be worked on whole, and numbered; every `of`-th piece from `rank` on."""
    numbers, last = count(), -1

    def wanted() -> bool:
        nonlocal last
        last = next(numbers)
        return last % of == rank

    for path in part_files(job.data / "test"):
        for piece in pieces(path, job.out, sizes.piece_rows(job), wanted):
            yield last, piece


class Piece:
    """Coded rows, where they were computed or, once put aside, in a Parquet file."""

    def __init__(self, e: Engine, path: Path, rows: Frame) -> None:
        self.e, self.path = e, path
        self._rows: Frame | None = rows

    def columns(self, names: Sequence[str]) -> Frame:
        """Columns by name, and `row`."""
        if self._rows is not None:
            return self.e.select(self._rows, names)
        return self.e.read_parquet(self.path, list(dict.fromkeys([*names, "row"])))

    def put_aside(self) -> None:
        if self._rows is not None:
            self.e.write_parquet(self._rows, self.path)
            self._rows = None

    def forget(self) -> None:
        self._rows = None
        self.path.unlink(missing_ok=True)


class Predictor:
    """What a process has open for prediction. First `preprocess` every piece, then `load_tables`, then `predict` every piece."""

    def __init__(self, job: RunContext) -> None:
        self.job, self.e, self.models = job, frames.load(job.engine), ensemble.chosen(job.params)
        self.codes = load(self.e, job.work, "code")
        self.means = fitting.means(job.work)
        self.first, self.second = (
            ensemble.FirstStage(job, self.models),
            ensemble.SecondStage(job, self.models),
        )
        self.beside = [*IDS, features.TEXTS] if self.first.networks else [*IDS]
        self.seen: list[Piece] = []

    def preprocess(self, number: int, path: Path) -> dict[str, Frame]:
        """Parse and code a piece, and put it aside under `job.out` unless it is the only one; its counts."""
        e = self.e
        t = features.base(e, features.read_part(e, path, False), False, self.beside)
        t = features.code(e, t, self.codes)
        t = e.keep(e.select(t, [*features.coded_names(), *self.beside]))
        self.seen.append(Piece(e, self.job.out / f".piece{number}.parquet", t))
        counts = kept(e, second_stage_features.count(e, t, self.models.second))
        if len(self.seen) > 1:  # memory is for one piece at a time
            for piece in self.seen:
                piece.put_aside()
        return counts

    def add_up(self, counts: Sequence[Mapping[str, Frame]]) -> dict[str, Frame]:
        return kept(self.e, second_stage_features.add_up(self.e, counts))

    def load_tables(self, counted: Mapping[str, Frame]) -> None:
        """Read what `fit` saved of the users and tweets that the pieces have; `counted`: over all rows that are scored."""
        e, second, pieces = self.e, self.models.second, [piece.columns for piece in self.seen]
        fitted = wanted(e, self.job.work, self.models, pieces, self.codes, self.means["train"])
        of_week = load_wanted(e, self.job.work, "week", second_stage_features.looked_up_by(second), pieces)
        kinds = (fitted.tables, fitted.raw, fitted.users, of_week)
        self.table_rows = sum(e.height(table) for kind in kinds for table in kind.values())
        lookups = [
            *fitting.lookups(e, fitted),
            *second_stage_features.lookups(e, of_week, self.means["week"], second),
        ]
        self.lookups = merged(e, [*lookups, *second_stage_features.count_lookups(counted)])

    def predict(self, piece: Piece) -> Generator[str, None, Predicted]:
        """A piece through both stages; yields its phases."""
        e, models = self.e, self.models
        yield "features"
        t = fitting.encoded(e, piece.columns(features.coded_names()), self.lookups)
        yield "transfer"
        texts = piece.columns([features.TEXTS]) if self.first.networks else None
        rows = ensemble.inputs(e, t, models, self.job.params["tokens"], texts)
        beside = {name: e.matrix(t, second_stage_features.names(name)) for name in models.second}
        del t  # the matrices are what the models read
        yield "trees"
        found = self.first.predict_trees(rows)
        yield "networks"
        found |= self.first.predict_networks(rows)
        yield "trees"
        odds = ensemble.odds_of(rows.x, found, models)
        found[FIRST] = on_host(ensemble.probability(ensemble.mean_odds(odds)))
        found |= self.second.predict(rows.x, odds, beside)
        yield "write"
        return Predicted(e.to_arrow(piece.columns(IDS), IDS), found, final(found, models))


def names_of(models: ModelSelection) -> list[str]:
    """Every model that predicts, as scores call them."""
    baseline = [ensemble.BASELINE] if models.baseline else []
    return [*models.first, *baseline, FIRST, *(f"second_{name}" for name in models.second)]


def final(found: Mapping[str, Array], models: ModelSelection) -> Array:
    """The blend: the mean of the second stage's models, or the first stage's where there is none."""
    second = [found[f"second_{name}"] for name in models.second]
    return np.asarray(np.mean(second, axis=0, dtype=np.float32)) if second else found[FIRST]


def wanted(
    e: Engine,
    work: Path,
    models: ModelSelection,
    pieces: Sequence[Columns],
    codes: Mapping[str, Frame],
    means: Mapping[str, float],
) -> Fitted:
    """What `fit` saved of the users and tweets that the pieces have."""
    users = load_wanted(e, work, "user", features.USERS, pieces) if models.all_networks else {}
    raw = load_wanted(e, work, "raw", features.raw_looked_up_by(), pieces) if "split" in models.trees else {}
    return Fitted(codes, users, load_wanted(e, work, "train", features.looked_up_by(), pieces), raw, means)
