"""Prediction on a local Dask cluster writes the same submission as one process."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buzzer.models.api.context import RunContext
from buzzer.models.recsys2021.predicting import pieces_of_test
from buzzer.models.recsys2021.task import TASK

pytest.importorskip("distributed", reason="needs the cluster extra")
Run = Callable[..., Any]
MakeContext = Callable[..., RunContext]
PIECE_ROWS = 100


def test_workers_share_the_pieces(tmp_path: Path, trees_context: MakeContext) -> None:
    context = TASK.typed(trees_context(tmp_path, tmp_path, piece_rows=PIECE_ROWS))
    alone = {number: path.read_bytes() for number, path in pieces_of_test(context)}
    shared = [{n: path.read_bytes() for n, path in pieces_of_test(context, rank, 3)} for rank in range(3)]
    assert sorted(number for part in shared for number in part) == list(alone)
    assert shared[0] | shared[1] | shared[2] == alone
    assert all(shared)


@pytest.mark.parametrize(
    ("engine", "running"), [("polars", False), pytest.param("pandas", True, marks=pytest.mark.slow)]
)
def test_two_workers_write_the_same_submission_as_one_process(
    engine: str,
    running: bool,
    fitted_trees: Path,
    tmp_path: Path,
    trees_context: MakeContext,
    run: Run,
    request: pytest.FixtureRequest,
) -> None:
    """With workers of its own, and on a cluster that is running."""
    if running:
        shared_by: dict[str, Any] = {"scheduler": request.getfixturevalue("scheduler")}
    else:
        shared_by = {"workers": 2}
    outs = [tmp_path / name for name in ("alone", "shared")]
    results = []
    for changes, out in zip(({}, shared_by), outs, strict=True):
        out.mkdir()
        context = trees_context(fitted_trees, out, engine, piece_rows=PIECE_ROWS)
        results.append(run(TASK.predict(replace(context, **changes))))
    (alone, _), (shared, phases) = results
    assert phases == ["load", "preprocess", "predict", "write", "score"]
    assert shared.scores == alone.scores
    assert (shared.rows, shared.details["pieces"]) == (alone.rows, alone.details["pieces"])
    assert shared.details["workers"] == 2
    assert (outs[1] / "results.csv").read_bytes() == (outs[0] / "results.csv").read_bytes()
    assert [path.name for path in outs[1].iterdir()] == ["results.csv"]


@pytest.mark.slow
def test_two_workers_fit_trees_as_good_as_those_of_one_process(
    fitted_trees: Path, tmp_path: Path, trees_context: MakeContext, run: Run, scheduler: str
) -> None:
    """XGBoost's Dask interface merges the workers' quantile sketches, so the trees differ slightly."""
    context = trees_context(tmp_path, tmp_path, piece_rows=PIECE_ROWS)
    shared = run(TASK.fit(replace(context, scheduler=scheduler)))[0].details["validation"]["trees_kfold"]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in fitted_trees.iterdir()}
    alone = run(TASK.fit(context))[0].details["validation"]["trees_kfold"]
    assert shared["RCE"] == pytest.approx(alone["RCE"], abs=1.0)
    assert shared["AP"] == pytest.approx(alone["AP"], abs=0.02)
    assert shared != alone
