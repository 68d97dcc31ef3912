"""Lookup tables of drawn rows against those of the text of the same rows."""

from collections.abc import Callable, Generator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from buzzer import caches
from buzzer.datasets import recsys2021
from buzzer.datasets.contract import silent
from buzzer.datasets.recsys2021 import drawn, generator
from buzzer.datasets.recsys2021.drawn import TrainingRows
from buzzer.engine import frames
from buzzer.engine.frames import Engine
from buzzer.errors import DataError, UsageError
from buzzer.models.api.context import Data, RunContext
from buzzer.models.recsys2021 import (
    drawn_tables,
    ensemble,
    feature_sets,
    features,
    fitting,
    lookup_tables,
    vocabulary,
)
from buzzer.models.recsys2021.feature_sets import STEPS, WINNERS, feature_set
from buzzer.models.recsys2021.lookup_tables import Occurring
from buzzer.models.recsys2021.task import TASK

MakeContext = Callable[..., RunContext]
SCALE = 0.00004  # 28,789 training rows
SETTINGS = {
    "trees": ["kfold", "split"],
    "networks": ["pooled"],
    "second": ["loo"],
    "user_rows": 3,
    "tables": "drawn",
}
SMALL = {
    "rounds_1": 3,
    "rounds_2": 3,
    "depth_1": 3,
    "group_rows": 500,
    "tokens": 8,
    "token_dim": 8,
    "hidden": 8,
    "user_dim": 4,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(caches.HOME, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, ranges and partitions of a few thousand rows, in two turns."""
    rows = {"RANGE_ROWS": 3000, "PARTITION_ROWS": 7000, "SPILL_BYTES": 400_000}
    for name, value in rows.items():
        monkeypatch.setattr(drawn_tables, name, value)
    monkeypatch.setattr(lookup_tables, "BYTES_OF_ROW", 1)
    monkeypatch.setattr(drawn_tables, "CHUNK", 1024)
    monkeypatch.setattr(generator, "CHUNK", 1024)
    monkeypatch.setattr(drawn_tables, "usable_cores", lambda: 1)


def generated(folder: Path, train_scale: float | None = None) -> Data:
    recsys2021.generate(folder, SCALE, 3, silent, train_scale=train_scale)
    return TASK.describe(recsys2021.check(folder, silent), [])


def finished(steps: Generator[Any, None, Any]) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


def of_text(e: Engine, context: Any) -> tuple[Any, Any, Any]:
    """The training rows of the text, the codes, and the tables."""
    train = fitting.read_all(e, context, "train", [])
    codes = lookup_tables.collected(e, features.fit_codes(e, train.columns))
    fitting.code(train, codes)
    return train, codes, fitting.fit_tables(e, context, ensemble.select_models(context.params), train, codes)


def ordered(path: Path) -> pl.DataFrame:
    t = pl.read_parquet(path)
    return t.select(sorted(t.columns)).sort(sorted(t.columns))


MODELS = {
    "trees": ["kfold", "loo", "split"],
    "networks": ["pooled", "gru64", "gru128"],
    "second": ["loo", "kfold"],
}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("engine", ["pandas", "polars"])
@pytest.mark.parametrize(("changes", "tables"), [({}, 14 + 8), (MODELS | {"features": "winners"}, 15 + 9)])
def test_drawn_tables_equal_those_of_the_text(
    tmp_path: Path, make_context: MakeContext, engine: str, changes: dict[str, Any], tables: int
) -> None:
    data, e = generated(tmp_path / "data"), frames.load(engine)
    works = [tmp_path / name for name in ("text", "drawn")]
    for work in works:
        work.mkdir()
    settings = SETTINGS | changes
    contexts = [
        TASK.typed(make_context("recsys2021", data, work, work, engine, "torch_eager", **settings))
        for work in works
    ]
    train, codes, fitted = of_text(e, contexts[0])
    fitting.save_all(e, works[0], fitted, {})
    models = ensemble.select_models(contexts[1].params)
    plan = drawn_tables.plan_of(e, contexts[1], models, codes)
    assert plan.partitions == 5 and plan.turns == 2
    got, facts = finished(
        drawn_tables.fit_tables(e, contexts[1], models, codes, Occurring(e, [train.columns], train.height))
    )
    fitting.save_all(e, works[1], got, {})
    want = {path.name: ordered(path) for path in works[0].glob("*.parquet") if not path.name.startswith(".")}
    assert len(want) == 2 + tables + 1  # codes, train and raw, user
    assert want.keys() == {path.name for path in works[1].glob("*.parquet") if not path.name.startswith(".")}
    for name, table in want.items():
        assert table.equals(ordered(works[1] / name)), name
        assert (
            name.startswith(("code-", "user-"))
            or facts["keys"][name.removesuffix(".parquet")] == table.height
        )
    assert facts["keys"]["user-code"] > want["user-code.parquet"].height  # the cache has those of all users
    assert got.means == pytest.approx(fitted.means) and facts["rows"] == train.height
    assert e.height(got.users["code"]) == e.height(fitted.users["code"]) > 100
    assert [path.name for path in caches.folder().glob("drawn/.*")] == []


def test_steps_round_as_in_the_text() -> None:
    """719 minutes are 100 steps of 7.19 minutes or 99, depending on how an engine divides."""
    e, noon = frames.load("polars"), features.LAST_NOONS[0]
    time = np.arange(noon - 7200, noon + 50_000, 20)
    counts = {name: np.arange(len(time)) * 89 for name in features.COUNTS if name != "time"}
    t = pl.LazyFrame({"time": time, "hour": time, "minutes": time} | counts)
    text = features.steps(e, features.arithmetic(e, t)).collect()
    columns = {"time": time} | counts
    for name in (*STEPS, "a_group"):
        names, function = drawn_tables.DERIVED[name]
        assert function(*(columns[source] for source in names)).tolist() == text[name].to_list(), name
    assert {99, 100} <= set(text["late"])


def test_marks_at_the_end_as_in_the_text() -> None:
    e, tokens = frames.load("polars"), (136, 106, 7)
    rows = [[101, *pair, 102] for pair in product(tokens, tokens)] + [[101, token, 102] for token in tokens]
    text = pl.LazyFrame({"text": ["\t".join(map(str, row)) for row in rows]})
    want = text.select(features.last_mark(e, pl.col("text"))).collect().to_series()
    assert drawn_tables.last_mark(np.array([row[-3:] for row in rows])).tolist() == want.to_list()
    assert {*want} == {0, 1, 2, 3, 4}


def test_another_vocabulary_is_another_plan(tmp_path: Path) -> None:
    """Tables in the cache are of what a vocabulary contains, not only of its name."""
    hashes = set()
    for name, piece in (("one", "a"), ("two", "##a")):
        found = list(vocabulary.read(""))
        found[60_000] = piece
        path = tmp_path / name
        path.write_text("\n".join(found), encoding="utf-8")
        hashes.add(drawn_tables.continuing(replace(WINNERS, vocabulary=str(path))))
    assert len(hashes) == 2


def test_keys_that_cannot_be_drawn_are_refused(
    tmp_path: Path, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = replace(WINNERS, keys={**WINNERS.keys, "tag": ["hashtag"]})
    monkeypatch.setitem(feature_sets.FEATURE_SETS, "winners", chosen)
    settings = SETTINGS | {"features": "winners"}
    context = TASK.typed(
        make_context(
            "recsys2021",
            generated(tmp_path / "data"),
            tmp_path,
            tmp_path,
            "polars",
            "torch_eager",
            **settings,
        )
    )
    models = ensemble.select_models(context.params)
    with pytest.raises(UsageError, match="cannot draw hashtag, a key of tag"):
        drawn_tables.plan_of(frames.load("polars"), context, models, {})


def test_drawn_rows_equal_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "CHUNK", 2048)
    data = generated(tmp_path / "data")
    e = frames.load("polars")
    t = features.read_part(e, data.folder / "train" / "part-00000", True)
    text = t.collect()
    rows = TrainingRows.of(data.folder)
    wanted = [*drawn.COLUMNS]
    parts = [drawn.draw(chunk, wanted) for chunk in rows.chunks()]
    got = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name, column in {"a": "engaged_with_user_id", "b": "enaging_user_id"}.items():
        digits = text[column].str.slice(16, 16).to_list()
        want = np.array([int(word, 16) for word in digits], dtype=np.uint64).view(np.int64)
        assert drawn.user_ids(rows, got[name]).tolist() == want.tolist()
    tokens = [[int(token) for token in tokens.split("\t")] for tokens in text["text_tokens"]]
    padded = [[*row, -1, -1, -1] for row in tokens]
    assert got["begin"].tolist() == [row[1:4] for row in padded]
    assert got["end"].tolist() == [row[-3:] for row in tokens]
    none = [[-1] * 3] * 3
    after = [[row[i + 1 : i + 4] for i, token in enumerate(row) if token == 137] + none for row in padded]
    for nth in range(3):
        assert got[f"after_{nth + 1}"].tolist() == [spans[nth] for spans in after]
    assert np.max(got["after_3"]) > 0
    domains = [int(ids[16:32] or "0", 16) for ids in text["present_domains"].fill_null("")]
    assert got["domain"].view(np.uint64).tolist() == domains
    for name, column in features.COUNTS.items():
        assert got[name].tolist() == text[column].to_list(), name
    for name, column in features.FLAGS.items():
        assert got[name].astype(bool).tolist() == [value == "true" for value in text[column]], name
    for label, column in features.LABELS.items():
        assert got[label].tolist() == text[column].is_not_null().cast(pl.UInt8).to_list(), label


@pytest.mark.usefixtures("small_parts")
def test_tables_of_a_sample_are_of_all_rows(tmp_path: Path, make_context: MakeContext) -> None:
    """Pairs that occur once are left out, except those of the sample, whose own label is subtracted from the sums."""
    e = frames.load("polars")
    sample, whole = generated(tmp_path / "sample", SCALE / 8), generated(tmp_path / "whole")
    contexts = {}
    for data in (sample, whole):
        work = tmp_path / f"{data.folder.name}-work"
        work.mkdir()
        settings = SETTINGS | {"pair_rows": 2}
        contexts[data.folder.name] = TASK.typed(
            make_context("recsys2021", data, work, work, "polars", "torch_eager", **settings)
        )
    train, codes, _ = of_text(e, contexts["sample"])
    all_rows, _, _ = of_text(e, contexts["whole"])
    models = ensemble.select_models(contexts["sample"].params)
    fitting_steps = drawn_tables.fit_tables(
        e, contexts["sample"], models, codes, Occurring(e, [train.columns], train.height)
    )
    got, _ = finished(fitting_steps)
    pairs = ordered(contexts["sample"].work / "train-ab.parquet")
    counted = (
        all_rows.columns(["a", "b", "like"])
        .group_by("a", "b")
        .agg(n=pl.len(), like=pl.col("like").sum())
        .collect()
    )
    in_sample = train.columns(["a", "b"]).select("a", "b").unique().collect()
    often = counted.filter(pl.col("n") >= 2)
    kept = pl.concat([often.select("a", "b"), in_sample]).unique()
    assert pairs.height == kept.height > often.height
    joined = pairs.join(counted, on=["a", "b"], suffix="_text")
    assert joined.height == pairs.height
    assert joined.select(
        (pl.col("n") == pl.col("n_text")).all(), (pl.col("sum_like") == pl.col("like")).all()
    ).row(0) == (
        True,
        True,
    )
    few = got.tables["ab"].collect()
    assert few.height == in_sample.height < pairs.height  # only what the training part needs is in memory
    own = features.encode_own(
        e, train.columns(feature_set(contexts["sample"].params).read_names()), got.tables, got.means, "loo",
        feature_set(contexts["sample"].params), source=train.columns,
    ).collect()  # fmt: skip
    once = own.filter(pl.col("met_before") == 0)
    assert once.height and np.allclose(once["te_ab_like"], got.means["like"])  # not its own label


@pytest.mark.usefixtures("small_parts")
def test_an_interrupted_call_goes_on(
    tmp_path: Path, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, e = generated(tmp_path / "data"), frames.load("polars")
    context = TASK.typed(
        make_context("recsys2021", data, tmp_path, tmp_path, "polars", "torch_eager", **SETTINGS)
    )
    _, codes, _ = of_text(e, context)
    plan = drawn_tables.plan_of(e, context, ensemble.select_models(context.params), codes)
    done, stop, folders = 0, 9, set()
    folder = None
    for _ in range(8):  # 35 steps: 15 ranges in each turn, and 5 partitions
        steps = drawn_tables.make(plan)
        try:
            for _ in range(stop):
                next(steps)
        except StopIteration as end:
            folder = end.value
            break
        done += stop
        steps.close()
        folders |= {path.name for path in (caches.folder() / "drawn").iterdir()}
    assert folder is not None and done == 27 and len(folders) <= 3
    names = {path.name: ordered(path) for path in folder.glob("*.parquet")}
    assert {path.suffix for path in folder.iterdir()} == {".parquet", ".json"}
    again = finished(drawn_tables.make(plan))  # from the cache
    assert again == folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    whole = finished(drawn_tables.make(plan))
    assert {path.name for path in whole.glob("*.parquet")} == set(names)
    for name, table in names.items():
        assert table.equals(ordered(whole / name)), name
    monkeypatch.setattr(generator, "VERSION", generator.VERSION + 1)
    next(drawn_tables.make(plan))  # other rows, so the tables in the cache are not those of the plan


@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_damaged_tables_are_drawn_again(
    damage: str, tmp_path: Path, make_context: MakeContext, capsys: pytest.CaptureFixture[str]
) -> None:
    data, e = generated(tmp_path / "data", SCALE / 4), frames.load("polars")
    settings = SETTINGS | {"trees": ["kfold"]}
    context = TASK.typed(
        make_context("recsys2021", data, tmp_path, tmp_path, "polars", "torch_eager", **settings)
    )
    _, codes, _ = of_text(e, context)
    plan = drawn_tables.plan_of(e, context, ensemble.select_models(context.params), codes)
    path = finished(drawn_tables.make(plan)) / "train-ab.parquet"
    expected, content = ordered(path), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:200] if damage == "cut" else content)
    finished(drawn_tables.make(plan))
    assert ordered(path).equals(expected)
    assert "train-ab.parquet" in capsys.readouterr().err


def test_an_interrupted_fit_goes_on_after_the_tables(
    tmp_path: Path, make_context: MakeContext, run: Any
) -> None:
    data = generated(tmp_path / "data", SCALE / 4)
    settings = SETTINGS | SMALL | {"epochs": 1}
    results = {}
    for name in ("whole", "stopped"):
        work = tmp_path / name
        work.mkdir()
        context = make_context("recsys2021", data, work, work, "polars", "torch_eager", **settings)
        steps = TASK.fit(context)
        while name == "stopped" and next(steps) != "networks":
            pass
        steps.close()
        result, _ = run(TASK.fit(context))
        results[name] = result.details["validation"]
    assert results["whole"] == results["stopped"]


@pytest.mark.parametrize("settings", [SETTINGS, SETTINGS | {"features": "winners", "weights": "random"}])
def test_a_run_with_drawn_tables(
    tmp_path: Path, make_context: MakeContext, run: Any, settings: dict[str, Any]
) -> None:
    data = generated(tmp_path / "data", SCALE / 4)
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()
    settings = settings | SMALL | {"epochs": 1}
    fitted, _ = run(
        TASK.fit(make_context("recsys2021", data, work, work, "polars", "torch_eager", **settings))
    )
    note = f"tables: drawn at scale {SCALE:g}"
    assert note in fitted.notes
    assert (fitted.details["drawn"]["rows"], fitted.details["rows"]["train"]) == (28_789, 7_197)
    done, _ = run(
        TASK.predict(make_context("recsys2021", data, work, out, "polars", "torch_eager", **settings))
    )
    assert note in done.notes and done.rows == 580
    assert {"RCE", "AP"} <= set(done.scores)


@pytest.mark.parametrize(
    ("settings", "message"), [({"tables": "draw"}, "tables=draw: Input should be 'text'")]
)
def test_unknown_tables_are_refused(
    data: Data, tmp_path: Path, make_context: MakeContext, run: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(
            TASK.fit(
                make_context("recsys2021", data, tmp_path, tmp_path, "polars", "torch_eager", **settings)
            )
        )


def test_official_files_cannot_be_drawn(tmp_path: Path) -> None:
    data = generated(tmp_path / "data")
    facts = data.folder / "generator.json"
    facts.write_text(facts.read_text().replace(f'"version": {generator.VERSION}', '"version": 1'))
    with pytest.raises(DataError, match="written by version 1"):
        TrainingRows.of(data.folder)
    facts.unlink()
    with pytest.raises(DataError, match="no generated files"):
        TrainingRows.of(data.folder)
