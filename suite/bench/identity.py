"""Identifies a model by a hash of its weights, graph and configuration."""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

from buzzer.engine.infer.onnx import graphs
from buzzer.errors import DataError
from buzzer.models.api.bench import BenchModel

WEIGHTS = (".json", ".safetensors", ".bin", ".txt")  # files of a model folder
DIGITS = 12  # of the sha256, in hexadecimal
PLAIN = (bool, int, float, str, tuple)  # types of a module's attributes that configure it


def of_model(loaded: BenchModel) -> str:
    """The hash of a model as it was loaded: of its file, or of its torch module; "" for a model of a plug-in that is neither."""
    model = loaded.model if loaded.network is None else loaded.network
    if isinstance(model, str | Path):
        return of_path(Path(model))
    return of_module(model) if hasattr(model, "named_modules") else ""


def of_module(module: Any) -> str:
    """First 12 hex digits of the sha256 of a torch module: name, class, configuration and weights of every submodule, in their order."""
    import torch

    digest = hashlib.sha256()
    for name, part in module.named_modules():
        digest.update(repr((name, type(part).__qualname__, configuration(part))).encode())
    for name, weights in (*module.named_parameters(), *module.named_buffers()):
        digest.update(repr((name, str(weights.dtype), tuple(weights.shape))).encode())
        digest.update(weights.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:DIGITS]


def configuration(part: Any) -> list[tuple[str, Any]]:
    """The attributes of a torch module that are numbers, texts or dataclasses of them, in alphabetical order."""
    return sorted(
        (name, value)
        for name, value in vars(part).items()
        if name != "training"
        and not name.startswith("_")
        and (isinstance(value, PLAIN) or dataclasses.is_dataclass(value))
    )


def of_path(path: Path) -> str:
    """First 12 hex digits of the sha256 of a model's files. Raises DataError if a file cannot be read."""
    if path.suffix == ".onnx" and path.is_file():
        files = graphs.files(path)
    else:
        files = [path] if path.is_file() else [p for p in sorted(path.iterdir()) if p.suffix in WEIGHTS]
    digest = hashlib.sha256()
    for file in files:
        try:
            stat = file.stat()
            digest.update(contents(file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}", f"{path} needs it") from error
    return digest.hexdigest()[:DIGITS]


@functools.lru_cache(maxsize=256)
def contents(file: Path, *_changes_with_it: int) -> bytes:
    """The sha256 of a file. It is read again when its size or a time of change differs."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
