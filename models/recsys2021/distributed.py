"""The predict job on a Dask cluster: each worker takes every n-th piece of the test, in its own process and on its own GPU.

The folders of the job must be the same for all workers, as on one machine or a shared file system. Two things are done for all pieces
together: the counts over the rows that are scored, and the submission, which keeps the order of the test.
"""

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine import cluster, frames
from buzzer.engine.frames.base import Array
from buzzer.models.api.context import RunContext, Steps
from buzzer.models.recsys2021 import ensemble, second_stage_features, sizes
from buzzer.models.recsys2021.lookup_tables import collected, load, save
from buzzer.models.recsys2021.predicting import IDS, Predicted, Predictor, pieces_of_test
from buzzer.models.recsys2021.submission import submission

ON_CPU = {
    "cudf": "pandas",
    "polars-gpu": "polars",
}  # what adds up the counts, so that the GPUs are the workers' alone

BLEND, BY = "blend", "by "  # columns of what a worker hands over, beside the ids


class Shard:
    """A worker's share, kept between the two passes as a Dask actor."""

    def __init__(self, job: RunContext, rank: int, of: int) -> None:
        self.rank, self.of, self.predictor = rank, of, Predictor(job)

    def preprocess(self) -> list[int]:
        """First pass: the numbers of this worker's pieces; their counts are saved."""
        p, numbers = self.predictor, []
        for number, path in pieces_of_test(p.job, self.rank, self.of):
            save(p.e, p.job.out, f".counts{number}", p.preprocess(number, path))
            numbers.append(number)
        return numbers

    def predict(self) -> int:
        """Second pass: predictions of each piece are saved; the rows of the lookup tables that were needed."""
        p = self.predictor
        if not p.seen:
            return 0
        p.load_tables(load(p.e, p.job.out, ".counted"))
        for piece in p.seen:
            steps = p.predict(piece)
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    write(piece.path.with_suffix(".arrow"), end.value)
                    break
            piece.forget()
        return p.table_rows


def threads_of(job: RunContext) -> int:
    """Threads of a worker's libraries: its share of the budget's."""
    return max(job.threads // max(job.workers, 1), 1)


def opened(job: RunContext) -> AbstractContextManager[Any]:
    """A client of the job's cluster."""
    options: dict[str, Any] = {"device": job.device, "gpu_memory_bytes": job.gpu_memory_bytes}
    return cluster.opened(job.workers, job.scheduler, threads=threads_of(job), **options)


def predict(job: RunContext) -> Steps:
    """The job on `job.workers` local workers, or on those of `job.scheduler`."""
    yield "load"
    with opened(job) as client:
        workers = cluster.addresses(client)
        told = sizes.told(job, len(workers))  # here, for all workers must cut the same pieces
        params = {**job.params, "piece_rows": told["piece_rows"]}
        own = replace(job, threads=threads_of(job), workers=0, scheduler="", params=params)
        made = [
            client.submit(Shard, own, rank, len(workers), workers=[worker], pure=False, actor=True)
            for rank, worker in enumerate(workers)
        ]
        shards = [future.result() for future in made]
        yield "preprocess"
        numbers = sorted(number for asked in [s.preprocess() for s in shards] for number in asked.result())
        add_up(job, numbers)
        yield "predict"
        table_rows = sum(asked.result() for asked in [s.predict() for s in shards])
    with submission(job, ensemble.chosen(job.params)) as writer:
        for number in numbers:
            yield "write"
            writer.add(read(job.out / f".piece{number}.arrow"))
    clean(job.out)
    yield "score"
    facts = {"pieces": len(numbers), "table_rows": table_rows, "workers": len(workers)} | told
    return writer.result(facts)


def add_up(job: RunContext, numbers: list[int]) -> None:
    """The counts of all pieces together, saved for every worker."""
    e = frames.load(ON_CPU.get(job.engine, job.engine))
    counts = [load(e, job.out, f".counts{number}") for number in numbers]
    save(e, job.out, ".counted", collected(e, second_stage_features.add_up(e, counts)))


def write(path: Path, rows: Predicted) -> None:
    """As an Arrow file: ids, and each model's probabilities and the blend as lists of one a target."""
    from pyarrow import FixedSizeListArray, array, feather

    table = rows.ids
    for name, p in {BLEND: rows.blend, **{f"{BY}{name}": p for name, p in rows.found.items()}}.items():
        table = table.append_column(name, FixedSizeListArray.from_arrays(array(p.ravel()), p.shape[1]))
    feather.write_feather(table, path, compression="uncompressed")


def read(path: Path) -> Predicted:
    from pyarrow import feather

    table = feather.read_table(path)
    found = {name: matrix(table[name]) for name in table.column_names if name not in IDS}
    blend = found.pop(BLEND)
    return Predicted(table.select(IDS), {name.removeprefix(BY): p for name, p in found.items()}, blend)


def matrix(lists: Any) -> Array:
    """A column of lists of one length as an array [rows, length]."""
    whole = lists.combine_chunks()
    return np.asarray(whole.flatten()).reshape(len(whole), -1)


def clean(out: Path) -> None:
    """Take away what the workers handed over."""
    for pattern in (".counts*.parquet", ".counted-*.parquet", ".piece*.arrow"):
        for path in out.glob(pattern):
            path.unlink()
