"""`buzzer bench` of files of boosted trees: XGBoost's and LightGBM's, on every backend that runs here, and with inputs from a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from buzzer.engine import infer
from buzzer.errors import BuzzerError, DataError, UnsupportedError, UsageError
from buzzer.models.api.bench import BenchSpec
from buzzer.models.tree_file import FEATURES, OUTPUT, TARGET
from buzzer.suite import registry

xgboost = pytest.importorskip("xgboost")
LIGHTGBM = Path(__file__).with_name("lightgbm")
# Rows, and LightGBM 4.6's own predictions of the three files for them.
ROWS = np.array([[0.5, -1, np.nan, 2], [-0.5, 0.1, 1, 5], [1, 2, 3, 0], [np.nan, 1, 1, 4]], dtype="float32")
PREDICTED = {
    "binary": [0.5718879376648469, 0.4811177039600437, 0.5886270420638611, 0.5948845111914332],
    "classes": [
        [0.28945894938780703, 0.26044251506950505, 0.45009853554268786],
        [0.2628038341811106, 0.3246611586376171, 0.4125350071812723],
        [0.49211860688640524, 0.2576155476604633, 0.2502658454531315],
        [0.32164675081562905, 0.39735419811212475, 0.28099905107224626],
    ],
    "number": [2.140106020359989, 2.704318342495568, 2.140106020359989, 2.704318342495568],
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "binary:logistic": {},
    "multi:softprob": {"num_class": 3},
    "multi:softmax": {"num_class": 3},
    "reg:squarederror": {},
    "count:poisson": {},
}
# What each backend predicts, besides what is `unsupported` with a reason.
SERVED = {
    "xgboost": set(OBJECTIVES) | {"dart", "categories"},
    "forest": {"binary:logistic"},
    "tl2cgen": set(OBJECTIVES) - {"multi:softmax"} | {"dart", "categories"},
    "onnxruntime": set(OBJECTIVES) - {"multi:softmax"} | {"categories"},
    "nvforest": set(OBJECTIVES) - {"multi:softmax"} | {"dart", "categories"},
}
NVFOREST = pytest.param("nvforest", marks=pytest.mark.gpu_plan)


def spec(path: Path, batch: int = 4, **more: Any) -> BenchSpec:
    return BenchSpec(batch, 0, 3, "fixed", "padded", 0, {"path": str(path)}, **more)


def trained(path: Path, kind: str) -> Path:
    """A file of three rounds of trees on five columns, the last of which has whole numbers."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5)).astype("float32")
    x[:, 4] = rng.integers(0, 5, 300)
    y = (
        x[:, 4] % 3
        if kind.startswith("multi")
        else x[:, 4]
        if kind in ("reg:squarederror", "count:poisson")
        else x[:, 0] > 0
    )
    settings: dict[str, Any] = {"objective": kind, "max_depth": 3, **OBJECTIVES.get(kind, {})}
    types = None
    if kind == "dart":
        settings |= {"objective": "binary:logistic", "booster": "dart", "rate_drop": 0.5}
    if kind == "categories":
        settings |= {"objective": "binary:logistic", "max_cat_to_onehot": 1}
        y, types = x[:, 4] % 2, ["q"] * 4 + ["c"]
    data = xgboost.DMatrix(x, y, feature_types=types, feature_names=list("abcde"), enable_categorical=True)
    xgboost.train(settings, data, 3).save_model(path)
    return path


@pytest.mark.parametrize("kind", [*OBJECTIVES, "dart", "categories"])
@pytest.mark.parametrize("backend", [NVFOREST if name == "nvforest" else name for name in SERVED])
def test_every_backend_predicts_or_says_why_not(backend: str, kind: str, tmp_path: Path) -> None:
    path = trained(tmp_path / "trees.json", kind)
    model = TARGET.load(spec(path))
    assert model.facts["columns"] == 5
    try:
        session = infer.prepare(
            path, backend=backend, example=model.batches[0], outputs=model.outputs, dynamic=model.dynamic
        )
    except UnsupportedError as error:
        if not infer.installed(backend) or "onnxmltools is not installed" in error.message:
            pytest.skip(error.message)
        assert kind not in SERVED[backend]
        return
    assert kind in SERVED[backend]
    with session:
        for batch in model.batches:
            want = model.reference(batch)[OUTPUT]
            np.testing.assert_allclose(session.run(batch)[OUTPUT], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["reg:squarederror", "multi:softprob", "categories"])
