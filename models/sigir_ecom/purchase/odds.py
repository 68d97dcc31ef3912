"""Chances of several models as one: a weighted mean of their log-odds, weighed on sessions that none of them has seen."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from buzzer.engine.frames.base import Array
from buzzer.errors import DataError
from buzzer.models.blend import EPS, log_odds

STEPS = 20  # weights that are tried, from all of one model to all of the other
TREES, NETWORK = MODELS = ("xgboost", "dlrm")


@dataclass(frozen=True)
class Rows:
    """What both models learn from; arrays by row."""

    numbers: Array  # float32 [rows, columns]
    codes: Array  # int64 [rows, n]
    y: Array  # 0 or 1
    weights: Array  # in the loss
    held: Array  # bool: not learned from


def mixed(chances: Mapping[str, Array], weights: Mapping[str, float]) -> Array:
    total = np.sum([weights[name] * log_odds(p) for name, p in chances.items()], axis=0)
    return np.asarray(1 / (1 + np.exp(-total)))


def loss(p: Array, y: Array, row_weights: Array) -> float:
    """Weighted mean of the cross-entropy."""
    right = np.clip(np.where(y > 0, p, 1 - p), EPS, 1)
    return float(np.average(-np.log(right), weights=row_weights))


def weigh(chances: Mapping[str, Array], y: Array, row_weights: Array) -> dict[str, float]:
    """The weights, 1 in all, of the least loss. A loss and not the score of answers, which jumps: few carts are near one half.

    Raises DataError where there are no rows.
    """
    if not len(y):
        raise DataError("no sessions are held out to weigh the models on", "use a larger --scale or `valid`")
    tried = [{TREES: i / STEPS, NETWORK: 1 - i / STEPS} for i in range(STEPS + 1)]
    return min(tried, key=lambda weights: loss(mixed(chances, weights), y, row_weights))
