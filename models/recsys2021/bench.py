"""`gbdt`: boosted trees of the `recsys2021` task as a model of `buzzer bench`, on rows that they were not trained on."""

from collections.abc import Mapping
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
from buzzer.models.recsys2021 import ensemble, features, fitting, lookup_tables, trees
from buzzer.models.recsys2021.task import TASK

TREES_ONLY = {"trees": ["kfold"], "networks": [], "second": [], "baseline": False}
ROWS = "rows.npy"


class Gbdt:
    """params: `scale` of the generated data, `rounds` and `depth` of the trees, and the engagement, `target`."""

    def load(self, ask: BenchSpec) -> BenchModel:
        """Trains the trees unless `ask.work` has them. Raises UsageError for rows of real lengths."""
        if ask.lengths != "fixed":
            raise UsageError("trees have no sentences: --lengths real is for encoders")
        if not (ask.work / ROWS).is_file():
            fit(ask)
        model, rows = trees.path(ask.work, "kfold", ask.params["target"]), np.load(ask.work / ROWS)
        batches = [{"features": cut(rows, ask, i)} for i in range(ask.inputs)]
        facts = {"trees": ask.params["rounds"], "depth": ask.params["depth"], "held_out_rows": len(rows)}
        notes = [
            f"trees of {ask.params['target']}, held-out rows of recsys2021, generated, scale {ask.params['scale']:g}"
        ]
        if ask.batch > len(rows):
            notes.append(f"{len(rows)} different rows, repeated")
        return BenchModel(
            model,
            ("probability",),
            batches,
            Reference(model).predict,
            [ask.batch] * ask.inputs,
            dynamic={"features": {0: "batch"}},
            notes=tuple(notes),
            facts=facts,
        )

    def identity(self, ask: BenchSpec) -> None:
        """None: each call of `buzzer bench` trains other trees."""


class Reference:
    """XGBoost's prediction from a DMatrix, where the measured backend predicts in place."""

    def __init__(self, model: Path) -> None:
        import xgboost

        self._booster = xgboost.Booster(model_file=model)

    def predict(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Probabilities float32 [rows] of `features` float32 [rows, features]."""
        import xgboost

        return {"probability": self._booster.predict(xgboost.DMatrix(batch["features"]))}


def cut(rows: Array, ask: BenchSpec, number: int) -> Array:
    """The batch with a number: the next `ask.batch` rows, starting over at the end."""
    at = (np.arange(ask.batch) + number * ask.batch) % len(rows)
    return np.ascontiguousarray(rows[at])


def fit(ask: BenchSpec) -> None:
    """Generate data, train the trees, and save them and the encoded test rows, float32 [rows, features], in `ask.work`."""
    data, e = ask.work / "data", frames.load("polars")
    dataset.generate(data, ask.params["scale"], ask.seed, silent)
    context = TASK.typed(context_of(ask, data))
    for _ in TASK.fit_steps(context):
        pass  # the phases are not timed
    codes = lookup_tables.load(e, ask.work, "code")
    part = features.read_part(e, part_files(data / "test")[0], False)
    t = features.code(e, features.base(e, part, False), codes)
    tables, means = lookup_tables.load(e, ask.work, "train"), fitting.means(ask.work)["train"]
    wanted = fitting.lookups(e, fitting.Fitted(codes, {}, tables, {}, means))
    models = ensemble.select_models(context.params)
    rows = ensemble.inputs(e, fitting.encoded(e, t, wanted), models, 0)
    np.save(ask.work / ROWS, rows.x)


def context_of(ask: BenchSpec, data: Path) -> RunContext:
    """A fit of the task with trees of the wanted size and no other model."""
    params = load_yaml("tasks/recsys2021.yaml")["params"] | TREES_ONLY
    params |= {"rounds_1": ask.params["rounds"], "depth_1": ask.params["depth"]}
    return RunContext(
        task="recsys2021", engine="polars", backend="xgboost", precision="fp32", device="cpu",
        data=data, work=ask.work, out=ask.work, scale=ask.params["scale"], seed=ask.seed,
        threads=ask.threads, params=params,
    )  # fmt: skip


TARGET = Gbdt()
