"""The Booking pipeline: features against loops over trips on every engine, networks, ensemble, and the whole task."""

import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
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
from buzzer.errors import DataError, UsageError
from buzzer.models.api.context import Data, RunContext
from buzzer.models.booking import features
from buzzer.models.booking.ensemble import accuracy, best_four
from buzzer.models.booking.features import FIRST_CITY
from buzzer.models.booking.networks import NETWORKS, Sizes, TopK
from buzzer.models.booking.params import Params
from buzzer.models.booking.task import TASK, baseline, held_out, network_names
from buzzer.suite import registry

BACKENDS = ("torch_eager", "onnxruntime")  # those of the task
Run = Callable[..., Any]
MakeContext = Callable[..., RunContext]
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_backends_agree_with_the_module(name: str, backend: str) -> None:
    torch.manual_seed(0)
    network = TopK(NETWORKS[name](sizes()), 10).eval()
    names = ("cities", "countries", "context", "numbers")
    rows = {n: {key: x.numpy() for key, x in zip(names, inputs_of(n, n), strict=True)} for n in (2, 1, 7)}
    with infer.prepare(network, backend=backend, example=rows[2], outputs=("probability", "city")) as session:
        for batch in rows.values():
            with torch.inference_mode():
                p, _ = network(*(torch.from_numpy(x) for x in batch.values()))
                whole = network.network(*(torch.from_numpy(x) for x in batch.values())).numpy()
            got = session.run(batch)
            np.testing.assert_allclose(got["probability"], p.numpy(), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(
                np.take_along_axis(whole, got["city"], 1), p.numpy(), rtol=1e-4, atol=1e-6
            )


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


def test_held_out_trips_are_whole_and_about_the_share() -> None:
    trips = np.array([f"{i}_1" for i in range(4000) for _ in range(2)], dtype=object)
    held = held_out(trips, 0.1)
    assert (held[::2] == held[1::2]).all()
    assert held.mean() == pytest.approx(0.1, abs=0.02)


def params_with(networks: list[str]) -> Params:
    return Params.read("booking", registry.task("booking").params | {"networks": networks})


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown network 'mpl'") as error:
        network_names(params_with(["mpl"]))
    assert "did you mean mlp?" in error.value.hint
    with pytest.raises(UsageError, match="no network"):
        network_names(params_with([]))


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_engine_and_backend_scores_the_same(
    e: Engine,
    backend: str,
    data: Data,
    fitted: Path,
    reference: Any,
    tmp_path: Path,
    make_context: MakeContext,
    run: Run,
) -> None:
    result, phases = run(
        TASK.predict(make_context("booking", data, fitted, tmp_path, e.name, backend, **SMALL))
    )
    assert phases == ["load", "features", "transfer", "predict", "write", "score"]
    assert result.scores == pytest.approx(reference.scores, abs=0.006)  # one trip of 212 may tip over
    assert result.rows == data.rows["truth"]
    assert 0.5 < result.details["ceiling"] < 0.8
    submission = pd.read_csv(tmp_path / "submission.csv")
    assert list(submission.columns) == ["utrip_id", *(f"city_id_{i}" for i in range(1, 5))]
    assert (
        submission["utrip_id"].tolist() == pd.read_csv(data.folder / "ground_truth.csv")["utrip_id"].tolist()
    )


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
    assert (tmp_path / "stopped" / "mlp.checkpoint").is_file()
    assert not (tmp_path / "stopped" / "mlp.pt").is_file()
    result, _ = run(TASK.fit(stopped))
    assert [epoch["epoch"] for epoch in result.details["history"]["mlp"]] == [1, 2, 3]
    weights = [torch.load(tmp_path / name / "mlp.pt", weights_only=True) for name in ("whole", "stopped")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight)


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


@pytest.mark.slow
def test_every_network_beats_the_baseline_on_generated_data(
    tmp_path: Path, make_context: MakeContext, run: Run
) -> None:
    """At the default scale, in half the epochs, by far more than chance (two standard deviations are 0.026)."""
    data = TASK.prepare(None, tmp_path / "cache", 0.02, 0, silent)
    (tmp_path / "work").mkdir()
    done = make_context("booking", data, tmp_path / "work", tmp_path, "polars", "torch_eager", epochs=4)
    run(TASK.fit(done))
    scores = run(TASK.predict(done))[0].scores
    for name in NETWORKS:
        assert scores[f"accuracy@4_{name}"] > scores["accuracy@4_baseline"] + 0.05
    assert scores["accuracy@4"] > scores["accuracy@4_baseline"] + 0.08
