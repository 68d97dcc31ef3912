"""SmoothQuant (Xiao et al., ICML 2023): channels with large inputs hand a part of their size to the weights."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from buzzer.engine.quant.calibrate import Batch, watch
from buzzer.engine.quant.layer import linears
from buzzer.errors import UsageError, unknown_name

LEAST = 1e-5  # of a factor, as in the authors' code


def smooth(
    module: nn.Module,
    batches: Sequence[Batch],
    alpha: float,
    *,
    folds: Mapping[str, Sequence[str]] | None = None,
    skip: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Multiply each linear layer's input columns by s and return the divisors s [in] that its input still needs.

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (equation 4), one vector for the layers that share an input. In place.

    folds: name of a LayerNorm or Linear -> names of the linear layers that alone take what it gives (an operation
        between them must commute with a factor a channel, as attention does from value to output): its weight and
        bias are divided by s, so those layers need no divisor. A norm after a residual, as BERT's, whose output
        is the next residual too, cannot be folded into: its consumers divide their input.

    Raises UsageError for alpha outside 0..1 or folds that do not hold all of a group.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"SmoothQuant strength {alpha}: not in 0..1")
    names = linears(module, skip)
    largest: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        found = x.abs().flatten(0, -2).amax(0)
        largest[name] = torch.maximum(largest[name], found) if name in largest else found

    first = watch(module, names, batches, see, {})
    groups = {owner: [n for n in names if first[n] == owner] for owner in largest}
    divisors: dict[str, Tensor] = {}
    for owner, members in groups.items():
        weights = [module.get_parameter(f"{name}.weight") for name in members]
        columns = torch.stack([w.detach().abs().amax(0) for w in weights]).amax(0)
        s = largest[owner].clamp(min=LEAST) ** alpha / columns.clamp(min=LEAST) ** (1 - alpha)
        s = s.clamp(min=LEAST).clone()  # out of inference mode
        for weight in weights:
            weight.data.mul_(s)
        divisors |= dict.fromkeys(members, s)
    for source, consumers in (folds or {}).items():
        fold(module, source, consumers, groups, divisors)
    return divisors


def fold(
    module: nn.Module,
    source: str,
    members: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    divisors: dict[str, Tensor],
) -> None:
    """Divide what `source` gives by the members' divisor, which they then need no more."""
    for name in (source, *members):
        if name not in dict(module.named_modules()):
            raise unknown_name("layer to fold", name, [n for n, _ in module.named_modules()])
    if sorted(members) not in [sorted(group) for group in groups.values()]:
        raise UsageError(
            f"{source} cannot be folded into: {', '.join(members)} are not all that share an input"
        )
    s = divisors[members[0]]
    for part in ("weight", "bias"):
        values = getattr(module.get_submodule(source), part)
        if values is not None:
            values.data.div_(s if values.ndim == 1 else s[:, None])
    for name in members:
        del divisors[name]
