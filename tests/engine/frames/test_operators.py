"""Each operator on every engine, against values worked out by hand or by plain Python loops."""

import gzip
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buzzer.engine import frames
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import LONGEST, Lookup, Pieces, TextFeatures
from buzzer.engine.frames.texts import on_gpu
from buzzer.engine.frames.token_lists import word_keys
from buzzer.errors import DataError, UnsupportedError, UsageError

Make = Callable[[dict[str, list[Any]]], Frame]
Values = Callable[..., Any]
Rows = Callable[..., set[tuple[Any, ...]]]
few = settings(
    max_examples=min(25, settings().max_examples),  # fewer in the profile "gpu"
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

CSV = "b,when,name,a,x\n1,2020-02-29,,7,0.5\n2,1969-12-31,v w,8,\n"
SCHEMA = {"a": "int64", "name": "str", "when": "date", "x": "float64"}


# ---- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_read_csv_reads_the_columns_of_the_schema(
    e: Engine, values: Values, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(gzip.compress(CSV.encode()) if suffix.endswith("gz") else CSV.encode())
    t = e.read_csv(path, SCHEMA)
    assert e.columns(t) == ["a", "name", "when", "x", "row"]
    assert values(t, "a", "name", "when", "x", "row") == (
        [7, 8],
        [None, "v w"],
        [18321, -1],
        [0.5, None],
        [0, 1],
    )
    arrays = e.to_numpy(t, ["a", "when", "row"])
    assert all(array.dtype == np.int64 for array in arrays.values())


@pytest.mark.parametrize(
    "text",
    ["", "a,name,when,x\nseven,v,2020-01-01,1\n", "a,name,when,x\n7,v,01/02/2020,1\n", "a,name,x\n7,v,1\n"],
    ids=["empty", "bad integer", "bad date", "missing column"],
)
def test_read_csv_refuses_bad_files(e: Engine, tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError):
        e.collect(e.read_csv(tmp_path / "t.csv", SCHEMA))


@pytest.mark.parametrize("field", ["12x", "x12", "1_2", "1.5", "99999999999999999999", "-"])
def test_a_field_that_is_not_an_integer_is_refused(e: Engine, tmp_path: Path, field: str) -> None:
    """libcudf itself would read null, 0 or 12."""
    (tmp_path / "t.csv").write_text(f"a,b\n1,2\n{field},3\n")
    with pytest.raises(DataError):
        e.to_numpy(e.read_csv(tmp_path / "t.csv", {"a": "int64"}), ["a"])


@pytest.mark.parametrize("field", ["2020-02-30", "20200101", "2020-01-01x"])
def test_a_field_that_is_not_a_date_is_refused(e: Engine, tmp_path: Path, field: str) -> None:
    (tmp_path / "t.csv").write_text(f"a,b\n2020-01-01,2\n{field},3\n")
    with pytest.raises(DataError):
        e.to_numpy(e.read_csv(tmp_path / "t.csv", {"a": "date"}), ["a"])


def test_read_csv_reads_the_full_range_of_int64(e: Engine, values: Values, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,x\n-9223372036854775808,-1.5e3\n9223372036854775807,.5\n")
    t = e.read_csv(tmp_path / "t.csv", {"x": "float64", "a": "int64"})
    assert values(t, "a", "x") == ([-(2**63), 2**63 - 1], [-1500.0, 0.5])


def test_parquet_round_trip(e: Engine, frame: Make, values: Values, tmp_path: Path) -> None:
    e.write_parquet(frame({"a": [3, 1], "s": ["x", None]}), tmp_path / "t.parquet")
    t = e.read_parquet(tmp_path / "t.parquet")
    assert values(t, "a", "s", "row") == ([3, 1], ["x", None], [0, 1])
    assert e.columns(e.read_parquet(tmp_path / "t.parquet", ["row", "a"])) == ["row", "a"]
    assert e.height(t) == 2


def test_read_matching_keeps_the_rows_of_the_keys(e: Engine, frame: Make, rows: Rows, tmp_path: Path) -> None:
    """Over several row groups, by two keys. A key that is missing or not in the file matches nothing."""
    columns = {"k": [i // 2 for i in range(40)], "j": [i % 2 for i in range(40)], "n": list(range(40))}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=7)
    keys = e.distinct(frame({"k": [3, 3, 19, 99, None, 5], "j": [1, 1, 0, 0, 1, None]}), ["k", "j"])
    assert rows(e.read_matching(tmp_path / "t.parquet", keys, ["k", "j"]), "k", "j", "n") == {
        (3, 1, 7),
        (19, 0, 38),
    }
    by_one = e.read_matching(tmp_path / "t.parquet", e.distinct(frame({"k": [8]}), ["k"]), ["k"])
    assert rows(by_one, "k", "n") == {(8, 16), (8, 17)}
    nothing = e.read_matching(tmp_path / "t.parquet", e.distinct(frame({"k": [-1]}), ["k"]), ["k"])
    assert e.columns(nothing) == ["k", "j", "n"] and rows(nothing, "k", "n") == set()
    pl.DataFrame(columns).clear().write_parquet(tmp_path / "empty.parquet")  # has no row group
    assert e.height(e.read_matching(tmp_path / "empty.parquet", keys, ["k", "j"])) == 0


def test_matrix_is_float32_sorted_by_row(e: Engine, frame: Make) -> None:
    t = frame({"row": [2, 0, 1], "a": [2, 0, 1], "b": [0.5, None, 1.5]})
    got = e.matrix(t, ["b", "row", "a"])
    assert got.dtype == np.float32 and got.flags["C_CONTIGUOUS"]
    want = np.array([[np.nan, 0, 0], [1.5, 1, 1], [0.5, 2, 2]], dtype=np.float32)
    np.testing.assert_array_equal(got.get() if hasattr(got, "get") else got, want)


def on_host(array: Any) -> Any:
    return array.get() if hasattr(array, "get") else array


def test_codes_are_int64_sorted_by_row(e: Engine, frame: Make) -> None:
    t = frame({"row": [2, 0, 1], "a": [2**62 + 1, 0, 1], "b": [5, -3, 4]})
    got = e.codes(t, ["b", "a"])
    assert got.dtype == np.int64 and got.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(on_host(got), [[-3, 0], [4, 1], [5, 2**62 + 1]])
    np.testing.assert_array_equal(on_host(e.codes(t, ["b"])), [[-3], [4], [5]])


def test_to_arrow_is_sorted_by_row(e: Engine, frame: Make) -> None:
    t = frame({"row": [2, 0, 1], "s": ["c", "a", None], "x": [2.5, 0.5, 1.5]})
    got = e.to_arrow(t, ["x", "s"])
    assert isinstance(got, pa.Table) and got.column_names == ["x", "s"]
    assert got.to_pydict() == {"x": [0.5, 1.5, 2.5], "s": ["a", None, "c"]}


def test_to_numpy_sorts_by_row(frame: Make, values: Values) -> None:
    assert values(frame({"row": [2, 0, 1], "a": [12, 10, 11]}), "a") == [10, 11, 12]


# ---- element-wise -----------------------------------------------------------------------------------------------------


def test_with_columns_with_python_expressions(e: Engine, frame: Make, values: Values) -> None:
    t = frame({"a": [7, -7, 0], "b": [2.0, None, 4.0], "s": ["x", None, "z"]})
    t = e.with_columns(
        t,
        half=lambda c: c("a") // 2,
        rest=lambda c: c("a") % 3,
        both=lambda c: c("half") * 10 + c("rest"),
        pick=lambda c: e.where(c("a") > 0, c("a"), -c("a")),
        flag=lambda c: e.where(c("b") > 1, 1, 0),
        word=lambda c: e.where(c("a") > 0, "plus", "minus"),
        low=lambda c: e.clip(c("a"), -1, 1),
        log=lambda c: e.log1p(e.fill_null(c("b"), 0.0)),
        gone=lambda c: e.cast(e.is_null(c("s")), "int8"),
        text=lambda c: e.fill_null(c("s"), "-"),
        end=lambda c: e.cast(e.ends_with(e.fill_null(c("s"), "xy"), "y"), "int8"),
    )
    assert values(t, "half", "rest", "both") == ([3, -4, 0], [1, 2, 0], [31, -38, 0])
    assert values(t, "pick", "flag", "word") == ([7, 7, 0], [1, 0, 1], ["plus", "minus", "minus"])
    assert values(t, "low", "gone", "text") == ([1, -1, 0], [0, 1, 0], ["x", "-", "z"])
    assert values(t, "end") == [0, 1, 0]
    assert values(t, "log") == pytest.approx([math.log(3), 0, math.log(5)])


def test_a_missing_condition_is_false(e: Engine, frame: Make, values: Values) -> None:
    t = frame({"a": [1.0, None, 3.0], "b": [10.0, 20.0, 30.0]})
    t = e.with_columns(
        t,
        left=lambda c: e.where(c("a") > 0, c("b"), -1.0),
        right=lambda c: e.where(c("a") > 0, -1.0, c("b")),
        both=lambda c: e.where(c("a") > 0, c("a"), c("b")),
        flag=lambda c: e.where(c("a") > 0, 1, 0),
    )
    assert values(t, "left", "right") == ([10, -1, 30], [-1, 20, -1])
    assert values(t, "both", "flag") == ([1, 20, 3], [1, 0, 1])


def test_rows_and_columns(e: Engine, frame: Make, values: Values, rows: Rows) -> None:
    t = frame({"a": [1, 2, 2, None], "b": [5, 6, 6, 7]})
    kept = e.filter(t, lambda c: c("b") > 5)
    assert values(kept, "row") == [1, 2, 3]
    assert e.columns(e.select(t, ["b"])) == ["b", "row"]
    assert e.columns(e.drop(e.rename(t, {"a": "z"}), ["b"])) == ["row", "z"]
    assert rows(e.distinct(t, ["a", "b"]), "a", "b") == {(1, 5), (2, 6)}
    again = e.with_columns(t, row=lambda c: c("row") + 4)
    assert values(e.concat([t, again]), "b") == [5, 6, 6, 7] * 2


# ---- codes and counts -------------------------------------------------------------------------------------------------


def test_categorify_by_hand(e: Engine, frame: Make, values: Values, rows: Rows) -> None:
    t = frame({"s": ["b", "a", "b", None, "c", "a", "d", "b"]})
    table = e.categorify_fit([(t, "s")], min_count=2)
    assert rows(table, "value", "n", "code") == {("b", 3, 2), ("a", 2, 3), ("c", 1, 1), ("d", 1, 1)}
    new = frame({"s": ["a", "zz", None, "b", "d"]})
    assert values(e.categorify(new, "s", table, "code"), "code") == [3, 0, 0, 2, 1]


def test_categorify_shares_codes_over_columns(e: Engine, frame: Make, rows: Rows) -> None:
    one, two = frame({"x": [5, 5, 9]}), frame({"y": [9, 9, 7]})
    table = e.categorify_fit([(one, "x"), (two, "y")])
    assert rows(table, "value", "n", "code") == {(9, 3, 2), (5, 2, 3), (7, 1, 4)}


def test_a_table_fitted_by_one_engine_works_on_the_others(
    e: Engine, frame: Make, values: Values, tmp_path: Path
) -> None:
    import pyarrow as pa

    polars = frames.load("polars")
    fitted = polars.categorify_fit([(polars.from_arrow(pa.table({"s": ["b", "a", "b"]})), "s")])
    polars.write_parquet(fitted, tmp_path / "codes.parquet")
    t = e.categorify(frame({"s": ["a", "b", "x"]}), "s", e.read_parquet(tmp_path / "codes.parquet"), "code")
    assert values(t, "code") == [3, 2, 0]


@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 3, None]), st.sampled_from(["x", "y", None])),
        min_size=1,
        max_size=30,
    )
)
@few
def test_counts_and_sums(
    e: Engine, frame: Make, values: Values, rows: Rows, pairs: list[tuple[Any, Any]]
) -> None:
    y = [i % 3 for i in range(len(pairs))]
    t = frame({"a": [p[0] for p in pairs] + [1], "b": [p[1] for p in pairs] + ["x"], "y": [*y, 1]})
    pairs = [*pairs, (1, "x")]
    times = Counter(pairs)
    assert values(e.window_features(t, ["a", "b"], "row", size="n"), "n") == [times[p] for p in pairs]
    sums: dict[tuple[Any, Any], int] = defaultdict(int)
    for pair, value in zip(pairs, [*y, 1], strict=True):
        sums[pair] += value
    whole = {p for p in pairs if None not in p}
    assert rows(e.group_sums(t, ["a", "b"], ["y"]), "a", "b", "sum_y", "n") == {
        (*p, sums[p], times[p]) for p in whole
    }


