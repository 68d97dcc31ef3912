"""The `sigir-ecom-task1` task: the next products of a shop session, by counts and networks whose lists are blended.

`predict` works on a piece of sessions at a time: its memory grows with the sessions by twenty numbers each.

`fit` writes to the work folder, beside the files of `sessions.shared.save` and `sessions.products`:
- counts-next.parquet, counts-near.parquet: the tables of `counts`;
- sizes.json: by network the fields of `sizes.Sizes`;
- <network>.pt: the weights of each network, unless weights are random;
- counts.onnx, <network>.onnx: the graphs of the counts and of each network with weights;
- weights.json: the weight of each model in the ensemble;
- work.json: the work of the networks for one session (`api.context.Work`).
While `fit` runs there is also <network>.checkpoint, from which a stopped fit resumes.

Details of `fit`: `products` and `pages`, numbers of codes; `sessions`, `events`; `history`, by network a list of `epoch`, `loss` and `MRR@20`
of the held-out sessions; `weights`, by model.

Details of `predict`: `sessions`, by model the description of its session; `weights`, by model, or "random"; `ceiling`, the MRR@20 of a
model that knows the shop of generated data, None for others.

With the parameter `weights` = random no network is trained or saved. `predict` then draws their weights, so that a job can be timed at a size that
is out of reach of training.
"""

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from buzzer.datasets import sigir_ecom as dataset
from buzzer.datasets.sigir_ecom import json_file
from buzzer.datasets.sigir_ecom.ceiling import ceiling
from buzzer.datasets.sigir_ecom.metric import labels, next_item_mrr, subsequent_f1
from buzzer.datasets.sigir_ecom.schema import DIMS, WHERE, QueryRecord
from buzzer.datasets.strict_json import objects
from buzzer.engine import frames
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import FIRST_CODE, Array
from buzzer.errors import DataError
from buzzer.models.api import progress
from buzzer.models.api.context import Result, Steps
from buzzer.models.kept_pieces import KeptPieces
from buzzer.models.sigir_ecom import work
from buzzer.models.sigir_ecom.next_item import counts
from buzzer.models.sigir_ecom.next_item.opened import (
    BASELINE,
    BLEND,
    ENSEMBLE,
    GUESSES,
    SIZES,
    Guesses,
    Models,
    counts_of,
    for_counts,
    store_models,
)
from buzzer.models.sigir_ecom.next_item.params import Context, NetworkSettings, Params, networks_of
from buzzer.models.sigir_ecom.next_item.sizes import Sizes
from buzzer.models.sigir_ecom.sessions import events, products, shared
from buzzer.models.sigir_ecom.sessions.events import EventArrays, Vocabulary
from buzzer.models.sigir_ecom.sessions.products import Products
from buzzer.models.weights import RANDOM, weights_detail, weights_notes
from buzzer.models.work import load_work, save_work, table_rows

LEARNED, HELD = "learned", "held"
PIECES = 0.9  # share of the phase `features` of `fit` in which the pieces of events are coded and counted; the rest merges the counts
COUNTS_NOTE = "the counts have no layers for fused: torch_eager looks them up in fp32, on the same device"
TABLES = tuple(
    f"{name}.parquet" for name in ("codes-sku", "codes-url", *(f"counts-{t}" for t in counts.TABLES))
)


