"""The session protocol that every backend serves."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

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


class Session(Protocol):
    """A model that is ready to run."""

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name; new arrays that belong to the caller. Raises UsageError for a batch of the wrong form."""
        ...

    def describe(self) -> Description: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


class Base:
    """Context manager and batch check, shared by the backends."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def close(self) -> None:
        """Nothing to give back unless a backend says so."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


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
