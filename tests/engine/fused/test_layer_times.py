"""The times of a layer's kernels: the graphs that are measured, their order, and the differences. On a GPU, real ones."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from buzzer.engine.device import no_cuda

pytest.importorskip("triton")
from buzzer.engine.fused import __main__ as command_line
from buzzer.engine.fused import layer_times
from buzzer.engine.fused.lowering import MODES, Lowering, Program
from buzzer.engine.fused.weights import random
from buzzer.engine.kernels.tune import Tuned

SEVEN = ["qkv", "attention", "out", "out norm", "up", "down", "down norm"]
KERNELS = {
    "plain": SEVEN,
    "pdl": SEVEN,
    "early": SEVEN,
    "cuda": ["qkv", "attention", "out", "up", "down"],
    "cuda4": ["qkv", "attention", "out", "up", "down"],
    "multicast": ["qkv", "attention", "out", "up", "down"],
    "library": ["qkv", "attention", "out", "out norm", "up", "up epilogue", "down", "down norm"],
}


@dataclass
class Kernel:
    """Stands for a launch: it adds its time to `clock`."""

    name: str
    constant_bytes: int
    flops: int
    us: float
    clock: list[float]

    def __call__(self) -> None:
        self.clock.append(self.us)


def stand_ins(mode: str, clock: list[float]) -> Program:
    """Three layers of a mode, of kernels that take 1, 2, 3, ... microseconds."""
    choose: Any = lambda *shape: dataclasses.replace(Tuned().tile(*shape), library=mode == "library")
    weights = random(3, 128, 256, 2, "fp8", "meta", vocabulary=50)
    program = Lowering(weights, 128, 1, choose, mode).program("none", False)
    launches: Any = [
        Kernel(launch.name, launch.constant_bytes, 2 << 20, 1.0 + number, clock)
        for number, launch in enumerate(program.launches)
    ]
    return dataclasses.replace(program, launches=launches)


@pytest.mark.parametrize("mode", KERNELS)
def test_a_kernels_time_is_what_it_adds_to_the_graph_before_it(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the clock drifts, by as much as a kernel takes."""
    clock, measured, drift = list[float](), list[int](), 0.0

    def replays(run: Callable[[], None], count: int, cold: bool) -> list[float]:
        nonlocal drift
        assert cold
        clock.clear()
        run()
        measured.append(len(clock))
        drift += 5.0
        return [sum(clock) + drift + noise for noise in (-7.0, 0.0, 90.0)]

    monkeypatch.setattr(layer_times, "capture", lambda run: run)
    monkeypatch.setattr(layer_times, "replays", replays)
    program = stand_ins(mode, clock)
    *kernels, layer, whole = layer_times.marginal_times(program, "layer 1 ", 8)
    assert [x.kernel for x in kernels] == KERNELS[mode]
    first = next(i for i, launch in enumerate(program.launches) if launch.name.startswith("layer 1 "))
    assert [x.us for x in kernels] == [1.0 + first + i for i in range(len(kernels))]
    assert {x.spread_us for x in kernels} == {10.0}  # the drift, up or down
    assert (layer.kernel, layer.us) == ("layer", sum(x.us for x in kernels))
    assert whole.kernel == "program"
    assert whole.us > sum(launch.us for launch in program.launches)  # type: ignore[union-attr]
    lengths = [*range(first, first + len(kernels) + 1), len(program.launches)]
    assert measured == (lengths + lengths[::-1]) * (layer_times.ROUNDS // 2)


def test_the_least_time_is_that_of_the_bytes_and_of_the_products() -> None:
    """On an H100, 3.35e12 bytes and 1979e12 FLOPs per second in eight bits; of a layer, that of the sums."""
    launches: Any = [Kernel("a", 3_350_000, 0, 0.0, []), Kernel("b", 0, 5_937_000_000, 0.0, [])]
    rows = [[0.0, 2.0], [0.0, 3.0]]

    def of(launches: Any) -> layer_times.MarginalTime:
        return layer_times.marginal("x", rows, 0, 1, launches, 8)

    assert [of(launches[:1]).floor_us, of(launches[1:]).floor_us, of(launches).floor_us] == [1.0, 3.0, 3.0]
    assert of(launches).us == 2.5


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fused", *arguments])
    return command_line.main()


def test_the_persistent_kernel_has_no_parts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(MODES) == {*KERNELS, "persistent"}
    assert run(monkeypatch, "kernels", "--mode", "persistent") == 2
    out, error = capsys.readouterr()
    assert (out, error.splitlines()[0]) == (
        "",
        "error: mode persistent is one kernel, whose parts have no times",
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_there_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "kernels", "--mode", "cuda") == 2
    out, error = capsys.readouterr()
    assert (out, error.splitlines()[0]) == ("", f"error: {no_cuda()}")


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["plain", "pdl", "cuda"])
def test_a_gpus_kernels_have_times(device: str, mode: str) -> None:
    if device == "cpu":
        pytest.skip("it measures")
    *kernels, layer, whole = layer_times.layer_times((4, 1024, 4096, 16, "fp8"), 128, mode)
    assert [x.kernel for x in kernels] == KERNELS[mode]
    assert 0 < layer.us < whole.us
    assert sum(x.us for x in kernels) == pytest.approx(layer.us, rel=0.2)