class Recommendation(shared.ShopTask[Params]):
    """See configs/tasks/sigir-ecom-task1.yaml for the parameters."""

    params_type = Params

    def check_together(self, params: Params) -> None:
        """Raise UsageError for an unknown network or setting, and sizes that no network can have."""
        networks_of(params)

    def fit_steps(self, context: Context) -> Steps:
        """Count, train the networks, and weigh all on the held-out sessions."""
        e, params, networks = frames.load(context.engine), context.params, networks_of(context.params)
        yield "load"
        pages, product_names, searches, content = shared.read(e, context)
        yield "features"
        vocabulary = shared.fit_vocabulary(e, context, pages, searches, content)
        if vocabulary.products < GUESSES + FIRST_CODE:
            few = vocabulary.products - FIRST_CODE
            raise DataError(f"{context.data}: {few} products, too few to train on", "use a larger --scale")
        catalogue, categories = shared.fit_products(e, content, product_names, vocabulary)
        limit = shared.session_limit(e, pages, searches, params.sessions)
        ranges = progress.over(shared.ranges(e, pages, params.piece_rows))
        parts = shared.in_parts(e, pages, searches, vocabulary, ranges)
        arrays, learned, tables = yield from sessions_and_counts(e, context, vocabulary, parts, limit)
        baseline = counts_of(e, learned, vocabulary, params)
        del pages, searches, parts, learned  # training needs only the arrays
        sizes = {net.name: sizes_of(vocabulary, categories, params, net) for net in networks}
        yield "fit"
        fitted = yield from trained(e, context, networks, sizes, catalogue, arrays, vocabulary, baseline)
        yield "write"
        (context.work / BLEND).write_text(json.dumps(fitted.weights))
        shared.save(e, context, vocabulary)
        catalogue.save(context.work)
        for name, table in tables.items():
            e.write_parquet(table, context.work / f"counts-{name}.parquet")
        (context.work / SIZES).write_text(json.dumps({name: size.as_dict() for name, size in sizes.items()}))
        store_models(e, context, sizes, vocabulary, catalogue)
        rows = table_rows(context.work / name for name in TABLES)
        save_work(context.work, work.of_networks(sizes, networks, rows))
        for checkpoint in context.work.glob("*.checkpoint"):
            KeptPieces(context.work).remove(checkpoint.name)
        details = {
            "products": vocabulary.products - FIRST_CODE,
            "pages": vocabulary.pages - FIRST_CODE,
            "history": fitted.history,
            "sessions": len(arrays),
            "events": len(arrays.items),
            "weights": fitted.weights,
        } | weights_detail(params.weights)
        return Result(fitted.scores, len(arrays), details, notes=weights_notes(params.weights))

    def predict_steps(self, context: Context) -> Steps:
        """Predict the next products of the test sessions with each model, and blend."""
        e, test = frames.load(context.engine), shared.test_file(context.data, "rec")
        params = context.params
        yield "load"
        vocabulary, catalogue = shared.load(e, context), products.load(context.work)
        models = Models(e, context, vocabulary, catalogue)
        guesses, batch = list[Guesses](), None
        for piece in json_file.pieces(test, params.piece_sessions):
            arrays = yield from coded(e, piece, vocabulary)
            ends = ends_of(arrays, len(piece))
            guesses.append((yield from models.guesses(arrays, ends)))
            batch = arrays.windows(ends[-params.predict_batch :], params.length)
            yield "load"
        if batch is None:
            raise DataError(f"{test}: no queries", WHERE)
        for row in range(params.latency):
            yield "latency"
            models.best({name: array[[row % len(array)]] for name, array in batch.items()})
        yield "write"
        described = models.close()
        whole = {name: np.concatenate([part[name] for part in guesses]) for name in guesses[0]}
        submission = context.out / "submission.json"
        dataset.write_submission(submission, test, named(catalogue.names, whole[ENSEMBLE]))
        yield "score"
        scores = score(whole, catalogue.names, submission, test)
        best = ceiling(context.data, "rec", "MRR@20")
        details = {"sessions": described, "weights": models.weights, "ceiling": best} | weights_detail(
            params.weights
        )
        notes = weights_notes(params.weights) + (() if for_counts(context) == context else (COUNTS_NOTE,))
        done = load_work(context.work)
        return Result(scores, len(whole[ENSEMBLE]), details, (submission,), notes=notes, work=done)


def coded(e: Engine, piece: list[QueryRecord], vocabulary: Vocabulary) -> Generator[str, None, EventArrays]:
    """The events of some queries, without their labels. Yields the phases of its steps."""
    yield "preprocess"
    table = json_file.events(piece)
    yield "features"
    t = events.code(e, events.test_events(e, table, vocabulary.axes), vocabulary)
    t = e.collect(events.in_sessions(e, t, vocabulary.axes))
    yield "transfer"
    return events.event_arrays(e, t, vocabulary.axes)


def sizes_of(vocabulary: Vocabulary, categories: int, params: Params, network: NetworkSettings) -> Sizes:
    """The sizes of a network. categories: number of category codes."""
    return Sizes(
        products=vocabulary.products,
        codes=vocabulary.codes,
        length=params.length,
        numbers=1 + vocabulary.axes.shape[1],
        categories=categories,
        vectors=2 * DIMS,
        dim=network.dim,
        layers=network.layers,
        heads=network.heads,
        dropout=network.dropout,
        smoothing=network.smoothing,
        item_dim=network.item_dim,
        scored=vocabulary.codes if params.scored == "all" else vocabulary.products,
        mask=network.mask,
    )


# ---- fit ----------------------------------------------------------------------------------------------------------


