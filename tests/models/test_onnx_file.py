"""ONNX files as models of `buzzer bench`: their random inputs, the name of their precision, and files that are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from buzzer.engine import infer
from buzzer.engine.infer.cost import cost_of
from buzzer.engine.infer.onnx import graphs
from buzzer.errors import DataError, UnsupportedError, UsageError
from buzzer.models.api.bench import BenchSpec, altered
from buzzer.models.onnx_file import TARGET
from buzzer.suite import registry
from buzzer.suite.bench import answers, identity, plan
from buzzer.suite.bench.checks import Check

FLOATS = {"fp16": "float16", "fp32": "float32", "fp64": "float64"}


def saved(
    path: Path,
    nodes: list[Any],
    inputs: dict[str, tuple[int, list[Any]]],
    weights: dict[str, Any],
    **more: Any,
) -> Path:
    """A file of these nodes, whose output is `y`: floats of any shape, unless `output` says otherwise."""
    output = more.pop("output", helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [output],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=9), str(path), **more)
    return path


def gemm(path: Path, kind: str, **more: Any) -> Path:
    weight = np.arange(6.0).reshape(3, 2).astype(kind)
    code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    output = helper.make_tensor_value_info("y", code, ["rows", 2])
    return saved(
        path,
        [helper.make_node("Gemm", ["x", "w"], ["y"])],
        {"x": (code, ["rows", 3])},
        {"w": weight},
        output=output,
        **more,
    )


def ask(path: Path, **changes: Any) -> BenchSpec:
    """What `buzzer bench` asks for: two batches of two rows."""
    values = {"batch": 2, "seq": 5, "inputs": 2} | changes
    return BenchSpec(**values, lengths="fixed", packing="padded", seed=0, params={"path": str(path)})


def prepared(path: Path, backend: str, precision: str) -> infer.Session:
    loaded = TARGET.load(ask(path))
    axes: dict[str, dict[int, str]] = {name: {} for name in loaded.batches[0]}
    given: dict[str, Any] = {"example": loaded.batches[0], "outputs": loaded.outputs, "dynamic": axes}
    return infer.prepare(path, backend=backend, precision=precision, **given)


@pytest.mark.parametrize("own", FLOATS)
def test_the_precision_of_a_file_is_the_type_of_its_weights(own: str, tmp_path: Path) -> None:
    path = gemm(tmp_path / "net.onnx", FLOATS[own])
    assert graphs.precision(path) == own
    planned = plan.precisions_of("onnxruntime", [], registry.model(str(path)))
    assert next(name for name, problem in planned if problem is None) == own
    for other in FLOATS.keys() - {own}:
        planned = plan.precisions_of("onnxruntime", [other], registry.model(str(path)))
        assert [problem.message for _, problem in planned if problem] == [
            f"onnxruntime has no precision {other}"
        ]
    with prepared(path, "onnxruntime", own) as session:
        assert session.describe().precision == own
        x = np.array([[1, 2, 3], [0, 1, 0]], FLOATS[own])
        np.testing.assert_array_equal(session.run({"x": x})["y"], [[16, 22], [2, 3]])
    cost = cost_of(path, {"x": x})
    assert cost is not None
    assert registry.bench_gate(own)["cosine"] > 0.999
    assert cost.bytes_moved(own) - cost.rest == 6 * np.dtype(FLOATS[own]).itemsize


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fp16", "the file is in fp16"),
        ("nothing", "cannot quantise this model"),
        ("lstm", "cannot quantise this model"),
    ],
)
def test_int8_dynamic_of_nothing_is_unsupported(name: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    if name == "fp16":
        gemm(path, "float16")
    elif name == "nothing":
        saved(path, [helper.make_node("Neg", ["x"], ["y"])], {"x": (TensorProto.FLOAT, ["rows", 3])}, {})
    else:
        weights = {"w": np.ones((1, 8, 3), "float32"), "r": np.ones((1, 8, 2), "float32")}
        node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=2)
        saved(path, [node], {"x": (TensorProto.FLOAT, ["steps", "batch", 3])}, weights)
    with pytest.raises(UnsupportedError, match=why):
        prepared(path, "onnxruntime", "int8-dynamic")
    with prepared(gemm(tmp_path / "float.onnx", "float32"), "onnxruntime", "int8-dynamic") as session:
        assert session.describe().precision == "int8-dynamic"


def test_int8_dynamic_of_a_module_without_linear_layers_is_unsupported() -> None:
    import torch

    example = {"x": np.zeros((2, 1, 4, 4), "float32")}
    with pytest.raises(UnsupportedError, match="cannot quantise this model"):
        infer.prepare(
            torch.nn.Conv2d(1, 2, 3), backend="torch_eager", example=example, precision="int8-dynamic"
        )


def table(
    path: Path, between: list[Any], axis: int, kind: int = TensorProto.INT64, shape: Any = ("rows", 5)
) -> Path:
    """Ids, nodes that hand them on as `ids`, and a lookup in a table of 1,000 rows and 4 columns."""
    nodes = [*between, helper.make_node("Gather", ["table", "ids" if between else "x"], ["y"], axis=axis)]
    weights = {"table": np.ones((1000, 4), "float32"), "axes": np.array([0]), "shape": np.array([-1])}
    return saved(path, nodes, {"x": (kind, list(shape))}, weights)


@pytest.mark.parametrize(
    ("between", "axis", "kind", "below"),
    [
        ([], 0, TensorProto.INT64, 1000),
        ([], 1, TensorProto.INT32, 4),
        ([], -1, TensorProto.INT64, 4),
        ([helper.make_node("Unsqueeze", ["x", "axes"], ["ids"])], 0, TensorProto.INT64, 1000),
        ([helper.make_node("Reshape", ["x", "shape"], ["ids"])], 1, TensorProto.INT64, 4),
        ([helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64)], 0, TensorProto.FLOAT, 1000),
        (
            [
                helper.make_node("Cast", ["x"], ["c"], to=TensorProto.INT64),
                helper.make_node("Unsqueeze", ["c", "axes"], ["u"]),
                helper.make_node("Identity", ["u"], ["ids"]),
            ],
            0,
            TensorProto.INT32,
            1000,
        ),
    ],
)
def test_ids_reach_the_whole_axis_and_no_further(
    between: list[Any], axis: int, kind: int, below: int, tmp_path: Path
) -> None:
    path = table(tmp_path / "net.onnx", between, axis, kind)
    loaded = TARGET.load(ask(path, batch=2000))
    ids = loaded.batches[0]["x"]
    assert (ids.min(), ids.max()) == (0, below - 1)
    assert answers.compute(loaded, "cpu").expected[0]["y"].size > 0


def test_models_without_tokens_have_none_in_results(tmp_path: Path) -> None:
    conv = saved(
        tmp_path / "conv.onnx",
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", 1, 8, 8])},
        {"w": np.ones((2, 1, 3, 3), "float32")},
    )
    for path, tokens in ((conv, 0), (table(tmp_path / "ids.onnx", [], 0, shape=("rows", "length")), 128)):
        assert plan.tokens_of(registry.model(str(path)), 128) == tokens
    assert plan.tokens_of(registry.models()["bert-base"], 128) == 128
    assert plan.tokens_of(registry.models()["gbdt"], 128) == 0


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "/etc/passwd", "../../../../etc/passwd", "a/../../secret.bin", "link", "folder"],
)
def test_weights_outside_the_folder_are_refused_before_a_runtime_opens_them(
    location: str, tmp_path: Path
) -> None:
    home = tmp_path / "model"
    (home / "folder").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(np.ones(6, "float32").tobytes())
    (home / "link").symlink_to(tmp_path / "secret.bin")
    path = gemm(
        home / "net.onnx", "float32", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    model = onnx.load(str(path), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    message = "not a regular file" if location == "folder" else "outside its folder"
    for opens in (
        lambda: TARGET.load(ask(path)),
        lambda: identity.of_path(path),
        lambda: infer.precisions(infer.load("onnxruntime"), path),
        lambda: cost_of(path, {}),
    ):
        with pytest.raises(DataError, match=message):
            opens()
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(DataError, match=message):
            infer.prepare(path, backend=backend, example={"x": np.zeros((2, 3), "float32")}, outputs=("y",))


def test_weights_of_inner_graphs_are_checked_too(tmp_path: Path) -> None:
    inner = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    inner.external_data.add(key="location", value="/etc/passwd")
    constant = helper.make_node("Constant", [], ["y"], value=inner)
    branch = helper.make_graph(
        [constant], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])]
    )
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    path = saved(tmp_path / "net.onnx", [node], {"x": (TensorProto.BOOL, [])}, {})
    with pytest.raises(DataError, match="outside its folder: '/etc/passwd'"):
        graphs.read(path)


def zipmap(path: Path) -> Path:
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    return saved(
        path, [node], {"x": (TensorProto.FLOAT, ["rows", 2])}, {}, output=helper.make_value_info("y", kind)
    )


def texts(path: Path, side: str) -> Path:
    kinds = (TensorProto.STRING, TensorProto.INT64)
    given, made = kinds if side == "input" else kinds[::-1]
    labels = (
        {"keys_strings": ["a"], "values_int64s": [1]}
        if side == "input"
        else {"keys_int64s": [1], "values_strings": ["a"]}
    )
    node = helper.make_node("LabelEncoder", ["x"], ["y"], domain="ai.onnx.ml", **labels)
    return saved(
        path, [node], {"x": (given, ["rows"])}, {}, output=helper.make_tensor_value_info("y", made, ["rows"])
    )


def through(path: Path, backend: str) -> tuple[Any, dict[str, Any]]:
    """The bench model of a file, and the outputs of its first batch by a backend."""
    loaded = TARGET.load(ask(path))
    with prepared(path, backend, "fp32") as session:
        return loaded, session.run(loaded.batches[0])


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(zipmap, "f"), (lambda path: texts(path, "input"), "i"), (lambda path: texts(path, "output"), "U")],
    ids=["zipmap", "text input", "text output"],
)
def test_texts_and_maps_run_on_onnx_runtime_and_are_compared(make: Any, dtype: str, tmp_path: Path) -> None:
    path = make(tmp_path / "net.onnx")
    loaded, got = through(path, "onnxruntime")
    assert got["y"].dtype.kind == dtype
    expected = answers.compute(replace(loaded, unseen=altered(loaded.batches)), "cpu").expected
    check = Check(loaded, expected)
    check.add(0, got)
    assert (check.bad, check.error, check.cosine) == (0, 0.0, 1.0)
    try:
        infer.load("openvino")
    except UnsupportedError:
        return
    with pytest.raises(UnsupportedError, match="OpenVINO"):
        prepared(path, "openvino", "fp32")


def test_a_wrong_class_name_is_an_error(tmp_path: Path) -> None:
    loaded = TARGET.load(ask(texts(tmp_path / "net.onnx", "output")))
    check = Check(loaded, [{"y": np.array(["a", "b"])}, {"y": np.array(["a", "b"])}])
    check.add(0, {"y": np.array(["a", "bb"])})
    assert (check.error, check.hits, check.rows) == (1.0, 1, 2)


def test_a_scikit_learn_pipeline_with_text_columns_runs(tmp_path: Path) -> None:
    """Texts are drawn from those that the encoder knows, and others from a file; the converter's default writes a ZipMap."""
    skl2onnx, sklearn = pytest.importorskip("skl2onnx"), pytest.importorskip("sklearn")
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    del sklearn
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {"colour": rng.choice(["red", "green", "blue"], 60), "size": rng.normal(size=60)}
    )
    columns = [("text", OneHotEncoder(), ["colour"]), ("number", StandardScaler(), ["size"])]
    model = make_pipeline(ColumnTransformer(columns), LogisticRegression())
    model.fit(frame, np.where(frame["colour"] == "red", "yes", "no"))
    types = [("colour", StringTensorType([None, 1])), ("size", FloatTensorType([None, 1]))]
    path = tmp_path / "pipeline.onnx"
    path.write_bytes(skl2onnx.convert_sklearn(model, initial_types=types).SerializeToString())
    loaded, got = through(path, "onnxruntime")
    assert set(loaded.batches[0]["colour"].ravel()) <= {"red", "green", "blue"}
    np.savez(tmp_path / "rows.npz", colour=frame[["colour"]].to_numpy().astype(str), size=frame[["size"]])
    given = TARGET.load(ask(path, file=tmp_path / "rows.npz", batch=30))
    with infer.prepare(
        path, backend="onnxruntime", example=given.batches[0], outputs=given.outputs
    ) as session:
        got = session.run(given.batches[0])
    np.testing.assert_allclose(got["output_probability"], model.predict_proba(frame[:30]), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(got["output_label"], model.predict(frame[:30]))


@pytest.mark.parametrize(
    ("shapes", "want"),
    [
        ({"a": ["N", 3], "b": [3, "N"]}, {"a": (2, 3), "b": (3, 2)}),
        ({"a": ["seq", "batch_size", 3]}, {"a": (5, 2, 3)}),
        ({"a": [None, "length"]}, {"a": (2, 5)}),
        ({"a": ["N", "T"], "b": ["T", 4]}, {"a": (2, 2), "b": (2, 4)}),
        ({"a": [4, "T"]}, {"a": (4, 5)}),
    ],
)
def test_symbolic_axes_with_one_name_have_one_size(
    shapes: dict[str, list[Any]], want: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    node = helper.make_node("Identity", ["a"], ["y"])
    path = saved(tmp_path / "net.onnx", [node], {k: (TensorProto.FLOAT, v) for k, v in shapes.items()}, {})
    takes = graphs.signature(path)
    assert {entry.name: graphs.sizes(entry, 2, 5) for entry in takes.inputs} == want


def trees(path: Path) -> Path:
    """One leaf for every row: class 1 with the weight 0.25."""
    leaf = {
        "treeids": [0],
        "nodeids": [0],
        "featureids": [0],
        "values": [0.0],
        "hitrates": [1.0],
        "modes": ["LEAF"],
    }
    leaf |= {"truenodeids": [0], "falsenodeids": [0], "missing_value_tracks_true": [0]}
    classes = {"class_treeids": [0], "class_nodeids": [0], "class_ids": [1], "class_weights": [0.25]}
    node = helper.make_node(
        "TreeEnsembleClassifier", ["x"], ["label", "y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1],
        **{f"nodes_{key}": value for key, value in leaf.items()}, **classes,
    )  # fmt: skip
    return saved(path, [node], {"x": (TensorProto.FLOAT, ["rows", 3])}, {})


def test_what_openvino_cannot_take_is_unsupported_with_its_reason(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = trees(tmp_path / "trees.onnx")
    assert answers.compute(TARGET.load(ask(path)), "cpu").expected[0]["y"].shape == (2, 2)
    with pytest.raises(
        UnsupportedError, match=r"OpenVINO cannot compile trees\.onnx: .*TreeEnsembleClassifier"
    ):
        prepared(path, "openvino", "fp32")


def test_inputs_too_large_are_refused(tmp_path: Path) -> None:
    neg = helper.make_node("Neg", ["x"], ["y"])
    path = saved(tmp_path / "net.onnx", [neg], {"x": (TensorProto.FLOAT, ["rows", 1 << 40])}, {})
    with pytest.raises(UsageError, match=r"input x of shape 2 x 1099511627776 has more than"):
        TARGET.load(ask(path))


def test_an_output_that_is_not_finite_is_an_error_of_the_model(tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["a"], ["n"]), helper.make_node("Sqrt", ["n"], ["y"])]
    nodes.insert(0, helper.make_node("Abs", ["x"], ["a"]))
    path = saved(tmp_path / "net.onnx", nodes, {"x": (TensorProto.FLOAT, ["rows", 3])}, {})
    with pytest.raises(DataError, match="the model's own output is not finite: output y, input 0"):
        answers.compute(TARGET.load(ask(path)), "cpu")


def test_other_files_are_refused_with_a_hint(tmp_path: Path) -> None:
    for name in ("my.pkl", "my.yaml", "my"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UsageError, match="not a kind of file that can be timed") as caught:
            registry.model(str(tmp_path / name))
        assert "an ONNX file (.onnx)" in caught.value.hint
    with pytest.raises(UsageError, match="no such file or folder"):
        registry.model("missing.ubj")
