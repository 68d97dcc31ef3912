"""Converts XGBoost models to ONNX graphs with onnxmltools."""

from buzzer.engine.infer.session import Plan
from buzzer.errors import UnsupportedError

BOOSTERS = (".ubj", ".json")
OPSET = 15  # the newest opset that onnxmltools supports


def convert(plan: Plan) -> bytes:
    """The Booster of the plan's file as an ONNX graph whose only output is the probability of class 1, float32 [rows].

    Raises UnsupportedError without onnxmltools and for a plan with `base_margin`, DataError for a file without a Booster.
    """
    from buzzer.engine.infer.trees import load

    booster = load(plan.model)
    if set(plan.example) != {"features"}:
        raise UnsupportedError("trees in ONNX do not support base margins", "use --backend xgboost")
    try:
        from onnxmltools import convert_xgboost
        from onnxmltools.convert.common.data_types import FloatTensorType
    except ImportError as error:
        raise UnsupportedError("onnxmltools is not installed", "pip install 'buzzer[trees]'") from error
    from onnx import TensorProto, helper

    inputs = [("features", FloatTensorType([None, plan.example["features"].shape[1]]))]
    model = convert_xgboost(booster, initial_types=inputs, target_opset=OPSET)
    (out,) = plan.outputs
    # The converted graph returns a label and the probabilities of both classes. Only the second column is needed.
    model.graph.initializer.append(helper.make_tensor("second", TensorProto.INT64, [], [1]))
    model.graph.node.append(helper.make_node("Gather", ["probabilities", "second"], [out], axis=1))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, [None]))
    return bytes(model.SerializeToString())
