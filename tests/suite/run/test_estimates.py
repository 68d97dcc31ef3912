"""Expected times come from past runs of the same job on the same machine."""

from collections.abc import Callable

import pytest

from buzzer.suite.records import machine
from buzzer.suite.records.schema import Record
from buzzer.suite.run.estimates import Estimates
from buzzer.suite.run.plan import Run, TaskSelection, predict_runs

Make = Callable[..., Record]
Choose = Callable[..., TaskSelection]


def test_the_median_of_the_same_job_here(make_record: Make, choose: Choose) -> None:
    run: Run = predict_runs(choose())[0]
    here = {
        "machine": machine.machine().model_dump(),
        "config_hash": run.task.config_hash,
        "scale": run.scale,
    }
    here["budget"] = make_record().budget.model_dump() | {"cores": run.budget.cores}
    base = make_record(**here)
    past = [base.model_copy(update={"wall_s": wall, "score_s": 1.0}) for wall in (4.0, 2.0, 90.0)]
    assert Estimates(past).seconds(run) == pytest.approx(5.0)
    for change in (
        {"outcome": "timeout"},
        {"scale": 0.5},
        {"backend": "openvino"},
        {"config": {"do": "something else"}},
    ):
        assert Estimates([r.model_copy(update=change) for r in past]).seconds(run) is None, change
    elsewhere = base.machine.model_copy(update={"cpu": "another"})
    assert Estimates([r.model_copy(update={"machine": elsewhere}) for r in past]).seconds(run) is None
