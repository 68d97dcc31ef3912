"""The work of the models of both tasks for one test row, from the sizes of their layers.

A network reads a whole window, so padding counts. A product and a sum count as two operations. Lookups, activations, norms and softmax count
as none, and neither do the counts of task 1, which are lookups.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from buzzer.engine.frames.base import FIRST_CODE
from buzzer.models.api.context import Work
from buzzer.models.work import tree_nodes

if TYPE_CHECKING:
    from buzzer.models.sigir_ecom.next_item.networks import Sizes
    from buzzer.models.sigir_ecom.next_item.params import NetworkSettings


def of_networks(sizes: Mapping[str, "Sizes"], networks: Iterable["NetworkSettings"], table_rows: int) -> Work:
    """The work of the networks of task 1."""
    flops = sum(network_flops(net.network, sizes[net.name]) for net in networks)
    return Work(0.0, 0.0, float(flops), table_rows)


def network_flops(kind: str, s: "Sizes") -> int:
    """Operations of one network on one window, its head over the whole catalogue among them."""
    length = s.length + (kind == "masked")
    narrow = 0 if s.item_dim == s.dim else s.item_dim * s.dim
    layer = 6 * s.dim * s.dim if kind == "gru" else 12 * s.dim * s.dim + 2 * length * s.dim
    events = length * (s.numbers * s.dim + narrow + s.layers * layer)
    fuse = s.dim * s.item_dim + (s.dim + s.numbers) * s.item_dim
    return 2 * (events + fuse + (s.scored - FIRST_CODE) * s.item_dim)


def of_purchase(numbers: int, codes: int, dim: int, hidden: int, model: Path, table_rows: int) -> Work:
    """The work of task 2. model: the saved trees; the other arguments are as in `Dlrm`."""
    trees, nodes = tree_nodes(model)
    return Work(float(trees), nodes, float(dlrm_flops(numbers, codes, dim, hidden)), table_rows)


def dlrm_flops(numbers: int, codes: int, dim: int, hidden: int) -> int:
    """Operations of `Dlrm` on one row."""
    vectors = codes + 1
    pairs = vectors * codes // 2
    bottom = numbers * hidden + hidden * dim
    return 2 * (bottom + vectors * vectors * dim + (hidden + pairs) * hidden + hidden)
