"""The layers of an encoder on the CUDA C++ kernels, in FP8, FP16 or INT8, for at most 128 tokens.

In FP8 and FP16 a layer is five launches, without kernels for norms: a state between layers is a sum that is not normed yet, and
products that read it correct their results; see `kernels/cuda/gemm.cu`. In INT8 a layer is seven launches, with norms, because INT8
has one scale for rows of all deviations.
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
from buzzer.engine.kernels.cuda.layout import (
    COLUMNS,
    KINDS,
    MOST_BLOCKS,
    MOST_TILES,
    ROWS,
    Cut,
    cut_of,
    tiled,
)
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
    """A state between layers: float16 [128, size], the same in eight bits (`floats` itself in FP16), and the norms of its rows."""

    floats: Tensor
    eight: Tensor
    norms: Norms


_TILED: WeakKeyDictionary[EncoderWeights, list[TiledLayer]] = WeakKeyDictionary()


def check(weights: EncoderWeights, tokens: int, most: int) -> None:
    """Raises UnsupportedError for encoders that the kernels cannot run. most: shares of the depth of a product."""
    if tokens > ROWS:
        raise UnsupportedError(f"the CUDA kernels take at most {ROWS} tokens, not {tokens}")
    dtype = weights.eight or weights.dtype
    if dtype not in KINDS or weights.act != "gelu":
        raise UnsupportedError("the CUDA kernels need precision fp8, int8 or fp16, and the activation gelu")
    if any(
        (x.quantiser is None) != (weights.eight is None) for layer in weights.layers for x in linears(layer)
    ):
        raise UnsupportedError("the CUDA kernels need all linear layers to be quantised")
    if weights.size > MOST_TILES * COLUMNS or weights.size % COLUMNS:
        raise UnsupportedError(
            f"the CUDA kernels need a size of at most {MOST_TILES * COLUMNS}, a multiple of {COLUMNS}"
        )
    if len({norm.eps for layer in weights.layers for norm in (layer.attention_norm, layer.norm)}) != 1:
        raise UnsupportedError("the CUDA kernels need the same epsilon in all norms")
    for x in linears(weights.layers[0]):
        columns, depth = x.weights.weight.shape
        cut_of(columns, depth, False, dtype, most)


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
    if weights.eight == torch.int8:
        return [
            TiledLayer(
                qkv=reading(layer.qkv, plain, 1.0),
                out=adding(layer.out, plain),
                up=reading(layer.up, plain, 1.0, layer.down),
                down=adding(layer.down, plain),
            )
            for layer in weights.layers
        ]
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


def inverse_of(linear: Linear | None, like: Tensor) -> Tensor:
    """1 / scale of a product's input, float32 [depth]; zeros like `like` for an input in half, and for None."""
    return torch.zeros_like(like) if linear is None or linear.quantiser is None else linear.quantiser.inverse


def reading(linear: Linear, norm: Norm, factor: float, follower: Linear | None = None) -> TiledWeights:
    """A product that reads sums y which `norm` would norm, in FP8 stored as y * gamma * inverse * factor, in FP16 as y.

    follower: the product that reads its eight-bit output. In INT8, `norm` must be gamma 1 and beta 0: the input is normed.
    """
    weight, bias = linear.weights.weight, linear.weights.bias
    assert bias is not None
    none, scale = torch.zeros_like(bias), linear.weights.scale
    if scale is None:
        scale, factor = torch.ones_like(bias), 1.0
        of_beta = weight.float() @ norm.beta
        weight = (weight.float() * norm.gamma).to(weight.dtype)
        of_gamma = weight.float().sum(1)  # of the rounded weights, so that the mean of a row cancels
    elif weight.dtype == torch.int8:
        of_gamma, of_beta = none, none
    else:
        inverse = inverse_of(linear, bias)
        of_gamma, of_beta = (weight.float() @ (each * inverse) for each in (norm.gamma, norm.beta))
    output = inverse_of(follower, bias)
    vectors = [scale / factor, scale * of_gamma, bias + scale * of_beta, output, none, none]
    return TiledWeights(tiled(weight), torch.stack(vectors).contiguous())


def adding(
    linear: Linear, residual: Norm, norm: Norm | None = None, follower: Linear | None = None
) -> TiledWeights:
    """A product to which the sum that `residual` norms is added.

    follower: the product that reads the result, normed by `norm`, in FP8; None after the last layer, and if another kernel norms it.
    """
    bias = linear.weights.bias
    assert bias is not None
    none, scale = torch.zeros_like(bias), linear.weights.scale
    scale = torch.ones_like(bias) if scale is None else scale
    output = none if norm is None else norm.gamma * inverse_of(follower, bias) * HEADROOM
    vectors = [scale, none, bias, output, residual.gamma, residual.beta]
    return TiledWeights(tiled(linear.weights.weight), torch.stack(vectors).contiguous())


