"""The `sigir-ecom-task2` task: will what is in the cart be bought? Boosted trees and an embedding network on session features,
measured by their distance to answering 0 everywhere, which few in the challenge got far above."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets import sigir_ecom as dataset
from buzzer.datasets.sigir_ecom import json_file
from buzzer.datasets.sigir_ecom.metric import labels, weighted_micro_f1
from buzzer.datasets.sigir_ecom.schema import WHERE
from buzzer.datasets.strict_json import objects
from buzzer.engine import frames
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array, on_host
from buzzer.errors import DataError
from buzzer.models.api.context import Data, Progress, Result, RunContext, Steps
from buzzer.models.sigir_ecom.next_item.task import test_file
from buzzer.models.sigir_ecom.purchase import carts, odds
from buzzer.models.sigir_ecom.purchase.odds import Rows
from buzzer.models.sigir_ecom.sessions import events, products, shared
from buzzer.models.sigir_ecom.sessions.events import Vocabulary, batches

TREES, NETWORK, COMMON, BLEND = "xgboost.ubj", "dlrm.pt", "common.npy", "weights.json"
SCORE = "weighted_f1"


class Intention:
    """See configs/tasks/sigir-ecom-task2.yaml for the parameters."""

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        return shared.prepare(source, cache, scale, seed, progress)

    def fit(self, job: RunContext) -> Steps:
        import torch

        e = frames.load(job.engine)
        yield "load"
        pages, names_of, searches, content = shared.read(e, job)
        yield "features"
        vocabulary = shared.fit_vocabulary(e, job, pages, searches, content)
        categories = e.collect(e.categorify_fit([(content, "category_hash")]))
        known = products.fit(e, content, names_of, vocabulary.tables["sku"], categories)
        parts = shared.in_parts(e, pages, searches, vocabulary, job.params["piece_rows"])
        t = events.together(e, [e.collect(features(e, part, vocabulary, known)) for part in parts])
        t = e.collect(carts.training_rows(e, t, len(vocabulary.axes.T)))
        bought = e.to_numpy(t, ["bought", "session"])
        prior = float(bought["bought"].mean()) if len(bought["bought"]) else 0.0
        if not 0 < prior < 1:
            raise DataError(
                f"{job.data}: no carts that are bought, or none that are not", "use a larger --scale"
            )
        rates = {name: e.collect(table) for name, table in carts.fit_rates(e, t).items()}
        t = e.keep(carts.encode_own(e, t, prior))
        yield "transfer"
        columns = carts.names(len(vocabulary.axes.T))
        x, codes, session = e.matrix(t, columns), carts.codes_of(e, t), bought["session"]
        common = carts.common_items(codes, session, vocabulary.codes, job.params["common"])
        rows = Rows(
            on_host(x),
            carts.with_common(codes, common),
            bought["bought"],
            carts.shares(session),
            shared.held_out(session, job.params["valid"]),
        )
        after_add = e.to_numpy(t, ["after_add"])["after_add"]
        held_weights = carts.score_weights(session[rows.held], after_add[rows.held])
        yield "fit"
        network, chances, history = build(job, x.shape[1], codes.shape[1], vocabulary), {}, []
        chances[odds.TREES] = fit_trees(job, x, rows)
        yield "fit"
        for epoch in fit_network(job, network, rows):
            history.append(epoch)
            yield "fit"
        chances[odds.NETWORK] = chances_of(network, rows)
        weights = odds.weigh(chances, rows.y[rows.held], held_weights)
        scores = valid_scores(chances, weights, rows, held_weights)
        yield "write"
        torch.save(network.cpu().state_dict(), job.work / NETWORK)
        (job.work / BLEND).write_text(json.dumps(weights))
        np.save(job.work / COMMON, common)
        shared.save(e, job, vocabulary)
        known.save(job.work)
        for name, table in rates.items():
            e.write_parquet(table, job.work / f"rates-{name}.parquet")
        (job.work / "prior.json").write_text(json.dumps(prior))
        details = {"carts": len(np.unique(bought["session"])), "columns": x.shape[1], "history": history}
        return Result(scores, len(rows.y), details | {"bought": prior, "weights": weights})

    def predict(self, job: RunContext) -> Steps:
        e, test = frames.load(job.engine), test_file(job.data, "cart")
        yield "load"
        vocabulary, known = shared.load(e, job), products.load(job.work)
        rates = {
            name: e.collect(e.read_parquet(job.work / f"rates-{name}.parquet")) for name in carts.ENCODED
        }
        prior = float(json.loads((job.work / "prior.json").read_text()))
        weights, common = json.loads((job.work / BLEND).read_text()), np.load(job.work / COMMON)
        columns = carts.names(len(vocabulary.axes.T))
        network = build(job, len(columns), len(carts.CODES), vocabulary)
        sessions = sessions_of(job, network, len(columns), len(carts.CODES))
        found: dict[str, list[Array]] = {name: [] for name in sessions}
        batch: dict[str, Any] = {}
        for piece in json_file.pieces(test, job.params["piece_sessions"]):
            yield "preprocess"
            table = json_file.events(piece)
            yield "features"
            t = features(e, events.test_events(e, table, vocabulary.axes), vocabulary, known)
            t = e.keep(carts.encode(e, carts.test_rows(e, e.collect(t)), rates, prior))
            yield "transfer"
            x, codes = e.matrix(t, columns), carts.with_common(carts.codes_of(e, t), common)
            if len(x) != len(piece):
                raise DataError(
                    f"{test}: {len(piece) - len(x)} queries do not end nb_after_add events after an add"
                )
            for rows in batches(len(x), job.params["predict_batch"]):
                yield "predict"
                batch = {"numbers": x[rows], "codes": codes[rows]}
                for name, p in predict(sessions, batch).items():
                    found[name].append(p)
            yield "load"
        if not batch:
            raise DataError(f"{test}: no queries", WHERE)
        for row in range(job.params["latency"]):
            yield "latency"
            predict(sessions, {name: array[[row % len(array)]] for name, array in batch.items()})
        yield "write"
        described = closed(sessions)
        chances = blended({name: np.concatenate(parts) for name, parts in found.items()}, weights)
        answers = {name: (p > 0.5).astype(int).tolist() for name, p in chances.items()}
        submission = job.out / "submission.json"
        dataset.write_submission(submission, test, answers["ensemble"])
        yield "score"
        positives = {name: sum(answer) for name, answer in answers.items()}
        details = {"sessions": described, "positives": positives, "weights": weights}
        return Result(score(answers, submission, test), len(answers["ensemble"]), details, (submission,))


def features(e: Engine, t: Frame, vocabulary: Vocabulary, known: products.Products) -> Frame:
    """Events of sessions with a cart, with all that their rows are made of."""
    t = e.collect(carts.place(e, t))
    t = events.in_sessions(e, events.code(e, t, vocabulary), vocabulary.axes)
    return carts.describe(e, e.collect(carts.with_cart(e, e.collect(t))), carts.facts(e, known))


def fit_trees(job: RunContext, x: Any, rows: Rows) -> Array:
    """Saves trees of all rows; gives what trees of the rows not held out say of those that are. x: the rows' numbers, on the device.

    Winners: 20 rounds, depth 6, eta .53, column sample .4, lambda 6.
    """
    import xgboost

    learn, held = ~rows.held, xgboost.DMatrix(rows.numbers[rows.held])
    chances = trees(job, rows.numbers[learn], rows.y[learn], rows.weights[learn]).predict(held)
    trees(job, x, rows.y, rows.weights).save_model(job.work / TREES)
    return np.asarray(chances)


def trees(job: RunContext, x: Any, y: Array, weights: Array) -> Any:
    import xgboost

    settings = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_depth": job.params["depth"],
        "eta": job.params["eta"],
        "lambda": 6.0,
        "subsample": 0.8,
        "colsample_bytree": job.params["colsample"],
        "base_score": float(np.average(y, weights=weights)),
        "seed": job.seed,
        "nthread": job.threads,
        "device": job.device,
    }
    data = xgboost.QuantileDMatrix(x, y, weight=weights / weights.mean(), nthread=job.threads)
    return xgboost.train(settings, data, job.params["rounds"])


def fit_network(job: RunContext, network: Any, rows: Rows) -> Iterator[dict[str, float]]:
    import torch

    from buzzer.models.sigir_ecom.purchase import dlrm

    torch.set_num_threads(job.threads)
    torch.set_flush_denormal(
        True
    )  # moments of table rows that are seldom seen; they made a step ten times as long
    return dlrm.fit(network, rows, job.params, job)


def chances_of(network: Any, rows: Rows) -> Array:
    """What the network says of the rows held out."""
    import torch

    device = next(network.parameters()).device
    inputs = [torch.from_numpy(array[rows.held]).to(device) for array in (rows.numbers, rows.codes)]
    with torch.no_grad():
        return np.asarray(network.eval()(*inputs).cpu().numpy())


def valid_scores(
    chances: dict[str, Array], weights: Mapping[str, float], rows: Rows, held_weights: Array
) -> dict[str, float]:
    """The score of the sessions held out, each at all its cuts; of 0 everywhere too."""
    y = rows.y[rows.held]
    all_ = blended(chances, weights) | {"zeros": np.zeros(len(y))}
    return {f"valid_{SCORE}_{name}": float(held_weights[(p > 0.5) == y].sum()) for name, p in all_.items()}


def build(job: RunContext, numbers: int, codes: int, vocabulary: Vocabulary) -> Any:
    import torch

    from buzzer.models.sigir_ecom.purchase.dlrm import Dlrm

    sizes = (job.params[key] for key in ("dim", "hidden", "dropout"))
    torch.manual_seed(job.seed)
    return Dlrm(numbers, codes, carts.KINDS, vocabulary.codes, *sizes)


def sessions_of(job: RunContext, network: Any, numbers: int, codes: int) -> dict[str, Any]:
    """The fitted trees, and the network, with its fitted weights, on the job's backend (see `infer.split_backend`)."""
    import torch

    from buzzer.engine import infer

    network.load_state_dict(torch.load(job.work / NETWORK, weights_only=True))
    example: dict[str, Array] = {
        "numbers": np.zeros((2, numbers), dtype=np.float32),
        "codes": np.zeros((2, codes), dtype=np.int64),
    }
    on_networks, on_trees = infer.split_backend(job.backend)
    common: dict[str, Any] = {"outputs": ("probability",), "device": job.device, "threads": job.threads}
    trees = infer.prepare(
        job.work / TREES, backend=on_trees, example={"features": example["numbers"]}, **common
    )
    net = infer.prepare(network, backend=on_networks, example=example, precision=job.precision, **common)
    return {odds.TREES: trees, odds.NETWORK: net}


