"""The backend `forest` on trees made by hand, whose sums NumPy computes, and on XGBoost's own trees."""

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from buzzer import caches, manifest
from buzzer.engine import infer
from buzzer.engine.infer import boosted, forest_layout, native, ubjson
from buzzer.engine.infer.session import Array
from buzzer.errors import DataError, UnsupportedError, UsageError

if not native.compiler_name():
    pytest.skip("no C compiler is installed", allow_module_level=True)

from buzzer.engine.infer.backends import forest

WIDTH = 5
HALF = 0.5  # base score: log odds of 0


@dataclass(frozen=True)
class Split:
    """An inner node: `column` < `threshold` goes left."""

    column: int
    threshold: float
    left: "Split | float"
    right: "Split | float"
    default_left: bool = True


Tree = Split | float


def walk(tree: Tree, row: Array) -> float:
    """The leaf of a row, one node after the other."""
    while isinstance(tree, Split):
        value, threshold = row[tree.column], np.float32(tree.threshold)
        left = tree.default_left if np.isnan(value) else value < threshold
        tree = tree.left if left else tree.right
    return tree


def expected(trees: Sequence[Tree], x: Array, margins: Array | float = 0.0) -> Array:
    """Probabilities float64 [rows]."""
    sums = [sum(np.float64(np.float32(walk(tree, row))) for tree in trees) for row in x]
    return 1 / (1 + np.exp(-(np.array(sums) + margins)))


def arrays_of(tree: Tree) -> dict[str, Any]:
    """A tree as XGBoost saves it, with nodes in the order of levels."""
    waiting: list[Tree] = [tree]
    nodes = dict[str, list[Any]](left=[], right=[], column=[], value=[], default=[])
    for node in waiting:
        inner = isinstance(node, Split)
        nodes["left"].append(len(waiting) if inner else -1)
        nodes["right"].append(len(waiting) + 1 if inner else -1)
        nodes["column"].append(node.column if isinstance(node, Split) else 0)
        nodes["value"].append(float(np.float32(node.threshold if isinstance(node, Split) else node)))
        nodes["default"].append(int(isinstance(node, Split) and node.default_left))
        if isinstance(node, Split):
            waiting += [node.left, node.right]
    count = len(waiting)
    parents = [2**31 - 1] * count
    for node_id in range(count):
        for side in ("left", "right"):
            if (child := nodes[side][node_id]) >= 0:
                parents[child] = node_id
    lists: dict[str, Any] = {
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
    }
    zeros = [0.0] * count
    return lists | {
        "left_children": nodes["left"], "right_children": nodes["right"], "parents": parents,
        "split_indices": nodes["column"], "split_conditions": nodes["value"], "default_left": nodes["default"],
        "split_type": [0] * count, "base_weights": zeros, "loss_changes": zeros, "sum_hessian": zeros,
        "tree_param": {"num_deleted": "0", "num_feature": str(WIDTH), "num_nodes": str(count), "size_leaf_vector": "1"},
    }  # fmt: skip


def document_of(trees: Sequence[Tree]) -> Any:
    """A saved XGBoost model with these trees, as JSON."""
    x = np.zeros((2, WIDTH), dtype="float32")
    settings = {"objective": "binary:logistic", "base_score": HALF, "max_depth": 1}
    document = json.loads(bytes(xgboost.train(settings, xgboost.DMatrix(x, [0, 1]), 1).save_raw("json")))
    model = document["learner"]["gradient_booster"]["model"]
    model["trees"] = [arrays_of(tree) | {"id": number} for number, tree in enumerate(trees)]
    model["tree_info"] = [0] * len(trees)
    model["gbtree_model_param"]["num_trees"] = str(len(trees))
    model["iteration_indptr"] = list(range(len(trees) + 1))
    return document


def booster_of(document: Any) -> xgboost.Booster:
    return xgboost.Booster(model_file=bytearray(json.dumps(document).encode()))


def predict(model: Any, x: Array, threads: int = 1) -> Array:
    with infer.prepare(model, backend="forest", example={"features": x[:1]}, threads=threads) as session:
        return session.run({"features": x})["output"]


