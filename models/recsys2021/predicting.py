"""Prediction, one piece of rows at a time. One process predicts all pieces, or each worker predicts its share of them."""

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets.recsys2021.reader import part_files, pieces
from buzzer.engine import frames
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array, on_host
from buzzer.models.kept_pieces import KeptPieces
from buzzer.models.recsys2021 import ensemble, features, fitting, second_stage_features, sizes
from buzzer.models.recsys2021.ensemble import ModelSelection
from buzzer.models.recsys2021.feature_sets import FeatureSet, feature_set
from buzzer.models.recsys2021.fitting import Fitted
from buzzer.models.recsys2021.lookup_tables import Occurring, kept, load, load_wanted, merged, save
from buzzer.models.recsys2021.params import BASELINE, Context, second_name

IDS = ("tweet_id", "enaging_user_id")
FIRST, WEIGHTED = "first", "weighted"  # names of the first stage's mean and weighted mean in scores
# In a file of predictions: the blend's column, and the prefix of each model's column.
BLEND, BY = "blend", "by "
FIRST_PASS, HEIGHTS, ROWS = "first_pass", "heights.txt", "rows"  # a kept piece, and files in kept pieces


@dataclass(frozen=True)
class Predicted:
    """Rows of the submission, on the host."""

    ids: Any  # pyarrow.Table with the columns IDS
    by_model: Mapping[str, Array]  # probabilities float32 [rows, targets]
    blend: Array  # float32 [rows, targets]


def pieces_of_test(
    context: Context, rank: int = 0, of: int = 1, without: Collection[int] = ()
) -> Iterator[tuple[int, Path]]:
    """Number and file of every `of`-th piece of the test, from piece `rank`. A piece is a part file, or a part of a large part file.

    without: numbers of pieces to leave out.
    """
    numbers, last = count(), -1

    def wanted() -> bool:
        nonlocal last
        last = next(numbers)
        return last % of == rank and last not in without

    for path in part_files(context.data / "test"):
        for piece in pieces(path, context.out, sizes.piece_rows(context), wanted):
            yield last, piece


def kept_pieces(context: Context) -> KeptPieces:
    """The pieces of a run: where the harness keeps them or, if it does not, beside the submission."""
    return KeptPieces(context.partial or context.out / ".pieces")


class Piece:
    """Coded rows and their counts: in memory on the engine's device or, after `put_aside`, among the whole pieces.

    height: number of rows; None = counted in `rows`, or in the file.
    """

    def __init__(
        self,
        e: Engine,
        kept: KeptPieces,
        number: int,
        rows: Frame | None = None,
        counts: Mapping[str, Frame] | None = None,
        height: int | None = None,
    ) -> None:
        self.e, self.kept, self.number = e, kept, number
        self._rows, self._counts, self._height = rows, counts, height

    @property
    def coded(self) -> str:
        """The name under which its rows are kept."""
        return f"coded{self.number}"

    @property
    def height(self) -> int:
        """Its number of rows."""
        if self._height is None:
            from pyarrow.parquet import read_metadata

            file = self.kept.path(self.coded) / ROWS
            in_file = self._rows is None
            self._height = read_metadata(file).num_rows if in_file else self.e.height(self._rows)
        return self._height

    def columns(self, names: Sequence[str]) -> Frame:
        """Columns by name, and `row`."""
        if self._rows is not None:
            return self.e.select(self._rows, names)
        path = self.kept.path(self.coded) / ROWS
        return self.e.read_parquet(path, list(dict.fromkeys([*names, "row"])))

    def counts(self) -> Mapping[str, Frame]:
        """Its counts over the scored rows."""
        return load(self.e, self.kept.path(self.coded), "counts") if self._counts is None else self._counts

    def put_aside(self) -> None:
        """Move the rows from memory to a file. The counts are saved as well and stay in memory."""
        if self._rows is not None:
            with self.kept.making(self.coded) as folder:
                self.e.write_parquet(self._rows, folder / ROWS)
                save(self.e, folder, "counts", self.counts())
            self._rows = None

    def forget(self) -> None:
        """Drop the rows and delete the file."""
        self._rows = None
        self.kept.remove(self.coded)


