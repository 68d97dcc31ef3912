"""2:4 sparsity (Mishra et al., arXiv 2104.08378): two of each four weights along the reduction axis are zero."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from buzzer.engine.quant.layer import QuantLinear, linears
from buzzer.errors import UsageError


def mask_2_4(weight: Tensor) -> Tensor:
    """Which weights of [out, in] are kept: the two of largest magnitude in each four along `in` (section 4.1); bool [out, in].

    Raises UsageError unless `in` is a multiple of 4.
    """
    if weight.shape[1] % 4:
        raise UsageError(f"2:4 sparsity needs a multiple of 4 inputs, but the layer has {weight.shape[1]}")
    groups = weight.detach().abs().unflatten(1, (-1, 4))
    kept = groups.topk(2, dim=2).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, kept, True).flatten(1)


class Sparsity:
    """The 2:4 masks of a module's linear layers, float or quantised.

    sparsity = Sparsity(model)  # prunes the model
    ... optimizer.step(); sparsity.apply()  # masked fine-tuning (section 4.2): pruned weights stay zero
    """

    def __init__(self, module: nn.Module, skip: Sequence[str] = ()) -> None:
        names = linears(module, skip, (nn.Linear, QuantLinear))
        self.weights = {name: module.get_parameter(f"{name}.weight") for name in names}
        self.masks = {name: mask_2_4(weight) for name, weight in self.weights.items()}
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Set the pruned weights to zero."""
        for name, weight in self.weights.items():
            weight.mul_(self.masks[name])
