"""The `sigir-ecom-task1` task: the next products of a shop session, by counts and networks whose lists are blended.

`predict` works on a piece of sessions at a time: its memory grows with the sessions by twenty numbers each.

`fit` writes to the work folder, beside the files of `sessions.shared.save` and `sessions.products`:
- counts-next.parquet, counts-near.parquet: the tables of `counts`;
- sizes.json: the fields of `networks.Sizes`;
- <network>.pt: the weights of each network;
- weights.json: the weight of each model in the ensemble.
While `fit` runs there is also <network>.checkpoint, from which a stopped fit resumes.

Details of `fit`: `products` and `pages`, numbers of codes; `sessions`, `events`; `history`, by network a list of `epoch`, `loss` and `MRR@20`
of the held-out sessions; `weights`, by model.

Details of `predict`: `sessions`, by model the description of its session; `weights`, by model.
"""

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from buzzer.datasets import sigir_ecom as dataset
from buzzer.datasets.sigir_ecom import json_file
from buzzer.datasets.sigir_ecom.metric import labels, next_item_mrr, subsequent_f1
from buzzer.datasets.sigir_ecom.schema import DIMS, WHERE
from buzzer.datasets.strict_json import objects
from buzzer.engine import frames, infer
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import FIRST_CODE, Array
from buzzer.engine.infer import Session
from buzzer.errors import DataError, UsageError, unknown_name
from buzzer.models.api.context import Result, Steps
from buzzer.models.blend import best_of, weigh
from buzzer.models.sigir_ecom.next_item import counts
from buzzer.models.sigir_ecom.next_item.params import Context, Params
from buzzer.models.sigir_ecom.sessions import events, products, shared
from buzzer.models.sigir_ecom.sessions.events import EventArrays, Vocabulary, batches
from buzzer.models.sigir_ecom.sessions.products import Products

if TYPE_CHECKING:
    from buzzer.models.sigir_ecom.next_item.training import TrainingSessions

GUESSES = 20
BASELINE = "counts"
ENSEMBLE = "ensemble"
NAMES = ("gru", "causal", "masked")
BLEND = "weights.json"
LEARNED, HELD = "learned", "held"
COUNTS_NOTE = "the counts have no layers for fused: torch_eager looks them up in fp32, on the same device"
Answers = dict[str, tuple[Array, Array]]  # by model: values and product codes, [rows, n]
Guesses = dict[str, list[Array]]  # by model: product codes of each batch, int32 [batch, GUESSES]


class Recommendation(shared.ShopTask[Params]):
    """See configs/tasks/sigir-ecom-task1.yaml for the parameters."""

    params_type = Params

    def fit_steps(self, context: Context) -> Steps:
        """Count, train the networks, and weigh all on the held-out sessions."""
        from buzzer.models.sigir_ecom.next_item import training

        e, params, names = frames.load(context.engine), context.params, network_names(context.params)
        yield "load"
        pages, product_names, searches, content = shared.read(e, context)
        yield "features"
        vocabulary = shared.fit_vocabulary(e, context, pages, searches, content)
        if vocabulary.products < GUESSES + FIRST_CODE:
            few = vocabulary.products - FIRST_CODE
            raise DataError(f"{context.data}: {few} products, too few to train on", "use a larger --scale")
        catalogue, categories = shared.fit_products(e, content, product_names, vocabulary)
        parts = shared.in_parts(e, pages, searches, vocabulary, params.piece_rows)
        arrays, learned, tables = yield from sessions_and_counts(e, context, vocabulary, parts)
        baseline = counts_of(e, learned, vocabulary, params)
        del pages, searches, parts, learned  # training needs only the arrays
        sizes = sizes_of(vocabulary, categories, params)
        yield "fit"
        sessions = training.training_sessions(context, arrays, sizes)
        answers = {BASELINE: training.answers_of(baseline, arrays, sessions.ends, sizes.length, "cpu")}
        history = {}
        for name in names:
            answers[name], history[name] = yield from fit_network(context, name, sizes, catalogue, sessions)
        scores, weights = weighed(answers, sessions.truth)
        yield "write"
        (context.work / BLEND).write_text(json.dumps(weights))
        shared.save(e, context, vocabulary)
        catalogue.save(context.work)
        for name, table in tables.items():
            e.write_parquet(table, context.work / f"counts-{name}.parquet")
        (context.work / "sizes.json").write_text(json.dumps(sizes.as_dict()))
        for name in names:
            (context.work / f"{name}.checkpoint").unlink()
        details = {
            "products": vocabulary.products - FIRST_CODE,
            "pages": vocabulary.pages - FIRST_CODE,
            "history": history,
            "sessions": len(arrays),
            "events": len(arrays.items),
            "weights": weights,
        }
        return Result(scores, len(arrays), details)

    def predict_steps(self, context: Context) -> Steps:
        """Predict the next products of the test sessions with each model, and blend."""
        e, test = frames.load(context.engine), shared.test_file(context.data, "rec")
        params = context.params
        yield "load"
        vocabulary, catalogue = shared.load(e, context), products.load(context.work)
        sessions = {BASELINE: open_counts(e, context, vocabulary)}
        sessions |= {name: open_network(name, context, catalogue) for name in network_names(params)}
        weights = json.loads((context.work / BLEND).read_text())
        guesses: Guesses = {name: [] for name in (*sessions, ENSEMBLE)}
        batch = None
        for piece in json_file.pieces(test, params.piece_sessions):
            yield "preprocess"
            table = json_file.events(piece)
            yield "features"
            t = events.code(e, events.test_events(e, table, vocabulary.axes), vocabulary)
            t = e.collect(events.in_sessions(e, t, vocabulary.axes))
            yield "transfer"
            arrays = events.event_arrays(e, t, vocabulary.axes)
            ends = ends_of(arrays, len(piece))
            for rows in batches(len(ends), params.predict_batch):
                yield "predict"
                batch = arrays.windows(ends[rows], params.length)
                for name, best in predict(sessions, weights, batch).items():
                    guesses[name].append(best)
            yield "load"
        if batch is None:
            raise DataError(f"{test}: no queries", WHERE)
        for row in range(params.latency):
            yield "latency"
            predict(sessions, weights, {name: array[[row % len(array)]] for name, array in batch.items()})
        yield "write"
        described = {name: vars(session.describe()) for name, session in sessions.items()}
        for session in sessions.values():
            session.close()
        whole = {name: np.concatenate(parts) for name, parts in guesses.items()}
        submission = context.out / "submission.json"
        dataset.write_submission(submission, test, named(catalogue.names, whole[ENSEMBLE]))
        yield "score"
        scores = score(whole, catalogue.names, submission, test)
        details = {"sessions": described, "weights": weights}
        notes = () if for_counts(context) == context else (COUNTS_NOTE,)
        return Result(scores, len(whole[ENSEMBLE]), details, (submission,), notes=notes)


