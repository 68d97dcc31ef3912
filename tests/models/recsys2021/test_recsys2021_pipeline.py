"""The RecSys 2021 pipeline: features against plain Python on every engine, and the whole job."""

import gzip
import math
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from buzzer.datasets import recsys2021
from buzzer.datasets.recsys2021.reader import pieces
from buzzer.datasets.recsys2021.schema import FEATURES, FIRST_SECOND, LABELLED, LABELS
from buzzer.engine import frames
from buzzer.engine.frames import Engine
from buzzer.errors import UnsupportedError
from buzzer.models.job import Data, Job
from buzzer.models.recsys2021 import features, trees, week
from buzzer.models.recsys2021.task import TASK, pieces_of_test

Run = Callable[..., Any]
Jobs = Callable[..., Job]
SMALL = {"rounds_1": 8, "rounds_2": 4, "depth_1": 4}


@pytest.fixture(params=sorted(frames.ENGINES))
def e(request: pytest.FixtureRequest) -> Engine:
    try:
        return frames.load(request.param)
    except UnsupportedError as error:
        pytest.skip(error.message)


def silent(share: float, what: str) -> None:
    """No progress shown."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return TASK.prepare(None, tmp_path_factory.mktemp("cache"), 0.00002, 0, silent)


@pytest.fixture(scope="module")
def lines(data: Data) -> list[dict[str, str]]:
    """The training file by plain Python."""
    text = (data.folder / "train" / "part-00000").read_text().split("\n")[:-1]
    return [dict(zip(LABELLED, line.split("\x01"), strict=True)) for line in text]


def coded(e: Engine, data: Data) -> tuple[Any, dict[str, Any]]:
    t = e.collect(features.base(e, features.read_part(e, data.folder / "train" / "part-00000", True), True))
    codes = {name: e.collect(table) for name, table in features.fit_codes(e, t).items()}
    return e.collect(features.code(e, t, codes)), codes


def labels_of(line: dict[str, str]) -> dict[str, int]:
    return {label: int(line[column] != "") for label, column in LABELS.items()}


def plain_row(line: dict[str, str]) -> dict[str, float]:
    """What `base` promises of a row, from its text."""
    ints = {name: int(line[column]) for name, column in features.COUNTS.items()}
    tokens = line["text_tokens"].split("\t")
    media = line["present_media"].split("\t")
    second = ints["time"] % 86400
    noon = FIRST_SECOND + 20.5 * 86400
    late = noon <= ints["time"] < noon + 43200
    kind = ("TopLevel", "Retweet", "Quote").index(line["tweet_type"])
    return {
        **{name: ints[name] for name in ints if name != "time"},
        **{name: float(line[column] == "true") for name, column in features.FLAGS.items()},
        **{name: len([x for x in line[column].split("\t") if x]) for name, column in features.LISTS.items()},
        **{name: tokens.count(symbol) for name, symbol in features.SYMBOLS.items()},
        **{name: media.count(kind) for name, kind in features.MEDIA.items()},
        "type": kind,
        "word": int(tokens[1]) if len(tokens) > 1 else -1,
        "whom": int(tokens[3]) if kind == 1 and len(tokens) > 3 else -1,
        "a_group": sum(ints["a_followers"] >= limit for limit in (240, 588, 1331, 3996)),
        "weekday": (ints["time"] // 86400 + 3) % 7,
        "hour": second // 3600,
        "minute": second // 60,
        "decline": (ints["time"] - noon) / 60 if late else 0.0,
        "a_ratio": ints["a_followers"] / (ints["a_following"] + 1),
        "b_ratio": ints["b_followers"] / (ints["b_following"] + 1),
        "ab_followers": ints["a_followers"] / (ints["b_followers"] + 1),
        "ab_following": ints["a_following"] / (ints["b_following"] + 1),
        "age_difference": (ints["a_created"] - ints["b_created"]) / 86400,
        "a_age": (ints["time"] - ints["a_created"]) / 86400,
        "b_age": (ints["time"] - ints["b_created"]) / 86400,
    }


def test_rows_tell_what_their_text_says(e: Engine, data: Data, lines: list[dict[str, str]]) -> None:
    t, _ = coded(e, data)
    want = [plain_row(line) for line in lines]
    got = e.to_numpy(t, list(want[0]))
    for name in want[0]:
        np.testing.assert_allclose(got[name], [row[name] for row in want], rtol=1e-6, err_msg=name)
    assert got["decline"].max() > 0  # the file reaches into the last noon
    ids = e.to_numpy(t, ["a", "b", "tweet"])
    assert ids["b"][0] == np.array([int(lines[0]["enaging_user_id"][16:], 16)], np.uint64).view(np.int64)[0]
    assert {labels: e.to_numpy(t, [labels])[labels].tolist() for labels in LABELS} == {
        label: [labels_of(line)[label] for line in lines] for label in LABELS
    }


def smoothed(rows: list[dict[str, int]], target: str, prior: float) -> float:
    return (sum(row[target] for row in rows) + 20 * prior) / (len(rows) + 20)


@pytest.mark.parametrize("strategy", ["none", "kfold", "leave-one-out"])
def test_target_encodings_by_hand(e: Engine, data: Data, lines: list[dict[str, str]], strategy: str) -> None:
    """Of readers, and of readers looked up among authors: from all rows, from other folds, from other rows."""
    t, _ = coded(e, data)
    tables = {name: e.collect(table) for name, table in features.fit_tables(e, t).items()}
    means = features.priors(e, tables)
    labels = [labels_of(line) for line in lines]
    for label in LABELS:
        assert means[label] == pytest.approx(np.mean([row[label] for row in labels]))
    encoded = features.encode(e, t, tables, means)
    if strategy != "none":
        encoded = features.encode_own(e, t, tables, means, strategy)
    got = e.to_numpy(encoded, features.names())
    by_reader, by_author = defaultdict(list), defaultdict(list)
    for at, line in enumerate(lines):
        by_reader[line["enaging_user_id"]].append(at)
        by_author[line["engaged_with_user_id"]].append(at)
    left_out = {
        "none": lambda at, i: False,
        "kfold": lambda at, i: at % 5 == i % 5,
        "leave-one-out": lambda at, i: at == i,
    }
    for i in range(0, len(lines), 37):
        reader = lines[i]["enaging_user_id"]
        own = [labels[at] for at in by_reader[reader] if not left_out[strategy](at, i)]
        reversed_ = [labels[at] for at in by_author.get(reader, [])]
        for label in LABELS:
            assert got[f"te_b_{label}"][i] == pytest.approx(smoothed(own, label, means[label]), rel=1e-5)
            assert got[f"te_b_as_a_{label}"][i] == pytest.approx(
                smoothed(reversed_, label, means[label]), rel=1e-5
            )
        pairs = sum(
            lines[at]["engaged_with_user_id"] == lines[i]["engaged_with_user_id"] for at in by_reader[reader]
        )
        assert got["met_before"][i] == pairs - (0 if strategy == "none" else 1)


def test_every_engine_gives_the_same_columns(e: Engine, data: Data) -> None:
    oracle = frames.load("pandas")
    columns = {}
    for engine in (oracle, e):
        t, _ = coded(engine, data)
        tables = {name: engine.collect(table) for name, table in features.fit_tables(engine, t).items()}
        means = features.priors(engine, tables)
        own = features.encode_own(engine, t, tables, means, "kfold")
        counted = {name: engine.collect(table) for name, table in week.count(engine, t).items()}
        own = week.encode(engine, own, week.fit_tables(engine, t), means, own=True)
        columns[engine.name] = engine.to_numpy(
            week.look_up(engine, own, counted), [*features.names(), *week.names()]
        )
    assert len(features.names()) >= 70
    for name, want in columns["pandas"].items():
        np.testing.assert_allclose(columns[e.name][name], want, rtol=1e-6, atol=1e-6, err_msg=name)


def test_counts_of_pieces_add_up(e: Engine, data: Data) -> None:
    t, _ = coded(e, data)
    halves = [e.filter(t, lambda c, half=half: c("row") % 2 == half) for half in (0, 1)]
    whole = e.collect(week.look_up(e, t, {n: e.collect(x) for n, x in week.count(e, t).items()}))
    parts = [{n: e.collect(x) for n, x in week.count(e, half).items()} for half in halves]
    summed = {n: e.collect(x) for n, x in week.add_up(e, parts).items()}
    names = [f"rows_{name}" for name in week.COUNTED]
    got, want = (e.to_numpy(x, names) for x in (week.look_up(e, t, summed), whole))
    for name in names:
        assert got[name].tolist() == want[name].tolist()
    assert max(want["rows_b"]) > 1


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_pieces_have_every_line_once_and_leave_nothing(tmp_path: Path, suffix: str) -> None:
    text = b"".join(b"%d\n" % i for i in range(25))
    path = tmp_path / f"part-00000{suffix}"
    path.write_bytes(gzip.compress(text) if suffix else text)
    found = [piece.read_bytes() for piece in pieces(path, tmp_path, 10)]
    assert b"".join(found) == text
    assert [piece.count(b"\n") for piece in found] == [10, 10, 5]
    assert list(tmp_path.iterdir()) == [path]
    assert list(pieces(path, tmp_path, 25)) == (
        [path] if not suffix else [tmp_path / f".{path.name}.0.piece"]
    )


def test_log_odds_are_the_inverse_of_the_sigmoid() -> None:
    p = np.array([[0.0, 0.25, 0.5, 1.0]])
    back = 1 / (1 + np.exp(-trees.log_odds(p).astype(float)))
    np.testing.assert_allclose(back, [[1e-6, 0.25, 0.5, 1 - 1e-6]], rtol=1e-4)
    assert math.isfinite(trees.log_odds(p).sum())


# ---- the whole job -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(data: Data, tmp_path_factory: pytest.TempPathFactory, job: Jobs, run: Run) -> Path:
    work = tmp_path_factory.mktemp("work")
    result, phases = run(TASK.fit(job("recsys2021", data, work, work, "polars", "xgboost", **SMALL)))
    assert phases == ["load", "features", "transfer", "fit", "write"]
    assert result.rows == data.rows["train"]
    return work


@pytest.fixture(scope="module")
def reference(data: Data, fitted: Path, tmp_path_factory: pytest.TempPathFactory, job: Jobs, run: Run) -> Any:
    out = tmp_path_factory.mktemp("reference")
    result, _ = run(TASK.predict(job("recsys2021", data, fitted, out, "pandas", "xgboost", **SMALL)))
    return result.scores, pd.read_csv(out / "results.csv", header=None)


@pytest.mark.parametrize("piece_rows", [10**6, 100])
def test_engines_and_pieces_score_the_same(
    e: Engine, piece_rows: int, data: Data, fitted: Path, reference: Any, tmp_path: Path, job: Jobs, run: Run
) -> None:
    settings = SMALL | {"piece_rows": piece_rows}
    out = job("recsys2021", data, fitted, tmp_path, e.name, "xgboost", **settings)
    result, phases = run(TASK.predict(out))
    assert phases == ["load", "preprocess", "features", "transfer", "predict", "write", "score"]
    assert result.details["pieces"] == -(-data.rows["test"] // piece_rows)
    assert result.scores == pytest.approx(reference[0], abs=1e-3)
    got = pd.read_csv(tmp_path / "results.csv", header=None)
    assert got[[0, 1]].equals(reference[1][[0, 1]])
    np.testing.assert_allclose(got[[2, 3, 4, 5]], reference[1][[2, 3, 4, 5]], atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "stage1.csv"]


def test_without_truth_there_is_a_submission_and_no_score(
    data: Data, fitted: Path, tmp_path: Path, job: Jobs, run: Run
) -> None:
    shutil.copytree(data.folder, tmp_path / "data", ignore=shutil.ignore_patterns("test_truth"))
    blind = TASK.prepare(tmp_path / "data", tmp_path, 1.0, 0, silent)
    assert "no test_truth: no score" in blind.notes
    out = job("recsys2021", blind, fitted, tmp_path, "polars", "xgboost", **SMALL)
    assert run(TASK.predict(out))[0].scores == {}
    assert len(list(pieces_of_test(out))) == 1
    assert (tmp_path / "results.csv").is_file()


@pytest.mark.slow
def test_trees_beat_the_constant_on_the_fourth_week(tmp_path: Path, job: Jobs, run: Run) -> None:
    """RCE of the constant is 0 or below, by definition; likes and retweets are frequent enough to tell at this size."""
    data = TASK.prepare(None, tmp_path / "cache", 0.0002, 0, silent)
    (tmp_path / "work").mkdir()
    run(
        TASK.fit(
            job(
                "recsys2021", data, tmp_path / "work", tmp_path, "polars", "xgboost", rounds_1=30, rounds_2=10
            )
        )
    )
    done = job("recsys2021", data, tmp_path / "work", tmp_path, "polars", "xgboost")
    scores = run(TASK.predict(done))[0].scores
    assert scores["RCE_like"] > 5
    assert scores["RCE_retweet"] > 2
    assert scores["RCE_stage1"] > 2


def test_official_columns_are_read_in_their_order() -> None:
    assert list(features.TEXT) == list(FEATURES)
    assert recsys2021.NAME == "recsys2021"
