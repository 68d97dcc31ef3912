"""The weights of an encoder on the device in the form that the kernels use: query, key and value in one matrix, scales folded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from buzzer.engine.fused.spec import EncoderLayer, EncoderSpec
from buzzer.engine.kernels.gemm import Quantiser, Weights
from buzzer.engine.kernels.jit import LIMITS
from buzzer.engine.kernels.rows import Norm
from buzzer.errors import UnsupportedError

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
EIGHTS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Linear:
    """The weights of a linear layer, and the quantiser of its input (None: the input is in float)."""

    weights: Weights
    quantiser: Quantiser | None


@dataclass(frozen=True)
class Layer:
    """The weights of a post-norm layer."""

    qkv: Linear
    out: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    norm: Norm


@dataclass(frozen=True, eq=False)
class EncoderWeights:
    """The weights of an encoder, compared by identity. heads, act, tail, project: as in `EncoderSpec`.

    distances: float32 [heads, 2 * longest - 1], in the form that `self_attention` takes.
    """

    dtype: torch.dtype  # type of states between kernels; fp16 for eight-bit models
    eight: torch.dtype | None  # type of quantised inputs; None for float models
    tables: tuple[Tensor, Tensor, Tensor]  # embeddings of words, positions and types
    norm: Norm
    layers: Sequence[Layer]
    tail: Sequence[tuple[Linear, str]]
    heads: int
    act: str
    size: int  # values of a token's state
    project: Linear | None = None
    distances: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All tensors that a run reads."""
        linears = [x for layer in self.layers for x in (layer.qkv, layer.out, layer.up, layer.down)]
        linears += [x for x, _ in self.tail] + ([self.project] if self.project else [])
        norms = [self.norm, *(n for layer in self.layers for n in (layer.attention_norm, layer.norm))]
        of_linears = [t for x in linears for t in (x.weights.weight, x.weights.scale, x.weights.bias)]
        vectors = [t for n in norms for t in (n.gamma, n.beta)]
        return [t for t in (*self.tables, *vectors, *of_linears, self.distances) if t is not None]


def pack(spec: EncoderSpec, precision: str, device: str) -> EncoderWeights:
    """The weights of an encoder on the device. Raises UnsupportedError for a mix of precisions that the kernels do not support."""
    pack = Packer(FLOATS.get(precision, torch.float16), EIGHTS.get(precision), device)
    return EncoderWeights(
        dtype=pack.dtype,
        eight=pack.eight,
        tables=(pack.table(spec.words), pack.table(spec.positions), pack.table(spec.types)),
        norm=pack.norm(spec.norm),
        layers=[pack.layer(layer) for layer in spec.layers],
        tail=[(pack.linear([module]), act) for module, act in spec.tail],
        heads=spec.heads,
        act=spec.act,
        size=len(spec.layers[0].norm.weight),
        project=None if spec.project is None else pack.linear([spec.project]),
        distances=None if spec.distances is None else pack.distances(spec.distances),
    )


def random(
    layers: int, size: int, wide: int, heads: int, precision: str, device: str, vocabulary: int = 30522
) -> EncoderWeights:
    """Random weights of a shape, for plans and timings. On the "meta" device they have no values.

    wide: width of the feed-forward layer. The standard deviations resemble trained weights: attention scores are about 0.5, so
    that attention is flat and not one-hot, and eight-bit inputs fill their range.
    """
    dtype, eight = FLOATS.get(precision, torch.float16), EIGHTS.get(precision)

    def values(*shape: int, spread: float = 0.02) -> Tensor:
        return torch.randn(*shape, device=device) * spread

    def linear(rows: int, columns: int, spread: float) -> Linear:
        """A linear layer. spread: standard deviation of its input; its output has 0.65 * spread."""
        deviation, bias = 0.65 / columns**0.5, values(rows)
        if eight is None:
            return Linear(Weights(values(rows, columns, spread=deviation).to(dtype), None, bias), None)
        limit = LIMITS[eight]
        inverse = limit / (4 * spread)  # four deviations fill the range
        weight = values(rows, columns, spread=limit / 5).clamp(-limit, limit).to(eight)
        scale = torch.full((rows,), deviation / (limit / 5) / inverse, device=device)
        return Linear(
            Weights(weight, scale, bias), Quantiser(torch.full((columns,), inverse, device=device), 0)
        )

    def norm() -> Norm:
        return Norm(torch.ones(size, device=device), values(size), 1e-12)

    def layer() -> Layer:
        attention = (linear(3 * size, size, 1.0), linear(size, size, 0.1), norm())
        return Layer(*attention, linear(wide, size, 1.0), linear(size, wide, 0.4), norm())

    tables = (values(vocabulary, size).to(dtype), values(512, size).to(dtype), values(2, size).to(dtype))
    return EncoderWeights(
        dtype, eight, tables, norm(), [layer() for _ in range(layers)], [], heads, "gelu", size
    )


