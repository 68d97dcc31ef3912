"""The session protocol that every backend serves."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from buzzer.errors import UsageError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Plan:
    """What a session is made from; see `infer.prepare`."""

    model: Any
    example: dict[str, Array]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, str]]
    precision: str
    device: str
    threads: int


@dataclass(frozen=True)
class Description:
    """Facts about a session; None where they are not known."""

    backend: str
    version: str
    precision: str
    device: str
    threads: int
    parameters: int | None  # number of weights
    weight_bytes: int | None
    affinity: tuple[int, ...] = ()  # cores that the process may use; empty where the system does not tell
    denormals: str = "kept"  # "flushed" to zero or "kept"
    kernels: int | None = None  # kernels, or operators of the optimised graph, in one run
    flops: int | None = None  # of one run on the batch that `describe` was given; a multiply-add is two
    bytes_moved: int | None = None  # the least that run must move: weights at this precision, inputs, outputs
    graph: bool | None = (
        None  # whether a run replays a CUDA graph; None on a CPU, or where the backend does not tell
    )
    notes: tuple[str, ...] = ()  # what a reader of its times must know


class Session(Protocol):
    """A model that is ready to run."""

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name; new arrays that belong to the caller. Raises UsageError for a batch of the wrong form."""
        ...

    def describe(self, batch: Mapping[str, Array] | None = None) -> Description:
        """The session's facts; with a batch also those of a run on it, which is counted by one slow run."""
        ...

    def poison(self) -> None:
        """Overwrite output buffers that outlive a run, so that a run which leaves them untouched is found out."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


@runtime_checkable
class Staging(Protocol):
    """A session whose run comes in parts, so that the device's work can be timed without the copies."""

    def stage(self, batch: Mapping[str, Array]) -> Any:
        """Put a batch on the device."""
        ...

    def replay(self, staged: Any) -> None:
        """Start the work on it; does not wait."""
        ...

    def fetch(self, staged: Any) -> dict[str, Array]:
        """Wait, and bring the outputs to the host."""
        ...


class Base:
    """Context manager and batch check, shared by the backends."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def facts(self) -> Description:
        """What `describe` tells without a batch."""
        raise NotImplementedError

    def describe(self, batch: Mapping[str, Array] | None = None) -> Description:
        told = replace(self.facts(), affinity=affinity())
        if batch is None:
            return told
        from buzzer.engine.infer.cost import cost_of

        cost = cost_of(self.plan.model, batch)
        if cost is None:
            return told
        return replace(told, flops=cost.flops, bytes_moved=cost.bytes_moved(self.plan.precision))

    def poison(self) -> None:
        """Outputs are new arrays in each run unless a backend says otherwise."""

    def close(self) -> None:
        """Nothing to give back unless a backend says so."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def affinity() -> tuple[int, ...]:
    """The cores that this process may use."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def check_batch(plan: Plan, batch: Mapping[str, Array]) -> None:
    """Raises UsageError unless `batch` has the plan's inputs, dtypes, ranks and fixed axes."""
    if batch.keys() != plan.example.keys():
        raise UsageError(f"inputs {sorted(batch)} given, the model takes {sorted(plan.example)}")
    for name, example in plan.example.items():
        array = batch[name]
        if array.dtype != example.dtype:
            raise UsageError(f"input {name}: dtype {array.dtype} given, the model takes {example.dtype}")
        if array.ndim != example.ndim:
            raise UsageError(f"input {name}: {array.ndim} axes given, the model takes {example.ndim}")
        for axis, size in enumerate(example.shape):
            if axis not in plan.dynamic[name] and array.shape[axis] != size:
                raise UsageError(
                    f"input {name}: axis {axis} has {array.shape[axis]} values, the model takes {size}"
                )


def as_arrays(tensors: Any, names: tuple[str, ...]) -> dict[str, Array]:
    """Name a model's outputs; refuses a count that differs from the names'."""
    values = list(tensors) if isinstance(tensors, tuple | list) else [tensors]
    if len(values) != len(names):
        raise UsageError(f"the model gives {len(values)} outputs, {len(names)} are named: {', '.join(names)}")
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}
