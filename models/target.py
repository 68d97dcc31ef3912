"""What `buzzer bench` asks of a model: the model, inputs to rotate through, and the right answers.

A target knows nothing of clocks or backends' names; it is named in configs/models.yaml by its `entry: module:attr`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from buzzer.engine.infer import Array

Batch = Mapping[str, Array]


@dataclass(frozen=True)
class Ask:
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
class Loaded:
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


class Target(Protocol):
    """A model that can be timed on its own."""

    def load(self, ask: Ask) -> Loaded:
        """Raises UsageError for what the model has not (packing of images, say), DataError for bad files."""
        ...
