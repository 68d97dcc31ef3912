"""This project's Triton kernels for encoders; see `buzzer.engine.fused`."""

import torch

from buzzer.engine.device import require_torch_cuda
from buzzer.engine.fused.encoder_session import EncoderSession
from buzzer.engine.fused.session import FusedSession
from buzzer.engine.fused.spec import Encoder, Stack
from buzzer.engine.fused.stack_session import StackSession
from buzzer.engine.fused.weights import EIGHTS, FLOATS
from buzzer.engine.infer.session import Plan
from buzzer.engine.kernels.jit import interpreted
from buzzer.errors import UnsupportedError

PRECISIONS = (*FLOATS, *EIGHTS)


def check_device(plan: Plan) -> None:
    """Raises UnsupportedError if the kernels cannot run. On the CPU they run only in Triton's interpreter, for tests."""
    if plan.device == "cpu" and not interpreted():
        hint = "set TRITON_INTERPRET=1 to test the kernels in Triton's interpreter, which is slow"
        raise UnsupportedError("fused runs on CUDA devices only", hint)
    if plan.device == "cuda" and interpreted():
        raise UnsupportedError("kernels are interpreted in this process", "unset TRITON_INTERPRET")
    if plan.device == "cuda":
        require_torch_cuda()
    if plan.device == "cuda" and plan.precision == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        raise UnsupportedError("this GPU has no FP8 arithmetic", "use --precision int8")


def prepare(plan: Plan) -> FusedSession:
    """A session on the plan's encoder. Raises UnsupportedError for a model that is neither an `Encoder` nor a `Stack`."""
    if isinstance(plan.model, Stack):
        check_device(plan)  # before `stack_spec`, which may raise for the model
        return StackSession(plan, plan.model)
    if isinstance(plan.model, Encoder):
        spec = plan.model.encoder_spec()
        check_device(plan)
        return EncoderSession(plan, spec)
    raise UnsupportedError(
        "fused runs encoders only: modules with encoder_spec() or stack_spec()",
        "torch_eager runs any torch module",
    )
