"""The `recsys2021` task: fit trains both stages, predict goes from raw test files to a scored submission, a piece of rows at a
time, so that memory does not grow with the rows beyond the lookup tables."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets import recsys2021 as dataset
from buzzer.datasets.files import made_scale
from buzzer.datasets.recsys2021 import generator
from buzzer.datasets.recsys2021.reader import part_files, pieces
from buzzer.engine import frames
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array, stack
from buzzer.models.job import Data, Job, Progress, Result, Steps
from buzzer.models.recsys2021 import features, trees
from buzzer.models.recsys2021 import stack as week
from buzzer.models.recsys2021.features import TARGETS

IDS = ("tweet_id", "enaging_user_id")


class RecSys2021:
    """See configs/tasks/recsys2021.yaml for the parameters."""

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        folder = source or cache / f"recsys2021-v{generator.VERSION}-scale{scale:g}-seed{seed}"
        if source is None and not folder.is_dir():
            dataset.generate(folder, scale, seed, progress)
        files = dataset.check(folder, progress)
        made = made_scale(folder)
        notes = () if "test_truth" in files.rows else ("no test_truth: no score",)
        origin = "official" if made is None else "generated"
        return Data(folder, files.fingerprint, origin, files.rows, 1.0 if made is None else made, notes)

    def fit(self, job: Job) -> Steps:
        e = frames.load(job.engine)
        yield "load"
        train = read_all(e, job.data / "train", job.work, job.params["piece_rows"])
        val = read_all(e, job.data / "val", job.work, job.params["piece_rows"])
        yield "features"
        codes = collected(e, features.fit_codes(e, train))
        train, val = (e.collect(features.code(e, t, codes)) for t in (train, val))
        tables = collected(e, features.fit_tables(e, train))
        means = features.priors(e, tables)
        own = e.collect(features.encode_own(e, train, tables, means, job.params["strategy"]))
        week_tables = collected(e, week.fit_tables(e, val))
        week_means = features.priors(e, {"context": week_tables["b_type"]})
        encoded = features.encode(e, val, tables, means)
        encoded = week.encode(e, encoded, week_tables, week_means, own=True)
        encoded = e.collect(week.look_up(e, encoded, collected(e, week.count(e, val))))
        yield "transfer"
        x, y = matrix(e, own, features.names()), e.to_numpy(own, TARGETS)
        x_val, y_val = matrix(e, encoded, features.names()), e.to_numpy(encoded, TARGETS)
        beside = matrix(e, encoded, week.names())
        yield "fit"
        first = []
        for target, booster in trees.fit(x, y, job.params, 1, job.seed, job.device, job.threads):
            booster.save_model(trees.path(job.work, 1, target))
            first.append(booster.inplace_predict(x_val))
            yield "fit"
        odds = trees.log_odds(np.stack(first, axis=1))
        both = np.concatenate([x_val, odds, beside], axis=1)
        for target, booster in trees.fit(both, y_val, job.params, 2, job.seed, job.device, job.threads, odds):
            booster.save_model(trees.path(job.work, 2, target))
            yield "fit"
        yield "write"
        save(e, job.work, {"code": codes, "train": tables, "week": week_tables})
        (job.work / "means.json").write_text(json.dumps({"train": means, "week": week_means}))
        return Result({}, len(x), {"columns": both.shape[1], "train_rows": len(x), "val_rows": len(x_val)})

    def predict(self, job: Job) -> Steps:
        e = frames.load(job.engine)
        yield "load"
        codes, tables, week_tables = (load(e, job.work, kind) for kind in ("code", "train", "week"))
        means = json.loads((job.work / "means.json").read_text())
        width = len(features.names())
        stages = {1: trees.open_sessions(job.work, 1, width, job)}
        stages[2] = trees.open_sessions(job.work, 2, width + len(TARGETS) + len(week.names()), job)
        seen: list[Path] = []
        counts, rows = [], 0
        for path in pieces_of_test(job):
            yield "preprocess"
            t = features.base(e, features.read_part(e, path, False), False)
            t = e.collect(features.code(e, t, codes))
            counts.append(collected(e, week.count(e, t)))
            seen.append(job.out / f".piece{len(seen)}.parquet")
            e.write_parquet(t, seen[-1])
        yield "preprocess"
        counted = collected(e, week.add_up(e, counts))
        submissions = {name: job.out / f"{name}.csv" for name in ("results", "stage1")}
        with appended(submissions) as aside:
            for piece in seen:
                yield "features"
                t = features.encode(e, e.read_parquet(piece), tables, means["train"])
                t = week.encode(e, t, week_tables, means["week"], own=False)
                t = e.collect(week.look_up(e, t, counted))
                yield "transfer"
                x, beside = matrix(e, t, features.names()), matrix(e, t, week.names())
                yield "predict"
                first = trees.predict(stages[1], x)
                odds = trees.log_odds(first)
                final = trees.predict(stages[2], np.concatenate([x, odds, beside], axis=1), odds)
                yield "write"
                ids = e.to_numpy(t, IDS)
                append(aside["results"], ids, final)
                append(aside["stage1"], ids, first)
                piece.unlink()
                rows += len(final)
        yield "score"
        return Result(
            score(submissions, job.data / "test_truth"),
            rows,
            {"pieces": len(seen)},
            tuple(submissions.values()),
        )


@contextmanager
def appended(paths: Mapping[str, Path]) -> Iterator[Mapping[str, Path]]:
    """Paths to append to, which become `paths` when all is written, and vanish when the job ends before."""
    aside = {name: path.with_name(f".{path.name}.partial") for name, path in paths.items()}
    try:
        yield aside
        for name, path in aside.items():
            path.replace(paths[name])
    finally:
        for path in aside.values():
            path.unlink(missing_ok=True)


def append(path: Path, ids: Mapping[str, Array], predicted: Array) -> None:
    """Rows of a submission; predicted [rows, targets]."""
    by_target = {target: predicted[:, i] for i, target in enumerate(TARGETS)}
    dataset.append_submission(path, list(ids[IDS[0]]), list(ids[IDS[1]]), by_target)


def pieces_of_test(job: Job) -> Iterator[Path]:
    """The test's part files, cut where they are too large to be worked on whole."""
    for path in part_files(job.data / "test"):
        yield from pieces(path, job.out, job.params["piece_rows"])


