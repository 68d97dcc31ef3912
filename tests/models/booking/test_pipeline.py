"""The Booking pipeline: features against loops over trips on every engine, networks, ensemble, and the whole task."""

import json
import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buzzer.datasets.contract import silent
from buzzer.engine import infer
from buzzer.engine.frames import Engine
from buzzer.engine.infer import cost
from buzzer.errors import DataError, UsageError
from buzzer.models.api.context import Data, RunContext
from buzzer.models.booking import features, task
from buzzer.models.booking.bags import BagNetwork
from buzzer.models.booking.ensemble import PIECE, accuracy, best_four, blend
from buzzer.models.booking.features import FIRST_CITY, Inputs
from buzzer.models.booking.networks import NETWORKS
from buzzer.models.booking.params import WEIGHTS, Bag, Member, Params, bags_of
from buzzer.models.booking.sizes import Sizes
from buzzer.models.booking.task import TASK, TrainingStays, baseline, place_of
from buzzer.models.booking.work import work
from buzzer.models.weights import NOTE
from buzzer.suite import registry
from tests.models.pairs import each_once

BACKENDS = ("torch_eager", "onnxruntime")  # those of the task
Run = Callable[..., Any]
MakeContext = Callable[..., RunContext]
Imported = Callable[[RunContext], set[str]]
LAGS = 3
SMALL = {"epochs": 2, "hidden": 32, "dim": 16, "rare": 0, "candidates": 10, "batch": 64}

# Two trips of one user out of order, one of three stays by another; city 30 is seen once.
TRIPS = """user_id,checkin,checkout,city_id,device_class,affiliate_id,booker_country,hotel_country,utrip_id
1,2016-08-15,2016-08-17,10,desktop,5,Gondal,Elbonia,1_1
1,2016-08-13,2016-08-14,20,mobile,5,Gondal,Fook Island,1_1
1,2016-12-31,2017-01-02,20,mobile,6,Gondal,Fook Island,1_2
2,2016-02-29,2016-03-01,10,tablet,5,Bartovia,Elbonia,2_1
2,2016-03-05,2016-03-06,30,tablet,5,Bartovia,Elbonia,2_1
2,2016-03-01,2016-03-05,20,tablet,5,Bartovia,Fook Island,2_1
"""


def codes_of(stays: pd.DataFrame, column: str, rare: int) -> dict[Any, int]:
    """The codes that `categorify` promises: by falling count, then by value; 1 = rare."""
    counts = Counter(stays[column])
    order = sorted(counts, key=lambda value: (-counts[value], value))
    return {value: 1 if counts[value] <= rare else 2 + i for i, value in enumerate(order)}


def expected_inputs(stays: pd.DataFrame, backwards: bool) -> dict[str, list[list[float]]]:
    """The networks' inputs, a loop over trips."""
    cities, countries = codes_of(stays, "city_id", 1), codes_of(stays, "hotel_country", 0)
    devices, affiliates = codes_of(stays, "device_class", 0), codes_of(stays, "affiliate_id", 0)
    bookers = codes_of(stays, "booker_country", 0)
    out: dict[int, dict[str, list[float]]] = {}
    for _, trip in stays.groupby("utrip_id"):
        trip = trip.sort_values("checkin", ascending=not backwards)
        for at, (row, stay) in enumerate(trip.iterrows()):
            before = trip.iloc[:at][::-1]
            lags = [cities[c] + 1 for c in before["city_id"]][:LAGS]
            lag_countries = [countries[c] + 1 for c in before["hotel_country"]][:LAGS]
            first = [cities[trip.iloc[0]["city_id"]] + 1] if at else [0]
            first_country = [countries[trip.iloc[0]["hotel_country"]] + 1] if at else [0]
            days = 0
            if at:
                earlier, later = (stay, before.iloc[0]) if backwards else (before.iloc[0], stay)
                days = (later["checkin"] - earlier["checkout"]).days
            out[row] = {
                "cities": first + (lags + [0] * LAGS)[:LAGS],
                "countries": first_country + (lag_countries + [0] * LAGS)[:LAGS],
                "context": [
                    bookers[stay["booker_country"]],
                    devices[stay["device_class"]],
                    affiliates[stay["affiliate_id"]],
                    stay["checkin"].month,
                    stay["checkin"].weekday(),
                    stay["checkout"].weekday(),
                ],
                "numbers": [
                    math.log1p((stay["checkout"] - stay["checkin"]).days),
                    (len(trip) - 6) / 3,
                    math.log1p(at),
                    math.log1p(len(trip) - 1 - at),
                    min(max(days, -5), 30) / 5 if at else -1.0,
                    float(stay["checkin"].weekday() >= 5),
                    float(backwards),
                ],
                "target": [cities[stay["city_id"]] - 2],
            }
    return {name: [out[row][name] for row in sorted(out)] for name in out[0]}


