"""The base class of the backends' sessions."""

import os
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

from buzzer.engine.infer.cost import cost_of
from buzzer.engine.infer.session import Array, Description, Plan


class Base:
    """Base class of the backends' sessions. Subclasses define `run` and `facts`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def facts(self) -> Description:
        """The result of `describe` without a batch, but for the affinity."""
        raise NotImplementedError

    def plain_facts(self, backend: str, version: str) -> Description:
        """The facts that follow from the plan. `parameters` is None unless the model is a torch module."""
        plan = self.plan
        weights = plan.model.parameters() if hasattr(plan.model, "parameters") else None
        parameters = None if weights is None else sum(w.numel() for w in weights)
        return Description(backend, version, plan.precision, plan.device, plan.threads, parameters, None)

    def describe(self, batch: Mapping[str, Array] | None = None) -> Description:
        description = replace(self.facts(), affinity=affinity())
        if batch is None:
            return description
        cost = cost_of(self.plan.model, batch)
        if cost is None:
            return description
        return replace(description, flops=cost.flops, bytes_moved=cost.bytes_moved(self.plan.precision))

    def poison(self) -> None:
        """Does nothing: outputs are new arrays in each run. Backends that reuse buffers override this."""

    def close(self) -> None:
        """Does nothing. Backends that hold resources override this."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def affinity() -> tuple[int, ...]:
    """The cores that this process may use; empty if unknown."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