class CudaLayers:
    """The launches of all layers, and their buffers. All buffers have 128 rows; those beyond the tokens have finite values, and
    no row depends on another.

    most: shares of the depth of a product.  output: float16 [tokens, size], the normed states after the last layer.
    """

    def __init__(
        self, weights: EncoderWeights, tokens: int, spans: Tensor, multicast: bool, most: int = MOST_BLOCKS
    ) -> None:
        check(weights, tokens, most)
        self.weights, self.tokens, self.spans, self.multicast = weights, tokens, spans, multicast
        self.most = most
        self.dtype = weights.eight or weights.dtype
        size, wide = weights.size, len(weights.layers[0].up.weights.weight)
        self.even = self._sums(weights.layers[-1].norm.eps)
        self.odd = self._sums(weights.layers[0].attention_norm.eps)
        self.qkv = self._buffer(3 * size, weights.dtype)
        self.context, self.wide = self._buffer(size, self.dtype), self._buffer(wide, self.dtype)
        self.sums = self._buffer(size, weights.dtype)  # read by a norm; INT8 only
        self.output = self._buffer(size, weights.dtype)[:tokens]
        self.first = Sums(self.even.floats, self.even.eight, self._normed())

    def inputs(self, quantiser: Quantiser | None) -> tuple[Tensor, Eight | None]:
        """The buffers that the embedding kernel writes: normed embeddings as floats and by the first layer's quantiser in eight bits."""
        eight = Eight(self.first.eight[: self.tokens], quantiser) if quantiser else None
        return self.first.floats[: self.tokens], eight

    def launches(self) -> list[Launch | CudaLaunch]:
        """The launches, from the state `first` to `output`, the last norm's result."""
        if self.dtype == torch.int8:
            return self._normed_layers()
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
        (at, to), middle = states, self.odd
        return (
            self._project(f"{name} qkv", at, tiled.qkv),
            self._attention(name, layer),
            self._residual(f"{name} out", self.context, tiled.out, at, middle),
            gelu(f"{name} up", middle.eight, tiled.up, self._cut(tiled.up), middle.norms, self.wide),
            self._residual(f"{name} down", self.wide, tiled.down, middle, to),
        )

    def _normed_layers(self) -> list[Launch | CudaLaunch]:
        """The layers in INT8. The states `even` and `odd` are normed by kernels."""
        layers, launches = self.weights.layers, list[Launch | CudaLaunch]()
        even, odd = (Sums(x.floats, x.eight, self.first.norms) for x in (self.even, self.odd))
        nexts = [layer.qkv.quantiser for layer in layers[1:]] + [None]
        for number, (layer, x, follower) in enumerate(
            zip(layers, tiled_layers(self.weights), nexts, strict=True)
        ):
            name, down = f"layer {number}", layer.down.quantiser
            assert down is not None
            launches += [
                self._project(f"{name} qkv", even, x.qkv),
                self._attention(name, layer),
                residual(
                    f"{name} out", self.context, x.out, self._cut(x.out), even.floats, even.norms, self.sums
                ),
                self._norm(f"{name} out norm", layer.attention_norm, odd, layer.up.quantiser),
                gelu(f"{name} up", odd.eight, x.up, self._cut(x.up), odd.norms, self.wide, down.zero),
                residual(
                    f"{name} down", self.wide, x.down, self._cut(x.down), odd.floats, odd.norms, self.sums
                ),
                self._norm(f"{name} down norm", layer.norm, even, follower),
            ]
        return launches

    def _project(self, name: str, at: Sums, tiled: TiledWeights) -> CudaLaunch:
        return project(name, at.eight, tiled, self._cut(tiled), at.norms, self.qkv)

    def _attention(self, name: str, layer: Layer) -> Launch:
        qkv, context = self.qkv[: self.tokens], self.context[: self.tokens]
        heads, quantiser = self.weights.heads, layer.out.quantiser
        return self_attention(f"{name} attention", qkv, self.spans, context, heads, quantiser, pdl=True)

    def _residual(self, name: str, x: Tensor, tiled: TiledWeights, kept: Sums, to: Sums) -> CudaLaunch:
        eight = to.eight if self.dtype == torch.float8_e4m3fn else None
        return residual(
            name, x, tiled, self._cut(tiled), kept.floats, kept.norms, to.floats, eight, to.norms.values
        )

    def _norm(self, name: str, norm: Norm, to: Sums, follower: Quantiser | None) -> Launch:
        """The norm of `sums`; without a follower, to `output`."""
        if follower is None:
            return residual_norm(name, self.sums[: self.tokens], norm, self.output, pdl=True)
        eight = Eight(to.eight[: self.tokens], follower)
        return residual_norm(name, self.sums[: self.tokens], norm, to.floats[: self.tokens], eight, pdl=True)

    def _cut(self, tiled: TiledWeights) -> Cut:
        depth = tiled.depth // self.dtype.itemsize
        return cut_of(tiled.columns, depth, self.multicast, self.dtype, self.most)

    def _buffer(self, columns: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(ROWS, columns, dtype=dtype, device=self.spans.device)

    def _sums(self, eps: float) -> Sums:
        size, tiles = self.weights.size, self.weights.size // COLUMNS
        norms = torch.zeros(tiles, ROWS, 2, device=self.spans.device)
        floats = self._buffer(size, self.weights.dtype)
        eight = floats if self.weights.eight is None else self._buffer(size, self.weights.eight)
        return Sums(floats, eight, Norms(norms, eps))

    def _normed(self) -> Norms:
        """Norms of rows that are normed already: mean 0, variance 1."""
        values = torch.zeros(1, ROWS, 2, device=self.spans.device)
        values[..., 1] = COLUMNS
        return Norms(values, 0.0)
