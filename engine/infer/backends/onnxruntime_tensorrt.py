"""ONNX Runtime's TensorRT execution provider on device memory, with a CUDA graph. The CUDA provider runs what TensorRT does not."""

from buzzer.engine.infer.onnx.bound import PRECISIONS, BoundSession, Provider
from buzzer.engine.infer.session import Plan

__all__ = ["PRECISIONS", "prepare"]


def prepare(plan: Plan) -> BoundSession:
    """A session on the plan's torch module or ONNX file. The engine is built here, which takes minutes for a large model."""
    half = {"trt_fp16_enable": "1"} if plan.precision == "fp16" else {}
    provider = Provider(
        "TensorrtExecutionProvider", half, {"trt_cuda_graph_enable": "1"}, ("CUDAExecutionProvider",)
    )
    return BoundSession(plan, "onnxruntime_tensorrt", provider)