def quantised(module: nn.Module) -> bool:
    """Whether a layer is a QuantLinear of `buzzer.engine.quant`."""
    return hasattr(module, "packed")


@dataclass(frozen=True)
class Packer:
    """Converts the parts of a module. dtype, eight: as in `EncoderWeights`."""

    dtype: torch.dtype
    eight: torch.dtype | None
    device: str

    def table(self, weight: Tensor) -> Tensor:
        """A matrix in `dtype` on the device."""
        return weight.detach().to(self.device, self.dtype).contiguous()

    def vector(self, values: Tensor) -> Tensor:
        """A float32 vector on the device."""
        return values.detach().to(self.device, torch.float32).contiguous()

    def distances(self, addends: Tensor) -> Tensor:
        """Addends to attention scores, times log2(e), because the kernel's softmax uses powers of two."""
        return self.vector(addends * math.log2(math.e))

    def norm(self, norm: nn.LayerNorm) -> Norm:
        """The weights of a layer norm."""
        return Norm(self.vector(norm.weight), self.vector(norm.bias), norm.eps)

    def layer(self, layer: EncoderLayer) -> Layer:
        """The weights of a post-norm layer."""
        return Layer(
            qkv=self.linear([layer.query, layer.key, layer.value]),
            out=self.linear([layer.out]),
            attention_norm=self.norm(layer.attention_norm),
            up=self.linear([layer.up]),
            down=self.linear([layer.down]),
            norm=self.norm(layer.norm),
        )

    def linear(self, modules: Sequence[Any]) -> Linear:
        """Linear layers that share an input as one layer, their outputs side by side.

        Raises UnsupportedError if only some of them are quantised, or if they differ in precision or input scale.
        """
        if not any(quantised(m) for m in modules):
            weight = torch.cat([m.weight for m in modules])
            biases = [m.bias if m.bias is not None else m.weight.new_zeros(len(m.weight)) for m in modules]
            return Linear(Weights(self.table(weight), None, self.vector(torch.cat(biases))), None)
        if not all(quantised(m) and m.precision == modules[0].precision for m in modules):
            raise UnsupportedError(
                "only some of the layers that share an input are quantised", "skip all of them or none"
            )
        return self.eight_bit([m.packed() for m in modules])

    def eight_bit(self, packed: Sequence[Any]) -> Linear:
        """The same for quantised layers. packed: `quant.Packed` objects."""
        first = packed[0]
        if first.weight.dtype != self.eight:
            raise UnsupportedError(
                f"a layer is quantised to {first.weight.dtype}, but others to {self.eight}"
            )
        scale = torch.full((first.weight.shape[1],), first.input_scale)
        scales = [scale if p.smooth is None else scale * p.smooth.cpu() for p in packed]
        same = all((p.input_scale, p.input_zero) == (first.input_scale, first.input_zero) for p in packed)
        if not same or not all(torch.equal(g, scales[0]) for g in scales):
            raise UnsupportedError(
                "layers that share an input have different input scales", "calibrate them as one group"
            )
        weights = Weights(
            torch.cat([p.weight for p in packed]).to(self.device).contiguous(),
            self.vector(torch.cat([p.weight_scale for p in packed]) * first.input_scale),
            self.vector(torch.cat([p.bias for p in packed])),
        )
        return Linear(weights, Quantiser(self.vector(1 / scales[0]), first.input_zero))
