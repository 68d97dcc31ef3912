"""Reads a Hugging Face model folder without its weights: the configuration, and the names and shapes of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from buzzer.errors import DataError
from buzzer.models.bert import encoder, weight_files, weights
from buzzer.models.bert.encoder import BertConfig


def described(params: Mapping[str, Any]) -> tuple[Any, BertConfig]:
    """A model without values, and its configuration; None for the model of a known shape, and where only reading the weights shows them.

    params: as of `bench.BertTarget`. Raises what `encoder.with_head` and `encoder.encoder_of` raise.
    """
    if "spec" in params:
        return None, encoder.spec(params["spec"])
    folder = weights.folder(params["weights"], tokenizer=False)
    config, state = encoder.config_of(folder), headers(folder)
    if state is None:
        return None, config
    with torch.device("meta"), without_initial_values():
        headed = encoder.with_head(config, state, folder)
        return headed if headed is not None else encoder.encoder_of(config, state, folder), config


@contextmanager
def without_initial_values() -> Iterator[None]:
    """New layers have no initial values. On the device without values, drawing them would import for a second what torch needs for it."""
    kinds: tuple[Any, ...] = (nn.Linear, nn.Embedding, nn.LayerNorm)
    usual = [kind.reset_parameters for kind in kinds]
    for kind in kinds:
        kind.reset_parameters = lambda self: None
    try:
        yield
    finally:
        for kind, reset in zip(kinds, usual, strict=True):
            kind.reset_parameters = reset


def headers(folder: Path) -> dict[str, Tensor] | None:
    """The weights that `weight_files.read` would read, on torch's device without values; None for pickled files and shards without an index.

    Raises DataError if files are missing or damaged.
    """
    if (folder / weight_files.SINGLE).is_file():
        return header(folder / weight_files.SINGLE)
    if (folder / weight_files.INDEX).is_file():
        return weight_files.read_indexed(folder, weight_files.INDEX, header)
    if not [*folder.glob("model-*.safetensors"), *folder.glob("pytorch_model*")]:
        weight_files.read(folder)  # raises, because there is nothing to read
    return None


def header(file: Path) -> dict[str, Tensor]:
    """Tensors without values, of the names and shapes in a safetensors file. Raises DataError if it cannot be read."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            shapes = {name: opened.get_slice(name).get_shape() for name in names}
    except Exception as error:  # safetensors raises several types
        raise DataError(f"{file}: not a safetensors file: {str(error)[:200]}") from error
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
