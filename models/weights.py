"""Models without training: the parameter `weights` of a task."""

from typing import Literal

Weights = Literal["trained", "random"]
RANDOM: Weights = "random"
NOTE = "weights: random, scores mean nothing"


def weights_notes(weights: Weights) -> tuple[str, ...]:
    """The note on random weights for a record; none for trained ones."""
    return (NOTE,) if weights == RANDOM else ()


def weights_detail(weights: Weights) -> dict[str, str]:
    """The detail `weights` of a record, if they are random."""
    return {"weights": weights} if weights == RANDOM else {}