class Joined:
    """Consecutive pieces that are predicted as one. All tables and vectors are read once for them."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces, self.kept = pieces, pieces[0].kept

    @property
    def predicted(self) -> str:
        """The name under which the predictions are kept."""
        return f"predicted{self.pieces[0].number}"

    @property
    def is_kept(self) -> bool:
        """Whether an earlier sitting has left the predictions or all coded rows."""
        return self.predicted in self.kept or all(piece.coded in self.kept for piece in self.pieces)

    def columns(self, names: Sequence[str]) -> Frame:
        """Columns by name, and `row`."""
        parts = [piece.columns(names) for piece in self.pieces]
        return parts[0] if len(parts) == 1 else self.pieces[0].e.concat(parts)

    def forget(self) -> None:
        """Drop the rows and delete the files."""
        for piece in self.pieces:
            piece.forget()


def joined(pieces: Sequence[Piece], rows: int) -> list[Joined]:
    """The pieces in order, joined as long as they have at most `rows` rows together."""
    groups: list[list[Piece]] = []
    together = rows
    for piece in pieces:
        together += piece.height
        if not groups or together > rows:
            groups.append([])
            together = piece.height
        groups[-1].append(piece)
    return [Joined(group) for group in groups]


class Predictor:
    """The open models of a process. Call `preprocess` for every piece, then `load_tables`, then `predict` for all that are `joined`.

    What earlier sittings of the run have left in `context.partial` is not done again.
    """

    def __init__(self, context: Context, joined_rows: int | None = None) -> None:
        """joined_rows: most rows of pieces that are predicted together; None = the default of the engine."""
        self.context, self.e = context, frames.load(context.engine)
        self.joined_rows = sizes.joined_rows(context) if joined_rows is None else joined_rows
        self.models = ensemble.select_models(context.params)
        self.columns = replace(feature_set(context.params), pieces=context.work / fitting.VOCABULARY)
        self.codes = load(self.e, context.work, "code")
        self.means = fitting.means(context.work)
        self.weights = np.load(context.work / fitting.WEIGHTS) if self.models.blended else None
        self.first = ensemble.FirstStage(context, self.models)
        self.second = ensemble.SecondStage(context, self.models)
        self.extra = [*IDS, features.TEXTS] if self.first.networks else [*IDS]
        self.pieces: list[Piece] = []
        self.kept = kept_pieces(context)
        self.table_rows = 0

    def preprocess(self, number: int, path: Path) -> Mapping[str, Frame]:
        """Parse and code a piece. Returns its counts. Pieces that are not predicted together are moved to files.

        `row` continues after the last piece.
        """
        e, before = self.e, self.rows
        t = e.with_columns(features.read_part(e, path, False), row=lambda column: column("row") + before)
        t = features.base(e, t, self.columns, False, self.extra)
        t = features.code(e, t, self.codes)
        t = e.keep(e.select(t, [*self.columns.coded_names(), *self.extra]))
        counts = kept(
            e, second_stage_features.count(e, partial(e.select, t), self.columns, self.models.second)
        )
        self.pieces.append(Piece(e, self.kept, number, t, counts))
        if self.in_files:
            for piece in self.pieces:
                piece.put_aside()
        return counts

    @property
    def rows(self) -> int:
        """Number of rows of the pieces."""
        return sum(piece.height for piece in self.pieces)

    @property
    def in_files(self) -> bool:
        """Whether the pieces are in files. In memory are only those that are predicted together."""
        return len(self.pieces) > 1 and self.rows > self.joined_rows

    def first_pass(self) -> Generator[str, None, Mapping[str, Frame]]:
        """Code all pieces of the test. Returns the counts over all scored rows; yields its phases."""
        if FIRST_PASS in self.kept:
            folder = self.kept.path(FIRST_PASS)
            heights = enumerate(map(int, (folder / HEIGHTS).read_text().split()))
            self.pieces = [Piece(self.e, self.kept, number, height=rows) for number, rows in heights]
            if all(each.is_kept for each in self.joined()):
                return load(self.e, folder, "counted")
        numbers = takewhile(lambda n: f"coded{n}" in self.kept, count())
        self.pieces = [Piece(self.e, self.kept, number) for number in numbers]
        for number, path in pieces_of_test(self.context, without={piece.number for piece in self.pieces}):
            yield "preprocess"
            self.preprocess(number, path)
        yield "preprocess"
        counted = self.add_up([piece.counts() for piece in self.pieces])
        if self.context.partial is not None and self.in_files:
            with self.kept.making(FIRST_PASS) as folder:
                save(self.e, folder, "counted", counted)
                (folder / HEIGHTS).write_text(" ".join(str(piece.height) for piece in self.pieces))
        return counted

    def joined(self) -> list[Joined]:
        """The pieces, in groups that are predicted together."""
        return joined(self.pieces, self.joined_rows)

    def add_up(self, counts: Sequence[Mapping[str, Frame]]) -> Mapping[str, Frame]:
        """The sum of the pieces' counts."""
        return kept(self.e, second_stage_features.add_up(self.e, counts, self.columns))

    def load_tables(self, counted: Mapping[str, Frame], shared: bool = False) -> None:
        """Read the rows of the saved tables for the users and tweets in the pieces that have no predictions yet.

        counted: the counts over all scored rows.  shared: whether other workers predict some of these rows.
        """
        todo = [each for each in self.joined() if each.predicted not in self.kept]
        pieces = [piece for each in todo for piece in each.pieces]
        if not pieces:
            return
        e, second = self.e, self.models.second
        every_row = not shared and len(pieces) == len(self.pieces)
        known = second_stage_features.counted_keys(counted, self.columns) if every_row else []
        columns, rows = [piece.columns for piece in pieces], sum(piece.height for piece in pieces)
        occurring = Occurring(e, columns, rows, known)
        fitted = wanted(
            e, self.context.work, self.columns, self.models, occurring, self.codes, self.means["train"]
        )
        key_columns = second_stage_features.looked_up_by(self.columns, second)
        second_tables = load_wanted(e, self.context.work, "second", key_columns, occurring)
        kinds = (fitted.tables, fitted.raw, fitted.users, second_tables)
        self.table_rows = sum(e.height(table) for kind in kinds for table in kind.values())
        lookups = [
            *fitting.lookups(e, fitted, self.columns),
            *second_stage_features.lookups(e, second_tables, self.means["validation"], self.columns, second),
        ]
        counts = second_stage_features.count_lookups(counted, self.columns)
        self.lookups = merged(e, [*lookups, *counts], occurring)

    def predicted(self, piece: Joined) -> Generator[str, None, Predicted]:
        """The predictions of joined pieces, which an earlier sitting may have left; yields its phases."""
        if piece.predicted in self.kept:
            yield "write"
            return read(self.kept.path(piece.predicted) / ROWS)
        rows = yield from self.predict(piece)
        if self.context.partial is not None and self.in_files:
            self.keep(piece, rows)
        return rows

    def keep(self, piece: Joined, predicted: Predicted) -> None:
        """Save the predictions of joined pieces."""
        with self.kept.making(piece.predicted) as folder:
            write(folder / ROWS, predicted)

    def close(self) -> None:
        """Delete the pieces, unless the harness keeps them."""
        if self.context.partial is None:
            self.kept.clear()

    def predict(self, piece: Joined) -> Generator[str, None, Predicted]:
        """The predictions of both stages for joined pieces; yields its phases."""
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
        if self.weights is not None:
            weighted = ensemble.weighted_log_odds(log_odds, self.weights)
            by_model[WEIGHTED] = on_host(ensemble.probability(weighted))
        by_model |= self.second.predict(rows.x, log_odds, columns)
        yield "write"
        return Predicted(e.to_arrow(piece.columns(IDS), IDS), by_model, final(by_model, models))


