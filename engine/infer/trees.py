"""Loads the XGBoost models of the tree backends: a Booster, or a file with a Booster."""

import re
from pathlib import Path
from typing import Any

from buzzer.errors import DataError, UnsupportedError

try:
    import xgboost
except ImportError as error:
    raise UnsupportedError("XGBoost is not installed", "pip install 'buzzer[run]'") from error


def booster_of(model: Any) -> xgboost.Booster:
    """The model if it is a Booster, else the Booster in the file. Raises as `load` does."""
    return model if isinstance(model, xgboost.Booster) else load(model)


def load(model: Any) -> xgboost.Booster:
    """The Booster in a file. Raises UnsupportedError for a model that is not a path, DataError for a file that is missing or
    is not an XGBoost model."""
    if not isinstance(model, Path):
        raise UnsupportedError(
            "xgboost runs boosted trees only", "use --backend torch_eager for torch modules"
        )
    try:
        return xgboost.Booster(model_file=model)
    except (xgboost.core.XGBoostError, ValueError) as error:  # the message may quote raw bytes of the file
        lines = [line.strip() for line in str(error).splitlines() if "Stack trace" not in line]
        reason = next((line for line in lines if line and not line.startswith("[bt]")), "it cannot be read")
        reason = re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", reason)  # time, and line in XGBoost's source
        raise DataError(f"{model}: not an XGBoost model: {reason[:200]}") from error
