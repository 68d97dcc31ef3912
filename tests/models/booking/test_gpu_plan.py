"""The Booking pipeline as a whole translates to cuDF. Needs the gpu-plan extra, and no GPU."""

import importlib.util
from pathlib import Path

import pytest

from buzzer.datasets import booking
from buzzer.datasets.contract import silent
from buzzer.engine.frames import gpu_plan
from buzzer.engine.frames.lazy import Lazy
from buzzer.models.booking import features
from tests.gpu_plans import Planned

pytestmark = [
    pytest.mark.gpu_plan,
    pytest.mark.skipif(importlib.util.find_spec("cudf_polars") is None, reason="needs the gpu-plan extra"),
]


def test_booking_translates_whole(tmp_path: Path) -> None:
    booking.generate(tmp_path / "data", 0.001, 0, silent)
    e = Planned()
    train, test = (
        features.read_stays(e, tmp_path / "data" / f"{part}_set.csv") for part in ("train", "test")
    )
    tables = features.fit_tables(e, train, test, 1)
    coded = features.code(e, train, tables)
    assert gpu_plan.refusals(coded) == []
    coded = Lazy("cpu").collect(
        coded
    )  # codes are numbered in one order, on one GPU; what follows is shared out
    for backwards in (False, True):
        stays = features.trip_features(e, coded, 5, backwards=backwards)
        transitions = features.fit_transitions(e, stays)
        last = e.filter(features.follow(e, stays, transitions), lambda c: c("position") == c("length") - 1)
        assert gpu_plan.refusals(last) == []
        assert [gpu_plan.fallback(plan) for plan in (*e.kept, last) if gpu_plan.fallback(plan)] == []
    for table in tables.values():
        assert gpu_plan.refusals(table) == []