def test_left_join_fills_rows_without_a_match(e: Engine, frame: Make, values: Values) -> None:
    table = e.drop(frame({"k": [1, 2], "m": ["x", "y"], "v": [10, 20]}), ["row"])
    t = frame({"a": [2, 1, None, 3], "b": ["y", "y", "x", "x"]})
    assert values(e.left_join(t, table, {"a": "k"}, {"v": "out"}, -1), "out") == [20, 10, -1, -1]
    assert values(e.left_join(t, table, {"a": "k", "b": "m"}, {"v": "out"}, 0), "out") == [20, 0, 0, 0]


# pandas' `set_index` cannot tell whether two far-apart ids are evenly spaced.
POOLS = {
    "numbers": [0, 5 * 10**18, -5 * 10**18, -1, None],
    "text": ["", "a", "b" * 64, "ß", None],
}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("many", [0, 1, 2, 3])
def test_every_table_of_few_keys(
    e: Engine, frame: Make, values: Values, rows: Rows, pool: str, many: int
) -> None:
    """All tables of up to three of five keys, which may be far apart, negative, missing or repeated: counts, sums, codes, and joins."""
    keys: list[Any] = POOLS[pool]
    kind, order = pa.int64() if pool == "numbers" else pa.string(), sorted(keys[:-1])
    want = [*keys, keys[0]]
    asked = frame({"k": pa.array(want, kind), "m": pa.array(want, kind)})
    for chosen in combinations_with_replacement(keys, many):
        column = pa.array(chosen, kind)
        t = frame({"k": column, "m": column, "v": pa.array(range(many), pa.int64())})
        sums = {key: sum(i for i, k in enumerate(chosen) if k == key) for key in chosen if key is not None}
        times = {key: chosen.count(key) for key in sums}
        assert rows(e.group_sums(t, ["k"], ["v"]), "k", "sum_v", "n") == {
            (key, sums[key], times[key]) for key in sums
        }
        for on in (["k"], ["m", "k"]):
            table = e.group_sums(t, on, ["v"])
            for ready in (table, e.collect(table)):
                got = e.left_join(
                    asked, ready, {c: c for c in on}, {"sum_v": "sum", "n": "n"}, {"sum": -1, "n": 0}
                )
                assert values(got, "sum", "n") == (
                    [sums.get(k, -1) for k in want],
                    [times.get(k, 0) for k in want],
                )
            seen = e.seen_before(asked, e.distinct(t, on), on, "seen")
            assert values(seen, "seen") == [int(k in sums) for k in want]
            before, every = values(e.window_features(t, on, "row", count="n", size="m"), "n", "m")
            assert before == [chosen[:i].count(k) for i, k in enumerate(chosen)]
            assert every == [chosen.count(k) for k in chosen]
        ranked = sorted(times, key=lambda key: (-times[key], order.index(key)))
        codes = {key: place for place, key in enumerate(ranked, 2)}
        coded = e.categorify(asked, "k", e.categorify_fit([(t, "k")]), "code")
        assert values(coded, "code") == [codes.get(k, 0) for k in want]


