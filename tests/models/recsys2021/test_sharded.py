"""The RecSys 2021 predict job on a local Dask cluster: what one process writes, row by row."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buzzer.models.api.context import Data, RunContext
from buzzer.models.recsys2021.predicting import pieces_of_test
from buzzer.models.recsys2021.task import TASK

pytest.importorskip("distributed", reason="needs the cluster extra")
SMALL = {"rounds_1": 3, "rounds_2": 3, "depth_1": 3, "networks": [], "trees": ["kfold"], "second": ["kfold"]}
SMALL |= {"piece_rows": 100}
Run = Callable[..., Any]
Jobs = Callable[..., RunContext]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return TASK.prepare(None, tmp_path_factory.mktemp("cache"), 0.00002, 0, lambda share, what: None)


@pytest.fixture(scope="module")
def fitted(data: Data, tmp_path_factory: pytest.TempPathFactory, job: Jobs, run: Run) -> Path:
    work = tmp_path_factory.mktemp("work")
    run(TASK.fit(job("recsys2021", data, work, work, "polars", "torch_eager", **SMALL)))
    return work


def test_workers_share_the_pieces_out(data: Data, tmp_path: Path, job: Jobs) -> None:
    asked = job("recsys2021", data, tmp_path, tmp_path, "polars", "torch_eager", **SMALL)
    alone = {number: path.read_bytes() for number, path in pieces_of_test(asked)}
    shared = [{n: path.read_bytes() for n, path in pieces_of_test(asked, rank, 3)} for rank in range(3)]
    assert sorted(number for part in shared for number in part) == list(alone)
    assert shared[0] | shared[1] | shared[2] == alone
    assert all(shared)


@pytest.mark.parametrize("engine", ["polars", pytest.param("pandas", marks=pytest.mark.slow)])
def test_two_workers_write_what_one_process_writes(
    engine: str, data: Data, fitted: Path, tmp_path: Path, job: Jobs, run: Run
) -> None:
    outs = [tmp_path / name for name in ("alone", "shared")]
    results = []
    for workers, out in zip((0, 2), outs, strict=True):
        out.mkdir()
        asked = job("recsys2021", data, fitted, out, engine, "torch_eager", **SMALL)
        results.append(run(TASK.predict(replace(asked, workers=workers))))
    (alone, _), (shared, phases) = results
    assert phases == ["load", "preprocess", "predict", "write", "score"]
    assert shared.scores == alone.scores
    assert (shared.rows, shared.details["pieces"]) == (alone.rows, alone.details["pieces"])
    assert shared.details["workers"] == 2
    assert (outs[1] / "results.csv").read_bytes() == (outs[0] / "results.csv").read_bytes()
    assert [path.name for path in outs[1].iterdir()] == ["results.csv"]


@pytest.mark.slow
def test_two_workers_fit_trees_as_good_as_one_process_does(
    data: Data, fitted: Path, tmp_path: Path, job: Jobs, run: Run
) -> None:
    """XGBoost's Dask interface merges the workers' quantile sketches, so that trees differ a little."""
    shared = replace(job("recsys2021", data, tmp_path, tmp_path, "polars", "torch_eager", **SMALL), workers=2)
    told = run(TASK.fit(shared))[0].details["validation"]["trees_kfold"]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in fitted.iterdir()}
    alone = run(TASK.fit(replace(shared, workers=0)))[0].details["validation"]["trees_kfold"]
    assert told["RCE"] == pytest.approx(alone["RCE"], abs=1.0)
    assert told["AP"] == pytest.approx(alone["AP"], abs=0.02)
    assert told != alone
