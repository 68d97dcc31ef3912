"""The `online-shoppers` task: the models of the second task on real sessions of another shop (UCI 468)."""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets import online_shoppers as dataset
from buzzer.datasets.checked import given_or_generated
from buzzer.datasets.files import need
from buzzer.datasets.online_shoppers import metric
from buzzer.datasets.online_shoppers.reader import (
    CODED,
    COLUMNS,
    COUNTS,
    FILE,
    RATES,
    VERSION,
    WHERE,
    separator_of,
)
from buzzer.engine import frames
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array, Columns, Expr, on_host
from buzzer.models.api.context import Data, Progress, Result, RunContext, Steps
from buzzer.models.sigir_ecom.purchase import odds, task
from buzzer.models.sigir_ecom.sessions.events import batches

REAL = Path("online_shoppers")  # under $BUZZER_DATA
STAND_IN = "a generated stand-in for UCI 468: set BUZZER_DATA or give --data for the real sessions"
EVERY = 5  # row that is of the test; of the others, the next is held out
ENCODED = ("Month", "TrafficType", "Browser", "Region", "VisitorType")
SMOOTHING = 20.0
NUMBERS = (
    *COUNTS,
    *(f"{name}_Duration" for name in COUNTS),
    *RATES,
    "seconds_a_product",
    "pages",
    *(f"{name}_code" for name in CODED),
    *(f"te_{name}_bought" for name in ENCODED),
)


