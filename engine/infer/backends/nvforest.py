"""nvForest (RAPIDS' forest inference, once FIL): XGBoost's trees of a logistic objective on a float32 matrix, on a GPU or the CPU."""

import importlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from buzzer.engine.infer.session import Array, Base, Description, Plan, as_arrays, check_batch
from buzzer.errors import UnsupportedError

try:
    # Type checkers take `import nvforest` for this very file.
    nvforest: Any = importlib.import_module("nvforest")
    treelite: Any = importlib.import_module("treelite")
except ImportError as error:
    raise UnsupportedError("nvForest is not installed", "pip install 'buzzer[gpu]'") from error

from buzzer.engine.infer.backends.xgboost import booster_of

PRECISIONS = ("fp32",)
DEVICES = {"cpu": "cpu", "cuda": "gpu"}
LOGISTIC = ("binary:logistic", "reg:logistic")


class NvForest(Base):
    """The inputs are those of the xgboost backend: `features` float32 [rows, features], and, where the plan names it, `base_margin`.

    nvForest knows no margins, so that it gets the bare sums of the leaves, and the sigmoid is taken here, where the sums are.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        booster = booster_of(plan.model)
        model, self._margin = bare(booster)
        trees = treelite.frontend.from_xgboost_json(model)
        try:
            self._forest = nvforest.load_from_treelite_model(
                trees, device=DEVICES[plan.device], precision="single"
            )
        except RuntimeError as error:  # "Failed to detect a GPU device. Diagnostic: cudaError..."
            if plan.device == "cpu":
                raise
            told = " ".join(str(error).split())
            raise UnsupportedError(f"nvForest: {told}", "`buzzer env` shows what this machine has") from error
        self._weight_bytes = len(booster.save_raw())

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        check_batch(self.plan, batch)
        xp: Any = importlib.import_module("cupy") if self.plan.device == "cuda" else np
        inputs = {name: xp.asarray(array) for name, array in batch.items()}
        sums = xp.asarray(self._forest.predict(inputs["features"]))[:, 0] + inputs.get(
            "base_margin", self._margin
        )
        found = (1 / (1 + xp.exp(-sums))).astype(xp.float32)
        return as_arrays(found.get() if self.plan.device == "cuda" else found, self.plan.outputs)

    def facts(self) -> Description:
        return Description(
            backend="nvforest",
            version=nvforest.__version__,
            precision=self.plan.precision,
            device=self.plan.device,
            threads=self.plan.threads,
            parameters=None,
            weight_bytes=self._weight_bytes,
        )


def bare(booster: Any) -> tuple[str, float]:
    """A Booster's trees as JSON of a model that gives the sum of their leaves, and the log odds that it began with.

    Raises UnsupportedError for an objective that is not logistic.
    """
    document = json.loads(bytes(booster.save_raw("json")))
    learner = document["learner"]
    objective = learner["objective"]["name"]
    if objective not in LOGISTIC:
        raise UnsupportedError(f"nvforest: objective {objective}", f"it serves {' and '.join(LOGISTIC)} here")
    base = json.loads(learner["learner_model_param"]["base_score"])  # "[5E-1]", in older versions "5E-1"
    rate = float(base[0] if isinstance(base, list) else base)
    learner["learner_model_param"]["base_score"] = "0"
    learner["objective"] = {"name": "reg:squarederror", "reg_loss_param": {"scale_pos_weight": "1"}}
    return json.dumps(document), math.log(rate / (1 - rate))


def prepare(plan: Plan) -> NvForest:
    return NvForest(plan)