def random_tree(rng: np.random.Generator, depth: int, stop: float = 0.0) -> Tree:
    """A tree with thresholds from the values -4 to 4, and leaves above the lowest level with probability `stop`."""
    if depth == 0 or rng.random() < stop:
        return float(rng.normal() / 4)
    threshold = float(rng.integers(-4, 5))
    left, right = random_tree(rng, depth - 1, stop), random_tree(rng, depth - 1, stop)
    return Split(int(rng.integers(WIDTH)), threshold, left, right, bool(rng.integers(2)))


def random_rows(rng: np.random.Generator, rows: int) -> Array:
    """Whole numbers from -5 to 5, many of which are equal to thresholds, and missing values."""
    x = rng.integers(-5, 6, (rows, WIDTH)).astype(np.float32)
    return np.where(rng.random(x.shape) < 0.1, np.float32(np.nan), x)


@pytest.mark.parametrize("depth", range(13))
@pytest.mark.parametrize("stop", [0.0, 0.3])
def test_trees_of_every_depth(depth: int, stop: float) -> None:
    """Up to depth 8 a tree is evaluated for many rows at once, and below row by row. Depth 0 is one leaf."""
    rng = np.random.default_rng([depth, int(10 * stop)])
    trees = [random_tree(rng, depth, stop) for _ in range(3 if depth > 9 else 11)]
    x = random_rows(rng, 300)
    booster = booster_of(document_of(trees))
    got = predict(booster, x)
    np.testing.assert_allclose(got, expected(trees, x), rtol=2e-6)
    np.testing.assert_allclose(got, booster.inplace_predict(x), rtol=2e-7)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [0, 1, 127, 128, 129, 2049, 100_001])
def test_any_number_of_rows(rows: int, threads: int) -> None:
    rng = np.random.default_rng(rows)
    trees = [random_tree(rng, 4) for _ in range(7)]
    booster = booster_of(document_of(trees))
    x = random_rows(rng, rows + 1)
    with infer.prepare(booster, backend="forest", example={"features": x[:1]}, threads=threads) as session:
        got = session.run({"features": x[:rows]})["output"]
    assert got.shape == (rows,) and got.dtype == np.float32
    np.testing.assert_allclose(got[:200], expected(trees, x[:rows][:200]), rtol=2e-6)
    if rows:
        np.testing.assert_allclose(got, booster.inplace_predict(x[:rows]), rtol=2e-7)


TINY = float(np.finfo(np.float32).smallest_subnormal)
LARGEST = float(np.finfo(np.float32).max)
SPECIAL = [0.0, TINY, 2 * TINY, 1e-38, 1.0, np.nextafter(np.float32(1), np.float32(2)), 16777216.0, LARGEST]


@pytest.mark.parametrize("flush", [False, True])
def test_floats_are_compared_exactly(flush: bool) -> None:
    """Denormals, zeros of both signs, neighbours, the largest floats and infinities, at every threshold of either sign."""
    import torch

    torch.set_flush_denormal(False)  # other tests train networks, which sets it
    values = sorted({sign * value for value in SPECIAL for sign in (-1, 1)})
    trees = [Split(0, float(value), 2.0**-i, 2.0**-i / 3) for i, value in enumerate(values)]
    x = np.zeros((len(values) + 4, WIDTH), dtype=np.float32)
    x[:, 0] = [*values, -0.0, np.inf, -np.inf, np.nan]
    want = expected(trees, x)
    # Each threshold separates two values; NaN goes the way of -inf.
    assert len(np.unique(want)) == len(values) + 1
    booster = booster_of(document_of(trees))
    torch.set_flush_denormal(flush)  # the processor then reads denormals as 0
    try:
        got = predict(booster, x)
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("count", [254, 255, 256, 511, 3000])
def test_a_column_may_have_any_number_of_thresholds(count: int) -> None:
    """A byte has 256 ranks; a column with more is stored as several."""
    trees = [Split(1, float(i), 1e-3, -1e-3, default_left=i % 2 == 0) for i in range(count)]
    x = np.zeros((count + 2, WIDTH), dtype=np.float32)
    x[:, 1] = [*(np.arange(count + 1) - 0.5), np.nan]
    smaller = np.arange(count + 1)  # number of thresholds that are at most x
    sums = np.append((count - smaller) - smaller, count % 2) * 1e-3
    np.testing.assert_allclose(predict(booster_of(document_of(trees)), x), 1 / (1 + np.exp(-sums)), rtol=1e-4)


