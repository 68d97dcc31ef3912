"""The quantised linear layer: symmetric weights with one scale per channel, and one static scale and zero point for the input.

INT8 follows Jacob et al. (CVPR 2018), equations 1 and 2: real = scale * (integer - zero). FP8 is the E4M3 format of
Micikevicius et al. (arXiv 2209.05433): real = scale * float8, without a zero point.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx import register_custom_op_symbolic  # type: ignore[attr-defined]

from buzzer.errors import unknown_name

PRECISIONS = ("int8", "fp8")
WEIGHT_LIMIT = {"int8": 127.0, "fp8": 448.0}  # largest magnitude of a quantised weight
FP8_LIMIT = 448.0  # largest finite E4M3 value; torch's cast does not saturate


class _Fp8(torch.autograd.Function):
    """Rounds to scale * E4M3, saturating. The gradient is 1 inside the range and 0 outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x.abs() <= scale * FP8_LIMIT)
        return torch.ops.buzzer.fake_fp8(x, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None


def fake_quantise(x: Tensor, scale: Tensor, zero: Tensor, precision: str) -> Tensor:
    """`x` rounded to values that eight bits can represent, as floats.

    scale: float32, one value, or one per row of `x`. zero: int32 of the same shape, in -128..127; 0 for FP8.
    The gradient is the straight-through estimate (Bengio et al., arXiv 1308.3432): 1 inside the range, 0 outside.
    """
    if precision == "fp8":
        wide = scale if scale.ndim == 0 else scale[:, None]
        if torch.is_grad_enabled():
            return _Fp8.apply(x, wide)  # type: ignore[no-untyped-call]
        return torch.ops.buzzer.fake_fp8(x, wide)
    if scale.ndim == 0:
        # Unsigned, with the zero point shifted by 128: the same values, in the form that CPU kernels and ONNX use.
        return torch.fake_quantize_per_tensor_affine(x, scale, zero + 128, 0, 255)
    return torch.fake_quantize_per_channel_affine(x, scale, zero, 0, -127, 127)


def encode(weight: Tensor, scale: Tensor, precision: str) -> Tensor:
    """A weight [out, in] as int8 or float8_e4m3fn, with one scale per row."""
    limit = WEIGHT_LIMIT[precision]
    if precision == "int8":  # multiplied by the inverse, as torch's fake quantisation does
        return (weight * (1 / scale[:, None])).round().clamp(-limit, limit).to(torch.int8)
    return (weight / scale[:, None]).clamp(-limit, limit).to(torch.float8_e4m3fn)


@dataclass(frozen=True)
class Packed:
    """A layer in the form that eight-bit kernels use: y = input_scale * weight_scale * (q @ weight.T) + bias, where
    q = clamp(round(x / smooth / input_scale) + input_zero, -128, 127), or for FP8 the saturated cast to E4M3.

    `bias` includes the term of the zero point, -input_scale * weight_scale * input_zero * sum(weight, 1).
    """

    weight: Tensor  # [out, in], int8 or float8_e4m3fn
    weight_scale: Tensor  # [out], float32
    input_scale: float
    input_zero: int
    bias: Tensor  # [out], float32
    smooth: Tensor | None  # [in], float32: divisor of the input (SmoothQuant); None = 1


class QuantLinear(nn.Module):
    """A linear layer that simulates an eight-bit layer in floats. It can be trained.

    weight: float32 [out, in], the master copy. Maps x [..., in] to [..., out].
    """

    weight_scale: Tensor
    input_scale: Tensor
    input_zero: Tensor
    smooth: Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        precision: str,
        weight_scale: Tensor,
        input_scale: float,
        input_zero: int = 0,
        smooth: Tensor | None = None,
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise unknown_name("quantised precision", precision, PRECISIONS)
        self.precision = precision
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("input_scale", torch.tensor(input_scale, dtype=torch.float32))
        self.register_buffer("input_zero", torch.tensor(input_zero, dtype=torch.int32))
        self.register_buffer("smooth", smooth)

    def forward(self, x: Tensor) -> Tensor:
        if self.smooth is not None:
            x = x / self.smooth
        x = fake_quantise(x, self.input_scale, self.input_zero, self.precision)
        none = torch.zeros_like(self.weight_scale, dtype=torch.int32)
        weight = fake_quantise(self.weight, self.weight_scale, none, self.precision)
        return F.linear(x, weight, self.bias)

    @torch.no_grad()
    def packed(self) -> Packed:
        """The layer in eight bits."""
        weight = encode(self.weight, self.weight_scale, self.precision)
        zeros = weight.new_zeros(self.out_features, dtype=torch.float32)
        bias = (zeros if self.bias is None else self.bias).detach().float().clone()
        scale, zero = float(self.input_scale), int(self.input_zero)
        if zero:
            bias = bias - scale * zero * self.weight_scale * weight.float().sum(1)
        return Packed(weight, self.weight_scale, scale, zero, bias, self.smooth)


class FrozenLinear(nn.Module):
    """A QuantLinear for export. It is for inference only. Its weight has eight bits and is transposed for ONNX's MatMul."""

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor
    input_zero: Tensor
    smooth: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: QuantLinear) -> None:
        super().__init__()
        packed = layer.packed()
        self.precision = layer.precision
        self.register_buffer("weight", packed.weight.t().contiguous())
        for name in ("weight_scale", "input_scale", "input_zero", "smooth"):
            self.register_buffer(name, getattr(layer, name))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        if self.smooth is not None:
            x = x / self.smooth
        x = fake_quantise(x, self.input_scale, self.input_zero, self.precision)
        y = x @ torch.ops.buzzer.dequantise(self.weight, self.weight_scale)
        return y if self.bias is None else y + self.bias


