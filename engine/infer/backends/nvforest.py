"""nvForest, RAPIDS' forest inference library (formerly FIL): XGBoost trees with a logistic objective, on a GPU or the CPU."""

import importlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from buzzer.engine.infer.base import Base
from buzzer.engine.infer.boosted import LOGISTIC, base_score
from buzzer.engine.infer.session import Array, Description, Plan, as_arrays, check_batch
from buzzer.errors import UnsupportedError

try:
    # Imported by name, because type checkers resolve `import nvforest` to this file.
    nvforest: Any = importlib.import_module("nvforest")
    treelite: Any = importlib.import_module("treelite")
except ImportError as error:
    raise UnsupportedError("nvForest is not installed", "pip install 'buzzer[gpu]'") from error

from buzzer.engine.infer.trees import booster_of

PRECISIONS = ("fp32",)
DEVICES = {"cpu": "cpu", "cuda": "gpu"}


class NvForest(Base):
    """Takes the inputs of the xgboost backend: `features` float32 [rows, features], and, if the plan names it, `base_margin`.

    nvForest does not support base margins. So it computes only the sum of each row's leaves; this class adds the margin and
    applies the sigmoid on the same device.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        booster = booster_of(plan.model)
        model, self._margin = without_link(booster)
        trees = treelite.frontend.from_xgboost_json(model)
        try:
            self._forest = nvforest.load_from_treelite_model(
                trees, device=DEVICES[plan.device], precision="single"
            )
        except RuntimeError as error:  # "Failed to detect a GPU device. Diagnostic: cudaError..."
            if plan.device == "cpu":
                raise
            reason = " ".join(str(error).split())
            raise UnsupportedError(
                f"nvForest: {reason}", "`buzzer env` shows what this machine has"
            ) from error
        self._weight_bytes = len(booster.save_raw())

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        check_batch(self.plan, batch)
        xp: Any = importlib.import_module("cupy") if self.plan.device == "cuda" else np
        inputs = {name: xp.asarray(array) for name, array in batch.items()}
        log_odds = xp.asarray(self._forest.predict(inputs["features"]))[:, 0] + inputs.get(
            "base_margin", self._margin
        )
        probabilities = (1 / (1 + xp.exp(-log_odds))).astype(xp.float32)
        return as_arrays(
            probabilities.get() if self.plan.device == "cuda" else probabilities, self.plan.outputs
        )

    def facts(self) -> Description:
        return replace(self.plain_facts("nvforest", nvforest.__version__), weight_bytes=self._weight_bytes)


def without_link(booster: Any) -> tuple[str, float]:
    """The model as JSON, changed so that it predicts the sum of the leaves, and its base score as log odds.

    Raises UnsupportedError for an objective that is not logistic.
    """
    document = json.loads(bytes(booster.save_raw("json")))
    learner = document["learner"]
    objective = learner["objective"]["name"]
    if objective not in LOGISTIC:
        raise UnsupportedError(
            f"nvforest does not support the objective {objective}", f"supported: {' and '.join(LOGISTIC)}"
        )
    rate = base_score(learner["learner_model_param"])
    learner["learner_model_param"]["base_score"] = "0"
    learner["objective"] = {"name": "reg:squarederror", "reg_loss_param": {"scale_pos_weight": "1"}}
    return json.dumps(document), math.log(rate / (1 - rate))


def prepare(plan: Plan) -> NvForest:
    """A session on the plan's Booster or model file."""
    return NvForest(plan)
