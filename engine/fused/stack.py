"""A stack of pre-norm layers as a sequence of kernels, and its weights on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from buzzer.engine.fused.lowering import Choose, Inputs, Program
from buzzer.engine.fused.spec import StackLayer, StackSpec
from buzzer.engine.fused.weights import FLOATS, Linear, Packer
from buzzer.engine.kernels.attention import self_attention
from buzzer.engine.kernels.gemm import linear
from buzzer.engine.kernels.rows import Norm, residual_norm
from buzzer.errors import UnsupportedError


@dataclass(frozen=True)
class Layer:
    """A pre-norm layer's weights. distances: float32 [heads, 2 * reach - 1], in the form that `self_attention` takes."""

    before: Norm
    qkv: Linear
    distances: Tensor
    out: Linear
    between: Norm
    up: Linear
    down: Linear


@dataclass(frozen=True)
class StackWeights:
    """The weights of all layers and of the last norm. dtype: the type of matrices and of states between kernels."""

    dtype: torch.dtype
    device: str
    layers: Sequence[Layer]
    end: Norm
    heads: int
    act: str
    causal: bool

    @property
    def size(self) -> int:
        """Values of a token's state."""
        return len(self.end.gamma)

    @property
    def reach(self) -> int:
        """The most tokens that a row may have, limited by the layers' distances."""
        return min((layer.distances.shape[1] + 1) // 2 for layer in self.layers)


def pack(spec: StackSpec, precision: str, device: str) -> StackWeights:
    """The weights on the device. Raises UnsupportedError unless the precision is fp32, fp16 or bf16."""
    if precision not in FLOATS:
        raise UnsupportedError(
            f"fused runs session encoders in {', '.join(FLOATS)}, but not in {precision}",
            "use --precision fp16",
        )
    packer = Packer(FLOATS[precision], None, device)
    layers = [pack_layer(packer, layer) for layer in spec.layers]
    return StackWeights(
        packer.dtype, device, layers, packer.norm(spec.end), spec.heads, spec.act, spec.causal
    )


def pack_layer(packer: Packer, layer: StackLayer) -> Layer:
    """A layer's weights on the device."""
    return Layer(
        before=packer.norm(layer.before),
        qkv=packer.linear([layer.qkv]),
        distances=packer.distances(layer.distances),
        out=packer.linear([layer.out]),
        between=packer.norm(layer.between),
        up=packer.linear([layer.up]),
        down=packer.linear([layer.down]),
    )


class StackProgram(Program):
    """The kernels for a fixed number of tokens and sequences, on static buffers: seven per layer, then the last norm.

    states [tokens, size]: the input vectors; a run overwrites them. output [tokens, size]: the states after the last norm.
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
        """Updates `states` in place. A GEMM before a residual adds the residual itself, so no GEMM is split along K."""
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
