"""The RecSys 2021 pipeline as a whole translates to cuDF. Needs the gpu-plan extra, and no GPU."""

import importlib.util
from pathlib import Path

import pytest

from buzzer.datasets import recsys2021
from buzzer.engine.frames import gpu_plan
from buzzer.engine.frames.lazy import Lazy
from buzzer.models.recsys2021 import features, week

pytestmark = [
    pytest.mark.gpu_plan,
    pytest.mark.skipif(importlib.util.find_spec("cudf_polars") is None, reason="needs the gpu-plan extra"),
]


def test_recsys2021_translates_whole(tmp_path: Path) -> None:
    recsys2021.generate(tmp_path / "data", 0.00001, 0, lambda share, what: None)
    e, cpu = Lazy("gpu"), Lazy("cpu")
    t = features.base(e, features.read_part(e, tmp_path / "data" / "train" / "part-00000", True), True)
    assert gpu_plan.refusals(t) == []
    t = cpu.collect(t)  # as the task does between its phases: what was looked up is a table, no plan
    codes = features.fit_codes(e, t)
    coded = features.code(e, t, codes)
    assert gpu_plan.refusals(coded) == []
    coded = cpu.collect(coded)
    tables = features.fit_tables(e, coded) | {f"rows_{name}": x for name, x in week.count(e, coded).items()}
    assert [gpu_plan.refusals(table) for table in tables.values()] == [[]] * len(tables)
    tables = {name: cpu.collect(table) for name, table in tables.items()}
    means = dict.fromkeys(features.TARGETS, 0.1)
    for strategy in ("kfold", "leave-one-out"):
        assert gpu_plan.refusals(features.encode_own(e, coded, tables, means, strategy)) == []
    scored = week.encode(
        e, features.encode(e, coded, tables, means), week.fit_tables(e, coded), means, own=False
    )
    counts = {name: tables[f"rows_{name}"] for name in week.COUNTED}
    assert gpu_plan.refusals(week.look_up(e, scored, week.add_up(e, [counts, counts]))) == []
