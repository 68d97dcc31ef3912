"""Reads the weights of a Hugging Face model folder."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from buzzer.errors import DataError, UnsupportedError

SINGLE, PICKLED = "model.safetensors", "pytorch_model.bin"
INDEX, PICKLED_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")


def read(folder: Path) -> dict[str, Tensor]:
    """All weights of a Hugging Face model folder, from the files that the transformers library would choose.

    These are model.safetensors, else the shards of its index, else numbered shards without an index, else pytorch_model.bin, else the
    shards of its index. Other files are ignored. Raises DataError if a shard or a weight of the index is missing, or a file cannot be read; UnsupportedError for
    quantised weights.
    """
    if (folder / SINGLE).is_file():
        weights = read_safetensors(folder / SINGLE)
    elif (folder / INDEX).is_file():
        weights = read_indexed(folder, INDEX, read_safetensors)
    elif shards := sorted(p for p in folder.glob("model-*.safetensors") if SHARD.fullmatch(p.name)):
        weights = read_shards(folder, shards)
    elif (folder / PICKLED).is_file():
        weights = read_pickled(folder / PICKLED)
    elif (folder / PICKLED_INDEX).is_file():
        weights = read_indexed(folder, PICKLED_INDEX, read_pickled)
    else:
        others = ", ".join(sorted(p.name for p in folder.glob("*.safetensors"))[:5])
        has = f"; it has {others}, which do not form a whole model" if others else ""
        raise DataError(f"{folder}: no {SINGLE} and no {PICKLED}{has}")
    if integers := [
        name
        for name, weight in weights.items()
        if name.endswith((".weight", ".bias", ".gamma", ".beta")) and not weight.is_floating_point()
    ]:
        kind = str(weights[integers[0]].dtype).removeprefix("torch.")
        raise UnsupportedError(
            f"{folder}: weight {integers[0]} is {kind}: a quantised model", "use the float model"
        )
    return weights


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises DataError if it cannot be read."""
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except Exception as error:  # errors of safetensors, and of torch about sizes in the header
        raise DataError(f"{file}: not a safetensors file: {str(error)[:200]}") from error


def read_indexed(
    folder: Path, index: str, read_shard: Callable[[Path], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The weights of an index, each from its shard. Raises DataError for an invalid index and for missing shards or weights."""
    try:
        wanted = {
            str(k): str(v)
            for k, v in json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder / index}: not an index of weights: {str(error)[:200]}") from error
    weights: dict[str, Tensor] = {}
    for name in sorted(set(wanted.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise DataError(
                f"{folder}: the shard {name[:120]!r} that {index} names is missing", "download it again"
            )
        shard = read_shard(folder / name)
        weights |= {w: shard[w] for w, file in wanted.items() if file == name and w in shard}
    if missing := sorted(wanted.keys() - weights.keys()):
        raise DataError(
            f"{folder}: {len(missing)} weights that {index} names are missing: {missing[0][:120]}"
        )
    return weights


def read_shards(folder: Path, shards: Sequence[Path]) -> dict[str, Tensor]:
    """The weights of shards without an index. Each file name contains the number of shards. Raises DataError if one is missing."""
    numbers = [SHARD.fullmatch(p.name) for p in shards]
    numbered = {(int(m[1]), int(m[2])) for m in numbers if m}
    count = max(total for _, total in numbered)
    if numbered != {(number, count) for number in range(1, count + 1)}:
        have = ", ".join(p.name for p in shards[:5])
        raise DataError(f"{folder}: some of {count} shards are missing; it has {have}", "download it again")
    return {name: weight for file in shards for name, weight in read_safetensors(file).items()}


def read_pickled(file: Path) -> dict[str, Tensor]:
    """A state dict saved by torch; only tensors are unpickled. Raises DataError if it cannot be read."""
    try:
        weights = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # pickle, zipfile and torch raise many exception types
        raise DataError(f"{file}: not a file of torch weights: {str(error).splitlines()[0][:200]}") from error
    if not isinstance(weights, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()
    ):
        raise DataError(f"{file}: not a state dict of weights")
    return weights


def float_type(weights: Mapping[str, Tensor]) -> str:
    """The type of most weight values, such as "float16"; they are computed with in float32."""
    values: Counter[str] = Counter()
    for weight in weights.values():
        if weight.is_floating_point():
            values[str(weight.dtype).removeprefix("torch.")] += weight.numel()
    return values.most_common(1)[0][0] if values else "none"
