"""nvForest, RAPIDS' forest inference library (formerly FIL): trees of XGBoost and LightGBM, on a GPU or the CPU."""

import importlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.device import SEE_ENV
from buzzer.engine.infer.base import Base
from buzzer.engine.infer.boosted import LOGISTIC, base_score
from buzzer.engine.infer.session import Array, Description, Plan, as_arrays, check_batch
from buzzer.engine.infer.several import MARGINS
from buzzer.engine.infer.trees import LIGHTGBM, booster_of, by_row, treelite_of
from buzzer.errors import UnsupportedError

# Imported by name, because type checkers resolve `import nvforest` to this file.
nvforest: Any = importlib.import_module("nvforest")
treelite: Any = importlib.import_module("treelite")

PRECISIONS = ("fp32",)
DEVICES = {"cpu": "cpu", "cuda": "gpu"}


class NvForest(Base):
    """Takes the inputs of the xgboost backend: `features` float32 [rows, features], and, if the plan names it, `base_margin`.

    nvForest does not support base margins. So for XGBoost's logistic objectives it computes only the sum of each row's leaves; this
    class adds the margin and applies the sigmoid on the same device. For other models, nvForest computes the whole prediction.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        trees, self._margin = trees_of(plan)
        try:
            forest = nvforest.load_from_treelite_model(trees, device=DEVICES[plan.device], precision="single")
        except RuntimeError as error:  # "Failed to detect a GPU device. Diagnostic: cudaError..."
            if plan.device == "cpu":
                raise
            reason = " ".join(str(error).split())
            raise UnsupportedError(f"nvForest: {reason}", SEE_ENV) from error
        # A classifier's `predict` gives the numbers of classes.
        self._predict = forest.predict_proba if forest.is_classifier else forest.predict
        self._weight_bytes = len(trees.serialize_bytes())

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        check_batch(self.plan, batch)
        xp: Any = importlib.import_module("cupy") if self.plan.device == "cuda" else np
        inputs = {name: xp.asarray(array) for name, array in batch.items()}
        predicted = by_row(xp.asarray(self._predict(inputs["features"])), len(batch["features"]))
        if self._margin is not None:
            predicted = 1 / (1 + xp.exp(-(predicted + inputs.get("base_margin", self._margin))))
        predicted = predicted.astype(xp.float32)
        return as_arrays(predicted.get() if self.plan.device == "cuda" else predicted, self.plan.outputs)

    def facts(self) -> Description:
        return replace(self.plain_facts("nvforest", nvforest.__version__), weight_bytes=self._weight_bytes)


def trees_of(plan: Plan) -> tuple[Any, float | None]:
    """The plan's model as a treelite.Model, and the base score as log odds if the model computes only the sum of the leaves.

    Raises UnsupportedError for base margins of a model that is not XGBoost's with a logistic objective.
    """
    if not isinstance(plan.model, Path) or plan.model.suffix != LIGHTGBM:
        booster = booster_of(plan.model)
        document = json.loads(bytes(booster.save_raw("json")))
        if document["learner"]["objective"]["name"] in LOGISTIC:
            model, margin = without_link(document)
            return treelite.frontend.from_xgboost_json(model), margin
    if MARGINS in plan.example:
        problem = "nvforest supports base margins for XGBoost's logistic objectives only"
        raise UnsupportedError(problem, "use --backend xgboost")
    return treelite_of(plan.model), None


def without_link(document: Any) -> tuple[str, float]:
    """An XGBoost model, given as the content of its JSON, changed so that it predicts the sum of the leaves, as JSON; and its base
    score as log odds."""
    learner = document["learner"]
    rate = base_score(learner["learner_model_param"])
    learner["learner_model_param"]["base_score"] = "0"
    learner["objective"] = {"name": "reg:squarederror", "reg_loss_param": {"scale_pos_weight": "1"}}
    return json.dumps(document), math.log(rate / (1 - rate))


def prepare(plan: Plan) -> NvForest:
    """A session on the plan's Booster or model file."""
    return NvForest(plan)
