"""The models of both stages, opened for prediction, and what they read of the rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from buzzer.datasets.recsys2021.schema import LIST
from buzzer.engine import infer
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array, on_host, side_by_side
from buzzer.errors import UsageError, unknown_name
from buzzer.models.api.context import RunContext
from buzzer.models.recsys2021 import features, second_stage_features, sizes, trees

TREES = ("kfold", "loo", "split")  # first stage, by how their training rows are encoded
NETWORKS = ("pooled", "gru64", "gru128")
LENGTHS = 8  # texts are cut to multiples of it
BASELINE = "logistic"  # trained and scored as a network, never stacked


@dataclass(frozen=True)
class ModelSelection:
    """Which models a run has."""

    trees: tuple[str, ...]
    networks: tuple[str, ...]
    second: tuple[str, ...]
    baseline: bool

    @property
    def first(self) -> list[str]:
        """Names of the stacked models, as scores call them."""
        return [*(f"trees_{name}" for name in self.trees), *self.networks]

    @property
    def all_networks(self) -> tuple[str, ...]:
        return (*self.networks, BASELINE) if self.baseline else self.networks


def chosen(params: Mapping[str, Any]) -> ModelSelection:
    """Raises UsageError for a model that is not known, or no first stage."""
    for key, known in (("trees", TREES), ("networks", NETWORKS), ("second", second_stage_features.MODELS)):
        for name in params[key]:
            if name not in known:
                raise unknown_name(f"model of {key}", name, known)
    if not params["trees"] and not params["networks"]:
        raise UsageError("no model of the first stage", f"--set trees=[{','.join(TREES)}]")
    lists = {key: tuple(params[key]) for key in ("trees", "networks", "second")}
    return ModelSelection(**lists, baseline=params["baseline"])


@dataclass(frozen=True)
class Inputs:
    """Rows as the first stage reads them, on the device with a GPU engine; what no model reads is None."""

    x: Array  # float32 [rows, features.names()]
    raw: Array | None  # float32 [rows, features.raw_names()]
    tokens: Array | None  # int32 [rows, length], 0 = padding
    users: Array | None  # int64 [rows, 2]: codes of author and reader

    def batches(self, size: int) -> Iterator[tuple[Array, dict[str, Array]]]:
        """The rows as a network's batches, and which they are [size], on the host. Rows of like length go together, as the work grows
        with the longest text; texts are cut to it, rounded up so that few lengths occur."""
        assert self.tokens is not None and self.users is not None
        many = lengths(self.tokens)
        order = np.argsort(many, kind="stable")
        places = on_host(order)
        longest = on_host(many[order])
        for start in range(0, len(places), size):
            rows, last = order[start : start + size], min(start + size, len(places)) - 1
            width = max(-(-int(longest[last]) // LENGTHS), 1) * LENGTHS
            batch = {
                "features": self.x[rows],
                "tokens": self.tokens[:, :width][rows],
                "users": self.users[rows],
            }
            yield places[start : start + size], batch

    def everything(self) -> dict[str, Array]:
        """A network's batch of all rows, on the host."""
        assert self.tokens is not None and self.users is not None
        parts = {"features": self.x, "tokens": self.tokens, "users": self.users}
        return {name: on_host(part) for name, part in parts.items()}

    def on_host(self) -> "Inputs":
        """What networks read, on the host."""
        parts = self.everything()
        return Inputs(parts["features"], None, parts["tokens"], parts["users"])


def lengths(tokens: Array) -> Array:
    """Tokens of each row, uint8 or wider [rows]."""
    return (tokens > 0).sum(axis=1, dtype=np.min_scalar_type(tokens.shape[1]))


def inputs(e: Engine, t: Frame, models: ModelSelection, length: int, texts: Frame | None = None) -> Inputs:
    """From encoded rows, and, where there are networks, the same rows' texts."""
    x = e.matrix(t, features.names())
    raw = e.matrix(t, features.raw_names()) if "split" in models.trees else None
    if not models.all_networks:
        return Inputs(x, raw, None, None)
    tokens = e.token_matrix(texts, features.TEXTS, LIST, length)
    return Inputs(x, raw, tokens, e.codes(t, ["a_user", "b_user"]))


