"""The lazy plan of every operator translates to cuDF as a whole. Needs the gpu-plan extra, but no GPU."""

import gzip
import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

from buzzer.engine.frames import Engine, Frame, gpu_plan
from buzzer.engine.frames.base import Engine as Base
from buzzer.engine.frames.base import Lookup, Pieces, TextFeatures
from buzzer.engine.frames.lazy import Lazy
from buzzer.errors import DataError
from buzzer.models.recsys2021 import features
from buzzer.models.recsys2021.feature_sets import FEATURE_SETS, FeatureSet
from tests.gpu_plans import Planned

pytestmark = [
    pytest.mark.gpu_plan,
    pytest.mark.skipif(importlib.util.find_spec("cudf_polars") is None, reason="needs the gpu-plan extra"),
]
# Operators that are not plans: they write or return data.
NO_PLAN = {
    "write_parquet",
    "from_arrow",
    "collect",
    "keep",
    "height",
    "columns",
    "to_numpy",
    "matrix",
    "read_matching",
    "codes",
    "token_matrix",
    "to_arrow",
}
Case = Callable[[Engine, Frame], Frame]

PARTS = {part: part for part in ("year", "month", "day", "weekday", "hour", "minute")}
LAST = {"x": (2, -1), "k": (1, 0)}
PIECES = Pieces(np.arange(140) % 3 == 0, {"n": (np.arange(140) % 5).astype("uint8")})
CASES: dict[str, Case] = {
    "with_columns": lambda e, t: e.with_columns(t, z=lambda c: c("x") * 2 + c("y") / c("k")),
    "where": lambda e, t: e.with_columns(t, z=lambda c: e.where(c("x") > 1, c("y"), -1.0)),
    "log1p": lambda e, t: e.with_columns(t, z=lambda c: e.log1p(c("y"))),
    "clip": lambda e, t: e.with_columns(t, z=lambda c: e.clip(c("x"), 0, 3)),
    "cast": lambda e, t: e.with_columns(
        t, z=lambda c: e.cast(c("x"), "float32"), w=lambda c: e.cast(c("y"), "int8")
    ),
    "is_null": lambda e, t: e.with_columns(t, z=lambda c: e.cast(e.is_null(c("s")), "int8")),
    "fill_null": lambda e, t: e.with_columns(t, z=lambda c: e.fill_null(c("y"), 0.0)),
    "select": lambda e, t: e.select(t, ["x"]),
    "rename": lambda e, t: e.rename(t, {"x": "z"}),
    "drop": lambda e, t: e.drop(t, ["x"]),
    "filter": lambda e, t: e.filter(t, lambda c: c("x") > 1),
    "concat": lambda e, t: e.concat([t, t]),
    "distinct": lambda e, t: e.distinct(t, ["k", "s"]),
    "group_sums": lambda e, t: e.group_sums(t, ["k"], ["x"]),
    "left_join": lambda e, t: e.left_join(t, e.group_sums(t, ["k"], ["x"]), {"k": "k"}, {"sum_x": "z"}, 0),
    "lookups": lambda e, t: e.lookups(
        t,
        [
            Lookup(e.group_sums(t, ["k"], ["x"]), {"k": "k"}, {"sum_x": "z"}, 0),
            Lookup(e.group_sums(t, ["x"], ["y"]), {"k": "x"}, {"sum_y": "w", "n": "m"}, {"w": 0.5, "m": 1}),
        ],
    ),
    "window_features": lambda e, t: e.window_features(
        t,
        ["k"],
        "o",
        count="n",
        size="m",
        first={"x": "x0"},
        since={"x": "dx"},
        mean={"mx": ("x", 2.0, 0.5)},
        lags=LAST,
    ),
    "token_features": lambda e, t: e.token_features(
        t, "s", "\t", size="n", counts={"101": "z"}, at={0: "w"}, after={("101", 1): "v", ("101", 2): "u"}
    ),
    "text_features": lambda e, t: e.text_features(
        t,
        "s",
        "\t",
        TextFeatures(
            PIECES,
            sums={"n": "n"},
            before={("n", "101"): "m"},
            words={0: "w", 1: "v"},
            after={("101", n): f"a{n}" for n in (1, 2, 3)},
        ),
    ),
    "ends_with": lambda e, t: e.with_columns(
        t, z=lambda c: e.cast(e.ends_with(e.fill_null(c("s"), ""), "7"), "int8")
    ),
    "first_hex_id": lambda e, t: e.first_hex_id(t, "s", "z"),
    "hex_id": lambda e, t: e.hex_id(t, "s", "z"),
    "parse_vector": lambda e, t: e.parse_vector(t, "s", 3, "z"),
    "date_parts": lambda e, t: e.date_parts(e.date_parts(t, "x", "s", PARTS), "k", "d", {"month": "z"}),
    "order_key": lambda e, t: e.order_key(t, "x"),
    "categorify_fit": lambda e, t: e.categorify_fit([(t, "s")], 2),
    "categorify": lambda e, t: e.categorify(t, "s", e.categorify_fit([(t, "s")]), "z"),
    "target_encode": lambda e, t: e.target_encode(
        t, e.group_sums(t, ["k"], ["x"]), ["k"], {"x": 0.5}, 20.0, "te", leave_one_out=True
    ),
    "target_means": lambda e, t: e.target_means(e.group_sums(t, ["k"], ["x"]), {"x": 0.5}, 20.0, "te"),
    "target_encode_kfold": lambda e, t: e.target_encode_kfold(t, ["k", "s"], "f", {"x": 0.5}, 20.0, "te"),
    "seen_before": lambda e, t: e.seen_before(t, e.distinct(t, ["k", "s"]), ["k", "s"], "z"),
    "top_k": lambda e, t: e.top_k(t, "k", "x", 3),
}


