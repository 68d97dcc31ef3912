"""The work that the task's models define for one trip, counted from the sizes of their layers."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from buzzer.models.api.context import Work
from buzzer.models.booking.features import NUMBERS
from buzzer.models.booking.params import Bag

if TYPE_CHECKING:
    from buzzer.models.booking.networks import Sizes


def work(bags: Sequence[Bag], sizes: Mapping[str, "Sizes"], table_rows: int) -> Work:
    """The work of all models of a run. There are no trees. table_rows: rows of the tables of codes and of the baseline."""
    flops = {name: FLOPS[name](its) for name, its in sizes.items()}
    return Work(
        0.0, 0.0, float(sum(flops[member.network] for bag in bags for member in bag.members)), table_rows
    )


def product(*sizes: int) -> int:
    """FLOPs of dense layers of these sizes one after another: a product and a sum for each weight."""
    return sum(2 * a * b for a, b in pairwise(sizes))


def trip(s: "Sizes") -> int:
    """The scaled numbers, the scores of all classes and the bonus of each city of the trip."""
    return product(len(NUMBERS), s.dim) + product(s.dim, s.classes) + product(s.dim, s.lags + 1)


def mlp(s: "Sizes") -> int:
    """FLOPs of the MLP for one trip."""
    return product((2 * s.lags + 1) * s.dim, s.hidden, s.hidden, s.dim) + trip(s)


def gru(s: "Sizes") -> int:
    """FLOPs of the GRU for one trip: three gates in each step, the dense layers, the first stage, and the two heads."""
    steps = s.lags * (product(2 * s.dim, 3 * s.dim) + product(s.dim, 3 * s.dim))
    heads = 2 * (product(s.hidden, s.dim) + product(s.dim, min(s.candidates, s.classes)))
    return steps + product(2 * s.dim, s.hidden, s.hidden, s.dim) + heads + trip(s)


def encoder(s: "Sizes") -> int:
    """FLOPs of the encoder for one trip: in each layer four projections, the scores and sums of attention, and the feed-forward part."""
    length = s.lags + 1
    projections = product(s.dim, 3 * s.dim) + product(s.dim, s.dim, 4 * s.dim, s.dim)
    layer = length * (projections + product(s.dim, length, s.dim))
    return s.layers * layer + product(s.dim, s.dim) + trip(s)


FLOPS = {"mlp": mlp, "gru": gru, "encoder": encoder}
