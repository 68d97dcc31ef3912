"""Post-training quantisation: the scales of the layers' inputs are computed from their values on calibration batches.

Methods, as compared by Wu et al. (arXiv 2004.09602, section 3.2): "absmax" uses the whole range, "percentile" a percentile, and
"mse" the range of least mean squared error (Choukroun et al., ICCVW 2019, section 3).
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from buzzer.engine.quant.inputs import Batch, watch
from buzzer.engine.quant.layer import (
    FP8_LIMIT,
    PRECISIONS,
    WEIGHT_LIMIT,
    QuantLinear,
    fake_quantise,
    linears,
    replace,
)
from buzzer.engine.quant.smooth import smooth as smoothed
from buzzer.errors import DataError, unknown_name

METHODS = ("absmax", "percentile", "mse")
PERCENTILE = 0.9999  # share of the input values inside the range of "percentile"; the others saturate
BINS = 4096  # bins of a histogram
SHRINKS = tuple(1 - 0.01 * i for i in range(81))  # fractions of the whole range that "mse" tries
TINY = 1e-8  # least scale, for channels of zeros


@dataclass
class Observed:
    """The range of a layer's input values, and their histogram with `BINS` equal bins over the range."""

    low: float = math.inf
    high: float = -math.inf
    counts: Tensor | None = None  # [BINS]

    def widen(self, x: Tensor) -> None:
        """Extend the range to the values of x; to infinity if a value is not finite."""
        low, high = (float(v) for v in torch.aminmax(x))  # NaN if x contains NaN
        if not (math.isfinite(low) and math.isfinite(high)):
            low, high = -math.inf, math.inf
        self.low, self.high = min(self.low, low), max(self.high, high)

    def count(self, x: Tensor) -> None:
        """Add the values of x to the histogram."""
        counts = torch.histc(x.float(), BINS, self.low, self.high).cpu()
        self.counts = counts if self.counts is None else self.counts + counts

    def centres(self) -> Tensor:
        """The centres of the bins, float32 [BINS]."""
        step = (self.high - self.low) / BINS
        return self.low + step * (torch.arange(BINS) + 0.5)


def quantise(
    module: nn.Module,
    batches: Iterable[Batch],
    *,
    precision: str = "int8",
    method: str = "absmax",
    smooth: float | None = None,
    folds: Mapping[str, Sequence[str]] | None = None,
    skip: Sequence[str] = (),
) -> nn.Module:
    """A copy of `module` whose linear layers are QuantLinear, calibrated on batches.

    batches: input name -> array, passed to the module's forward by position.
    smooth: strength of SmoothQuant (0 to 1); None = no SmoothQuant.  folds: see `quant.smooth`.
    skip: names of linear layers, or of modules that contain them, that stay in float.

    Raises UsageError for unknown names and without batches, DataError for inputs that are not finite.
    """
    if precision not in PRECISIONS:
        raise unknown_name("quantised precision", precision, PRECISIONS)
    if method not in METHODS:
        raise unknown_name("calibration method", method, METHODS)
    kept = list(batches)
    model, divisors = copy.deepcopy(module).eval(), {}
    names = linears(model, skip)
    if smooth is not None:
        divisors = smoothed(model, kept, smooth, folds=folds, skip=skip)
    observed = observe(model, names, kept, method != "absmax", divisors)
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        scale, zero = input_scale(observed[name], precision, method)
        rows = weight_scale(linear.weight.detach(), precision, method)
        replace(model, name, QuantLinear(linear, precision, rows, scale, zero, divisors.get(name)))
    return model


def observe(
    module: nn.Module,
    names: Sequence[str],
    batches: Sequence[Batch],
    histogram: bool,
    divisors: Mapping[str, Tensor],
) -> dict[str, Observed]:
    """The inputs of each layer. One pass over the batches computes the range, a second pass the histogram.

    Raises DataError for inputs that are not finite.
    """
    seen = {name: Observed() for name in names}

    first = watch(module, names, batches, lambda name, x: seen[name].widen(x), divisors)
    for name in set(first.values()):
        if not seen[name].high - seen[name].low < math.inf:
            raise DataError(f"the input of layer {name} is not finite on the calibration batches")
    if histogram:
        watch(module, names, batches, lambda name, x: seen[name].count(x), divisors)
    return {name: seen[first[name]] for name in names}


def input_scale(seen: Observed, precision: str, method: str) -> tuple[float, int]:
    """The scale and zero point of an input."""
    low, high = bounds(seen, precision, method)
    return affine(low, high, precision)


def affine(low: float, high: float, precision: str) -> tuple[float, int]:
    """The scale and zero point that map [low, high], extended to contain 0, onto the eight-bit range. FP8 has zero point 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    if precision == "fp8":
        return max(-low, high, TINY) / FP8_LIMIT, 0
    scale = max(high - low, TINY) / 255
    return scale, max(-128, min(127, round(-low / scale) - 128))


def bounds(seen: Observed, precision: str, method: str) -> tuple[float, float]:
    """The range of values that eight bits represent."""
    if method == "absmax" or seen.high == seen.low:
        return seen.low, seen.high
    assert seen.counts is not None
    if method == "percentile":
        share = seen.counts.double().cumsum(0) / seen.counts.sum()
        cut = (1 - PERCENTILE) / 2
        step = (seen.high - seen.low) / BINS
        below = int((share <= cut).sum())
        above = int((share < 1 - cut).sum()) + 1
        return seen.low + below * step, seen.low + above * step
    return min(
        ((seen.low * shrink, seen.high * shrink) for shrink in SHRINKS),
        key=lambda ends: squared_error(seen, *affine(ends[0], ends[1], precision), precision),
    )


def squared_error(seen: Observed, scale: float, zero: int, precision: str) -> float:
    """The mean squared error of quantising the observed values."""
    assert seen.counts is not None
    at = seen.centres()
    parameters = torch.tensor(scale), torch.tensor(zero, dtype=torch.int32)
    errors = (fake_quantise(at, *parameters, precision) - at).square()
    return float((errors * seen.counts).sum() / seen.counts.sum())


@torch.no_grad()
def weight_scale(weight: Tensor, precision: str, method: str) -> Tensor:
    """Scales [out] of the rows of weight [out, in]: from the row's largest magnitude, or for "mse" from its best fraction."""
    whole = weight.abs().amax(1).clamp(min=TINY) / WEIGHT_LIMIT[precision]
    if method != "mse":
        return whole
    zero = torch.zeros_like(whole, dtype=torch.int32)
    best, least = whole, torch.full_like(whole, math.inf)
    for shrink in SHRINKS:
        error = (fake_quantise(weight, whole * shrink, zero, precision) - weight).square().sum(1)
        best = torch.where(error < least, whole * shrink, best)
        least = torch.minimum(error, least)
    return best
