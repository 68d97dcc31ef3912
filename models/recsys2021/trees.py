"""Boosted trees, one model an engagement."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.frames.base import Array
from buzzer.models.recsys2021.features import TARGETS


def fit(
    x: Array,
    y: Mapping[str, Array],
    params: Mapping[str, Any],
    stage: int,
    seed: int,
    device: str,
    threads: int,
) -> Iterator[tuple[str, Any]]:
    """Train and hand out one Booster an engagement: (target, Booster).

    x: float32 [rows, features]; y: 0 or 1 by target. Winners, stage 1: depth 8, eta .1, 150 to 1000 rounds.
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
    for target in TARGETS:
        data.set_label(y[target])
        base = float(np.clip(y[target].mean(), 1e-6, 1 - 1e-6))
        yield target, xgboost.train(settings | {"base_score": base}, data, params[f"rounds_{stage}"])


def path(folder: Path, stage: int, target: str) -> Path:
    return folder / f"stage{stage}-{target}.ubj"


def open_sessions(folder: Path, stage: int, width: int, job: Any) -> dict[str, Any]:
    """A session by target on the job's backend."""
    from buzzer.engine import infer

    example = {"features": np.zeros((2, width), dtype=np.float32)}
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


def predict(sessions: Mapping[str, Any], x: Array) -> Array:
    """Probabilities float32 [rows, targets]."""
    return np.stack([session.run({"features": x})["probability"] for session in sessions.values()], axis=1)
