"""Backends of boosted trees against XGBoost's DMatrix prediction."""

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xgboost

from buzzer.engine import infer
from buzzer.errors import DataError, UnsupportedError, UsageError


@pytest.fixture(scope="module")
def booster() -> Any:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6)).astype("float32")
    x[rng.random(x.shape) < 0.1] = np.nan
    y = (np.nan_to_num(x[:, 0]) + x[:, 1] ** 2 > 0.5).astype("float32")
    return xgboost.train({"objective": "binary:logistic", "max_depth": 4}, xgboost.DMatrix(x, y), 20)


EXAMPLE = {"features": np.zeros((2, 6), dtype="float32")}


@pytest.fixture(params=[*infer.TREES, "onnxruntime"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    extra = {"onnxruntime": "onnxmltools"}.get(name, name)
    if importlib.util.find_spec(extra) is None:
        pytest.skip(f"{extra} is not installed")
    try:
        infer.load(name)
    except UnsupportedError as error:
        pytest.skip(error.message)
    return name


@pytest.mark.parametrize("from_file", [False, True])
def test_trees_predict_as_xgboost_does(booster: Any, backend: str, from_file: bool, tmp_path: Path) -> None:
    if not from_file and backend != "xgboost":
        with pytest.raises(UnsupportedError):
            infer.prepare(booster, backend=backend, example=EXAMPLE, outputs=("probability",))
        return
    booster.save_model(tmp_path / "m.ubj")
    model = tmp_path / "m.ubj" if from_file else booster
    x = np.random.default_rng(1).normal(size=(33, 6)).astype("float32")
    x[3, 2] = np.nan
    with infer.prepare(model, backend=backend, example=EXAMPLE, outputs=("probability",)) as session:
        for rows in (x, x[:1]):
            got = session.run({"features": rows})["probability"]
            np.testing.assert_allclose(got, booster.predict(xgboost.DMatrix(rows)), rtol=1e-6, atol=1e-6)
        assert session.describe().weight_bytes
        with pytest.raises(UsageError, match="axis 1"):
            session.run({"features": x[:, :5]})


def test_margins_are_added_to(booster: Any, backend: str, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(9, 6)).astype("float32")
    margins = np.linspace(-2, 2, 9).astype("float32")
    example = EXAMPLE | {"base_margin": np.zeros(2, dtype="float32")}
    booster.save_model(tmp_path / "m.ubj")
    prepare = partial(infer.prepare, tmp_path / "m.ubj", backend=backend, outputs=("probability",))
    if backend != "xgboost":
        with pytest.raises(UnsupportedError, match="log odds"):
            prepare(example=example)
        return
    with prepare(example=example) as session:
        got = session.run({"features": x, "base_margin": margins})["probability"]
    data = xgboost.DMatrix(x, base_margin=margins)
    np.testing.assert_allclose(got, booster.predict(data), rtol=1e-5)


def test_what_is_no_tree_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.ubj").write_text("no model")
    with pytest.raises(DataError, match="not an XGBoost model"):
        infer.prepare(tmp_path / "m.ubj", backend="xgboost", example=EXAMPLE)
    with pytest.raises(DataError, match="not an XGBoost model"):
        infer.prepare(tmp_path / "none.ubj", backend="xgboost", example=EXAMPLE)
    with pytest.raises(UnsupportedError, match="boosted trees only"):
        infer.prepare(torch.nn.Linear(6, 1), backend="xgboost", example=EXAMPLE)