@pytest.fixture
def e() -> Planned:
    return Planned()  # does not look for a device


def table() -> pa.Table:
    rows = {"row": [0, 1, 2], "k": [1, 1, 2], "o": [3, 1, 2], "x": [1, 2, 3], "f": [0, 1, 0]}
    return pa.table(rows | {"y": [0.5, None, 1.5], "s": ["101\t7", None, "8"]})


def test_every_operator_has_a_case() -> None:
    public = {name for name in vars(Base) if not name.startswith("_") and callable(getattr(Base, name))}
    assert public - NO_PLAN == CASES.keys() | {"read_csv", "read_parquet"}


@pytest.mark.parametrize("name", CASES)
def test_operators_translate_whole(e: Engine, name: str) -> None:
    assert gpu_plan.refusals(CASES[name](e, e.from_arrow(table()))) == []


def many_rows() -> pa.Table:
    """200 rows with repeated keys, and with missing keys, numbers and lists."""
    n = 200
    random = np.random.default_rng(0)
    lists = [",".join(map(str, random.choice([7, 101, 137], size))) for size in random.integers(0, 6, n)]
    columns = {name: random.permutation(n) for name in ("row", "o")}
    columns |= {"k": random.integers(1, 9, n), "x": random.integers(-5, 5, n), "f": np.arange(n) % 3}
    missing = random.random((3, n)) < 0.2
    return pa.table(
        columns
        | {
            "k": pa.array(columns["k"], mask=missing[0]),
            "y": pa.array(random.normal(size=n), mask=missing[1]),
        }
        | {"s": pa.array([text.replace(",", "\t") for text in lists], mask=missing[2])}
    )


@pytest.mark.parametrize(
    "name", [name for name in CASES if name not in ("hex_id", "first_hex_id", "parse_vector")]
)
def test_both_forms_of_a_plan_agree(name: str) -> None:
    """A plan for the GPU, run by Polars on the CPU, gives the result of the plan for the CPU."""
    want, got = (
        CASES[name](e, e.from_arrow(many_rows())).collect() for e in (Lazy("cpu"), Lazy("gpu", "auto"))
    )
    assert_frame_equal(got, want, check_row_order=False, check_column_order=False, rel_tol=1e-9)


def test_both_forms_of_a_plan_parse_the_same_ids_and_vectors() -> None:
    random = np.random.default_rng(0)
    ids = [random.bytes(16).hex() for _ in range(200)] + [part + "0" * 31 for part in "78f"]
    ids += [
        "0" * 16 + last for last in ("7fffffffffffffff", "8" + "0" * 15, "f" * 16, "0" * 8 + "8" + "0" * 7)
    ]
    ids = [text.upper() if i % 2 else text for i, text in enumerate(ids)]
    numbers = ["[1.5, -2e-3]", "[]", None, "[0.25]"] * 60
    columns = {"row": range(len(ids)), "s": ids, "wide": [2 * text for text in ids], "v": numbers[: len(ids)]}
    columns["many"] = [f"{text}\t{ids[0]}" for text in ids]
    for e in (Lazy("cpu"), Lazy("gpu", "auto")):
        t = e.hex_id(pl.LazyFrame(columns), "s", "id")
        t = e.first_hex_id(e.hex_id(t, "wide", "again", digits=64), "many", "first")
        t = e.parse_vector(t, "v", 2, "v").collect()
        want = [int.from_bytes(bytes.fromhex(text)[-8:], "big", signed=True) for text in ids]
        assert t["id"].to_list() == t["again"].to_list() == t["first"].to_list() == want
        assert t.columns == [*columns, "id", "again", "first", "v_0", "v_1"]
        assert t["v_0"].to_list()[:4] == [1.5, 0.0, 0.0, 0.25]
        np.testing.assert_allclose(t["v_1"].to_numpy()[:4], [-2e-3, 0, 0, 0])


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_both_forms_of_a_plan_read_the_same_files(suffix: str, tmp_path: Path) -> None:
    text = b"b,when,name,a,x\n1,2020-02-29,,7,0.5\n2,1969-12-31,v w,-8,\n"
    schema = {"a": "int64", "name": "str", "when": "date", "x": "float64"}
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    plan = Lazy("gpu").read_csv(path, schema)
    assert gpu_plan.refusals(plan) == []
    assert_frame_equal(plan.collect(), Lazy("cpu").read_csv(path, schema).collect())