def predict(sessions: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Array]:
    """Probabilities by model, [rows]."""
    return {
        "xgboost": sessions["xgboost"].run({"features": batch["numbers"]})["probability"],
        "dlrm": sessions["dlrm"].run({**batch, "numbers": on_host(batch["numbers"])})["probability"],
    }


def closed(sessions: Mapping[str, Any]) -> dict[str, Any]:
    """What the sessions were; they are closed."""
    described = {name: vars(session.describe()) for name, session in sessions.items()}
    for session in sessions.values():
        session.close()
    return described


def blended(chances: dict[str, Array], weights: Mapping[str, float]) -> dict[str, Array]:
    """The models' chances and, as `ensemble`, those of their weighted log-odds."""
    return chances | {"ensemble": odds.mixed(chances, weights)}


def score(answers: Mapping[str, list[int]], submission: Path, test: Path) -> dict[str, float]:
    """The official score of the written submission; the same of each model, and of 0 everywhere; and how far above that
    floor the submission is."""
    queries = list(objects(test, known=True))
    if "label" not in queries[0]:
        return {}
    truth, after = labels(test, int), [query["nb_after_add"] for query in queries]
    floor = weighted_micro_f1([0] * len(truth), truth, after)
    scores = dataset.score(submission, test)
    scores |= {"above_zeros": scores[SCORE] - floor, f"{SCORE}_zeros": floor}
    return scores | {
        f"{SCORE}_{name}": weighted_micro_f1(answer, truth, after)
        for name, answer in answers.items()
        if name != "ensemble"
    }


TASK = Intention()
