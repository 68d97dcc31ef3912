"""`fit`, a step a function: tables from the training weeks, the first stage on them, the second on the validation half of week 4."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets import recsys2021 as dataset
from buzzer.datasets.recsys2021.reader import part_files, pieces
from buzzer.datasets.recsys2021.schema import DAY, FIRST_SECOND
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import FIRST_CODE, Array, Columns, Expr, Lookup, on_host, stack
from buzzer.models.api.context import RunContext
from buzzer.models.recsys2021 import ensemble, features, second_stage_features, sizes, trees
from buzzer.models.recsys2021.ensemble import ModelSelection
from buzzer.models.recsys2021.features import TARGETS
from buzzer.models.recsys2021.lookup_tables import collected, save

THIRD_WEEK = FIRST_SECOND + 14 * DAY
MEANS = "means.json"
Keep = Callable[[Columns], Expr]  # of `filter`
MIX, MIXED = (
    2_654_435_761,
    2**32,
)  # Knuth, The Art of Computer Programming 3, section 6.4: multiplicative hashing


@dataclass(frozen=True)
class Fitted:
    """What the training weeks gave, as frames."""

    codes: Mapping[str, Frame]
    users: Mapping[str, Frame]  # {"code": ...}, or nothing without networks
    tables: Mapping[str, Frame]
    raw: Mapping[str, Frame]  # sums before the rows that the third kind of trees learns from
    means: Mapping[str, float]


class Rows:
    """Coded rows in Parquet files, of which what is asked for is read: memory grows with the columns in use, not with the set."""

    def __init__(self, e: Engine, files: Sequence[Path], height: int) -> None:
        self.e, self.files, self.height = e, files, height

    def columns(self, names: Sequence[str], keep: Keep | None = None) -> Frame:
        """Columns of all rows, or of those that `keep` holds for; it may use those columns and `row`."""
        wanted = list(dict.fromkeys([*names, "row"]))
        parts = [self._part(path, wanted, keep) for path in self.files]
        return parts[0] if len(parts) == 1 else self.e.concat(parts)

    def _part(self, path: Path, wanted: list[str], keep: Keep | None) -> Frame:
        """A file is filtered before the next is read, so that an eager engine never holds what is not kept of all."""
        t = self.e.read_parquet(path, wanted)
        return self.e.filter(t, keep) if keep else t

    def unlink(self) -> None:
        for path in self.files:
            path.unlink()


def read_all(e: Engine, job: RunContext, part: str, beside: Sequence[str]) -> Rows:
    """A part of the set, a piece at a time, as what its rows tell and the columns `beside`; numbered throughout, and not yet coded."""
    files: list[Path] = []
    rows = 0
    for path in part_files(job.data / part):
        for piece in pieces(path, job.work, sizes.piece_rows(job)):
            t = features.base(e, features.read_part(e, piece, True), True, beside)
            t = e.collect(e.with_columns(t, row=shifted(rows)))
            rows += e.height(t)
            files.append(job.work / f".{part}{len(files)}.parquet")
            e.write_parquet(t, files[-1])
    return Rows(e, files, rows)


def shifted(rows: int) -> Any:
    return lambda c: c("row") + rows


def code(rows: Rows, codes: Mapping[str, Frame]) -> None:
    """Code the files in place."""
    e = rows.e
    for path in rows.files:
        t = e.collect(features.code(e, e.read_parquet(path), codes))
        e.write_parquet(t, path)


def sampled(rows: int, of: int) -> Keep | None:
    """Holds for about so many rows of so many, spread evenly, the same on every engine; None for all."""
    share = rows / max(of, 1)
    return None if share >= 1 else lambda c: c("row") * MIX % MIXED < int(share * MIXED)


def late(c: Columns) -> Expr:
    """A fifth of the third week: the rows that the third kind of trees learns from, by sums of the others (winners' third XGBoost)."""
    return (c("time") >= THIRD_WEEK) & (c("row") % 5 == 0)


def fit_tables(
    e: Engine, job: RunContext, models: ModelSelection, train: Rows, codes: Mapping[str, Frame]
) -> Fitted:
    """Sums, counts and codes over training rows."""
    tables = collected(e, features.fit_tables(e, train.columns))
    users, raw = {}, {}
    if models.all_networks:
        users = collected(e, {"code": features.fit_users(e, train.columns, job.params["user_rows"])})
    if "split" in models.trees:

        def early(names: Sequence[str]) -> Frame:
            return train.columns([*names, "time"], lambda c: ~late(c))

        raw = collected(e, features.fit_raw_tables(e, early))
    return Fitted(codes, users, tables, raw, features.priors(e, tables))


def first_stage(
    e: Engine, job: RunContext, models: ModelSelection, train: Rows, fitted: Fitted
) -> Iterator[str | dict[str, Any]]:
    """Train every model of the first stage on rows that are encoded without their own labels. Yields phases, and a network's epochs."""
    most = job.params["sample_rows"]
    sample = e.keep(train.columns(features.read_names(), sampled(most, train.height)))
    depth, rounds = job.params["depth_1"], job.params["rounds_1"]
    strategies = [name for name in ("kfold", "loo") if name in models.trees]
    if models.all_networks and "kfold" not in strategies:
        strategies.append("kfold")
    for strategy in strategies:
        yield "features"
        own = features.encode_own(e, sample, fitted.tables, fitted.means, strategy, source=train.columns)
        own = e.keep(own)
        yield "transfer"
        y = labels(e, own)
        if strategy in models.trees:
            x = ensemble.read_by(strategy, e.matrix(own, features.names()), features.names())
            yield "trees"
            for _ in trees.fit(job, strategy, x, y, rounds, depth):
                yield "trees"
        if strategy == "kfold" and models.all_networks:
            yield from networks(e, job, models, train, own, fitted)
    if "split" in models.trees:
        yield "features"
        own = e.keep(train.columns([*features.read_names(), "time"], late))
        if keep := sampled(most, e.height(own)):
            own = e.filter(own, keep)
        own = e.keep(e.lookups(own, features.raw_lookups(fitted.raw)))
        yield "transfer"
        x = e.matrix(own, features.raw_names())
        groups = on_host(x[:, features.raw_names().index("a_group")])
        yield "trees"
        for _ in trees.fit_grouped(job, "split", x, labels(e, own), groups, rounds, depth):
            yield "trees"


def networks(
    e: Engine, job: RunContext, models: ModelSelection, train: Rows, own: Frame, fitted: Fitted
) -> Iterator[str | dict[str, Any]]:
    """Train the networks on some of the encoded rows, `own`, and the beginning of their texts."""
    from buzzer.models.recsys2021 import network_training

    keep = sampled(min(job.params["network_rows"], job.params["sample_rows"]), train.height)
    chosen = e.filter(own, keep) if keep else own
    coded = e.keep(e.lookups(chosen, features.user_lookups(fitted.users["code"])))
    only = ModelSelection((), models.networks, (), models.baseline)
    texts = train.columns([features.TEXTS], keep)
    batch = ensemble.inputs(e, coded, only, job.params["tokens"], texts).everything()
    made, told = network_training.prepare(job, e.height(fitted.users["code"]) + FIRST_CODE)
    yield {"token_vectors": told, "users_with_vectors": made.users - FIRST_CODE}
    for name in models.all_networks:
        yield "networks"
        history = []
        for epoch in network_training.fit(job, name, batch, labels(e, coded)):
            history.append(epoch)
            yield "networks"
        yield {name: history}


def labels(e: Engine, t: Frame) -> Array:
    """0 or 1 [rows, targets] in the order of `row`."""
    return stack(e.to_numpy(t, TARGETS), TARGETS, np.float32)


def lookups(e: Engine, fitted: Fitted) -> list[Lookup]:
    """All that the first stage's models look up for coded rows that are in no table."""
    found = features.lookups(e, fitted.tables, fitted.means)
    found += features.raw_lookups(fitted.raw) if fitted.raw else []
    return found + (features.user_lookups(fitted.users["code"]) if fitted.users else [])


def encoded(e: Engine, t: Frame, wanted: Sequence[Lookup]) -> Frame:
    """Coded rows with what they look up."""
    return e.keep(features.told(e, e.lookups(t, wanted)))


def second_stage(
    e: Engine, job: RunContext, models: ModelSelection, part: Rows, fitted: Fitted
) -> Iterator[str | dict[str, Any]]:
    """Let the first stage predict the validation half, train the second stage there, and save what both look up."""
    yield "features"
    val = encoded(e, part.columns(features.read_names()), lookups(e, fitted))
    week_tables = collected(e, second_stage_features.fit_tables(e, val, models.second))
    week_means = second_stage_features.priors(e, val)
    counted = second_stage_features.count_lookups(
        collected(e, second_stage_features.count(e, val, models.second))
    )
    yield "transfer"
    texts = part.columns([features.TEXTS]) if models.all_networks else None
    rows, y = ensemble.inputs(e, val, models, job.params["tokens"], texts), labels(e, val)
    followers = e.to_numpy(val, ["a_followers"])["a_followers"]
    yield "load"
    first = ensemble.FirstStage(job, models)
    yield "trees"
    found = first.predict_trees(rows)
    yield "networks"
    found |= first.predict_networks(rows)
    odds = ensemble.odds_of(rows.x, found, models)
    for name in models.second:
        yield "features"
        own = second_stage_features.encode_own(e, e.lookups(val, counted), week_tables, week_means, name)
        beside = ensemble.read_by(
            name, e.matrix(own, second_stage_features.names(name)), second_stage_features.names(name)
        )
        yield "trees"
        x, margins = ensemble.seen(rows.x, odds, beside)
        for _ in trees.fit(job, f"week-{name}", x, y, job.params["rounds_2"], job.params["depth_2"], margins):
            yield "trees"
    yield "write"
    save_all(e, job.work, fitted, week_tables)
    (job.work / MEANS).write_text(json.dumps({"train": fitted.means, "week": week_means}))
    yield "score"
    known = {target: y[:, i] for i, target in enumerate(TARGETS)}
    by_model = {name: {t: p[:, i] for i, t in enumerate(TARGETS)} for name, p in found.items()}
    yield {"validation": {name: dataset.scores(known, p, followers) for name, p in by_model.items()}}


def save_all(e: Engine, folder: Path, fitted: Fitted, week_tables: Mapping[str, Frame]) -> None:
    kinds = {
        "code": fitted.codes,
        "user": fitted.users,
        "train": fitted.tables,
        "raw": fitted.raw,
        "week": week_tables,
    }
    for kind, tables in kinds.items():
        save(e, folder, kind, tables)


def means(folder: Path) -> dict[str, dict[str, float]]:
    """Label means that `fit` saved: of the training weeks, `train`, and of the validation half, `week`."""
    found: dict[str, dict[str, float]] = json.loads((folder / MEANS).read_text())
    return found
