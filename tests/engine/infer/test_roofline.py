"""The roofline: the measured limits of this machine, and least times."""

from types import SimpleNamespace

import pytest
import torch

from buzzer.engine.infer import roofline
from buzzer.engine.infer.roofline import Roof


def test_the_least_time_is_the_larger_of_two() -> None:
    roof = Roof(bandwidth=100.0, peak={"fp32": 1000.0, "int8": 4000.0})
    assert roof.floor_s(500, 1000, "fp32") == 5.0  # bytes
    assert roof.floor_s(100, 8000, "fp32") == 8.0  # FLOPs
    assert roof.floor_s(100, 8000, "int8-dynamic") == 2.0
    assert roof.floor_s(100, 8000, "fp8") is None


def test_the_limits_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "STREAM_BYTES", 1 << 24)
    monkeypatch.setattr(roofline, "SIDES", {"cpu": 256})
    monkeypatch.setattr(roofline, "TRIED_S", {"cpu": 0.05})
    roof = roofline.measure(1, "cpu")
    assert 1e8 < roof.bandwidth < 1e13
    assert {"fp32", "bf16"} <= set(roof.peak)
    assert all(1e8 < peak < 1e15 for peak in roof.peak.values())


def test_the_fastest_call_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a simulated clock: calls of 0.4, 0.1 and 0.6 s, more than one second in total."""
    clock = iter([0.0, 0.4, 0.5, 0.6, 1.0, 1.6])
    monkeypatch.setattr(roofline, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert roofline.best(lambda: None, roofline.by_clock, 1.0) == pytest.approx(0.1)
    assert list(clock) == []


def test_a_slow_product_is_run_once() -> None:
    calls: list[int] = []
    roofline.best(lambda: calls.append(1), roofline.by_clock, 0.0)
    assert len(calls) == 1


@pytest.mark.parametrize(("small_s", "side"), [(1e-5, 1024), (1e-3, 256)])
def test_an_emulated_product_is_timed_on_smaller_matrices(
    monkeypatch: pytest.MonkeyPatch, small_s: float, side: int
) -> None:
    """A product of matrices with 16 times the side takes 4,096 times as long: 0.04 s, or 4.1 s."""
    monkeypatch.setattr(roofline, "by_clock", lambda run: small_s)
    assert roofline.side_for("cpu", lambda: None) == side
    assert roofline.side_for("cuda", lambda: None) == 8192


def test_events_time_the_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in whose clock advances by 2 ms per call and 7 ms per spin or wait."""
    queue: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0.0

        def record(self) -> None:
            queue.append("event")
            self.at = sum({"call": 2.0, "event": 0.0}.get(name, 7.0) for name in queue)

        def synchronize(self) -> None:
            queue.append("wait")

        def elapsed_time(self, end: "Event") -> float:
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: queue.append("spin"))
    assert roofline.best(lambda: queue.append("call"), roofline.by_events(), 0.003) == pytest.approx(0.002)
    assert queue == ["spin", "event", "call", "event", "wait"] * 2


@pytest.mark.gpu
def test_the_limits_of_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    roof = roofline.measure(1, "cuda")
    assert 1e11 < roof.bandwidth < 2e13
    assert {"fp32", "fp16", "bf16"} <= set(roof.peak)
    assert roof.peak["fp16"] > 2 * roof.peak["fp32"]