@pytest.mark.parametrize(
    "settings", [{"max_depth": 3}, {"max_depth": 8}, {"max_leaves": 60, "grow_policy": "lossguide"}]
)
def test_trained_trees_agree_with_xgboost(settings: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4000, 9)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    y = np.nansum(x[:, :3], axis=1) * np.nan_to_num(x[:, 4]) > rng.normal(size=len(x))
    settings = settings | {"objective": "binary:logistic", "max_depth": settings.get("max_depth", 0)}
    booster = xgboost.train(settings, xgboost.DMatrix(x, y), 40)
    booster.save_model(tmp_path / "m.json")
    got = predict(tmp_path / "m.json", x)
    assert got.std() > 0.1
    np.testing.assert_allclose(got, booster.inplace_predict(x), rtol=1e-6)


def test_rows_may_have_any_strides() -> None:
    rng = np.random.default_rng(0)
    booster = booster_of(document_of([random_tree(rng, 5) for _ in range(5)]))
    x = random_rows(rng, 600)
    want = predict(booster, x)
    wide = np.zeros((600, 2 * WIDTH), dtype=np.float32)
    wide[:, ::2] = x
    packed = np.zeros(600, dtype=[("tag", "u1"), ("row", "f4", WIDTH)])  # rows that are not aligned
    packed["row"] = x
    for layout in (np.asfortranarray(x), wide[:, ::2], packed["row"], x[::-1].copy()[::-1]):
        assert np.array_equal(predict(booster, layout), want)


