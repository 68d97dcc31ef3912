"""The predict job, a piece of rows at a time; in one process, or each of several workers for pieces of its own."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from buzzer.datasets.recsys2021.reader import part_files, pieces
from buzzer.engine import frames
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array
from buzzer.models.job import Job
from buzzer.models.recsys2021 import features, fitting, stages, trees, week
from buzzer.models.recsys2021.fitting import Fitted
from buzzer.models.recsys2021.stages import Chosen
from buzzer.models.recsys2021.tables import collected, load, load_wanted

IDS = ("tweet_id", "enaging_user_id")
FIRST = "first"


@dataclass(frozen=True)
class Predicted:
    """Rows of the submission, on the host."""

    ids: Mapping[str, Array]
    found: Mapping[str, Array]  # model -> probabilities float32 [rows, targets]
    blend: Array  # float32 [rows, targets]


def pieces_of_test(job: Job, rank: int = 0, of: int = 1) -> Iterator[tuple[int, Path]]:
    """The test's part files, cut where they are too large to be worked on whole, and numbered; every `of`-th piece from `rank` on."""
    numbers, last = count(), -1

    def wanted() -> bool:
        nonlocal last
        last = next(numbers)
        return last % of == rank

    for path in part_files(job.data / "test"):
        for piece in pieces(path, job.out, job.params["piece_rows"], wanted):
            yield last, piece


class Predictor:
    """What a process has open for prediction. First `preprocess` every piece, then `load_tables`, then `predict` every piece."""

    def __init__(self, job: Job) -> None:
        self.job, self.e, self.models = job, frames.load(job.engine), stages.chosen(job.params)
        self.codes = load(self.e, job.work, "code")
        self.means = fitting.means(job.work)
        self.first, self.second = stages.FirstStage(job, self.models), stages.SecondStage(job, self.models)
        self.seen: list[Path] = []  # coded rows, a Parquet file a piece

    def preprocess(self, number: int, path: Path) -> dict[str, Frame]:
        """Parse and code a piece and keep it under `job.out`; its counts."""
        e = self.e
        tokens = self.job.params["tokens"] if self.first.networks else 0
        t = features.base(e, features.read_part(e, path, False), False, tokens)
        t = e.collect(features.code(e, t, self.codes))
        counts = collected(e, week.count(e, t, self.models.second))
        self.seen.append(self.job.out / f".piece{number}.parquet")
        e.write_parquet(t, self.seen[-1])
        return counts

    def add_up(self, counts: Sequence[Mapping[str, Frame]]) -> dict[str, Frame]:
        return collected(self.e, week.add_up(self.e, counts))

    def load_tables(self, counted: Mapping[str, Frame]) -> None:
        """Read what `fit` saved of the users and tweets that the pieces have; `counted`: over all rows that are scored."""
        self.counted = counted
        self.fitted = wanted(self.e, self.job.work, self.models, self.seen, self.codes, self.means["train"])
        self.week_tables = load_wanted(
            self.e, self.job.work, "week", week.looked_up_by(self.models.second), self.seen
        )

    @property
    def table_rows(self) -> int:
        kinds = (self.fitted.tables, self.fitted.raw, self.fitted.users, self.week_tables)
        return sum(self.e.height(t) for kind in kinds for t in kind.values())

    def predict(self, piece: Path) -> Generator[str, None, Predicted]:
        """A piece through both stages; yields its phases."""
        e, models = self.e, self.models
        yield "features"
        t = fitting.encoded(e, e.read_parquet(piece), self.fitted)
        t = week.encode(e, t, self.week_tables, self.means["week"], models.second)
        t = e.keep(week.look_up(e, t, self.counted))
        yield "transfer"
        rows = stages.inputs(e, t, models, self.job.params["tokens"])
        beside = {name: e.matrix(t, week.names(name)) for name in models.second}
        yield "trees"
        found = self.first.predict_trees(rows)
        yield "networks"
        found |= self.first.predict_networks(rows)
        yield "trees"
        odds = [trees.log_odds(found[name]) for name in models.first]
        found[FIRST] = stages.probability(stages.mean_odds(odds))
        found |= self.second.predict(rows.x, odds, beside)
        yield "write"
        return Predicted(e.to_numpy(t, IDS), found, final(found, models))


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
