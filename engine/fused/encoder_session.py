"""The session of a BERT-like encoder: Triton kernels on static buffers, one CUDA graph for each bucket size.

Padding of rows is not computed: the attended tokens of a batch are packed side by side, then padded to the size of a bucket.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from buzzer.engine.fused.lowering import Lowering, Program, program_key
from buzzer.engine.fused.packing import Tokens, pack
from buzzer.engine.fused.session import Bucket, FusedSession
from buzzer.engine.fused.spec import EncoderSpec
from buzzer.engine.fused.weights import pack as pack_weights
from buzzer.engine.infer.session import Array, Plan, as_arrays, check_batch


@dataclass
class Staged:
    """A batch on the device."""

    tokens: Tokens
    bucket: Bucket


class EncoderSession(FusedSession):
    """Runs an `EncoderSpec`. States between kernels have the plan's float type (fp16 for fp8 and int8); outputs are fp32."""

    def __init__(self, plan: Plan, spec: EncoderSpec) -> None:
        self.spec = spec
        self._weights = pack_weights(spec, plan.precision, plan.device)
        super().__init__(plan)

    @torch.inference_mode()
    def stage(self, batch: Mapping[str, Array]) -> Staged:
        """Pack a batch and start its copy to the device."""
        check_batch(self.plan, batch)
        tokens = self.packed(batch)
        return Staged(tokens, self._send(tokens))

    @torch.inference_mode()
    def replay(self, staged: Staged) -> None:
        """Start the kernels on a staged batch; does not wait for them."""
        staged.bucket.replay()

    def fetch(self, staged: Staged) -> dict[str, Array]:
        """Wait for the outputs and copy them to the host: float32 [sequences, values] with pooling, else [rows, columns, size]."""
        tokens, program = staged.tokens, staged.bucket.program
        output = program.output.float().cpu().numpy()
        program.check()
        if self.spec.pooling != "none":
            return as_arrays(output[: tokens.sequences].copy(), self.plan.outputs)
        states = np.zeros((*tokens.shape, output.shape[1]), dtype=np.float32)
        states.reshape(-1, output.shape[1])[tokens.places] = output[: len(tokens.places)]
        return as_arrays(states, self.plan.outputs)

    def program(self, tokens: int, sequences: int) -> Program:
        mode = self._tuned.mode(program_key(self._weights, tokens))
        lowering = Lowering(self._weights, tokens, sequences, self._tuned.tile, mode)
        return lowering.program(self.spec.pooling, self.spec.unit)

    def weight_bytes(self) -> int:
        return sum(w.numel() * w.element_size() for w in self._weights.tensors())

    def packed(self, batch: Mapping[str, Array]) -> Tokens:
        roles = dict(zip(self.spec.inputs, batch.values(), strict=False))
        return pack(roles, len(self.spec.words), len(self.spec.positions), len(self.spec.types))
