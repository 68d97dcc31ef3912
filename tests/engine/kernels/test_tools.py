"""Tools around the kernels: shares of a persistent grid, barriers, stored choices, the command line."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buzzer.engine.device import no_cuda
from buzzer.errors import DataError, UnsupportedError

pytest.importorskip("triton")
from buzzer.engine.kernels.jit import arrive, kernel, tl, wait_for_all
from buzzer.engine.kernels.persistent import share_of_gemm, share_of_norm

ROOT = Path(__file__).parents[3]
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")


@kernel
def gemm_share(a, w, bias, out, M, N: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    share_of_gemm(a, w, None, bias, None, out, 0, M, N, K, False, True, "none", 0, TILE)


@kernel
def norm_share(x, y, zero, gamma, beta, out, M, N: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    share_of_norm(x, zero, y, gamma, beta, None, out, None, 0, 1e-5, M, N, BLOCK, 1, 0)


@kernel
def incomplete(count, gave_up, BARRIERS: tl.constexpr, LOOKS: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program that waits for two."""
    for number in range(BARRIERS):
        arrive(count)
        wait_for_all(count, gave_up, 2 * (number + 1), LOOKS)


@pytest.mark.parametrize("programs", [1, 2, 5, 30])
@pytest.mark.parametrize("split", [1, 2])
def test_the_shares_of_a_grid_make_the_whole(device: str, programs: int, split: int) -> None:
    """A GEMM and a norm on any number of programs: every tile and row is computed exactly once."""
    torch.manual_seed(0)
    m, n, k = 37, 40, 64
    a, w, bias = (torch.randn(*shape, device=device) for shape in ((m, k), (n, k), (n,)))
    out = torch.full((split, m, n), float("nan"), device=device)
    gemm_share[(programs,)](a, w, bias, out, m, N=n, K=k, TILE=(16, 16, 32, split, 2))
    want = a @ w.T + split * bias  # here each share adds the bias; a lowered plan gives split GEMMs none
    torch.testing.assert_close(out.sum(0), want, rtol=1e-4, atol=1e-4)
    normed = torch.full((m, n), float("nan"), device=device)
    zero, one = torch.zeros(n, device=device), torch.ones(n, device=device)
    residual = torch.randn(m, n, device=device)
    norm_share[(programs,)](want, residual, zero, one, zero, normed, m, N=n, BLOCK=64)
    expected = torch.nn.functional.layer_norm(want + residual, (n,))
    torch.testing.assert_close(normed, expected, rtol=1e-4, atol=1e-4)


def test_probes_compute_what_they_time(device: str) -> None:
    from buzzer.engine.kernels import probe

    x = torch.zeros(1, device=device)
    for _ in range(3):
        probe.empty(x, False)()
    assert x.item() == 3
    values = torch.arange(2 * 3 * probe.BLOCK, dtype=torch.int32, device=device) % 1000
    sums = torch.zeros(3, dtype=torch.int32, device=device)
    probe.reader(values, sums, passes=2)()
    assert int(sums.sum()) == 2 * int(values.sum())
    with pytest.raises(ValueError, match="multiple of 3 blocks"):
        probe.reader(values[1:], sums, passes=1)
    count, gave_up = (torch.zeros(1, dtype=torch.int32, device=device) for _ in range(2))
    probe.barrier(count, gave_up, programs=1)()
    assert (int(count), int(gave_up)) == (probe.BARRIERS, 0)


def test_a_barrier_gives_up_and_later_ones_do_not_wait(device: str) -> None:
    count, gave_up = (torch.zeros(1, dtype=torch.int32, device=device) for _ in range(2))
    incomplete[(1,)](count, gave_up, BARRIERS=3, LOOKS=5)
    assert int(gave_up) == 1
    assert int(count) == (1 << 30) + 2


def test_shared_memory_is_requested_once_per_function(monkeypatch: pytest.MonkeyPatch) -> None:
    from buzzer.engine.kernels import jit

    class Driver:
        requests: ClassVar[list[tuple[int, int, int]]] = []

        def cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> int:
            self.requests.append((function.value, attribute, value))
            return 0 if function.value == 1234 else 1

    monkeypatch.setattr(jit, "cuda_driver", Driver)
    jit.prefer_shared_memory(None)  # no device, so no function was loaded
    for _ in range(2):
        jit.prefer_shared_memory(1234)
    assert Driver.requests == [(1234, 9, 100)]
    with pytest.raises(RuntimeError, match="carve-out"):
        jit.prefer_shared_memory(5678)


