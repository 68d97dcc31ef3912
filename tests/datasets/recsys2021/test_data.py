"""Reader, generator and metrics of RecSys Challenge 2021, compared with scikit-learn and cases computed by hand."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from dataset_helpers import Damage, cut, set_field, write
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss

from buzzer.datasets import recsys2021
from buzzer.datasets.contract import silent
from buzzer.datasets.recsys2021 import effects, generator, metric, odds
from buzzer.datasets.recsys2021.generator import place_of, rng_of
from buzzer.datasets.recsys2021.reader import converted, rows_of
from buzzer.datasets.recsys2021.schema import FEATURES, FIRST_SECOND, LABELLED, LABELS
from buzzer.datasets.recsys2021.world import World
from buzzer.errors import DataError, UnsupportedError, UsageError

SCALE = 0.0003
DAY = 86_400


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recsys2021") / "data"
    recsys2021.generate(out, SCALE, 0, silent)
    return out


@pytest.fixture(scope="session")
def train(generated: Path) -> pl.DataFrame:
    return pl.concat(
        [block for path in (generated / "train").iterdir() for _, block in rows_of(path, LABELLED)]
    )


@pytest.fixture
def copy(generated: Path, tmp_path: Path) -> Path:
    """The first 200 rows of each part, to be changed."""
    for part in ("train", "val", "test", "test_truth"):
        (tmp_path / "copy" / part).mkdir(parents=True)
        with (generated / part / "part-00000").open("rb") as source:
            lines = islice(source, 200 if part == "train" else 150)
            (tmp_path / "copy" / part / "part-00000").write_bytes(b"".join(lines))
    return tmp_path / "copy"


# ---- generator ---------------------------------------------------------------------------------------------------


def test_same_seed_same_files(tmp_path: Path) -> None:
    prints = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        recsys2021.generate(tmp_path / name, 0.00002, seed, silent)
        prints.append(recsys2021.check(tmp_path / name, silent).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_files_equal_those_of_version_3(tmp_path: Path) -> None:
    """A change of the files needs a new VERSION. Otherwise records over different data would be compared."""
    recsys2021.generate(tmp_path / "data", 0.00002, 1, silent)
    found = recsys2021.check(tmp_path / "data", silent).fingerprint
    assert (generator.VERSION, found[:16]) == (3, "788ac4a85fb31a42")


def test_the_ceiling_is_the_score_of_the_exact_probabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of files that were written in several chunks, and after an interruption."""
    for name, rows in {"CHUNK": 1024, "RESUMABLE_ROWS": 0}.items():
        monkeypatch.setattr(generator, name, rows)
    out, test_scale = tmp_path / "data", 0.0003
    drawn: list[float] = []

    def stop(share: float, what: str) -> None:
        drawn.append(share)
        if len(drawn) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recsys2021.generate(out, 0.000001, 3, stop, test_scale=test_scale)
    recsys2021.generate(out, 0.000001, 3, silent, test_scale=test_scale)
    chunks = [c for c in generator.planned(0.000001, 3, None, test_scale) if c.part == "test"]
    best = pl.concat(
        [
            generator.draw(World(c.scale, 3, c.known_scale), rng_of(c), c.rows, place_of(c), "test")
            for c in chunks
        ]
    )
    files = pl.concat([block for _, block in rows_of(out / "test_truth" / "part-00000", LABELLED)])
    assert best["tweet_id"].equals(files["tweet_id"]) and len(chunks) == 5
    truth = {label: files[column].is_not_null().to_numpy() for label, column in LABELS.items()}
    predicted = {label: best[f"best_{label}"].to_numpy() for label in LABELS}
    want = metric.scores(truth, predicted, files["engaged_with_user_follower_count"].to_numpy())
    got = generator.best_scores(out)
    assert got == json.loads((out / "generator.json").read_text())["ceiling"]
    assert got == {name: pytest.approx(value, abs=2e-3) for name, value in want.items()}
    assert not list(out.glob(".*"))


def test_probabilities_are_the_rates_of_many_draws() -> None:
    """Also near the end of the window, and of engagements that depend on others."""
    chunk = next(c for c in generator.planned(0.0001, 3) if c.part == "test")
    world = World(chunk.scale, chunk.seed, chunk.known_scale)
    rows = generator.draw_rows(world, rng_of(chunk), 20, (0.0, 1.0), "test")
    rows = replace(rows, time=rows.end - np.geomspace(10, 100_000, len(rows.tweet)).astype(np.int64))
    log_odds = odds.log_odds(world, rows) + np.array([3.5, 3.0, 6.0, 2.0])[:, None]
    rng, many = np.random.default_rng(0), 4000
    draws = [odds.engagements(rng, log_odds, rows) for _ in range(many)]
    for label, p in odds.probabilities(log_odds, rows).items():
        rate = np.mean([draw[LABELS[label]].is_not_null().to_numpy() for draw in draws], axis=0)
        assert (np.abs(rate - p) < 4.5 * np.sqrt(p * (1 - p) / many) + 1e-3).all()
        assert 0.03 < p.mean() < 0.97


