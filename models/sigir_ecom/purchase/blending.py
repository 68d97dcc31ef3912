"""Blends the probabilities of two models: a weighted mean of their log odds, with weights from held-out sessions."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from buzzer.engine.frames.base import Array
from buzzer.errors import DataError
from buzzer.models.blend import EPS, log_odds

STEPS = 20  # the weight of the second model is tried in this many steps from 0 to 1
TREES, NETWORK = MODELS = ("xgboost", "dlrm")


@dataclass(frozen=True)
class Rows:
    """The training data of both models, arrays by row."""

    numbers: Array  # float32 [rows, columns]
    codes: Array  # int64 [rows, n]
    y: Array  # 0 or 1
    weights: Array  # in the loss
    held: Array  # bool: held out


def blend(probabilities: Mapping[str, Array], weights: Mapping[str, float]) -> Array:
    """The probabilities of the weighted sum of log odds, [rows]."""
    total = np.sum([weights[name] * log_odds(p) for name, p in probabilities.items()], axis=0)
    return np.asarray(1 / (1 + np.exp(-total)))


def loss(p: Array, y: Array, row_weights: Array) -> float:
    """Weighted mean of the cross-entropy of probabilities `p` and labels `y`, [rows] each."""
    right = np.clip(np.where(y > 0, p, 1 - p), EPS, 1)
    return float(np.average(-np.log(right), weights=row_weights))


def weigh(probabilities: Mapping[str, Array], y: Array, row_weights: Array) -> dict[str, float]:
    """The weights by model, with sum 1, that have the least loss. The official score would not do: it changes with the few probabilities near
    one half only.

    Raises DataError without rows.
    """
    if not len(y):
        raise DataError(
            "there are no held-out sessions to choose the weights on", "use a larger --scale or `valid`"
        )
    tried = [{TREES: i / STEPS, NETWORK: 1 - i / STEPS} for i in range(STEPS + 1)]
    return min(tried, key=lambda weights: loss(blend(probabilities, weights), y, row_weights))
