"""The commands of the GPU suite (docs/gpu.md) in dry form: each makes a plan, which on a machine without a GPU says what it lacks."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from buzzer.engine.device import cuda_problem
from buzzer.suite.cli import app
from buzzer.suite.gpu.steps import STEPS, Step

PLANNED = [
    step for step in STEPS if step.command[:2] == ("-m", "buzzer") and step.command[2] in ("run", "bench")
]


@pytest.mark.parametrize("step", PLANNED, ids=lambda step: step.name)
def test_a_step_makes_a_plan(step: Step, tmp_path: Path) -> None:
    places = {"records": str(tmp_path), "work": str(tmp_path)}
    arguments = [word.format(**places) for word in step.command[2:]]
    for name in ("recsys-large", "recsys-huge"):
        (tmp_path / name).mkdir()
    done = CliRunner().invoke(app, [*arguments, "--dry-run", "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert runs
    if cuda_problem() and step.command[2] == "run":
        on_gpu = [run for run in runs if run["device"] == "cuda" and not run["cluster"]]
        assert all(run["problem"] for run in on_gpu), step.name
