"""Reader, generator and metric of the Booking.com data set; the official files too if BUZZER_DATA has them."""

import gzip
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dataset_helpers import Damage, cut, edit_lines, set_field, write
from hypothesis import given, settings
from hypothesis import strategies as st

from buzzer.datasets import booking
from buzzer.datasets.booking import generator
from buzzer.datasets.booking.world import THEMES, World
from buzzer.datasets.contract import silent
from buzzer.errors import DataError

FILES = ("train_set.csv", "test_set.csv", "ground_truth.csv")


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("booking") / "data"
    booking.generate(out, 0.01, 3, silent)
    return out


@pytest.fixture
def copy(generated: Path, tmp_path: Path) -> Path:
    """A copy of the generated files, to be changed."""
    return Path(shutil.copytree(generated, tmp_path / "copy"))


# ---- generator ---------------------------------------------------------------------------------------------------


def test_same_seed_same_files(generated: Path, tmp_path: Path) -> None:
    booking.generate(tmp_path / "same", 0.01, 3, silent)
    booking.generate(tmp_path / "other", 0.01, 4, silent)
    for name in FILES:
        assert (tmp_path / "same" / name).read_bytes() == (generated / name).read_bytes()
    assert (tmp_path / "other" / FILES[0]).read_bytes() != (generated / FILES[0]).read_bytes()


def test_files_have_the_official_form(generated: Path) -> None:
    train, test, truth = (pd.read_csv(generated / name) for name in FILES)
    stays = ["user_id", "checkin", "checkout", "city_id", "device_class", "affiliate_id", "booker_country"]
    assert list(train.columns) == [*stays, "hotel_country", "utrip_id"]
    assert list(truth.columns) == ["utrip_id", "city_id", "hotel_country"]
    assert set(test.columns) == set(train.columns)
    assert not train.isna().any().any()
    assert set(train["device_class"]) == {"desktop", "mobile", "tablet"}
    assert (
        train["utrip_id"] == train["user_id"].astype(str) + "_" + train["utrip_id"].str.split("_").str[1]
    ).all()
    hidden = test[test["city_id"] == 0]
    assert hidden["hotel_country"].isna().all()
    assert hidden["utrip_id"].is_unique
    assert set(hidden["utrip_id"]) == set(truth["utrip_id"])
    assert hidden.index.equals(test.groupby("utrip_id", sort=False).tail(1).index)
    assert train.groupby("city_id")["hotel_country"].nunique().max() == 1
    assert not set(train["utrip_id"]) & set(test["utrip_id"])


def test_lengths_are_the_official_counts() -> None:
    is_test, lengths = generator.plan(1.0, 0)
    counts = np.bincount(lengths[~is_test], minlength=49)
    assert counts[1:29].tolist() == list(generator.LENGTHS[:28])
    assert counts.sum() == 217_686
    assert (counts * np.arange(len(counts))).sum() == 1_166_835
    assert is_test.sum() == 70_662


@pytest.mark.slow
def test_calibration_at_the_official_size(tmp_path: Path) -> None:
    """Published scores: the four most frequent cities .052, counts of last city to next city .436; see the card."""
    booking.generate(tmp_path / "one", 1.0, 0, silent)
    train, test, truth = (pd.read_csv(tmp_path / "one" / name) for name in FILES)
    popular = booking.score(tmp_path / "one" / "submission.csv", tmp_path / "one" / "ground_truth.csv")
    assert popular["accuracy@4"] == pytest.approx(0.053, abs=0.004)
    following = train.assign(next=train.groupby("utrip_id")["city_id"].shift(-1)).dropna()
    counts = following.groupby(["city_id", "next"]).size().reset_index(name="n")
    top = counts.sort_values("n", ascending=False).groupby("city_id").head(4)
    last = test[test["city_id"] != 0].groupby("utrip_id")["city_id"].last().rename("last")
    asked = truth.join(last, on="utrip_id").merge(
        top, left_on=["last", "city_id"], right_on=["city_id", "next"], how="inner"
    )
    assert len(asked) / len(truth) == pytest.approx(0.436, abs=0.01)
    nights = (pd.to_datetime(train["checkout"]) - pd.to_datetime(train["checkin"])).dt.days
    assert nights.mean() == pytest.approx(1.74, abs=0.1)
    shared = test[test["user_id"].isin(train["user_id"])]["utrip_id"].nunique() / len(truth)
    assert shared == pytest.approx(0.15, abs=0.01)