@pytest.mark.parametrize("line", ["seven,v,0.5", "7.5,v,0.5", "99999999999999999999,v,0.5", "7,v,half"])
def test_a_number_that_cannot_be_read_raises(line: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"a,s,x\n{line}\n")
    for e in (Lazy("cpu"), Lazy("gpu", "auto")):
        with pytest.raises(DataError):
            e.collect(e.read_csv(tmp_path / "t.csv", {"a": "int64", "s": "str", "x": "float64"}))


def test_files_translate_whole(e: Engine, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,when,name,x\n7,2020-02-29,v,0.5\n")
    schema = {"a": "int64", "name": "str", "when": "date", "x": "float64"}
    assert gpu_plan.refusals(e.read_csv(tmp_path / "t.csv", schema)) == []
    (tmp_path / "part").write_text("7\x01a\x012\n")
    names = {"n": "int64", "s": "str", "y": "float64"}
    assert gpu_plan.refusals(e.read_csv(tmp_path / "part", names, names=list(names), separator="\x01")) == []
    pl.DataFrame({"row": [0], "x": [1]}).write_parquet(tmp_path / "t.parquet")
    assert gpu_plan.refusals(e.read_parquet(tmp_path / "t.parquet", ["row", "x"])) == []


def test_a_plan_that_cudf_cannot_run_is_refused(e: Engine) -> None:
    t: Any = e.from_arrow(table())
    assert gpu_plan.refusals(t.with_columns(z=pl.col("x").map_batches(lambda s: s))) != []


FEATURES = dict.fromkeys(("n", "s"), pl.String)


@pytest.mark.parametrize(
    ("scan", "message"),
    [
        (lambda path: pl.scan_csv(path, schema=FEATURES, has_header=False, quote_char=None), "TypeError"),
        (lambda path: pl.scan_csv(path, schema=FEATURES, has_header=False, quote_char="\0"), ""),
        (lambda path: pl.scan_csv(path, schema=FEATURES | {"n": pl.Int64}), "CSV: an invalid number"),
        (lambda path: pl.scan_csv(path, schema=FEATURES, row_index_name="row"), ""),
    ],
)
def test_scans_are_checked_before_they_need_a_device(scan: Any, message: str, tmp_path: Path) -> None:
    """The translator accepts all of these."""
    (tmp_path / "t.csv").write_text("n,s\n1,x\n")
    refusals = gpu_plan.refusals(scan(tmp_path / "t.csv"))
    assert bool(refusals) == bool(message)
    assert message in "".join(refusals)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (pl.from_epoch("x", time_unit="d"), "dates"),
        (pl.col("x").cast(pl.Int32).cast(pl.Date).dt.month(), "dates"),
        (pl.from_epoch("x", time_unit="s").dt.month(), ""),
        (pl.col("s").cast(pl.Int32), "wraps"),
        (pl.col("s").cast(pl.Int64), ""),
        (pl.col("s").str.to_integer(dtype=pl.Int32), ""),
        (pl.col("y").cast(pl.String), "digits"),
        (pl.col("x").cast(pl.String), ""),
        (pl.col("x").hash() > 0, "hash"),
    ],
)
def test_an_expression_that_cudf_computes_wrongly_is_refused(
    e: Engine, expression: pl.Expr, message: str
) -> None:
    """Anywhere in a plan."""
    t: Any = e.from_arrow(table())
    added = t.with_columns(z=expression)
    for plan in (added, t.group_by("k").agg(expression.max()), added.select("z")):
        refusals = gpu_plan.refusals(plan)
        assert bool(refusals) == bool(message)
        assert message in "".join(refusals)