@pytest.mark.parametrize("backend", ["forest", "xgboost"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_has_several_models(backend: str, threads: int) -> None:
    """Of different sizes, each with its own base margins."""
    rng = np.random.default_rng(5)
    models = [[random_tree(rng, depth) for _ in range(count)] for depth, count in ((2, 3), (8, 17), (3, 1))]
    x = random_rows(rng, 3001)
    margins = rng.normal(size=(3001, 3)).astype(np.float32)
    names = ("a", "b", "c")
    options: dict[str, Any] = {"backend": backend, "outputs": names, "threads": threads}
    boosters = [booster_of(document_of(trees)) for trees in models]
    with infer.prepare(boosters, example={"features": x[:2]}, **options) as session:
        plain = session.run({"features": x})
        assert session.describe().weight_bytes
    example = {"features": x[:2], "base_margin": margins[:2]}
    with infer.prepare(boosters, example=example, **options) as session:
        added = session.run({"features": x, "base_margin": margins})
        session.poison()
    assert list(plain) == list(added) == list(names)
    for i, name in enumerate(names):
        np.testing.assert_allclose(plain[name][:500], expected(models[i], x[:500]), rtol=2e-6)
        np.testing.assert_allclose(
            added[name][:500], expected(models[i], x[:500], margins[:500, i]), rtol=2e-6
        )
        assert np.array_equal(plain[name], predict(boosters[i], x)) or backend == "xgboost"


@pytest.mark.parametrize("backend", ["forest", "xgboost"])
def test_base_margins_have_a_column_for_each_model(backend: str) -> None:
    booster = booster_of(document_of([0.5]))
    example = {"features": np.zeros((2, WIDTH), "float32"), "base_margin": np.zeros((2, 3), "float32")}
    with pytest.raises(UsageError, match=r"base_margin is \[.*3\], not \[rows, 2\]"):
        infer.prepare([booster] * 2, backend=backend, example=example, outputs=("a", "b"))
    with pytest.raises(UsageError, match="2 models, but 1 names"):
        infer.prepare([booster] * 2, backend=backend, example=example)


def test_batches_that_do_not_match_are_refused() -> None:
    booster = booster_of(document_of([0.5]))
    x, margins = np.zeros((4, WIDTH), "float32"), np.zeros(4, "float32")
    with pytest.raises(UsageError, match="4 columns, but the trees have 5"):
        infer.prepare(booster, backend="forest", example={"features": x[:, :4]})
    with pytest.raises(UsageError, match=r"base_margin is \[rows, 1\], not \[rows\]"):
        infer.prepare(booster, backend="forest", example={"features": x, "base_margin": margins[:, None]})
    with pytest.raises(UsageError, match="features is float64, but forest takes float32"):
        infer.prepare(booster, backend="forest", example={"features": x.astype("float64")})
    with pytest.raises(UsageError, match="features has 3 axes, not 2"):
        infer.prepare(booster, backend="forest", example={"features": x[:, :, None]})
    with pytest.raises(UsageError, match=r"the inputs are \['margins'\], but forest takes features"):
        infer.prepare(booster, backend="forest", example={"margins": margins})
    example = {"features": x, "base_margin": margins}
    with (
        infer.prepare(booster, backend="forest", example=example) as session,
        pytest.raises(UsageError, match="base_margin has 3 rows, but features has 4"),
    ):
        session.run({"features": x, "base_margin": margins[:3]})
    any_width = {"features": {0: "batch", 1: "columns"}}
    with (
        infer.prepare(booster, backend="forest", example={"features": x}, dynamic=any_width) as session,
        pytest.raises(UsageError, match="4 columns, but the trees have 5"),
    ):
        session.run({"features": x[:, :4]})


@pytest.mark.parametrize("rows", [0, 4])
def test_margins_may_be_any_floats(rows: int) -> None:
    booster = booster_of(document_of([0.25]))
    x = np.zeros((4, WIDTH), "float32")
    packed = np.zeros(4, dtype=[("tag", "u1"), ("margin", "f4")])  # floats that are not aligned
    packed["margin"] = margins = np.array([np.nan, np.inf, -np.inf, 200], "float32")
    with infer.prepare(booster, backend="forest", example={"features": x, "base_margin": margins}) as session:
        got = session.run({"features": x[:rows], "base_margin": packed["margin"][:rows]})["output"]
    want = booster.inplace_predict(x, base_margin=margins)
    np.testing.assert_allclose(want, [np.nan, 1, 0, 1], atol=1e-30)
    np.testing.assert_allclose(got, want[:rows], rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"objective": "count:poisson"}, "the objective count:poisson"),
        ({"objective": "multi:softprob", "num_class": 3}, "the objective multi:softprob"),
        ({"objective": "binary:logistic", "booster": "dart"}, "the booster dart"),
        ({"objective": "binary:logistic", "booster": "gblinear"}, "the booster gblinear"),
        (
            {"objective": "binary:logistic", "tree_method": "hist", "max_cat_to_onehot": 1},
            "categorical splits",
        ),
    ],
)
def test_other_models_are_refused(settings: dict[str, Any], problem: str) -> None:
    x = np.random.default_rng(0).integers(0, 4, (200, 3)).astype(np.float32)
    kinds = ["c", "q", "q"] if "categorical" in problem else ["q"] * 3
    data = xgboost.DMatrix(x, x[:, 0] % 2, feature_types=kinds, enable_categorical=True)
    with pytest.raises(UnsupportedError, match=f"forest does not support {problem}"):
        infer.prepare(xgboost.train(settings, data, 2), backend="forest", example={"features": x})


