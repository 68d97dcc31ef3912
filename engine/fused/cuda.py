"""The layers of an FP8 encoder on the CUDA C++ kernels, for at most 128 tokens: five launches per layer, without kernels for norms.

A state between layers is a sum that is not normed yet. Products that read it correct their results; see `kernels/cuda/gemm.cu`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from buzzer.engine.fused.weights import EncoderWeights, Layer, Linear
from buzzer.engine.kernels.attention import self_attention
from buzzer.engine.kernels.cuda.launch import CudaLaunch, Norms, TiledWeights, gelu, project, residual
from buzzer.engine.kernels.cuda.layout import COLUMNS, MOST_TILES, ROWS, cut_of, tiled
from buzzer.engine.kernels.gemm import Quantiser
from buzzer.engine.kernels.jit import Launch
from buzzer.engine.kernels.rows import Eight, Norm, residual_norm
from buzzer.errors import UnsupportedError

# A sum y that is not normed is stored as E4M3(y * gamma * inverse * HEADROOM), where `inverse` is that of the normed values. The
# deviation of y is not 1: on MiniLM's rows it is 0.38 to 11.3. E4M3 has the same relative precision over 15 powers of two, so one factor
# serves every layer. It saturates if the deviation exceeds 64.
HEADROOM = 1 / 64


@dataclass(frozen=True)
class TiledLayer:
    """The weights of a layer in the form that the CUDA kernels read."""

    qkv: TiledWeights
    out: TiledWeights
    up: TiledWeights
    down: TiledWeights


@dataclass(frozen=True)
class Sums:
    """A state between layers: float16 [128, size], E4M3 [128, size], and the norms of its rows."""

    floats: Tensor
    eight: Tensor
    norms: Norms


_TILED: WeakKeyDictionary[EncoderWeights, list[TiledLayer]] = WeakKeyDictionary()


def check(weights: EncoderWeights, tokens: int) -> None:
    """Raises UnsupportedError for encoders that the kernels cannot run."""
    if tokens > ROWS:
        raise UnsupportedError(f"the CUDA kernels take at most {ROWS} tokens, not {tokens}")
    if weights.eight != torch.float8_e4m3fn or weights.act != "gelu":
        raise UnsupportedError("the CUDA kernels need precision fp8 and the activation gelu")
    if any(x.quantiser is None for layer in weights.layers for x in linears(layer)):
        raise UnsupportedError("the CUDA kernels need all linear layers to be quantised")
    if weights.size > MOST_TILES * COLUMNS or weights.size % COLUMNS:
        raise UnsupportedError(
            f"the CUDA kernels need a size of at most {MOST_TILES * COLUMNS}, a multiple of {COLUMNS}"
        )
    if len({norm.eps for layer in weights.layers for norm in (layer.attention_norm, layer.norm)}) != 1:
        raise UnsupportedError("the CUDA kernels need the same epsilon in all norms")
    for x in linears(weights.layers[0]):
        columns, depth = x.weights.weight.shape
        cut_of(columns, depth, multicast=False)


def linears(layer: Layer) -> tuple[Linear, Linear, Linear, Linear]:
    """The four products of a layer."""
    return layer.qkv, layer.out, layer.up, layer.down


def tiled_layers(weights: EncoderWeights) -> list[TiledLayer]:
    """Copies of the weights of all layers for the kernels, made once for all numbers of tokens."""
    if weights not in _TILED:
        _TILED[weights] = tile(weights)
    return _TILED[weights]


def tile(weights: EncoderWeights) -> list[TiledLayer]:
    """The weights of all layers in the kernels' order, with the norms folded into the vectors of the products that read them."""
    device = weights.norm.gamma.device
    # The first layer reads the normed embeddings, which the embedding kernel has scaled by `inverse` alone.
    plain = Norm(torch.ones(weights.size, device=device), torch.zeros(weights.size, device=device), 0.0)
    before = [plain, *(layer.norm for layer in weights.layers)]
    factors = [1.0] + [HEADROOM] * len(weights.layers)
    nexts = [layer.qkv for layer in weights.layers[1:]] + [None]
    return [
        TiledLayer(
            qkv=reading(layer.qkv, norm, factor),
            out=adding(layer.out, norm, layer.attention_norm, layer.up),
            up=reading(layer.up, layer.attention_norm, HEADROOM, layer.down),
            down=adding(layer.down, layer.attention_norm, layer.norm, follower),
        )
        for layer, norm, factor, follower in zip(weights.layers, before, factors, nexts, strict=False)
    ]


def inverse_of(linear: Linear) -> Tensor:
    """1 / scale of a product's input, float32 [depth]."""
    assert linear.quantiser is not None
    return linear.quantiser.inverse


