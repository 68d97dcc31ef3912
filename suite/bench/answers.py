"""Computes the reference outputs of a model, in FP32."""

import sys
from collections.abc import Mapping
from typing import Any

from buzzer.engine.infer import Array
from buzzer.engine.infer.cost import cost_of
from buzzer.errors import DataError
from buzzer.models.api.bench import BenchModel
from buzzer.suite.bench import answers_cache, identity
from buzzer.suite.bench.answers_cache import Answers
from buzzer.suite.bench.checks import relative_error

SAME = 1e-3  # largest relative error between the FP32 outputs of a GPU and of the CPU


def compute(model: BenchModel, device: str) -> Answers:
    """The reference outputs of every input. On a GPU they are computed there, and one row is compared with the CPU's.

    Raises DataError for an output that is empty or not finite, RuntimeError if GPU and CPU differ.
    """
    first = {name: array[:1] for name, array in model.batches[0].items()}
    if device == "cuda" and is_module(model.model):
        on_cpu = dict(model.reference(first))
        on_device(model.model, device)
        disable_tf32()
        check_devices(on_cpu, model.reference(first))
    expected = [dict(model.reference(batch)) for batch in answers_cache.every_input(model)]
    if where := answers_cache.not_finite(expected):
        if in_input := answers_cache.not_finite(model.batches):
            raise DataError(f"not a finite number: {in_input}", "leave out such rows of the inputs")
        raise DataError(
            f"the model's own output is not finite: {where}",
            "no precision can be compared with it; choose other weights or another --seed",
        )
    if empty := [name for name, array in expected[0].items() if array.size == 0]:
        raise DataError(f"the model's output {empty[0]} has no values", "there is nothing to compare")
    cost = cost_of(model.model, model.batches[0])
    inputs, model_hash = answers_cache.fingerprint(model), identity.of_model(model)
    return Answers(expected, inputs, model_hash, model.source, tuple(model.notes), cost)


def check_devices(cpu: Mapping[str, Array], gpu: Mapping[str, Array]) -> None:
    """Raises RuntimeError if the FP32 outputs of the GPU differ from the CPU's."""
    for name, want in cpu.items():
        error = relative_error(gpu[name], want)
        if not error < SAME:
            raise RuntimeError(
                f"output {name}: FP32 on the GPU differs from the CPU's by {error:.3g} of the largest value"
            )


def disable_tf32() -> None:
    """Make torch compute FP32 products in FP32, not in TF32."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def is_module(model: Any) -> bool:
    """Whether a model is a torch module. Does not import torch to find out."""
    return "torch" in sys.modules and isinstance(model, sys.modules["torch"].nn.Module)


def on_device(model: Any, device: str) -> Any:
    """The model on its device. A torch module is moved to the GPU, where calibration and packing are faster; other models are unchanged."""
    return model.to(device) if device == "cuda" and is_module(model) else model
