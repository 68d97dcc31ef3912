"""SmoothQuant (Xiao et al., ICML 2023): moves part of the magnitude of large input channels into the weights."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from buzzer.engine.quant.inputs import Batch, watch
from buzzer.engine.quant.layer import linears
from buzzer.errors import UsageError, unknown_name

LEAST = 1e-5  # least factor, as in the authors' code


def smooth(
    module: nn.Module,
    batches: Sequence[Batch],
    alpha: float,
    *,
    folds: Mapping[str, Sequence[str]] | None = None,
    skip: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Multiply the columns of each linear layer's weight by s, in place. Returns layer -> divisor s [in] that its input still needs.

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (equation 4), one vector for all layers that share an input.

    folds: name of a LayerNorm or Linear -> names of all linear layers that use its output. Its weight and bias are divided by s,
        so these layers need no divisor. An operation between them must commute with a factor per channel, as attention does
        from value to output. A norm whose output is also the next residual, as in BERT, cannot be folded; the layers that
        use it divide their input instead.

    Raises UsageError for alpha outside 0..1, and for folds that do not contain a whole group of layers that share an input.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"SmoothQuant strength {alpha}: not in 0..1")
    names = linears(module, skip)
    largest: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        most = x.abs().flatten(0, -2).amax(0)
        largest[name] = torch.maximum(largest[name], most) if name in largest else most

    first = watch(module, names, batches, see, {})
    groups = {owner: [n for n in names if first[n] == owner] for owner in largest}
    divisors: dict[str, Tensor] = {}
    for owner, members in groups.items():
        weights = [module.get_parameter(f"{name}.weight") for name in members]
        columns = torch.stack([w.detach().abs().amax(0) for w in weights]).amax(0)
        s = largest[owner].clamp(min=LEAST) ** alpha / columns.clamp(min=LEAST) ** (1 - alpha)
        s = s.clamp(min=LEAST).clone()  # not a tensor of inference mode
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
    """Divide the output of `source` by the members' divisor, and remove their entries from `divisors`.

    Raises UsageError for unknown names, and for members that are not a whole group.
    """
    for name in (source, *members):
        if name not in dict(module.named_modules()):
            raise unknown_name("layer to fold", name, [n for n, _ in module.named_modules()])
    if sorted(members) not in [sorted(group) for group in groups.values()]:
        raise UsageError(
            f"cannot fold into {source}: {', '.join(members)} are not all layers that share an input"
        )
    s = divisors[members[0]]
    for part in ("weight", "bias"):
        values = getattr(module.get_submodule(source), part)
        if values is not None:
            values.data.div_(s if values.ndim == 1 else s[:, None])
    for name in members:
        del divisors[name]