def test_left_join_keeps_types_and_accepts_a_fill_by_column(e: Engine, frame: Make) -> None:
    table = {
        "k": pa.array(["x", "y"]),
        "i": pa.array([2**62 + 1, 5], pa.int64()),
        "f": pa.array([0.1, 0.2], pa.float32()),
        "s": pa.array(["eins", "zwei"]),
    }
    fill = {"the_i": -1, "the_f": 0.3, "the_s": "-"}
    names = {name: f"the_{name}" for name in "ifs"}
    t = e.left_join(
        frame({"a": ["x", None, "z", "y"]}), e.from_arrow(pa.table(table)), {"a": "k"}, names, fill
    )
    got = e.to_numpy(t, ["the_i", "the_f", "the_s"])
    assert got["the_i"].dtype == np.int64 and got["the_f"].dtype == np.float32
    assert got["the_i"].tolist() == [2**62 + 1, -1, -1, 5]
    np.testing.assert_array_equal(got["the_f"], np.array([0.1, 0.3, 0.3, 0.2], dtype=np.float32))
    assert got["the_s"].tolist() == ["eins", "-", "-", "zwei"]


def plain_lookup(
    rows: list[tuple[Any, ...]], table: dict[tuple[Any, ...], int], at: tuple[int, ...], fill: int
) -> list[int]:
    """By hand: a key with a missing part matches nothing."""
    keys = [tuple(row[i] for i in at) for row in rows]
    return [fill if None in key else table.get(key, fill) for key in keys]


