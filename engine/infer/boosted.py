"""The nodes of XGBoost's boosted trees as NumPy arrays."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.infer import ubjson
from buzzer.engine.infer.session import Array
from buzzer.errors import DataError, UnsupportedError, first_line

BINARY = ".ubj"  # suffix of files of XGBoost's binary format
LOGISTIC = ("binary:logistic", "reg:logistic")
ARRAYS = (
    "left_children",
    "right_children",
    "split_indices",
    "split_conditions",
    "default_left",
    "split_type",
)  # of a tree
NODE_ARRAYS = (
    "left",
    "right",
    "feature",
    "value",
    "default_left",
    "roots",
    "bases",
)  # of Nodes, for each node, tree or model
DAMAGED = "the trees of the XGBoost model are damaged"


@dataclass(frozen=True)
class Nodes:
    """The nodes of all trees of one or more models.

    A row with value x in column `feature` goes to `left` if x < `value` in float32, and otherwise to `right`; a missing value goes
    left if `default_left`. In a leaf, `left` and `right` are -1, and `value` is added to the log odds.
    """

    left: Array  # int64 [nodes], numbers of nodes
    right: Array  # int64 [nodes]
    feature: Array  # int64 [nodes]
    value: Array  # float32 [nodes]
    default_left: Array  # bool [nodes]
    roots: Array  # int64 [trees]
    ends: Array  # int64 [models]: number of trees up to the end of each model
    bases: Array  # float32 [models]: log odds that each model starts from
    width: int  # number of columns of x


def log_odds(rate: float) -> float:
    """The log odds of a base score, computed as in XGBoost, in float32."""
    one = np.float32(1)
    return -math.log(one / np.float32(rate) - one)


def base_score(parameters: dict[str, Any]) -> float:
    """The base score in a model's parameters, a probability: "[5E-1]", or "5E-1" in older versions. Raises DataError for another number."""
    base = json.loads(parameters["base_score"])
    rate = float(base[0] if isinstance(base, list) else base)
    if not 0 < rate < 1:
        raise DataError(f"the base score {rate:g} of the XGBoost model is no probability", "train it again")
    return rate


def read(models: Sequence[Any], backend: str) -> Nodes:
    """The nodes of xgboost.Boosters or model files.

    Raises UnsupportedError for a model that is not a sum of trees with a logistic objective, one output and numeric splits, and
    DataError for a file that is missing and a model that is damaged. backend: its name, for messages.
    """
    # One after the other: the arrays of one model are small enough for the allocator to reuse their memory.
    each = [nodes_of(learner_of(model), backend) for model in models]
    if len({nodes.width for nodes in each}) != 1:
        raise UnsupportedError(
            "the models of one session have different numbers of columns", "use a session for each"
        )
    start = 0
    for nodes in each:
        for numbers in (nodes.left, nodes.right):
            np.add(numbers, start, out=numbers, where=numbers >= 0)
        nodes.roots[:] += start
        start += len(nodes.left)
    joined = {name: np.concatenate([getattr(nodes, name) for nodes in each]) for name in NODE_ARRAYS}
    ends = np.cumsum([len(nodes.roots) for nodes in each])
    return Nodes(**joined, ends=ends, width=each[0].width)


def nodes_of(learner: dict[str, Any], backend: str) -> Nodes:
    """The nodes of one model. Raises as `read`."""
    check(learner, backend)
    trees, parameters = learner["gradient_booster"]["model"]["trees"], learner["learner_model_param"]
    sizes = np.array([len(tree["left_children"]) for tree in trees], dtype=np.int64)
    roots = np.cumsum(sizes) - sizes

    def joined(name: str, dtype: Any) -> Array:
        arrays = [tree[name] for tree in trees]
        return np.concatenate(arrays).astype(dtype) if arrays else np.empty(0, dtype)

    left, right = joined("left_children", np.int64), joined("right_children", np.int64)
    leaf = left < 0
    for children in (left, right):
        children += np.repeat(roots, sizes)
        children[leaf] = -1
    nodes = Nodes(
        left,
        right,
        joined("split_indices", np.int64),
        joined("split_conditions", np.float32),
        joined("default_left", bool),
        roots,
        np.array([len(trees)]),
        np.array([log_odds(base_score(parameters))], dtype=np.float32),
        int(parameters["num_feature"]),
    )
    check_nodes(nodes, sizes)
    return nodes


def learner_of(model: Any) -> dict[str, Any]:
    """The learner in a Booster or a model file. A file of XGBoost's binary format is read without XGBoost, whose import takes a second or
    more."""
    if not isinstance(model, Path) or model.suffix != BINARY:
        from buzzer.engine.infer.trees import booster_of

        learner: dict[str, Any] = ubjson.loads(bytes(booster_of(model).save_raw("ubj")))["learner"]
        return learner
    try:
        learner = ubjson.loads(model.read_bytes())["learner"]
    except OSError as error:
        raise DataError(f"{model}: not an XGBoost model: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{model}: not an XGBoost model: {first_line(error)}") from error
    return learner


def check(learner: dict[str, Any], backend: str) -> None:
    """Raises UnsupportedError for a model of another kind (`check_kind`), and DataError for one that lacks a part."""
    try:
        check_kind(learner, backend)
        parameters, trees = learner["learner_model_param"], learner["gradient_booster"]["model"]["trees"]
        base_score(parameters)
        int(parameters["num_feature"])
        whole = all(len({len(tree[name]) for name in ARRAYS}) == 1 for tree in trees)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{DAMAGED}: {error!r}", "train the model again") from error
    if not whole:
        raise DataError(DAMAGED, "train the model again")


def classes(learner: dict[str, Any]) -> int:
    """The number of classes of a Booster; 1 for a model of one probability or value. learner: of its file or its configuration."""
    return max(int(learner["learner_model_param"]["num_class"]), 1)


def check_kind(learner: dict[str, Any], backend: str) -> None:
    """Raises UnsupportedError unless a model is a sum of trees with a logistic objective, one output and numeric splits."""
    booster, objective = learner["gradient_booster"], learner["objective"]["name"]
    parameters = learner["learner_model_param"]
    problem = ""
    if objective not in LOGISTIC:
        problem = f"the objective {objective}"
    elif booster["name"] != "gbtree":
        problem = f"the booster {booster['name']}"
    elif classes(learner) > 1 or int(parameters.get("num_target", 1)) > 1:
        problem = "models with several outputs"
    elif any(np.any(tree["split_type"]) for tree in booster["model"]["trees"]):
        problem = "categorical splits"
    if problem:
        raise UnsupportedError(f"{backend} does not support {problem}", "use --backend xgboost")


def check_nodes(nodes: Nodes, sizes: Array) -> None:
    """Raises DataError unless the nodes form trees with finite values. XGBoost checks only the format of a file.

    sizes: number of nodes of each tree.
    """
    inner = nodes.left >= 0
    roots, ends = (np.repeat(bounds, sizes)[inner] for bounds in (nodes.roots, nodes.roots + sizes))
    sides = [nodes.left[inner], nodes.right[inner]]
    feature = nodes.feature[inner]
    # The children are in the same tree, and not its root; and no node has two parents, so there are no cycles.
    valid = (
        (sizes > 0).all()
        and all((side > roots).all() and (side < ends).all() for side in sides)
        and np.bincount(np.concatenate(sides)).max(initial=0) <= 1
        and ((feature >= 0) & (feature < nodes.width)).all()
        and np.isfinite(nodes.value).all()
    )
    if not valid:
        raise DataError(DAMAGED, "train the model again")
