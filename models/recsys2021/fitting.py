"""The steps of `fit`: it computes tables of the training weeks, trains the first stage on these weeks, and trains the second stage on the
validation half of week 4."""

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets import recsys2021 as dataset
from buzzer.datasets.recsys2021.reader import part_files, pieces
from buzzer.datasets.recsys2021.schema import DAY, FIRST_SECOND
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array, Columns, Expr, Lookup, on_host, stack
from buzzer.models.api import progress
from buzzer.models.recsys2021 import ensemble, features, second_stage_features, sizes, trees
from buzzer.models.recsys2021.ensemble import ModelSelection
from buzzer.models.recsys2021.feature_sets import FeatureSet, feature_set
from buzzer.models.recsys2021.features import TARGETS
from buzzer.models.recsys2021.lookup_tables import collected, save
from buzzer.models.recsys2021.params import Context, second_name
from buzzer.models.weights import RANDOM

THIRD_WEEK = FIRST_SECOND + 14 * DAY
MEANS, WEIGHTS, VOCABULARY = "means.json", "weights.npy", "vocabulary.npy"
Keep = Callable[[Columns], Expr]  # a condition for `Engine.filter`
Details = Generator[str, None, dict[str, Any]]  # yields phases, returns details for the record
NetworkInputs = tuple[Mapping[str, Array], Array]  # inputs by name, and labels [rows, targets]
# Multiplicative hashing (Knuth, The Art of Computer Programming 3, section 6.4).
MIX, MIXED = 2_654_435_761, 2**32
# Shares of the phase `features` after which the codes and the lookup tables are made. The rest encodes the sample.
CODES, TABLES = 0.35, 0.65


@dataclass(frozen=True)
class Fitted:
    """The tables that are fitted on the training weeks."""

    codes: Mapping[str, Frame]
    users: Mapping[str, Frame]  # {"code": ...}; empty without networks
    tables: Mapping[str, Frame]
    raw: Mapping[
        str, Frame
    ]  # sums for the `split` trees, over all rows except those that they are trained on
    means: Mapping[str, float]
    saved: bool = False  # whether all rows of `users`, `tables` and `raw` are in the work folder already; here are some of them


class Rows:
    """Coded rows in Parquet files, read by column, so that memory use grows with the columns in use and not with the whole part."""

    def __init__(self, e: Engine, files: Sequence[Path], height: int) -> None:
        self.e, self.files, self.height = e, files, height

    def columns(self, names: Sequence[str], keep: Keep | None = None) -> Frame:
        """Columns and `row` of all rows, or of the rows for which `keep` is true. `keep` may use only these columns."""
        wanted = list(dict.fromkeys([*names, "row"]))
        parts = [self._part(path, wanted, keep) for path in self.files]
        return parts[0] if len(parts) == 1 else self.e.concat(parts)

    def _part(self, path: Path, wanted: list[str], keep: Keep | None) -> Frame:
        """A file's rows, filtered before the next file is read, so that an eager engine never has all dropped rows in memory."""
        t = self.e.read_parquet(path, wanted)
        return self.e.filter(t, keep) if keep else t

    def unlink(self) -> None:
        """Delete the files."""
        for path in self.files:
            path.unlink()


def read_parts(e: Engine, context: Context, extra: Sequence[str]) -> list[Rows]:
    """`read_all` of `train` and of `val`."""
    by_part = {part: part_files(context.data / part) for part in ("train", "val")}
    sizes_of_parts = [sum(map(size_of, files)) for files in by_part.values()]
    return [read_all(e, context, part, extra) for part in progress.over([*by_part], sizes_of_parts)]


