"""Prediction on a Dask cluster: each of n workers predicts every n-th piece of the test, in its own process and on its own GPU.

All workers must see the same run folders, as on one machine or a shared file system. Two steps need all pieces: the counts over the
scored rows, and the submission, which has the order of the test.
"""

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine import cluster, frames
from buzzer.engine.frames.base import Array
from buzzer.models.api.context import Steps
from buzzer.models.recsys2021 import ensemble, feature_sets, second_stage_features, sizes
from buzzer.models.recsys2021.lookup_tables import collected, load, save
from buzzer.models.recsys2021.params import Context
from buzzer.models.recsys2021.predicting import IDS, Predicted, Predictor, pieces_of_test
from buzzer.models.recsys2021.submission import submission

BLEND, BY = (
    "blend",
    "by ",
)  # columns of a worker's file in addition to the ids: the blend, and the prefix of each model's column


class Shard:
    """The pieces of one worker, as a Dask actor that keeps them between the two passes."""

    def __init__(self, context: Context, rank: int, of: int) -> None:
        self.rank, self.of, self.predictor = rank, of, Predictor(context)

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
        p.load_tables(load(p.e, p.context.out, ".counted"))
        for piece in p.pieces:
            steps = p.predict(piece)
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    write(piece.path.with_suffix(".arrow"), end.value)
                    break
            piece.forget()
        return p.table_rows


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
    with submission(context, ensemble.select_models(context.params)) as writer:
        for number in numbers:
            yield "write"
            writer.add(read(context.out / f".piece{number}.arrow"))
    clean(context.out)
    yield "score"
    return writer.result({"pieces": len(numbers), "table_rows": table_rows, "workers": len(workers)} | used)


def add_up(context: Context, numbers: list[int]) -> None:
    """Save the sum of the counts of all pieces in a file that every worker reads."""
    e = frames.load(frames.cpu_twin(context.engine))  # on the CPU, because the workers use the GPUs
    columns = feature_sets.feature_set(context.params)
    counts = [load(e, context.out, f".counts{number}") for number in numbers]
    save(e, context.out, ".counted", collected(e, second_stage_features.add_up(e, counts, columns)))


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


def clean(out: Path) -> None:
    """Delete the workers' files."""
    for pattern in (".counts*.parquet", ".counted-*.parquet", ".piece*.arrow"):
        for path in out.glob(pattern):
            path.unlink()