class FirstStage:
    """Sessions of all first-stage models, loaded from what `fit` saved."""

    def __init__(self, job: RunContext, models: ModelSelection) -> None:
        self.models, self.job = models, job
        width = len(features.names())
        self.trees = {name: trees.Trees(job, name, width) for name in models.trees if name != "split"}
        if "split" in models.trees:
            self.grouped = trees.Grouped(job, "split", len(features.raw_names()))
        self.networks: dict[str, Any] = {}
        if models.all_networks:
            from buzzer.models.recsys2021 import network_training

            self.networks = network_training.open_sessions(models.all_networks, job)

    def predict_trees(self, rows: Inputs) -> dict[str, Array]:
        """Probabilities [rows, targets] by model, on the host."""
        return {f"trees_{name}": self._predict(name, rows) for name in self.models.trees}

    def _predict(self, name: str, rows: Inputs) -> Array:
        if name == "split":
            assert rows.raw is not None
            return self.grouped.predict(rows.raw, rows.raw[:, features.raw_names().index("a_group")])
        model = self.trees[name]
        if name == "kfold":
            return model.predict(rows.x)

        def rounded(block: slice) -> Array:
            return model.predict(read_by(name, rows.x[block], features.names()))

        return in_blocks(len(rows.x), sizes.block_rows(self.job), rounded)

    def predict_networks(self, rows: Inputs) -> dict[str, Array]:
        """Probabilities [rows, targets] by model, on the host."""
        if not self.networks:
            return {}
        if infer.split_backend(self.job.backend)[0] != "torch_eager":
            rows = rows.on_host()
        shape = (len(rows.x), len(features.TARGETS))
        found = {name: np.empty(shape, dtype=np.float32) for name in self.networks}
        for places, batch in rows.batches(sizes.batch_rows(self.job)):
            for name, session in self.networks.items():
                found[name][places] = session.run(batch)["probability"]
        return found


class SecondStage:
    """Trees over the first stage's columns and log odds and the week's columns, and their mean (winners: two models, halves)."""

    def __init__(self, job: RunContext, models: ModelSelection) -> None:
        width = len(features.names()) + len(models.first) * len(features.TARGETS)
        self.job = job
        self.models = {
            name: trees.Trees(
                job, f"week-{name}", width + len(second_stage_features.names(name)), margins=True
            )
            for name in models.second
        }

    def predict(self, x: Array, odds: Sequence[Array], beside: Mapping[str, Array]) -> dict[str, Array]:
        """Probabilities [rows, targets] by model; odds: of the first stage's models; beside: the week's columns by model."""

        def one(name: str, block: slice) -> Array:
            own = read_by(name, beside[name][block], second_stage_features.names(name))
            return self.models[name].predict(*seen(x[block], [p[block] for p in odds], own))

        size = sizes.block_rows(self.job)
        return {f"second_{name}": in_blocks(len(x), size, partial(one, name)) for name in self.models}


def in_blocks(rows: int, size: int, predict: Callable[[slice], Array]) -> Array:
    """Predictions [rows, targets] of at most `size` rows at a time."""
    starts = range(0, max(rows, 1), size)
    return np.concatenate([predict(slice(start, start + size)) for start in starts])


def read_by(strategy: str, x: Array, names: Sequence[str]) -> Array:
    """The columns [rows, names] as trees of a strategy read them: those of `loo` have their encodings rounded."""
    if strategy != "loo":
        return x
    encoded = [at for at, name in enumerate(names) if name.startswith(("te_", "week_"))]
    first, last = encoded[0], encoded[-1] + 1  # they stand together
    return side_by_side([x[:, :first], x[:, first:last].round(features.DECIMALS), x[:, last:]])


def seen(x: Array, odds: Sequence[Array], beside: Array) -> tuple[Array, Array]:
    """What a model of the second stage sees, and the margins that it adds to: the mean of the first stage's log odds."""
    return side_by_side([x, *odds, beside]), mean_odds(odds)


def odds_of(x: Array, found: Mapping[str, Array], models: ModelSelection) -> list[Array]:
    """Log odds of the stacked models' probabilities, where the features `x` are."""
    return [trees.log_odds(next_to(x, found[name])) for name in models.first]


def next_to(x: Any, array: Array) -> Array:
    """An array where `x` is."""
    if not hasattr(x, "__cuda_array_interface__"):
        return array
    import cupy

    return cupy.asarray(array)


def mean_odds(odds: Sequence[Array]) -> Array:
    """Float32 [rows, targets]."""
    return sum(odds[1:], start=odds[0]) / np.float32(len(odds))


def probability(odds: Array) -> Array:
    return 1 / (1 + np.exp(-odds))
