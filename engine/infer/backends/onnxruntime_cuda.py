"""ONNX Runtime's CUDA execution provider on device memory, with a CUDA graph."""

from buzzer.engine.infer.onnx.bound import PRECISIONS, BoundSession, Provider
from buzzer.engine.infer.session import Plan

__all__ = ["PRECISIONS", "prepare"]

# TF32 would round the inputs of fp32 products to 10 bits; torch does not by default.
PROVIDER = Provider("CUDAExecutionProvider", {"use_tf32": "0"}, {"enable_cuda_graph": "1"})


def prepare(plan: Plan) -> BoundSession:
    """A session on the plan's torch module or ONNX file."""
    return BoundSession(plan, "onnxruntime_cuda", PROVIDER)