def network_names(params: Params) -> list[str]:
    """The networks to run; the counts always run too. Raises UsageError for an unknown network, or windows that are too short."""
    for name in params.networks:
        if name not in NAMES:
            raise unknown_name("network", name, NAMES)
    if params.length < 4:
        raise UsageError(f"length {params.length} is below 4", "--set length=20")
    return list(params.networks)


def sizes_of(vocabulary: Vocabulary, categories: int, params: Params) -> Any:
    """The networks' `Sizes`. categories: number of category codes."""
    from buzzer.models.sigir_ecom.next_item.networks import Sizes

    return Sizes(
        products=vocabulary.products,
        codes=vocabulary.codes,
        length=params.length,
        numbers=1 + vocabulary.axes.shape[1],
        categories=categories,
        vectors=2 * DIMS,
        dim=params.dim,
        layers=params.layers,
        heads=params.heads,
        dropout=params.dropout,
        smoothing=params.smoothing,
    )


# ---- fit ----------------------------------------------------------------------------------------------------------


def sessions_and_counts(
    e: Engine, context: Context, vocabulary: Vocabulary, parts: Iterable[Frame]
) -> Generator[str, None, tuple[EventArrays, dict[str, Frame], dict[str, Frame]]]:
    """The training sessions as arrays, the tables of counts over the sessions that are not held out, and over all sessions.

    Yields the phases of its steps.
    """
    arrays: list[EventArrays] = []
    sums: dict[str, dict[str, Frame]] = {LEARNED: {}, HELD: {}}
    for part in parts:
        coded = e.collect(events.code(e, part, vocabulary))
        placed = e.collect(events.in_sessions(e, coded, vocabulary.axes))
        yield "transfer"
        arrays.append(events.event_arrays(e, placed, vocabulary.axes))
        yield "features"
        for which, rows in halves(e, coded, arrays[-1].session, context.params.valid).items():
            sums[which] = {name: e.collect(t) for name, t in counts.add(e, sums[which], rows).items()}
    learned, everything = (
        fit_counts(e, some, context.params) for some in ([sums[LEARNED]], list(sums.values()))
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


def fit_network(
    context: Context, name: str, sizes: Any, catalogue: Products, sessions: "TrainingSessions"
) -> Generator[str, None, tuple[tuple[Array, Array], list[dict[str, float]]]]:
    """Train a network and save its weights.

    Yields the phase after each epoch; returns the network's answers at the held-out cuts, and its history.
    """
    import torch

    from buzzer.models.sigir_ecom.next_item.networks import NETWORKS
    from buzzer.models.sigir_ecom.next_item.training import Trainer

    params = context.params
    torch.manual_seed(context.seed)
    network = NETWORKS[name](sizes, *content_of(catalogue))
    network.items.start_from(sessions.item_vectors)
    trainer = Trainer(context, network, sessions, context.work / f"{name}.checkpoint")
    for _ in trainer.run(params.epochs, params.patience):
        yield "fit"
    answers = trainer.answers(params.candidates)
    torch.save(network.cpu().state_dict(), context.work / f"{name}.pt")
    return answers, trainer.state.history


def weighed(answers: Answers, truth: Array) -> tuple[dict[str, float], dict[str, float]]:
    """MRR@20 of each model and the ensemble at the held-out cuts, and the ensemble's best weights. truth: product codes [rows]."""
    from buzzer.models.sigir_ecom.next_item.training import mrr

    values, codes = (list(part) for part in zip(*answers.values(), strict=True))
    weights = weigh(values, codes, truth, mrr, GUESSES)
    scores = {
        f"valid_MRR@20_{name}": mrr(truth, best_of([value], [code], [1.0], GUESSES))
        for name, (value, code) in answers.items()
    }
    scores[f"valid_MRR@20_{ENSEMBLE}"] = mrr(truth, best_of(values, codes, weights, GUESSES))
    return scores, dict(zip(answers, weights, strict=True))


# ---- sessions -----------------------------------------------------------------------------------------------------


def content_of(catalogue: Products) -> list[Any]:
    """Category, price and vectors as tensors, for the table of items."""
    import torch

    return [torch.from_numpy(array) for array in (catalogue.category, catalogue.price, catalogue.vectors)]


def counts_of(e: Engine, tables: Mapping[str, Frame], vocabulary: Vocabulary, params: Params) -> Any:
    """The `networks.Counts` of tables."""
    import torch

    from buzzer.models.sigir_ecom.next_item.networks import Counts

    pairs = []
    for name, keys in (("next", vocabulary.codes), ("near", vocabulary.products)):
        codes, shares = counts.dense(e, tables[name], keys, params.followers)
        pairs.append((torch.from_numpy(codes), torch.from_numpy(shares)))
    return Counts(pairs[0], pairs[1], vocabulary.products, GUESSES)


def open_counts(e: Engine, context: Context, vocabulary: Vocabulary) -> Session:
    """A session of the saved counts, on the backend of `for_counts`."""
    tables = {name: e.read_parquet(context.work / f"counts-{name}.parquet") for name in counts.TABLES}
    module = counts_of(e, tables, vocabulary, context.params)
    return session_of(module, for_counts(context), vocabulary.axes.shape[1])


def for_counts(context: Context) -> Context:
    """The settings of the counts' session. A backend that runs only encoder layers cannot look them up, so torch does, on the same
    device."""
    if infer.runs(context.backend, infer.NETWORKS):
        return context
    return replace(context, backend="torch_eager", precision="fp32")


def open_network(name: str, context: Context, catalogue: Products) -> Session:
    """A session of the fitted network on the run's backend. It returns only the most probable products."""
    import torch

    from buzzer.models.sigir_ecom.next_item.networks import NETWORKS, Sizes, TopK

    sizes = Sizes(**json.loads((context.work / "sizes.json").read_text()))
    network = NETWORKS[name](sizes, *content_of(catalogue))
    network.load_state_dict(torch.load(context.work / f"{name}.pt", weights_only=True))
    k = min(context.params.candidates, sizes.products - FIRST_CODE)
    return session_of(TopK(network, k), context, sizes.numbers - 1)


def session_of(module: Any, context: Context, dims: int) -> Session:
    """A session of a module that takes windows of events. dims: axes of search vectors."""
    from buzzer.engine import infer

    length = context.params.length
    example: dict[str, Array] = {
        "items": np.full((2, length), 2, dtype=np.int64),
        "kinds": np.full((2, length), 2, dtype=np.int64),
        "numbers": np.zeros((2, length, 1 + dims), dtype=np.float32),
    }
    return infer.prepare(
        module,
        backend=context.backend,
        example=example,
        outputs=("value", "product"),
        precision=context.precision,
        device=context.device,
        threads=context.threads,
    )


# ---- predict ------------------------------------------------------------------------------------------------------


def predict(
    sessions: Mapping[str, Session], weights: Mapping[str, float], batch: Mapping[str, Array]
) -> dict[str, Array]:
    """The best products of a batch by each model and by the ensemble, int32 [rows, GUESSES]."""
    outs = {name: session.run(batch) for name, session in sessions.items()}
    values = [out["value"] for out in outs.values()]
    codes = [out["product"] for out in outs.values()]
    guesses = {
        name: best_of([value], [code], [1.0], GUESSES).astype(np.int32)
        for name, value, code in zip(outs, values, codes, strict=True)
    }
    ensemble = best_of(values, codes, [weights[name] for name in outs], GUESSES)
    return guesses | {ENSEMBLE: ensemble.astype(np.int32)}


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
