"""The work that the saved models define for one row (`api.context.Work`), counted from the files of a fit."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from buzzer.engine.frames.base import Array
from buzzer.engine.infer.cost import row_flops
from buzzer.models.api.context import Work
from buzzer.models.by_model import of
from buzzer.models.recsys2021 import trees
from buzzer.models.recsys2021.ensemble import ModelSelection
from buzzer.models.recsys2021.feature_sets import feature_set
from buzzer.models.recsys2021.features import TARGETS
from buzzer.models.recsys2021.params import Context, second_name
from buzzer.models.work import table_rows, tree_nodes


def count(context: Context, models: ModelSelection, summed_rows: int) -> Work:
    """The work of the models in `context.work`. summed_rows: training rows that the lookup tables sum up.

    Of the `split` trees a row meets those of its author group; their nodes are the mean over the groups. Texts have their full length,
    the parameter `tokens`.
    """
    met = nodes = 0.0
    for path, share in files_of_trees(context, models):
        ensemble_trees, ensemble_nodes = tree_nodes(path)
        met, nodes = met + share * ensemble_trees, nodes + share * ensemble_nodes
    return Work(
        trees=round(met, 6),
        tree_nodes=round(nodes, 3),
        network_flops=float(sum(of_network(context, name) for name in models.all_networks)),
        table_rows=table_rows(context.work.glob("*.parquet")),
        summed_rows=summed_rows,
    )


def files_of_trees(context: Context, models: ModelSelection) -> Iterator[tuple[Path, float]]:
    """The files of all trees, and the share of the rows that meet them."""
    groups = [str(group) for group in trees.ALL_GROUPS]
    for model in (*models.trees, *map(second_name, models.second)):
        for bag in range(context.params.bags_of(model)):
            for target in TARGETS:
                for group in groups if model == "split" else [""]:
                    share = 1 / len(groups) if group else 1.0
                    yield trees.path(context.work, model, target, bag, group), share


def of_network(context: Context, name: str) -> int:
    """The FLOPs of one row in all bags of a network."""
    from buzzer.models.recsys2021 import network_training

    row: dict[str, Array] = {
        "features": np.zeros((1, len(feature_set(context.params).names())), dtype=np.float32),
        "tokens": np.ones((1, of(context.params.tokens, name)), dtype=np.int32),
        "users": np.zeros((1, 2), dtype=np.int64),
    }
    network = network_training.outline(name, context.work).eval()
    return context.params.bags_of(name) * row_flops(network, row)
