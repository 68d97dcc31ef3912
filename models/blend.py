"""Blends the predictions of several models: weighted sums over lists of their most probable classes, and log odds."""

from collections.abc import Callable, Sequence

import numpy as np

from buzzer.engine.frames.base import Array
from buzzer.errors import DataError

EPS = 1e-6  # probabilities are clipped to [EPS, 1 - EPS]
WEIGHT_GRID = (0.0, 0.5, 1.0, 2.0)  # few, to limit overfitting to the held-out rows


def log_odds(p: Array) -> Array:
    """Log odds of probabilities, float64, on the device of `p`."""
    inside = np.clip(p.astype(np.float64), EPS, 1 - EPS)
    odds: Array = np.log(inside / (1 - inside))
    return odds


def logistic_weights(odds: Array, truth: Array) -> Array:
    """The weights, none negative, and the intercept, with which a sum of log odds has the least cross-entropy: float64 [models + 1].

    odds: log odds [models, rows].  truth: 0 or 1 [rows].  L-BFGS-B (Byrd et al. 1995), from equal weights.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    models = len(odds)
    x = np.vstack([odds, np.ones_like(odds[:1])])

    def loss(weights: Array) -> tuple[float, Array]:
        z = weights @ x
        return float((np.logaddexp(0, z) - truth * z).mean()), x @ (expit(z) - truth) / len(truth)

    bounds = [(0, None)] * models + [(None, None)]
    found = minimize(loss, [1 / models] * models + [0.0], jac=True, bounds=bounds, method="L-BFGS-B")
    return np.asarray(found.x)


def best_of(values: Sequence[Array], classes: Sequence[Array], weights: Sequence[float], k: int) -> Array:
    """The k classes with the greatest weighted sum of values, best first: int64 [rows, k].

    values, classes: for each model, [rows, n]; the values of a repeated class are summed. For equal sums the smaller class comes first.
    """
    p = np.concatenate([v.astype(np.float64) * w for v, w in zip(values, weights, strict=True)], axis=1)
    c = np.concatenate(classes, axis=1).astype(np.int64)
    order = np.argsort(c, axis=1, kind="stable")
    p, c = np.take_along_axis(p, order, 1), np.take_along_axis(c, order, 1)
    new = np.ones(c.shape, dtype=bool)
    new[:, 1:] = c[:, 1:] != c[:, :-1]
    starts = np.flatnonzero(new)
    total = np.full(c.size, -1.0)
    total[starts] = np.add.reduceat(p.ravel(), starts)  # each row starts a new sum
    top = np.argsort(-total.reshape(c.shape), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(c, top, 1)


def weigh(
    values: Sequence[Array],
    classes: Sequence[Array],
    truth: Array,
    score: Callable[[Array, Array], float],
    k: int,
) -> list[float]:
    """Weights for `best_of` from coordinate ascent: it changes one model's weight at a time, until no value of WEIGHT_GRID scores higher.

    It starts from equal weights or from a single model, whichever scores highest, so no single model scores higher on these rows.
    score(truth, guesses): higher is better. Raises DataError without rows.
    """
    if not len(truth):
        raise DataError(
            "there are no held-out rows to choose the weights on", "use a larger --scale or `valid`"
        )

    def score_of(weights: Sequence[float]) -> float:
        return score(truth, best_of(values, classes, weights, k))

    models = range(len(values))
    starts = [[1.0] * len(values), *([float(i == j) for j in models] for i in models)]
    best = max((score_of(weights), weights) for weights in starts)
    while True:
        before = best[0]
        for i in models:
            others = [[*best[1][:i], weight, *best[1][i + 1 :]] for weight in WEIGHT_GRID]
            best = max(
                [best, *((score_of(w), w) for w in others if any(w))], key=lambda candidate: candidate[0]
            )
        if best[0] <= before:
            return best[1]