def test_random_rows_reach_every_leaf(kind: str, tmp_path: Path) -> None:
    path = trained(tmp_path / "trees.ubj", kind)
    (batch, *_) = TARGET.load(spec(path, batch=500)).batches
    booster = xgboost.Booster(model_file=path)
    data = xgboost.DMatrix(batch[FEATURES], feature_types=booster.feature_types, enable_categorical=True)
    reached = booster.predict(data, pred_leaf=True, validate_features=False).reshape(500, -1)
    leaves = [tree.count("leaf=") for tree in booster.get_dump()]
    assert [len(np.unique(column)) for column in reached.T] == leaves
    assert kind == "categories" or max(leaves) > 3


@pytest.mark.parametrize("name", PREDICTED)
@pytest.mark.parametrize("backend", ["reference", "tl2cgen", NVFOREST])
def test_lightgbm_files_predict_what_lightgbm_predicts(backend: str, name: str, tmp_path: Path) -> None:
    pytest.importorskip("treelite")
    path = LIGHTGBM / f"{name}.txt"
    np.save(tmp_path / "rows.npy", ROWS)
    model = TARGET.load(spec(path, file=tmp_path / "rows.npy"))
    assert model.facts["library"] == "lightgbm"
    np.testing.assert_array_equal(model.batches[0][FEATURES], ROWS)
    if backend == "reference":
        got = model.reference(model.batches[0])[OUTPUT]
    else:
        pytest.importorskip(backend)
        with infer.prepare(path, backend=backend, example=model.batches[0], outputs=model.outputs) as session:
            got = session.run(model.batches[0])[OUTPUT]
    np.testing.assert_allclose(got, PREDICTED[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("suffix", "backends"), [(".ubj", "xgboost"), (".json", "xgboost"), (".txt", "tl2cgen")]
)
def test_the_suffix_decides_the_backends(suffix: str, backends: str, tmp_path: Path) -> None:
    path = tmp_path / f"my{suffix}"
    path.write_bytes(b"")
    assert registry.model(str(path)).backends[0] == backends


def test_xgboost_backends_name_lightgbm() -> None:
    for backend in ("xgboost", "forest"):
        with pytest.raises(UnsupportedError, match="LightGBM model runs on treelite's backends only"):
            infer.prepare(LIGHTGBM / "binary.txt", backend=backend, example={FEATURES: ROWS})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("my.ubj", b"", "not an XGBoost model"),
        ("my.json", b'{"a": 1}', "not an XGBoost model"),
        ("my.txt", b"hello\n", "its first line is 'hello'"),
        ("my.txt", b"tree\nversion=v4\n", "not a LightGBM model"),
        ("my.txt", b"\xff\xfe\n", "not a LightGBM model"),
    ],
)
def test_other_files_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    if name.endswith(".txt"):
        pytest.importorskip("treelite")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        TARGET.load(spec(tmp_path / name))


def test_linear_models_have_no_trees(tmp_path: Path) -> None:
    data = xgboost.DMatrix(np.ones((8, 2)), np.ones(8))
    xgboost.train({"booster": "gblinear"}, data, 1).save_model(tmp_path / "my.json")
    with pytest.raises(UnsupportedError, match="a model of type gblinear has no trees"):
        TARGET.load(spec(tmp_path / "my.json"))


