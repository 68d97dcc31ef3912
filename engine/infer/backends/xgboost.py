"""XGBoost's own prediction: boosted trees on a float32 matrix."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from buzzer.engine.infer.session import Array, Base, Description, Plan, as_arrays, check_batch
from buzzer.errors import DataError, UnsupportedError

try:
    import xgboost
except ImportError as error:
    raise UnsupportedError("XGBoost is not installed", "pip install xgboost") from error

PRECISIONS = ("fp32",)


class Xgboost(Base):
    """A Booster, or the file of one.

    Its inputs are `features` float32 [rows, features], NaN where missing, and, where the plan names it, `base_margin`
    float32 [rows], the log odds that the trees add to.
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
        found: Any = self._booster.inplace_predict(inputs["features"], base_margin=inputs.get("base_margin"))
        return as_arrays(found.get() if self.plan.device == "cuda" else found, self.plan.outputs)

    def facts(self) -> Description:
        return Description(
            backend="xgboost",
            version=xgboost.__version__,
            precision=self.plan.precision,
            device=self.plan.device,
            threads=self.plan.threads,
            parameters=None,
            weight_bytes=len(self._booster.save_raw()),
        )


def booster_of(model: Any) -> Any:
    """A Booster as it is, or from its file; raises as `load`."""
    return model if isinstance(model, xgboost.Booster) else load(model)


def load(model: Any) -> Any:
    """A Booster from its file. Raises DataError for a file that is missing or holds none."""
    if not isinstance(model, Path):
        raise UnsupportedError(
            "xgboost runs boosted trees only", "use --backend torch_eager for torch modules"
        )
    try:
        return xgboost.Booster(model_file=model)
    except (xgboost.core.XGBoostError, ValueError) as error:  # its message may quote bytes that are no text
        lines = [line.strip() for line in str(error).splitlines() if "Stack trace" not in line]
        told = next((line for line in lines if line and not line.startswith("[bt]")), "it cannot be read")
        told = re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", told)  # where in its sources
        raise DataError(f"{model}: not an XGBoost model: {told[:200]}") from error


def prepare(plan: Plan) -> Xgboost:
    return Xgboost(plan)