def test_files_without_a_ceiling_have_none(tmp_path: Path) -> None:
    assert generator.best_scores(tmp_path) == {}
    (tmp_path / "generator.json").write_text('{"scale": 1.0}')
    assert generator.best_scores(tmp_path) == {}


def test_every_family_of_columns_has_something_to_show() -> None:
    """Without the effects of a family, even a model that knows everything else loses RCE."""
    losses = effects.losses(0.001, 0, 30_000)
    assert 24 < losses.pop("ceiling") < 33
    assert losses.keys() == effects.FAMILIES.keys() and min(losses.values()) > 1


def test_a_model_that_knows_everything_is_at_the_ceiling() -> None:
    """The expected RCE of the exact probabilities is that of many drawn labels; a calibrated guess is as good as its log odds."""
    rng, group = np.random.default_rng(0), np.repeat(np.arange(5), 4000)
    best = {label: 1 / (1 + np.exp(2 - rng.standard_normal(20_000))) for label in LABELS}
    truth = {label: (rng.random(20_000) < p).astype(np.int8) for label, p in best.items()}
    realised = metric.scores(truth, best, np.array([0, 240, 588, 1331, 3996])[group])["RCE"]
    assert effects.relative_cross_entropy(best, best, group) == pytest.approx(realised, abs=0.7)
    p = best["like"]
    skewed = odds.sigmoid(0.5 + 0.8 * (np.log(p) - np.log1p(-p)))
    np.testing.assert_allclose(effects.fitted(skewed, p), p, atol=1e-9)


def test_words_show_the_quality_of_a_tweet() -> None:
    chunk = next(c for c in generator.planned(0.0001, 3) if c.part == "train")
    world = World(chunk.scale, chunk.seed, chunk.known_scale)
    tweet = np.arange(3000)
    author = world.author(tweet)
    texts = generator.Texts.of(world, tweet, author, world.tweet_language(tweet, author))
    row, position = texts.everywhere()
    token = texts.at(row, position)
    shown = (token >= generator.FIRST_QUALITY_WORD) & (
        token < generator.FIRST_QUALITY_WORD + generator.QUALITY_WORDS
    )
    sums, many = (np.bincount(row[shown], weights, len(tweet)) for weights in (token[shown], None))
    mean = sums / np.maximum(many, 1)
    assert np.corrcoef(mean[many > 2], world.quality(tweet)[many > 2])[0, 1] > 0.9
    last = token[np.cumsum(texts.many) - 2]
    assert (last[world.last_mark(tweet) > 0] == world.last_mark(tweet)[world.last_mark(tweet) > 0]).all()
    first = token[np.cumsum(texts.many) - texts.many + 1]
    assert (first[~texts.retweet] == texts.opener[~texts.retweet])[texts.many[~texts.retweet] > 3].all()


def test_the_number_of_processes_does_not_change_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "CHUNK", 256)
    monkeypatch.setattr(generator, "PART", 512)
    monkeypatch.setattr(generator, "MIN_CHUNKS_PER_JOB", 1)
    for jobs in (1, 2):
        recsys2021.generate(tmp_path / str(jobs), 0.000001, 3, silent, test_scale=0.0001, jobs=jobs)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(list((tmp_path / "1" / "test").iterdir())) == 3  # parts of 512 rows, and no hidden files


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder that the arguments of the generator determine."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    costs = json.loads(files.pop("generation.json"))
    assert costs["bytes"] == sum(len(content) for name, content in files.items() if "/" in name)
    assert costs["peak_memory_bytes"] > 50e6 and costs["cpu_s"] > 0 and costs["wall_s"] > 0
    return files


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows in {"CHUNK": 256, "PART": 512, "MIN_CHUNKS_PER_JOB": 1, "RESUMABLE_ROWS": 0}.items():
        monkeypatch.setattr(generator, name, rows)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupted_generation_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """It stops after some chunks and in the middle of writing one; the journal's last line may be cut."""
    settings: dict[str, Any] = {"test_scale": 0.0001, "train_scale": 0.000001, "compress_above": 600}
    recsys2021.generate(tmp_path / "whole", 0.000002, 3, silent, **settings)
    drawn: list[float] = []

    def stop_after(chunks: int) -> Callable[[float, str], None]:
        asked = []

        def progress(share: float, what: str) -> None:
            asked.append(share)
            drawn.append(share)
            if len(asked) > chunks:
                raise KeyboardInterrupt

        return progress

    out, unfinished = tmp_path / "out", tmp_path / ".out.unfinished"
    for chunks in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            recsys2021.generate(out, 0.000002, 3, stop_after(chunks), **settings, jobs=jobs)
        assert not out.exists()
        newest = max(unfinished.glob("*/part-*"), key=lambda path: path.stat().st_mtime_ns)
        with newest.open("ab") as file:
            file.write(b"half of a row")
        (unfinished / "train" / "part-00009").write_bytes(b"of a chunk that is not in the journal")
        with (unfinished / ".steps.jsonl").open("a") as file:
            file.write('{"sizes": {"train/pa')
    recsys2021.generate(out, 0.000002, 3, stop_after(1000), **settings, jobs=jobs)
    assert contents(out) == contents(tmp_path / "whole")
    whole = 3 + 2 + 6  # chunks of 256 rows in train (720 rows), val (500), test (1450)
    assert len(drawn) == whole + 2  # only the two interrupted chunks were drawn again
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.usefixtures("small_chunks")
def test_an_interrupted_generation_with_other_arguments_begins_again(tmp_path: Path) -> None:
    def stop(share: float, what: str) -> None:
        if share:
            raise KeyboardInterrupt

    recsys2021.generate(tmp_path / "whole", 0.000001, 3, silent)
    with pytest.raises(KeyboardInterrupt):
        recsys2021.generate(tmp_path / "out", 0.000001, 4, stop)
    assert (tmp_path / ".out.unfinished").is_dir()
    recsys2021.generate(tmp_path / "out", 0.000001, 3, silent)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", [".plan.json", ".steps.jsonl"])