def size_of(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().st_size


def read_all(e: Engine, context: Context, part: str, extra: Sequence[str]) -> Rows:
    """The rows of `train` or `val`, read one piece at a time: the columns of `features.base` and the columns `extra`.

    `row` numbers the rows across the files. Strings are not coded yet.
    """
    files: list[Path] = []
    rows, columns = 0, feature_set(context.params)
    paths = part_files(context.data / part)
    for path in progress.over(paths, [*map(size_of, paths)]):
        plain = size_of(path) if path.suffix not in (".gz", ".lzo") else 0
        for piece in progress.over_pieces(pieces(path, context.work, sizes.piece_rows(context)), plain):
            t = features.base(e, features.read_part(e, piece, True), columns, True, extra)
            t = e.collect(e.with_columns(t, row=shifted(rows)))
            rows += e.height(t)
            files.append(context.work / f".{part}{len(files)}.parquet")
            e.write_parquet(t, files[-1])
    return Rows(e, files, rows)


def shifted(rows: int) -> Any:
    """Row numbers plus `rows`."""
    return lambda c: c("row") + rows


def code(rows: Rows, codes: Mapping[str, Frame]) -> None:
    """Code the files in place."""
    e = rows.e
    for path in progress.over(rows.files):
        t = e.collect(features.code(e, e.read_parquet(path), codes))
        e.write_parquet(t, path)


def sampled(rows: int, of: int) -> Keep | None:
    """A condition that is true for about `rows` of `of` rows, spread evenly and the same on every engine; None for all rows."""
    return own_sample(0, rows, of, of)


def own_sample(number: int, rows: int, among: int, of: int) -> Keep | None:
    """As `sampled`, of the rows of `sampled(among, of)`. Samples with consecutive numbers overlap only if `among` is too small for them."""
    whole, size = (min(int(n / max(of, 1) * MIXED), MIXED) for n in (among, min(rows, among)))
    if size == MIXED:
        return None
    first = number * size % max(whole, 1)
    end = first + size

    def keep(c: Columns) -> Expr:
        place = c("row") * MIX % MIXED
        return ((place >= first) & (place < min(end, whole))) | (place < end - whole)

    return keep


def late(c: Columns) -> Expr:
    """True for a fifth of the third week. The `split` trees are trained on it with sums over the other rows (winners' third XGBoost)."""
    return (c("time") >= THIRD_WEEK) & (c("row") % 5 == 0)


def fit_tables(
    e: Engine, context: Context, models: ModelSelection, train: Rows, codes: Mapping[str, Frame]
) -> Fitted:
    """Sums, counts and codes over the training rows."""
    columns = feature_set(context.params)
    users, raw = {}, {}
    with progress.part(0.0, 0.5):
        tables = features.fit_tables(e, train.columns, columns, e.collect)
    if models.all_networks:
        users = collected(e, {"code": features.fit_users(e, train.columns, context.params.user_rows)})
    if "split" in models.trees:

        def early(names: Sequence[str]) -> Frame:
            return train.columns([*names, "time"], lambda c: ~late(c))

        with progress.part(0.6, 1.0):
            raw = features.fit_raw_tables(e, early, columns, e.collect)
    return Fitted(codes, users, tables, raw, features.priors(e, tables))


def first_stage(e: Engine, context: Context, models: ModelSelection, train: Rows, fitted: Fitted) -> Details:
    """Train the models of the first stage on rows that are encoded without their own labels.

    Returns the details of the networks: `token_vectors`, `users_with_vectors`, and under each network's name its history.
    """
    params, details = context.params, dict[str, Any]()
    names = feature_set(params).read_names()
    sample = e.keep(train.columns(names, sampled(params.sample_rows, train.height)))
    strategies = [name for name in ("kfold", "loo") if name in models.trees]
    if models.all_networks and "kfold" not in strategies:
        strategies.append("kfold")
    done = 0.0 if fitted.saved else TABLES  # of the first phase `features`
    for strategy in strategies:
        details |= yield from encoded_by(e, context, models, strategy, train, sample, fitted, done)
        done = 0.0
    del sample
    if "split" in models.trees:
        yield from split_trees(e, context, train, fitted)
    return details


def encoded_by(
    e: Engine,
    context: Context,
    models: ModelSelection,
    strategy: str,
    train: Rows,
    sample: Frame,
    fitted: Fitted,
    done: float,
) -> Details:
    """Train the models that read rows encoded by a strategy: its trees, and for `kfold` the networks. Returns the networks' details.

    done: share of the phase `features` that is done.
    """
    columns = feature_set(context.params)
    # Networks are given all columns, and choose among them.
    readers = None if strategy == "kfold" and models.all_networks else [f"trees_{strategy}"]
    yield "features"
    with progress.part(done, 1.0):
        rows = features.encode_own(
            e, sample, fitted.tables, fitted.means, strategy, columns, readers, source=train.columns
        )
        rows = e.keep(rows)
    yield "transfer"
    y = labels(e, rows)
    if strategy in models.trees:
        names = columns.of(f"trees_{strategy}")
        x = ensemble.read_by(strategy, e.matrix(rows, names), names)
        yield "trees"
        for _ in trees.fit(context, strategy, x, y):
            yield "trees"
    if strategy == "kfold" and models.all_networks:
        return (yield from networks(e, context, models, train, rows, fitted))
    return {}


def split_trees(e: Engine, context: Context, train: Rows, fitted: Fitted) -> Iterator[str]:
    """Train the `split` trees, one model for each engagement and author group."""
    params, columns = context.params, feature_set(context.params)
    names = columns.raw_names()
    yield "features"
    rows = e.keep(train.columns([*columns.read_names(), "time"], late))
    if keep := sampled(params.sample_rows, e.height(rows)):
        rows = e.filter(rows, keep)
    rows = e.keep(e.lookups(rows, features.raw_lookups(fitted.raw, columns)))
    yield "transfer"
    x = e.matrix(rows, names)
    groups = on_host(x[:, names.index("a_group")])
    yield "trees"
    for _ in trees.fit_grouped(context, "split", x, labels(e, rows), groups):
        yield "trees"


def networks(
    e: Engine, context: Context, models: ModelSelection, train: Rows, rows: Frame, fitted: Fitted
) -> Details:
    """Train each network on its own sample of the encoded rows, so that their errors differ more."""
    from buzzer.models.recsys2021 import network_training

    params, users = context.params, e.height(fitted.users["code"])
    details: dict[str, Any] = {
        "token_vectors": network_training.prepare(context, models.all_networks, users),
        "users_with_vectors": users,
    }
    all_rows = params.network_rows >= min(params.sample_rows, train.height)
    inputs: NetworkInputs | None = None
    for number, name in enumerate(progress.over(models.all_networks)):
        yield "networks"
        if inputs is None or not all_rows:
            inputs = None  # frees the memory before the next rows are read
            keep = own_sample(number, params.network_rows, params.sample_rows, train.height)
            inputs = network_inputs(e, context, models, train, rows, fitted, keep)
        details[name] = yield from network_training.fit(context, name, *inputs)
    network_training.store_graphs(models.all_networks, context)
    return details


def network_inputs(
    e: Engine,
    context: Context,
    models: ModelSelection,
    train: Rows,
    rows: Frame,
    fitted: Fitted,
    keep: Keep | None,
) -> NetworkInputs:
    """The networks' inputs and labels for the encoded rows for which `keep` is true, with the first tokens of their texts."""
    sample = e.filter(rows, keep) if keep else rows
    coded = e.keep(e.lookups(sample, features.user_lookups(fitted.users["code"])))
    networks_only = ModelSelection((), models.networks, (), models.baseline)
    texts = train.columns([features.TEXTS], keep)
    columns = feature_set(context.params)
    inputs = ensemble.inputs(e, coded, columns, networks_only, context.params.longest_text(), texts)
    return inputs.everything(), labels(e, coded)


def labels(e: Engine, t: Frame) -> Array:
    """The labels, 0 or 1, float32 [rows, targets], in the order of `row`."""
    return stack(e.to_numpy(t, TARGETS), TARGETS, np.float32)


def lookups(e: Engine, fitted: Fitted, columns: FeatureSet) -> list[Lookup]:
    """The first stage's lookups, for coded rows that the tables were not fitted on."""
    wanted = features.lookups(e, fitted.tables, fitted.means, columns)
    wanted += features.raw_lookups(fitted.raw, columns) if fitted.raw else []
    return wanted + (features.user_lookups(fitted.users["code"]) if fitted.users else [])


def encoded(e: Engine, t: Frame, wanted: Sequence[Lookup], columns: FeatureSet) -> Frame:
    """Coded rows with the looked-up columns."""
    return e.keep(features.pair_features(e, e.lookups(t, wanted), columns))


def second_stage(e: Engine, context: Context, models: ModelSelection, part: Rows, fitted: Fitted) -> Details:
    """Compute the tables of the validation half, predict a sample of its rows with the first stage, train the second stage on these
    rows, and save all tables.

    Returns the details `second_rows`, the rows of the sample, and `validation`: the official scores of each first-stage model on
    the sample.
    """
    params, chosen = context.params, feature_set(context.params)
    yield "features"
    with progress.part(0.0, 0.4):
        tables = second_stage_features.fit_tables(e, part.columns, chosen, models.second, e.collect)
    means = second_stage_features.priors(e, part.columns)
    with progress.part(0.4, 0.6):
        counts = collected(e, second_stage_features.count(e, part.columns, chosen, models.second))
    counted = second_stage_features.count_lookups(counts, chosen)
    keep = sampled(params.second_rows, part.height)
    val = encoded(e, part.columns(chosen.read_names(), keep), lookups(e, fitted, chosen), chosen)
    yield "transfer"
    texts = part.columns([features.TEXTS], keep) if models.all_networks else None
    rows, y = ensemble.inputs(e, val, chosen, models, params.longest_text(), texts), labels(e, val)
    followers = e.to_numpy(val, ["a_followers"])["a_followers"]
    yield "load"
    first = ensemble.FirstStage(context, models)
    yield "trees"
    probabilities = first.predict_trees(rows)
    yield "networks"
    probabilities |= first.predict_networks(rows)
    log_odds = ensemble.log_odds_of(rows.x, probabilities, models)
    if models.blended:
        np.save(context.work / WEIGHTS, ensemble.weigh(log_odds, y))
    for name in models.second:
        yield "features"
        t = e.lookups(val, counted)
        t = second_stage_features.encode_own(e, t, tables, means, chosen, name, part.columns)
        names = chosen.week_names(name)
        columns = ensemble.read_by(name, e.matrix(t, names), names)
        yield "trees"
        read = ensemble.Selection(chosen, second_name(name)).of(rows.x)
        x, margins = ensemble.stacked(read, log_odds, columns)
        for _ in trees.fit(context, second_name(name), x, y, margins):
            yield "trees"
    yield "write"
    save_all(e, context.work, fitted, tables)
    (context.work / MEANS).write_text(json.dumps({"train": fitted.means, "validation": means}))
    yield "score"
    if params.weights == RANDOM:
        return {"second_rows": len(y)}
    truth = {target: y[:, i] for i, target in enumerate(TARGETS)}
    by_model = {name: {t: p[:, i] for i, t in enumerate(TARGETS)} for name, p in probabilities.items()}
    scores = {name: dataset.scores(truth, p, followers) for name, p in by_model.items()}
    return {"second_rows": len(y), "validation": scores}


def save_all(e: Engine, folder: Path, fitted: Fitted, second_stage_tables: Mapping[str, Frame]) -> None:
    """Write all lookup tables that are not saved yet. The kind of a table is the prefix of its file."""
    kinds = {"code": fitted.codes, "second": second_stage_tables}
    if not fitted.saved:
        kinds |= {"user": fitted.users, "train": fitted.tables, "raw": fitted.raw}
    for kind, tables in kinds.items():
        save(e, folder, kind, tables)


def means(folder: Path) -> dict[str, dict[str, float]]:
    """The label means that `fit` saved: `train`, over the training weeks, and `validation`, over the validation half."""
    saved: dict[str, dict[str, float]] = json.loads((folder / MEANS).read_text())
    return saved
