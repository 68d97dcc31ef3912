"""What `buzzer bench` asks of a model: the model, inputs to rotate through, and the right answers.

A target knows nothing of clocks or backends' names; it is named in configs/models.yaml by its `entry: module:attr`.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from buzzer.engine.infer import Array

Batch = Mapping[str, Array]
PROBES, LEAST_PROBES = 8, 4  # inputs that the timed runs do not have: most and least
LARGE = 1 << 20  # bytes of a file that is not read to tell it from another


@dataclass(frozen=True)
class BenchSpec:
    """What is to be timed."""

    batch: int  # rows (sentences, sessions) a run
    seq: int  # tokens or steps a row, where the model has such an axis
    inputs: int  # different batches to rotate through, at most
    lengths: str  # "fixed": every row has `seq` tokens; "real": rows as long as real ones
    packing: str  # of rows of real lengths: "padded", "sorted" or "packed"
    seed: int
    params: Mapping[str, Any]  # the model's own, from configs/models.yaml
    work: Path = (
        Path()
    )  # folder of one call of `buzzer bench`: what the first load makes, the later ones find
    threads: int = 1  # that may be used to make it


@dataclass(frozen=True)
class BenchModel:
    """A model with its inputs, ready to be prepared for a backend."""

    model: Any  # torch module, or the path of a model file
    outputs: tuple[str, ...]
    batches: Sequence[Batch]
    reference: Callable[[Batch], Mapping[str, Array]]  # the right outputs, in FP32
    rows: Sequence[int]  # rows in each batch
    calibration: Sequence[Batch] = ()  # other inputs, on which static scales are fixed
    valid: Sequence[
        Array | None
    ] = ()  # by batch: which leading entries of the outputs count (padding does not)
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)  # axes that differ between batches
    source: str = "generated"  # or "official": where the inputs come from
    notes: tuple[str, ...] = ()  # what a reader of the record must know ("random weights", ...)
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON-able, into the record's details
    unseen: Sequence[tuple[int, Batch]] = ()  # inputs that no timed run has; see `altered`


class ModelProvider(Protocol):
    """A model that can be timed on its own."""

    def load(self, ask: BenchSpec) -> BenchModel:
        """Raises UsageError for what the model has not (packing of images, say), DataError for bad files."""
        ...

    def identity(self, ask: BenchSpec) -> Any:
        """JSON-able: what fixes weights and inputs beside `ask`, so that answers can be kept between calls of `buzzer bench`; None where
        another call may get another model."""
        ...


def outputs_of(module: Any, batch: Batch, names: Sequence[str]) -> dict[str, Array]:
    """A torch module in evaluation mode, run where its weights are; its outputs on the host."""
    import torch

    device = next((w.device for w in module.parameters()), "cpu")
    with torch.inference_mode():
        found = module(*(torch.as_tensor(array, device=device) for array in batch.values()))
    tensors = found if isinstance(found, tuple | list) else (found,)
    return {name: np.asarray(t.cpu()) for name, t in zip(names, tensors, strict=True)}


def altered(batches: Sequence[Batch]) -> list[tuple[int, Batch]]:
    """Batches that are not among those given, each beside the number of the one that it is made from: as many, but PROBES at the most
    and LEAST_PROBES at the least.

    Some values of one input are taken from another batch of the same size. Each value keeps its row and column, so that an altered batch
    is as valid and as costly as the other two. Fewer, or none, where no two batches have one size.
    """
    wanted, known = min(PROBES, max(LEAST_PROBES, len(batches))), {_key(batch) for batch in batches}
    found: list[tuple[int, Batch]] = []
    for step in range(2, 2 + LEAST_PROBES):  # every second value from the other batch, then every third, ...
        for number, batch in enumerate(batches):
            others = [*batches[number + 1 :], *batches[:number]]
            mixes = (_mixed(batch, other, name, step) for other in others for name in batch)
            new = next((mix for mix in mixes if mix is not None and _key(mix) not in known), None)
            if new is not None and len(found) < wanted:
                found.append((number, new))
                known.add(_key(new))
    return found


def _mixed(batch: Batch, other: Batch, name: str, step: int) -> Batch | None:
    """`batch` with one of `step` values of the input `name` from `other`; None where their sizes differ."""
    if batch[name].shape != other[name].shape:
        return None
    values = batch[name].copy()
    values.reshape(-1)[1::step] = other[name].reshape(-1)[1::step]
    return {**batch, name: values}


def _key(batch: Batch) -> bytes:
    return hashlib.sha256(b"".join(array.tobytes() for array in batch.values())).digest()


def stamp(files: Iterable[Path]) -> str:
    """One text for the files' contents; large ones count by size and time of change."""
    digest = hashlib.sha256()
    for file in sorted(files):
        told = file.stat()
        large = told.st_size > LARGE
        digest.update(f"{file.name} {told.st_size} {told.st_mtime_ns if large else ''}".encode())
        digest.update(b"" if large else file.read_bytes())
    return digest.hexdigest()
