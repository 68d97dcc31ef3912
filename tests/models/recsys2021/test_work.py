"""The work for a row, recounted from the saved models by other means."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost

from buzzer.models.api.context import Data, RunContext
from buzzer.models.recsys2021 import network_training
from buzzer.models.recsys2021.feature_sets import FeatureSet, feature_set
from buzzer.models.recsys2021.task import TASK
from buzzer.models.work import load_work

MakeContext = Callable[..., RunContext]
Run = Callable[..., Any]
TRAINED = {"rounds_1": 3, "rounds_2": 2, "depth_1": 4, "tokens": {"pooled": 8, "gru64": 6, "gru128": 7}}
TRAINED |= {"token_dim": 8, "hidden": 16, "user_dim": 4, "epochs": 1, "group_rows": 10**9}
TRAINED |= {"bags": {"loo": 2, "pooled": 2}}


def visited(booster: xgboost.Booster) -> float:
    """Inner nodes on the way of a row through all trees, weighted by the cover of the nodes."""
    nodes = booster.trees_to_dataframe()
    roots = nodes[nodes["Node"] == 0].set_index("Tree")["Cover"]
    inner = nodes[nodes["Feature"] != "Leaf"]
    return float((inner["Cover"] / inner["Tree"].map(roots)).sum())


def counted(columns: FeatureSet, name: str, folder: Path, tokens: int, bag: int = 0) -> int:
    """The FLOPs of the products in one prediction, by torch's counter."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = network_training.trained(name, folder, bag)
    batch = (
        torch.ones(1, len(columns.names())),
        torch.ones(1, tokens, dtype=torch.int32),
        torch.zeros(1, 2, dtype=torch.int64),
    )
    # oneDNN's recurrent layer is one operator, which the counter does not know.
    with (
        torch.inference_mode(),
        torch.backends.mkldnn.flags(enabled=False),
        FlopCounterMode(display=False) as f,
    ):
        network(*batch)
    return int(f.get_total_flops())


def test_work_of_trained_models(data: Data, make_context: MakeContext, tmp_path: Path, run: Run) -> None:
    context = make_context("recsys2021-full", data, tmp_path, tmp_path, "polars", "torch_eager", **TRAINED)
    run(TASK.fit(context))
    found = run(TASK.predict(context))[0].work
    assert found == load_work(tmp_path)
    boosters = {path.name: xgboost.Booster(model_file=path) for path in tmp_path.glob("trees-*.ubj")}
    share = {name: 0.2 if name.startswith("trees-split") else 1.0 for name in boosters}
    assert len(boosters) == 4 * (1 + 2 + 5 + 2)
    rounds = sum(b.num_boosted_rounds() * share[name] for name, b in boosters.items())
    assert found.trees == pytest.approx(rounds)
    assert found.tree_nodes == pytest.approx(
        sum(visited(b) * share[name] for name, b in boosters.items()), rel=1e-4
    )
    columns = feature_set(TASK.typed(context).params)
    lengths = {"pooled": 8, "gru64": 6, "gru128": 7}
    products = sum(counted(columns, name, tmp_path, n) for name, n in lengths.items()) + counted(
        columns, "pooled", tmp_path, 8, 1
    )
    assert found.network_flops == products
    assert found.table_rows == sum(len(pd.read_parquet(path)) for path in tmp_path.glob("*.parquet"))
    assert found.summed_rows == data.rows["train"]


@pytest.mark.slow
def test_work_of_the_winners(data: Data, make_context: MakeContext, tmp_path: Path, run: Run) -> None:
    """17,075 trees and 136,600 nodes for a row, 12,593 trees without the fifth model, and 50 MFLOP."""
    context = make_context("recsys2021-winners", data, tmp_path, tmp_path, "polars", "torch_eager")
    run(TASK.fit(context))
    found = load_work(tmp_path)
    boosters = {path.name: xgboost.Booster(model_file=path) for path in tmp_path.glob("trees-*.ubj")}
    group0 = {
        name: b for name, b in boosters.items() if not name.startswith("trees-split") or "split0" in name
    }
    rounds = {name: b.num_boosted_rounds() for name, b in group0.items()}
    assert found.trees == sum(rounds.values()) == 17_075
    assert sum(n for name, n in rounds.items() if not name.startswith("trees-second-kfold")) == 12_593
    nodes = 0
    for booster in group0.values():
        row = xgboost.DMatrix(np.zeros((1, booster.num_features()), dtype=np.float32))
        leaves = booster.predict(row, pred_leaf=True)  # node i has the children 2 i + 1 and 2 i + 2
        nodes += int(np.floor(np.log2(leaves + 1)).sum())
    assert found.tree_nodes == nodes == 8 * 17_075
    columns = feature_set(TASK.typed(context).params)
    lengths = {"pooled": 48, "gru64": 42, "gru128": 48}
    products = sum(counted(columns, name, tmp_path, n) for name, n in lengths.items())
    products += counted(columns, "pooled", tmp_path, 48, 1)
    assert found.network_flops == products
    # By hand: the recurrent layers alone, 3 gates of H (768 + H) products for each token.
    recurrent = 42 * 6 * 64 * (768 + 64) + 48 * 6 * 128 * (768 + 128)
    assert recurrent == 46_448_640 < found.network_flops < 1.15 * recurrent
