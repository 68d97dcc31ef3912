"""The interface of models for `buzzer bench`: the model, its inputs, and the reference outputs.

A `ModelProvider` does not depend on clocks or backends. `entry: module:attr` in configs/models.yaml names it.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from buzzer.engine.infer import Array

Batch = Mapping[str, Array]
Run = Callable[[Batch], Mapping[str, Array]]  # the `run` of a session
PROBES, LEAST_PROBES = 8, 4  # most and least number of unseen inputs
LARGE = (
    1 << 20
)  # larger files, in bytes, are identified by size and modification time instead of their contents

QUESTIONS = ".json"  # suffix of a file with questions, which are cut into rows of `seq` tokens; other files have rows of one length


@dataclass(frozen=True)
class BenchSpec:
    """The sizes of the inputs and the parameters of the model to time."""

    batch: int  # rows (sentences, sessions) per run
    seq: int  # tokens or steps per row, if the model has such an axis
    inputs: int  # largest number of different batches to rotate through
    lengths: str  # "fixed": every row has `seq` tokens; "real": rows have the lengths of real sentences
    packing: str  # how rows of real lengths share a batch: "padded", "sorted" or "packed"
    seed: int
    params: Mapping[str, Any]  # the model's own parameters, from configs/models.yaml
    work: Path = Path()  # folder of one call of `buzzer bench`, for files that later loads can use
    threads: int = 1  # CPU threads that `load` may use
    file: Path | None = (
        None  # file with the inputs (models/inputs_file.py); None = the model chooses or draws them
    )


@dataclass(frozen=True)
class BenchModel:
    """A model and its inputs."""

    model: Any  # torch module, or the path of a model file
    outputs: tuple[str, ...]
    batches: Sequence[Batch]
    reference: Callable[[Batch], Mapping[str, Array]]  # the outputs of a batch, in FP32
    rows: Sequence[int]  # rows in each batch
    calibration: Sequence[Batch] = ()  # other inputs, for the static scales of quantised layers
    valid: Sequence[Array | None] = ()  # for each batch: which leading entries of the outputs are not padding
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)  # axes that differ between batches
    source: str = "generated"  # source of the inputs: "generated" or "official" (real ones)
    notes: tuple[str, ...] = ()  # important remarks for readers of the record ("random weights", ...)
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON for the details of the record
    network: Any = None  # torch module that the model is identified by, if `model` is another one around it
    unseen: Sequence[tuple[int, Batch]] = ()  # inputs that no timed run uses; see `altered`
    # Scores on labelled inputs, by the `run` of a session; None if the inputs have no labels.
    evaluate: Callable[[Run], Mapping[str, float]] | None = None


class ModelProvider(Protocol):
    """A model that can be timed on its own."""

    def load(self, spec: BenchSpec, /) -> BenchModel:
        """The model and its inputs.

        Raises UsageError for an option that the model does not have (packing of images, for example), DataError for bad files.
        """
        ...

    def identity(self, spec: BenchSpec, /) -> Any:
        """A JSON value that changes when the weights or inputs change. With `spec`, it is the key of the cached reference outputs.

        None if another call of `buzzer bench` may get another model; then nothing is cached.
        """
        ...


@runtime_checkable
class Checker(Protocol):
    """A `ModelProvider` that can refuse a model, sizes or inputs without loading the model."""

    def check(self, spec: BenchSpec, /) -> None:
        """Raises what `load` would raise, as far as files and sizes show it in about a second. `spec.work` has no files."""
        ...


def outputs_of(module: Any, batch: Batch, names: Sequence[str]) -> dict[str, Array]:
    """The outputs of a torch module in evaluation mode, on the host. It runs on the device of its weights."""
    import torch

    device = next((w.device for w in module.parameters()), "cpu")
    with torch.inference_mode():
        outputs = module(*(torch.as_tensor(array, device=device) for array in batch.values()))
    tensors = outputs if isinstance(outputs, tuple | list) else (outputs,)
    return {name: np.asarray(t.cpu()) for name, t in zip(names, tensors, strict=True)}


def altered(batches: Sequence[Batch]) -> list[tuple[int, Batch]]:
    """Inputs that are not among `batches`, each with the number of the batch that it was derived from.

    In one input, some values are replaced by values of another batch of the same shape. Each value keeps its row and column, so an
    altered batch is as valid and takes as long as the other two. There are as many as batches, but at most `PROBES` and at
    least `LEAST_PROBES`; fewer, or none, if too few batches have the same shape.
    """
    wanted, used = min(PROBES, max(LEAST_PROBES, len(batches))), {_key(batch) for batch in batches}
    unseen: list[tuple[int, Batch]] = []
    for step in range(2, 2 + LEAST_PROBES):  # every second value from the other batch, then every third, ...
        for number, batch in enumerate(batches):
            others = [*batches[number + 1 :], *batches[:number]]
            mixes = (_mixed(batch, other, name, step) for other in others for name in batch)
            new = next((mix for mix in mixes if mix is not None and _key(mix) not in used), None)
            if new is not None and len(unseen) < wanted:
                unseen.append((number, new))
                used.add(_key(new))
    return unseen


def _mixed(batch: Batch, other: Batch, name: str, step: int) -> Batch | None:
    """`batch` with every `step`-th value of the input `name` taken from `other`; None if their shapes differ."""
    if batch[name].shape != other[name].shape:
        return None
    values = batch[name].copy()
    values.reshape(-1)[1::step] = other[name].reshape(-1)[1::step]
    return {**batch, name: values}


def _key(batch: Batch) -> bytes:
    return hashlib.sha256(b"".join(array.tobytes() for array in batch.values())).digest()


def stamp(files: Iterable[Path]) -> str:
    """One hash over the contents of files; for large files, over their size and modification time."""
    digest = hashlib.sha256()
    for file in sorted(files):
        stat = file.stat()
        large = stat.st_size > LARGE
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns if large else ''}".encode())
        digest.update(b"" if large else file.read_bytes())
    return digest.hexdigest()