def test_a_damaged_note_of_an_interrupted_generation_is_not_believed(name: str, tmp_path: Path) -> None:
    asked = list[float]()

    def stop(share: float, what: str) -> None:
        asked.append(share)
        if len(asked) > 3:
            raise KeyboardInterrupt

    recsys2021.generate(tmp_path / "whole", 0.000001, 3, silent)
    with pytest.raises(KeyboardInterrupt):
        recsys2021.generate(tmp_path / "out", 0.000001, 3, stop)
    note = tmp_path / ".out.unfinished" / name
    content = note.read_bytes()
    assert len(content) > 20
    note.write_bytes(b"\xff\xfe" + content[2:])
    recsys2021.generate(tmp_path / "out", 0.000001, 3, silent)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_killed_generation_goes_on(tmp_path: Path) -> None:
    """Killed by signal 9 while it draws, with two processes."""
    code = """
import sys
from pathlib import Path
from buzzer.datasets import recsys2021
from buzzer.datasets.recsys2021 import generator
for name in ("CHUNK", "PART", "RESUMABLE_ROWS"):
    setattr(generator, name, {"CHUNK": 2048, "PART": 4096}.get(name, 0))
def progress(share, what):
    print(share, flush=True)
if __name__ == "__main__":
    recsys2021.generate(Path(sys.argv[1]), 0.00005, 3, progress)
"""
    (tmp_path / "make.py").write_text(code)

    def start(out: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "make.py"), str(tmp_path / out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start("out") as killed:
        assert killed.stdout is not None
        seen = list(islice(killed.stdout, 8))
        killed.kill()
    assert len(seen) == 8 and not (tmp_path / "out").exists()
    for name in ("out", "whole"):
        with start(name) as process:
            lines, _ = process.communicate()
        assert process.returncode == 0
        assert (len(lines.splitlines()) < 15) == (name == "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_compressed_parts_have_the_same_rows(tmp_path: Path) -> None:
    for name, above in (("plain", None), ("some", 600), ("all", 0)):
        recsys2021.generate(tmp_path / name, 0.00002, 3, silent, compress_above=above)
    plain, some, everything = (contents(tmp_path / name) for name in ("plain", "some", "all"))
    assert {name for name in some if name.endswith(".gz")} == {"train/part-00000.gz"}
    assert {name for name in everything if not name.endswith(".gz")} == {"generator.json", "test/part-00000"}
    for name, content in everything.items():
        plain_content = gzip.decompress(content) if name.endswith(".gz") else content
        assert plain_content == plain[name.removesuffix(".gz")]
    assert (
        recsys2021.check(tmp_path / "all", silent).rows == recsys2021.check(tmp_path / "plain", silent).rows
    )


@pytest.mark.parametrize("test_scale", [0.00005, 0.0001, 0.00025])
def test_a_test_part_of_another_scale(tmp_path: Path, test_scale: float) -> None:
    recsys2021.generate(tmp_path / "same", 0.0001, 3, silent)
    recsys2021.generate(tmp_path / "data", 0.0001, 3, silent, test_scale=test_scale)
    for part in ("train", "val"):
        name = f"{part}/part-00000"
        assert (tmp_path / "data" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()
    files = recsys2021.check(tmp_path / "data", silent)
    same = recsys2021.check(tmp_path / "same", silent)
    assert files.facts["learned_from"] == same.facts["learned_from"] != same.fingerprint
    assert (files.fingerprint == same.fingerprint) == (test_scale == 0.0001)
    assert files.rows["test"] == files.rows["test_truth"] == round(14_500_000 * test_scale)
    notes = (f"training parts of scale 0.0001, test of {test_scale:g}",) if test_scale != 0.0001 else ()
    assert (files.source, files.scale, files.notes) == ("generated", test_scale, notes)
    parts = {
        n: pl.concat([b for _, b in rows_of(tmp_path / "data" / n / "part-00000", LABELLED)])
        for n in ("train", "val", "test_truth")
    }
    seen = pl.concat([parts["train"], parts["val"]])["tweet_id"]
    test = parts["test_truth"]
    assert not test.select("tweet_id", "enaging_user_id").is_duplicated().any()
    if test_scale > 0.0001:
        assert not test["tweet_id"].is_in(seen.implode()).any()
        assert (
            0.3 < test["tweet_id"].n_unique() / test.height < 0.6
        )  # as many rows per tweet as in other data sets


@pytest.mark.parametrize(("train_scale", "rows"), [(0.00002, 14_394), (0.0000001, 500), (0.0001, 71_971)])
def test_a_training_part_of_another_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_scale: float, rows: int
) -> None:
    """It is a sample of the training rows, from chunks at equal distances; the other parts stay the same."""
    monkeypatch.setattr(generator, "CHUNK", 1024)
    recsys2021.generate(tmp_path / "all", 0.0001, 3, silent)
    recsys2021.generate(tmp_path / "some", 0.0001, 3, silent, train_scale=train_scale)
    for part in ("val", "test", "test_truth"):
        name = f"{part}/part-00000"
        assert (tmp_path / "some" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    lines = (tmp_path / "all" / "train" / "part-00000").read_bytes().splitlines()
    chunks = [lines[at : at + 1024] for at in range(0, len(lines), 1024)]
    many = -(-rows // 1024)
    wanted = [line for i in range(many) for line in chunks[i * len(chunks) // many]][:rows]
    assert (tmp_path / "some" / "train" / "part-00000").read_bytes().splitlines() == wanted
    files = recsys2021.check(tmp_path / "some", silent)
    facts = json.loads((tmp_path / "some" / "generator.json").read_text())
    sample = None if train_scale == 0.0001 else train_scale
    assert files.rows["train"] == facts["rows"]["train"] == rows
    assert facts["rates"]["train"]["like"] == sum(not line.endswith(b"\x01") for line in wanted) / rows
    assert (files.scale, files.train_scale, facts.get("train_scale")) == (0.0001, sample, sample)
    note = f"training part: {train_scale:g} of the official rows, a sample of scale 0.0001"
    assert files.notes == ((note,) if sample else ())


def test_the_sample_of_the_training_rows_is_no_larger_than_the_part(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"training scale of 0\.2 is above the scale 0\.1"):
        recsys2021.generate(tmp_path / "data", 0.1, 3, silent, train_scale=0.2)


def test_rows_of_a_user_or_tweet_agree(train: pl.DataFrame) -> None:
    tweet = [
        "text_tokens",
        "hashtags",
        "present_media",
        "tweet_type",
        "language",
        "tweet_timestamp",
        "engaged_with_user_id",
    ]
    assert train.group_by("tweet_id").agg(pl.struct(tweet).n_unique().alias("n"))["n"].max() == 1
    user = ["id", "follower_count", "following_count", "is_verified", "account_creation"]
    sides = [
        train.select(pl.col(f"{side}_{name}").alias(name) for name in user)
        for side in ("engaged_with_user", "enaging_user")
    ]
    assert pl.concat(sides).group_by("id").agg(pl.struct(user[1:]).n_unique().alias("n"))["n"].max() == 1


@pytest.mark.parametrize(
    ("what", "expected", "tolerance"),
    [
        (pl.col("reply_timestamp").is_not_null(), 0.0285, 0.004),
        (pl.col("retweet_timestamp").is_not_null(), 0.0877, 0.01),
        (pl.col("retweet_with_comment_timestamp").is_not_null(), 0.0069, 0.0015),
        (pl.col("like_timestamp").is_not_null(), 0.397, 0.02),
        (pl.col("tweet_type") == "TopLevel", 0.60, 0.02),
        (pl.col("tweet_type") == "Retweet", 0.32, 0.02),
        (pl.col("present_media").is_null(), 0.64, 0.03),
        (pl.col("present_links").is_null(), 0.88, 0.02),
        (pl.col("hashtags").is_null(), 0.79, 0.02),
        (pl.col("engagee_follows_engager"), 0.38, 0.03),
        (pl.col("engaged_with_user_is_verified"), 0.21, 0.08),
        (pl.col("enaging_user_is_verified"), 0.003, 0.004),
        ((pl.col("engaged_with_user_follower_count") + 1).log(), 9.24, 0.5),
        ((pl.col("enaging_user_follower_count") + 1).log(), 5.27, 0.25),
        ((pl.col("engaged_with_user_following_count") + 1).log(), 6.26, 0.3),
        ((pl.col("enaging_user_following_count") + 1).log(), 5.83, 0.2),
        (pl.col("text_tokens").str.count_matches("\t") + 1, 46.7, 3.0),
        (
            pl.col("text_tokens").str.starts_with("101\t56898\t137\t").mean()
            / (pl.col("tweet_type") == "Retweet").mean(),
            1.0,
            1e-9,
        ),
    ],
)
def test_marginals_agree_with_the_real_data(
    train: pl.DataFrame, what: pl.Expr, expected: float, tolerance: float
) -> None:
    assert float(train.select(what.mean()).item()) == pytest.approx(expected, abs=tolerance)


def test_time_is_split_and_late_labels_are_cut_off(generated: Path, train: pl.DataFrame) -> None:
    assert train["tweet_timestamp"].min() >= FIRST_SECOND
    assert train["tweet_timestamp"].max() < FIRST_SECOND + 21 * DAY
    late = pl.concat([block for _, block in rows_of(generated / "val" / "part-00000", LABELLED)])
    assert late["tweet_timestamp"].min() >= FIRST_SECOND + 21 * DAY
    for column in LABELS.values():
        assert (train[column] - train["tweet_timestamp"]).min() > 0
        assert train[column].max() < FIRST_SECOND + 21 * DAY
    last_hours = train.filter(pl.col("tweet_timestamp") > FIRST_SECOND + 21 * DAY - 7200)
    assert (
        last_hours["like_timestamp"].is_not_null().mean()
        < 0.85 * train["like_timestamp"].is_not_null().mean()
    )


@pytest.mark.parametrize(("rows", "share"), [(1, 0.785), (2, 0.687), (3, 0.626), (50, 0.069), (100, 0.033)])
def test_rows_per_reader_agree_with_the_real_data(train: pl.DataFrame, rows: int, share: float) -> None:
    """The share of readers with more than `rows` rows."""
    counts = train["enaging_user_id"].value_counts()["count"]
    assert (counts > rows).mean() == pytest.approx(share, rel=0.25)


def test_no_author_dominates_a_small_data_set(train: pl.DataFrame) -> None:
    assert train["engaged_with_user_id"].value_counts()["count"].max() < 0.03 * train.height


def test_pairs_are_unique_and_the_halves_of_week_4_disjoint(generated: Path, train: pl.DataFrame) -> None:
    key = ["tweet_id", "enaging_user_id"]
    late = [
        block
        for name in ("val", "test_truth")
        for _, block in rows_of(generated / name / "part-00000", LABELLED)
    ]
    for rows in (train, pl.concat(late)):
        assert not rows.select(key).is_duplicated().any()
    assert not (train["enaging_user_id"] == train["engaged_with_user_id"]).any()


def test_a_pair_has_one_value_of_follows(train: pl.DataFrame) -> None:
    pairs = train.group_by("engaged_with_user_id", "enaging_user_id").agg(
        pl.col("engagee_follows_engager").n_unique().alias("n"), pl.len().alias("rows")
    )
    assert (pairs["rows"] > 1).sum() > 1000
    assert pairs["n"].max() == 1


def test_week_4_has_mostly_known_users(generated: Path, train: pl.DataFrame) -> None:
    late = pl.concat([block for _, block in rows_of(generated / "val" / "part-00000", LABELLED)])
    for column in ("enaging_user_id", "engaged_with_user_id"):
        assert late[column].is_in(train[column].unique().implode()).mean() > 0.9


@pytest.mark.parametrize(
    ("given", "then", "share"),
    [
        ("reply", "like", 0.140),
        ("retweet", "like", 0.180),
        ("quote", "retweet", 0.352),
        ("reply", "retweet", 0.0245),
    ],
)
def test_engagements_are_correlated_as_in_the_real_data(
    train: pl.DataFrame, given: str, then: str, share: float
) -> None:
    among = train.filter(pl.col(LABELS[given]).is_not_null())
    assert among[LABELS[then]].is_not_null().mean() == pytest.approx(share, rel=0.35)


def test_who_likes_what_can_be_learned(generated: Path, train: pl.DataFrame) -> None:
    """Smoothed means by reader and author over the training weeks beat a constant on week 4."""
    val = pl.concat([block for _, block in rows_of(generated / "val" / "part-00000", LABELLED)])
    keys = {"enaging_user_id": "b", "engaged_with_user_id": "a"}
    like = pl.col("like_timestamp").is_not_null()
    prior = float(train.select(like.mean()).item())
    for key, name in keys.items():
        sums = train.group_by(key).agg(like.sum().alias("s"), pl.len().alias("n"))
        own = pl.lit(0)
        for frame in ("train", "val"):
            source = train if frame == "train" else val
            own = like.cast(pl.Int64) if frame == "train" else pl.lit(0)
            n_own = 1 if frame == "train" else 0
            mean = (pl.col("s").fill_null(0) - own + 10 * prior) / (pl.col("n").fill_null(0) - n_own + 10)
            done = (
                source.join(sums, on=key, how="left", maintain_order="left")
                .with_columns(mean.alias(name))
                .drop("s", "n")
            )
            train, val = (done, val) if frame == "train" else (train, done)
    inputs = [*(f"{name}" for name in keys.values()), "engagee_follows_engager"]
    model = LogisticRegression().fit(
        train.select(inputs).cast(pl.Float64).to_numpy(), train.select(like.alias("y"))["y"].to_numpy()
    )
    p = model.predict_proba(val.select(inputs).cast(pl.Float64).to_numpy())[:, 1]
    truth = val.select(like.cast(pl.Int8).alias("y"))["y"].to_numpy()
    assert metric.relative_cross_entropy(truth, p) > 5


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak(scale: float) -> int:
        tracemalloc.start()
        recsys2021.generate(tmp_path / str(scale), scale, 0, silent)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(0.0005) < 1.2 * peak(0.0002)


def test_a_failed_write_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recsys2021.generator, "append", full)
    with pytest.raises(DataError, match="No space left"):
        recsys2021.generate(tmp_path / "data", 0.00001, 0, silent)
    assert list(tmp_path.iterdir()) == []


# ---- reader ------------------------------------------------------------------------------------------------------


def test_good_files_pass(generated: Path) -> None:
    files = recsys2021.check(generated, silent)
    rows = json.loads((generated / "generator.json").read_text())["rows"]
    assert files.rows == rows | {"test_truth": rows["test"]}
    assert (files.source, files.scale, files.notes) == ("generated", SCALE, ())


def test_the_last_line_may_lack_its_end(copy: Path) -> None:
    rows = recsys2021.check(copy, silent).rows
    cut("train/part-00000", 1)(copy)
    assert recsys2021.check(copy, silent).rows == rows


def test_a_sample_of_official_files_has_a_note(copy: Path) -> None:
    files = recsys2021.check(copy, silent)
    n = files.rows["test"]
    assert files.source == "official" and files.scale == n / 14_500_000
    assert files.notes == (f"{n} rows, the official files have 14500000",)


def test_a_damaged_generator_json_is_refused(copy: Path) -> None:
    (copy / "generator.json").write_text("[]")
    with pytest.raises(DataError, match="not the file that the generator wrote"):
        recsys2021.check(copy, silent)


def test_convert_keeps_values_and_numbers_rows(copy: Path, tmp_path: Path) -> None:
    recsys2021.convert(copy, tmp_path / "parquet", silent)
    got = pd.read_parquet(tmp_path / "parquet" / "val" / "part-00000.parquet")
    text = (copy / "val" / "part-00000").read_text().split("\n")[:-1]
    lines = [dict(zip(LABELLED, line.split("\x01"), strict=True)) for line in text]
    assert got["row"].tolist() == list(range(len(lines)))
    assert got["text_tokens"].tolist() == [line["text_tokens"] for line in lines]
    assert got["like"].tolist() == [int(line["like_timestamp"] != "") for line in lines]
    assert got["engaged_with_user_is_verified"].tolist() == [
        int(line["engaged_with_user_is_verified"] == "true") for line in lines
    ]
    for column, name in (("reader", "enaging_user_id"), ("tweet", "tweet_id")):
        expected = np.array([int(line[name][16:], 16) for line in lines], dtype=np.uint64).astype(np.int64)
        assert got[column].tolist() == expected.tolist()
    assert "like" not in pd.read_parquet(tmp_path / "parquet" / "test" / "part-00000.parquet")


def test_ids_are_unchanged_where_64_bits_suffice() -> None:
    ids = ["0" * 31 + "7", "0" * 16 + "F" * 16, "0" * 16 + "8" + "0" * 15]
    block = pl.DataFrame(
        dict.fromkeys(("tweet_id", "engaged_with_user_id", "enaging_user_id", "language"), ids)
    )
    assert converted(block, 5)["reader"].to_list() == [7, -1, -(2**63)]


def edit(part: str, line: int, column: int, value: str) -> Damage:
    return set_field(f"{part}/part-00000", line, column, value, "\x01")


def fewer_columns(folder: Path) -> None:
    path = folder / "train" / "part-00000"
    path.write_text(path.read_text().replace("\x01", "", 1))


def blank_line(folder: Path) -> None:
    path = folder / "val" / "part-00000"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:5], "\n", *lines[5:]]))


BAD = {
    "no folder": (lambda folder: shutil.rmtree(folder / "val"), "no part-* files"),
    "empty file": (write("test/part-00000", ""), "no rows"),
    "column count": (fewer_columns, "train/part-00000, line 1: Expected 24 columns, got 23"),
    "blank line": (
        blank_line,
        "val/part-00000, line 6: a blank line",
    ),
    "nothing but a blank line": (
        write("test/part-00000", "\n"),
        "test/part-00000, line 1: a blank line",
    ),
    "labels in the test": (
        lambda folder: shutil.copy(folder / "val" / "part-00000", folder / "test"),
        "Expected 20 columns",
    ),
    "cut in mid-line": (cut("train/part-00000", 200), "train/part-00000, line 200: Expected 24 columns"),
    "bad integer": (
        edit("train", 7, 10, "many"),
        "line 7, column engaged_with_user_follower_count: 'many' is not a whole",
    ),
    "bad boolean": (
        edit("val", 3, 12, "yes"),
        "line 3, column engaged_with_user_is_verified: 'yes' is not true or false",
    ),
    "bad id": (
        edit("val", 4, 14, "abc"),
        "line 4, column enaging_user_id: 'abc' is not 32 hexadecimal digits",
    ),
    "bad tokens": (edit("train", 9, 0, "101\tx\t102"), "line 9, column text_tokens"),
    "bad type": (edit("train", 2, 6, "Tweet"), "line 2, column tweet_type: 'Tweet' is none of"),
    "bad media": (edit("train", 2, 3, "Photo\tSound"), "line 2, column present_media"),
    "missing time": (edit("train", 5, 8, ""), "line 5, column tweet_timestamp: '' is not a whole number"),
    "truth of other size": (
        lambda folder: shutil.copy(folder / "train" / "part-00000", folder / "test_truth"),
        "rows in test_truth",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(copy: Path, case: str) -> None:
    damage, message = BAD[case]
    damage(copy)
    with pytest.raises(DataError) as error:
        recsys2021.check(copy, silent)
    assert message in error.value.message


def fake_lzop(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a program named lzop on the PATH that runs a shell script."""
    folder.mkdir()
    (folder / "lzop").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "lzop").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_lzo_needs_lzop(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "val" / "part-00000").rename(copy / "val" / "part-00000.lzo")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnsupportedError, match="LZO") as error:
        recsys2021.check(copy, silent)
    assert "install lzop" in error.value.hint


def test_lzo_files_are_read_by_lzop(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake lzop -dc FILE copies the file. A second one fails after its output, as lzop does for a cut file."""
    rows = recsys2021.check(copy, silent).rows
    (copy / "val" / "part-00000").rename(copy / "val" / "part-00000.lzo")
    fake_lzop(tmp_path / "good", monkeypatch, 'cat "$2"')
    assert recsys2021.check(copy, silent).rows == rows
    fake_lzop(tmp_path / "bad", monkeypatch, 'cat "$2"; exit 1')
    with pytest.raises(DataError, match=r"part-00000\.lzo: lzop cannot decompress it"):
        recsys2021.check(copy, silent)


@pytest.mark.skipif(shutil.which("lzop") is None, reason="needs the program lzop")
def test_real_lzop_files_are_read(copy: Path) -> None:
    rows = recsys2021.check(copy, silent).rows
    subprocess.run(["lzop", "-U", str(copy / "val" / "part-00000")], check=True)
    assert recsys2021.check(copy, silent).rows == rows


def test_a_part_beside_its_compressed_file_counts_once(copy: Path) -> None:
    rows = recsys2021.check(copy, silent).rows
    for suffix in (".lzo", ".lzo.index"):
        (copy / "val" / f"part-00000{suffix}").write_bytes(b"not to be read")
    (copy / "test" / "part-00000.gz").write_bytes(b"not to be read")
    assert recsys2021.check(copy, silent).rows == rows


# ---- metrics -----------------------------------------------------------------------------------------------------

labels = st.lists(st.integers(0, 1), min_size=2, max_size=60).filter(lambda y: 0 < sum(y) < len(y))


@settings(max_examples=150)
@given(y=labels, data=st.data())
def test_metrics_equal_scikit_learn(y: list[int], data: st.DataObject) -> None:
    p = data.draw(
        st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), min_size=len(y), max_size=len(y))
    )
    truth, predicted = np.array(y), np.array(p)
    assert metric.average_precision(truth, predicted) == pytest.approx(
        average_precision_score(truth, predicted)
    )
    clipped = np.clip(predicted, 1e-15, 1 - 1e-15)
    naive = log_loss(truth, np.full(len(y), truth.mean()))
    expected = 100 * (1 - log_loss(truth, clipped) / naive)
    assert metric.relative_cross_entropy(truth, predicted) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@settings(max_examples=50)
@given(y=labels, data=st.data())
def test_the_order_of_rows_does_not_matter(y: list[int], data: st.DataObject) -> None:
    # A library in an earlier test of this process may have made the processor flush subnormal numbers to 0.
    chance = st.floats(0, 1, allow_subnormal=False)
    p = np.array(data.draw(st.lists(chance, min_size=len(y), max_size=len(y))))
    order = np.array(data.draw(st.permutations(range(len(y)))))
    for formula in (metric.average_precision, metric.relative_cross_entropy):
        assert formula(np.array(y)[order], p[order]) == pytest.approx(
            formula(np.array(y), p), rel=1e-9, abs=1e-9
        )


def test_metrics_by_hand() -> None:
    truth, p = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.1])
    assert metric.average_precision(truth, p) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metric.relative_cross_entropy(truth, np.full(4, 0.5)) == pytest.approx(0.0)
    assert metric.relative_cross_entropy(truth, truth) == pytest.approx(100.0)
    assert np.isnan(metric.average_precision(np.zeros(3), np.ones(3)))
    assert np.isnan(metric.relative_cross_entropy(np.ones(3), np.ones(3)))


