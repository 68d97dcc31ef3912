"""Random weights: full trees in XGBoost's format, networks, and a run from end to end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost

from buzzer.engine import infer
from buzzer.engine.infer import ubjson
from buzzer.errors import DataError
from buzzer.models.api.context import Data, RunContext
from buzzer.models.recsys2021 import random_trees, trees, user_vectors
from buzzer.models.recsys2021.params import NETWORKS, TREES
from buzzer.models.recsys2021.task import TASK
from tests.models.pairs import each_once

MakeContext = Callable[..., RunContext]
Run = Callable[..., Any]
SHAPE = random_trees.Shape(rounds=300, depth=5, columns=12, share=0.5, start=0.02)
SMALL: dict[str, Any] = {
    "rounds_1": 4,
    "rounds_2": 4,
    "depth_1": 4,
    "depth_2": 3,
    "tokens": 8,
    "token_dim": 8,
    "user_dim": 4,
}
SMALL |= {"weights": "random", "hidden": 8, "group_rows": 200, "bags": {"kfold": 2, "pooled": 2}}


@pytest.fixture(scope="module")
def x() -> Any:
    """Rows with a constant column, a column of two values, a skewed column and missing values."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, SHAPE.columns)).astype(np.float32)
    x[:, 3], x[:, 4], x[:, 5] = 7, rng.random(2000) < 0.05, np.maximum(x[:, 5] * 100 - 200, 0)
    return x


