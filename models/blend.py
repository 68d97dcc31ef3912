"""Several models' lists of likeliest classes as one."""

from collections.abc import Sequence

import numpy as np

from buzzer.engine.frames.base import Array


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