def test_the_expected_ceiling_agrees_with_the_realised_one(tmp_path: Path) -> None:
    """The expected probability of the best four cities and the share of hits differ only by chance."""
    booking.generate(tmp_path / "data", 0.2, 0, silent)
    ceiling = json.loads((tmp_path / "data" / "generator.json").read_text())["ceiling"]
    deviation = (0.25 / ceiling["trips"]) ** 0.5
    assert abs(ceiling["accuracy@4"] - ceiling["realised"]) < 4 * deviation
    assert 0.55 < ceiling["accuracy@4"] < 0.75


def test_the_ceiling_of_a_trip_by_brute_force() -> None:
    """The distribution of the last city, computed independently over all cities and themes."""
    world = World(0.0005, 0)
    cities, n = np.arange(world.cities), 6
    rng = np.random.default_rng(1)
    path = np.array([[0, 1, 2], [3, 4, 3], [5, 0, 7], [2, 9, 4], [8, 6, 1], [7, 7, 3]])
    assert path.shape[0] == n
    nights = rng.integers(1, 5, n)
    log_theme = rng.normal(size=(n, THEMES))
    routes = generator.Routes(world, np.pad(path, ((0, 0), (0, 1))), 3, np.ones(n, dtype=bool))
    mass, hit = routes.best(np.arange(n), log_theme, nights, path[:, 0])
    for i in range(n):
        here, first = path[i, -1], path[i, 0]
        total = np.zeros(world.cities)
        for z in range(THEMES):
            p = np.zeros(world.cities)
            for to, w in zip(world.route_to[here], world.route_weight[here], strict=True):
                if to not in path[i]:
                    p[to] += w * world.hub[to] * world.liking[z, world.kind[to]]
            at_home = world.popularity * (world.country == world.country[here])
            explore = at_home / at_home.sum()
            p = (1 - generator.EXPLORE) * p / p.sum() + generator.EXPLORE * explore if p.sum() else explore
            if first != here:
                p = (1 - generator.RETURN) * p + generator.RETURN * (cities == first)
            total += np.exp(log_theme[i, z]) * p
        total *= world.nights_share[world.kind, nights[i]]
        best = np.argsort(-total)[:4]
        assert mass[i] == pytest.approx(total[best].sum() / total.sum(), rel=1e-9)
        assert hit[i] == float(first in best)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small world and small chunks, so that it takes little time."""
    world = World(0.001, 0)
    monkeypatch.setattr(generator, "CHUNK", 128)
    monkeypatch.setattr(generator, "World", lambda scale, seed: world)

    def peak(scale: float) -> int:
        tracemalloc.start()
        booking.generate(tmp_path / str(scale), scale, 0, silent)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(0.001)  # imports and caches of the first call
    assert peak(0.02) < 1.5 * peak(0.005)


def test_a_failed_write_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generator, "append_csv", full)
    with pytest.raises(DataError, match="No space left") as error:
        booking.generate(tmp_path / "data", 0.001, 0, silent)
    assert "free some space" in error.value.hint
    assert list(tmp_path.iterdir()) == []


# ---- reader ------------------------------------------------------------------------------------------------------


def test_good_files_pass(generated: Path) -> None:
    files = booking.check(generated, silent)
    assert files.rows["truth"] == len(pd.read_csv(generated / "ground_truth.csv"))
    assert files.rows["train"] == len(pd.read_csv(generated / "train_set.csv"))
    assert files.fingerprint == booking.check(generated, silent).fingerprint


def test_the_last_line_may_lack_its_end(copy: Path) -> None:
    rows = booking.check(copy, silent).rows
    for name in FILES:
        cut(name, 1)(copy)
    assert booking.check(copy, silent).rows == rows


def test_original_zip_and_gzip_pass(generated: Path, tmp_path: Path) -> None:
    pd.read_csv(generated / "train_set.csv").to_csv(tmp_path / "booking_train_set.csv.gz")
    test = pd.read_csv(generated / "test_set.csv")
    test.assign(row_num=1, total_rows=4).to_csv(tmp_path / "booking_test_set.csv")
    files = booking.check(tmp_path, silent)
    assert files.rows == {"train": booking.check(generated, silent).rows["train"], "test": len(test)}


def test_convert_writes_the_same_rows(generated: Path, tmp_path: Path) -> None:
    booking.convert(generated, tmp_path / "parquet", silent)
    got = pd.read_parquet(tmp_path / "parquet" / "test.parquet")
    expected = pd.read_csv(generated / "test_set.csv", parse_dates=["checkin", "checkout"])
    assert got["city_id"].tolist() == expected["city_id"].tolist()
    assert (pd.to_datetime(got["checkin"]) == expected["checkin"]).all()


def cut_gzip(folder: Path) -> None:
    data = gzip.compress((folder / "train_set.csv").read_bytes())
    (folder / "train_set.csv.gz").write_bytes(data[: len(data) // 2])
    (folder / "train_set.csv").unlink()


def unlink(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def drop_last_stay(lines: list[str]) -> None:
    del lines[-1]


def repeat_line(lines: list[str]) -> None:
    lines.insert(9, lines[6])


def rename_column(lines: list[str]) -> None:
    lines[0] = lines[0].replace("checkin", "check_in")


def add_column(lines: list[str]) -> None:
    lines[:] = [line.rstrip("\n") + ",price\n" for line in lines]


BAD = {
    "missing file": (unlink("train_set.csv"), "no train_set.csv or booking_train_set.csv"),
    "empty file": (write("test_set.csv", ""), "the file is empty"),
    "header only": (
        edit_lines("train_set.csv", lambda lines: lines.__delitem__(slice(1, None))),
        "no rows",
    ),
    "wrong header": (edit_lines("train_set.csv", rename_column), "no column checkin in the header"),
    "unknown column": (edit_lines("train_set.csv", add_column), "unknown column 'price'"),
    "wrong dtype": (
        set_field("train_set.csv", 5, 3, "Paris"),
        "line 5, column city_id: 'Paris' is not a whole number",
    ),
    "float for int": (
        set_field("train_set.csv", 5, 0, "12.0"),
        "line 5, column user_id: '12.0' is not a whole number",
    ),
    "mock dates": (
        set_field("train_set.csv", 7, 1, "13/04/2016"),
        "line 7, column checkin: '13/04/2016' is not a date",
    ),
    "impossible date": (
        set_field("train_set.csv", 7, 1, "2016-02-30"),
        "line 7, column checkin: '2016-02-30'",
    ),
    "missing value": (set_field("train_set.csv", 4, 4, ""), "line 4, column device_class: '' is not a value"),
    "dates backwards": (
        set_field("train_set.csv", 6, 2, "1999-01-01"),
        "line 6, column checkout: 1999-01-01 is before",
    ),
    "hidden city in train": (
        set_field("train_set.csv", 6, 3, "0"),
        "line 6, column city_id: 0 is not a valid city",
    ),
    "cut in mid-line": (cut("train_set.csv", 20), "train_set.csv, line "),
    "cut between lines": (edit_lines("test_set.csv", drop_last_stay), "0 hidden cities, not one"),
    "cut gzip": (cut_gzip, "the gzip file is truncated or damaged"),
    "duplicate row": (edit_lines("train_set.csv", repeat_line), "line 10: the same row as line 7"),
    "city shown": (set_field("test_set.csv", 2, 7, "0"), "line 2, column hotel_country"),
    "truth of other trips": (set_field("ground_truth.csv", 2, 0, "1_1"), "2 trips are not in both"),
    "truth twice": (edit_lines("ground_truth.csv", repeat_line), "occurs in it more than once"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(copy: Path, case: str) -> None:
    damage, message = BAD[case]
    damage(copy)
    with pytest.raises(DataError) as error:
        booking.check(copy, silent)
    assert message in error.value.message


def test_unknown_cities_of_the_test_are_counted(copy: Path) -> None:
    before = booking.check(copy, silent).facts["test_cities_unknown_to_train"]
    set_field("test_set.csv", 2, 7, "999999")(copy)
    assert booking.check(copy, silent).facts["test_cities_unknown_to_train"] == before + 1


# ---- metric ------------------------------------------------------------------------------------------------------


def files_of(tmp_path: Path, answers: dict[str, list[int]], truth: dict[str, int]) -> tuple[Path, Path]:
    booking.write_submission(tmp_path / "s.csv", list(answers), np.array(list(answers.values())))
    lines = [f"{trip},{city},Gondal" for trip, city in truth.items()]
    (tmp_path / "t.csv").write_text("utrip_id,city_id,hotel_country\n" + "\n".join(lines) + "\n")
    return tmp_path / "s.csv", tmp_path / "t.csv"


def test_accuracy_by_hand(tmp_path: Path) -> None:
    answers = {"1_1": [7, 8, 9, 10], "2_1": [1, 1, 1, 2], "3_1": [4, 5, 6, 7], "4_1": [9, 9, 9, 9]}
    truth = {"4_1": 8, "2_1": 2, "1_1": 10, "3_1": 1}
    assert booking.score(*files_of(tmp_path, answers, truth)) == {"accuracy@4": 0.5}


def test_missing_and_repeated_trips_are_refused(tmp_path: Path) -> None:
    submission, truth = files_of(tmp_path, {"1_1": [1, 2, 3, 4], "9_9": [1, 2, 3, 4]}, {"1_1": 1, "2_1": 2})
    with pytest.raises(
        DataError, match=r"1 trips of the truth are missing, such as '2_1'; 1 trips are not in the truth"
    ):
        booking.score(submission, truth)
    submission.write_text(submission.read_text().replace("9_9", "1_1"))
    with pytest.raises(DataError, match="more than once, such as '1_1'"):
        booking.score(submission, truth)


@settings(max_examples=50)
@given(data=st.data())
def test_accuracy_is_the_mean_of_hits(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    city = st.integers(1, 6)
    truth = data.draw(
        st.dictionaries(st.integers(1, 99).map(lambda i: f"{i}_1"), city, min_size=1, max_size=20)
    )
    answers = {trip: data.draw(st.lists(city, min_size=4, max_size=4)) for trip in reversed(truth)}
    expected = sum(truth[trip] in four for trip, four in answers.items()) / len(truth)
    paths = files_of(tmp_path_factory.mktemp("score"), answers, truth)
    assert booking.score(*paths)["accuracy@4"] == pytest.approx(expected)


@pytest.mark.skipif("BUZZER_DATA" not in os.environ, reason="needs the official files in BUZZER_DATA")
def test_the_official_example_has_the_published_score() -> None:
    """The four most frequent cities score 0.052 in the paper (SIGIR 2021, section 5)."""
    folder = Path(os.environ["BUZZER_DATA"]) / "booking"
    score = booking.score(folder / "submission.csv", folder / "ground_truth.csv")
    assert score["accuracy@4"] == pytest.approx(0.0527, abs=5e-5)