key = st.sampled_from([None, 0, 3, -(2**62), 2**61])
small = st.integers(0, 2)


@given(
    st.lists(st.tuples(key, key, small), min_size=1, max_size=20),
    st.dictionaries(st.tuples(key), st.integers(0, 9), max_size=5),
    st.dictionaries(st.tuples(key), st.integers(0, 9), max_size=5),
    st.dictionaries(st.tuples(key, key, small), st.integers(0, 9), max_size=9),
)
@few
def test_lookups_agree_with_a_plain_loop(
    e: Engine,
    frame: Make,
    values: Values,
    data: list[tuple[Any, Any, int]],
    one: dict[Any, int],
    two: dict[Any, int],
    three: dict[Any, int],
) -> None:
    """Tables of any size, some with the same key columns, in any order of the columns, and with rows that miss a key."""
    data = [*data, (3, 0, 1)]  # no column is all missing
    t = frame(
        {"row": list(range(len(data)))[::-1], **{c: [row[i] for row in data] for i, c in enumerate("abc")}}
    )

    def table(columns: str, rows: dict[Any, int]) -> Frame:
        arrays = {c: pa.array([key[i] for key in rows], pa.int64()) for i, c in enumerate(columns)}
        return e.from_arrow(pa.table({**arrays, "v": pa.array(list(rows.values()), pa.int64())}))

    wanted = [
        Lookup(table("a", one), {"a": "a"}, {"v": "one"}, -1),
        Lookup(table("k", two), {"b": "k"}, {"v": "two"}, -2),
        Lookup(table("k", two), {"a": "k"}, {"v": "three"}, {"three": -3}),
        Lookup(table("xyz", three), {"a": "x", "b": "y", "c": "z"}, {"v": "four"}, -4),
        Lookup(table("xyz", three), {"c": "z", "b": "x", "a": "y"}, {"v": "five"}, -5),
    ]
    got = values(e.lookups(t, wanted), "one", "two", "three", "four", "five")
    tables = [
        (one, (0,), -1),
        (two, (1,), -2),
        (two, (0,), -3),
        (three, (0, 1, 2), -4),
        (three, (1, 0, 2), -5),
    ]
    want = [plain_lookup(data, rows, at, fill)[::-1] for rows, at, fill in tables]
    assert [list(x) for x in got] == want


def test_left_join_by_more_key_combinations_than_64_bits_hold(e: Engine, frame: Make, values: Values) -> None:
    """Seven columns of 2,000 values have 10**23 combinations. Keys without a match differ from a row of the table in one column."""
    rng, many = np.random.default_rng(5), 400
    whole = {name: rng.permutation(2000) * 10**15 for name in "abcdefg"}
    table = e.drop(frame({**whole, "v": range(2000)}), ["row"])
    asked: dict[str, list[int | None]] = {name: [int(x) for x in whole[name]] for name in whole}
    for i, name in enumerate("aeg", 1):
        part = asked[name][i * many : (i + 1) * many]
        asked[name][i * many : (i + 1) * many] = [*part[1:], part[0]]
    asked["d"][4 * many :] = [None] * many
    got = values(e.left_join(frame(asked), table, {name: name for name in whole}, {"v": "z"}, -1), "z")
    assert got == [*range(many), *[-1] * 4 * many]


# ---- target encoding --------------------------------------------------------------------------------------------------