class Shoppers:
    """See configs/tasks/online-shoppers.yaml for the parameters."""

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        real = Path(os.environ["BUZZER_DATA"]) / REAL if "BUZZER_DATA" in os.environ else None
        if source is None and real is not None and (real / FILE).is_file():
            source = real
        folder = cache / f"online_shoppers-v{VERSION}-scale{scale:g}-seed{seed}"
        generate = partial(dataset.generate, scale=scale, seed=seed, progress=progress)
        files = given_or_generated(source, folder, generate, dataset.check, cache, progress)
        notes = files.notes if files.source == "official" else (*files.notes, STAND_IN)
        return Data(files.folder, files.fingerprint, files.source, dict(files.rows), files.scale, notes)

    def fit(self, job: RunContext) -> Steps:
        import torch

        e = frames.load(job.engine)
        yield "load"
        t = e.collect(e.filter(read(e, job.data), lambda c: c("row") % EVERY != 0))
        yield "features"
        tables = {name: e.collect(e.categorify_fit([(t, name)])) for name in CODED}
        t = e.collect(base(e, t, tables))
        bought = e.to_numpy(t, ["bought", "row"])
        prior = float(bought["bought"].mean())
        rates = {name: e.collect(e.group_sums(t, [f"{name}_code"], ["bought"])) for name in ENCODED}
        encoded = e.with_columns(t, fold=lambda c: (c("row") // EVERY) % EVERY)
        for name in ENCODED:
            keys = [f"{name}_code"]
            encoded = e.target_encode_kfold(
                encoded, keys, "fold", {"bought": prior}, SMOOTHING, f"te_{name}", source=e.collect(encoded)
            )
        encoded = e.keep(encoded)
        yield "transfer"
        x, codes = e.matrix(encoded, NUMBERS), codes_of(e, encoded, sizes_of(e, tables))
        rows = odds.Rows(on_host(x), codes, bought["bought"], np.ones(len(codes)), bought["row"] % EVERY == 1)
        yield "fit"
        network, chances, history = build(job, sizes_of(e, tables)), {}, []
        chances[odds.TREES] = task.fit_trees(job, x, rows)
        yield "fit"
        for epoch in task.fit_network(job, network, rows):
            history.append(epoch)
            yield "fit"
        chances[odds.NETWORK] = task.chances_of(network, rows)
        weights = odds.weigh(chances, rows.y[rows.held], rows.weights[rows.held])
        yield "write"
        torch.save(network.cpu().state_dict(), job.work / task.NETWORK)
        (job.work / task.BLEND).write_text(json.dumps(weights))
        for kind, named in (("codes", tables), ("rates", rates)):
            for name, table in named.items():
                e.write_parquet(table, job.work / f"{kind}-{name}.parquet")
        (job.work / "prior.json").write_text(json.dumps(prior))
        return Result({}, len(rows.y), {"bought": prior, "history": history, "weights": weights})

    def predict(self, job: RunContext) -> Steps:
        e = frames.load(job.engine)
        yield "load"
        t = e.collect(e.filter(read(e, job.data), lambda c: c("row") % EVERY == 0))
        tables = {name: e.collect(e.read_parquet(job.work / f"codes-{name}.parquet")) for name in CODED}
        rates = {name: e.collect(e.read_parquet(job.work / f"rates-{name}.parquet")) for name in ENCODED}
        prior = {"bought": float(json.loads((job.work / "prior.json").read_text()))}
        sizes = sizes_of(e, tables)
        sessions = task.sessions_of(job, build(job, sizes), len(NUMBERS), len(CODED))
        yield "features"
        t = base(e, t, tables)
        for name in ENCODED:
            t = e.target_encode(t, rates[name], [f"{name}_code"], prior, SMOOTHING, f"te_{name}")
        t = e.keep(t)
        yield "transfer"
        x, codes = e.matrix(t, NUMBERS), codes_of(e, t, sizes)
        found: dict[str, list[Array]] = {name: [] for name in sessions}
        for rows in batches(len(codes), job.params["predict_batch"]):
            yield "predict"
            for name, p in task.predict(sessions, {"numbers": x[rows], "codes": codes[rows]}).items():
                found[name].append(p)
        for row in range(job.params["latency"]):
            yield "latency"
            task.predict(sessions, {"numbers": x[[row % len(codes)]], "codes": codes[[row % len(codes)]]})
        yield "write"
        described = task.closed(sessions)
        weights = json.loads((job.work / task.BLEND).read_text())
        chances = task.blended({name: np.concatenate(parts) for name, parts in found.items()}, weights)
        truth = e.to_numpy(t, ["row", "bought"])
        submission, answers = job.out / "submission.csv", job.out / "truth.csv"
        dataset.write_submission(submission, {"row": truth["row"], "chance": chances["ensemble"]})
        yield "score"
        dataset.write_submission(answers, {"row": truth["row"], "bought": truth["bought"]})
        scores = dataset.score(submission, answers) | {"accuracy_zeros": float(1 - truth["bought"].mean())}
        for name in sessions:
            scores |= {f"{k}_{name}": v for k, v in metric.scores(truth["bought"], chances[name]).items()}
        return Result(scores, len(codes), {"sessions": described, "weights": weights}, (submission,))


def read(e: Engine, folder: Path) -> Frame:
    path = need(folder, (FILE,), WHERE)
    return e.read_csv(path, COLUMNS, separator=separator_of(path))


def base(e: Engine, t: Frame, tables: Mapping[str, Frame]) -> Frame:
    """What a row tells by itself, values as codes, and `bought`, 0 or 1."""
    for name, table in tables.items():
        t = e.categorify(t, name, table, f"{name}_code")
    return e.with_columns(
        t,
        bought=lambda c: e.cast(c("Revenue") == "TRUE", "int64"),
        seconds_a_product=lambda c: c("ProductRelated_Duration") / (c("ProductRelated") + 1.0),
        pages=lambda c: sum(c(name) for name in COUNTS),
        **{f"{name}_Duration": logarithm(e, f"{name}_Duration") for name in COUNTS},
        PageValues=logarithm(e, "PageValues"),
    )


def logarithm(e: Engine, name: str) -> Callable[[Columns], Expr]:
    return lambda c: e.log1p(c(name))


def sizes_of(e: Engine, tables: Mapping[str, Frame]) -> list[int]:
    """Number of codes by column."""
    return [int(e.height(tables[name])) + 2 for name in CODED]


def codes_of(e: Engine, t: Frame, sizes: list[int]) -> Array:
    """Codes of all columns, each column's after those of the columns before it, for one table: int64 [rows, columns]."""
    arrays = e.to_numpy(t, [f"{name}_code" for name in CODED])
    shift = np.cumsum([0, *sizes[:-1]])
    return np.stack(list(arrays.values()), axis=1).astype(np.int64) + shift


def build(job: RunContext, sizes: list[int]) -> Any:
    import torch

    from buzzer.models.sigir_ecom.purchase.dlrm import Dlrm

    torch.manual_seed(job.seed)
    params = (job.params[key] for key in ("dim", "hidden", "dropout"))
    return Dlrm(len(NUMBERS), len(CODED), 0, sum(sizes), *params)


TASK = Shoppers()
