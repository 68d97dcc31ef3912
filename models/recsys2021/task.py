"""The `recsys2021` task: fit trains both stages, predict goes from raw test files to a scored submission, a piece of rows at a
time, so that memory does not grow with the rows beyond the lookup tables."""

from collections.abc import Iterator, Mapping, Sequence
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
from buzzer.engine.frames.base import Array
from buzzer.models.job import Data, Job, Progress, Result, Steps
from buzzer.models.recsys2021 import features, fitting, stages, trees, week
from buzzer.models.recsys2021.features import TARGETS
from buzzer.models.recsys2021.fitting import Fitted
from buzzer.models.recsys2021.stages import Chosen
from buzzer.models.recsys2021.tables import collected, load, load_wanted

IDS = ("tweet_id", "enaging_user_id")
FIRST, FINAL, CONSTANT = "first", "results", "constant"


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
        e, models = frames.load(job.engine), stages.chosen(job.params)
        tokens = job.params["tokens"] if models.all_networks else 0
        yield "load"
        train, val = (fitting.read_all(e, job.data / part, job, tokens) for part in ("train", "val"))
        yield "features"
        codes = collected(e, features.fit_codes(e, train))
        train, val = (e.collect(features.code(e, t, codes)) for t in (train, val))
        early, late = fitting.halves(e, train) if "split" in models.trees else (train, train)
        fitted = fitting.fit_tables(e, job, models, train, codes, early)
        rows, facts = {"train": e.height(train), "val": e.height(val)}, dict[str, Any]()
        yield from told(fitting.first_stage(e, job, models, train, late, fitted), facts)
        del train, early, late
        yield from told(fitting.second_stage(e, job, models, val, fitted), facts)
        return Result({}, rows["train"], facts | {"rows": rows, "columns": len(features.names())})

    def predict(self, job: Job) -> Steps:
        e, models = frames.load(job.engine), stages.chosen(job.params)
        yield "load"
        codes, means = load(e, job.work, "code"), fitting.means(job.work)
        first, second = stages.FirstStage(job, models), stages.SecondStage(job, models)
        seen: list[Path] = []
        counts = []
        for path in pieces_of_test(job):
            yield "preprocess"
            t = features.base(
                e, features.read_part(e, path, False), False, job.params["tokens"] if first.networks else 0
            )
            t = e.collect(features.code(e, t, codes))
            counts.append(collected(e, week.count(e, t, models.second)))
            seen.append(job.out / f".piece{len(seen)}.parquet")
            e.write_parquet(t, seen[-1])
        yield "preprocess"
        counted = collected(e, week.add_up(e, counts))
        yield "load"
        fitted = wanted(e, job.work, models, seen, codes, means["train"])
        week_tables = load_wanted(e, job.work, "week", week.looked_up_by(models.second), seen)
        table_rows = sum(
            e.height(t)
            for kind in (fitted.tables, fitted.raw, fitted.users, week_tables)
            for t in kind.values()
        )
        with submission(job.out / f"{FINAL}.csv", names_of(models)) as writer:
            for piece in seen:
                yield "features"
                t = fitting.encoded(e, e.read_parquet(piece), fitted)
                t = week.encode(e, t, week_tables, means["week"], models.second)
                t = e.collect(week.look_up(e, t, counted))
                yield "transfer"
                rows = stages.inputs(e, t, models, job.params["tokens"])
                beside = {name: e.matrix(t, week.names(name)) for name in models.second}
                yield "trees"
                found = first.predict_trees(rows)
                yield "networks"
                found |= first.predict_networks(rows)
                yield "trees"
                odds = [trees.log_odds(found[name]) for name in models.first]
                found[FIRST] = stages.probability(stages.mean_odds(odds))
                found |= second.predict(rows.x, odds, beside)
                yield "write"
                writer.add(e.to_numpy(t, IDS), found, final(found, models))
                piece.unlink()
        yield "score"
        facts = {"pieces": len(seen), "table_rows": table_rows, "models": names_of(models)}
        scores = writer.scores(job.data / "test_truth", means["train"])
        return Result(scores, writer.rows, facts, (writer.path,))


