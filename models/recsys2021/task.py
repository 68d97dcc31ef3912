"""The `recsys2021` task: fit trains both stages, predict goes from raw test files to a scored submission, a piece of rows at a
time, so that memory does not grow with the rows beyond the lookup tables."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from buzzer.datasets import recsys2021 as dataset
from buzzer.datasets.checked import given_or_generated
from buzzer.datasets.recsys2021 import generator
from buzzer.datasets.workers import usable_cores
from buzzer.engine import frames
from buzzer.engine.frames import Engine
from buzzer.models.api.context import Data, Progress, Result, RunContext, Steps
from buzzer.models.recsys2021 import distributed, ensemble, features, fitting, sizes
from buzzer.models.recsys2021.lookup_tables import collected
from buzzer.models.recsys2021.predicting import Predictor, pieces_of_test
from buzzer.models.recsys2021.submission import submission


class RecSys2021:
    """See configs/tasks/recsys2021.yaml for the parameters."""

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        folder = cache / f"recsys2021-v{generator.VERSION}-scale{scale:g}-seed{seed}"
        jobs = usable_cores()
        generate = partial(dataset.generate, scale=scale, seed=seed, progress=progress, jobs=jobs)
        files = given_or_generated(source, folder, generate, dataset.check, cache, progress)
        notes = files.notes if "test_truth" in files.rows else (*files.notes, "no test_truth: no score")
        learned_from = files.facts["learned_from"]
        return Data(
            files.folder, files.fingerprint, files.source, files.rows, files.scale, notes, learned_from
        )

    def fit(self, job: RunContext) -> Steps:
        if not job.clustered:
            return (yield from self._fit(job, frames.load(job.engine)))
        yield "load"
        with (
            distributed.opened(job) as client,
            frames.loaded_on(job.engine, client, job.gpu_memory_bytes) as e,
        ):
            return (yield from self._fit(job, e))

    def _fit(self, job: RunContext, e: Engine) -> Steps:
        models = ensemble.chosen(job.params)
        texts = [features.TEXTS] if models.all_networks else []
        yield "load"
        train, val = (fitting.read_all(e, job, part, texts) for part in ("train", "val"))
        yield "features"
        codes = collected(e, features.fit_codes(e, train.columns))
        for part in (train, val):
            fitting.code(part, codes)
        fitted = fitting.fit_tables(e, job, models, train, codes)
        rows, facts = {"train": train.height, "val": val.height}, dict[str, Any]()
        yield from told(fitting.first_stage(e, job, models, train, fitted), facts)
        train.unlink()
        yield from told(fitting.second_stage(e, job, models, val, fitted), facts)
        val.unlink()
        facts |= {"rows": rows, "columns": len(features.names())} | sizes.told(job)
        return Result({}, rows["train"], facts)

    def predict(self, job: RunContext) -> Steps:
        if job.clustered:
            return (yield from distributed.predict(job))
        yield "load"
        predictor, counts = Predictor(job), []
        for number, path in pieces_of_test(job):
            yield "preprocess"
            counts.append(predictor.preprocess(number, path))
        yield "preprocess"
        counted = predictor.add_up(counts)
        yield "load"
        predictor.load_tables(counted)
        with submission(job, predictor.models) as writer:
            for piece in predictor.seen:
                found = yield from predictor.predict(piece)
                yield "write"
                writer.add(found)
                piece.forget()
        facts = {"pieces": len(predictor.seen), "table_rows": predictor.table_rows} | sizes.told(job)
        del predictor  # scoring needs its memory
        yield "score"
        return writer.result(facts)


def told(steps: Iterator[str | dict[str, Any]], facts: dict[str, Any]) -> Iterator[str]:
    """The phases among the steps; what else they tell goes into `facts`."""
    for step in steps:
        if isinstance(step, str):
            yield step
        else:
            facts |= step


TASK = RecSys2021()
