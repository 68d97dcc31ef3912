"""The files of trained networks, and the inputs of their inference forms. Not in network_training.py, which imports torch."""

import json
from pathlib import Path

import numpy as np

from buzzer.engine.frames.base import FIRST_CODE, Array
from buzzer.models.by_model import of
from buzzer.models.recsys2021.feature_sets import feature_set
from buzzer.models.recsys2021.params import SIDES, Context

SIZES = "networks.json"
OUTPUTS = ("probability",)
# Input -> {axis: name} of the axes that differ between runs.
AXES = {
    "features": {0: "batch"},
    "tokens": {0: "texts", 1: "length"},
    "text": {0: "batch"},
    "users": {0: "batch"},
}


def path(folder: Path, name: str, bag: int = 0) -> Path:
    """The file of a network's weights."""
    return folder / (f"network-{name}-bag{bag}.pt" if bag else f"network-{name}.pt")


def graph(folder: Path, name: str, bag: int = 0) -> Path:
    """The file of a network's graph."""
    return path(folder, name, bag).with_suffix(".onnx")


def interface(name: str, context: Context) -> tuple[dict[str, Array], dict[str, dict[int, str]]]:
    """Two rows and two texts as inputs of a network's inference form, and the axes that may change."""
    params = context.params
    user_dim = json.loads((context.work / SIZES).read_text())[name]["user_dim"]
    columns = len(feature_set(params).names())
    inputs = example(columns, of(params.tokens, name), SIDES.get(name, ()), user_dim)
    return inputs, {key: AXES[key] for key in inputs}


def example(columns: int, tokens: int, sides: tuple[int, ...], user_dim: int) -> dict[str, Array]:
    """Inputs of an inference form by name, with two rows and two texts of a length. Without `sides` it reads neither texts nor users."""
    features = {"features": np.zeros((2, columns), dtype=np.float32)}
    if not sides:
        return features
    return features | {
        "tokens": np.ones((2, tokens), dtype=np.int32),
        "text": np.arange(2, dtype=np.int64),
        "users": np.zeros((2, len(sides), user_dim), dtype=np.float32),
    }


def own_users(users: Array, bag: int, bags: int) -> Array:
    """The codes of users in the table of one of `bags` networks. The users of the other networks have code 0, like rare users.

    users: int64 [rows, 2], codes from FIRST_CODE, 0 = rare, on the host or the device.
    """
    if bags == 1:
        return users
    numbers = users - FIRST_CODE
    return (numbers // bags + FIRST_CODE) * ((numbers >= 0) & (numbers % bags == bag))
