"""Blends the networks as the winners did: each gives its likeliest cities with probabilities, which are weighted."""

from collections.abc import Sequence

import numpy as np

from buzzer.engine.frames.base import Array
from buzzer.models.booking.features import GUESSES

# Of the winning submission.
WEIGHTS = {"gru": 0.32, "encoder": 0.34, "mlp": 0.34}


def best_four(values: Sequence[Array], classes: Sequence[Array], weights: Sequence[float]) -> Array:
    """The four classes of the greatest weighted sum of probabilities, best first: int64 [rows, 4].

    values, classes: by network, [rows, n]: probabilities of distinct classes. Equal sums: the smaller class first.
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
    top = np.argsort(-total.reshape(c.shape), axis=1, kind="stable")[:, :GUESSES]
    return np.take_along_axis(c, top, 1)


def accuracy(truth: Array, guesses: Array) -> float:
    """Share of rows whose truth [rows] is among the guesses [rows, 4]."""
    return float((guesses == truth[:, None]).any(axis=1).mean())
