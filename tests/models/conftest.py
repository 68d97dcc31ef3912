from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from buzzer.models.api.bench import BenchSpec
from buzzer.models.api.context import Data, Result, RunContext
from buzzer.suite import registry

Run = Callable[[Generator[str, None, Result]], tuple[Result, list[str]]]


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs `fit` or `predict` to its end: its result, and its phases in the order in which they began."""

    def go(steps: Generator[str, None, Result]) -> tuple[Result, list[str]]:
        phases = []
        while True:
            try:
                phases.append(next(steps))
            except StopIteration as stop:
                return stop.value, list(dict.fromkeys(phases))

    return go


@pytest.fixture(scope="session")
def make_context() -> Callable[..., RunContext]:
    """Builds the settings of a run: the task's registered parameters, changed by `params`."""

    def make(
        task: str, data: Data, work: Path, out: Path, engine: str, backend: str, **params: Any
    ) -> RunContext:
        defaults = registry.task(task).params
        return RunContext(
            task, engine, backend, "fp32", "cpu", data.folder, work, out, data.scale, 0, 1, defaults | params
        )

    return make


@pytest.fixture(scope="session")
def bench_spec() -> Callable[..., BenchSpec]:
    """Builds what `buzzer bench` asks of a model: two padded batches of two rows, unless said otherwise; `params` are the model's."""

    def make(
        batch: int = 2,
        seq: int = 8,
        lengths: str = "fixed",
        packing: str = "padded",
        **params: Any,
    ) -> BenchSpec:
        return BenchSpec(batch, seq, 2, lengths, packing, 0, params)

    return make