def told(steps: Iterator[str | dict[str, Any]], facts: dict[str, Any]) -> Iterator[str]:
    """The phases among the steps; what else they tell goes into `facts`."""
    for step in steps:
        if isinstance(step, str):
            yield step
        else:
            facts |= step


def names_of(models: Chosen) -> list[str]:
    """Every model that predicts, as scores call them."""
    baseline = [stages.BASELINE] if models.baseline else []
    return [*models.first, *baseline, FIRST, *(f"second_{name}" for name in models.second)]


def final(found: Mapping[str, Array], models: Chosen) -> Array:
    """The blend: the mean of the second stage's models, or the first stage's where there is none."""
    second = [found[f"second_{name}"] for name in models.second]
    return np.asarray(np.mean(second, axis=0, dtype=np.float32)) if second else found[FIRST]


def wanted(
    e: Engine,
    work: Path,
    models: Chosen,
    seen: Sequence[Path],
    codes: Mapping[str, Frame],
    means: Mapping[str, float],
) -> Fitted:
    """What `fit` saved of the users and tweets that the pieces have."""
    users = load_wanted(e, work, "user", features.USERS, seen) if models.all_networks else {}
    raw = load_wanted(e, work, "raw", features.raw_looked_up_by(), seen) if "split" in models.trees else {}
    return Fitted(codes, users, load_wanted(e, work, "train", features.looked_up_by(), seen), raw, means)


def pieces_of_test(job: Job) -> Iterator[Path]:
    """The test's part files, cut where they are too large to be worked on whole."""
    for path in part_files(job.data / "test"):
        yield from pieces(path, job.out, job.params["piece_rows"])


class Submission:
    """The submission as it grows, and beside it every model's predictions, to be scored when all is written."""

    def __init__(self, path: Path, models: Sequence[str]) -> None:
        self.path, self.models, self.rows = path, list(models), 0
        self.partial, self.beside = path.with_name(f".{path.name}.partial"), path.with_name(".predictions")

    def add(self, ids: Mapping[str, Array], found: Mapping[str, Array], blend: Array) -> None:
        """Rows; predictions [rows, targets] by model."""
        by_target = {target: blend[:, i] for i, target in enumerate(TARGETS)}
        dataset.append_submission(self.partial, list(ids[IDS[0]]), list(ids[IDS[1]]), by_target)
        with self.beside.open("ab") as file:
            np.stack([found[name] for name in self.models], axis=1).astype(np.float32).tofile(file)
        self.rows += len(blend)

    def scores(self, truth: Path, means: Mapping[str, float]) -> dict[str, float]:
        """The official scores of the submission, and the two means of each model and of the training weeks' rates."""
        try:
            return self._scores(truth, means) if truth.is_dir() else {}
        finally:
            self.beside.unlink()

    def _scores(self, truth: Path, means: Mapping[str, float]) -> dict[str, float]:
        answers = dataset.read_submission(self.path)
        known = dataset.align(self.path, answers, truth)

        def score(predicted: Mapping[str, Array]) -> dict[str, float]:
            return dataset.scores(known.labels, predicted, known.followers)

        scores = score({target: answers[target].to_numpy() for target in TARGETS})
        shape = (self.rows, len(self.models), len(TARGETS))
        every = np.memmap(self.beside, dtype=np.float32, mode="r", shape=shape)
        by_model = {
            name: {target: every[:, m, i] for i, target in enumerate(TARGETS)}
            for m, name in enumerate(self.models)
        }
        by_model[CONSTANT] = {target: np.full(self.rows, means[target]) for target in TARGETS}
        for name, predicted in by_model.items():
            own = score(predicted)
            scores |= {f"{kind}_{name}": own[kind] for kind in ("AP", "RCE")}
        return scores


@contextmanager
def submission(path: Path, models: Sequence[str]) -> Iterator[Submission]:
    """A submission that gets its name when all is written, and vanishes when the job ends before."""
    writer = Submission(path, models)
    try:
        yield writer
        writer.partial.replace(path)
    except BaseException:
        writer.beside.unlink(missing_ok=True)
        raise
    finally:
        writer.partial.unlink(missing_ok=True)


TASK = RecSys2021()
