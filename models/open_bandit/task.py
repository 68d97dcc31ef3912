"""The `open-bandit` task: who clicks which item at which position? Target encodings and boosted trees, as in `recsys2021`.

`fit` writes to the work folder:
- rates-<name>.parquet: sums of clicks by the keys of ENCODED;
- prior.json: the overall rate of clicks;
- trees.ubj: the trees;
- work.json: their work for one row (`api.context.Work`).

Details of `fit` and `predict`: `columns` of the trees; `clicks`, in the training rows or in the test rows; of `predict` also `session`, its
description.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets import open_bandit as dataset
from buzzer.datasets.contract import Progress
from buzzer.datasets.open_bandit import generator, logs, metric
from buzzer.datasets.open_bandit.reader import has_logs
from buzzer.datasets.open_bandit.schema import CAMPAIGNS, FILES, ITEM, ROWS, USER
from buzzer.engine import frames
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array, Columns, Expr
from buzzer.models.api import progress
from buzzer.models.api.context import Data, Result, Steps, Work
from buzzer.models.dataset_task import DatasetTask, DataSource
from buzzer.models.open_bandit.params import Context, Params
from buzzer.models.work import load_work, save_work, table_rows, tree_nodes

REAL = "real data: Open Bandit (ZOZOTOWN, 24 to 30 November 2019), {}"
SAMPLE = "six logs of 10,000 impressions"  # what the package has
SPLIT = "time split: the last two days are the test"
STAND_IN = "a generated stand-in for Open Bandit: `pip install --no-deps obp==0.4.1` for the real impressions"
CLICK, TREES, PRIOR = "click", "trees.ubj", "prior.json"
FOLDS = 5  # of the out-of-fold encodings of the training rows
RATES = 0.25  # share of the phase `features` of `fit` in which the sums of clicks are made; the rest encodes the rows
SHOWN = ("campaign", "item")  # together they identify an item
ENCODED: dict[str, tuple[str, ...]] = {
    "item": SHOWN,
    "place": (*SHOWN, "position"),
    "policy": (*SHOWN, "policy"),
    "slot": ("campaign", "position"),
    "hour": ("hour",),
    **{name: (name,) for name in (*USER, *ITEM)},
    "user": USER,
    "user_campaign": (*USER, "campaign"),
    **{f"pair_{name}": (*SHOWN, name) for name in USER},
    **{f"taste_{name}": (ITEM[0], name) for name in USER},
}
NUMBERS = (
    "position",
    "hour",
    "weekday",
    "item_0",
    "affinity",
    "affinities",
    "thompson",
    "campaign_code",
    *(f"te_{name}_{CLICK}" for name in ENCODED),
)


class OpenBandit(DatasetTask[Params]):
    """See configs/tasks/open-bandit.yaml for the parameters; --scale is the share of the impressions."""

    params_type = Params
    data_source = DataSource(
        f"open_bandit-v{generator.VERSION}", dataset.generate, dataset.check, stand_in=STAND_IN
    )

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        """Map logs into tables, in the cache: those in the folder `source` or, without one, in the installed package.

        A folder may also have the tables themselves. Without a folder and the package a stand-in is generated. Raises DataError for files
        that are missing or invalid.
        """
        root = logs.folder() if source is None else source
        if root is None or not has_logs(root):
            return super().prepare(source, cache, scale, seed, progress)
        name = f"open_bandit_logs-v{logs.VERSION}"
        if source is not None:
            name += f"-{logs.contents(root)[:16]}"
        tables = DataSource(name, partial(logs.generate, root=root), dataset.check)
        files = tables.files(None, cache, scale, seed, progress)
        share = min(scale, 1.0)
        rows = files.rows["train"] + files.rows["test"]
        size = SAMPLE if rows == round(ROWS * share) else f"{rows:,} impressions"
        notes = (REAL.format(size), SPLIT)
        return Data(files.folder, files.fingerprint, "official", dict(files.rows), share, notes)

    def fit_steps(self, context: Context) -> Steps:
        """Sum up the clicks of each combination of keys, and train the trees on out-of-fold rates."""
        # Imported here, because their module imports torch.
        from buzzer.models.recsys2021.trees import in_process, start_of

        e, params = frames.load(context.engine), context.params
        yield "load"
        t = e.collect(base(e, read(e, context.data, "train")))
        yield "features"
        clicks = e.to_numpy(t, [CLICK])[CLICK]
        priors = {CLICK: float(clicks.mean())}
        with progress.part(0.0, RATES):
            rates = {name: e.collect(table) for name, table in rates_of(e, t)}
        encoded = e.keep(encode_own(e, t, rates, priors, params.smoothing))
        yield "transfer"
        x = e.matrix(encoded, NUMBERS)
        yield "fit"
        settings = {
            "objective": "binary:logistic",
            "tree_method": "hist",
            "max_depth": params.depth,
            "eta": params.eta,
            "min_child_weight": params.min_child,
            "subsample": params.subsample,
            "colsample_bytree": params.colsample,
            "base_score": start_of(clicks),
            "seed": context.seed,
            "nthread": context.threads,
            "device": context.device,
        }
        booster = in_process(x, context.threads)(settings, clicks, None, params.rounds)
        booster.save_model(context.work / TREES)
        for name, table in rates.items():
            e.write_parquet(table, context.work / f"rates-{name}.parquet")
        (context.work / PRIOR).write_text(json.dumps(priors[CLICK]))
        save_work(context.work, work_of(context))
        return Result({}, len(clicks), {"columns": len(NUMBERS), "clicks": int(clicks.sum())})

    def predict_steps(self, context: Context) -> Steps:
        """Predict the clicks of the test rows by the trees; the smoothed rate of the item alone is scored beside them."""
        e, params = frames.load(context.engine), context.params
        yield "load"
        t = e.collect(base(e, read(e, context.data, "test")))
        rates = {name: e.read_parquet(context.work / f"rates-{name}.parquet") for name in ENCODED}
        priors = {CLICK: float(json.loads((context.work / PRIOR).read_text()))}
        session = open_trees(context)
        yield "features"
        t = e.keep(encode(e, t, rates, priors, params.smoothing))
        yield "transfer"
        x = e.matrix(t, NUMBERS)
        parts = []
        for start in range(0, len(x), params.predict_rows):
            yield "predict"
            parts.append(session.run({"features": x[start : start + params.predict_rows]})["probability"])
        for row in range(params.latency):
            yield "latency"
            session.run({"features": x[[row % len(x)]]})
        yield "write"
        described = vars(session.describe())
        session.close()
        by_item = f"te_item_{CLICK}"
        columns = e.to_numpy(t, ["row", by_item])
        submission = context.out / "submission.csv"
        answers = {"row": columns["row"], "chance": np.concatenate(parts)}
        dataset.write_submission(submission, answers)
        yield "score"
        truth_file = context.data / FILES["truth"][0]
        scores = dataset.score(submission, truth_file)
        clicks = metric.aligned(submission, truth_file, CLICK)[0]
        scores |= {f"{k}_item": v for k, v in metric.scores(clicks, columns[by_item]).items()}
        details = {"columns": len(NUMBERS), "clicks": int(clicks.sum()), "session": described}
        return Result(scores, len(clicks), details, (submission,), work=load_work(context.work))


def read(e: Engine, folder: Path, part: str) -> Frame:
    """The rows of train.csv or test.csv."""
    name, kinds = FILES[part]
    plain = {column: kind if kind in ("int64", "float64") else "str" for column, kind in kinds.items()}
    if CLICK in plain:
        plain[CLICK] = "int64"
    return e.read_csv(folder / name, plain)


def base(e: Engine, t: Frame) -> Frame:
    """Features that depend on the row alone."""
    t = e.with_columns(t, seconds=lambda c: c("time") // 1000)
    t = e.date_parts(t, "seconds", "s", {"hour": "hour", "weekday": "weekday"})
    codes = {
        "thompson": equals(e, "policy", "bts", 1),
        **{f"is_{name}": equals(e, "campaign", name, number) for number, name in enumerate(CAMPAIGNS)},
    }
    t = e.with_columns(t, **codes)
    return e.with_columns(t, campaign_code=lambda c: sum(c(f"is_{name}") for name in CAMPAIGNS))


def rates_of(e: Engine, t: Frame) -> Iterator[tuple[str, Frame]]:
    """Sums of clicks by the keys of ENCODED, with their names, one by one."""
    for name, keys in progress.over([*ENCODED.items()]):
        yield name, e.group_sums(t, keys, [CLICK])


def encode_own(
    e: Engine, t: Frame, rates: Mapping[str, Frame], priors: Mapping[str, float], smoothing: float
) -> Frame:
    """Add out-of-fold rates of clicks to the rows that `rates` sum up."""
    t = e.with_columns(t, fold=lambda c: c("row") % FOLDS)
    source = e.collect(t)
    for name, keys in ENCODED.items():
        t = e.target_encode_kfold(
            t, keys, "fold", priors, smoothing, f"te_{name}", source=source, table=rates[name]
        )
    return t


def encode(
    e: Engine, t: Frame, rates: Mapping[str, Frame], priors: Mapping[str, float], smoothing: float
) -> Frame:
    """Add the rates of clicks of the training rows."""
    for name, keys in ENCODED.items():
        t = e.target_encode(t, rates[name], keys, priors, smoothing, f"te_{name}")
    return t


def equals(e: Engine, column: str, value: str, code: int) -> Callable[[Columns], Expr]:
    """`code` where the column has the value, else 0."""
    return lambda c: e.cast(c(column) == value, "int64") * code


def open_trees(context: Context) -> Any:
    """A session of the saved trees."""
    from buzzer.engine import infer

    example: dict[str, Array] = {"features": np.zeros((2, len(NUMBERS)), dtype=np.float32)}
    return infer.prepare(
        context.work / TREES,
        backend=context.backend,
        example=example,
        outputs=("probability",),
        device=context.device,
        threads=context.threads,
    )


def work_of(context: Context) -> Work:
    """The work of the saved trees for one row."""
    trees, nodes = tree_nodes(context.work / TREES)
    rows = table_rows(context.work / f"rates-{name}.parquet" for name in ENCODED)
    return Work(float(trees), nodes, 0.0, rows)


TASK = OpenBandit()
