"""The backends of boosted trees against XGBoost's own prediction."""

import importlib.util
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


# The gpu-plan extra has nvForest, which runs without a GPU.
MARKS = {"nvforest": [pytest.mark.gpu_plan]}


@pytest.fixture(
    params=[pytest.param(b, marks=MARKS.get(b, [])) for b in infer.BACKENDS if infer.runs(b, infer.TREES)]
)
def backend(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    try:
        infer.load(name)
    except UnsupportedError as error:
        pytest.skip(error.message)
    if name == "onnxruntime" and importlib.util.find_spec("onnxmltools") is None:
        pytest.skip("onnxmltools is not installed")
    return name


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, backend: str) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param == "cuda" and backend not in ON_GPU:
        pytest.skip(f"{backend} runs on the CPU")
    return str(request.param)


ON_GPU = ("xgboost", "nvforest")
MARGINS = ("xgboost", "forest", "nvforest")  # backends with base margins


EXAMPLE = {"features": np.zeros((2, 6), dtype="float32")}


@pytest.mark.parametrize("from_file", [False, True])
def test_trees_agree_with_xgboost(
    booster: Any, backend: str, device: str, from_file: bool, tmp_path: Path
) -> None:
    if backend == "onnxruntime" and not from_file:
        with pytest.raises(UnsupportedError, match="files of boosted trees"):
            infer.prepare(booster, backend=backend, example=EXAMPLE, outputs=("probability",))
        return
    booster.save_model(tmp_path / "m.ubj")
    model = tmp_path / "m.ubj" if from_file else booster
    x = np.random.default_rng(1).normal(size=(33, 6)).astype("float32")
    x[3, 2] = np.nan
    options: Any = {"backend": backend, "device": device}
    with infer.prepare(model, example=EXAMPLE, outputs=("probability",), **options) as session:
        for rows in (x, x[:1]):
            got = session.run({"features": rows})["probability"]
            np.testing.assert_allclose(got, booster.predict(xgboost.DMatrix(rows)), rtol=1e-6, atol=1e-6)
        assert session.describe().weight_bytes
        with pytest.raises(UsageError, match="axis 1"):
            session.run({"features": x[:, :5]})


def test_base_margins_are_added(booster: Any, backend: str, device: str, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(9, 6)).astype("float32")
    margins = np.linspace(-2, 2, 9).astype("float32")
    example = EXAMPLE | {"base_margin": np.zeros(2, dtype="float32")}
    options: Any = {"backend": backend, "device": device}
    booster.save_model(tmp_path / "m.ubj")
    if backend not in MARGINS:
        with pytest.raises(UnsupportedError, match="base margins"):
            infer.prepare(tmp_path / "m.ubj", example=example, outputs=("probability",), **options)
        return
    with infer.prepare(booster, example=example, outputs=("probability",), **options) as session:
        got = session.run({"features": x, "base_margin": margins})["probability"]
    data = xgboost.DMatrix(x, base_margin=margins)
    np.testing.assert_allclose(got, booster.predict(data), rtol=1e-5)


def test_models_that_are_not_trees_are_refused(backend: str, tmp_path: Path) -> None:
    (tmp_path / "m.ubj").write_text("no model")
    with pytest.raises(DataError, match="not an XGBoost model"):
        infer.prepare(tmp_path / "m.ubj", backend=backend, example=EXAMPLE)
    with pytest.raises(DataError, match="not an XGBoost model"):
        infer.prepare(tmp_path / "none.ubj", backend=backend, example=EXAMPLE)
    if backend == "onnxruntime":  # which also runs torch modules
        return
    with pytest.raises(UnsupportedError, match="boosted trees only"):
        infer.prepare(torch.nn.Linear(6, 1), backend=backend, example=EXAMPLE)


def test_probabilities_near_0_and_1_are_exact(backend: str, tmp_path: Path) -> None:
    """With a base rate far from a half."""
    x = np.linspace(-1, 1, 400, dtype="float32")[:, None].repeat(6, 1)
    settings = {
        "objective": "binary:logistic",
        "base_score": 0.001,
        "eta": 1.0,
        "lambda": 0.0,
        "min_child_weight": 0,
    }
    certain = xgboost.train(settings, xgboost.DMatrix(x, x[:, 0] > 0.9), 12)
    want = certain.predict(xgboost.DMatrix(x))
    assert want.min() < 1e-4
    certain.save_model(tmp_path / "m.ubj")
    with infer.prepare(
        tmp_path / "m.ubj", backend=backend, example=EXAMPLE, outputs=("probability",)
    ) as session:
        got = session.run({"features": x})["probability"]
    # ONNX Runtime computes one class's probability as 1 minus the other's, with the absolute error of a float near 1.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7 if backend == "onnxruntime" else 0)


def test_nvforest_refuses_base_margins_of_other_objectives() -> None:
    x = np.zeros((8, 6), dtype="float32")
    counts = xgboost.train({"objective": "count:poisson"}, xgboost.DMatrix(x, np.ones(8)), 2)
    try:
        infer.load("nvforest")
    except UnsupportedError as error:
        assert error.hint == "pip install 'buzzer[gpu]'"
        return
    margins = {"base_margin": np.zeros(len(EXAMPLE["features"]), "float32")}
    with pytest.raises(UnsupportedError, match="base margins for XGBoost's logistic objectives only"):
        infer.prepare(counts, backend="nvforest", example=EXAMPLE | margins)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_nvforest_without_a_gpu_is_unsupported(booster: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"needs the package nvforest|GPU"):
        infer.prepare(booster, backend="nvforest", example=EXAMPLE, device="cuda")
