"""The trained models of both stages, ready for prediction, and the arrays that they read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from buzzer.datasets.recsys2021.schema import LIST
from buzzer.engine import infer
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array, on_host, side_by_side
from buzzer.errors import UsageError, unknown_name
from buzzer.models import blend
from buzzer.models.recsys2021 import features, open_network, second_stage_features, sizes, trees
from buzzer.models.recsys2021.batches import Batches
from buzzer.models.recsys2021.feature_sets import FeatureSet, feature_set
from buzzer.models.recsys2021.open_network import OpenNetwork
from buzzer.models.recsys2021.params import BASELINE, NETWORKS, TREES, Context, Params, second_name


@dataclass(frozen=True)
class ModelSelection:
    """The models of a run."""

    trees: tuple[str, ...]
    networks: tuple[str, ...]
    second: tuple[str, ...]
    baseline: bool

    @property
    def first(self) -> list[str]:
        """Names of the first stage's models in scores, without the baseline."""
        return [*(f"trees_{name}" for name in self.trees), *self.networks]

    @property
    def blended(self) -> bool:
        """Whether the first stage has several models, and so a weighted mean."""
        return len(self.first) > 1

    @property
    def all_networks(self) -> tuple[str, ...]:
        """The networks, including the baseline if it is enabled."""
        return (*self.networks, BASELINE) if self.baseline else self.networks


def select_models(params: Params) -> ModelSelection:
    """The models that the parameters name. Raises UsageError for an unknown model, an empty first stage, or unknown features."""
    feature_set(params)
    lists = {"trees": params.trees, "networks": params.networks, "second": params.second}
    offered = {"trees": TREES, "networks": NETWORKS, "second": second_stage_features.MODELS}
    for key, names in lists.items():
        for name in names:
            if name not in offered[key]:
                raise unknown_name(f"model of {key}", name, offered[key])
    if not params.trees and not params.networks:
        raise UsageError("no model of the first stage", f"--set trees=[{','.join(TREES)}]")
    return ModelSelection(
        **{key: tuple(names) for key, names in lists.items()},
        baseline=params.baseline,
    )


@dataclass(frozen=True)
class Inputs:
    """The arrays that the first stage reads; with a GPU engine they are on the GPU. None for arrays that no model reads."""

    x: Array  # float32 [rows, FeatureSet.names()]
    raw: Array | None  # float32 [rows, FeatureSet.raw_names()]
    tokens: Array | None  # int32 [rows, length], 0 = padding
    users: Array | None  # int64 [rows, 2]: codes of author and reader

    def batches(self, size: int) -> Batches:
        """The rows as batches of a network, of at most `size` rows."""
        assert self.tokens is not None and self.users is not None
        return Batches(self.x, self.tokens, self.users, size)

    def everything(self) -> dict[str, Array]:
        """All rows as one batch of a network, on the host."""
        assert self.tokens is not None and self.users is not None
        parts = {"features": self.x, "tokens": self.tokens, "users": self.users}
        return {name: on_host(part) for name, part in parts.items()}

    def on_host(self) -> "Inputs":
        """The arrays that networks read, copied to the host."""
        parts = self.everything()
        return Inputs(parts["features"], None, parts["tokens"], parts["users"])


@dataclass(frozen=True)
class Selection:
    """The columns that a model reads from `Inputs.x`."""

    columns: FeatureSet
    model: str

    @cached_property
    def names(self) -> list[str]:
        """The names of the columns, in order."""
        return self.columns.of(self.model)

    @cached_property
    def all(self) -> bool:
        """Whether the model reads all columns."""
        return self.names == self.columns.names()

    @cached_property
    def _at(self) -> list[int]:
        given = self.columns.names()
        return [given.index(name) for name in self.names]

    def of(self, x: Array) -> Array:
        """The model's columns of rows [rows, FeatureSet.names()]: `x` itself if the model reads all."""
        return x if self.all else x[:, self._at]


def inputs(
    e: Engine,
    t: Frame,
    columns: FeatureSet,
    models: ModelSelection,
    length: int,
    texts: Frame | None = None,
) -> Inputs:
    """The first stage's arrays from encoded rows.

    length: maximum number of tokens of a text.  texts: the column features.TEXTS of the same rows; needed if there are networks.
    """
    x = e.matrix(t, columns.names())
    raw = e.matrix(t, columns.raw_names()) if "split" in models.trees else None
    if not models.all_networks:
        return Inputs(x, raw, None, None)
    tokens = e.token_matrix(texts, features.TEXTS, LIST, length)
    return Inputs(x, raw, tokens, e.codes(t, ["a_user", "b_user"]))


