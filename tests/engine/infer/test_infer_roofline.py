"""The roof: its figures are of this machine, and a floor is the larger of its two times."""

import pytest

from buzzer.engine.infer import roofline
from buzzer.engine.infer.roofline import Roof


def test_a_floor_is_the_larger_of_two_times() -> None:
    roof = Roof(bandwidth=100.0, peak={"fp32": 1000.0, "int8": 4000.0})
    assert roof.floor_s(500, 1000, "fp32") == 5.0  # bytes
    assert roof.floor_s(100, 8000, "fp32") == 8.0  # FLOPs
    assert roof.floor_s(100, 8000, "int8-dynamic") == 2.0
    assert roof.floor_s(100, 8000, "fp8") is None


def test_the_roof_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "STREAM_BYTES", 1 << 24)
    monkeypatch.setattr(roofline, "SIDES", {"cpu": 256})
    roof = roofline.measure(1, "cpu")
    assert 1e8 < roof.bandwidth < 1e13
    assert {"fp32", "bf16"} <= set(roof.peak)
    assert all(1e8 < peak < 1e15 for peak in roof.peak.values())


def test_the_best_try_counts() -> None:
    waits: list[int] = []
    assert roofline.best(lambda: None, lambda: waits.append(1)) < 0.1
    assert len(waits) == roofline.TRIES


def test_a_slow_product_is_not_tried_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "ENOUGH_S", 0.0)
    waits: list[int] = []
    roofline.best(lambda: None, lambda: waits.append(1))
    assert len(waits) == 1