def test_target_encoding_by_hand(e: Engine, frame: Make, values: Values) -> None:
    early = frame({"k": [1, 1, 2, None], "y": [1, 0, 1, 1], "z": [0, 0, 1, 0]})
    table = e.group_sums(early, ["k"], ["y", "z"])
    late = frame({"k": [1, 2, 3, None]})
    t = e.target_encode(late, table, ["k"], {"y": 0.5, "z": 0.25}, 2.0, "te")
    assert values(t, "te_y") == pytest.approx([(1 + 1) / 4, (1 + 1) / 3, 0.5, 0.5])
    assert values(t, "te_z") == pytest.approx([0.5 / 4, 1.5 / 3, 0.25, 0.25])
    assert set(e.columns(t)) == {"row", "k", "te_y", "te_z"}


@pytest.mark.parametrize("weight", [20.0, 3.7])
def test_target_means_equal_target_encode(e: Engine, frame: Make, values: Values, weight: float) -> None:
    """The table's means equal those made of the sums, to the last bit; unseen keys get the prior."""
    early = frame({"k": [i % 7 for i in range(50)], "y": [i * i % 2 for i in range(50)], "z": [1] * 50})
    table, priors = e.group_sums(early, ["k"], ["y", "z"]), {"y": 0.137, "z": 1 / 3}
    means = e.target_means(table, priors, weight, "te")
    assert sorted(e.columns(means)) == ["k", "te_y", "te_z"]
    late = frame({"k": [0, 6, 9, None]})
    fill = {f"te_{target}": prior for target, prior in priors.items()}
    joined = e.left_join(late, means, {"k": "k"}, {"te_y": "te_y", "te_z": "te_z"}, fill)
    encoded = e.target_encode(late, table, ["k"], priors, weight, "te")
    sums = {
        k: [sum(i * i % 2 for i in range(50) if i % 7 == k), sum(i % 7 == k for i in range(50))]
        for k in range(7)
    }
    for i, target in enumerate(priors):
        whole = [(sums[k][i] + weight * priors[target]) / (sums[k][1] + weight) for k in (0, 6)]
        want = np.array([*whole, priors[target], priors[target]], dtype=np.float32)
        for t in (joined, encoded):
            got = e.to_numpy(t, [f"te_{target}"])[f"te_{target}"]
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, want)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from("xy"), st.integers(0, 1), st.integers(0, 2)),
        min_size=1,
        max_size=40,
    )
)
@few
def test_leave_one_out_and_out_of_fold_exclude_the_own_target(
    e: Engine, frame: Make, values: Values, data: list[tuple[int, str, int, int]]
) -> None:
    a, b, y, fold = (list(column) for column in zip(*data, strict=True))
    t = frame({"a": a, "b": b, "y": y, "fold": fold})
    loo = e.target_encode(
        t, e.group_sums(t, ["a", "b"], ["y"]), ["a", "b"], {"y": 0.3}, 5.0, "loo", leave_one_out=True
    )
    kfold = e.target_encode_kfold(t, ["a", "b"], "fold", {"y": 0.3}, 5.0, "oof")

    def smoothed(others: list[int]) -> float:
        return (sum(others) + 5 * 0.3) / (len(others) + 5)

    every = range(len(a))
    same = [[j for j in every if (a[j], b[j]) == (a[i], b[i])] for i in every]
    assert values(loo, "loo_y") == pytest.approx(
        [smoothed([y[j] for j in same[i] if j != i]) for i in every], rel=1e-6
    )
    assert values(kfold, "oof_y") == pytest.approx(
        [smoothed([y[j] for j in same[i] if fold[j] != fold[i]]) for i in every], rel=1e-6
    )


# ---- windows ----------------------------------------------------------------------------------------------------------

events = st.lists(
    st.tuples(st.sampled_from([1, 2, None]), st.sampled_from("xy"), st.integers(-9, 9)),
    min_size=1,
    max_size=30,
)


def windows_of(e: Engine, t: Frame) -> Frame:
    return e.window_features(
        t,
        ["a", "b"],
        "ord",
        count="count",
        size="size",
        first={"v": "first"},
        since={"v": "since"},
        mean={"mean": ("v", 2.0, 0.5)},
        lags={"v": (2, -99)},
    )


COLUMNS = ("count", "size", "first", "since", "mean", "v_lag1", "v_lag2")


@given(events, st.randoms())
@few
def test_window_features_against_a_loop(
    e: Engine, frame: Make, values: Values, data: list[tuple[Any, str, int]], random: Any
) -> None:
    order = list(range(len(data)))
    random.shuffle(order)  # rows are in any order; `ord` is the order of the window
    columns = {"row": order, "ord": order, "a": [data[i][0] for i in order], "b": [data[i][1] for i in order]}
    got = values(windows_of(e, frame(columns | {"v": [data[i][2] for i in order]})), *COLUMNS)
    past: dict[Any, list[int]] = defaultdict(list)
    expected = []
    sizes = Counter(d[:2] for d in data)
    for a, b, v in data:
        p = past[a, b]
        mean = (sum(p) + 2 * 0.5) / (len(p) + 2)
        since = v - p[-1] if p else -1
        lag = [p[-i] if len(p) >= i else -99 for i in (1, 2)]
        expected.append((len(p), sizes[a, b], ([*p, v])[0], since, mean, *lag))
        p.append(v)
    for name, column, want in zip(COLUMNS, got, zip(*expected, strict=True), strict=True):
        assert column == pytest.approx(list(want), rel=1e-6), name


