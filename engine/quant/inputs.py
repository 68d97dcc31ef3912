"""The inputs of a module's layers on calibration batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from buzzer.errors import UsageError

Batch = Mapping[str, npt.NDArray[Any]]  # input name -> array, in the order of the forward's arguments


@torch.inference_mode()
def watch(
    module: nn.Module,
    names: Sequence[str],
    batches: Sequence[Batch],
    see: Callable[[str, Tensor], None],
    divisors: Mapping[str, Tensor],
) -> dict[str, str]:
    """Run the batches and call `see(name, input)` for each input of the named layers, divided by the layer's divisor.

    Layers that share an input (query, key and value) are a group, for which `see` is called once, with the name of its first
    layer. Returns the first layer of each layer's group. Raises UsageError without batches, and for a layer that they do not reach.
    """
    if not batches:
        raise UsageError("no batches to calibrate on")
    first: dict[str, str] = {}
    held: dict[int, tuple[str, Tensor]] = {}  # keeps the tensors alive, so that ids are unique in a pass

    def hook(name: str) -> Callable[..., tuple[Tensor]]:
        def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            owner, _ = held.setdefault(id(inputs[0]), (name, inputs[0]))
            first.setdefault(name, owner)
            divided = inputs[0] / divisors[name] if name in divisors else inputs[0]
            if owner == name:
                see(name, divided)
            return (divided,)

        return look

    device = next((weight.device for weight in module.parameters()), torch.device("cpu"))
    handles = [module.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        for batch in batches:
            held.clear()
            module(*(torch.as_tensor(array, device=device) for array in batch.values()))
    finally:
        for handle in handles:
            handle.remove()
    if unused := [name for name in names if name not in first]:
        raise UsageError(
            f"layer {unused[0]} is not reached by the batches", "skip it, or calibrate on others"
        )
    return first
