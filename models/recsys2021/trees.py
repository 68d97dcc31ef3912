"""Boosted trees: one model for each engagement, or for each engagement and author group."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets.recsys2021.schema import GROUPS
from buzzer.engine import cluster
from buzzer.engine.frames.base import Array, on_host, side_by_side
from buzzer.models import blend, boosting
from buzzer.models.api import progress
from buzzer.models.by_model import of
from buzzer.models.recsys2021 import random_trees
from buzzer.models.recsys2021.features import TARGETS
from buzzer.models.recsys2021.params import TREES, Context, Params, Sampling, of_label
from buzzer.models.weights import RANDOM

# settings, labels [rows], margins [rows] or None, rounds -> a Booster
Learn = Callable[[dict[str, Any], Array, Array | None, int], Any]
ALL_GROUPS = range(len(GROUPS) + 1)
CUT_ROWS = 20_000  # rows from which the thresholds of random trees are drawn
BAG_SEEDS = 1_000_003  # the seeds of a model's bags are this far apart


def log_odds(p: Array) -> Array:
    """Log odds of probabilities, float32, on the device of `p`."""
    odds: Array = blend.log_odds(p).astype(np.float32)
    return odds


def path(folder: Path, model: str, target: str, bag: int = 0, group: str = "") -> Path:
    """The file of the trees of one model and engagement. group: number of the author group, for a model that has one for each."""
    name = f"{model.replace('_', '-')}{group}-{target}"
    return folder / (f"trees-{name}-bag{bag}.ubj" if bag else f"trees-{name}.ubj")


def fit(
    context: Context, model: str, x: Array, y: Array, margins: Array | None = None, group: str = ""
) -> Iterator[str]:
    """Train and save the Boosters of a model: for each bag one for each engagement. Yields the engagement's name after its Booster is saved.

    With random weights nothing is trained: the trees are full, and their thresholds are quantiles of `x`.

    model: a name of params.ALL_TREES.  x: float32 [rows, features], on the host or the device.  y: 0 or 1 [rows, targets].
    margins: base margins, log odds [rows, targets]; without them the trees start from the mean label.  group: as in `path`.
    """
    make = write_random if context.params.weights == RANDOM else train
    yield from make(context, model, x, y, margins, group)


def train(
    context: Context, model: str, x: Array, y: Array, margins: Array | None, group: str
) -> Iterator[str]:
    """`fit` with trained weights."""
    params = context.params
    rounds, depth = sizes_of(params, model)
    sampling: Sampling = of(params.sampling, model)
    settings = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_depth": depth,
        "min_child_weight": params.min_child_1 if margins is None else params.min_child_2,
        "subsample": of(params.subsample, model),
        "sampling_method": sampling,
        "colsample_bytree": of(params.colsample, model),
        "nthread": context.threads,
        "device": context.device,
    }
    learn = on_cluster(x) if context.clustered else in_process(x, context.threads)
    for bag in progress.over(range(params.bags_of(model))):
        for number, target in progress.over(list(enumerate(TARGETS))):
            base, target_margins = 0.5, None
            if margins is None:
                base = start_of(y[:, number])
            else:
                target_margins = on_host(margins)[:, number]
            own = {
                "base_score": base,
                "eta": of_label(params.eta, model, target),
                "seed": seed_of(context.seed, bag),
            }
            booster = learn(settings | own, y[:, number], target_margins, rounds[target])
            booster.save_model(path(context.work, model, target, bag, group))
            yield target


def sizes_of(params: Params, model: str) -> tuple[dict[str, int], int]:
    """The rounds by engagement, and the depth of a model's trees."""
    first = model in TREES
    rounds, depth = (params.rounds_1, params.depth_1) if first else (params.rounds_2, params.depth_2)
    return {target: of_label(rounds, model, target) for target in TARGETS}, of(depth, model)


