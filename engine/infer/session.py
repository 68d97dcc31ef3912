"""The protocol of inference sessions, which every backend implements."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from buzzer.errors import UsageError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Plan:
    """The arguments of a backend's `prepare`; see `infer.prepare`."""

    model: Any
    example: dict[str, Array]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, str]]
    precision: str
    device: str
    threads: int


@dataclass(frozen=True)
class Description:
    """Facts about a session; None if unknown."""

    backend: str
    version: str
    precision: str
    device: str
    threads: int
    parameters: int | None  # number of weights
    weight_bytes: int | None
    affinity: tuple[int, ...] = ()  # cores that the process may use; empty if unknown
    denormals: str = "kept"  # "flushed" to zero or "kept"
    kernels: int | None = None  # number of kernels, or of operators of the optimised graph, in one run
    flops: int | None = (
        None  # FLOPs of one run on the batch that was passed to `describe`; a multiply-add counts as two
    )
    bytes_moved: int | None = None  # least bytes of that run: weights in this precision, inputs, and outputs
    graph: bool | None = None  # whether a run replays a CUDA graph; None on a CPU, or if unknown
    notes: tuple[str, ...] = ()  # remarks on its measured times


class Session(Protocol):
    """A model that is ready to run."""

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name, as new arrays that belong to the caller. Raises UsageError for a batch that does not match the plan."""
        ...

    def describe(self, batch: Mapping[str, Array] | None = None) -> Description:
        """The session's facts. With a batch, also the FLOPs and bytes of a run on it; counting them takes one slow run."""
        ...

    def poison(self) -> None:
        """Fill output buffers that are reused between runs with NaN, so that a run which does not write them is detected."""
        ...

    def close(self) -> None:
        """Free the session's resources."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


@runtime_checkable
class Staging(Protocol):
    """A session whose run has three parts, so that the device's work can be timed without copies from and to the host."""

    def stage(self, batch: Mapping[str, Array]) -> Any:
        """Copy a batch to the device."""
        ...

    def replay(self, staged: Any) -> None:
        """Start the work on a staged batch; does not wait for it."""
        ...

    def fetch(self, staged: Any) -> dict[str, Array]:
        """Wait for the outputs and copy them to the host."""
        ...


def check_batch(plan: Plan, batch: Mapping[str, Array]) -> None:
    """Raises UsageError unless a batch has the plan's inputs, with their dtypes, ranks and fixed axes."""
    if batch.keys() != plan.example.keys():
        raise UsageError(f"the inputs are {sorted(batch)}, but the model takes {sorted(plan.example)}")
    for name, example in plan.example.items():
        array = batch[name]
        # A torch tensor, for example one on a GPU, has a torch.dtype.
        if str(array.dtype).removeprefix("torch.") != str(example.dtype):
            raise UsageError(f"input {name} has dtype {array.dtype}, but the model takes {example.dtype}")
        if array.ndim != example.ndim:
            raise UsageError(f"input {name} has {array.ndim} axes, but the model takes {example.ndim}")
        for axis, size in enumerate(example.shape):
            if axis not in plan.dynamic[name] and array.shape[axis] != size:
                raise UsageError(
                    f"input {name}: axis {axis} has size {array.shape[axis]}, but the model takes {size}"
                )


def as_arrays(tensors: Any, names: tuple[str, ...]) -> dict[str, Array]:
    """A model's outputs by name. Raises UsageError if there are more or fewer outputs than names."""
    values = list(tensors) if isinstance(tensors, tuple | list) else [tensors]
    if len(values) != len(names):
        raise UsageError(
            f"the model returns {len(values)} outputs, but {len(names)} are named: {', '.join(names)}"
        )
    return {name: as_array(value) for name, value in zip(names, values, strict=True)}


def as_array(value: Any) -> Array:
    """An output as an array: texts as NumPy's texts, and ONNX's list of maps (one for each row, with the same keys) as a row for each map."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = [list(row.values()) for row in value]
    array = np.asarray(value)
    return array.astype(str) if array.dtype.kind == "O" else array


def as_feed(array: Array) -> Array:
    """An input as ONNX Runtime takes it: texts as Python objects."""
    return array.astype(object) if array.dtype.kind == "U" else array
