"""Loads the models of the tree backends: an XGBoost Booster, or a file of XGBoost or LightGBM."""

import json
import re
from pathlib import Path
from typing import Any

from buzzer.engine.xgb import xgboost
from buzzer.errors import DataError, UnsupportedError

LIGHTGBM = ".txt"  # suffix of LightGBM's files
XGBOOST = "use --backend xgboost"


def booster_of(model: Any) -> xgboost.Booster:
    """The model if it is a Booster, else the Booster in the file. Raises as `load` does."""
    return model if isinstance(model, xgboost.Booster) else load(model)


def load(model: Any) -> xgboost.Booster:
    """The Booster in a file. Raises UnsupportedError for a model that is not a path and for LightGBM's files, DataError for a file that
    is missing or is not an XGBoost model."""
    if not isinstance(model, Path):
        raise UnsupportedError(
            "xgboost runs boosted trees only", "use --backend torch_eager for torch modules"
        )
    if model.suffix == LIGHTGBM:
        raise UnsupportedError("a LightGBM model runs on treelite's backends only", "use tl2cgen or nvforest")
    try:
        return xgboost.Booster(model_file=model)
    except (xgboost.core.XGBoostError, ValueError) as error:
        raise DataError(f"{model}: not an XGBoost model: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What is wrong, from a message of XGBoost or treelite, which may quote raw bytes of the file."""
    lines = [line.strip() for line in str(error).splitlines() if "Stack trace" not in line]
    reason = next((line for line in lines if line and not line.startswith("[bt]")), "it cannot be read")
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", reason)[:200]  # without time and line of their sources


def treelite_of(model: Any) -> Any:
    """A Booster, or a file of XGBoost or LightGBM, as a treelite.Model. Raises as `load`, `load_lightgbm` and `check_output` do, and
    UnsupportedError for what treelite cannot read."""
    if isinstance(model, Path) and model.suffix == LIGHTGBM:
        return load_lightgbm(model)
    treelite, booster = _treelite(), booster_of(model)
    check_output(booster)
    try:
        return treelite.frontend.from_xgboost(booster)
    except treelite.TreeliteError as error:
        raise UnsupportedError(f"treelite cannot read these trees: {_reason(error)}", XGBOOST) from error


def check_output(booster: xgboost.Booster) -> None:
    """Raises UnsupportedError for a model that predicts class numbers, for which converters make models that predict probabilities."""
    objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
    if objective == "multi:softmax":
        raise UnsupportedError(f"only xgboost predicts class numbers, as {objective} does", XGBOOST)


def by_row(predicted: Any, rows: int) -> Any:
    """A prediction of any shape as [rows, values], or as [rows] if each row has one value."""
    wide = predicted.reshape(rows, -1)
    return wide[:, 0] if wide.shape[1] == 1 else wide


def _treelite() -> Any:
    """The library. Raises UnsupportedError if it is not installed."""
    try:
        import treelite
    except ImportError as error:
        raise UnsupportedError("treelite is not installed", "pip install 'buzzer[trees]'") from error
    return treelite


def load_lightgbm(path: Path) -> Any:
    """A LightGBM file as a treelite.Model. Raises UnsupportedError without treelite, DataError for a file that is not LightGBM's."""
    treelite = _treelite()
    try:
        with path.open(encoding="utf-8") as opened:
            first = opened.readline().strip()
        if first != "tree":
            raise DataError(f"{path}: not a LightGBM model: its first line is {first[:80]!r}, not 'tree'")
        return treelite.frontend.load_lightgbm_model(path)
    except (OSError, UnicodeDecodeError, treelite.TreeliteError) as error:
        raise DataError(f"{path}: not a LightGBM model: {_reason(error)}") from error
