"""SIGIR eCom at its true size: sampled softmax, samples of sessions, settings by network, random weights, and the work of a row."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import xgboost
from torch.nn import functional as F

from buzzer.datasets.contract import silent
from buzzer.engine.frames import Engine
from buzzer.errors import UsageError
from buzzer.models.api.context import Data, RunContext, Work
from buzzer.models.sigir_ecom import work
from buzzer.models.sigir_ecom.next_item import sampled_softmax
from buzzer.models.sigir_ecom.next_item import task as task1
from buzzer.models.sigir_ecom.next_item.networks import NETWORKS, TopK
from buzzer.models.sigir_ecom.next_item.params import Params, networks_of
from buzzer.models.sigir_ecom.next_item.sampled_softmax import Sample, Sampler
from buzzer.models.sigir_ecom.next_item.sizes import Sizes
from buzzer.models.sigir_ecom.purchase.dlrm import Dlrm
from buzzer.models.sigir_ecom.sessions import shared
from buzzer.models.sigir_ecom.sessions.events import EventArrays
from buzzer.models.weights import NOTE
from buzzer.models.work import tree_nodes
from buzzer.suite import registry

PRODUCTS, CODES, LENGTH = 40, 60, 6
SMALL = {
    "networks": ["masked"],
    "epochs": 1,
    "dim": 16,
    "length": 8,
    "candidates": 30,
    "latency": 0,
    "piece_sessions": 150,
}


def network(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    content = [rng.integers(0, 5, PRODUCTS), rng.integers(0, 11, PRODUCTS), rng.normal(size=(PRODUCTS, 10))]
    fields = {"item_dim": 16, "scored": PRODUCTS, "mask": 0.4, "smoothing": 0.1, "dropout": 0.0} | changes
    sizes = Sizes(PRODUCTS, CODES, LENGTH, 3, 5, 10, 16, layers=2, heads=2, **fields)
    net = NETWORKS[name](sizes, *(torch.from_numpy(x) for x in [*content[:2], content[2].astype("f4")]))
    torch.nn.init.normal_(net.items.own.weight, std=0.5)
    torch.nn.init.normal_(net.bias, std=0.5)
    return net


def inputs_of(rows: int) -> tuple[torch.Tensor, ...]:
    """Targets, items, kinds and numbers of windows whose first events are missing."""
    rng = np.random.default_rng(0)
    items = rng.integers(2, CODES, (rows, LENGTH))
    kinds = np.where(items < PRODUCTS, rng.integers(2, 6, items.shape), 1)
    before = np.arange(LENGTH) < rng.integers(0, LENGTH, rows)[:, None]
    target = np.where(before, 0, rng.integers(2, PRODUCTS, items.shape))
    items[before], kinds[before] = 0, 0
    numbers = rng.normal(size=(rows, LENGTH, 3)).astype("float32")
    return tuple(torch.from_numpy(x) for x in (target, items, kinds, numbers))


# ---- sampled softmax ----------------------------------------------------------------------------------------------


def test_the_estimate_by_hand() -> None:
    own, sampled = np.array([0.5, -1.0]), np.array([[1.0, 2.0, 0.0], [0.3, -0.2, 0.4]])
    target, codes, expected = np.array([7, 3]), np.array([3, 5, 7]), np.array([0.5, 1.5, 2.0])
    want = 0.0
    for row in range(2):
        z = np.exp(own[row])
        z += sum(
            np.exp(s) / n for s, c, n in zip(sampled[row], codes, expected, strict=True) if c != target[row]
        )
        want += (np.log(z) - 0.8 * own[row] - 0.2 * sampled[row, :2].mean()) / 2
    sample = Sample(torch.from_numpy(codes), torch.from_numpy(np.log(expected)), uniform=2)
    got = sampled_softmax.cross_entropy(*map(torch.from_numpy, (own, sampled, target)), sample, 0.2)
    assert float(got) == pytest.approx(want)


def test_draws_are_as_frequent_as_expected() -> None:
    counts = np.array([9, 9, 5, 0, 95, 0, 0])  # codes 0 and 1 are never drawn
    sampler = Sampler(counts, 100_000)
    sample = sampler.draw()
    drawn = np.bincount(sample.codes.numpy(), minlength=7)
    share = (counts[2:] + 1) / (counts[2:] + 1).sum()
    assert drawn[:2].tolist() == [0, 0]
    np.testing.assert_allclose(drawn[2:], 50_000 / 5 + 50_000 * share, atol=600)  # over 5 deviations
    expected = sample.log_expected.exp().numpy()
    np.testing.assert_allclose(expected, (50_000 / 5 + 50_000 * share)[sample.codes.numpy() - 2], rtol=1e-5)


@pytest.mark.parametrize("scored", [PRODUCTS, CODES])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_large_sample_gives_the_full_loss_and_gradient(name: str, scored: int) -> None:
    net, inputs = network(name, scored=scored, item_dim=24), inputs_of(16)
    sampler, gradients, losses = Sampler(np.arange(scored), 200_000), [], []
    for sample in (None, sampler.draw()):
        torch.manual_seed(5)  # the same products are masked
        net.zero_grad(set_to_none=True)
        loss = net.loss(*inputs, sample)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append([w.grad.to_dense().clone() for w in net.parameters() if w.grad is not None])
    assert net.items.own.weight.grad.is_sparse
    assert losses[1] == pytest.approx(losses[0], abs=0.01)
    for full, sampled in zip(*gradients, strict=True):
        torch.testing.assert_close(sampled, full, rtol=0.05, atol=0.01)


def test_some_rows_of_the_table_are_those_of_the_whole() -> None:
    net, codes = network("gru"), torch.tensor([0, 1, 5, PRODUCTS - 1, PRODUCTS, CODES - 1])
    torch.testing.assert_close(net.items.rows(codes), net.items()[codes])


# ---- pages are scored too -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_lists_have_products_only(name: str) -> None:
    """The lists are the best codes, where frequent products without a share stand for the pages."""
    net, (_, *inputs) = network(name, scored=CODES).eval(), inputs_of(9)
    with torch.no_grad():
        table = net.items()
        best = net.logits(net.final(table, *inputs), table).topk(20, dim=1)
        shares, codes = TopK(net, 20)(*inputs)
    is_page = best.indices >= PRODUCTS
    assert is_page.any() and codes.max() < PRODUCTS and codes.min() >= 2
    assert (shares[is_page] == 0).all()
    assert codes[~is_page].tolist() == best.indices[~is_page].tolist()
    torch.testing.assert_close(shares[~is_page], F.softmax(best.values, dim=1)[~is_page])


def test_next_items_and_chosen_sessions_by_hand() -> None:
    items, kinds = np.array([20, 3, 0, 21, 4, 5, 1, 22]), np.array([1, 2, 6, 1, 2, 3, 2, 1])
    numbers = np.arange(8, dtype=np.float32)[:, None]
    arrays = EventArrays(items, kinds, numbers, np.array([0, 4, 5, 8]), np.array([7, 8, 9]))
    assert arrays.next_items().tolist() == [3, 21, 21, 0, 0, 22, 22, 0]
    some = arrays.chosen(np.array([True, False, True]))
    assert some.items.tolist() == [20, 3, 0, 21, 5, 1, 22] and some.kinds.tolist() == [1, 2, 6, 1, 3, 2, 1]
    assert some.starts.tolist() == [0, 4, 7] and some.session.tolist() == [7, 9]
    assert some.numbers[:, 0].tolist() == [0, 1, 2, 3, 5, 6, 7]


# ---- samples of sessions ------------------------------------------------------------------------------------------


def hash_of(number: int) -> int:
    """splitmix64's output function, in Python's integers."""
    word = number % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ (word >> shift)) * factor % 2**64
    return word ^ (word >> 31)


@pytest.mark.parametrize("limit", [0, 1, 40, 90, 1000])
def test_exactly_so_many_sessions_are_chosen(e: Engine, limit: int) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(-(2**63), 2**63, 90)
    pages, searches = rng.permutation(np.repeat(numbers[:80], 3)), numbers[70:]
    frames = [
        e.from_arrow(pa.table({"row": np.arange(len(part)), "session": part})) for part in (pages, searches)
    ]
    chosen = shared.below(numbers, shared.session_limit(e, *frames, limit))
    want = sorted(numbers.tolist(), key=hash_of)[: limit or None]
    assert sorted(numbers[chosen].tolist()) == sorted(want)


# ---- settings by network ------------------------------------------------------------------------------------------


def params_of(name: str = "sigir-ecom-task1", **changes: Any) -> Params:
    return Params.read(name, registry.task(name).params | changes)


def test_the_winners_have_24_networks_of_their_own_sizes() -> None:
    nets = {net.name: net for net in networks_of(params_of("sigir-ecom-winners"))}
    assert len(nets) == 24
    second = nets["xlnet-im-2-2"]
    assert (second.network, second.dim, second.item_dim, second.heads, second.batch) == (
        "masked",
        64,
        320,
        2,
        448,
    )
    assert nets["xlnet-im-1"].seed(3) == 3
    assert len({net.seed(0) for net in nets.values()}) == 24
    assert {net.network for net in nets.values()} == {"masked", "causal"}
    assert {net.item_dim for net in nets.values()} == {320, 384, 448}
    assert {net.seed(3) for net in networks_of(params_of())} == {3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": ["big"]}, "unknown network 'big'"),
        ({"networks": ["big"], "models": {"big": {"network": "gur"}}}, "unknown network 'gur'"),
        ({"models": {"gru": {"width": 3}}}, "unknown setting of network gru 'width'"),
        ({"models": {"gru": {"dim": "3"}}}, "network gru: parameter dim=3: Input should be a valid integer"),
        ({"models": {"causal": {"dim": 15}}}, "dim 15 is no multiple of heads 2"),
        ({"heads": 0}, "heads=0: Input should be greater than 0"),
        (
            {"models": {"gru": {"layers": 0}}},
            "network gru: parameter layers=0: Input should be greater than 0",
        ),
        ({"open_in_turn": True, "latency": 5}, "opened in turn have no latency"),
        ({"length": 3}, "length=3: Input should be greater than or equal to 4"),
        ({"sampled_softmax": 1}, "sampled_softmax 1 is no sample"),
        ({"bags": 0}, "bags=0: Input should be greater than 0"),
        ({"networks": ["gru", "gru"]}, "gru is named twice"),
        ({"sessions": -1}, "sessions=-1: Input should be greater than or equal to 0"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        networks_of(params_of(**changes))


def test_the_hint_for_a_network_names_its_entry() -> None:
    with pytest.raises(UsageError, match="network gru: parameter dropout=2") as caught:
        networks_of(params_of(models={"gru": {"dropout": 2.0}}))
    assert caught.value.hint == "see the entry of gru in `models`"


# ---- whole jobs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return task1.TASK.prepare(None, tmp_path_factory.mktemp("cache"), 0.001, 0, silent)


def test_everything_that_the_winners_do_and_one_network_at_a_time(
    data: Data, tmp_path: Path, make_context: Callable[..., RunContext], run: Any
) -> None:
    wide = {"network": "causal", "item_dim": 24, "tune_epochs": 1}
    every = SMALL | {"networks": ["masked", "wide"], "models": {"wide": wide}, "bags": 2}
    every |= {"scored": "all", "rare": 0, "sessions": 2000, "sampled_softmax": 64}
    results, submissions = [], []
    for in_turn in (False, True):
        out = tmp_path / str(in_turn)
        out.mkdir()
        job = make_context(
            "sigir-ecom-task1", data, tmp_path, out, "polars", "torch_eager", **every, open_in_turn=in_turn
        )
        if not in_turn:
            fitted = run(task1.TASK.fit(job))[0]
        results.append(run(task1.TASK.predict(job))[0])
        submissions.append((out / "submission.json").read_bytes())
    assert fitted.rows == 2000 and set(fitted.details["history"]) == {"masked", "masked-2", "wide", "wide-2"}
    assert submissions[0] == submissions[1] and results[0].scores == results[1].scores
    assert set(results[1].details["sessions"]) == {"counts", *fitted.details["history"]}
    weights = {name: torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("wide", "wide-2")}
    codes = fitted.details["products"] + 2 + fitted.details["pages"] + 2
    assert weights["wide"]["items.own.weight"].shape == (codes, 24) and len(weights["wide"]["bias"]) == codes
    assert not torch.equal(weights["wide"]["last.weight"], weights["wide-2"]["last.weight"])


@pytest.mark.parametrize(("first_norm", "length"), [(0.0, 0.05 * 4), (2.0, 2.0)])
def test_first_vectors_have_the_length_that_is_asked_for_or_are_random(
    first_norm: float,
    length: float,
    data: Data,
    tmp_path: Path,
    make_context: Callable[..., RunContext],
    run: Any,
) -> None:
    """Trained with a rate of nearly zero. Random ones have 16 numbers of deviation 0.05."""
    settings = SMALL | {"first_norm": first_norm, "lr": 1e-9, "sessions": 500}
    run(
        task1.TASK.fit(
            make_context("sigir-ecom-task1", data, tmp_path, tmp_path, "polars", "torch_eager", **settings)
        )
    )
    vectors = torch.load(tmp_path / "masked.pt", weights_only=True)["items.own.weight"]
    lengths = vectors.norm(dim=1)
    some = lengths > 1e-3  # items without neighbours have none
    assert float(lengths[some].mean()) == pytest.approx(length, rel=0.03)
    assert bool(some.all()) == (first_norm == 0)


def test_random_weights_need_no_training_and_say_so(
    data: Data, tmp_path: Path, make_context: Callable[..., RunContext], run: Any
) -> None:
    job = make_context(
        "sigir-ecom-task1", data, tmp_path, tmp_path, "polars", "torch_eager", **SMALL, weights="random"
    )
    fitted, _ = run(task1.TASK.fit(job))
    assert not list(tmp_path.glob("*.pt")) and fitted.scores == {}
    assert fitted.details["weights"] == "random" and fitted.notes == (NOTE,)
    first, _ = run(task1.TASK.predict(job))
    again, _ = run(task1.TASK.predict(job))
    assert first.scores == again.scores
    assert first.details["weights"] == "random" and first.notes == (NOTE,)
    sizes = Sizes(**json.loads((tmp_path / "sizes.json").read_text())["masked"])
    assert first.work.network_flops == work.network_flops("masked", sizes)


# ---- work ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item_dim", [16, 24])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_network_flops_by_hand(name: str, item_dim: int) -> None:
    """The numbers and the narrower vector of each event, the layers, the fusion, and the scores of the codes 2 and up."""
    s = network(name, item_dim=item_dim).sizes
    length = s.length + (name == "masked")
    narrow = 0 if s.item_dim == s.dim else s.item_dim * s.dim
    layer = 6 * s.dim * s.dim if name == "gru" else 12 * s.dim * s.dim + 2 * length * s.dim
    events = length * (s.numbers * s.dim + narrow + s.layers * layer)
    fuse = s.dim * s.item_dim + (s.dim + s.numbers) * s.item_dim
    assert work.network_flops(name, s) == 2 * (events + fuse + (s.scored - 2) * s.item_dim)


def test_the_work_of_purchases_by_hand(tmp_path: Path) -> None:
    """7 numbers, 9 codes, vectors of 4 and a hidden layer of 12: ten vectors have 45 pairs, and all 100 products are computed."""
    train = xgboost.DMatrix(np.arange(8.0)[:, None], np.arange(8) > 3)
    xgboost.train({"max_depth": 1, "min_child_weight": 0}, train, 2).save_model(tmp_path / "x.ubj")
    got = work.of_purchase(Dlrm(7, 9, 5, 30, 4, 12, 0.0), 7, 9, tmp_path / "x.ubj", 3)
    flops = 2 * (7 * 12 + 12 * 4 + 10 * 10 * 4 + (12 + 45) * 12 + 12)
    assert got == Work(2.0, 2.0, flops, 3)


def test_tree_nodes_are_the_depths_of_the_training_rows(tmp_path: Path) -> None:
    """With squared errors every row has the same second derivative, so the mean is over the training rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3)).astype("float32")
    train = xgboost.DMatrix(x, x[:, 0] * x[:, 1])
    booster = xgboost.train({"max_depth": 4, "min_child_weight": 20}, train, 7)
    booster.save_model(tmp_path / "trees.ubj")
    leaves, depth = booster.predict(train, pred_leaf=True).astype(int), []
    for tree, text in enumerate(booster.get_dump()):
        levels = {int(line.split(":")[0]): len(line) - len(line.lstrip("\t")) for line in text.splitlines()}
        depth.append([levels[leaf] for leaf in leaves[:, tree]])
    trees, nodes = tree_nodes(tmp_path / "trees.ubj")
    assert trees == 7 and nodes == pytest.approx(np.sum(depth, axis=0).mean(), rel=1e-5)
