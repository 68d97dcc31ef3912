"""The plans of `open-bandit` translate to cuDF as a whole. Needs the gpu-plan extra, and no GPU."""

import importlib.util
from pathlib import Path

import pytest

from buzzer.datasets import open_bandit
from buzzer.datasets.contract import silent
from buzzer.engine.frames import gpu_plan
from buzzer.engine.frames.lazy import Lazy
from buzzer.models.open_bandit import task
from tests.gpu_plans import Planned

pytestmark = [
    pytest.mark.gpu_plan,
    pytest.mark.skipif(importlib.util.find_spec("cudf_polars") is None, reason="needs the gpu-plan extra"),
]


def test_open_bandit_translates_whole(tmp_path: Path) -> None:
    open_bandit.generate(tmp_path / "data", 0.02, 0, silent)
    e, cpu = Planned(), Lazy("cpu")
    train, test = (task.base(e, task.read(e, tmp_path / "data", part)) for part in ("train", "test"))
    assert gpu_plan.refusals(train) == gpu_plan.refusals(test) == []
    train, test = cpu.collect(train), cpu.collect(test)  # as the task does
    rates = dict(task.rates_of(e, train))
    assert [gpu_plan.refusals(plan) for plan in rates.values()] == [[]] * len(rates)
    tables, priors = {name: cpu.collect(plan) for name, plan in rates.items()}, {task.CLICK: 0.005}
    for plan in (
        task.encode_own(cpu, train, tables, priors, 1000.0),
        task.encode(cpu, test, tables, priors, 1000.0),
    ):
        assert gpu_plan.refusals(plan) == [] and gpu_plan.fallback(plan) == ""
        assert set(task.NUMBERS) <= set(cpu.columns(plan))
