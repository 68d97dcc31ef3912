"""What both tasks share: the data they need, and the vocabulary that `fit` saves."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from buzzer.datasets import sigir_ecom as dataset
from buzzer.datasets.checked import generated, given_or_generated
from buzzer.datasets.sigir_ecom import generator
from buzzer.datasets.sigir_ecom.reader import HELD_OUT_DAYS, paths
from buzzer.datasets.sigir_ecom.schema import DIMS, TESTS
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import FIRST_CODE, Array, Columns, Expr, stack
from buzzer.models.api.context import Data, Progress, RunContext
from buzzer.models.sigir_ecom.sessions import events, products
from buzzer.models.sigir_ecom.sessions.events import VECTORS, Vocabulary


def prepare(source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
    """Checked files: official ones, with a local test in the cache where theirs has none, or generated ones."""
    folder = cache / f"sigir_ecom-v{generator.VERSION}-scale{scale:g}-seed{seed}"
    generate = partial(dataset.generate, scale=scale, seed=seed, progress=progress)
    files = found = given_or_generated(source, folder, generate, dataset.check, cache, progress)
    notes = list(found.notes)
    if not set(TESTS) <= set(files.rows):
        local = cache / f"sigir_ecom-local-{files.fingerprint[:16]}-seed{seed}"
        split = partial(dataset.split, found.folder, seed=seed, progress=progress)
        files = generated(local, split, dataset.check, cache, progress)
        local_test = f"local test: sessions of the last {HELD_OUT_DAYS} days, cut as the organisers describe"
        notes.insert(0, local_test)
    if not files.facts["labelled"]:
        notes.append("no labels in the test files: no score")
    rows = dict(files.rows)
    return Data(files.folder, files.fingerprint, found.source, rows, found.scale, tuple(notes))


def read(e: Engine, job: RunContext) -> tuple[Frame, Frame, Frame, Frame]:
    """Browsing events, names of their products, search events with VECTORS, and the catalogue."""
    found = paths(job.data)
    pages, names = events.read_browsing(e, found["browsing"], job.work, job.params["piece_rows"])
    after = int(e.height(pages)) + 1
    searches = events.read_search(e, found["search"], job.work, job.params["piece_rows"] // DIMS + 1, after)
    return pages, names, searches, e.collect(events.read_content(e, found["content"]))


def fit_vocabulary(e: Engine, job: RunContext, pages: Frame, searches: Frame, content: Frame) -> Vocabulary:
    """Codes of products and pages, and the axes of search vectors."""
    codes = {
        name: e.collect(t) for name, t in events.fit_codes(e, pages, content, job.params["rare"]).items()
    }
    vectors = stack(e.to_numpy(searches, VECTORS), VECTORS, np.float32)
    axes = products.principal_axes(vectors[: 1 << 20], job.params["query_dims"])
    common = e.filter(
        e.with_columns(codes["url"], row=lambda c: c("code")), lambda c: c("code") >= FIRST_CODE
    )
    sizes = {name: int(e.height(t)) + FIRST_CODE for name, t in (("sku", codes["sku"]), ("url", common))}
    return Vocabulary(codes, sizes["sku"], sizes["url"], axes)


def in_parts(e: Engine, pages: Frame, searches: Frame, vocabulary: Vocabulary, rows: int) -> Iterator[Frame]:
    """All events of training sessions, search vectors along the axes, about `rows` at a time: those of sessions whose numbers, which
    are hashes, lie in a range. The numbers grow from part to part."""
    axes, count = vocabulary.axes, max(-(-int(e.height(pages)) // rows), 1)
    lows = [part * 2**64 // count - 2**63 for part in range(count + 1)]
    for low, high in pairwise(lows):
        inside = between(low, high - 1)
        browsed, searched = e.filter(pages, inside), e.filter(searches, inside)
        part = e.concat([events.without_queries(e, browsed, axes), events.project(e, searched, axes)])
        part = e.collect(part)
        if int(e.height(part)):
            yield part


def between(low: int, high: int) -> Callable[[Columns], Expr]:
    return lambda c: (c("session") >= low) & (c("session") <= high)


def save(e: Engine, job: RunContext, vocabulary: Vocabulary) -> None:
    for name, table in vocabulary.tables.items():
        e.write_parquet(table, job.work / f"codes-{name}.parquet")
    np.save(job.work / "axes.npy", vocabulary.axes)
    (job.work / "codes.json").write_text(
        json.dumps({"products": vocabulary.products, "pages": vocabulary.pages})
    )


def load(e: Engine, job: RunContext) -> Vocabulary:
    tables = {name: e.collect(e.read_parquet(job.work / f"codes-{name}.parquet")) for name in ("sku", "url")}
    sizes = json.loads((job.work / "codes.json").read_text())
    return Vocabulary(tables, axes=np.load(job.work / "axes.npy"), **sizes)


def held_out(numbers: Array, share: float) -> Array:
    """Whether a session is held out, by its number: the same on every machine and engine."""
    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray((mixed >> np.uint64(40)).astype(np.float64) / 2.0**24 < share)