def test_groups_begin_at_their_thresholds() -> None:
    followers = np.array([0, 239, 240, 587, 588, 1330, 1331, 3995, 3996, 10**7])
    assert metric.author_group(followers).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_scores_are_means_over_groups_and_engagements() -> None:
    rng = np.random.default_rng(0)
    followers = rng.choice([10, 300, 600, 2000, 9000], 500)
    truth = {label: rng.integers(0, 2, 500) for label in LABELS}
    predicted = {label: np.clip(0.5 * truth[label] + 0.6 * rng.random(500), 0, 1) for label in LABELS}
    got = recsys2021.scores(truth, predicted, followers)
    for label in LABELS:
        groups = [followers == value for value in np.unique(followers)]
        expected = np.mean([average_precision_score(truth[label][g], predicted[label][g]) for g in groups])
        assert got[f"AP_{label}"] == pytest.approx(expected)
    assert got["RCE"] == pytest.approx(np.mean([got[f"RCE_{label}"] for label in LABELS]))
    with pytest.raises(DataError, match="predictions of like"):
        recsys2021.scores(truth, predicted | {"like": np.full(500, np.nan)}, followers)


def test_a_group_of_one_class_is_left_out() -> None:
    truth = dict.fromkeys(LABELS, np.array([1, 0, 0, 0]))
    predicted = dict.fromkeys(LABELS, np.array([0.9, 0.1, 0.2, 0.3]))
    got = recsys2021.scores(truth, predicted, np.array([10, 10, 5000, 5000]))
    assert got["AP"] == 1.0
    assert got["RCE_like"] == pytest.approx(100 * (1 - -np.log(0.9) / np.log(2)))