@given(events, st.integers(0, 29), st.integers(-9, 9))
@few
def test_later_rows_do_not_change_earlier_ones(
    e: Engine, frame: Make, values: Values, data: list[tuple[Any, str, int]], at: int, new: int
) -> None:
    at %= len(data)
    a, b, v = (list(column) for column in zip(*data, strict=True))
    columns = {"ord": list(range(len(a))), "a": a, "b": b}
    before = values(windows_of(e, frame(columns | {"v": v})), *COLUMNS)
    after = values(windows_of(e, frame(columns | {"v": [*v[:at], new, *v[at + 1 :]]})), *COLUMNS)
    for name, x, y in zip(COLUMNS, before, after, strict=True):
        seen = at if name in ("first", "since") else at + 1  # these two contain the row's own value
        assert x[:seen] == y[:seen], name


def test_window_features_of_an_empty_frame(e: Engine, frame: Make, values: Values) -> None:
    t = e.filter(frame({"a": [1], "b": ["x"], "v": [1], "ord": [0]}), lambda c: c("a") > 1)
    assert values(windows_of(e, t), "count", "v_lag2") == ([], [])


def test_order_key_is_time_then_row(e: Engine, frame: Make, values: Values) -> None:
    t = e.order_key(frame({"time": [5, 3, 5, -1]}), "time")
    assert sorted(range(4), key=values(t, "ord").__getitem__) == [3, 1, 0, 2]
    assert len(set(values(t, "ord"))) == 4


# ---- tables by key ----------------------------------------------------------------------------------------------------


def test_top_k_breaks_ties_by_code(e: Engine, frame: Make, rows: Rows) -> None:
    t = frame({"k": [1] * 6 + [2], "item": [7, 7, 5, 5, 9, 3, 4]})
    assert rows(e.top_k(t, "k", "item", 3), "k", "rank", "item", "n") == {
        (1, 0, 5, 2),
        (1, 1, 7, 2),
        (1, 2, 3, 1),
        (2, 0, 4, 1),
    }


def test_top_k_by_weight(e: Engine, frame: Make, rows: Rows) -> None:
    t = frame({"k": [1, 1, 1, 1, 2], "item": [7, 7, 5, 9, 4], "w": [2, 3, 6, 5, 1]})
    assert rows(e.top_k(t, "k", "item", 2, "w"), "k", "rank", "item", "n") == {
        (1, 0, 5, 6),
        (1, 1, 7, 5),
        (2, 0, 4, 1),
    }


def test_seen_before(e: Engine, frame: Make, values: Values) -> None:
    pairs = e.distinct(frame({"a": [1, 1, 2], "b": [5, 5, 6]}), ["a", "b"])
    t = e.seen_before(frame({"a": [1, 1, 2, None], "b": [5, 6, 6, 5]}), pairs, ["a", "b"], "seen")
    assert values(t, "seen") == [1, 0, 1, 0]


# ---- strings and dates ------------------------------------------------------------------------------------------------

token_lists = st.lists(
    st.one_of(st.none(), st.lists(st.integers(0, 40), max_size=6)), min_size=1, max_size=12
)


@pytest.mark.parametrize("at", [0, 1, 4])
def test_the_token_at_a_position(e: Engine, frame: Make, values: Values, at: int) -> None:
    lists = ["101\t7\t102", None, "8", "", "1\t2\t3\t4\t5\t6"]
    t = e.token_features(frame({"s": lists}), "s", "\t", at={at: "z"})
    want = [int(s.split("\t")[at]) if s and len(s.split("\t")) > at else -1 for s in lists]
    assert values(t, "z") == want


def plain_after(tokens: list[int], token: int, nth: int) -> int:
    """By hand: occurrences are counted from the left; nothing follows the last token."""
    at = [i for i, value in enumerate(tokens[:-1]) if value == token]
    return tokens[at[nth - 1] + 1] if len(at) >= nth else -1


@given(token_lists, st.integers(1, 6), st.randoms())
@few
def test_token_matrix_is_sorted_by_row(
    e: Engine, frame: Make, lists: list[list[int] | None], length: int, random: Any
) -> None:
    order = list(range(len(lists)))
    random.shuffle(order)
    joined = [None if lists[i] is None else "\t".join(map(str, lists[i] or [])) for i in order]
    got = e.token_matrix(frame({"row": order, "s": [*joined]}), "s", "\t", length)
    assert got.dtype == np.int32
    want = [((tokens or []) + [0] * length)[:length] for tokens in lists]
    np.testing.assert_array_equal(on_host(got), np.array(want).reshape(len(lists), length))


