"""Boosted trees, one model an engagement, or one an engagement and author group."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.datasets.recsys2021.schema import GROUPS
from buzzer.engine import cluster
from buzzer.engine.frames.base import Array, on_host
from buzzer.models import blend
from buzzer.models.api.context import RunContext
from buzzer.models.recsys2021.features import TARGETS

# settings, labels [rows], margins [rows] or None, rounds -> a Booster
Learn = Callable[[dict[str, Any], Array, Array | None, int], Any]
ALL_GROUPS = range(len(GROUPS) + 1)


def log_odds(p: Array) -> Array:
    """Of probabilities, float32, where they are."""
    odds: Array = blend.log_odds(p).astype(np.float32)
    return odds


def path(folder: Path, model: str, target: str) -> Path:
    return folder / f"trees-{model}-{target}.ubj"


def fit(
    job: RunContext, model: str, x: Array, y: Array, rounds: int, depth: int, margins: Array | None = None
) -> Iterator[str]:
    """Train and save one Booster an engagement; yields each one's name when it is done.

    x: float32 [rows, features], on the host or the device; y: 0 or 1 [rows, targets]; margins: log odds [rows, targets] that
    the trees add to, else they begin at the mean.
    """

    settings = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_depth": depth,
        "min_child_weight": job.params["min_child_1" if margins is None else "min_child_2"],
        "eta": job.params["eta"],
        "subsample": job.params["subsample"],
        "colsample_bytree": job.params["colsample"],
        "seed": job.seed,
        "nthread": job.threads,
        "device": job.device,
    }
    learn = shared_out(x) if job.clustered else alone(x, job.threads)
    for number, target in enumerate(TARGETS):
        base, own = 0.5, None
        if margins is None:
            base = float(np.clip(y[:, number].mean(), 1e-6, 1 - 1e-6))
        else:
            own = on_host(margins)[:, number]
        booster = learn(settings | {"base_score": base}, y[:, number], own, rounds)
        booster.save_model(path(job.work, model, target))
        yield target


def alone(x: Array, threads: int) -> Learn:
    """Training in this process; the matrix is made once for all labels."""
    import xgboost

    data = xgboost.QuantileDMatrix(x, nthread=threads)

    def learn(settings: dict[str, Any], y: Array, margins: Array | None, rounds: int) -> Any:
        data.set_label(y)
        if margins is not None:
            data.set_base_margin(margins)
        return xgboost.train(settings, data, rounds)

    return learn


def shared_out(x: Array) -> Learn:
    """Training by XGBoost's Dask interface on the cluster that the job has opened, rows in equal runs."""
    from distributed import default_client
    from xgboost import dask as xgboost_dask

    client = default_client()
    rows = -(-len(x) // len(cluster.addresses(client)))
    features = cluster.spread(client, on_host(x), rows)

    def learn(settings: dict[str, Any], y: Array, margins: Array | None, rounds: int) -> Any:
        beside = {"label": cluster.spread(client, y, rows)}
        if margins is not None:
            beside["base_margin"] = cluster.spread(client, margins, rows)
        data = xgboost_dask.DaskQuantileDMatrix(client, features, **beside)
        chosen = {name: value for name, value in settings.items() if name != "nthread"}  # each worker's own
        return xgboost_dask.train(client, chosen, data, rounds)["booster"]

    return learn


def fit_grouped(
    job: RunContext, model: str, x: Array, y: Array, groups: Array, rounds: int, depth: int
) -> Iterator[str]:
    """The same for each author group's rows; a group of few rows learns from all."""
    for group in ALL_GROUPS:
        rows = np.flatnonzero(groups == group)
        if len(rows) < job.params["group_rows"]:
            rows = np.arange(len(groups))
        yield from fit(job, f"{model}{group}", x[rows], y[rows], rounds, depth)


class Trees:
    """One session an engagement; `margins`: they add to log odds."""

    def __init__(self, job: RunContext, model: str, width: int, *, margins: bool = False) -> None:
        from buzzer.engine import infer

        example: dict[str, Array] = {"features": np.zeros((2, width), dtype=np.float32)}
        if margins:
            example["base_margin"] = np.zeros(2, dtype=np.float32)
        self.sessions = [
            infer.prepare(
                path(job.work, model, target),
                backend=infer.split_backend(job.backend)[1],
                example=example,
                outputs=("probability",),
                device=job.device,
                threads=job.threads,
            )
            for target in TARGETS
        ]

    def predict(self, x: Array, margins: Array | None = None) -> Array:
        """Probabilities float32 [rows, targets], on the host; x and margins where they are."""
        found = []
        for number, session in enumerate(self.sessions):
            own: Mapping[str, Any] = {}
            if margins is not None:
                own = {"base_margin": margins[:, number].copy()}
            found.append(session.run({"features": x, **own})["probability"])
        return np.stack(found, axis=1)


class Grouped:
    """One `Trees` an author group."""

    def __init__(self, job: RunContext, model: str, width: int) -> None:
        self.by_group = [Trees(job, f"{model}{group}", width) for group in ALL_GROUPS]

    def predict(self, x: Array, groups: Array) -> Array:
        """groups: 0 to 4 [rows], where x is."""
        found = np.empty((len(x), len(TARGETS)), dtype=np.float32)
        for group, trees in enumerate(self.by_group):
            rows = (groups == group).nonzero()[0]
            if len(rows):
                found[on_host(rows)] = trees.predict(x[rows])
        return found