@pytest.fixture
def submission(generated: Path, tmp_path: Path) -> Path:
    truth = pl.concat([block for _, block in rows_of(generated / "test" / "part-00000", FEATURES)]).unique(
        ["tweet_id", "enaging_user_id"], maintain_order=True
    )
    predicted = {
        label: np.full(truth.height, rate)
        for label, rate in zip(LABELS, (0.03, 0.09, 0.007, 0.4), strict=True)
    }
    recsys2021.write_submission(
        tmp_path / "s.csv", list(truth["tweet_id"]), list(truth["enaging_user_id"]), predicted
    )
    return tmp_path / "s.csv"


def test_ids_may_come_as_arrow(tmp_path: Path) -> None:
    """As chunked arrays of both string types. The written files are the same, byte by byte."""
    tweets, readers = ["A1", "B2", "C3"], ["x", "y,", "z"]
    p = np.random.default_rng(0).random((3, 4)).astype("float32")
    predicted = {label: p[:, i] for i, label in enumerate(LABELS)}
    recsys2021.write_submission(tmp_path / "list.csv", tweets, readers, predicted)
    ids = pa.table({"tweets": pa.array(tweets, pa.large_string()), "readers": pa.array(readers)})
    ids = pa.concat_tables([ids[:1], ids[1:]])
    recsys2021.append_submission(tmp_path / "arrow.csv", ids["tweets"], ids["readers"], predicted)
    assert (tmp_path / "arrow.csv").read_bytes() == (tmp_path / "list.csv").read_bytes()
    back = recsys2021.read_submission(tmp_path / "arrow.csv")
    assert [back[name].to_list() for name in back.columns[:2]] == [tweets, readers]
    for label in LABELS:
        np.testing.assert_array_equal(back[label].to_numpy().astype("float32"), predicted[label])