def sessions_and_counts(
    e: Engine, context: Context, vocabulary: Vocabulary, parts: Iterable[Frame], limit: int
) -> Generator[str, None, tuple[EventArrays, dict[str, Frame], dict[str, Frame]]]:
    """The training sessions as arrays, the tables of counts over the sessions that are not held out, and over all sessions.

    limit: of `shared.session_limit`, for the arrays; the counts have all sessions. Yields the phases of its steps.
    """
    arrays: list[EventArrays] = []
    sums: dict[str, list[counts.Sums]] = {LEARNED: [], HELD: []}
    with progress.part(0.0, PIECES):
        for part in parts:
            rows_coded = e.collect(events.code(e, part, vocabulary))
            placed = e.collect(events.in_sessions(e, rows_coded, vocabulary.axes))
            yield "transfer"
            part_arrays = events.event_arrays(e, placed, vocabulary.axes)
            arrays.append(part_arrays.chosen(shared.below(part_arrays.session, limit)))
            yield "features"
            progress.report(0.5)  # the time left is estimated from the reports since the phase went on
            for which, rows in halves(e, rows_coded, part_arrays.session, context.params.valid).items():
                counts.push(e, sums[which], counts.add(e, {}, rows))
    with progress.part(PIECES, 1.0):
        learned, everything = (
            fit_counts(e, some, context.params) for some in (sums[LEARNED], sums[LEARNED] + sums[HELD])
        )
    yield "transfer"
    return events.joined(arrays), learned, everything


def fit_counts(e: Engine, sums: Sequence[Mapping[str, Frame]], params: Params) -> dict[str, Frame]:
    """Tables of the counts of several parts of the sessions."""
    whole = counts.merge(e, sums)
    return {name: e.collect(table) for name, table in counts.tables(e, whole, params.followers).items()}


def halves(e: Engine, coded: Frame, sessions: Array, valid: float) -> dict[str, Frame]:
    """Events of the sessions that models are trained on, and of those held out."""
    table = {"session": sessions, "held": shared.held_out(sessions, valid).astype(np.int64)}
    t = e.left_join(coded, e.from_arrow(pa.table(table)), {"session": "session"}, {"held": "held"}, 0)

    def half(held: int) -> Frame:
        return e.collect(e.drop(e.filter(t, lambda c: c("held") == held), ["held"]))

    return {LEARNED: half(0), HELD: half(1)}


def trained(
    e: Engine,
    context: Context,
    networks: list[NetworkSettings],
    sizes: dict[str, Any],
    catalogue: Products,
    arrays: EventArrays,
    vocabulary: Vocabulary,
    baseline: Any,
) -> Generator[str, None, Any]:
    """The `fitting.Fitted` of all networks; with random weights nothing is trained, and all weights are equal."""
    from buzzer.models.sigir_ecom.next_item import fitting

    if context.params.weights == RANDOM:
        return fitting.Fitted({}, dict.fromkeys([BASELINE, *sizes], 1.0), {})
    prefixes = partial(prefixes_of_test, e, context, vocabulary)
    job = fitting.Job(context, networks, sizes, catalogue, arrays, prefixes)
    return (yield from job.run(baseline, vocabulary.products, vocabulary.codes))


def prefixes_of_test(
    e: Engine, context: Context, vocabulary: Vocabulary
) -> Generator[str, None, EventArrays]:
    """The test sessions up to their cuts. Yields the phases of its steps."""
    parts = []
    for piece in json_file.pieces(shared.test_file(context.data, "rec"), context.params.piece_sessions):
        parts.append((yield from coded(e, piece, vocabulary)))
    return events.joined(parts)


# ---- predict ------------------------------------------------------------------------------------------------------


def ends_of(arrays: EventArrays, queries: int) -> Array:
    """The end of each query's events, int64 [queries]; every query has at least one event."""
    assert len(arrays) == queries and arrays.session[-1] == queries - 1
    return arrays.starts[1:]


def named(names: Array, guesses: Array) -> list[list[str]]:
    """The SKU hashes of codes [rows, n]. Rows share the strings."""
    texts: list[str] = names.astype("U64").tolist()
    return [[texts[code] for code in row] for row in guesses.tolist()]


def score(guesses: Mapping[str, Array], names: Array, submission: Path, test: Path) -> dict[str, float]:
    """The official scores of the submission file, and the scores of each model; empty without labels.

    guesses: by model, codes [rows, GUESSES]; names: SKU hash by code.
    """
    first = next(objects(test, checked=True))
    if "label" not in first:
        return {}
    scores, truth = dataset.score(submission, test), labels(test)
    for name, codes in guesses.items():
        if name != ENSEMBLE:
            listed = named(names, codes)
            scores[f"MRR@20_{name}"] = next_item_mrr(listed, truth)
            scores[f"F1@20_{name}"] = subsequent_f1(listed, truth)
    return scores


TASK = Recommendation()