def test_models_with_several_outputs_are_refused() -> None:
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    booster = xgboost.train(
        {"objective": "binary:logistic"}, xgboost.DMatrix(x, (x[:, :2] > 0).astype(int)), 2
    )
    with pytest.raises(UnsupportedError, match="several outputs"):
        infer.prepare(booster, backend="forest", example={"features": x})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("left_children", [0, -1, -1]),  # a cycle
        ("left_children", [2, -1, -1]),  # a node with two parents
        ("right_children", [3, -1, -1]),  # beyond the tree
        ("split_indices", [WIDTH, 0, 0]),
        ("split_indices", [-1, 0, 0]),
        ("split_conditions", [float("inf"), 0.1, 0.2]),
    ],
)
def test_damaged_trees_are_refused(name: str, values: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """XGBoost reads some of these files without a complaint."""
    document = document_of([Split(0, 0.5, 0.1, 0.2)] * 2)
    trees = document["learner"]["gradient_booster"]["model"]["trees"]
    for tree in trees:
        for key, kind in (("left_children", "i4"), ("right_children", "i4"), ("split_indices", "i4"), ("default_left", "u1"), ("split_conditions", "f4")):  # fmt: skip
            tree[key] = np.array(tree[key], dtype=kind)
    trees[1][name] = np.array(values, dtype=trees[1][name].dtype)
    monkeypatch.setattr(ubjson, "loads", lambda data: document)
    with pytest.raises(DataError, match="the trees of the XGBoost model are damaged"):
        predict(booster_of(document_of([0.0])), np.zeros((2, WIDTH), dtype=np.float32))


@pytest.mark.parametrize("score", ["[0E0]", "[1E0]", "-2E0", "NaN"])
def test_a_base_score_that_is_no_probability_is_refused(score: str) -> None:
    with pytest.raises(DataError, match="is no probability"):
        boosted.base_score({"base_score": score})


def test_a_tree_without_nodes_is_refused() -> None:
    none = np.empty(0, np.int64)
    of_nodes = (none, none, none, none.astype(np.float32), none.astype(bool))
    nodes = boosted.Nodes(
        *of_nodes, np.zeros(1, np.int64), np.ones(1, np.int64), np.zeros(1, np.float32), WIDTH
    )
    with pytest.raises(DataError, match="damaged"):
        boosted.check_nodes(nodes, np.zeros(1, np.int64))


def test_sizes_agree_with_the_c_code() -> None:
    """The constants that Python and C share."""
    source = forest.SOURCE.read_text()
    for name, value in (
        ("BLOCK", forest_layout.BLOCK),
        ("LOWEST", forest_layout.LOWEST),
        ("RANKS", forest_layout.RANKS),
    ):
        assert f"{name} = {value}," in source or f"{name} = {value} " in source
    order = source[source.index("const node *nodes;") : source.index("} forest;")]
    names = [line.split(";")[0].split("*")[-1].strip() for line in order.splitlines() if "*" in line]
    assert names == [field[0] for field in forest.Model._fields_ if field[1] is ctypes.c_void_p]


@pytest.mark.parametrize("machine", ["x86-64-v4", "x86-64-v3", "x86-64"])
def test_every_vector_width_predicts_the_same(
    machine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """AVX-512, AVX2, and the compiler's own vectors."""
    flags = Path("/proc/cpuinfo").read_text()
    needed = {"x86-64-v4": "avx512bw", "x86-64-v3": "avx2", "x86-64": "sse2"}[machine]
    if needed not in flags:
        pytest.skip(f"this processor has no {needed}")
    rng = np.random.default_rng(8)
    trees = [random_tree(rng, depth, 0.1) for depth in (1, 3, 8, 8, 10)]
    x = random_rows(rng, 400)
    monkeypatch.setenv(native.CACHE, str(tmp_path))
    flag = f"-march={machine}"
    monkeypatch.setattr(native, "FLAGS", tuple(flag if f.startswith("-march") else f for f in native.FLAGS))
    native.library.cache_clear()
    got = predict(booster_of(document_of(trees)), x)
    native.library.cache_clear()
    np.testing.assert_allclose(got, expected(trees, x), rtol=2e-6)
    assert len(list(tmp_path.glob("forest-*/*.so"))) == 1


def test_the_code_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built: list[Path] = []
    real = native.build

    def build(source: Path, folder: Path) -> None:
        built.append(folder)
        real(source, folder)

    monkeypatch.setenv(native.CACHE, str(tmp_path / "made"))
    monkeypatch.setattr(native, "build", build)
    assert caches.compiled()[native.CACHE] == tmp_path / "made"
    for _ in range(2):
        native.library.cache_clear()
        native.library(forest.SOURCE)
    native.library.cache_clear()
    assert len(built) == 1
    assert list((tmp_path / "made").iterdir()) == built


def spoil(content: bytes) -> bytes:
    """The bytes with one changed in the middle, where the instructions are."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [spoil, lambda content: content[:4000], lambda content: b""])
def test_a_damaged_library_is_compiled_again(
    damage: Callable[[bytes], bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "seven.c"
    source.write_text("int seven(void) { return 7; }\n")
    monkeypatch.setenv(native.CACHE, str(tmp_path / "made"))
    folder = tmp_path / "moved"
    assert native.library(source).seven() == 7
    native.library.cache_clear()
    (made,) = (tmp_path / "made").iterdir()
    made.rename(folder)  # the library that this process has loaded stays as it is
    shutil.copytree(folder, made)
    (file,) = made.glob("*.so")
    file.write_bytes(damage(file.read_bytes()))
    assert native.library(source).seven() == 7
    native.library.cache_clear()
    assert str(made) in capsys.readouterr().err
    assert file.stat().st_size == (folder / file.name).stat().st_size


def test_a_library_that_cannot_be_loaded_is_compiled_once_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For example, it was compiled on a system with another C library."""
    source = tmp_path / "eight.c"
    source.write_text("int eight(void) { return 8; }\n")
    monkeypatch.setenv(native.CACHE, str(tmp_path / "made"))
    native.library(source)
    native.library.cache_clear()
    (made,) = (tmp_path / "made").iterdir()
    shutil.rmtree(made)
    made.mkdir()
    (made / native.LIBRARY).write_bytes(b"of another system")
    manifest.seal(made)
    assert native.library(source).eight() == 8
    native.library.cache_clear()


def test_a_cache_that_cannot_be_written_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(native.CACHE, str(tmp_path / "file"))
    native.library.cache_clear()
    with pytest.raises(UnsupportedError, match=r"cannot write .*file: ") as refused:
        native.library(forest.SOURCE)
    assert "BUZZER_NATIVE_CACHE_DIR" in refused.value.hint


def test_a_compiler_that_fails_is_reported(tmp_path: Path) -> None:
    (tmp_path / "broken.c").write_text("int main( {")
    with pytest.raises(UnsupportedError, match="failed"):
        native.library(tmp_path / "broken.c")


@pytest.mark.parametrize("objective", ["binary:logistic", "reg:logistic"])
def test_a_binary_file_is_read_as_xgboost_reads_it(objective: str, tmp_path: Path) -> None:
    """Trained trees with missing values and a base score: the nodes are those of the Booster, bit by bit."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random((500, 6)) < 0.1, np.nan, rng.normal(size=(500, 6))).astype(np.float32)
    settings = {"objective": objective, "max_depth": 4, "base_score": 0.3, "num_parallel_tree": 2}
    booster = xgboost.train(settings, xgboost.DMatrix(x, rng.integers(0, 2, 500)), 5)
    booster.save_model(tmp_path / "trees.ubj")
    want, got = (boosted.read([model], "forest") for model in (booster, tmp_path / "trees.ubj"))
    for name, array in vars(want).items():
        np.testing.assert_array_equal(getattr(got, name), array, err_msg=name)


def test_a_binary_file_is_read_without_xgboost(tmp_path: Path) -> None:
    booster_of(document_of([0.25])).save_model(tmp_path / "trees.ubj")
    code = (
        "import sys, numpy; from pathlib import Path; from buzzer.engine import infer\n"
        "x = {'features': numpy.zeros((2, 5), 'float32')}\n"
        "infer.prepare(Path(sys.argv[1]), backend='forest', example=x).run(x)\n"
        "assert not {'xgboost', 'torch', 'sklearn'} & {*sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "trees.ubj")], check=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "not an XGBoost model: not UBJSON"),
        (lambda path: path.write_bytes(b"{U\x01aTU\x01bF}"), "not an XGBoost model: 'learner'"),
        (lambda path: path.write_text("a text"), "not an XGBoost model"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"left_children", b"lost_children")),
            "damaged",
        ),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"base_score", b"lost_score")), "damaged"),
    ],
    ids=["missing", "cut", "other", "text", "no children", "no base score"],
)
def test_a_damaged_binary_file_ends_in_one_message(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    booster_of(document_of([0.25])).save_model(path := tmp_path / "trees.ubj")
    damage(path)
    with pytest.raises(DataError, match=message):
        boosted.read([path], "forest")