def freeze(module: nn.Module) -> nn.Module:
    """A copy for export whose quantised layers have eight-bit weights; `module` itself if it has no quantised layers."""
    if precision_of(module) is None:
        return module
    frozen = copy.deepcopy(module).eval().requires_grad_(False)
    for name, layer in list(frozen.named_modules()):
        if isinstance(layer, QuantLinear):
            replace(frozen, name, FrozenLinear(layer))
    return frozen


def precision_of(module: nn.Module) -> str | None:
    """The precision of a module's quantised layers; None if it has none."""
    return next((m.precision for m in module.modules() if isinstance(m, QuantLinear | FrozenLinear)), None)


def linears(
    module: nn.Module, skip: Sequence[str] = (), kinds: tuple[type[nn.Module], ...] = (nn.Linear,)
) -> list[str]:
    """Names of the module's layers of these kinds, except those in `skip` and those inside modules in `skip`.

    Raises UsageError for an unknown name in `skip`.
    """
    modules = dict(module.named_modules())
    for name in skip:
        if name not in modules:
            raise unknown_name("module to skip", name, modules)
    inside = tuple(f"{name}." for name in skip)
    return [n for n, m in modules.items() if isinstance(m, kinds) and not f"{n}.".startswith(inside)]


def replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace the part of `module` with this dotted name."""
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, layer)


# Two custom operators. The tracing ONNX exporter writes them as quantise and dequantise nodes.
_LIBRARY = torch.library.Library("buzzer", "DEF")
_LIBRARY.define("dequantise(Tensor weight, Tensor scale) -> Tensor")
_LIBRARY.define("fake_fp8(Tensor x, Tensor scale) -> Tensor")


@torch.library.impl(_LIBRARY, "dequantise", "CompositeExplicitAutograd")
def _dequantise(weight: Tensor, scale: Tensor) -> Tensor:
    return weight.float() * scale


@torch.library.impl(_LIBRARY, "fake_fp8", "CompositeExplicitAutograd")
def _fake_fp8(x: Tensor, scale: Tensor) -> Tensor:
    return (x / scale).clamp(-FP8_LIMIT, FP8_LIMIT).to(torch.float8_e4m3fn).to(torch.float32) * scale


def _onnx_dequantise(g: Any, weight: Any, scale: Any) -> Any:
    dtype = weight.type().dtype()
    zeros = g.op("Constant", value_t=torch.zeros(scale.type().sizes(), dtype=dtype))
    node = g.op("DequantizeLinear", weight, scale, zeros, axis_i=1)
    return node.setType(weight.type().with_dtype(torch.float32))


def _onnx_fake_fp8(g: Any, x: Any, scale: Any) -> Any:
    zero = g.op("Constant", value_t=torch.zeros((), dtype=torch.float8_e4m3fn))
    return g.op("DequantizeLinear", g.op("QuantizeLinear", x, scale, zero), scale, zero).setType(x.type())


register_custom_op_symbolic("buzzer::dequantise", _onnx_dequantise, 17)
register_custom_op_symbolic("buzzer::fake_fp8", _onnx_fake_fp8, 19)