def names_of(models: ModelSelection) -> list[str]:
    """Names of all models that are scored."""
    baseline = [BASELINE] if models.baseline else []
    means = [FIRST, WEIGHTED] if models.blended else [FIRST]
    return [*models.first, *baseline, *means, *(second_name(name) for name in models.second)]


def final(by_model: Mapping[str, Array], models: ModelSelection) -> Array:
    """The submission's probabilities, float32 [rows, targets]: the mean of the second stage's models, or the first stage's mean."""
    second = [by_model[second_name(name)] for name in models.second]
    return np.asarray(np.mean(second, axis=0, dtype=np.float32)) if second else by_model[FIRST]


def wanted(
    e: Engine,
    work: Path,
    columns: FeatureSet,
    models: ModelSelection,
    occurring: Occurring,
    codes: Mapping[str, Frame],
    means: Mapping[str, float],
) -> Fitted:
    """The saved tables, with the rows of the users and tweets in the pieces."""
    users = load_wanted(e, work, "user", features.USERS, occurring) if models.all_networks else {}
    raw_keys = features.raw_looked_up_by(columns)
    raw = load_wanted(e, work, "raw", raw_keys, occurring) if "split" in models.trees else {}
    tables = load_wanted(e, work, "train", features.looked_up_by(columns), occurring)
    return Fitted(codes, users, tables, raw, means)


def write(path: Path, rows: Predicted) -> None:
    """Write an Arrow file: the ids, and the blend and each model's probabilities as lists, one value for each target."""
    from pyarrow import FixedSizeListArray, array, feather

    table = rows.ids
    columns = {BLEND: rows.blend} | {f"{BY}{name}": p for name, p in rows.by_model.items()}
    for name, p in columns.items():
        table = table.append_column(name, FixedSizeListArray.from_arrays(array(p.ravel()), p.shape[1]))
    feather.write_feather(table, path, compression="uncompressed")


def read(path: Path) -> Predicted:
    """The rows that `write` saved."""
    from pyarrow import feather

    table = feather.read_table(path)
    columns = {name: matrix(table[name]) for name in table.column_names if name not in IDS}
    blend = columns.pop(BLEND)
    return Predicted(table.select(IDS), {name.removeprefix(BY): p for name, p in columns.items()}, blend)


def matrix(lists: Any) -> Array:
    """A column of lists of equal length as an array [rows, length]."""
    whole = lists.combine_chunks()
    return np.asarray(whole.flatten()).reshape(len(whole), -1)