@pytest.mark.parametrize("backwards", [False, True])
def test_features_are_what_a_loop_over_trips_gives(e: Engine, tmp_path: Path, backwards: bool) -> None:
    (tmp_path / "train_set.csv").write_text(TRIPS)
    t = features.read_stays(e, tmp_path / "train_set.csv")
    tables = features.fit_tables(e, t, t, rare=1)
    doubled = {name: e.with_columns(table, n=lambda c: c("n")) for name, table in tables.items()}
    got = features.to_inputs(
        e, features.trip_features(e, features.code(e, t, doubled), LAGS, backwards=backwards), LAGS
    )
    stays = pd.read_csv(tmp_path / "train_set.csv", parse_dates=["checkin", "checkout"])
    twice = pd.concat([stays, stays])  # the tables were fitted on train and test, here the same file
    want = expected_inputs(stays, backwards)
    assert codes_of(twice, "city_id", 1)[30] == 4  # seen once in each file: not rare
    fixed = {1: 4} if codes_of(stays, "city_id", 1)[30] == 1 else {}
    for name in ("countries", "context", "numbers"):
        np.testing.assert_allclose(getattr(got, name), np.array(want[name]), rtol=1e-6, err_msg=name)
    cities = [[fixed.get(c - 1, c - 1) + 1 if c else 0 for c in row] for row in want["cities"]]
    assert got.cities.tolist() == cities
    assert got.target.tolist() == [fixed.get(t[0] + 2, t[0] + 2) - 2 for t in want["target"]]


def test_rare_cities_are_no_class(e: Engine, tmp_path: Path) -> None:
    (tmp_path / "train_set.csv").write_text(TRIPS)
    t = features.read_stays(e, tmp_path / "train_set.csv")
    coded = features.code(e, t, features.fit_tables(e, t, t, rare=2))
    got = features.to_inputs(e, features.trip_features(e, coded, LAGS), LAGS)
    assert [int(x) for x in got.target] == [1, 0, 0, 1, -1, 0]  # 20 three times, 10 twice, 30 rare


def test_transitions_are_the_most_frequent_followers(e: Engine, tmp_path: Path) -> None:
    (tmp_path / "train_set.csv").write_text(TRIPS)
    t = features.read_stays(e, tmp_path / "train_set.csv")
    coded = features.code(e, t, features.fit_tables(e, t, t, rare=0))
    stays = e.collect(features.trip_features(e, coded, LAGS))
    followed = features.follow(e, stays, features.fit_transitions(e, stays))
    got = e.to_numpy(followed, ["city_id", "position", "next0", "next1"])
    codes = {20: FIRST_CITY, 10: FIRST_CITY + 1, 30: FIRST_CITY + 2}
    after = {20: [codes[10], codes[30]], 10: [codes[20], 0]}
    last = {(10, 1): 20, (20, 1): 10, (30, 2): 20}
    for city, position, *named in zip(*got.values(), strict=True):
        assert named == (after[last[city, position]] if position else [0, 0])


def sizes(**changes: Any) -> Sizes:
    plain = {
        "cities": 43,
        "countries": 9,
        "context": (5, 4, 6, 13, 7, 7),
        "lags": LAGS,
        "dim": 16,
        "hidden": 32,
    }
    return Sizes(**plain | {"layers": 2, "heads": 4, "dropout": 0.2, "candidates": 10} | changes)


