"""Full trees that are not trained, for `weights: random`. They are written as XGBoost's own file, so every backend of trees can load them.

A file is UBJSON with the fields of XGBoost's model schema (https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html).
All trees of a file have the same number of nodes, so each is a copy of the same bytes with other columns, thresholds and leaves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.frames.base import Array
from buzzer.engine.infer.ubjson import TYPES
from buzzer.errors import DataError
from buzzer.models.recsys2021.ubjson import key, length, listed, text, typed_head, words

QUANTILES = 64  # thresholds are drawn from as many quantiles of a column
CHUNK = 256  # trees that are written at a time
NO_PARENT = 2**31 - 1
VERSION = (3, 0, 0)  # of XGBoost's schema; later versions read it too


@dataclass(frozen=True)
class Shape:
    """The shape of an ensemble of full trees."""

    rounds: int
    depth: int
    columns: int  # columns of the rows
    share: float  # share of the columns that a tree may read
    start: float  # the probability that the trees start from


def write(path: Path, shape: Shape, cuts: Sequence[Array], random: np.random.Generator) -> None:
    """Write a Booster of full trees, each with 2^depth - 1 inner nodes, on columns and thresholds drawn at random.

    cuts: as of `cuts_of`. Raises DataError if no column has a threshold.
    """
    template, places = tree(shape)
    partial = path.with_suffix(".tmp")
    with partial.open("wb") as file:
        file.write(head(shape))
        for first in range(0, shape.rounds, CHUNK):
            count = min(CHUNK, shape.rounds - first)
            trees = np.tile(np.frombuffer(template, dtype=np.uint8), (count, 1))
            for name, values in drawn(shape, cuts, count, random).items():
                put(trees, places[name], values)
            put(trees, places["id"], np.arange(first, first + count)[:, None].astype(">i4"))
            trees.tofile(file)
        file.write(tail(shape))
    partial.replace(path)


def cuts_of(x: Array) -> list[Array]:
    """For each column of the rows [rows, columns] its thresholds, float32, with rows on both sides; empty for a constant column."""
    levels = np.linspace(0, 1, QUANTILES + 1)
    quantiles = [np.unique(np.quantile(column, levels, method="nearest")) for column in x.T]
    return [
        values[1:].astype(np.float32) for values in quantiles
    ]  # a row goes left if it is below the threshold


def drawn(shape: Shape, cuts: Sequence[Array], count: int, random: np.random.Generator) -> dict[str, Array]:
    """Columns, thresholds and leaves of `count` trees, [count, nodes] each. The sum of the leaves of `rounds` trees has deviation 1/2."""
    usable = np.flatnonzero([len(values) for values in cuts])
    if not len(usable):
        raise DataError("all columns are constant, so trees have no thresholds", "use more rows")
    inner, nodes = 2**shape.depth - 1, 2 ** (shape.depth + 1) - 1
    readable = max(round(shape.share * len(usable)), 1)
    order = np.argsort(random.random((count, len(usable))), axis=1)
    own = usable[order[:, :readable]]  # the columns of each tree
    columns = np.zeros((count, nodes), dtype=">i4")
    columns[:, :inner] = np.take_along_axis(own, random.integers(0, readable, (count, inner)), axis=1)
    starts = np.cumsum([0, *map(len, cuts)])
    at = columns[:, :inner]
    lengths = np.diff(starts)[at]
    threshold = np.concatenate(cuts)[starts[at] + (random.random(at.shape) * lengths).astype(np.int64)]
    leaves = random.normal(0, 0.5 / shape.rounds**0.5, (count, nodes - inner)).astype(np.float32)
    values = np.concatenate([threshold, leaves], axis=1).astype(">f4")
    weights = np.concatenate([np.zeros_like(threshold), leaves], axis=1).astype(">f4")
    return {"split_indices": columns, "split_conditions": values, "base_weights": weights}


def put(trees: Array, place: int, values: Array) -> None:
    """Write big-endian values [trees, n] over the bytes [trees, size] from `place`."""
    width = values.shape[1] * values.itemsize
    trees[:, place : place + width] = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), width)


def tree(shape: Shape) -> tuple[bytes, dict[str, int]]:
    """The bytes of a full tree, and the places of its arrays and its id in them. Node i has the children 2 i + 1 and 2 i + 2."""
    inner, nodes = 2**shape.depth - 1, 2 ** (shape.depth + 1) - 1
    number = np.arange(nodes)
    parents = np.where(number > 0, (number - 1) // 2, NO_PARENT)
    left = np.where(number < inner, 2 * number + 1, -1)
    level = np.floor(np.log2(number + 1))
    arrays: dict[str, tuple[str, Any]] = {
        "base_weights": ("d", np.zeros(nodes)),
        "categories": ("l", []),
        "categories_nodes": ("l", []),
        "categories_segments": ("L", []),
        "categories_sizes": ("L", []),
        "default_left": ("U", np.zeros(nodes)),
        "left_children": ("l", left),
        "loss_changes": ("d", (number < inner).astype(float)),
        "parents": ("l", parents),
        "right_children": ("l", np.where(number < inner, left + 1, -1)),
        "split_conditions": ("d", np.zeros(nodes)),
        "split_indices": ("l", np.zeros(nodes)),
        "split_type": ("U", np.zeros(nodes)),
        "sum_hessian": ("d", 2.0 ** (shape.depth - level)),
    }
    out, places = b"{", dict[str, int]()
    for name, (kind, values) in arrays.items():
        out += key(name) + typed_head(kind, len(values))
        places[name] = len(out)
        out += np.asarray(values).astype(TYPES[kind]).tobytes()
    out += key("id") + b"l"
    places["id"] = len(out)
    out += bytes(4)
    facts = {"num_deleted": 0, "num_feature": shape.columns, "num_nodes": nodes, "size_leaf_vector": 1}
    return out + key("tree_param") + words(facts) + b"}", places


def head(shape: Shape) -> bytes:
    """The bytes before the trees."""
    out = b"{" + key("learner") + b"{" + key("attributes") + b"{}" + key("feature_names") + listed([])
    out += key("feature_types") + listed([]) + key("gradient_booster") + b"{" + key("model") + b"{"
    out += key("gbtree_model_param") + words({"num_parallel_tree": 1, "num_trees": shape.rounds})
    out += key("iteration_indptr") + listed(range(shape.rounds + 1))
    out += key("tree_info") + listed([0] * shape.rounds)
    return out + key("trees") + b"[#" + length(shape.rounds)


def tail(shape: Shape) -> bytes:
    """The bytes after the trees."""
    start = {"base_score": f"{shape.start:.9E}", "boost_from_average": 0, "num_class": 0}
    out = b"}" + key("name") + text("gbtree") + b"}"
    out += key("learner_model_param") + words(start | {"num_feature": shape.columns, "num_target": 1})
    out += key("objective") + b"{" + key("name") + text("binary:logistic")
    out += key("reg_loss_param") + words({"scale_pos_weight": 1}) + b"}"
    return out + b"}" + key("version") + listed(VERSION) + b"}"
