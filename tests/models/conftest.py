import pickle
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from buzzer.models.api import progress
from buzzer.models.api.bench import BenchSpec
from buzzer.models.api.context import Data, Result, RunContext
from buzzer.suite import registry

Run = Callable[[Generator[str, None, Result]], tuple[Result, list[str]]]


@pytest.fixture(scope="session")
def shares_of() -> Callable[[Generator[str, None, Result]], tuple[Result, list[tuple[str, list[float]]]]]:
    """Runs `fit` or `predict` to its end: its result, and each phase with the shares of it that were reported as done."""

    def go(steps: Generator[str, None, Result]) -> tuple[Result, list[tuple[str, list[float]]]]:
        phases: list[tuple[str, list[float]]] = []
        progress.listen(lambda share: phases[-1][1].append(share) if phases else None)
        try:
            while True:
                name = next(steps)
                if not phases or phases[-1][0] != name:
                    phases.append((name, []))
        except StopIteration as stop:
            return stop.value, phases
        finally:
            progress.listen(None)

    return go


@pytest.fixture(scope="session")
def run(shares_of: Any) -> Run:
    """Runs `fit` or `predict` to its end: its result, and its phases in the order in which they began.

    The shares that a phase of a fit reports as done must not fall.
    """

    def go(steps: Generator[str, None, Result]) -> tuple[Result, list[str]]:
        result, phases = shares_of(steps)
        if steps.__name__.startswith("fit"):
            for name, shares in phases:
                assert np.all(np.diff(shares) > -1e-9) and max(shares, default=0) < 1 + 1e-9, (name, shares)
        return result, list(dict.fromkeys(name for name, _ in phases))

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


# Modules whose import takes long. A prediction on Polars and ONNX Runtime needs only onnxruntime.
HEAVY = {"torch", "pandas", "sklearn", "scipy.stats", "asyncio", "onnx", "onnxruntime"}
PREDICT = """
import pickle, sys
from buzzer.suite import registry
from buzzer.suite.run.worker import load_entry
context = pickle.load(sys.stdin.buffer)
for phase in load_entry(registry.task(context.task).entry, context.task).predict(context):
    if phase == "score":
        break
print(*sys.modules)
"""


@pytest.fixture(scope="session")
def imported() -> Callable[[RunContext], set[str]]:
    """Those of HEAVY that a prediction imports until it is written, in a process of its own."""

    def predict(context: RunContext) -> set[str]:
        script, given = [sys.executable, "-c", PREDICT], pickle.dumps(context)
        done = subprocess.run(script, input=given, capture_output=True, check=True)
        return HEAVY & {*done.stdout.decode().split()}

    return predict


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
