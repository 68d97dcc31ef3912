"""`gbdt`: boosted trees of the `recsys2021` task for `buzzer bench`, on rows that they were not trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from buzzer.configs import load_yaml
from buzzer.datasets import recsys2021 as dataset
from buzzer.datasets.contract import silent
from buzzer.datasets.recsys2021.reader import part_files
from buzzer.engine import frames
from buzzer.engine.infer import Array
from buzzer.errors import UsageError
from buzzer.models.api.bench import BenchModel, BenchSpec
from buzzer.models.api.context import RunContext
from buzzer.models.held_out import HeldOut, Rows
from buzzer.models.recsys2021 import ensemble, features, fitting, lookup_tables, trees
from buzzer.models.recsys2021.feature_sets import feature_set
from buzzer.models.recsys2021.params import Params
from buzzer.models.recsys2021.task import TASK

TREES_ONLY = {"trees": ["kfold"], "networks": [], "second": [], "baseline": False}
ROWS = "rows.npy"
SCALE = 0.0001  # of the data whose test rows `FIRST_STAGE` has


class Gbdt:
    """params: `scale` of the generated data, `rounds` and `depth` of the trees, and `target`, the predicted engagement."""

    def load(self, spec: BenchSpec) -> BenchModel:
        """Trains the trees unless `spec.work` has them. Raises UsageError for rows of real lengths."""
        self.check(spec)
        rows = held_out(spec)
        model = trees.path(spec.work, "kfold", spec.params["target"])
        batches = [{"features": cut(rows, spec, i)} for i in range(spec.inputs)]
        facts = {"trees": spec.params["rounds"], "depth": spec.params["depth"], "held_out_rows": len(rows)}
        notes = [
            f"trees of {spec.params['target']}, held-out rows of recsys2021, generated, scale {spec.params['scale']:g}"
        ]
        if spec.batch > len(rows):
            notes.append(f"{len(rows)} different rows, repeated")
        return BenchModel(
            model,
            ("probability",),
            batches,
            Reference(model).predict,
            [spec.batch] * spec.inputs,
            dynamic={"features": {0: "batch"}},
            notes=tuple(notes),
            facts=facts,
        )

    def check(self, spec: BenchSpec) -> None:
        """Raises UsageError for rows of real lengths."""
        if spec.lengths != "fixed":
            raise UsageError("trees have no sentences: --lengths real is for encoders")

    def identity(self, spec: BenchSpec) -> None:
        """None: each call of `buzzer bench` trains other trees."""


def held_out(spec: BenchSpec) -> Array:
    """The encoded test rows of `fit`, which is carried out unless `spec.work` has them."""
    if not (spec.work / ROWS).is_file():
        fit(spec)
    rows: Array = np.load(spec.work / ROWS)
    return rows


class Reference:
    """XGBoost's prediction from a DMatrix. (The measured backend predicts in place.)"""

    def __init__(self, model: Path) -> None:
        from buzzer.engine.xgb import xgboost

        self._booster = xgboost.Booster(model_file=model)

    def predict(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Probabilities float32 [rows] of `features` float32 [rows, features]."""
        from buzzer.engine.xgb import xgboost

        return {"probability": self._booster.predict(xgboost.DMatrix(batch["features"]))}


def cut(rows: Array, spec: BenchSpec, number: int) -> Array:
    """Batch `number`: the next `spec.batch` rows, starting over at the end."""
    at = (np.arange(spec.batch) + number * spec.batch) % len(rows)
    return np.ascontiguousarray(rows[at])


def fit(spec: BenchSpec) -> None:
    """Generate data, train the trees, and save them and the encoded test rows, float32 [rows, features], in `spec.work`."""
    data, e = spec.work / "data", frames.load("polars")
    dataset.generate(data, spec.params["scale"], spec.seed, silent)
    context = TASK.typed(context_of(spec, data))
    for _ in TASK.fit_steps(context):
        pass  # the phases are not timed
    codes = lookup_tables.load(e, spec.work, "code")
    columns = feature_set(context.params)
    part = features.read_part(e, part_files(data / "test")[0], False)
    t = features.code(e, features.base(e, part, columns, False), codes)
    tables, means = lookup_tables.load(e, spec.work, "train"), fitting.means(spec.work)["train"]
    wanted = fitting.lookups(e, fitting.Fitted(codes, {}, tables, {}, means), columns)
    models = ensemble.select_models(context.params)
    rows = ensemble.inputs(e, fitting.encoded(e, t, wanted, columns), columns, models, 0)
    np.save(spec.work / ROWS, rows.x)


def context_of(spec: BenchSpec, data: Path) -> RunContext:
    """The settings of a fit of the task that trains only trees, with the rounds and depth of the parameters."""
    params = load_yaml("tasks/recsys2021.yaml")["params"] | TREES_ONLY
    params |= {"rounds_1": spec.params["rounds"], "depth_1": spec.params["depth"]}
    return RunContext(
        task="recsys2021", engine="polars", backend="xgboost", precision="fp32", device="cpu",
        data=data, work=spec.work, out=spec.work, scale=spec.params["scale"], seed=spec.seed,
        threads=spec.threads, params=params,
    )  # fmt: skip


def columns() -> Sequence[str]:
    """The names of the columns of `held_out`."""
    return feature_set(Params.read("recsys2021", load_yaml("tasks/recsys2021.yaml")["params"])).names()


def first_stage(spec: BenchSpec) -> Rows:
    """The test rows of generated data, with the features of the task's first stage. Only its lookup tables are used of the fit."""
    smallest = {"scale": SCALE, "rounds": 1, "depth": 1}
    return Rows(held_out(replace(spec, params=smallest)), "generated")


TARGET = Gbdt()
FIRST_STAGE = HeldOut("recsys2021", f"scale {SCALE:g}, the features of its first stage", columns, first_stage)
