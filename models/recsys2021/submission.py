"""The submission file as it is written, and its scores."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets import recsys2021 as dataset
from buzzer.engine.frames.base import Array
from buzzer.models.api.context import Result, RunContext
from buzzer.models.recsys2021.ensemble import ModelSelection
from buzzer.models.recsys2021.features import TARGETS
from buzzer.models.recsys2021.fitting import means
from buzzer.models.recsys2021.predicting import IDS, Predicted, names_of

FINAL, CONSTANT = "results", "constant"


class Submission:
    """The submission as it grows, and beside it every model's predictions, to be scored when all is written."""

    def __init__(self, job: RunContext, models: Sequence[str]) -> None:
        path = job.out / f"{FINAL}.csv"
        self.job, self.path, self.models, self.rows = job, path, list(models), 0
        self.partial, self.beside = path.with_name(f".{path.name}.partial"), path.with_name(".predictions")

    def add(self, rows: Predicted) -> None:
        tweets, readers = (rows.ids[name] for name in IDS)
        by_target = {target: rows.blend[:, i] for i, target in enumerate(TARGETS)}
        dataset.append_submission(self.partial, tweets, readers, by_target)
        with self.beside.open("ab") as file:
            np.stack([rows.found[name] for name in self.models], axis=1).astype(np.float32).tofile(file)
        self.rows += len(rows.blend)

    def result(self, facts: Mapping[str, Any]) -> Result:
        """The job's result, scored where the truth is known."""
        scores = self.scores(self.job.data / "test_truth", means(self.job.work)["train"])
        return Result(scores, self.rows, dict(facts) | {"models": self.models}, (self.path,))

    def scores(self, truth: Path, rates: Mapping[str, float]) -> dict[str, float]:
        """The official scores of the submission, and the two means of each model and of the training weeks' rates."""
        try:
            return self._scores(truth, rates) if truth.is_dir() else {}
        finally:
            self.beside.unlink()

    def _scores(self, truth: Path, rates: Mapping[str, float]) -> dict[str, float]:
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
        by_model[CONSTANT] = {target: np.full(self.rows, rates[target]) for target in TARGETS}
        for name, predicted in by_model.items():
            own = score(predicted)
            scores |= {f"{kind}_{name}": own[kind] for kind in ("AP", "RCE")}
        return scores


@contextmanager
def submission(job: RunContext, models: ModelSelection) -> Iterator[Submission]:
    """A submission that gets its name when all is written, and vanishes when the job ends before."""
    writer = Submission(job, names_of(models))
    try:
        yield writer
        writer.partial.replace(writer.path)
    except BaseException:
        writer.beside.unlink(missing_ok=True)
        raise
    finally:
        writer.partial.unlink(missing_ok=True)