def reading(linear: Linear, norm: Norm, factor: float, follower: Linear | None = None) -> TiledWeights:
    """A product that reads sums y which `norm` would norm, stored as y * gamma * inverse * factor.

    follower: the product that reads its eight-bit output.
    """
    weight, scale, inverse = linear.weights.weight, linear.weights.scale, inverse_of(linear)
    assert scale is not None and linear.weights.bias is not None
    of_gamma, of_beta = (weight.float() @ (each * inverse) for each in (norm.gamma, norm.beta))
    none = torch.zeros_like(scale)
    output = none if follower is None else inverse_of(follower)
    vectors = [scale / factor, scale * of_gamma, linear.weights.bias + scale * of_beta, output, none, none]
    return TiledWeights(tiled(weight), torch.stack(vectors).contiguous())


def adding(linear: Linear, residual: Norm, norm: Norm, follower: Linear | None) -> TiledWeights:
    """A product to which the sum that `residual` norms is added.

    follower: the product that reads the result, normed by `norm`, in eight bits; None after the last layer.
    """
    scale, bias = linear.weights.scale, linear.weights.bias
    assert scale is not None and bias is not None
    none = torch.zeros_like(scale)
    output = none if follower is None else norm.gamma * inverse_of(follower) * HEADROOM
    vectors = [scale, none, bias, output, residual.gamma, residual.beta]
    return TiledWeights(tiled(linear.weights.weight), torch.stack(vectors).contiguous())


class CudaLayers:
    """The launches of all layers, and their buffers. All buffers have 128 rows; those beyond the tokens have finite values, and
    no row depends on another.

    output: float16 [tokens, size], the normed states after the last layer.
    """

    def __init__(self, weights: EncoderWeights, tokens: int, spans: Tensor, multicast: bool) -> None:
        check(weights, tokens)
        self.weights, self.tokens, self.spans, self.multicast = weights, tokens, spans, multicast
        size, wide = weights.size, len(weights.layers[0].up.weights.weight)
        half, eight = weights.dtype, torch.float8_e4m3fn
        self.even, self.odd = (
            self._sums(weights.layers[-1].norm.eps),
            self._sums(weights.layers[0].attention_norm.eps),
        )
        self.qkv = self._buffer(3 * size, half)
        self.context, self.wide = self._buffer(size, eight), self._buffer(wide, eight)
        self.output = self._buffer(size, half)[:tokens]
        self.first = Sums(self.even.floats, self.even.eight, self._normed())

    def inputs(self, quantiser: Quantiser | None) -> tuple[Tensor, Eight]:
        """The buffers that the embedding kernel writes: normed embeddings as floats and, by the first layer's quantiser, in eight bits."""
        assert quantiser is not None
        return self.first.floats[: self.tokens], Eight(self.first.eight[: self.tokens], quantiser)

    def launches(self) -> list[Launch | CudaLaunch]:
        """The launches, from the state `first` to `output`, the last norm's result."""
        states = [self.first] + [self.even] * len(self.weights.layers)
        both = zip(self.weights.layers, tiled_layers(self.weights), pairwise(states), strict=True)
        layers = [self._layer(f"layer {number}", *x) for number, x in enumerate(both)]
        last = residual_norm(
            "norm", self.even.floats[: self.tokens], self.weights.layers[-1].norm, self.output, pdl=True
        )
        return [launch for layer in layers for launch in layer] + [last]

    def _layer(
        self, name: str, layer: Layer, tiled: TiledLayer, states: tuple[Sums, Sums]
    ) -> Sequence[Launch | CudaLaunch]:
        (at, to), middle, tokens = states, self.odd, self.tokens
        cuts = [
            cut_of(x.columns, x.depth, self.multicast) for x in (tiled.qkv, tiled.out, tiled.up, tiled.down)
        ]
        attention = self_attention(
            f"{name} attention", self.qkv[:tokens], self.spans, self.context[:tokens], self.weights.heads,
            layer.out.quantiser, pdl=True,
        )  # fmt: skip
        return (
            project(f"{name} qkv", at.eight, tiled.qkv, cuts[0], at.norms, self.qkv),
            attention,
            residual(
                f"{name} out", self.context, tiled.out, cuts[1], at.floats, at.norms,
                middle.floats, middle.eight, middle.norms.values,
            ),
            gelu(f"{name} up", middle.eight, tiled.up, cuts[2], middle.norms, self.wide),
            residual(
                f"{name} down", self.wide, tiled.down, cuts[3], middle.floats, middle.norms,
                to.floats, to.eight, to.norms.values,
            ),
        )  # fmt: skip

    def _buffer(self, columns: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(ROWS, columns, dtype=dtype, device=self.spans.device)

    def _sums(self, eps: float) -> Sums:
        size, tiles = self.weights.size, self.weights.size // COLUMNS
        norms = torch.zeros(tiles, ROWS, 2, device=self.spans.device)
        return Sums(
            self._buffer(size, self.weights.dtype), self._buffer(size, torch.float8_e4m3fn), Norms(norms, eps)
        )

    def _normed(self) -> Norms:
        """Norms of rows that are normed already: mean 0, variance 1."""
        values = torch.zeros(1, ROWS, 2, device=self.spans.device)
        values[..., 1] = COLUMNS
        return Norms(values, 0.0)