class FirstStage:
    """Sessions of all first-stage models, loaded from the files that `fit` saved."""

    def __init__(self, context: Context, models: ModelSelection) -> None:
        self.models, self.context, columns = models, context, feature_set(context.params)
        self.reads = {name: Selection(columns, f"trees_{name}") for name in models.trees}
        self.trees = {
            name: trees.Trees(context, name, len(reads.names))
            for name, reads in self.reads.items()
            if name != "split"
        }
        if "split" in models.trees:
            self.grouped = trees.Grouped(context, "split", len(self.reads["split"].names))
        self.networks: dict[str, list[OpenNetwork]] = {}
        if models.all_networks:
            self.networks = open_network.open_networks(models.all_networks, context)

    def predict_trees(self, rows: Inputs) -> dict[str, Array]:
        """Probabilities float32 [rows, targets] by model, on the host."""
        return {f"trees_{name}": self._predict(name, rows) for name in self.models.trees}

    def _predict(self, name: str, rows: Inputs) -> Array:
        reads = self.reads[name]
        if name == "split":
            assert rows.raw is not None
            return self.grouped.predict(rows.raw, rows.raw[:, reads.names.index("a_group")])
        model = self.trees[name]
        if name == "kfold" and reads.all:
            return model.predict(rows.x)

        def predict_block(block: slice) -> Array:
            return model.predict(read_by(name, reads.of(rows.x[block]), reads.names))

        return in_blocks(len(rows.x), sizes.block_rows(self.context), predict_block)

    def predict_networks(self, rows: Inputs) -> dict[str, Array]:
        """Probabilities float32 [rows, targets] by model, on the host."""
        if not self.networks:
            return {}
        if not infer.info(infer.split_backend(self.context.backend)[0]).takes_gpu_arrays:
            rows = rows.on_host()
        batches = rows.batches(sizes.batch_rows(self.context))
        # One network after the other, so that only one has its users' vectors in memory.
        return {
            name: trees.mean([network.predict(batches) for network in bags])
            for name, bags in self.networks.items()
        }


class SecondStage:
    """Trees on the first stage's columns and log odds and on the second stage's columns.

    The submission is the mean of the models (the winners' two models differ in the halves that they are trained on).
    """

    def __init__(self, context: Context, models: ModelSelection) -> None:
        self.context, self.columns = context, feature_set(context.params)
        self.reads = {name: Selection(self.columns, f"second_{name}") for name in models.second}
        odds = len(models.first) * len(features.TARGETS)
        self.models = {
            name: trees.Trees(
                context,
                second_name(name),
                len(reads.names) + odds + len(self.columns.week_names(name)),
                margins=True,
            )
            for name, reads in self.reads.items()
        }

    def predict(self, x: Array, log_odds: Sequence[Array], columns: Mapping[str, Array]) -> dict[str, Array]:
        """Probabilities float32 [rows, targets] by model, on the host.

        x: [rows, FeatureSet.names()].  log_odds: [rows, targets] for each first-stage model.  columns: model -> [rows,
        FeatureSet.week_names(model)].
        """

        def predict_block(name: str, block: slice) -> Array:
            extra = read_by(name, columns[name][block], self.columns.week_names(name))
            read = self.reads[name].of(x[block])
            return self.models[name].predict(*stacked(read, [p[block] for p in log_odds], extra))

        size = sizes.block_rows(self.context)
        return {
            second_name(name): in_blocks(len(x), size, partial(predict_block, name)) for name in self.models
        }


def in_blocks(rows: int, size: int, predict: Callable[[slice], Array]) -> Array:
    """Predictions [rows, targets], computed for at most `size` rows at a time."""
    starts = range(0, max(rows, 1), size)
    return np.concatenate([predict(slice(start, start + size)) for start in starts])


def read_by(strategy: str, x: Array, names: Sequence[str]) -> Array:
    """The columns [rows, names] in the form that trees of a strategy read: `loo` rounds target encodings to features.DECIMALS."""
    if strategy != "loo":
        return x
    encoded = [at for at, name in enumerate(names) if name.startswith(("te_", "week_"))]
    first, last = encoded[0], encoded[-1] + 1  # these columns are adjacent
    return side_by_side([x[:, :first], x[:, first:last].round(features.DECIMALS), x[:, last:]])


def stacked(x: Array, log_odds: Sequence[Array], columns: Array) -> tuple[Array, Array]:
    """The inputs of a second-stage model: its columns, and its base margins, the mean of the first stage's log odds."""
    return side_by_side([x, *log_odds, columns]), mean_log_odds(log_odds)


def log_odds_of(x: Array, probabilities: Mapping[str, Array], models: ModelSelection) -> list[Array]:
    """Log odds float32 [rows, targets] of each stacked model, on the device of the features `x`."""
    return [trees.log_odds(on_device_of(x, probabilities[name])) for name in models.first]


def on_device_of(x: Any, array: Array) -> Array:
    """The array, copied to the GPU if `x` is on the GPU."""
    if not hasattr(x, "__cuda_array_interface__"):
        return array
    import cupy

    return cupy.asarray(array)


def mean_log_odds(log_odds: Sequence[Array]) -> Array:
    """Mean log odds over the models, float32 [rows, targets]."""
    return sum(log_odds[1:], start=log_odds[0]) / np.float32(len(log_odds))


def weigh(log_odds: Sequence[Array], y: Array) -> Array:
    """The weights of the models' log odds, and an intercept, for each target, float32 [models + 1, targets] (`blend.logistic_weights`).

    log_odds: [rows, targets] of each model.  y: labels [rows, targets].
    """
    on_cpu = [on_host(each) for each in log_odds]
    by_target = [
        blend.logistic_weights(np.stack([each[:, i] for each in on_cpu]).astype(np.float64), y[:, i])
        for i in range(y.shape[1])
    ]
    return np.stack(by_target, axis=1).astype(np.float32)


def weighted_log_odds(log_odds: Sequence[Array], weights: Array) -> Array:
    """The sum of the models' log odds with the weights of `weigh`, and the intercept, float32 [rows, targets]."""
    rows = on_device_of(log_odds[0], weights)
    total: Array = rows[-1]
    for each, weight in zip(log_odds, rows[:-1], strict=True):
        total = total + each * weight
    return total


def probability(log_odds: Array) -> Array:
    """The probabilities that correspond to log odds."""
    return 1 / (1 + np.exp(-log_odds))
