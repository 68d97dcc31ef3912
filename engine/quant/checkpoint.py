"""Checkpoints of quantised, float and sparse models. A checkpoint is a folder with model.safetensors and quant.json."""

import copy
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from buzzer.engine.quant.layer import QuantLinear, encode, replace
from buzzer.errors import DataError

FORMAT = 1
WEIGHTS, FACTS = "model.safetensors", "quant.json"


@dataclass(frozen=True)
class LayerFacts:
    """An entry of quant.json: a quantised layer's precision, and the scale and zero point of its input."""

    precision: str
    input_scale: float
    input_zero: int


def save(module: nn.Module, folder: Path) -> None:
    """Write a model atomically into the new folder `folder`.

    model.safetensors has all parameters and buffers; the weight of a quantised layer is int8 or float8_e4m3fn [out, in], with
    `weight_scale` [out]. quant.json has `layers`: name -> precision, input_scale, input_zero.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    layers = {}
    for name, layer in module.named_modules():
        if isinstance(layer, QuantLinear):
            tensors[f"{name}.weight"] = encode(
                tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"], layer.precision
            )
            scale, zero = (tensors.pop(f"{name}.{part}").item() for part in ("input_scale", "input_zero"))
            layers[name] = asdict(LayerFacts(layer.precision, scale, zero))
    aside = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, aside / WEIGHTS)
    (aside / FACTS).write_text(json.dumps({"format": FORMAT, "layers": layers}, indent=1) + "\n")
    aside.replace(folder)


def load(folder: Path, module: nn.Module) -> nn.Module:
    """The model in a folder. module: a float model of the same architecture; it is not changed.

    Raises DataError for a folder that is missing, truncated, or belongs to another model.
    """
    tensors, layers = read(folder)
    model = copy.deepcopy(module)
    try:
        for name, facts in layers.items():
            quantised(model, name, facts, tensors)
        model.load_state_dict(tensors)
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"{folder}: not a checkpoint of this model: {error}") from error
    return model.eval()


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, LayerFacts]]:
    """The tensors by name, and the quantised layers by name. Raises DataError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no model checkpoint: {error.filename or error} is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise DataError(f"{folder}: the model checkpoint is truncated or damaged: {error}") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise DataError(f"{folder / FACTS}: the format is not {FORMAT}")
    try:
        return tensors, {name: LayerFacts(**values) for name, values in facts["layers"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / FACTS}: does not describe quantised layers: {error}") from error


def quantised(model: nn.Module, name: str, facts: LayerFacts, tensors: dict[str, Tensor]) -> None:
    """Replace the layer `name` of the model by a quantised layer, and complete its entries in `tensors`."""
    linear = model.get_submodule(name)
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{name} is not a linear layer")
    rows, smooth = tensors[f"{name}.weight_scale"], tensors.get(f"{name}.smooth")
    layer = QuantLinear(linear, facts.precision, rows, facts.input_scale, facts.input_zero, smooth)
    replace(model, name, layer)
    tensors[f"{name}.weight"] = tensors[f"{name}.weight"].float() * rows[:, None]
    for part in ("input_scale", "input_zero"):
        tensors[f"{name}.{part}"] = getattr(layer, part)
    torch._assert(layer.weight.shape == tensors[f"{name}.weight"].shape, f"{name} has another shape")
