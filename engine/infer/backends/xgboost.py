"""XGBoost's prediction of boosted trees on a float32 matrix."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from buzzer.engine.infer.base import Base
from buzzer.engine.infer.session import Array, Description, Plan, as_arrays, check_batch
from buzzer.engine.infer.trees import booster_of
from buzzer.engine.xgb import xgboost

PRECISIONS = ("fp32",)


class Xgboost(Base):
    """Predicts with a Booster, or with the Booster in a file.

    Inputs: `features` float32 [rows, features], NaN for missing values, and, if the plan names it, `base_margin`
    float32 [rows], log odds that are added to the trees' sum. Output: the prediction, float32 [rows].
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._booster = booster_of(plan.model)
        self._booster.set_param({"nthread": plan.threads, "device": plan.device})

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        check_batch(self.plan, batch)
        inputs: dict[str, Any] = dict(batch)
        if self.plan.device == "cuda":
            import cupy

            inputs = {name: cupy.asarray(array) for name, array in inputs.items()}
        predicted: Any = self._booster.inplace_predict(
            inputs["features"], base_margin=inputs.get("base_margin")
        )
        return as_arrays(predicted.get() if self.plan.device == "cuda" else predicted, self.plan.outputs)

    def facts(self) -> Description:
        return replace(
            self.plain_facts("xgboost", xgboost.__version__), weight_bytes=len(self._booster.save_raw())
        )


def prepare(plan: Plan) -> Xgboost:
    """A session on the plan's Booster or model file."""
    return Xgboost(plan)
