"""The parts that both tasks share: their input files, and the vocabulary that `fit` saves.

`save` writes to the work folder:
- codes-sku.parquet, codes-url.parquet: codes of products and of pages;
- codes.json: the number of codes of `products` and of `pages`;
- axes.npy: float64 [DIMS, query_dims], the axes that search vectors are projected on.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np

from buzzer.datasets import sigir_ecom as dataset
from buzzer.datasets.checked import generated
from buzzer.datasets.contract import Progress
from buzzer.datasets.draws import splitmix64
from buzzer.datasets.sigir_ecom import generator
from buzzer.datasets.sigir_ecom.reader import HELD_OUT_DAYS, paths
from buzzer.datasets.sigir_ecom.schema import DIMS, TESTS, WHERE
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import FIRST_CODE, Array, Columns, Expr, stack
from buzzer.errors import DataError
from buzzer.models.api import progress
from buzzer.models.api.context import Data
from buzzer.models.dataset_task import DatasetTask, DataSource
from buzzer.models.sigir_ecom.sessions import events, products
from buzzer.models.sigir_ecom.sessions.events import VECTORS, Vocabulary
from buzzer.models.sigir_ecom.sessions.params import SessionContext, SessionParams
from buzzer.models.sigir_ecom.sessions.products import Products

LOCAL_TEST = f"local test: sessions of the last {HELD_OUT_DAYS} days, cut as the organisers describe"
P = TypeVar("P", bound=SessionParams)


class ShopTask(DatasetTask[P]):
    """A task on the sessions of a shop in the SIGIR eCom schema."""

    data_source = DataSource(f"sigir_ecom-v{generator.VERSION}", dataset.generate, dataset.check)

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        """Check or generate the files. For files without a test, the last days of the training sessions become one, in the cache."""
        source_files = files = self.data_source.files(source, cache, scale, seed, progress)
        notes = list(source_files.notes)
        if not set(TESTS) <= set(source_files.rows):
            local = cache / f"sigir_ecom-local-{source_files.fingerprint[:16]}-seed{seed}"
            split = partial(dataset.split, source_files.folder, seed=seed, progress=progress)
            files = replace(
                generated(local, split, dataset.check, cache, progress),
                source=source_files.source,
                scale=source_files.scale,
            )
            notes.insert(0, LOCAL_TEST)
        if not files.facts["labelled"]:
            notes.append("no labels in the test files: no score")
        return self.describe(files, notes)


def test_file(folder: Path, task: str) -> Path:
    """The test file of a task, `rec` or `cart`. Raises DataError if there is none."""
    files = paths(folder)
    if task not in files:
        raise DataError(f"{folder}: no test file of this task", WHERE)
    return files[task]


def read(e: Engine, context: SessionContext) -> tuple[Frame, Frame, Frame, Frame]:
    """Browsing events, names of their products, search events with VECTORS, and the catalogue."""
    files, rows = paths(context.data), context.params.piece_rows
    searched = share_of(files["search"], files["browsing"])
    with progress.part(0.0, 1 - searched):
        pages, names = events.read_browsing(e, files["browsing"], context.work, rows)
    after = int(e.height(pages)) + 1
    with progress.part(1 - searched, 1.0):
        searches = events.read_search(e, files["search"], context.work, rows // DIMS + 1, after)
    return pages, names, searches, e.collect(events.read_content(e, files["content"]))


def share_of(path: Path, other: Path) -> float:
    """The share of a file in the bytes of two files."""
    mine, others = (file.stat().st_size for file in (path, other))
    return mine / (mine + others)


def fit_products(e: Engine, content: Frame, names: Frame, vocabulary: Vocabulary) -> tuple[Products, int]:
    """The catalogue by product code, and the number of category codes. content, names: as returned by `read`."""
    categories = e.collect(e.categorify_fit([(content, "category_hash")]))
    catalogue = products.fit(e, content, names, vocabulary.tables["sku"], categories)
    return catalogue, int(e.height(categories)) + FIRST_CODE


def fit_vocabulary(
    e: Engine, context: SessionContext, pages: Frame, searches: Frame, content: Frame
) -> Vocabulary:
    """Codes of products and pages, and the principal axes of search vectors."""
    codes = {
        name: e.collect(t) for name, t in events.fit_codes(e, pages, content, context.params.rare).items()
    }
    vectors = stack(e.to_numpy(searches, VECTORS), VECTORS, np.float32)
    axes = products.principal_axes(vectors[: 1 << 20], context.params.query_dims)
    common = e.filter(
        e.with_columns(codes["url"], row=lambda c: c("code")), lambda c: c("code") >= FIRST_CODE
    )
    sizes = {name: int(e.height(t)) + FIRST_CODE for name, t in (("sku", codes["sku"]), ("url", common))}
    return Vocabulary(codes, sizes["sku"], sizes["url"], axes)


def ranges(e: Engine, pages: Frame, rows: int) -> list[tuple[int, int]]:
    """Ascending ranges of session numbers, which are hashes, with about `rows` browsing events each: the first number and the one after
    the last."""
    count = max(-(-int(e.height(pages)) // rows), 1)
    return [*pairwise(part * 2**64 // count - 2**63 for part in range(count + 1))]


def in_parts(
    e: Engine, pages: Frame, searches: Frame, vocabulary: Vocabulary, by: Iterable[tuple[int, int]]
) -> Iterator[Frame]:
    """All events of the training sessions with the numbers of each range, search vectors projected on the axes."""
    axes = vocabulary.axes
    for low, high in by:
        inside = between(low, high - 1)
        browsed, searched = e.filter(pages, inside), e.filter(searches, inside)
        part = e.concat([events.without_queries(e, browsed, axes), events.project(e, searched, axes)])
        part = e.collect(part)
        if int(e.height(part)):
            yield part


def between(low: int, high: int) -> Callable[[Columns], Expr]:
    """A condition that is true for the sessions with numbers from `low` to `high`."""
    return lambda c: (c("session") >= low) & (c("session") <= high)


def save(e: Engine, context: SessionContext, vocabulary: Vocabulary) -> None:
    """Write the vocabulary to `context.work`."""
    for name, table in vocabulary.tables.items():
        e.write_parquet(table, context.work / f"codes-{name}.parquet")
    np.save(context.work / "axes.npy", vocabulary.axes)
    (context.work / "codes.json").write_text(
        json.dumps({"products": vocabulary.products, "pages": vocabulary.pages})
    )


def load(e: Engine, context: SessionContext) -> Vocabulary:
    """The vocabulary that `save` wrote."""
    tables = {
        name: e.collect(e.read_parquet(context.work / f"codes-{name}.parquet")) for name in ("sku", "url")
    }
    sizes = json.loads((context.work / "codes.json").read_text())
    return Vocabulary(tables, axes=np.load(context.work / "axes.npy"), **sizes)


def held_out(numbers: Array, share: float) -> Array:
    """Whether each session is held out, bool [sessions]. It depends only on the session's number, on every machine and engine."""
    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray((mixed >> np.uint64(40)).astype(np.float64) / 2.0**24 < share)


def session_limit(e: Engine, pages: Frame, searches: Frame, sessions: int) -> int:
    """The number that the hashes of exactly `sessions` of the training sessions do not exceed; 2**64 - 1 if there are no more, or for 0.

    The chosen sessions are an even sample. They depend only on the sessions' numbers, on every machine and engine.
    """
    if not sessions:
        return 2**64 - 1
    both = e.concat([e.select(t, ["session"]) for t in (pages, searches)])
    unique = e.with_columns(e.distinct(both, ["session"]), row=lambda c: c("session"))
    numbers = e.to_numpy(unique, ["session"])["session"]
    if len(numbers) <= sessions:
        return 2**64 - 1
    return int(np.partition(session_hashes(numbers), sessions - 1)[sessions - 1])


def below(numbers: Array, limit: int) -> Array:
    """Whether the hash of each session is at most `limit`, bool [sessions]."""
    return np.asarray(session_hashes(numbers) <= np.uint64(limit))


def session_hashes(numbers: Array) -> Array:
    """A hash of each session's number, uint64 [sessions], independent of `held_out`."""
    return splitmix64(numbers.astype(np.uint64))