def test_a_constant_scores_about_0(generated: Path, submission: Path) -> None:
    got = recsys2021.score(submission, generated / "test_truth")
    rates = json.loads((generated / "generator.json").read_text())["rates"]["test"]
    assert got["AP_like"] == pytest.approx(rates["like"], abs=0.03)
    assert -4 < got["RCE_like"] < 0.01


def test_rows_in_any_order_score_the_same(
    generated: Path, submission: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = submission.read_text().splitlines(keepends=True)
    chances = np.random.default_rng(0).random((len(lines), 4)).round(3)
    lines = [
        ",".join([*line.split(",")[:2], *map(str, p)]) + "\n" for line, p in zip(lines, chances, strict=True)
    ]
    submission.write_text("".join(lines))
    with monkeypatch.context() as patch:
        patch.delattr(metric, "align_by_join")  # rows in the order of the truth need no join
        expected = recsys2021.score(submission, generated / "test_truth")
    submission.write_text("".join(reversed(lines)))
    assert recsys2021.score(submission, generated / "test_truth") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "1 pairs of the truth are missing, such as ('"),
        (
            lambda lines: [*lines, f"{'A' * 32},{'B' * 32},0,0,0,0\n"],
            "1 pairs are not in the truth, such as ('AAAA",
        ),
        (lambda lines: ["\udcff\udcfe\n"], "line 1, column tweet_id: bytes that are not UTF-8"),
        (lambda lines: [*lines, lines[0]], "2 rows share their pair"),
        (lambda lines: [*lines[:-1], lines[-1].replace(",", ";", 1)], "Expected 6 columns, got 5"),
        (
            lambda lines: [*lines[:-1], lines[-1].rsplit(",", 1)[0] + ",high\n"],
            "column like: 'high' is not a number from 0 to 1",
        ),
        *(
            (
                lambda lines, x=x: [lines[0], lines[1].rsplit(",", 1)[0] + f",{x}\n", *lines[2:]],
                "line 2, column like: ",
            )
            for x in ("nan", "inf", "1.1", "-0.1", "1e9", "", "٠.٥", " 0.5", "0x1", "1_0")
        ),
    ],
)
def test_bad_submissions_are_refused(
    generated: Path, submission: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    lines = submission.read_text().splitlines(keepends=True)
    submission.write_text("".join(change(lines)), errors="surrogateescape")
    with pytest.raises(DataError) as error:
        recsys2021.score(submission, generated / "test_truth")
    assert message in f"{error.value.message} {error.value.hint}"