def read_all(e: Engine, folder: Path, work: Path, piece_rows: int) -> Frame:
    """All part files of a folder as one frame of what their rows tell, with rows numbered throughout."""
    parts, rows = [], 0
    for path in part_files(folder):
        for piece in pieces(path, work, piece_rows):
            t = e.collect(features.base(e, features.read_part(e, piece, True), True))
            parts.append(e.derive(t, row=shifted(rows)))
            rows += e.height(t)
    return e.collect(parts[0] if len(parts) == 1 else e.concat(parts))


def shifted(rows: int) -> Any:
    return lambda c: c("row") + rows


def collected(e: Engine, tables: Mapping[str, Frame]) -> dict[str, Frame]:
    return {name: e.collect(table) for name, table in tables.items()}


def matrix(e: Engine, t: Frame, names: list[str]) -> Array:
    """Columns as float32 [rows, columns]."""
    return stack(e.to_numpy(t, names), names, np.float32)


def save(e: Engine, work: Path, tables: Mapping[str, Mapping[str, Frame]]) -> None:
    for kind, named in tables.items():
        for name, table in named.items():
            e.write_parquet(table, work / f"{kind}-{name}.parquet")


def load(e: Engine, work: Path, kind: str) -> dict[str, Frame]:
    """The tables of one kind that `fit` saved."""
    found = sorted(work.glob(f"{kind}-*.parquet"))
    return {path.stem.removeprefix(f"{kind}-"): e.collect(e.read_parquet(path)) for path in found}


def score(submissions: Mapping[str, Path], truth: Path) -> dict[str, float]:
    """The official scores of the final submission, and the two means of the first stage alone."""
    if not truth.is_dir():
        return {}
    first = dataset.score(submissions["stage1"], truth)
    return dataset.score(submissions["results"], truth) | {
        f"{name}_stage1": first[name] for name in ("AP", "RCE")
    }


TASK = RecSys2021()
