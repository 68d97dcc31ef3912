"""Several models' chances, or lists of likeliest classes, as one."""

from collections.abc import Callable, Sequence

import numpy as np

from buzzer.engine.frames.base import Array
from buzzer.errors import DataError

EPS = 1e-6  # probabilities are kept this far from 0 and 1
WEIGHT_GRID = (0.0, 0.5, 1.0, 2.0)  # few, so that little is learned from chance


def log_odds(p: Array) -> Array:
    """Of probabilities, float64, where they are: on the host or the device."""
    inside = np.clip(p.astype(np.float64), EPS, 1 - EPS)
    odds: Array = np.log(inside / (1 - inside))
    return odds


def best_of(values: Sequence[Array], classes: Sequence[Array], weights: Sequence[float], k: int) -> Array:
    """The k classes of the greatest weighted sum of values, best first: int64 [rows, k].

    values, classes: by model, [rows, n]; a class that stands twice is added up. Equal sums: the smaller class first.
    """
    p = np.concatenate([v.astype(np.float64) * w for v, w in zip(values, weights, strict=True)], axis=1)
    c = np.concatenate(classes, axis=1).astype(np.int64)
    order = np.argsort(c, axis=1, kind="stable")
    p, c = np.take_along_axis(p, order, 1), np.take_along_axis(c, order, 1)
    new = np.ones(c.shape, dtype=bool)
    new[:, 1:] = c[:, 1:] != c[:, :-1]
    starts = np.flatnonzero(new)
    total = np.full(c.size, -1.0)
    total[starts] = np.add.reduceat(p.ravel(), starts)  # every row starts anew, so no sum crosses rows
    top = np.argsort(-total.reshape(c.shape), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(c, top, 1)


def weigh(
    values: Sequence[Array],
    classes: Sequence[Array],
    truth: Array,
    score: Callable[[Array, Array], float],
    k: int,
) -> list[float]:
    """Weights for `best_of`: one model's after the other's, from the best of all alike and each alone, until none of TRIED scores
    higher. score(truth, guesses), higher is better; so on these rows no model alone scores higher.

    Raises DataError where there are no rows.
    """
    if not len(truth):
        raise DataError("no rows are held out to weigh the models on", "use a larger --scale or `valid`")

    def score_of(weights: Sequence[float]) -> float:
        return score(truth, best_of(values, classes, weights, k))

    models = range(len(values))
    starts = [[1.0] * len(values), *([float(i == j) for j in models] for i in models)]
    best = max((score_of(weights), weights) for weights in starts)
    while True:
        before = best[0]
        for i in models:
            others = [[*best[1][:i], weight, *best[1][i + 1 :]] for weight in WEIGHT_GRID]
            best = max([best, *((score_of(w), w) for w in others if any(w))], key=lambda found: found[0])
        if best[0] <= before:
            return best[1]