def emulated(a: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """a @ w.T as Hopper's FP8 tensor cores compute it: 32 products and the sum are added, truncated to 14 bits of the largest."""
    total = torch.zeros(len(a), len(w), dtype=torch.float64)
    for at in range(0, a.shape[1], 32):
        products = a[:, None, at : at + 32].double() * w[None, :, at : at + 32].double()
        terms = torch.cat([total[None], products.permute(2, 0, 1)])
        step = torch.exp2(torch.floor(torch.log2(terms.abs().amax(0).clamp(min=1e-30))) - 13)
        total = (terms / step).trunc().sum(0) * step
    return total


@pytest.mark.parametrize("k", [1024, 4096])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.int8])
def test_the_tuner_accepts_rounded_products_and_refuses_incomplete_ones(dtype: torch.dtype, k: int) -> None:
    from buzzer.engine.kernels.tune import accepted, random

    torch.manual_seed(0)
    a, w = (random(rows, k, dtype, "cpu") for rows in (16, 48))
    want = a.double() @ w.double().T / 1024
    for kind in (torch.float16, torch.float32):
        assert accepted(want.to(kind), want, dtype)
    if dtype == torch.float8_e4m3fn:
        assert accepted(emulated(a, w) / 1024, want, dtype)
    step = 128 // dtype.itemsize
    short = a[:, :-step].double() @ w[:, :-step].double().T / 1024
    assert not accepted(short.half(), want, dtype)
    assert not accepted(torch.full_like(want, float("nan")), want, dtype)


@pytest.fixture
def bench(device: str) -> Any:
    from buzzer.engine.kernels.tune import Bench, Shape

    return Bench(Shape(32, 64, 256, torch.int8, True), device)


def done() -> Any:
    future: Any = Future()
    future.set_result(None)
    return future


