"""The submission file, written piece by piece, and its scores."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets import recsys2021 as dataset
from buzzer.datasets.recsys2021 import generator
from buzzer.engine.frames.base import Array
from buzzer.models.api.context import Result
from buzzer.models.recsys2021.ensemble import ModelSelection
from buzzer.models.recsys2021.features import TARGETS
from buzzer.models.recsys2021.fitting import means
from buzzer.models.recsys2021.params import Context
from buzzer.models.recsys2021.predicting import IDS, Predicted, names_of
from buzzer.models.weights import weights_detail, weights_notes
from buzzer.models.work import load_work

FINAL, CONSTANT = "results", "constant"


class Submission:
    """Writes the submission file and, to a second file, the predictions of every model, which are scored at the end."""

    def __init__(self, context: Context, models: Sequence[str]) -> None:
        path = context.out / f"{FINAL}.csv"
        self.context, self.path, self.models, self.rows = context, path, list(models), 0
        self.partial, self.by_model = path.with_name(f".{path.name}.partial"), path.with_name(".predictions")

    def add(self, rows: Predicted) -> None:
        """Append rows to both files."""
        tweets, readers = (rows.ids[name] for name in IDS)
        by_target = {target: rows.blend[:, i] for i, target in enumerate(TARGETS)}
        dataset.append_submission(self.partial, tweets, readers, by_target)
        with self.by_model.open("ab") as file:
            predictions = np.stack([rows.by_model[name] for name in self.models], axis=1)
            predictions.astype(np.float32).tofile(file)
        self.rows += len(rows.blend)

    def result(self, details: Mapping[str, Any]) -> Result:
        """The run's result, with scores if the truth is known."""
        params = self.context.params
        scores = self.scores(self.context.data / "test_truth", means(self.context.work)["train"])
        details = dict(details) | {"models": self.models} | weights_detail(params.weights)
        if best := generator.best_scores(self.context.data):
            details |= {"ceiling": best["RCE"], "ceilings": best}
        notes, done = weights_notes(params.weights), load_work(self.context.work)
        return Result(scores, self.rows, details, (self.path,), notes=notes, work=done)

    def scores(self, truth: Path, rates: Mapping[str, float]) -> dict[str, float]:
        """The official scores of the submission, and the mean AP and RCE of each model and of constant predictions, `rates`.

        Empty without the folder `truth`.
        """
        try:
            return self._scores(truth, rates) if truth.is_dir() else {}
        finally:
            self.by_model.unlink()

    def _scores(self, truth: Path, rates: Mapping[str, float]) -> dict[str, float]:
        answers = dataset.read_submission(self.path)
        aligned = dataset.align(self.path, answers, truth)

        def score(predicted: Mapping[str, Array]) -> dict[str, float]:
            return dataset.scores(aligned.labels, predicted, aligned.followers)

        scores = score({target: answers[target].to_numpy() for target in TARGETS})
        shape = (self.rows, len(self.models), len(TARGETS))
        predictions = np.memmap(self.by_model, dtype=np.float32, mode="r", shape=shape)
        by_model = {
            name: {target: predictions[:, m, i] for i, target in enumerate(TARGETS)}
            for m, name in enumerate(self.models)
        }
        by_model[CONSTANT] = {target: np.full(self.rows, rates[target]) for target in TARGETS}
        for name, predicted in by_model.items():
            model_scores = score(predicted)
            scores |= {f"{kind}_{name}": model_scores[kind] for kind in ("AP", "RCE")}
        return scores


@contextmanager
def submission(context: Context, models: ModelSelection) -> Iterator[Submission]:
    """A submission file that gets its final name when the block ends, and is deleted if the block raises."""
    writer = Submission(context, names_of(models))
    try:
        yield writer
        writer.partial.replace(writer.path)
    except BaseException:
        writer.by_model.unlink(missing_ok=True)
        raise
    finally:
        writer.partial.unlink(missing_ok=True)
