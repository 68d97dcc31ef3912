"""The `sigir-ecom-task2` task: will the products in the cart be bought? Boosted trees and an embedding network on session features.

The scores include the distance to answering 0 everywhere, which few teams of the challenge clearly exceeded.

`fit` writes to the work folder, beside the files of `ensemble`, `sessions.shared.save` and `sessions.products`:
- common.npy: bool [items], the items that have a vector of their own in the network;
- rates-<name>.parquet: sums of purchases by the keys of `purchase_features.ENCODED`;
- prior.json: the overall rate of purchase;
- work.json: the work of both models for one query (`api.context.Work`).

Details of `fit`: `carts`, training sessions with an add; `columns`, of the models; `history`, of the network, a list of `epoch`, `loss` and
`valid_loss`; `bought`, the rate of purchase; `weights`, by model.

Details of `predict`: `sessions`, by model the description of its session; `positives`, by model the queries answered with 1; `weights`;
`ceiling`, the score of a model that knows the shop of generated data, None for others.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets import sigir_ecom as dataset
from buzzer.datasets.sigir_ecom import json_file
from buzzer.datasets.sigir_ecom.ceiling import ceiling
from buzzer.datasets.sigir_ecom.metric import labels, weighted_micro_f1
from buzzer.datasets.sigir_ecom.schema import WHERE
from buzzer.datasets.strict_json import objects
from buzzer.engine import frames
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array, on_host
from buzzer.errors import DataError
from buzzer.models.api import progress
from buzzer.models.api.context import Result, Steps, Work
from buzzer.models.sigir_ecom import work
from buzzer.models.sigir_ecom.purchase import ensemble, purchase_features
from buzzer.models.sigir_ecom.purchase.blending import Rows
from buzzer.models.sigir_ecom.purchase.ensemble import ENSEMBLE
from buzzer.models.sigir_ecom.purchase.params import Context, Params
from buzzer.models.sigir_ecom.sessions import events, products, shared
from buzzer.models.sigir_ecom.sessions.events import Vocabulary, batches
from buzzer.models.sigir_ecom.sessions.products import Products
from buzzer.models.work import load_work, save_work, table_rows

COMMON = "common.npy"
TABLES = tuple(
    f"{name}.parquet"
    for name in ("codes-sku", "codes-url", *(f"rates-{t}" for t in purchase_features.ENCODED))
)
SCORE = "weighted_f1"


class Intention(shared.ShopTask[Params]):
    """See configs/tasks/sigir-ecom-task2.yaml for the parameters."""

    params_type = Params

    def fit_steps(self, context: Context) -> Steps:
        """Fit the vocabulary, the rates of purchase and both models."""
        e, params = frames.load(context.engine), context.params
        yield "load"
        pages, product_names, searches, content = shared.read(e, context)
        yield "features"
        vocabulary = shared.fit_vocabulary(e, context, pages, searches, content)
        catalogue, _ = shared.fit_products(e, content, product_names, vocabulary)
        with progress.part(0.2, 0.8):
            ranges = progress.over(shared.ranges(e, pages, params.piece_rows))
            parts = shared.in_parts(e, pages, searches, vocabulary, ranges)
            described = [e.collect(features(e, part, vocabulary, catalogue)) for part in parts]
        dims = len(vocabulary.axes.T)
        t = e.collect(purchase_features.training_rows(e, events.concatenated(e, described), dims))
        del described
        truth = e.to_numpy(t, ["bought", "session", "after_add"])
        bought, session = truth["bought"], truth["session"]
        prior = float(bought.mean()) if len(bought) else 0.0
        if not 0 < prior < 1:
            raise DataError(
                f"{context.data}: no carts that are bought, or none that are not", "use a larger --scale"
            )
        rates = {name: e.collect(table) for name, table in purchase_features.fit_rates(e, t).items()}
        t = e.keep(purchase_features.encode_own(e, t, prior))
        yield "transfer"
        x, codes = e.matrix(t, purchase_features.names(dims)), purchase_features.codes_of(e, t)
        common = purchase_features.common_items(codes, session, vocabulary.codes, params.common)
        held, shares = shared.held_out(session, params.valid), purchase_features.shares(session)
        rows = Rows(on_host(x), purchase_features.with_common(codes, common), bought, shares, held)
        held_weights = purchase_features.score_weights(session[held], truth["after_add"][held])
        yield "fit"
        network = network_of(context, x.shape[1], vocabulary)
        fitted = yield from ensemble.fit(context, network, x, rows, held_weights)
        np.save(context.work / COMMON, common)
        shared.save(e, context, vocabulary)
        catalogue.save(context.work)
        for name, table in rates.items():
            e.write_parquet(table, context.work / f"rates-{name}.parquet")
        (context.work / "prior.json").write_text(json.dumps(prior))
        save_work(context.work, work_of(context, network, x.shape[1]))
        details = {
            "carts": len(np.unique(session)),
            "columns": x.shape[1],
            "history": fitted.history,
            "bought": prior,
            "weights": fitted.weights,
        }
        return Result(valid_scores(fitted.probabilities, rows, held_weights), len(rows.y), details)

    def predict_steps(self, context: Context) -> Steps:
        """Answer the test queries with each model and the ensemble, a piece of queries at a time."""
        e, test = frames.load(context.engine), shared.test_file(context.data, "cart")
        params = context.params
        yield "load"
        vocabulary, catalogue = shared.load(e, context), products.load(context.work)
        rates, prior = saved_rates(e, context.work)
        weights, common = ensemble.saved_weights(context.work), np.load(context.work / COMMON)
        columns = purchase_features.names(len(vocabulary.axes.T))
        untrained = partial(network_of, context, len(columns), vocabulary)
        sessions = ensemble.open_sessions(context, untrained, len(columns), len(purchase_features.CODES))
        outputs: dict[str, list[Array]] = {name: [] for name in sessions}
        batch: dict[str, Any] = {}
        for piece in json_file.pieces(test, params.piece_sessions):
            yield "preprocess"
            table = json_file.events(piece)
            yield "features"
            t = features(e, events.test_events(e, table, vocabulary.axes), vocabulary, catalogue)
            t = purchase_features.test_rows(e, e.collect(t))
            t = e.keep(purchase_features.encode(e, t, rates, prior))
            yield "transfer"
            x = e.matrix(t, columns)
            codes = purchase_features.with_common(purchase_features.codes_of(e, t), common)
            if missing := len(piece) - len(x):
                raise DataError(f"{test}: {missing} queries do not end nb_after_add events after an add")
            for chosen in batches(len(x), params.predict_batch):
                yield "predict"
                batch = {"numbers": x[chosen], "codes": codes[chosen]}
                for name, p in ensemble.predict(sessions, batch).items():
                    outputs[name].append(p)
            yield "load"
        if not batch:
            raise DataError(f"{test}: no queries", WHERE)
        for row in range(params.latency):
            yield "latency"
            ensemble.predict(sessions, {name: array[[row % len(array)]] for name, array in batch.items()})
        yield "write"
        described = ensemble.close(sessions)
        whole = {name: np.concatenate(parts) for name, parts in outputs.items()}
        probabilities = ensemble.blended(whole, weights)
        answers = {name: (p > 0.5).astype(int).tolist() for name, p in probabilities.items()}
        submission = context.out / "submission.json"
        dataset.write_submission(submission, test, answers[ENSEMBLE])
        yield "score"
        positives = {name: sum(answer) for name, answer in answers.items()}
        best = ceiling(context.data, "cart", SCORE)
        details = {"sessions": described, "positives": positives, "weights": weights, "ceiling": best}
        done = load_work(context.work)
        scores = score(answers, submission, test)
        return Result(scores, len(answers[ENSEMBLE]), details, (submission,), work=done)


def work_of(context: Context, network: Any, numbers: int) -> Work:
    """The work of both models for one query. numbers: columns of numbers."""
    rows = table_rows(context.work / name for name in TABLES)
    codes = len(purchase_features.CODES)
    return work.of_purchase(network, numbers, codes, context.work / ensemble.TREES, rows)


def saved_rates(e: Engine, folder: Path) -> tuple[dict[str, Frame], float]:
    """The sums of purchases and the overall rate that `fit` saved."""
    names = purchase_features.ENCODED
    rates = {name: e.collect(e.read_parquet(folder / f"rates-{name}.parquet")) for name in names}
    return rates, float(json.loads((folder / "prior.json").read_text()))


def features(e: Engine, t: Frame, vocabulary: Vocabulary, catalogue: Products) -> Frame:
    """The events of sessions with an add, with the columns from which rows are made."""
    t = e.collect(purchase_features.place(e, t))
    t = events.in_sessions(e, events.code(e, t, vocabulary), vocabulary.axes)
    t = e.collect(purchase_features.with_cart(e, e.collect(t)))
    return purchase_features.describe(e, t, purchase_features.facts(e, catalogue))


def network_of(context: Context, numbers: int, vocabulary: Vocabulary) -> Any:
    """An untrained `Dlrm` for rows of `numbers` columns."""
    codes, kinds = len(purchase_features.CODES), purchase_features.KINDS
    return ensemble.network_of(context, numbers, codes, kinds, vocabulary.codes)


def valid_scores(probabilities: Mapping[str, Array], rows: Rows, held_weights: Array) -> dict[str, float]:
    """The score of each model, and of 0 everywhere, on the held-out sessions at all their cuts."""
    y = rows.y[rows.held]
    by_model = {**probabilities, "zeros": np.zeros(len(y))}
    return {
        f"valid_{SCORE}_{name}": float(held_weights[(p > 0.5) == y].sum()) for name, p in by_model.items()
    }


def score(answers: Mapping[str, list[int]], submission: Path, test: Path) -> dict[str, float]:
    """The official score of the submission file, the scores of each model and of 0 everywhere, and the distance above the latter.

    Empty without labels. answers: by model, 0 or 1.
    """
    queries = list(objects(test, checked=True))
    if "label" not in queries[0]:
        return {}
    truth, after = labels(test, int), [query["nb_after_add"] for query in queries]
    zeros = weighted_micro_f1([0] * len(truth), truth, after)
    scores = dataset.score(submission, test)
    scores |= {"above_zeros": scores[SCORE] - zeros, f"{SCORE}_zeros": zeros}
    return scores | {
        f"{SCORE}_{name}": weighted_micro_f1(answer, truth, after)
        for name, answer in answers.items()
        if name != ENSEMBLE
    }


TASK = Intention()
