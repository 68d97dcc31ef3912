"""Prediction, one piece of rows at a time. One process predicts all pieces, or each worker predicts its share of them."""

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
from buzzer.models.recsys2021 import ensemble, features, fitting, second_stage_features, sizes
from buzzer.models.recsys2021.ensemble import ModelSelection
from buzzer.models.recsys2021.feature_sets import FeatureSet
from buzzer.models.recsys2021.fitting import Fitted
from buzzer.models.recsys2021.lookup_tables import Columns, kept, load, load_wanted, merged
from buzzer.models.recsys2021.params import BASELINE, Context, second_name

IDS = ("tweet_id", "enaging_user_id")
FIRST = "first"  # name of the first stage's mean in scores


@dataclass(frozen=True)
class Predicted:
    """Rows of the submission, on the host."""

    ids: Any  # pyarrow.Table with the columns IDS
    by_model: Mapping[str, Array]  # probabilities float32 [rows, targets]
    blend: Array  # float32 [rows, targets]


def pieces_of_test(context: Context, rank: int = 0, of: int = 1) -> Iterator[tuple[int, Path]]:
    """Number and file of every `of`-th piece of the test, from piece `rank`. A piece is a part file, or a part of a large part file."""
    numbers, last = count(), -1

    def wanted() -> bool:
        nonlocal last
        last = next(numbers)
        return last % of == rank

    for path in part_files(context.data / "test"):
        for piece in pieces(path, context.out, sizes.piece_rows(context), wanted):
            yield last, piece


class Piece:
    """Coded rows: in memory on the engine's device or, after `put_aside`, in a Parquet file."""

    def __init__(self, e: Engine, path: Path, rows: Frame) -> None:
        self.e, self.path = e, path
        self._rows: Frame | None = rows

    def columns(self, names: Sequence[str]) -> Frame:
        """Columns by name, and `row`."""
        if self._rows is not None:
            return self.e.select(self._rows, names)
        return self.e.read_parquet(self.path, list(dict.fromkeys([*names, "row"])))

    def put_aside(self) -> None:
        """Move the rows from memory to the file."""
        if self._rows is not None:
            self.e.write_parquet(self._rows, self.path)
            self._rows = None

    def forget(self) -> None:
        """Drop the rows and delete the file."""
        self._rows = None
        self.path.unlink(missing_ok=True)


class Predictor:
    """The open models of a process. Call `preprocess` for every piece, then `load_tables`, then `predict` for every piece."""

    def __init__(self, context: Context) -> None:
        self.context, self.e = context, frames.load(context.engine)
        self.models = ensemble.select_models(context.params)
        self.columns = features.feature_set(context.params)
        self.codes = load(self.e, context.work, "code")
        self.means = fitting.means(context.work)
        self.first = ensemble.FirstStage(context, self.models)
        self.second = ensemble.SecondStage(context, self.models)
        self.extra = [*IDS, features.TEXTS] if self.first.networks else [*IDS]
        self.pieces: list[Piece] = []

    def preprocess(self, number: int, path: Path) -> dict[str, Frame]:
        """Parse and code a piece. Returns its counts. If there is more than one piece, all are moved to files in `context.out`."""
        e = self.e
        t = features.base(e, features.read_part(e, path, False), self.columns, False, self.extra)
        t = features.code(e, t, self.codes)
        t = e.keep(e.select(t, [*self.columns.coded_names(), *self.extra]))
        self.pieces.append(Piece(e, self.context.out / f".piece{number}.parquet", t))
        counts = kept(e, second_stage_features.count(e, t, self.columns, self.models.second))
        if len(self.pieces) > 1:  # only one piece at a time is in memory
            for piece in self.pieces:
                piece.put_aside()
        return counts

    def add_up(self, counts: Sequence[Mapping[str, Frame]]) -> dict[str, Frame]:
        """The sum of the pieces' counts."""
        return kept(self.e, second_stage_features.add_up(self.e, counts, self.columns))

    def load_tables(self, counted: Mapping[str, Frame]) -> None:
        """Read the rows of the saved tables for the users and tweets in the pieces. counted: the counts over all scored rows."""
        e, second, pieces = self.e, self.models.second, [piece.columns for piece in self.pieces]
        fitted = wanted(
            e, self.context.work, self.columns, self.models, pieces, self.codes, self.means["train"]
        )
        key_columns = second_stage_features.looked_up_by(self.columns, second)
        second_tables = load_wanted(e, self.context.work, "second", key_columns, pieces)
        kinds = (fitted.tables, fitted.raw, fitted.users, second_tables)
        self.table_rows = sum(e.height(table) for kind in kinds for table in kind.values())
        lookups = [
            *fitting.lookups(e, fitted, self.columns),
            *second_stage_features.lookups(e, second_tables, self.means["validation"], self.columns, second),
        ]
        counts = second_stage_features.count_lookups(counted, self.columns)
        self.lookups = merged(e, [*lookups, *counts])

    def predict(self, piece: Piece) -> Generator[str, None, Predicted]:
        """The predictions of both stages for a piece; yields its phases."""
        e, models = self.e, self.models
        yield "features"
        t = fitting.encoded(e, piece.columns(self.columns.coded_names()), self.lookups, self.columns)
        yield "transfer"
        texts = piece.columns([features.TEXTS]) if self.first.networks else None
        rows = ensemble.inputs(e, t, self.columns, models, self.context.params.longest_text(), texts)
        columns = {name: e.matrix(t, self.columns.week_names(name)) for name in models.second}
        del t  # the models read only the matrices
        yield "trees"
        by_model = self.first.predict_trees(rows)
        yield "networks"
        by_model |= self.first.predict_networks(rows)
        yield "trees"
        log_odds = ensemble.log_odds_of(rows.x, by_model, models)
        by_model[FIRST] = on_host(ensemble.probability(ensemble.mean_log_odds(log_odds)))
        by_model |= self.second.predict(rows.x, log_odds, columns)
        yield "write"
        return Predicted(e.to_arrow(piece.columns(IDS), IDS), by_model, final(by_model, models))


def names_of(models: ModelSelection) -> list[str]:
    """Names of all models that are scored."""
    baseline = [BASELINE] if models.baseline else []
    return [*models.first, *baseline, FIRST, *(second_name(name) for name in models.second)]


def final(by_model: Mapping[str, Array], models: ModelSelection) -> Array:
    """The submission's probabilities, float32 [rows, targets]: the mean of the second stage's models, or the first stage's mean."""
    second = [by_model[second_name(name)] for name in models.second]
    return np.asarray(np.mean(second, axis=0, dtype=np.float32)) if second else by_model[FIRST]


def wanted(
    e: Engine,
    work: Path,
    columns: FeatureSet,
    models: ModelSelection,
    pieces: Sequence[Columns],
    codes: Mapping[str, Frame],
    means: Mapping[str, float],
) -> Fitted:
    """The saved tables, with the rows of the users and tweets in the pieces."""
    users = load_wanted(e, work, "user", features.USERS, pieces) if models.all_networks else {}
    raw_keys = features.raw_looked_up_by(columns)
    raw = load_wanted(e, work, "raw", raw_keys, pieces) if "split" in models.trees else {}
    tables = load_wanted(e, work, "train", features.looked_up_by(columns), pieces)
    return Fitted(codes, users, tables, raw, means)
