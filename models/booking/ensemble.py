"""Blends the networks as the winners did: a weighted sum of the probabilities of each network's most probable cities."""

from collections.abc import Mapping, Sequence

import numpy as np

from buzzer.engine.frames.base import Array
from buzzer.models.blend import best_of
from buzzer.models.booking.features import GUESSES
from buzzer.models.booking.params import WEIGHTS, Bag

PIECE = 4096  # rows that are blended at a time, to bound the memory


def best_four(values: Sequence[Array], classes: Sequence[Array], weights: Sequence[float]) -> Array:
    """The four classes with the greatest weighted sum of probabilities, best first: int64 [rows, 4].

    values, classes: for each network, probabilities of distinct classes, [rows, n]. For equal sums the smaller class comes first.
    """
    return best_of(values, classes, weights, GUESSES)


def blend(outputs: Mapping[Bag, tuple[Array, Array]]) -> dict[str, Array]:
    """The four best classes of each network, by the mean of its bags, and of the `ensemble`: int64 [rows, 4].

    outputs: bag -> probabilities and classes, each [rows, candidates].
    """
    by_network: dict[str, list[Bag]] = {}
    for bag in outputs:
        by_network.setdefault(bag.network, []).append(bag)
    guesses = {name: _best(outputs, bags, [1.0] * len(bags)) for name, bags in by_network.items()}
    weights = [WEIGHTS[bag.network] / len(by_network[bag.network]) for bag in outputs]
    return guesses | {"ensemble": _best(outputs, list(outputs), weights)}


def _best(outputs: Mapping[Bag, tuple[Array, Array]], bags: Sequence[Bag], weights: Sequence[float]) -> Array:
    rows = len(outputs[bags[0]][0])
    pieces = []
    for start in range(0, rows, PIECE):
        values, classes = zip(
            *([a[start : start + PIECE] for a in outputs[bag]] for bag in bags), strict=True
        )
        pieces.append(best_four(values, classes, weights))
    return np.concatenate(pieces)


def accuracy(truth: Array, guesses: Array) -> float:
    """Share of rows whose truth [rows] is among the guesses [rows, 4]."""
    return float((guesses == truth[:, None]).any(axis=1).mean())
