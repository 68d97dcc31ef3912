"""Parameters by model and label, and bags."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from buzzer.errors import UsageError
from buzzer.models.api.context import Data, RunContext
from buzzer.models.by_model import of
from buzzer.models.recsys2021 import ensemble, trees
from buzzer.models.recsys2021.feature_sets import BASIC
from buzzer.models.recsys2021.features import TARGETS
from buzzer.models.recsys2021.params import Params, of_label
from buzzer.models.recsys2021.task import TASK
from buzzer.suite import registry

MakeContext = Callable[..., RunContext]
LABELS = {"reply": 2, "retweet": 3, "quote": 4, "like": 5}


def read(task: str, **changes: str) -> Params:
    """The parameters of `--set key=value`."""
    return Params.read(task, registry.task(task).with_params(changes).params)


@pytest.mark.parametrize("task", ["recsys2021", "recsys2021-full", "recsys2021-winners"])
def test_one_value_holds_for_all_models(task: str) -> None:
    params = read(task, rounds_1="20", hidden="7", eta="1")
    for model in params.trees:
        assert [of_label(params.rounds_1, model, target) for target in TARGETS] == [20] * 4
        assert of_label(params.eta, model, "like") == 1.0
    assert {of(params.hidden, name) for name in params.networks} == {7}


def test_mappings_by_model_and_label() -> None:
    rounds = "{kfold: {reply: 1, retweet: 2, quote: 3, like: 4}, loo: 5, split: 6}"
    params = read("recsys2021-full", rounds_1=rounds, tokens="{pooled: 4, gru64: 6, gru128: 5}")
    found = {m: [of_label(params.rounds_1, m, t) for t in TARGETS] for m in params.trees}
    assert found == {"kfold": [1, 2, 3, 4], "loo": [5] * 4, "split": [6] * 4}
    assert [of(params.tokens, name) for name in ("pooled", "gru64")] == [4, 6]
    assert params.longest_text() == 6


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rounds_1", "{kfolds: 3}", "unknown model in rounds_1 'kfolds'"),
        ("rounds_1", "{kfold: 3, loo: 3}", "rounds_1 has no value for model split"),
        ("rounds_1", "{kfold: {likes: 3}, loo: 3, split: 3}", "unknown label in rounds_1.kfold 'likes'"),
        ("rounds_1", "{kfold: {like: 3}, loo: 3, split: 3}", "rounds_1.kfold has no value for label reply"),
        ("rounds_1", "{second_loo: 3}", "unknown model in rounds_1 'second_loo'"),
        ("rounds_2", "{second_loo: 3}", "rounds_2 has no value for model second_kfold"),
        ("depth_1", "{kfold: {like: 3}, loo: 3, split: 3}", "depth_1"),
        ("depth_1", "17", "less than or equal to 16"),
        ("depth_2", "{second_loo: 0, second_kfold: 8}", "greater than or equal to 1"),
        ("rounds_1", "{kfold: many}", "is not of type int"),
        ("lr", "{pooled: .inf}", "not a finite number"),
        ("hidden", "{pooled: 8}", "hidden has no value for model gru64"),
        ("bags", "{kfold: 0}", "bags"),
        ("rounds_1", "0", "rounds_1=0"),
        ("rounds_2", "{second_loo: {reply: 0, retweet: 1, quote: 1, like: 1}, second_kfold: 1}", "rounds_2"),
        ("sampling", "some", "sampling=some"),
        ("weights", "none", "weights=none"),
    ],
)
def test_wrong_mappings_are_refused(key: str, value: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read("recsys2021-full", **{key: value})
    assert message in caught.value.message


def rows(width: int) -> tuple[Any, Any]:
    """Rows whose labels depend on the first columns."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(500, width)).astype(np.float32)
    return x, (x[:, :4] + rng.normal(size=(500, 4)) > 0).astype(np.float32)


def test_bags_are_averaged(data: Data, make_context: MakeContext, tmp_path: Path) -> None:
    """Rounds, depth and bags of the saved trees are those of the parameters, and a prediction is the mean of the bags."""
    settings = {
        "rounds_1": {"kfold": LABELS},
        "depth_1": {"kfold": 3},
        "bags": {"kfold": 3},
        "subsample": 0.5,
    }
    settings |= {"trees": ["kfold"], "networks": [], "second": []}
    context = TASK.typed(
        make_context("recsys2021", data, tmp_path, tmp_path, "polars", "torch_eager", **settings)
    )
    x, y = rows(6)
    assert list(trees.fit(context, "kfold", x, y)) == list(TARGETS) * 3
    boosters = {
        (bag, target): xgboost.Booster(model_file=trees.path(tmp_path, "kfold", target, bag))
        for bag in range(3)
        for target in TARGETS
    }
    assert {target: boosters[2, target].num_boosted_rounds() for target in TARGETS} == LABELS
    assert max(boosters[1, "like"].trees_to_dataframe()["Node"]) < 15
    dumps = [boosters[bag, "like"].get_dump() for bag in range(3)]
    assert dumps[0] != dumps[1] != dumps[2]
    by_hand = [np.mean([boosters[b, t].inplace_predict(x) for b in range(3)], axis=0) for t in TARGETS]
    np.testing.assert_allclose(trees.Trees(context, "kfold", 6).predict(x), np.stack(by_hand, 1), rtol=1e-6)


