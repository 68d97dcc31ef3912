"""Converts XGBoost models to ONNX graphs with onnxmltools."""

import json

from buzzer.engine.infer import boosted
from buzzer.engine.infer.session import Plan
from buzzer.errors import UnsupportedError, first_line

BOOSTERS = (".ubj", ".json")
OPSET = 15  # the newest opset that onnxmltools supports


def convert(plan: Plan) -> bytes:
    """The Booster of the plan's file as an ONNX graph with one output: the probability of class 1 for two classes, else the
    probabilities of all classes, or the predicted number; float32 [rows] or [rows, classes].

    Raises UnsupportedError without onnxmltools, for a plan with `base_margin` and for a Booster that onnxmltools cannot convert, DataError
    for a file without a Booster.
    """
    from buzzer.engine.infer.trees import check_output, load

    booster = load(plan.model)
    check_output(booster)
    if set(plan.example) != {"features"}:
        raise UnsupportedError("trees in ONNX do not support base margins", "use --backend xgboost")
    try:
        from onnxmltools import convert_xgboost
        from onnxmltools.convert.common.data_types import FloatTensorType
    except ImportError as error:
        raise UnsupportedError("onnxmltools is not installed", "pip install 'buzzer[trees]'") from error
    from onnx import TensorProto, helper

    inputs = [("features", FloatTensorType([None, plan.example["features"].shape[1]]))]
    booster.feature_names = None  # the converter takes columns by number
    try:
        model = convert_xgboost(booster, initial_types=inputs, target_opset=OPSET)
    except Exception as error:  # the converter raises many types
        problem = f"onnxmltools cannot convert these trees: {first_line(error)}"
        raise UnsupportedError(problem, "use --backend xgboost") from error
    (out,) = plan.outputs
    classes = boosted.classes(json.loads(booster.save_config())["learner"])
    named = [entry.name for entry in model.graph.output]
    # A classifier's graph returns labels and probabilities; of two classes only the second column is needed.
    source = "probabilities" if "probabilities" in named else named[0]
    if classes > 1:
        node = helper.make_node("Identity", [source], [out])
    else:
        column = 1 if source == "probabilities" else 0
        model.graph.initializer.append(helper.make_tensor("column", TensorProto.INT64, [], [column]))
        node = helper.make_node("Gather", [source, "column"], [out], axis=1)
    model.graph.node.append(node)
    del model.graph.output[:]
    shape = [None] * (2 if classes > 1 else 1)
    model.graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, shape))
    return bytes(model.SerializeToString())
