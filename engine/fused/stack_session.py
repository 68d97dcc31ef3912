"""The inference session of a `Stack`: its pre-norm layers run as Triton kernels, its embedding and its head in torch.

Inputs, vectors, states and outputs stay on the device. The layers run in the plan's precision, the other parts in FP32.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from buzzer.engine.fused.packing import Tokens, row_starts
from buzzer.engine.fused.session import Bucket, FusedSession
from buzzer.engine.fused.spec import Stack, StackSpec
from buzzer.engine.fused.stack import StackProgram, pack
from buzzer.engine.infer.session import Array, Plan, as_arrays, check_batch
from buzzer.errors import UsageError


@dataclass
class Staged:
    """A batch on the device and, after its run, its outputs on the device."""

    inputs: list[Tensor]
    sequences: int
    bucket: Bucket
    outputs: tuple[Tensor, ...] = ()


class StackSession(FusedSession):
    """Runs a `Stack`; outputs are fp32 and int64."""

    def __init__(self, plan: Plan, model: Stack) -> None:
        self.spec = model.stack_spec()
        self._weights = pack(self.spec, plan.precision, plan.device)
        self._module = plan.model.to(plan.device).eval()
        super().__init__(plan)

    @torch.inference_mode()
    def stage(self, batch: Mapping[str, Array]) -> Staged:
        """Start the copy of a batch to the device."""
        check_batch(self.plan, batch)
        tokens = self.packed(batch)
        bucket = self._send(tokens)
        inputs = [torch.as_tensor(array, device=self.plan.device) for array in self._ordered(batch)]
        return Staged(inputs, tokens.sequences, bucket)

    @torch.inference_mode()
    def replay(self, staged: Staged) -> None:
        """Start the work on a staged batch; does not wait for it."""
        program = staged.bucket.program
        vectors = self._module.vectors(*staged.inputs).flatten(0, 1)
        program.states.copy_(vectors.index_select(0, program.inputs.ids[0]))
        staged.bucket.replay()
        last = program.output.index_select(0, program.inputs.starts[1 : staged.sequences + 1] - 1)
        staged.outputs = self._module.outputs(last.float(), *staged.inputs)

    def fetch(self, staged: Staged) -> dict[str, Array]:
        """Wait for the outputs and copy them to the host."""
        return as_arrays([x.cpu().numpy() for x in staged.outputs], self.plan.outputs)

    def program(self, tokens: int, sequences: int) -> StackProgram:
        return StackProgram(self._weights, tokens, sequences, self._tuned.tile)

    def weight_bytes(self) -> int:
        """The layers' matrices in the plan's precision, all other weights in FP32."""
        parameters = sum(w.numel() for w in self.plan.model.parameters())
        matrices = sum(w.numel() for w in matrices_of(self.spec))
        return 4 * (parameters - matrices) + self._weights.dtype.itemsize * matrices

    def packed(self, batch: Mapping[str, Array]) -> Tokens:
        return tokens_of(self._module.attended(*self._ordered(batch)), self._weights.reach)

    def _ordered(self, batch: Mapping[str, Array]) -> list[Array]:
        return [batch[name] for name in self.plan.example]


def tokens_of(attended: Array, reach: int) -> Tokens:
    """The attended tokens of a batch. Their ids are flat positions in the batch, used to gather the input vectors.

    attended: bool [rows, length]. Raises UsageError for rows longer than `reach`, and for rows that are not padding
    followed by tokens (see `Stack`).
    """
    if attended.shape[1] > reach:
        raise UsageError(f"rows have {attended.shape[1]} tokens, but the layers' distances cover {reach}")
    if not attended[:, -1].all() or (attended[:, :-1] & ~attended[:, 1:]).any():
        raise UsageError("a row must be padding, followed by at least one event")
    places = np.flatnonzero(attended)
    ids = np.stack([places, np.zeros_like(places), np.zeros_like(places)]).astype(np.int32)
    return Tokens(attended.shape, places, ids, row_starts(attended).astype(np.int32))


def matrices_of(spec: StackSpec) -> list[Tensor]:
    """The weight matrices that have the plan's precision on the device."""
    linears = [x for layer in spec.layers for x in (layer.qkv, layer.out, layer.up, layer.down)]
    return [x.weight for x in linears]
