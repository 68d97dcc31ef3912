"""A polars-gpu engine without a GPU, for tests of plans."""

from typing import Any

from buzzer.engine.frames import gpu_plan
from buzzer.engine.frames.lazy import Lazy


class Planned(Lazy):
    """Plans for the GPU. A frame that would stay there is checked as a plan, and computed by Polars on the CPU.

    kept: the plans of these frames.
    """

    def __init__(self) -> None:
        super().__init__("gpu")
        self.kept: list[Any] = []

    def keep(self, t: Any) -> Any:
        assert gpu_plan.refusals(t) == []
        self.kept.append(t)
        return Lazy("cpu").collect(t)
