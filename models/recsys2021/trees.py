"""Boosted trees, one model an engagement."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.frames.base import Array
from buzzer.models.recsys2021.features import TARGETS


def log_odds(p: Array) -> Array:
    """Of probabilities, float32."""
    clipped = np.clip(p.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped)).astype(np.float32)


def fit(
    x: Array,
    y: Mapping[str, Array],
    params: Mapping[str, Any],
    stage: int,
    seed: int,
    device: str,
    threads: int,
    margins: Array | None = None,
) -> Iterator[tuple[str, Any]]:
    """Train and hand out one Booster an engagement: (target, Booster).

    x: float32 [rows, features]; y: 0 or 1 by target; margins: log odds [rows, targets] that the trees add to, else they
    begin at the mean. Winners, stage 1: depth 8, eta .1, 150 to 1000 rounds.
    """
    import xgboost

    settings = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_depth": params[f"depth_{stage}"],
        "min_child_weight": params["min_child"],
        "eta": params["eta"],
        "subsample": params["subsample"],
        "colsample_bytree": params["colsample"],
        "seed": seed,
        "nthread": threads,
        "device": device,
    }
    data = xgboost.QuantileDMatrix(x, nthread=threads)
    for number, target in enumerate(TARGETS):
        data.set_label(y[target])
        base = 0.5
        if margins is None:
            base = float(np.clip(y[target].mean(), 1e-6, 1 - 1e-6))
        else:
            data.set_base_margin(margins[:, number])
        yield target, xgboost.train(settings | {"base_score": base}, data, params[f"rounds_{stage}"])


def path(folder: Path, stage: int, target: str) -> Path:
    return folder / f"stage{stage}-{target}.ubj"


def open_sessions(folder: Path, stage: int, width: int, job: Any) -> dict[str, Any]:
    """A session by target on the job's backend; those of the second stage add to log odds."""
    from buzzer.engine import infer

    example: dict[str, Array] = {"features": np.zeros((2, width), dtype=np.float32)}
    if stage == 2:
        example["base_margin"] = np.zeros(2, dtype=np.float32)
    return {
        target: infer.prepare(
            path(folder, stage, target),
            backend=job.backend,
            example=example,
            outputs=("probability",),
            precision=job.precision,
            device=job.device,
            threads=job.threads,
        )
        for target in TARGETS
    }


def predict(sessions: Mapping[str, Any], x: Array, margins: Array | None = None) -> Array:
    """Probabilities float32 [rows, targets]; margins: log odds [rows, targets] of the stage before."""
    found = []
    for number, session in enumerate(sessions.values()):
        own: dict[str, Array] = {}
        if margins is not None:
            own["base_margin"] = np.ascontiguousarray(margins[:, number])
        found.append(session.run({"features": x, **own})["probability"])
    return np.stack(found, axis=1)