@given(
    st.lists(
        st.none() | st.lists(st.sampled_from([137, 13, 37, 7, 1371, 0]), max_size=8), min_size=1, max_size=20
    )
)
@few
def test_token_features_against_a_loop(
    e: Engine, frame: Make, values: Values, lists: list[list[int] | None]
) -> None:
    lists = [*lists, [137, 7, 137]]
    t = frame({"s": [None if tokens is None else "\t".join(map(str, tokens)) for tokens in lists]})
    t = e.token_features(
        t,
        "s",
        "\t",
        size="size",
        counts={"137": "many", "7": "sevens"},
        at={0: "first", 2: "third"},
        after={("137", 1): "one", ("137", 2): "two"},
    )
    plain = [tokens or [] for tokens in lists]
    assert values(t, "size", "many") == ([len(p) for p in plain], [p.count(137) for p in plain])
    assert values(t, "sevens") == [p.count(7) for p in plain]
    for at, name in ((0, "first"), (2, "third")):
        assert values(t, name) == [p[at] if len(p) > at else -1 for p in plain]
    for nth, name in ((1, "one"), (2, "two")):
        assert values(t, name) == [plain_after(p, 137, nth) for p in plain]


def test_token_counts_match_whole_words(e: Engine, frame: Make, values: Values) -> None:
    """A token that only begins or ends with the word does not count."""
    t = frame({"s": ["Photo\tVideo\tPhoto", None, "", "Photos", "aPhoto\tPhoto", "Grüße\tPhoto"]})
    t = e.token_features(t, "s", "\t", counts={"Photo": "photos", "Grüße": "greetings"})
    assert values(t, "photos", "greetings") == ([2, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1])


PIECES = Pieces(
    np.arange(200) % 3 == 1,  # whether a token continues a word
    {"characters": (np.arange(200) % 8).astype("uint8"), "most": np.full(200, 255, "uint8")}
    | {
        name: (np.arange(200) % n == 0).astype("uint8")
        for n, name in enumerate(("even", "third", "fourth"), 2)
    },
)


def plain_key(tokens: list[int], start: int | None) -> int:
    """The ids of a word's first three pieces, by hand; ids that the vocabulary does not have start a word."""
    if start is None or start >= len(tokens):
        return -1
    own = [tokens[start]]
    for token in tokens[start + 1 : start + 3]:
        if not (token < 200 and token % 3 == 1):
            break
        own.append(token)
    return sum(token << 17 * at for at, token in enumerate(own))


EVERY_TEXT_FEATURE = TextFeatures(
    PIECES,
    sums={name: name for name in PIECES.amounts},
    before={(name, "131"): f"{name}_ahead" for name in ("characters", "most")},
    words={0: "word_0", 1: "word_1"},
    after={("137", n): f"mention_{n}" for n in (1, 2, 3)},
)


def plain_text_features(tokens: list[int]) -> dict[str, int]:
    """The columns of a text, by loops."""
    summed = tokens[:LONGEST]
    ahead = summed[: summed.index(131)] if 131 in summed else []
    amounts = {name: dict(enumerate(values.tolist())) for name, values in PIECES.amounts.items()}
    second = [at for at in range(2, 6) if at < len(tokens) and not (tokens[at] < 200 and tokens[at] % 3 == 1)]
    mentions = [at + 1 for at, token in enumerate(tokens[:-1]) if token == 137]
    keys = {f"mention_{n}": mentions[n - 1] if len(mentions) >= n else None for n in (1, 2, 3)}
    keys |= {"word_0": 1, "word_1": second[0] if second else None}
    return (
        {name: sum(amounts[name].get(token, 0) for token in summed) for name in PIECES.amounts}
        | {
            f"{name}_ahead": sum(amounts[name].get(token, 0) for token in ahead)
            for name in ("characters", "most")
        }
        | {name: plain_key(tokens, start) for name, start in keys.items()}
    )


def test_word_keys_against_a_loop() -> None:
    words = [[7, 10, 4], [6, 10, 4], [6, 5, 4], [6, 4], [250, 4, 250], [10], [119_546, 1, 119_545], []]
    spans = np.array([[*word, -1, -1, -1][:3] for word in words])
    want = [plain_key(word, 0) for word in words]
    assert word_keys(PIECES, spans).tolist() == want
    assert len({*want}) == len(words)


@given(
    st.lists(
        st.none() | st.lists(st.sampled_from([137, 131, 101, 4, 7, 10, 12, 1, 250, 119_546]), max_size=12),
        min_size=1,
        max_size=20,
    ),
    st.randoms(),
)
@few
def test_text_features_against_a_loop(
    e: Engine, frame: Make, values: Values, lists: list[list[int] | None], random: Any
) -> None:
    lists = [*lists, [137, 131], [131, 137, 131], [131] * (LONGEST + 9), [7] * LONGEST + [131], [137, 7, 137]]
    random.shuffle(lists)
    t = frame({"s": [None if tokens is None else "\t".join(map(str, tokens)) for tokens in lists]})
    t = e.text_features(t, "s", "\t", EVERY_TEXT_FEATURE)
    want = [plain_text_features(tokens or []) for tokens in lists]
    for name in want[0]:
        assert values(t, name) == [row[name] for row in want], name


