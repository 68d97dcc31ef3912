"""The fused backend for session encoders: pre-norm layers as Triton kernels; what makes their vectors and what follows them by torch.

Inputs, vectors, states and outputs stay on the device; the layers have the asked precision, the module's own parts FP32.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from buzzer.engine.fused.lowering import Choose, Inputs, Program
from buzzer.engine.fused.packing import Tokens, row_starts
from buzzer.engine.fused.session import Bucket, FusedSession
from buzzer.engine.fused.spec import StackLayer, StackSpec
from buzzer.engine.fused.weights import FLOATS, Linear, Packer
from buzzer.engine.infer.session import Array, Plan, as_arrays, check_batch
from buzzer.engine.kernels.attention import self_attention
from buzzer.engine.kernels.gemm import linear
from buzzer.engine.kernels.rows import Norm, residual_norm
from buzzer.errors import UnsupportedError, UsageError


@dataclass(frozen=True)
class Layer:
    """distances: float32, as `self_attention` takes them."""

    before: Norm
    qkv: Linear
    distances: Tensor
    out: Linear
    between: Norm
    up: Linear
    down: Linear


@dataclass(frozen=True)
class StackWeights:
    """The layers on the device."""

    dtype: torch.dtype
    device: str
    layers: Sequence[Layer]
    end: Norm
    heads: int
    act: str
    causal: bool

    @property
    def size(self) -> int:
        return len(self.end.gamma)

    @property
    def reach(self) -> int:
        """Tokens of the longest row that the layers' distances serve."""
        return min((layer.distances.shape[1] + 1) // 2 for layer in self.layers)


def pack(spec: StackSpec, precision: str, device: str) -> StackWeights:
    """Raises UnsupportedError for a precision that is not one of floats."""
    if precision not in FLOATS:
        raise UnsupportedError(
            f"fused runs session encoders in {', '.join(FLOATS)}, not in {precision}", "use --precision fp16"
        )
    packer = Packer(FLOATS[precision], None, device)
    layers = [pack_layer(packer, layer) for layer in spec.layers]
    return StackWeights(
        packer.dtype, device, layers, packer.norm(spec.end), spec.heads, spec.act, spec.causal
    )


def pack_layer(packer: Packer, layer: StackLayer) -> Layer:
    return Layer(
        before=packer.norm(layer.before),
        qkv=packer.linear([layer.qkv]),
        distances=packer.vector(layer.distances * math.log2(math.e)),
        out=packer.linear([layer.out]),
        between=packer.norm(layer.between),
        up=packer.linear([layer.up]),
        down=packer.linear([layer.down]),
    )


class StackProgram(Program):
    """The kernels of `weights` for a number of tokens and sequences: seven a layer and the last norm, on buffers that stay.

    states [tokens, size]: the vectors before a run; they are overwritten. output: the normed states.
    """

    def __init__(self, weights: StackWeights, tokens: int, sequences: int, choose: Choose) -> None:
        self.weights, self.choose = weights, choose
        self.inputs, self.launches, self.counters = Inputs(tokens, sequences, weights.device), [], None
        size, wide = weights.size, len(weights.layers[0].up.weights.weight)
        self.states, self.between, self.normed, self.context, self.output = (
            self._buffer(size) for _ in range(5)
        )
        self.qkv, self.wide = self._buffer(3 * size), self._buffer(wide)
        for number, layer in enumerate(weights.layers):
            self._layer(f"layer {number}", layer)
        self.launches.append(residual_norm("end", self.states, weights.end, self.output))

    def _buffer(self, columns: int) -> Tensor:
        return torch.zeros(self.inputs.tokens, columns, dtype=self.weights.dtype, device=self.weights.device)

    def _layer(self, name: str, layer: Layer) -> None:
        """From `states` to `states`; a residual is added where its sum is made, so that no sum is left in shares."""
        weights = self.weights
        self.launches.append(residual_norm(f"{name} before", self.states, layer.before, self.normed))
        self._linear(f"{name} qkv", self.normed, layer.qkv, self.qkv)
        self.launches.append(
            self_attention(
                f"{name} attention",
                self.qkv,
                self.inputs.spans,
                self.context,
                weights.heads,
                distances=layer.distances,
                causal=weights.causal,
            )
        )
        self._linear(f"{name} out", self.context, layer.out, self.between, residual=self.states)
        self.launches.append(residual_norm(f"{name} between", self.between, layer.between, self.normed))
        self._linear(f"{name} up", self.normed, layer.up, self.wide, act=weights.act)
        self._linear(f"{name} down", self.wide, layer.down, self.states, residual=self.between)

    def _linear(
        self,
        name: str,
        x: Tensor,
        layer: Linear,
        out: Tensor,
        act: str = "none",
        residual: Tensor | None = None,
    ) -> None:
        columns, depth = layer.weights.weight.shape
        tile = self.choose(len(x), columns, depth, x.dtype, False)
        self.launches.append(linear(name, x, layer.weights, out, tile, residual=residual, act=act))


@dataclass
class Staged:
    """A batch on the device, and what was made of it."""

    inputs: list[Tensor]
    sequences: int
    bucket: Bucket
    outputs: tuple[Tensor, ...] = ()


class FusedStack(FusedSession):
    """A session encoder: vectors by torch, layers by our kernels, the head by torch; outputs are fp32 and int64."""

    def __init__(self, plan: Plan) -> None:
        self.spec = plan.model.stack_spec()
        self._weights = pack(self.spec, plan.precision, plan.device)
        self._module = plan.model.to(plan.device).eval()
        super().__init__(plan)

    @torch.inference_mode()
    def stage(self, batch: Mapping[str, Array]) -> Staged:
        """Start the copy of a batch to the device."""
        check_batch(self.plan, batch)
        tokens = self.packed(batch)
        found = self._send(tokens)
        inputs = [torch.as_tensor(array, device=self.plan.device) for array in self._given(batch)]
        return Staged(inputs, tokens.sequences, found)

    @torch.inference_mode()
    def replay(self, staged: Staged) -> None:
        """Start the work on what was staged; does not wait for it."""
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
        """The layers' matrices are in the asked precision; all others are FP32."""
        every = sum(w.numel() for w in self.plan.model.parameters())
        matrices = sum(w.numel() for w in matrices_of(self.spec))
        return 4 * (every - matrices) + self._weights.dtype.itemsize * matrices

    def _given(self, batch: Mapping[str, Array]) -> list[Array]:
        return [batch[name] for name in self.plan.example]

    def packed(self, batch: Mapping[str, Array]) -> Tokens:
        return tokens_of(self._module.attended(*self._given(batch)), self._weights.reach)


def tokens_of(attended: Array, reach: int) -> Tokens:
    """The tokens that are no padding; in the place of word ids their places in the batch, by which vectors are gathered.

    Raises UsageError for rows of another form than `Stack` says.
    """
    if attended.shape[1] > reach:
        raise UsageError(f"rows of {attended.shape[1]} tokens, the layers know distances of {reach}")
    if not attended[:, -1].all() or (attended[:, :-1] & ~attended[:, 1:]).any():
        raise UsageError("a row must be padding, then at least one event, up to its end")
    places = np.flatnonzero(attended)
    ids = np.stack([places, np.zeros_like(places), np.zeros_like(places)]).astype(np.int32)
    return Tokens(attended.shape, places, ids, row_starts(attended).astype(np.int32))


def matrices_of(spec: StackSpec) -> list[Tensor]:
    """The weights that are kept in the asked precision; all others are FP32."""
    linears = [x for layer in spec.layers for x in (layer.qkv, layer.out, layer.up, layer.down)]
    return [x.weight for x in linears]