def test_learning_rates_by_label(data: Data, make_context: MakeContext, tmp_path: Path) -> None:
    """With a rate of zero the trees of a label stay at its mean."""
    eta = {"kfold": dict.fromkeys(TARGETS, 0.3) | {"quote": 0.0}}
    settings = {"rounds_1": 3, "eta": eta, "trees": ["kfold"], "networks": [], "second": []}
    context = TASK.typed(
        make_context("recsys2021", data, tmp_path, tmp_path, "polars", "torch_eager", **settings)
    )
    x, y = rows(6)
    list(trees.fit(context, "kfold", x, y))
    spread = trees.Trees(context, "kfold", 6).predict(x).std(axis=0)
    assert (spread > 1e-3).tolist() == [True, True, False, True]


def test_bags_of_a_network_divide_the_users() -> None:
    """Each user with a vector has one in exactly one bag, and the codes of a bag fill its table."""
    from buzzer.models.recsys2021.network_files import own_users
    from buzzer.models.recsys2021.network_training import table_rows

    codes = np.arange(13)[:, None]  # 0 and 1 are users without a vector
    assert (own_users(codes, 0, 1) == codes).all()
    found = np.concatenate([own_users(codes, bag, 3) for bag in range(3)], axis=1)
    assert (found[:2] == 0).all()
    assert ((found[2:] > 0).sum(axis=1) == 1).all()
    for bag in range(3):
        own = found[:, bag][found[:, bag] > 0]
        assert own.tolist() == list(range(2, 2 + len(own)))
        assert max(own) < table_rows(11, 3)


def test_bags_of_networks_are_averaged(
    data: Data, make_context: MakeContext, tmp_path: Path, run: Callable[..., Any]
) -> None:
    """Two pooled networks of other sizes than gru64: each reads its own users and its own number of tokens."""
    import torch

    from buzzer.models.recsys2021 import network_training

    settings = {
        "networks": ["pooled", "gru64"],
        "trees": [],
        "second": [],
        "bags": {"pooled": 2},
        "epochs": 1,
    }
    settings |= {"tokens": {"pooled": 8, "gru64": 3}, "user_dim": {"pooled": 5, "gru64": 4}, "word_dim": 6}
    settings |= {"hidden": {"pooled": 7, "gru64": 8}, "token_dim": 9, "batch": 50}
    context = TASK.typed(
        make_context("recsys2021", data, tmp_path, tmp_path, "polars", "torch_eager", **settings)
    )
    rng = np.random.default_rng(0)
    x, y = rows(len(BASIC.names()))
    tokens = rng.integers(5, 50, (500, 8)).astype(np.int32)
    users = rng.integers(0, 9, (500, 2))
    batch = {"features": x, "tokens": tokens, "users": users}
    models = ensemble.select_models(context.params)
    network_training.prepare(context, models.all_networks, 7)
    for name in models.networks:
        run(network_training.fit(context, name, batch, y))
    found = ensemble.FirstStage(context, models).predict_networks(ensemble.Inputs(x, None, tokens, users))
    pooled = []
    for bag in range(2):
        network = network_training.trained("pooled", tmp_path, bag)
        shapes = {key: tuple(w.shape) for key, w in network.state_dict().items()}
        assert shapes["users.weight"] == (4 + 2, 5) and shapes["text.table.weight"][1] == 6
        mine = np.where((users >= 2) & (users % 2 == bag), users // 2 + 1, 0)
        with torch.inference_mode():
            pooled.append(network(*map(torch.from_numpy, (x, tokens, mine))).numpy())
    assert np.abs(pooled[0] - pooled[1]).max() > 1e-3
    np.testing.assert_allclose(found["pooled"], np.mean(pooled, axis=0), atol=1e-5)
    with torch.inference_mode():
        gru = network_training.trained("gru64", tmp_path)
        want = gru(*map(torch.from_numpy, (x, tokens[:, :3].copy(), users))).numpy()
    np.testing.assert_allclose(found["gru64"], want, atol=1e-5)
