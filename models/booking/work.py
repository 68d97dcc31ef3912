"""The work that the task's models define for one trip."""

from collections.abc import Mapping, Sequence

from buzzer.engine.infer.cost import row_flops
from buzzer.models.api.context import Work
from buzzer.models.booking.members import example
from buzzer.models.booking.params import Bag
from buzzer.models.booking.sizes import Sizes


def work(bags: Sequence[Bag], sizes: Mapping[str, Sizes], table_rows: int) -> Work:
    """The work of all models of a run. There are no trees. table_rows: rows of the tables of codes and of the baseline."""
    flops = {name: of_network(name, its) for name, its in sizes.items()}
    return Work(
        0.0, 0.0, float(sum(flops[member.network] for bag in bags for member in bag.members)), table_rows
    )


def of_network(name: str, sizes: Sizes) -> int:
    """The FLOPs of a network for one trip."""
    import torch

    from buzzer.models.booking.networks import NETWORKS

    with torch.device("meta"):
        network = NETWORKS[name](sizes).eval()
    return row_flops(network, {name: array[:1] for name, array in example(sizes).items()})
