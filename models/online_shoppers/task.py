"""The `online-shoppers` task: the models of `sigir-ecom-task2` on real sessions of another shop (UCI 468).

`fit` writes to the work folder, in addition to the files of `sigir_ecom.purchase.ensemble`:
- codes-<column>.parquet: codes of the values of a column;
- rates-<column>.parquet: sums of purchases by the codes of a column;
- prior.json: the overall rate of purchase.

Details of `fit`: `bought`, the rate of purchase; `history`, for the network, a list of `epoch`, `loss` and `valid_loss`; `weights`,
model -> weight.

Details of `predict`: `sessions`, model -> description of its session; `weights`, model -> weight.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets import online_shoppers as dataset
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
from buzzer.engine.frames.base import FIRST_CODE, Array, Columns, Expr, on_host
from buzzer.models.api.context import Result, Steps
from buzzer.models.dataset_task import DatasetTask, DataSource
from buzzer.models.sigir_ecom.purchase import ensemble
from buzzer.models.sigir_ecom.purchase.blending import Rows
from buzzer.models.sigir_ecom.purchase.ensemble import ENSEMBLE
from buzzer.models.sigir_ecom.purchase.params import Context, Params
from buzzer.models.sigir_ecom.sessions.events import batches

STAND_IN = "a generated stand-in for UCI 468: set BUZZER_DATA or use --data for the real sessions"
EVERY = 5  # every fifth row is a test row; rows with row % 5 == 1 are held out
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


class Shoppers(DatasetTask[Params]):
    """See configs/tasks/online-shoppers.yaml for the parameters."""

    params_type = Params
    data_source = DataSource(
        f"online_shoppers-v{VERSION}",
        dataset.generate,
        dataset.check,
        installed=Path("online_shoppers", FILE),
        stand_in=STAND_IN,
    )

    def fit_steps(self, context: Context) -> Steps:
        """Fit the codes, the rates of purchase and both models."""
        e = frames.load(context.engine)
        yield "load"
        t = e.collect(e.filter(read(e, context.data), lambda c: c("row") % EVERY != 0))
        yield "features"
        tables = {name: e.collect(e.categorify_fit([(t, name)])) for name in CODED}
        t = e.collect(base(e, t, tables))
        truth = e.to_numpy(t, ["bought", "row"])
        bought = truth["bought"]
        prior = float(bought.mean()) if len(bought) else 0.0
        rates = {name: e.collect(e.group_sums(t, [f"{name}_code"], ["bought"])) for name in ENCODED}
        encoded = e.keep(encode_own(e, t, prior))
        yield "transfer"
        sizes = sizes_of(e, tables)
        x, codes = e.matrix(encoded, NUMBERS), codes_of(e, encoded, sizes)
        ones = np.ones(len(codes))
        rows = Rows(on_host(x), codes, bought, ones, truth["row"] % EVERY == 1)
        yield "fit"
        fitted = yield from ensemble.fit(context, network_of(context, sizes), x, rows, ones[rows.held])
        for kind, named in (("codes", tables), ("rates", rates)):
            for name, table in named.items():
                e.write_parquet(table, context.work / f"{kind}-{name}.parquet")
        (context.work / "prior.json").write_text(json.dumps(prior))
        details = {"bought": prior, "history": fitted.history, "weights": fitted.weights}
        return Result({}, len(rows.y), details)

    def predict_steps(self, context: Context) -> Steps:
        """Predict the purchases of the test rows with each model, and blend."""
        e, params = frames.load(context.engine), context.params
        yield "load"
        t = e.collect(rows_of_test(e, context.data))
        tables = saved_tables(e, context.work, "codes", CODED)
        rates = saved_tables(e, context.work, "rates", ENCODED)
        prior = saved_prior(context.work)
        sizes = sizes_of(e, tables)
        untrained = partial(network_of, context, sizes)
        sessions = ensemble.open_sessions(context, untrained, len(NUMBERS), len(CODED))
        yield "features"
        t = e.keep(encode(e, base(e, t, tables), rates, prior))
        yield "transfer"
        x, codes = e.matrix(t, NUMBERS), codes_of(e, t, sizes)
        outputs: dict[str, list[Array]] = {name: [] for name in sessions}
        for rows in batches(len(codes), params.predict_batch):
            yield "predict"
            batch = {"numbers": x[rows], "codes": codes[rows]}
            for name, p in ensemble.predict(sessions, batch).items():
                outputs[name].append(p)
        for row in range(params.latency):
            yield "latency"
            only = [row % len(codes)]
            ensemble.predict(sessions, {"numbers": x[only], "codes": codes[only]})
        yield "write"
        described, weights = ensemble.close(sessions), ensemble.saved_weights(context.work)
        whole = {name: np.concatenate(parts) for name, parts in outputs.items()}
        probabilities = ensemble.blended(whole, weights)
        truth = e.to_numpy(t, ["row", "bought"])
        submission, answers = context.out / "submission.csv", context.out / "truth.csv"
        dataset.write_submission(submission, {"row": truth["row"], "chance": probabilities[ENSEMBLE]})
        yield "score"
        dataset.write_submission(answers, {"row": truth["row"], "bought": truth["bought"]})
        scores = dataset.score(submission, answers) | {"accuracy_zeros": float(1 - truth["bought"].mean())}
        for name in sessions:
            by_kind = metric.scores(truth["bought"], probabilities[name])
            scores |= {f"{kind}_{name}": value for kind, value in by_kind.items()}
        return Result(scores, len(codes), {"sessions": described, "weights": weights}, (submission,))


def saved_tables(e: Engine, folder: Path, kind: str, names: tuple[str, ...]) -> dict[str, Frame]:
    """The tables <kind>-<name>.parquet that `fit` saved."""
    return {name: e.collect(e.read_parquet(folder / f"{kind}-{name}.parquet")) for name in names}


def saved_prior(folder: Path) -> float:
    """The overall rate of purchase that `fit` saved."""
    return float(json.loads((folder / "prior.json").read_text()))


def rows_of_test(e: Engine, folder: Path) -> Frame:
    """The rows of the file that are the test."""
    return e.filter(read(e, folder), lambda c: c("row") % EVERY == 0)


def encode(e: Engine, t: Frame, rates: Mapping[str, Frame], prior: float) -> Frame:
    """Add the rates of purchase of the training rows."""
    for name in ENCODED:
        t = e.target_encode(t, rates[name], [f"{name}_code"], {"bought": prior}, SMOOTHING, f"te_{name}")
    return t


def encode_own(e: Engine, t: Frame, prior: float) -> Frame:
    """Add out-of-fold rates of purchase, for the rows that the rates are fitted on."""
    t = e.with_columns(t, fold=lambda c: (c("row") // EVERY) % EVERY)
    for name in ENCODED:
        keys = [f"{name}_code"]
        t = e.target_encode_kfold(
            t, keys, "fold", {"bought": prior}, SMOOTHING, f"te_{name}", source=e.collect(t)
        )
    return t


def read(e: Engine, folder: Path) -> Frame:
    """The rows of the file in a folder. Raises DataError if it is missing."""
    path = need(folder, (FILE,), WHERE)
    return e.read_csv(path, COLUMNS, separator=separator_of(path))


def base(e: Engine, t: Frame, tables: Mapping[str, Frame]) -> Frame:
    """Features that depend only on the row and the codes, and `bought`, 0 or 1."""
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
    """log(1 + x)."""
    return lambda c: e.log1p(c(name))


def sizes_of(e: Engine, tables: Mapping[str, Frame]) -> list[int]:
    """The number of codes of each column."""
    return [int(e.height(tables[name])) + FIRST_CODE for name in CODED]


def codes_of(e: Engine, t: Frame, sizes: list[int]) -> Array:
    """Codes of all columns in one range, int64 [rows, columns]. The codes of each column follow those of the previous columns."""
    arrays = e.to_numpy(t, [f"{name}_code" for name in CODED])
    shift = np.cumsum([0, *sizes[:-1]])
    return np.stack(list(arrays.values()), axis=1).astype(np.int64) + shift


def network_of(context: Context, sizes: list[int]) -> Any:
    """An untrained `Dlrm`."""
    return ensemble.network_of(context, len(NUMBERS), len(CODED), 0, sum(sizes))


TASK = Shoppers()
