"""Blends the networks as the winners did: a weighted sum of the probabilities of each network's most probable cities."""

from collections.abc import Sequence

from buzzer.engine.frames.base import Array
from buzzer.models.blend import best_of
from buzzer.models.booking.features import GUESSES

# Weights of the winning submission.
WEIGHTS = {"gru": 0.32, "encoder": 0.34, "mlp": 0.34}


def best_four(values: Sequence[Array], classes: Sequence[Array], weights: Sequence[float]) -> Array:
    """The four classes with the greatest weighted sum of probabilities, best first: int64 [rows, 4].

    values, classes: for each network, probabilities of distinct classes, [rows, n]. For equal sums the smaller class comes first.
    """
    return best_of(values, classes, weights, GUESSES)


def accuracy(truth: Array, guesses: Array) -> float:
    """Share of rows whose truth [rows] is among the guesses [rows, 4]."""
    return float((guesses == truth[:, None]).any(axis=1).mean())