# ---- inputs from a file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "npy", "parquet", "csv"])
def test_rows_of_a_file_are_the_inputs(kind: str, tmp_path: Path) -> None:
    """Seven rows in batches of four: the second batch begins with the fifth row and ends with the first again."""
    import polars as pl

    path = trained(tmp_path / "trees.ubj", "binary:logistic")
    rows = np.arange(35, dtype="float64").reshape(7, 5) / 8
    file = tmp_path / f"rows.{kind}"
    table = pl.DataFrame(rows, schema=list("abcde"))
    match kind:
        case "npz":
            np.savez(file, features=rows)
        case "npy":
            np.save(file, rows)
        case "parquet":
            table.write_parquet(file)
        case "csv":
            table.write_csv(file)
    model = TARGET.load(spec(path, file=file))
    assert [batch[FEATURES].dtype for batch in model.batches] == [np.float32] * 2
    got = np.concatenate([batch[FEATURES] for batch in model.batches])
    np.testing.assert_array_equal(got, rows[[0, 1, 2, 3, 4, 5, 6, 0]])
    assert model.notes == (f"inputs from rows.{kind}, 7 rows",)
    few = TARGET.load(spec(path, batch=9, file=file))
    assert few.batches[0][FEATURES].shape == (9, 5)
    assert "7 different rows, repeated" in few.notes


@pytest.mark.parametrize(
    ("name", "make", "error", "message"),
    [
        ("rows.npy", lambda f: np.save(f, np.zeros((3, 4))), DataError, r"features is float64 \[3, 4\]"),
        ("rows.npy", lambda f: np.save(f, np.zeros((0, 5))), DataError, r"the arrays have \[0\] rows"),
        ("rows.npy", lambda f: np.save(f, np.array([["a"] * 5])), DataError, "features is <U1"),
        ("rows.npy", lambda f: f.write_bytes(b"hello"), DataError, "cannot be read"),
        ("rows.npy", lambda f: np.save(f, np.array([{}]), allow_pickle=True), DataError, "cannot be read"),
        ("rows.npz", lambda f: np.savez(f, x=np.zeros((3, 5))), DataError, "no array features"),
        (
            "rows.npz",
            lambda f: np.savez(f, features=np.zeros((3, 5)), x=np.zeros(3)),
            DataError,
            "the model has no input 'x'",
        ),
        ("rows.csv", lambda f: f.write_text("a,b\n1,x\n"), DataError, "column 'b' has no numbers"),
        (
            "rows.csv",
            lambda f: f.write_text("a,b\n1,2\n3\n"),
            DataError,
            "line 3: 1 fields, the header has 2",
        ),
        ("rows.csv", lambda f: f.write_text("a,b\n1,2,3\n"), DataError, "line 2: 3 fields, the header has 2"),
        ("rows.csv", lambda f: f.write_text("1,2\n3,4\n"), DataError, "the first line has numbers"),
        ("rows.txt", lambda f: f.write_text("1"), UsageError, "neither a number nor a kind of file"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    name: str, make: Any, error: type[BuzzerError], message: str, tmp_path: Path
) -> None:
    path = trained(tmp_path / "trees.ubj", "binary:logistic")
    make(tmp_path / name)
    with pytest.raises(error, match=message):
        TARGET.load(spec(path, file=tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content"), [("a.ubj", b"xx"), ("a.json", b"[1]"), ("a.txt", b"hello"), ("a.ubj", b"")]
)
def test_a_file_of_another_kind_is_refused_by_its_start(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="it begins with"):
        TARGET.check(spec(tmp_path / name))


@pytest.mark.parametrize("suffix", [".ubj", ".json", ".txt"])
def test_the_columns_of_a_file_are_known_before_it_is_loaded(suffix: str, tmp_path: Path) -> None:
    path = (
        LIGHTGBM / "binary.txt"
        if suffix == ".txt"
        else trained(tmp_path / f"trees{suffix}", "binary:logistic")
    )
    width = 4 if suffix == ".txt" else 5
    np.save(tmp_path / "rows.npy", np.zeros((3, width), "float32"))
    TARGET.check(spec(path, file=tmp_path / "rows.npy"))
    np.save(tmp_path / "rows.npy", np.zeros((3, width + 1), "float32"))
    with pytest.raises(DataError, match=rf"features is float32 \[3, {width + 1}\]"):
        TARGET.check(spec(path, file=tmp_path / "rows.npy"))
