"""The work that the saved models define for one row (`api.context.Work`), counted from the files of a fit."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from buzzer.models.api.context import Work
from buzzer.models.recsys2021 import trees, ubjson
from buzzer.models.recsys2021.ensemble import ModelSelection
from buzzer.models.recsys2021.features import TARGETS
from buzzer.models.recsys2021.params import Context, of, second_name

FILE = "work.json"


def save(context: Context, models: ModelSelection, summed_rows: int) -> None:
    """Count the work of the models in `context.work`, and write it there. summed_rows: training rows that the lookup tables sum up."""
    (context.work / FILE).write_text(json.dumps(asdict(count(context, models, summed_rows))))


def load(folder: Path) -> Work:
    """The work that `save` wrote."""
    return Work(**json.loads((folder / FILE).read_text()))


def count(context: Context, models: ModelSelection, summed_rows: int) -> Work:
    """The work of the models in `context.work`.

    Of the `split` trees a row meets those of its author group; their nodes are the mean over the groups. Texts have their full length,
    the parameter `tokens`.
    """
    met = nodes = 0.0
    for path, share in files_of_trees(context, models):
        ensemble_trees, ensemble_nodes = of_trees(path)
        met, nodes = met + share * ensemble_trees, nodes + share * ensemble_nodes
    return Work(
        trees=round(met, 6),
        tree_nodes=round(nodes, 3),
        network_flops=float(sum(of_network(context, name) for name in models.all_networks)),
        table_rows=table_rows(context.work),
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


def of_trees(path: Path) -> tuple[int, float]:
    """The number of trees in a file, and of the inner nodes that a row visits in them.

    The second is a mean over the rows that the trees were trained on, weighted by their second derivatives: XGBoost saves the sum of these
    for each node.
    """
    found = ubjson.read(path)["learner"]["gradient_booster"]["model"]["trees"]
    nodes = 0.0
    for tree in found:
        inner = np.asarray(tree["left_children"]) >= 0
        if inner.any():
            weights = np.asarray(tree["sum_hessian"], dtype=np.float64)
            nodes += float(weights[inner].sum() / weights[0])
    return len(found), nodes


def of_network(context: Context, name: str) -> int:
    """The FLOPs of one row in all bags of a network: of its matrix products, and of the mean of the token vectors in `pooled`."""
    from buzzer.models.recsys2021 import network_training
    from buzzer.models.recsys2021.networks import flops

    network = network_training.outline(name, context.work)
    return context.params.bags_of(name) * flops(network, of(context.params.tokens, name))


def table_rows(folder: Path) -> int:
    """The rows of all lookup tables in the folder."""
    from pyarrow import parquet

    return sum(parquet.read_metadata(path).num_rows for path in folder.glob("*.parquet"))
