"""Our own engine for encoders: Triton kernels on static buffers, one CUDA graph a number of tokens.

Padding is never computed: the attended tokens of a batch are packed side by side, filled up to a bucket's size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from buzzer.engine.infer.encoder import Encoder, EncoderSpec, Stack
from buzzer.engine.infer.fused_pack import Tokens, bucket, pack
from buzzer.engine.infer.fused_plan import Lowering, Program, text_of
from buzzer.engine.infer.fused_stack import FusedStack
from buzzer.engine.infer.fused_weights import EIGHTS, FLOATS
from buzzer.engine.infer.fused_weights import pack as pack_weights
from buzzer.engine.infer.session import Array, Base, Description, Plan, as_arrays, check_batch
from buzzer.engine.kernels.jit import Launch, interpreted, triton
from buzzer.engine.kernels.timing import capture
from buzzer.engine.kernels.tune import Tuned
from buzzer.errors import UnsupportedError

PRECISIONS = (*FLOATS, *EIGHTS)
POISON = 255  # bytes: NaN in every float dtype


@dataclass
class Bucket:
    """A program with its captured graph (None in the interpreter), and the host's side of its inputs."""

    program: Program
    graph: Any
    host: Tensor


@dataclass
class Staged:
    """A batch on the device."""

    tokens: Tokens
    bucket: Bucket


class Fused(Base):
    """An encoder's own kernels; states between them are fp16 for fp8 and int8, outputs are fp32."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.spec = spec_of(plan)
        check_device(plan)
        self._weights = pack_weights(self.spec, plan.precision, plan.device)
        self._tuned = Tuned.load(plan.device)
        self._buckets: dict[tuple[int, int], Bucket] = {}
        self._kernels: int | None = None  # of the last run

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        staged = self.stage(batch)
        self.replay(staged)
        return self.fetch(staged)

    @torch.inference_mode()
    def stage(self, batch: Mapping[str, Array]) -> Staged:
        """Pack a batch and start its copy to the device."""
        check_batch(self.plan, batch)
        tokens = self._pack(batch)
        found = self._bucket(tokens)
        self._kernels = len(found.program.launches)
        tokens.write(found.host.numpy(), found.program.inputs.tokens)
        found.program.inputs.all.copy_(found.host, non_blocking=True)
        return Staged(tokens, found)

    @torch.inference_mode()
    def replay(self, staged: Staged) -> None:
        """Start the kernels on what was staged; does not wait for them."""
        if staged.bucket.graph is None:
            staged.bucket.program.run()
        else:
            staged.bucket.graph.replay()

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

    def launches(self, batch: Mapping[str, Array]) -> list[Launch]:
        """The kernels that a batch runs, with their bytes and FLOPs."""
        return self._bucket(self._pack(batch)).program.launches

    def facts(self) -> Description:
        weights = self._weights.tensors()
        module = self.plan.model
        return Description(
            backend="fused",
            version=f"triton {triton.__version__}" + (" interpreter" if interpreted() else ""),
            precision=self.plan.precision,
            device=self.plan.device,
            threads=self.plan.threads,
            parameters=sum(w.numel() for w in module.parameters()),
            weight_bytes=sum(w.numel() * w.element_size() for w in weights),
            kernels=self._kernels,
        )

    def poison(self) -> None:
        for found in self._buckets.values():
            found.program.output.view(torch.uint8).fill_(POISON)

    def close(self) -> None:
        self._buckets.clear()

    def _pack(self, batch: Mapping[str, Array]) -> Tokens:
        roles = dict(zip(self.spec.inputs, batch.values(), strict=False))
        return pack(roles, len(self.spec.words), len(self.spec.positions), len(self.spec.types))

    def _bucket(self, tokens: Tokens) -> Bucket:
        size = bucket(len(tokens.places), 16), bucket(tokens.sequences, 1)
        if size not in self._buckets:
            self._buckets[size] = self._make(*size)
        return self._buckets[size]

    def _make(self, tokens: int, sequences: int) -> Bucket:
        mode = self._tuned.mode(text_of(self._weights, tokens))
        lowering = Lowering(self._weights, tokens, sequences, self._tuned.tile, mode)
        program = lowering.program(self.spec.pooling, self.spec.unit)
        on_gpu = self.plan.device == "cuda"
        host = torch.zeros_like(program.inputs.all, device="cpu", pin_memory=on_gpu)
        return Bucket(program, capture(program.run) if on_gpu else None, host)


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
        raise UnsupportedError("no CUDA device here", "`buzzer env` shows what this machine has")
    if plan.device == "cuda" and plan.precision == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        raise UnsupportedError("this GPU has no FP8 arithmetic", "use --precision int8")


def prepare(plan: Plan) -> Fused | FusedStack:
    if isinstance(plan.model, Stack):
        check_device(plan)  # told before what the model lacks
        return FusedStack(plan)
    return Fused(plan)