def test_the_fastest_correct_tile_is_chosen(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile that computes nothing, one that skips a step of K, and one that needs too much shared memory are refused."""
    from buzzer.engine.kernels import tune
    from buzzer.engine.kernels.gemm import Tile
    from buzzer.engine.kernels.jit import triton

    idle, short, greedy = Tile(16, 16, 64), Tile(16, 32, 32), Tile(32, 64, 64)
    slow, fast = Tile(16, 32, 64), Tile(32, 32, 64, split=2)
    times = {idle: 1.0, short: 2.0, greedy: 3.0, fast: 4.0, slow: 5.0}
    real_launches = bench.launches
    current: list[Tile] = []

    def launches(tile: Tile) -> Any:
        current[:] = [tile]
        return real_launches(tile)

    def microseconds(launches: Any, count: int) -> float:
        (tile,) = current
        if tile == greedy:
            raise triton.runtime.errors.OutOfResources(1 << 20, 1 << 17, "shared memory")
        for each in launches if tile != idle else []:
            each()
        if tile == short:
            bench.parts -= (
                bench.a[:, :32].double() @ bench.weights[0].weight[:, :32].double().T / 256
            ).half()
        return times[tile]

    monkeypatch.setattr(bench, "launches", launches)
    monkeypatch.setattr(tune, "microseconds", microseconds)
    tiles = [(tile, done()) for tile in times]
    choice = tune.measure(bench, tiles, time.monotonic() + 600)
    assert (choice.tile, choice.measured, choice.refused) == (fast, 4, 3)
    assert choice.facts().us == round(4.0 / bench.copies, 2)
    # Without time left, unfinished compilations are not waited for.
    choice = tune.measure(bench, [(slow, done()), (fast, Future())], time.monotonic())
    assert (choice.tile, choice.measured) == (slow, 1)
    choice = tune.measure(bench, [(fast, Future())], time.monotonic())
    facts = choice.facts().as_json()
    assert facts["tile"] is None
    json.loads(json.dumps(facts), parse_constant=pytest.fail)


@pytest.mark.parametrize("splits", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8])
def test_a_library_is_chosen_if_it_is_faster_and_correct(
    device: str, dtype: torch.dtype, splits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from buzzer.engine.kernels import library, tune
    from buzzer.engine.kernels.gemm import Tile

    if device == "cuda":
        pytest.skip("the tuner measures it there")
    bench = tune.Bench(tune.Shape(32, 64, 256, dtype, splits, gelu=not splits), device)
    time_us = 4.0

    def microseconds(launches: Any, count: int) -> float:
        for each in launches:
            each()
        return time_us

    def chosen() -> tune.TuningResult:
        choice = tune.TuningResult(bench.shape, Tile(32, 32, 64), 5.0)
        tune.measure_library(bench, choice)
        assert choice.tile
        return choice

    monkeypatch.setattr(tune, "microseconds", microseconds)
    assert chosen().tile == Tile(32, 32, 64, library=True)
    if splits:  # the norm reads the library's sums
        want = torch.nn.functional.layer_norm(bench.want, (64,), eps=1e-12)
        assert float((bench.normed.double() - want).norm() / want.norm()) < (
            4e-3 if dtype == torch.bfloat16 else 1e-3
        )
    time_us = 6.0
    assert (chosen().tile, chosen().facts().library_us) == (Tile(32, 32, 64), 6.0)
    time_us, run = 4.0, library.LibraryLaunch.__call__
    monkeypatch.setattr(library.LibraryLaunch, "__call__", lambda self: (run(self), self.out.mul_(2)))
    assert (chosen().tile, chosen().library_refused) == (Tile(32, 32, 64), "its result is wrong")

    def refuses(self: Any) -> None:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED\nmore")

    monkeypatch.setattr(library.LibraryLaunch, "__call__", refuses)
    assert chosen().library_refused == "RuntimeError: CUBLAS_STATUS_NOT_SUPPORTED"
    assert chosen().facts().library_us is None


AHEAD = r"""
import json, os, sys
from pathlib import Path
import torch
from buzzer.engine.kernels.ahead import Ahead
from buzzer.engine.kernels.gemm import Tile
from buzzer.engine.kernels.jit import triton
from buzzer.engine.kernels.offline import SHARED, Compiler
from buzzer.engine.kernels.tune import Shape, launches_of

if __name__ == "__main__":
    cached = lambda: len(list(Path(os.environ["TRITON_CACHE_DIR"]).iterdir()))
    given = Shape(128, 256, 256, torch.int8, True), Tile(64, 32, 128, 2)
    with Ahead(90, SHARED) as ahead:
        first, greedy = ahead.start(launches_of, *given), ahead.start(
            launches_of, given[0], Tile(128, 256, 128, stages=6))
        first.result()
        refused = type(greedy.exception()).__name__
    before = cached()
    with Compiler(90):
        codes = [launch() for launch in launches_of(*given)]
    print(json.dumps(dict(before=before, after=cached(), refused=refused, kernels=[x.name for x in codes])))
"""


@pytest.mark.slow
def test_a_launch_uses_what_was_compiled_ahead(
    compiles: Callable[[str], list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Triton's own compiler and cache, in other processes, without a device."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    (facts,) = compiles(AHEAD)
    assert facts["before"] == facts["after"] >= 2
    assert facts["refused"] == "OutOfResources"
    assert facts["kernels"] == ["gemm", "add_norm"]


def test_stored_choices_round_trip_and_broken_files_are_refused(tmp_path: Path) -> None:
    from buzzer.engine.kernels.gemm import Tile
    from buzzer.engine.kernels.tune import Shape, Tuned

    shape = Shape(128, 1024, 4096, torch.int8, True)
    kept = Tuned("a gpu", {"triton": "3"}, {str(shape): Tile(64, 64, 128, 4)}, {"a program": "persistent"})
    kept.write(tmp_path / "new" / "gpu.json")
    read = Tuned.read(tmp_path / "new" / "gpu.json")
    assert read == kept
    assert read.tile(128, 1024, 4096, torch.int8, True) == Tile(64, 64, 128, 4)
    assert read.mode("a program") == "persistent"
    assert read.mode("another") == "plain"
    for text in (
        "{",
        "[]",
        '{"tiles": {}}',
        '{"gpu": "", "versions": {}, "modes": {}, "tiles": {"a": {"x": 1}}}',
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match=r"bad\.json"):
            Tuned.read(tmp_path / "bad.json")


@settings(max_examples=200)
@given(
    m=st.integers(1, 20000),
    n=st.integers(1, 5000),
    k=st.integers(1, 5000),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.int8]),
    splits=st.booleans(),
)
def test_tiles_suit_their_shape(m: int, n: int, k: int, dtype: torch.dtype, splits: bool) -> None:
    from buzzer.engine.kernels.gemm import default_tile
    from buzzer.engine.kernels.tune import Shape, tried

    tiles = tried(Shape(m, n, k, dtype, splits), 160 << 10)
    assert 1 <= len(set(tiles)) == len(tiles) <= 12
    assert all(tile.shared(dtype.itemsize) <= 160 << 10 for tile in tiles)
    for tile in (default_tile(m, n, k, dtype, splits), *tiles):
        assert tile.rows < 2 * max(m, 16)
        assert tile.split == 1 or (splits and k >= 2 * tile.split * 128 // dtype.itemsize)
        assert all(x & (x - 1) == 0 for x in (tile.rows, tile.columns, tile.depth))
        assert tile.depth >= 16


@needs_no_gpu
def test_measurements_need_a_gpu() -> None:
    from buzzer.engine.fused.tune import tune_encoder
    from buzzer.engine.kernels.probe import probes

    for steps in (probes(), tune_encoder((1, 64, 128, 2, "fp16"), 16, 60.0)):
        with pytest.raises(UnsupportedError, match="no CUDA device"):
            next(iter(steps))


@needs_no_gpu
def test_the_command_line_plans_and_reports_a_missing_gpu() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "buzzer.engine.fused", *arguments]
        return subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)

    *kernels, whole = [json.loads(line) for line in call("plan").stdout.splitlines()]
    assert whole["kernels"] == len(kernels) == 24 * 7 + 1
    # BERT-Large: 301,989,888 weights of a byte, and 78.9 GFLOP for 128 tokens (Devlin et al.'s shape).
    assert 301_989_888 < whole["constant_bytes"] < 306_000_000
    assert whole["flops"] == pytest.approx(78.9e9, rel=0.005)
    assert whole["floor_us"] == pytest.approx(91, abs=1)
    failed = call("probe")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.splitlines()[0] == f"error: {no_cuda()}"
    assert "hint:" in failed.stderr
