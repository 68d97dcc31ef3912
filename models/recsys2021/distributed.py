"""Prediction on a Dask cluster: each of n workers predicts every n-th piece of the test, in its own process and on its own GPU.

All workers must see the same run folders, as on one machine or a shared file system. Two steps need all pieces: the counts over the
scored rows, and the submission, which has the order of the test. In a run that goes on after an interruption, the predicted pieces are not
predicted again; the first pass is.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from buzzer.engine import cluster, frames
from buzzer.models.api.context import Steps
from buzzer.models.recsys2021 import ensemble, feature_sets, second_stage_features, sizes
from buzzer.models.recsys2021.lookup_tables import collected, load, save
from buzzer.models.recsys2021.params import Context
from buzzer.models.recsys2021.predicting import ROWS, Predicted, Predictor, kept_pieces, pieces_of_test, read
from buzzer.models.recsys2021.submission import submission


class Shard:
    """The pieces of one worker, as a Dask actor that keeps them between the two passes."""

    def __init__(self, context: Context, rank: int, of: int) -> None:
        self.rank, self.of = rank, of
        self.predictor = Predictor(context, joined_rows=0)  # its pieces do not follow each other in the test

    def preprocess(self) -> list[int]:
        """First pass: save the counts of this worker's pieces; returns their numbers."""
        p, numbers = self.predictor, []
        for number, path in pieces_of_test(p.context, self.rank, self.of):
            save(p.e, p.context.out, f".counts{number}", p.preprocess(number, path))
            numbers.append(number)
        return numbers

    def predict(self) -> int:
        """Second pass: save the predictions of each piece; returns the rows of the lookup tables that were read."""
        p = self.predictor
        if not p.pieces:
            return 0
        p.load_tables(load(p.e, p.context.out, ".counted"), shared=True)
        for piece in p.joined():
            if piece.predicted not in p.kept:
                p.keep(piece, result(p.predict(piece)))
            piece.forget()
        return p.table_rows


def result(steps: Generator[str, None, Predicted]) -> Predicted:
    """The return value of a generator, whose phases are ignored."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            predicted: Predicted = end.value
            return predicted


def threads_of(context: Context) -> int:
    """Threads of each worker: an equal share of the budget's threads."""
    return max(context.threads // max(context.workers, 1), 1)


def open_client(context: Context) -> AbstractContextManager[Any]:
    """A client of the run's cluster."""
    options: dict[str, Any] = {"device": context.device, "gpu_memory_bytes": context.gpu_memory_bytes}
    return cluster.opened(context.workers, context.scheduler, threads=threads_of(context), **options)


def predict(context: Context) -> Steps:
    """Predict on `context.workers` local workers, or on the workers of `context.scheduler`."""
    yield "load"
    with open_client(context) as client:
        workers = cluster.addresses(client)
        used = sizes.details(context, len(workers))
        # All workers must cut the same pieces, so their size is fixed here.
        params = context.params.model_copy(update={"piece_rows": used["piece_rows"]})
        shard_context = replace(context, threads=threads_of(context), workers=0, scheduler="", params=params)
        futures = [
            client.submit(Shard, shard_context, rank, len(workers), workers=[worker], pure=False, actor=True)
            for rank, worker in enumerate(workers)
        ]
        shards = [future.result() for future in futures]
        yield "preprocess"
        numbers = sorted(number for future in [s.preprocess() for s in shards] for number in future.result())
        add_up(context, numbers)
        yield "predict"
        table_rows = sum(future.result() for future in [s.predict() for s in shards])
    kept = kept_pieces(context)
    with submission(context, ensemble.select_models(context.params)) as writer:
        for number in numbers:
            yield "write"
            writer.add(read(kept.path(f"predicted{number}") / ROWS))
    clean(context)
    yield "score"
    return writer.result({"pieces": len(numbers), "table_rows": table_rows, "workers": len(workers)} | used)


def add_up(context: Context, numbers: list[int]) -> None:
    """Save the sum of the counts of all pieces in a file that every worker reads."""
    e = frames.load(frames.cpu_twin(context.engine))  # on the CPU, because the workers use the GPUs
    columns = feature_sets.feature_set(context.params)
    counts = [load(e, context.out, f".counts{number}") for number in numbers]
    save(e, context.out, ".counted", collected(e, second_stage_features.add_up(e, counts, columns)))


def clean(context: Context) -> None:
    """Delete the workers' files, but for pieces that the harness keeps."""
    for pattern in (".counts*.parquet", ".counted-*.parquet"):
        for path in context.out.glob(pattern):
            path.unlink()
    if context.partial is None:
        kept_pieces(context).clear()
