"""Weights of blended log odds, against the mixture that drew the labels."""

import numpy as np
import pytest

from buzzer.models import blend
from buzzer.models.recsys2021 import ensemble


def drawn(weights: list[float], bias: float, rows: int = 200_000) -> tuple[np.ndarray, np.ndarray]:
    """Log odds [models, rows] and labels whose probability has the weighted sum of them as log odds."""
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 1.5, (len(weights), rows))
    z = np.array(weights) @ odds + bias
    return odds, (rng.random(rows) < 1 / (1 + np.exp(-z))).astype(np.float64)


def test_weights_are_those_of_the_mixture() -> None:
    odds, y = drawn([0.7, 0.2, 0.4], -1.0)
    np.testing.assert_allclose(blend.logistic_weights(odds, y), [0.7, 0.2, 0.4, -1.0], atol=0.03)


def test_no_weight_is_negative() -> None:
    odds, y = drawn([0.8, -0.5], 0.0)
    weights = blend.logistic_weights(odds, y)
    assert weights[1] == 0
    assert weights[0] == pytest.approx(0.72, abs=0.05)  # smaller: what it cannot explain is noise


def test_each_target_has_its_own_weights() -> None:
    odds, first = drawn([0.9, 0.1], -2.0)
    second = drawn([0.1, 0.6], 0.5)[1]
    log_odds = [np.stack([row, row], axis=1).astype(np.float32) for row in odds]
    weights = ensemble.weigh(log_odds, np.stack([first, second], axis=1))
    np.testing.assert_allclose(weights.T, [[0.9, 0.1, -2.0], [0.1, 0.6, 0.5]], atol=0.04)
    want = odds[0, :4, None] * [0.9, 0.1] + odds[1, :4, None] * [0.1, 0.6] + [-2.0, 0.5]
    got = ensemble.weighted_log_odds([each[:4] for each in log_odds], weights)
    np.testing.assert_allclose(got, want, atol=0.2)
