"""The work of a task (`api.context.Work`): `fit` counts it from what it saved, and `predict` reads the count.

Counting once per fit matters: torch's counter of operations imports torch's compiler, which takes longer than many predictions.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from buzzer.engine.infer import ubjson
from buzzer.models.api.context import Work

FILE = "work.json"


def save_work(folder: Path, work: Work) -> None:
    """Write the work of the models in the folder of a fit."""
    (folder / FILE).write_text(json.dumps(asdict(work)))


def load_work(folder: Path) -> Work:
    """The work that `save_work` wrote."""
    return Work(**json.loads((folder / FILE).read_text()))


def tree_nodes(path: Path) -> tuple[int, float]:
    """The number of trees in a file of XGBoost (.ubj), and of the inner nodes that a row visits in them.

    The second is a mean over the rows that the trees were trained on, weighted by their second derivatives: XGBoost saves the sum of these
    for each node.
    """
    trees = ubjson.loads(path.read_bytes())["learner"]["gradient_booster"]["model"]["trees"]
    nodes = 0.0
    for tree in trees:
        inner = np.asarray(tree["left_children"]) >= 0
        if inner.any():
            weights = np.asarray(tree["sum_hessian"], dtype=np.float64)
            nodes += float(weights[inner].sum() / weights[0])
    return len(trees), nodes


def table_rows(paths: Iterable[Path]) -> int:
    """The rows of all of these Parquet files."""
    from pyarrow import parquet

    return sum(parquet.read_metadata(path).num_rows for path in paths)