def test_text_features_as_a_plan_for_a_gpu() -> None:
    """The plan of the GPU engine, run by Polars."""
    lists = [
        None,
        [],
        [131],
        [101, 4, 137, 5, 7, 131, 137, 7],
        [101, 4] + [7] * (LONGEST - 2) + [131],
        [131] * 300,
    ]
    texts = [None if tokens is None else "\t".join(map(str, tokens)) for tokens in lists]
    t = pl.LazyFrame({"row": range(len(lists)), "s": texts}, schema={"row": pl.Int64, "s": pl.String})
    got = on_gpu(t, "s", "\t", EVERY_TEXT_FEATURE).sort("row").collect()
    want = [plain_text_features(tokens or []) for tokens in lists]
    for name in want[0]:
        assert got[name].to_list() == [row[name] for row in want], name


def test_a_text_with_a_word_is_refused(e: Engine, frame: Make) -> None:
    t = frame({"s": ["1\tx"]})
    with pytest.raises(DataError) as error:
        e.collect(e.text_features(t, "s", "\t", TextFeatures(PIECES, sums={"even": "z"})))
    assert "\n" not in error.value.message and error.value.hint


def test_the_first_id_of_a_list(e: Engine, frame: Make, values: Values) -> None:
    ids = [f"{i:032x}" for i in (2**127 + 5, 2**64 - 1, 2**63)]
    t = e.first_hex_id(frame({"s": ["\t".join(ids), None, "", ids[1], "\t".join(ids[::-1])]}), "s", "z")
    assert values(t, "z") == [5, 0, 0, -1, -(2**63)]
    assert set(e.columns(t)) == {"row", "s", "z"}


@given(st.lists(st.integers(0, 2**128 - 1), min_size=1, max_size=20))
@few
def test_hex_id(e: Engine, frame: Make, values: Values, ids: list[int]) -> None:
    texts = [f"{i:032X}" if i % 2 else f"{i:032x}" for i in [*ids, 0, 2**64 - 1, 2**63]]
    want = [int.from_bytes(bytes.fromhex(text[16:]), "big", signed=True) for text in texts]
    assert values(e.hex_id(frame({"s": texts}), "s", "z"), "z") == want


@pytest.mark.parametrize("digits", [16, 64])
def test_hex_id_of_other_lengths(e: Engine, frame: Make, values: Values, digits: int) -> None:
    texts = ["a" * digits, "0" * (digits - 1) + "7"]
    t = e.hex_id(frame({"s": texts}), "s", "z", digits=digits)
    assert values(t, "z") == [int.from_bytes(bytes.fromhex("a" * 16), "big", signed=True), 7]


@given(
    st.lists(
        st.none() | st.lists(st.integers(-(10**6), 10**6).map(lambda i: i / 128), max_size=5),
        min_size=1,
        max_size=9,
    )
)
@few
def test_parse_vector(e: Engine, frame: Make, values: Values, lists: list[list[float] | None]) -> None:
    lists = [*lists, [1e-5, -2.5e-07], [0.0]]
    texts = [None if x is None else str(x) for x in lists]
    t = e.parse_vector(frame({"s": texts}), "s", 3, "z")
    for i in range(3):
        want = [(x or [])[i] if len(x or []) > i else 0.0 for x in lists]
        assert values(t, f"z_{i}") == pytest.approx(want, rel=1e-6, abs=1e-30)
    assert e.to_numpy(t, ["z_0"])["z_0"].dtype == np.float32


def test_files_without_header(e: Engine, values: Values, tmp_path: Path) -> None:
    (tmp_path / "part").write_text('7\x01a "b\x01\x012\n8\x01\x010.5\x01\n')
    schema = {"n": "int64", "s": "str", "y": "float64"}
    t = e.read_csv(tmp_path / "part", schema, names=["n", "s", "x", "y"], separator="\x01")
    assert values(t, "n", "s", "y", "row") == ([7, 8], ['a "b', None], [2.0, None], [0, 1])


@given(st.lists(st.integers(-(10**9), 3 * 10**9), min_size=1, max_size=20))
@few
def test_date_parts(e: Engine, frame: Make, values: Values, seconds: list[int]) -> None:
    parts = ["year", "month", "day", "weekday", "hour", "minute"]
    days = [s // 86400 for s in seconds]
    t = e.date_parts(frame({"s": seconds, "d": days}), "s", "s", {p: p for p in parts})
    t = e.date_parts(t, "d", "d", {"month": "month_d", "weekday": "weekday_d"})
    times = [datetime.fromtimestamp(s, UTC) for s in seconds]
    for part in parts:
        want = [x.weekday() if part == "weekday" else getattr(x, part) for x in times]
        assert values(t, part) == want, part
    assert values(t, "month_d", "weekday_d") == ([x.month for x in times], [x.weekday() for x in times])


# ---- engines ----------------------------------------------------------------------------------------------------------


def test_an_unknown_engine_gets_a_suggestion() -> None:
    with pytest.raises(UsageError) as caught:
        frames.load("pandsa")
    assert "did you mean pandas" in caught.value.hint


@pytest.mark.parametrize("name", ["cudf", "polars-gpu"])
def test_a_gpu_engine_without_a_gpu_is_unsupported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buzzer.engine.device.gpus", list)
    frames.load.cache_clear()
    with pytest.raises(UnsupportedError) as caught:
        frames.load(name)
    assert "buzzer[gpu]" in caught.value.hint or "buzzer env" in caught.value.hint
