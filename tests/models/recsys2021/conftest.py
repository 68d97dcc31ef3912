from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from buzzer.datasets.contract import silent
from buzzer.engine import cluster
from buzzer.models.api.context import Data, RunContext
from buzzer.models.recsys2021.task import TASK

TREES_ONLY = {
    "rounds_1": 3,
    "rounds_2": 3,
    "depth_1": 3,
    "networks": [],
    "trees": ["kfold"],
    "second": ["kfold"],
    "baseline": False,
}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """A few hundred generated rows."""
    return TASK.prepare(None, tmp_path_factory.mktemp("cache"), 0.00002, 0, silent)


@pytest.fixture(scope="session")
def trees_context(data: Data, make_context: Callable[..., RunContext]) -> Callable[..., RunContext]:
    """Builds the settings of a run with small trees and no networks."""

    def make(work: Path, out: Path, engine: str = "polars", **changes: Any) -> RunContext:
        return make_context("recsys2021", data, work, out, engine, "torch_eager", **TREES_ONLY | changes)

    return make


@pytest.fixture(scope="session")
def fitted_trees(
    trees_context: Callable[..., RunContext], tmp_path_factory: pytest.TempPathFactory, run: Any
) -> Path:
    """The work folder of small trees."""
    work = tmp_path_factory.mktemp("work")
    run(TASK.fit(trees_context(work, work)))
    return work


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a running cluster of two local workers."""
    pytest.importorskip("distributed", reason="needs the cluster extra")
    with cluster.opened(2) as client:
        yield client.scheduler.address