def inputs_of(rows: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    codes = [rng.integers(0, high, (rows, width)) for high, width in ((43, LAGS + 1), (9, LAGS + 1), (4, 6))]
    numbers = rng.normal(size=(rows, len(features.NUMBERS))).astype("float32")
    return tuple(torch.from_numpy(array) for array in (*codes, numbers))


def known_first(rows: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """`inputs_of`, where each first city has a class."""
    inputs = inputs_of(rows, seed)
    inputs[0][:, 0].clamp_(min=FIRST_CITY)
    return inputs


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks_give_probabilities_and_learn(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](sizes())
    inputs, target = inputs_of(64), torch.from_numpy(np.random.default_rng(1).integers(0, 40, 64))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = network.loss(target, *inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    with torch.inference_mode():
        p = network.eval()(*inputs)
    assert p.shape == (64, 40)
    torch.testing.assert_close(p.sum(dim=1), torch.ones(64))


@pytest.mark.parametrize("name", ["encoder", "mlp"])
def test_the_loss_is_the_cross_entropy_of_the_probabilities(name: str) -> None:
    network = networks_of(name, 1)[0]
    inputs = inputs_of(64)
    first = inputs[0][:, 0] - FIRST_CITY
    target = torch.from_numpy(np.random.default_rng(1).integers(0, 40, 64))
    target[::2] = first[::2].clamp(min=0)  # half of the trips return, some of them to a city without a class
    with torch.inference_mode():
        p = network(*inputs).gather(1, target[:, None])
        torch.testing.assert_close(network.loss(target, *inputs), -p.log().mean())


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_network_learns_how_many_trips_return(name: str) -> None:
    """Two of five trips end in their first city, the others in any city."""
    torch.manual_seed(0)
    network, rng = NETWORKS[name](sizes(dropout=0.0)), np.random.default_rng(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    for step in range(300):
        inputs = known_first(128, step)
        target = torch.from_numpy(rng.integers(0, 40, 128))
        returning = torch.from_numpy(rng.random(128) < 0.4)
        target[returning] = inputs[0][returning, 0] - FIRST_CITY
        optimizer.zero_grad()
        network.loss(target, *inputs).backward()
        optimizer.step()
    inputs = known_first(512, 1000)
    with torch.inference_mode():
        p = network.eval()(*inputs).gather(1, inputs[0][:, :1] - FIRST_CITY)
    assert float(p.mean()) == pytest.approx(0.4 + 0.6 / 40, abs=0.05)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](sizes()).eval()
    inputs = inputs_of(8)
    with torch.inference_mode():
        torch.testing.assert_close(network(*(x[3:5] for x in inputs)), network(*inputs)[3:5])


def test_padding_is_hidden_from_the_encoder() -> None:
    torch.manual_seed(0)
    network = NETWORKS["encoder"](sizes()).eval()
    cities, countries, context, numbers = inputs_of(8)
    cities[:, 2:] = 0
    with torch.inference_mode():
        before = network(cities, countries, context, numbers)
        countries[:, 2:] = (countries[:, 2:] + 1) % 9
        torch.testing.assert_close(network(cities, countries, context, numbers), before)


def networks_of(name: str, folds: int) -> list[Any]:
    """Networks of one size, with statistics of batch norms as after training."""
    networks = []
    for fold in range(folds):
        torch.manual_seed(fold)
        network = NETWORKS[name](sizes())
        for weights in (network.trip.point.weight, network.trip.back.weight):
            torch.nn.init.normal_(weights)
        torch.nn.init.normal_(network.trip.bias, std=0.1)
        network(*inputs_of(64, fold))
        networks.append(network.eval())
    return networks


def mean_of_mlps(networks: list[Any], inputs: list[torch.Tensor]) -> Any:
    """The softmax of the mean logits, then mixed with the mean probability of a return: [rows, classes]."""
    cities = inputs[0].numpy()
    vectors = [network.vectors(*inputs) for network in networks]
    pairs = list(zip(networks, vectors, strict=True))
    logits = np.mean([network.trip.scores(x, inputs[0]).numpy() for network, x in pairs], axis=0)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    returns = np.mean([1 / (1 + np.exp(-network.trip.back(x).numpy()[:, 0])) for network, x in pairs], axis=0)
    returns *= cities[:, 0] >= FIRST_CITY
    p *= 1 - returns[:, None]
    p[np.arange(len(p)), np.maximum(cities[:, 0] - FIRST_CITY, 0)] += returns
    return p


@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_bag_gives_the_mean_of_its_networks(name: str, backend: str, folds: int) -> None:
    networks = networks_of(name, folds)
    names = ("cities", "countries", "context", "numbers")
    rows = {n: {key: x.numpy() for key, x in zip(names, inputs_of(n, n), strict=True)} for n in (2, 1, 7)}
    outputs = ("probability", "city")
    with infer.prepare(
        BagNetwork(networks, 10), backend=backend, example=rows[2], outputs=outputs
    ) as session:
        for batch in rows.values():
            inputs = [torch.from_numpy(x) for x in batch.values()]
            with torch.inference_mode():
                p = np.mean([network(*inputs).numpy() for network in networks], axis=0)
                if name == "mlp":
                    p = mean_of_mlps(networks, inputs)
            got = session.run(batch)
            np.testing.assert_allclose(got["probability"], -np.sort(-p, axis=1)[:, :10], rtol=1e-4, atol=1e-6)
            named = np.take_along_axis(p, got["city"], 1)
            np.testing.assert_allclose(named, got["probability"], rtol=1e-4, atol=1e-6)
            assert all(len(set(row)) == 10 for row in got["city"].tolist())


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_bag_is_certain_of_a_return(name: str) -> None:
    network = networks_of(name, 1)[0]
    torch.nn.init.constant_(network.trip.back.bias, 1000.0)
    inputs = known_first(8)
    with torch.inference_mode():
        values, cities = BagNetwork([network], 10)(*inputs)
    np.testing.assert_array_equal(cities[:, 0], inputs[0][:, 0] - FIRST_CITY)
    np.testing.assert_allclose(values[:, 0], 1.0, rtol=1e-5)
    assert float(values[:, 1:].max()) < 1e-5


def products(*widths: int) -> int:
    """FLOPs of dense layers of these widths one after another: a product and a sum for each weight."""
    return sum(2 * a * b for a, b in pairwise(widths))


def flops_by_hand(name: str, s: Sizes) -> int:
    """The FLOPs of a network for one trip: its own layers, the scores of all classes, the bonus of each city of the trip, and the
    probability of a return."""
    head = products(s.dim, s.classes) + products(s.dim, s.lags + 1) + products(s.dim, 1)
    if name == "mlp":
        return products((2 * s.lags + 1) * s.dim, s.hidden, s.hidden, s.dim) + head
    if name == "gru":  # three gates in each step, the dense layers, the first stage, and the two heads
        steps = s.lags * (products(2 * s.dim, 3 * s.dim) + products(s.dim, 3 * s.dim))
        again = 2 * (products(s.hidden, s.dim) + products(s.dim, min(s.candidates, s.classes)))
        return steps + products(2 * s.dim, s.hidden, s.hidden, s.dim) + again + head
    # In each layer four projections, the scores and sums of attention, and the feed-forward part.
    length = s.lags + 1
    layer = products(s.dim, 3 * s.dim) + products(s.dim, s.dim, 4 * s.dim, s.dim)
    layer += products(s.dim, length, s.dim)
    return s.layers * length * layer + products(s.dim, s.dim) + head


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_work_by_hand(name: str) -> None:
    got = work([Bag(name, 0, 2), Bag(name, 1, 2)], {name: sizes()}, 7)
    assert got.network_flops == 4 * flops_by_hand(name, sizes())
    assert (got.trees, got.tree_nodes, got.table_rows) == (0, 0, 7)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks_run_in_bf16(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](sizes()).eval()
    names = ("cities", "countries", "context", "numbers")
    batch = {key: x.numpy() for key, x in zip(names, inputs_of(8), strict=True)}
    with infer.prepare(network, backend="torch_eager", example=batch, precision="bf16") as session:
        got = session.run(batch)["output"]
    with torch.inference_mode():
        want = network(*(torch.from_numpy(x) for x in batch.values())).numpy()
    np.testing.assert_allclose(got, want, atol=0.02)
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.99


@settings(max_examples=60)
@given(data=st.data())
def test_best_four_adds_weighted_probabilities_up(data: st.DataObject) -> None:
    networks, rows, n = (
        data.draw(st.integers(1, 3)),
        data.draw(st.integers(1, 4)),
        data.draw(st.integers(4, 6)),
    )
    classes = [
        np.array([data.draw(st.permutations(range(9)))[:n] for _ in range(rows)]) for _ in range(networks)
    ]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = [rng.random((rows, n)).astype("float32") for _ in range(networks)]
    weights = rng.random(networks).tolist()
    got = best_four(values, classes, weights)
    for row in range(rows):
        total: dict[int, float] = defaultdict(float)
        for p, c, w in zip(values, classes, weights, strict=True):
            for value, city in zip(p[row], c[row], strict=True):
                total[int(city)] += float(value) * w
        assert got[row].tolist() == sorted(total, key=lambda city: (-total[city], city))[:4]


def test_accuracy_and_baseline_by_hand() -> None:
    facts = {f"next{i}": np.array([[7, 0], [3, 0], [0, 0], [0, 0]])[i] for i in range(4)}
    got = baseline(facts)
    assert got.tolist() == [
        [4, 0, 1, 2],
        [0, 1, 2, 3],
    ]  # codes 7 and 3 are classes 4 and 0; then the most frequent
    assert accuracy(np.array([2, 9]), got) == 0.5


def test_a_blend_weighs_networks_not_bags() -> None:
    """More rows than one piece, against a sum in a table of all classes."""
    rng, rows, classes = np.random.default_rng(0), PIECE + 3, 12
    bags = [Bag("mlp", 0, 1), Bag("mlp", 1, 1), Bag("gru", 0, 1)]
    city = {bag: np.argsort(rng.random((rows, classes)), axis=1)[:, :6].astype(np.int32) for bag in bags}
    value = {bag: rng.random((rows, 6)).astype(np.float32) for bag in bags}
    got = blend({bag: (value[bag], city[bag]) for bag in bags})
    for name, share in {
        "mlp": {bags[0]: 1, bags[1]: 1},
        "ensemble": {bags[0]: WEIGHTS["mlp"] / 2, bags[1]: WEIGHTS["mlp"] / 2, bags[2]: WEIGHTS["gru"]},
    }.items():
        total = np.zeros((rows, classes))
        for bag, weight in share.items():
            total[np.arange(rows)[:, None], city[bag]] += weight * value[bag].astype(np.float64)
        np.testing.assert_array_equal(got[name], np.argsort(-total, axis=1, kind="stable")[:, :4])


def test_held_out_trips_are_whole_and_about_the_share() -> None:
    trips = np.array([f"{i}_1" for i in range(4000) for _ in range(2)], dtype=object)
    place = place_of(trips)
    assert (place[::2] == place[1::2]).all()
    assert (place < 0.1).mean() == pytest.approx(0.1, abs=0.02)


def some_inputs(rows: int, targets: list[int]) -> Inputs:
    cities, countries, context, numbers = (x.numpy() for x in inputs_of(rows))
    return Inputs(cities, countries, context, numbers, np.array(targets))


def test_folds_hold_out_each_trip_once() -> None:
    """Trips of two stays; the target of a stay is its number."""
    place = np.repeat([0.05, 0.3, 0.55, 0.8, 0.95], 2)
    position = np.tile([0, 1], 5)
    parts = [some_inputs(10, [*range(10)]), some_inputs(10, [*range(10, 20)]), some_inputs(2, [20, 21])]
    known = np.array([False, True])
    stays = TrainingStays(parts, (position > 0, position > 0, known), position == 1, place)
    held = [[1], [3], [5], [7, 9]]
    for fold, last in enumerate(held):
        learn, valid = stays.split(stays.fold(fold, 4))
        assert valid.target.tolist() == last
        others = [stay for stay in (1, 3, 5, 7, 9) if stay not in last]
        assert learn.target.tolist() == [*others, *(stay + 10 for stay in others), 21]


def test_cities_beyond_a_networks_table_count_as_rare() -> None:
    inputs = some_inputs(3, [0, 7, -1])
    cities = np.array([[0, 2, 3, 9], [10, 11, 40, 2], [1, 0, 0, 0]])
    inputs = Inputs(cities, inputs.countries, inputs.context, inputs.numbers, inputs.target)
    got = inputs.limited(10)  # seven classes
    assert got.cities.tolist() == [[0, 2, 3, 9], [2, 2, 2, 2], [1, 0, 0, 0]]
    assert got.target.tolist() == [0, -1, -1]
    assert inputs.limited(41) is inputs


def params_with(**changes: Any) -> Params:
    return Params.read("booking", registry.task("booking").params | changes)


def test_parameters_by_network() -> None:
    params = params_with(
        dim={"mlp": 64, "gru": 400, "encoder": 32}, folds=2, bags={"mlp": 2, "gru": 1, "encoder": 1}
    )
    assert [params.of(name).dim for name in ("mlp", "gru", "encoder")] == [64, 400, 32]
    assert params.of("gru").hidden == 256
    assert [bag.name for bag in bags_of(params)] == ["mlp", "mlp-bag1", "gru", "encoder"]
    models = [member for bag in bags_of(params) for member in bag.members]
    assert [member.name for member in models[:4]] == ["mlp", "mlp-1", "mlp-2", "mlp-3"]
    assert len({member.seed(0) for member in models[:4]}) == 4
    assert Member("mlp", 0, 0, 1).seed(5) == 5  # a single model has the seed of the run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": ["mpl"]}, "unknown network 'mpl'"),
        ({"networks": []}, "no network"),
        ({"dim": {"mlp": 8, "gru": 8}}, "dim has no value for network encoder"),
        ({"dim": {"mpl": 8}}, "unknown network in dim 'mpl'"),
        ({"dim": "64"}, "parameter dim=64"),
        ({"dim": {"mlp": 8.5}}, r"parameter dim=\{'mlp': 8.5\}"),
        ({"weights": "zero"}, "weights=zero"),
        ({"folds": 0}, "folds=0: Input should be greater than 0"),
        ({"classes": -1}, "classes=-1: Input should be greater than or equal to 0"),
        ({"heads": 5}, "dim=48 of the encoder is not a multiple of heads=5"),
    ],
)
def test_wrong_parameters_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bags_of(params_with(**changes))


def test_the_winners_have_a_hundred_models() -> None:
    params = Params.read("booking-winners", registry.task("booking-winners").params)
    models = Counter(member.network for bag in bags_of(params) for member in bag.members)
    assert models == {"mlp": 40, "gru": 35, "encoder": 25}


# ---- the whole task -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return TASK.prepare(None, tmp_path_factory.mktemp("cache"), 0.003, 0, silent)


@pytest.fixture(scope="module")
def fitted(data: Data, tmp_path_factory: pytest.TempPathFactory, make_context: MakeContext, run: Run) -> Path:
    work = tmp_path_factory.mktemp("work")
    result, phases = run(
        TASK.fit(make_context("booking", data, work, work, "polars", "torch_eager", **SMALL))
    )
    assert phases == ["load", "features", "transfer", "fit", "write"]
    assert set(result.scores) == {f"valid_accuracy@4_{name}" for name in NETWORKS}
    assert not list(work.glob("*.checkpoint"))
    return work


@pytest.fixture(scope="module")
def reference(
    data: Data, fitted: Path, tmp_path_factory: pytest.TempPathFactory, make_context: MakeContext, run: Run
) -> Any:
    out = tmp_path_factory.mktemp("reference")
    return run(TASK.predict(make_context("booking", data, fitted, out, "pandas", "torch_eager", **SMALL)))[0]


@pytest.mark.parametrize(("e", "backend"), each_once(BACKENDS), indirect=["e"])
def test_every_engine_and_backend_scores_the_same(
    e: Engine,
    backend: str,
    data: Data,
    fitted: Path,
    reference: Any,
    tmp_path: Path,
    make_context: MakeContext,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost, "counted_run", None)  # `fit` has counted the work
    result, phases = run(
        TASK.predict(make_context("booking", data, fitted, tmp_path, e.name, backend, **SMALL))
    )
    assert result.work == reference.work
    assert phases == ["load", "features", "transfer", "predict", "write", "score"]
    assert result.scores == pytest.approx(reference.scores, abs=0.006)  # one trip of 212 may tip over
    assert result.rows == data.rows["truth"]
    assert 0.5 < result.details["ceiling"] < 0.8
    submission = pd.read_csv(tmp_path / "submission.csv")
    assert list(submission.columns) == ["utrip_id", *(f"city_id_{i}" for i in range(1, 5))]
    assert (
        submission["utrip_id"].tolist() == pd.read_csv(data.folder / "ground_truth.csv")["utrip_id"].tolist()
    )


def test_a_prediction_of_graphs_imports_only_what_it_needs(
    data: Data, fitted: Path, tmp_path: Path, make_context: MakeContext, imported: Imported
) -> None:
    context = make_context("booking", data, fitted, tmp_path, "polars", "onnxruntime", **SMALL)
    assert imported(context) == {"onnxruntime"}
    assert (tmp_path / "submission.csv").is_file()


def test_without_truth_there_is_a_submission_and_no_score(
    data: Data, fitted: Path, tmp_path: Path, make_context: MakeContext, run: Run
) -> None:
    shutil.copytree(data.folder, tmp_path / "data")
    (tmp_path / "data" / "ground_truth.csv").unlink()
    blind = TASK.prepare(tmp_path / "data", tmp_path, 1.0, 0, silent)
    assert "no ground_truth.csv: no score" in blind.notes
    out = make_context("booking", blind, fitted, tmp_path, "polars", "torch_eager", **SMALL)
    assert run(TASK.predict(out))[0].scores == {}
    assert (tmp_path / "submission.csv").is_file()


def test_a_stopped_fit_resumes_after_its_last_epoch(
    data: Data, tmp_path: Path, make_context: MakeContext, run: Run
) -> None:
    """Its weights are the same as without the stop."""
    settings = SMALL | {"networks": ["mlp"], "epochs": 3, "patience": 3}
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    run(
        TASK.fit(
            make_context("booking", data, tmp_path / "whole", tmp_path, "polars", "torch_eager", **settings)
        )
    )
    stopped = make_context(
        "booking", data, tmp_path / "stopped", tmp_path, "polars", "torch_eager", **settings
    )
    steps = TASK.fit(stopped)
    while next(steps) != "fit":
        pass
    next(steps)  # one epoch is done and saved
    steps.close()
    assert (tmp_path / "stopped" / "mlp.checkpoint").is_dir()
    assert not (tmp_path / "stopped" / "mlp.pt").is_file()
    result, _ = run(TASK.fit(stopped))
    assert [epoch["epoch"] for epoch in result.details["history"]["mlp"]] == [1, 2, 3]
    weights = [torch.load(tmp_path / name / "mlp.pt", weights_only=True) for name in ("whole", "stopped")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight)


@pytest.mark.parametrize("file", ["mlp.trained/model.pt", "mlp.trained/progress.json", "mlp.pt"])
def test_a_damaged_file_of_a_stopped_fit_is_made_again(
    file: str, data: Data, tmp_path: Path, make_context: MakeContext, run: Run
) -> None:
    """A model that was trained is trained again, with the same weights."""
    settings = SMALL | {"networks": ["mlp", "gru"], "epochs": 1}
    context = make_context("booking", data, tmp_path, tmp_path, "polars", "torch_eager", **settings)
    steps = TASK.fit(context)
    while not (tmp_path / "gru.checkpoint").exists():
        next(steps)
    steps.close()
    expected = (tmp_path / "mlp.pt").read_bytes()
    content = bytearray((tmp_path / file).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / file).write_bytes(content)
    result, _ = run(TASK.fit(context))
    assert (tmp_path / "mlp.pt").read_bytes() == expected
    assert [epoch["epoch"] for epoch in result.details["history"]["mlp"]] == [1]
    assert not [*tmp_path.glob("*.checkpoint"), *tmp_path.glob("*.trained")]


def test_too_little_data_is_refused(tmp_path: Path, make_context: MakeContext, run: Run) -> None:
    data = TASK.prepare(None, tmp_path / "cache", 0.0003, 0, silent)
    (tmp_path / "work").mkdir()
    settings = SMALL | {"rare": 10**6}
    with pytest.raises(DataError, match="too few to train on"):
        run(
            TASK.fit(
                make_context(
                    "booking", data, tmp_path / "work", tmp_path, "polars", "torch_eager", **settings
                )
            )
        )


TINY = {
    "dim": {"mlp": 8, "gru": 16, "encoder": 8},
    "hidden": 16,
    "epochs": 1,
    "batch": 256,
    "folds": 2,
    "bags": {"mlp": 2, "gru": 1, "encoder": 1},
    "classes": {"mlp": 50, "gru": 300, "encoder": 100},
    "candidates": 10,
}


def rows_of_tables(work: Path) -> int:
    return sum(len(pd.read_parquet(file)) for file in work.glob("*.parquet"))


@pytest.mark.parametrize("weights", ["trained", "random"])
def test_bags_of_folds_run_as_one_task(
    weights: str, data: Data, tmp_path: Path, make_context: MakeContext, run: Run
) -> None:
    settings = TINY | {"weights": weights}
    results = {}
    for backend in BACKENDS:
        context = make_context("booking-winners", data, tmp_path, tmp_path, "polars", backend, **settings)
        if not results:
            fitted, _ = run(TASK.fit(context))
        results[backend] = run(TASK.predict(context))[0]
    models = {"mlp": 4, "gru": 2, "encoder": 2}
    names = [name if not i else f"{name}-{i}" for name, count in models.items() for i in range(count)]
    trained = weights == "trained"
    assert sorted(file.stem for file in tmp_path.glob("*.pt")) == (sorted(names) if trained else [])
    assert sorted(fitted.details["history"]) == (sorted(names) if trained else [])
    assert not [*tmp_path.glob("*.checkpoint"), *tmp_path.glob("*.trained")]
    saved = json.loads((tmp_path / "sizes.json").read_text())
    cities = len(np.load(tmp_path / "classes.npy"))
    assert 100 < cities < 300
    assert saved["mlp"]["cities"] == 50 + FIRST_CITY
    assert (
        saved["gru"]["cities"] == (cities if trained else 300) + FIRST_CITY
    )  # random: the size that was asked for
    for result in (fitted, *results.values()):
        assert result.details["weights"] == weights
        assert result.details["models"] == models
        assert result.notes == (() if trained else (NOTE,))
        assert result.work.table_rows == rows_of_tables(tmp_path)
        assert result.work.network_flops == fitted.work.network_flops > 0
    for result in results.values():
        assert result.details["epochs"] == (dict.fromkeys(names, 1) if trained else {})
    scores = [result.scores for result in results.values()]
    assert set(scores[0]) == {"accuracy@4", *(f"accuracy@4_{name}" for name in (*models, "baseline"))}
    assert scores[0] == pytest.approx(scores[1], abs=0.006)
    assert list(results["torch_eager"].details["sessions"]) == ["mlp", "mlp-bag1", "gru", "encoder"]


def test_random_weights_are_those_of_the_seed(
    data: Data, tmp_path: Path, make_context: MakeContext, run: Run
) -> None:
    settings = TINY | {"weights": "random"}
    submissions = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        context = make_context(
            "booking-winners", data, tmp_path / name, tmp_path / name, "polars", "torch_eager", **settings
        )
        context = replace(context, seed=seed)
        run(TASK.fit(context))
        run(TASK.predict(context))
        submissions.append((tmp_path / name / "submission.csv").read_text())
    assert submissions[0] == submissions[1] != submissions[2]


def test_finished_models_are_not_trained_again(
    data: Data, tmp_path: Path, make_context: MakeContext, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TINY | {"networks": ["mlp"], "bags": 1}
    context = make_context("booking-winners", data, tmp_path, tmp_path, "polars", "torch_eager", **settings)
    steps = TASK.fit(context)
    while not (tmp_path / "mlp.pt").exists():
        next(steps)
    steps.close()
    again, real = list[str](), task.train_member
    monkeypatch.setattr(task, "train_member", lambda c, m, *rest: again.append(m.name) or real(c, m, *rest))
    result, _ = run(TASK.fit(context))
    assert again == ["mlp-1"]
    assert sorted(result.details["history"]) == ["mlp", "mlp-1"]
    assert result.scores["valid_accuracy@4_mlp"] == pytest.approx(
        np.mean([model[0]["accuracy@4"] for model in result.details["history"].values()])
    )


@pytest.mark.slow
def test_every_network_beats_the_baseline_on_generated_data(
    tmp_path: Path, make_context: MakeContext, run: Run
) -> None:
    """At half the default scale, in half the epochs."""
    data = TASK.prepare(None, tmp_path / "cache", 0.01, 0, silent)
    (tmp_path / "work").mkdir()
    done = make_context("booking", data, tmp_path / "work", tmp_path, "polars", "torch_eager", epochs=4)
    run(TASK.fit(done))
    scores = run(TASK.predict(done))[0].scores
    for name in NETWORKS:
        assert scores[f"accuracy@4_{name}"] > scores["accuracy@4_baseline"] + 0.04  # two standard deviations
    assert scores["accuracy@4"] > scores["accuracy@4_baseline"] + 0.08