@pytest.fixture(scope="module")
def model(x: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trees") / "random.ubj"
    random_trees.write(path, SHAPE, random_trees.cuts_of(x), np.random.default_rng(1))
    return path


def traversed(path: Path, x: Any) -> Any:
    """Probabilities from the arrays of the file, a node at a time. The file is read through XGBoost's JSON."""
    import json

    content = json.loads(bytes(xgboost.Booster(model_file=path).save_raw("json")))
    total = np.full(len(x), np.log(SHAPE.start / (1 - SHAPE.start)))
    for tree in content["learner"]["gradient_booster"]["model"]["trees"]:
        left, right = np.array(tree["left_children"]), np.array(tree["right_children"])
        node, visited = np.zeros(len(x), dtype=int), 0
        while (left[node] >= 0).all():
            columns = np.array(tree["split_indices"])[node]
            goes_left = x[np.arange(len(x)), columns] < np.array(tree["split_conditions"], np.float32)[node]
            node, visited = np.where(goes_left, left[node], right[node]), visited + 1
        assert visited == SHAPE.depth and (left[node] < 0).all()
        total += np.array(tree["split_conditions"])[node]
    return 1 / (1 + np.exp(-total))


def test_full_trees_are_those_of_a_plain_traversal(x: Any, model: Path) -> None:
    booster = xgboost.Booster(model_file=model)
    assert booster.num_boosted_rounds() == SHAPE.rounds and booster.num_features() == SHAPE.columns
    want = traversed(model, x[:50])
    np.testing.assert_allclose(booster.inplace_predict(x[:50]), want, rtol=1e-5)
    np.testing.assert_allclose(booster.predict(xgboost.DMatrix(x[:50])), want, rtol=1e-5)
    assert 0.3 < np.log(want / (1 - want)).std() < 0.8


def test_rows_go_both_ways_at_every_root(x: Any, model: Path) -> None:
    for tree in ubjson.loads(model.read_bytes())["learner"]["gradient_booster"]["model"]["trees"]:
        column, threshold = tree["split_indices"][0], tree["split_conditions"][0]
        assert column != 3
        assert 0 < (x[:, column] < threshold).sum() < len(x)
        assert len(set(tree["split_indices"][:31].tolist())) <= 6  # half of the columns


@pytest.mark.parametrize("backend", ["xgboost", "forest", "tl2cgen", "nvforest"])
def test_backends_of_trees_load_the_file(backend: str, x: Any, model: Path) -> None:
    if not infer.installed(backend):
        pytest.skip(f"{backend} is not installed")
    session = infer.prepare(model, backend=backend, example={"features": x[:2]}, outputs=("probability",))
    found = session.run({"features": x})["probability"]
    np.testing.assert_allclose(found, xgboost.Booster(model_file=model).inplace_predict(x), rtol=2e-5)


def test_a_file_reads_back_as_xgboost_writes_it(model: Path) -> None:
    """XGBoost writes the trees that it has read with the same values."""
    again = ubjson.loads(bytes(xgboost.Booster(model_file=model).save_raw("ubj")))
    own = ubjson.loads(model.read_bytes())
    written, read = (c["learner"]["gradient_booster"]["model"]["trees"] for c in (own, again))
    assert len(written) == len(read) == SHAPE.rounds
    for a, b in zip(written, read, strict=True):
        assert set(a) == set(b) and a["id"] == b["id"] and a["tree_param"] == b["tree_param"]
        for name in set(a) - {"id", "tree_param"}:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_constant_columns_have_no_trees(tmp_path: Path) -> None:
    cuts = random_trees.cuts_of(np.ones((10, 12), np.float32))
    with pytest.raises(DataError, match="all columns are constant"):
        random_trees.write(tmp_path / "x.ubj", SHAPE, cuts, np.random.default_rng(0))


@pytest.fixture(scope="module")
def fitted(data: Data, tmp_path_factory: pytest.TempPathFactory, make_context: MakeContext, run: Run) -> Path:
    work = tmp_path_factory.mktemp("work")
    context = make_context("recsys2021-full", data, work, work, "polars", "torch_eager", **SMALL)
    result, phases = run(TASK.fit(context))
    assert phases == ["load", "features", "transfer", "trees", "networks", "write", "score"]
    assert result.notes == ("weights: random, scores mean nothing",)
    assert result.details["weights"] == "random" and "validation" not in result.details
    return work


def test_models_have_full_size_and_differ(fitted: Path) -> None:
    boosters = {path.name: path.read_bytes() for path in fitted.glob("trees-*.ubj")}
    assert len(boosters) == 4 * (2 + 1 + 5 + 2) == len(set(boosters.values()))
    assert len(list(fitted.glob("network-*.pt"))) == len(NETWORKS) + 1
    for model in TREES[:2]:
        booster = xgboost.Booster(model_file=trees.path(fitted, model, "like"))
        assert len(booster.trees_to_dataframe()) == 4 * 31


def predicted(context: RunContext, run: Run) -> tuple[pd.DataFrame, dict[str, float]]:
    """The submission and its scores."""
    result, _ = run(TASK.predict(context))
    assert result.notes == ("weights: random, scores mean nothing",)
    return pd.read_csv(context.out / "results.csv", header=None), result.scores


@pytest.fixture(scope="module")
def reference(
    data: Data, fitted: Path, tmp_path_factory: pytest.TempPathFactory, make_context: MakeContext, run: Run
) -> tuple[pd.DataFrame, dict[str, float]]:
    out = tmp_path_factory.mktemp("reference")
    context = make_context("recsys2021-full", data, fitted, out, "pandas", "torch_eager", **SMALL)
    submission, scores = predicted(context, run)
    assert submission[2].std() > 1e-3
    return submission, scores


@pytest.mark.parametrize(("e", "backend"), each_once(["onnxruntime", "openvino"]), indirect=["e"])
def test_engines_and_backends_predict_the_same(
    e: Any,
    backend: str,
    data: Data,
    fitted: Path,
    reference: tuple[pd.DataFrame, dict[str, float]],
    tmp_path: Path,
    make_context: MakeContext,
    run: Run,
) -> None:
    context = make_context("recsys2021-full", data, fitted, tmp_path, e.name, backend, **SMALL)
    got, other = predicted(context, run)
    want, scores = reference
    assert np.isclose(got[[2, 3, 4, 5]], want[[2, 3, 4, 5]], rtol=1e-4, atol=1e-6).mean() > 0.99
    assert other == pytest.approx(scores, abs=0.05)


def test_user_tables_of_a_given_size(data: Data, make_context: MakeContext, tmp_path: Path, run: Run) -> None:
    """The table has rows for at least `user_table_rows` users; two bags divide them."""
    settings = SMALL | {"networks": ["pooled", "gru64"], "trees": [], "second": [], "user_table_rows": 5000}
    run(TASK.fit(make_context("recsys2021", data, tmp_path, tmp_path, "polars", "torch_eager", **settings)))
    rows = {
        name: len(np.load(user_vectors.path(tmp_path / f"network-{name}.pt")))
        for name in ("pooled", "pooled-bag1", "gru64")
    }
    assert rows == {"pooled": 2502, "pooled-bag1": 2502, "gru64": 5002}
