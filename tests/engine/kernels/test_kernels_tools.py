"""What stands round the kernels: shares of a persistent grid, barriers, stored choices, the command line."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
def lonely(count, gave_up, LOOKS: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program that waits for two."""
    arrive(count)
    wait_for_all(count, gave_up, 2, LOOKS)


@pytest.mark.parametrize("programs", [1, 2, 5, 30])
@pytest.mark.parametrize("split", [1, 2])
def test_shares_of_a_grid_make_the_whole(device: str, programs: int, split: int) -> None:
    """A GEMM and a norm dealt out over any number of programs: none does twice, none leaves out."""
    torch.manual_seed(0)
    m, n, k = 37, 40, 64
    a, w, bias = (torch.randn(*shape, device=device) for shape in ((m, k), (n, k), (n,)))
    out = torch.full((split, m, n), float("nan"), device=device)
    gemm_share[(programs,)](a, w, bias, out, m, N=n, K=k, TILE=(16, 16, 32, split, 2))
    want = a @ w.T + split * bias  # each share adds it here; the plan gives split GEMMs none
    torch.testing.assert_close(out.sum(0), want, rtol=1e-4, atol=1e-4)
    normed = torch.full((m, n), float("nan"), device=device)
    zero, one = torch.zeros(n, device=device), torch.ones(n, device=device)
    residual = torch.randn(m, n, device=device)
    norm_share[(programs,)](want, residual, zero, one, zero, normed, m, N=n, BLOCK=64)
    expected = torch.nn.functional.layer_norm(want + residual, (n,))
    torch.testing.assert_close(normed, expected, rtol=1e-4, atol=1e-4)


def test_probes_do_what_they_time(device: str) -> None:
    from buzzer.engine.kernels import probe

    x = torch.zeros(1, device=device)
    for _ in range(3):
        probe.empty(x, False)()
    assert x.item() == 3
    values, sums = torch.arange(9001, dtype=torch.int32, device=device), torch.zeros(3, dtype=torch.int32)
    sums = sums.to(device)
    probe.reader(values, sums, passes=2)()
    assert int(sums.sum()) == 2 * 9000 * 9001 // 2
    count, gave_up = (torch.zeros(1, dtype=torch.int32, device=device) for _ in range(2))
    probe.barrier(count, gave_up, programs=1)()
    assert (int(count), int(gave_up)) == (probe.BARRIERS, 0)


def test_a_barrier_gives_up_rather_than_hang(device: str) -> None:
    count, gave_up = (torch.zeros(1, dtype=torch.int32, device=device) for _ in range(2))
    lonely[(1,)](count, gave_up, LOOKS=5)
    assert (int(count), int(gave_up)) == (1, 1)


def test_stored_choices_come_back_and_a_broken_file_is_told(tmp_path: Path) -> None:
    from buzzer.engine.kernels.gemm import Tile
    from buzzer.engine.kernels.tune import Shape, Tuned

    shape = Shape(128, 1024, 4096, torch.int8, True)
    kept = Tuned("a gpu", {"triton": "3"}, {str(shape): Tile(64, 64, 128, 4)}, {"a program": "persistent"})
    kept.write(tmp_path / "new" / "gpu.json")
    read = Tuned.read(tmp_path / "new" / "gpu.json")
    assert read == kept
    assert read.tile(*dataclasses.astuple(shape)) == Tile(64, 64, 128, 4)
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

    for tile in (default_tile(m, n, k, dtype, splits), *tried(Shape(m, n, k, dtype, splits))):
        assert tile.rows < 2 * max(m, 16)
        assert tile.split == 1 or (splits and k >= 2 * tile.split * 128 // dtype.itemsize)
        assert all(x & (x - 1) == 0 for x in (tile.rows, tile.columns, tile.depth))
        assert tile.depth >= 16


@needs_no_gpu
def test_what_needs_a_gpu_says_so() -> None:
    from buzzer.engine.infer.fused_tune import tune_encoder
    from buzzer.engine.kernels.probe import probes

    for steps in (probes(), tune_encoder(1, 64, 128, 2, "fp16", 16)):
        with pytest.raises(UnsupportedError, match="no CUDA device"):
            next(iter(steps))


@needs_no_gpu
def test_the_command_line_plans_and_ends_in_one_message() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "buzzer.engine.kernels", *arguments]
        return subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)

    *kernels, whole = [json.loads(line) for line in call("plan").stdout.splitlines()]
    assert whole["kernels"] == len(kernels) == 24 * 7 + 1
    # BERT-Large: 301,989,888 weights of a byte, and 78.9 GFLOP for 128 tokens (Devlin et al.'s shape).
    assert 301_989_888 < whole["constant_bytes"] < 306_000_000
    assert whole["flops"] == pytest.approx(78.9e9, rel=0.005)
    assert whole["floor_us"] == pytest.approx(91, abs=1)
    told = call("probe")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.splitlines()[0] == "error: no CUDA device here"
    assert "hint:" in told.stderr
