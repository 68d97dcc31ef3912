"""The work of the models of both tasks for one test row. A network reads a whole window, so padding counts. The counts of task 1 are
lookups and do not count."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from buzzer.engine.frames.base import Array
from buzzer.engine.infer.cost import row_flops
from buzzer.models.api.context import Work
from buzzer.models.work import tree_nodes

if TYPE_CHECKING:
    from buzzer.models.sigir_ecom.next_item.params import NetworkSettings
    from buzzer.models.sigir_ecom.next_item.sizes import Sizes


def of_networks(sizes: Mapping[str, "Sizes"], networks: Iterable["NetworkSettings"], table_rows: int) -> Work:
    """The work of the networks of task 1."""
    flops = sum(network_flops(net.network, sizes[net.name]) for net in networks)
    return Work(0.0, 0.0, float(flops), table_rows)


def network_flops(kind: str, s: "Sizes") -> int:
    """The FLOPs of one network on one window, its head over the whole catalogue among them. The table of items is made before any window."""
    import torch

    from buzzer.models.sigir_ecom.next_item.networks import NETWORKS, TopK

    row: dict[str, Array] = {
        "items": np.ones((1, s.length), dtype=np.int64),
        "kinds": np.ones((1, s.length), dtype=np.int64),
        "numbers": np.zeros((1, s.length, s.numbers), dtype=np.float32),
    }
    with torch.device("meta"):
        codes = torch.empty(s.products, dtype=torch.int64)
        network = NETWORKS[kind](s, codes, codes, torch.empty(s.products, s.vectors))
        return row_flops(TopK(network, 1), row)


def of_purchase(network: Any, numbers: int, codes: int, model: Path, table_rows: int) -> Work:
    """The work of task 2. network: a `Dlrm` that reads `numbers` and `codes` columns.  model: the saved trees."""
    trees, nodes = tree_nodes(model)
    row: dict[str, Array] = {
        "numbers": np.zeros((1, numbers), dtype=np.float32),
        "codes": np.zeros((1, codes), dtype=np.int64),
    }
    return Work(float(trees), nodes, float(row_flops(network.eval(), row)), table_rows)