def write_random(
    context: Context, model: str, x: Array, y: Array, margins: Array | None, group: str
) -> Iterator[str]:
    """`fit` with random weights."""
    params = context.params
    rounds, depth = sizes_of(params, model)
    cuts = random_trees.cuts_of(on_host(x[:: -(-len(x) // CUT_ROWS)]))
    for bag in progress.over(range(params.bags_of(model))):
        for number, target in progress.over(list(enumerate(TARGETS))):
            shape = random_trees.Shape(
                rounds[target],
                depth,
                x.shape[1],
                of(params.colsample, model),
                start_of(y[:, number]) if margins is None else 0.5,
            )
            file = path(context.work, model, target, bag, group)
            random = np.random.default_rng([context.seed, *file.name.encode()])
            random_trees.write(file, shape, cuts, random)
            yield target


def start_of(y: Array) -> float:
    """The probability that the trees of a label start from, if they have no base margins: its mean."""
    return float(np.clip(y.mean(), 1e-6, 1 - 1e-6))


def seed_of(seed: int, bag: int) -> int:
    """The seed of a bag. The bags of a model draw other rows and columns; the first has the run's seed."""
    return (seed + bag * BAG_SEEDS) % 2**31


def in_process(x: Array, threads: int) -> Learn:
    """A function that trains in this process. The matrix is built once for all labels."""
    from buzzer.engine.xgb import xgboost

    data = xgboost.QuantileDMatrix(x, nthread=threads)

    def learn(settings: dict[str, Any], y: Array, margins: Array | None, rounds: int) -> Any:
        data.set_label(y)
        if margins is not None:
            data.set_base_margin(margins)
        return boosting.train(settings, data, rounds)

    return learn


def on_cluster(x: Array) -> Learn:
    """A function that trains on the open cluster with XGBoost's Dask interface. Each worker gets an equal share of adjacent rows."""
    from distributed import default_client

    from buzzer.engine.xgb import dask

    client = default_client()
    rows = -(-len(x) // len(cluster.addresses(client)))
    features = cluster.spread(client, on_host(x), rows)

    def learn(settings: dict[str, Any], y: Array, margins: Array | None, rounds: int) -> Any:
        columns = {"label": cluster.spread(client, y, rows)}
        if margins is not None:
            columns["base_margin"] = cluster.spread(client, margins, rows)
        data = dask().DaskQuantileDMatrix(client, features, **columns)
        shared = {name: value for name, value in settings.items() if name != "nthread"}  # set by each worker
        return dask().train(client, shared, data, rounds)["booster"]

    return learn


def fit_grouped(context: Context, model: str, x: Array, y: Array, groups: Array) -> Iterator[str]:
    """`fit` on the rows of each author group. For a group with fewer than `group_rows` rows, it trains on all rows.

    groups: 0 to 4 [rows].
    """
    for group in progress.over(ALL_GROUPS):
        rows = np.flatnonzero(groups == group)
        if len(rows) < context.params.group_rows:
            rows = np.arange(len(groups))
        yield from fit(context, model, x[rows], y[rows], group=str(group))


class Trees:
    """One session of a model's trees: for each bag those of each engagement. margins: whether the model takes base margins."""

    def __init__(
        self, context: Context, model: str, width: int, *, margins: bool = False, group: str = ""
    ) -> None:
        from buzzer.engine import infer

        self.bags = context.params.bags_of(model)
        self.outputs = [(bag, target) for bag in range(self.bags) for target in TARGETS]
        example: dict[str, Array] = {"features": np.zeros((2, width), dtype=np.float32)}
        if margins:
            example["base_margin"] = np.zeros((2, len(self.outputs)), dtype=np.float32)
        self.session = infer.prepare(
            [path(context.work, model, target, bag, group) for bag, target in self.outputs],
            backend=infer.split_backend(context.backend)[1],
            example=example,
            outputs=[f"{target}_{bag}" for bag, target in self.outputs],
            device=context.device,
            threads=context.threads,
        )

    def predict(self, x: Array, margins: Array | None = None) -> Array:
        """Probabilities float32 [rows, targets], means over the bags, on the host. `x` and `margins` may be on the device."""
        batch = {"features": x}
        if margins is not None:
            batch["base_margin"] = side_by_side([margins] * self.bags)
        outputs = self.session.run(batch)
        by_bag = np.stack([outputs[f"{target}_{bag}"] for bag, target in self.outputs], axis=1)
        return mean(np.split(by_bag, self.bags, axis=1))


def mean(parts: Sequence[Array]) -> Array:
    """The mean of arrays of one shape, float32."""
    return parts[0] if len(parts) == 1 else np.asarray(np.mean(parts, axis=0, dtype=np.float32))


class Grouped:
    """`Trees` for each author group."""

    def __init__(self, context: Context, model: str, width: int) -> None:
        self.by_group = [Trees(context, model, width, group=str(group)) for group in ALL_GROUPS]

    def predict(self, x: Array, groups: Array) -> Array:
        """Probabilities float32 [rows, targets], on the host. groups: 0 to 4 [rows], on the device of `x`."""
        probabilities = np.empty((len(x), len(TARGETS)), dtype=np.float32)
        for group, trees in enumerate(self.by_group):
            rows = (groups == group).nonzero()[0]
            if len(rows):
                probabilities[on_host(rows)] = trees.predict(x[rows])
        return probabilities