def recsys2021(e: Engine, chosen: FeatureSet) -> Frame:
    """The part of the pipeline that processes strings."""
    kinds = features.TEXT | dict.fromkeys(features.LABELS.values(), "float64")
    columns = {
        name: pa.array([], pa.string() if kind == "str" else pa.int64()) for name, kind in kinds.items()
    }
    t = e.from_arrow(pa.table(columns | {"row": pa.array([], pa.int64())}))
    return features.base(e, t, chosen, True)


@pytest.mark.parametrize("name", [*CASES, *FEATURE_SETS])
def test_no_string_function_is_computed_twice(e: Engine, name: str) -> None:
    """cudf-polars computes a part of an expression once for each occurrence. `replace_strict` would be a join."""
    if name in FEATURE_SETS:
        plan = recsys2021(e, FEATURE_SETS[name])
    else:
        plan = CASES[name](e, e.from_arrow(table()))
    with gpu_plan.translated(plan) as (errors, root):
        assert not errors
        for node in gpu_plan.nodes(root):
            parts = list(gpu_plan.expressions(node))
            text = Counter(part for part in parts if type(part).__name__ == "StringFunction")
            assert max(text.values(), default=1) == 1
            assert not [part for part in parts if getattr(part, "name", None) == "replace_strict"]


def test_hex_id_has_few_expressions(e: Engine) -> None:
    with gpu_plan.translated(CASES["hex_id"](e, e.from_arrow(table()))) as (errors, root):
        assert not errors
        assert sum(len(list(gpu_plan.expressions(node))) for node in gpu_plan.nodes(root)) < 80


# Operators that need all rows in one order, for the small tables of codes. Only `fit` computes those tables.
ON_ONE_GPU = {"categorify_fit", "categorify"}


@pytest.mark.parametrize("name", CASES)
def test_operators_stay_partitioned_over_several_gpus(e: Planned, name: str) -> None:
    plan = CASES[name](e, e.from_arrow(table()))
    reason = "".join(map(gpu_plan.fallback, [*e.kept, plan]))
    assert bool(reason) == (name in ON_ONE_GPU), reason


def test_the_reason_for_a_single_partition_is_returned(e: Engine) -> None:
    t: Any = e.from_arrow(table())
    assert "multiple partitions" in gpu_plan.fallback(t.with_row_index("i"))
    assert "multiple partitions" in gpu_plan.fallback(t.with_columns(z=pl.col("x").cum_sum()))


def test_deep_plans_do_not_reach_the_recursion_limit(e: Engine) -> None:
    t = e.from_arrow(table())
    sums = e.group_sums(t, ["k"], ["x"])
    for i in range(150):  # each node uses the previous one
        t = e.with_columns(
            e.left_join(t, sums, {"k": "k"}, {"n": f"n{i}"}, 0), k=lambda c, i=i: c("k") + c(f"n{i}")
        )  # type: ignore[misc]
    assert gpu_plan.refusals(t) == []
    assert gpu_plan.fallback(t) == ""
    with gpu_plan.translated(t) as (errors, root):
        assert not errors
        assert len(list(gpu_plan.nodes(root))) > 150


def test_a_column_that_replaces_itself_beside_a_window_is_refused(e: Engine) -> None:
    """Polars moves x + 1 into the node of the windows; cudf-polars then computes x + 2."""
    t: Any = e.from_arrow(table()).with_columns(x=pl.col("x") + 1)
    over = {"size": pl.len().over("k"), "before": pl.col("o").cum_sum().over("k", order_by="o")}
    assert "column x: replaces itself" in "".join(gpu_plan.refusals(t.with_columns(**over)))
    new = t.with_columns(z=pl.col("x") * 2, **over)  # a new column may be computed twice
    assert [text.split(":")[0] for text in gpu_plan.refusals(new)] == ["column x"]


def test_windows_are_computed_apart(e: Planned) -> None:
    t = e.with_columns(e.from_arrow(table()), x=lambda c: c("x") + 1)
    t = e.window_features(t, ["k"], "o", count="n", size="m", lags={"x": (1, 0)})
    t = e.with_columns(t, x=lambda c: c("x") * 2, m=lambda c: c("m") + 1)
    assert gpu_plan.refusals(t) == []
    got = t.sort("row").select("x", "n", "m", "x_lag1").collect()
    assert got.rows() == [(4, 1, 3, 3), (6, 0, 3, 0), (8, 0, 2, 0)]
