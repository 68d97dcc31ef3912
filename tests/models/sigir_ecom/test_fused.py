"""SIGIR eCom's first task on the fused backend: in Triton's interpreter, and without a GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from buzzer.datasets.contract import silent
from buzzer.errors import UnsupportedError
from buzzer.models.api.context import Data, RunContext
from buzzer.models.sigir_ecom.next_item import task

pytestmark = pytest.mark.usefixtures("faster_interpreter")
SMALL = {
    "networks": ["causal", "masked"],
    "epochs": 1,
    "dim": 16,
    "length": 8,
    "candidates": 30,
    "latency": 0,
    "valid": 0.01,
}


@pytest.fixture(scope="module")
def fitted(
    tmp_path_factory: pytest.TempPathFactory, make_context: Callable[..., RunContext], run: Any
) -> tuple[Data, Path]:
    data = task.TASK.prepare(None, tmp_path_factory.mktemp("cache"), 0.0001, 0, silent)
    work = tmp_path_factory.mktemp("work")
    run(task.TASK.fit(make_context("sigir-ecom-task1", data, work, work, "polars", "torch_eager", **SMALL)))
    return data, work


def test_fused_scores_as_torch_and_says_what_torch_did(
    fitted: tuple[Data, Path], tmp_path: Path, make_context: Callable[..., RunContext], run: Any
) -> None:
    from buzzer.engine.kernels.jit import interpreted

    if not interpreted():
        pytest.skip("this process compiles kernels")
    data, work = fitted
    eager, fused = (
        run(
            task.TASK.predict(
                make_context("sigir-ecom-task1", data, work, tmp_path, "polars", backend, **SMALL)
            )
        )[0]
        for backend in ("torch_eager", "fused")
    )
    assert fused.scores == pytest.approx(eager.scores, abs=0.004)
    assert (eager.notes, fused.notes) == ((), (task.COUNTS_NOTE,))
    assert {name: session["backend"] for name, session in fused.details["sessions"].items()} == {
        "counts": "torch_eager",
        "causal": "fused",
        "masked": "fused",
    }


@pytest.mark.parametrize("networks", [["masked"], ["causal"]])
def test_without_a_gpu_the_task_ends_in_one_message(
    fitted: tuple[Data, Path],
    networks: list[str],
    tmp_path: Path,
    make_context: Callable[..., RunContext],
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from buzzer.engine.infer.backends import fused

    monkeypatch.setattr(fused, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data, work = fitted
    settings = SMALL | {"networks": networks}
    with pytest.raises(UnsupportedError, match="CUDA devices only"):
        run(
            task.TASK.predict(
                make_context("sigir-ecom-task1", data, work, tmp_path, "polars", "fused", **settings)
            )
        )
