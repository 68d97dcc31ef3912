"""Our own engine for encoders: Triton kernels on static buffers, one CUDA graph a number of tokens.

Padding is never computed: the attended tokens of a batch are packed side by side, filled up to a bucket's size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from buzzer.engine.device import no_cuda
from buzzer.engine.fused.lowering import Lowering, Program, text_of
from buzzer.engine.fused.packing import Tokens, pack
from buzzer.engine.fused.session import Bucket, FusedSession
from buzzer.engine.fused.spec import Encoder, EncoderSpec, Stack
from buzzer.engine.fused.stack import FusedStack
from buzzer.engine.fused.weights import EIGHTS, FLOATS
from buzzer.engine.fused.weights import pack as pack_weights
from buzzer.engine.infer.session import Array, Plan, as_arrays, check_batch
from buzzer.engine.kernels.jit import interpreted
from buzzer.errors import UnsupportedError

PRECISIONS = (*FLOATS, *EIGHTS)


@dataclass
class Staged:
    """A batch on the device."""

    tokens: Tokens
    bucket: Bucket


class Fused(FusedSession):
    """An encoder's own kernels; states between them are fp16 for fp8 and int8, outputs are fp32."""

    def __init__(self, plan: Plan) -> None:
        self.spec = spec_of(plan)
        check_device(plan)
        self._weights = pack_weights(self.spec, plan.precision, plan.device)
        super().__init__(plan)

    @torch.inference_mode()
    def stage(self, batch: Mapping[str, Array]) -> Staged:
        """Pack a batch and start its copy to the device."""
        check_batch(self.plan, batch)
        tokens = self.packed(batch)
        return Staged(tokens, self._send(tokens))

    @torch.inference_mode()
    def replay(self, staged: Staged) -> None:
        """Start the kernels on what was staged; does not wait for them."""
        staged.bucket.replay()

    def fetch(self, staged: Staged) -> dict[str, Array]:
        """Wait for the outputs and copy them to the host."""
        tokens, program = staged.tokens, staged.bucket.program
        output = program.output.float().cpu().numpy()
        program.check()
        if self.spec.pooling != "none":
            return as_arrays(output[: tokens.sequences].copy(), self.plan.outputs)
        states = np.zeros((*tokens.shape, output.shape[1]), dtype=np.float32)
        states.reshape(-1, output.shape[1])[tokens.places] = output[: len(tokens.places)]
        return as_arrays(states, self.plan.outputs)

    def program(self, tokens: int, sequences: int) -> Program:
        mode = self._tuned.mode(text_of(self._weights, tokens))
        lowering = Lowering(self._weights, tokens, sequences, self._tuned.tile, mode)
        return lowering.program(self.spec.pooling, self.spec.unit)

    def weight_bytes(self) -> int:
        return sum(w.numel() * w.element_size() for w in self._weights.tensors())

    def packed(self, batch: Mapping[str, Array]) -> Tokens:
        roles = dict(zip(self.spec.inputs, batch.values(), strict=False))
        return pack(roles, len(self.spec.words), len(self.spec.positions), len(self.spec.types))


def spec_of(plan: Plan) -> EncoderSpec:
    """The plan's encoder. Raises UnsupportedError for a model that is none."""
    if not isinstance(plan.model, Encoder):
        raise UnsupportedError(
            "fused runs encoders only: modules with encoder_spec() or stack_spec()",
            "torch_eager runs any torch module",
        )
    return plan.model.encoder_spec()


def check_device(plan: Plan) -> None:
    """Raises UnsupportedError where the kernels cannot run. The interpreter is for tests: it must be asked for."""
    if plan.device == "cpu" and not interpreted():
        hint = "set TRITON_INTERPRET=1 to test the kernels in Triton's interpreter; that is no CPU backend"
        raise UnsupportedError("fused runs on CUDA devices only", hint)
    if plan.device == "cuda" and interpreted():
        raise UnsupportedError("kernels are interpreted in this process", "unset TRITON_INTERPRET")
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(no_cuda(), "`buzzer env` shows what this machine has")
    if plan.device == "cuda" and plan.precision == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        raise UnsupportedError("this GPU has no FP8 arithmetic", "use --precision int8")


def prepare(plan: Plan) -> FusedSession:
    if isinstance(plan.model, Stack):
        check_device(plan)  # told before what the model lacks
        return FusedStack(plan)
    return Fused(plan)
