"""The kernels of gemm.cu against float64: compiled for the CPU, and on a GPU. And under ThreadSanitizer on the CPU."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from buzzer.engine.kernels.cuda import driver
from buzzer.engine.kernels.cuda.launch import CudaLaunch, Norms, TiledWeights, gelu, project, residual
from buzzer.engine.kernels.cuda.layout import COLUMNS, ROWS, Cut, tiled

host = pytest.importorskip("tests.engine.kernels.cuda.host", reason="run from the root of the repository")
EPILOGUES = ("project", "gelu", "residual")
EPS = 1e-3
# FP8 tensor cores add with about 14 bits (DeepSeek-AI, arXiv 2412.19437, section 3.3.2).
TOLERANCE = {"cpu": 1e-6, "cuda": 5e-3}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = host.compile_host(tmp_path_factory.mktemp("host") / "libhost.so", "-O2", "-fPIC", "-shared")
    return path


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param == "cpu":
        machine = host.Host(request.getfixturevalue("library"))
        monkeypatch.setattr(driver, "active", lambda: machine)
    yield request.param


@dataclass
class Case:
    """A launch with random operands, and its results in float64. Outputs are filled with NaN before."""

    launch: CudaLaunch
    out: Tensor | None
    eight: Tensor | None
    out_norms: Tensor | None
    want: Tensor  # [ROWS, columns], before the conversion to eight bits
    factor: Tensor

    def run(self) -> None:
        for tensor in (self.out, self.eight, self.out_norms):
            if tensor is not None:
                tensor.view(torch.uint8).fill_(0x7F)
        self.launch()


def case(epilogue: str, columns: int, depth: int, cut: Cut, device: str, tiles: int = 3) -> Case:
    """Rows that are normed have `tiles` tiles of 64 values; for `residual`, as many as there are columns."""
    torch.manual_seed(0)

    def normal(*shape: int, spread: float = 1.0) -> Tensor:
        return torch.randn(*shape, device=device) * spread

    def fp8(*shape: int, spread: float) -> Tensor:
        return normal(*shape, spread=spread).clamp(-448, 448).to(torch.float8_e4m3fn)

    activations, weight = fp8(ROWS, depth, spread=30.0), fp8(columns, depth, spread=90.0)
    vectors = normal(6, columns)
    vectors[0] = vectors[0].abs() / (30.0 * 90.0 * depth**0.5)
    vectors[3] = vectors[3].abs() * 60 + 10
    normed = normal(ROWS, columns if epilogue == "residual" else tiles * COLUMNS, spread=2.0).half() + 0.7
    tile_means = normed.double().unflatten(1, (-1, COLUMNS)).mean(2)
    squares = normed.double().unflatten(1, (-1, COLUMNS)).sub(tile_means[..., None]).square().sum(2)
    norms = Norms(torch.stack([tile_means, squares], 2).transpose(0, 1).float().contiguous(), EPS)

    scale, of_mean, bias, factor, gamma, beta = vectors.double()
    sums = activations.double() @ weight.double().T * scale
    mean = normed.double().mean(1, keepdim=True)
    inverse = 1 / (normed.double().var(1, correction=0, keepdim=True) + EPS).sqrt()
    out = torch.empty(ROWS, columns, dtype=torch.float16, device=device)
    eight = torch.empty(ROWS, columns, dtype=torch.float8_e4m3fn, device=device)
    out_norms = torch.empty(columns // COLUMNS, ROWS, 2, device=device)
    weights = TiledWeights(tiled(weight), vectors)
    if epilogue == "residual":
        launch = residual("x", activations, weights, cut, normed, norms, out, eight, out_norms)
        want = sums + bias + (normed.double() - mean) * inverse * gamma + beta
        return Case(launch, out, eight, out_norms, want, factor)
    want = (sums - mean * of_mean) * inverse + bias
    if epilogue == "project":
        return Case(project("x", activations, weights, cut, norms, out), out, None, None, want, factor)
    return Case(gelu("x", activations, weights, cut, norms, eight), None, eight, None, F.gelu(want), factor)


def steps_apart(got: Tensor, want: Tensor) -> Tensor:
    """Distances of E4M3 values in steps of the format. Values of one sign have the order of their bits."""

    def order(x: Tensor) -> Tensor:
        bits = x.view(torch.uint8).int()
        return torch.where(bits < 128, bits, 128 - bits)

    return (order(got) - order(want)).abs()


def check(case: Case, tolerance: float) -> None:
    if case.out is not None:
        error = (case.out.double() - case.want).norm() / case.want.norm()
        assert error < tolerance + 4e-4  # half a step of float16
    if case.eight is not None:
        exact = case.want * case.factor
        want = exact.clamp(-448, 448).to(torch.float8_e4m3fn)
        apart = steps_apart(case.eight, want)
        near_zero = exact.abs() < 448 * tolerance  # where a step is smaller than the error of the sums
        assert int(apart[~near_zero].max()) <= 1  # a value between two steps may be rounded to either
        assert float((apart > 0).double().mean()) < 20 * tolerance + 1e-3
    if case.out_norms is not None:
        parts = case.want.unflatten(1, (-1, COLUMNS))
        mean = parts.mean(2)
        torch.testing.assert_close(case.out_norms[..., 0].double(), mean.T, rtol=0, atol=20 * tolerance)
        squares = (parts - mean[..., None]).square().sum(2)
        torch.testing.assert_close(case.out_norms[..., 1].double(), squares.T, rtol=20 * tolerance, atol=0)


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("split", [1, 2, 4, 8])
@pytest.mark.parametrize("share", [1, 2])
def test_kernels_agree_with_float64(device: str, epilogue: str, split: int, share: int) -> None:
    if split * share > 8:
        pytest.skip("a cluster has at most eight blocks")
    for chunks in (1, 3) if split == 2 else (2,):
        x = case(epilogue, 128 * share, split * chunks * 128, Cut(split, share), device)
        x.run()
        check(x, TOLERANCE[device])


@pytest.mark.parametrize(("tiles", "share"), [(1, 4), (16, 4), (12, 1)])
def test_norms_of_any_number_of_tiles(device: str, tiles: int, share: int) -> None:
    x = case("project", 64 * share, 256, Cut(2, share), device, tiles)
    x.run()
    check(x, TOLERANCE[device])


@pytest.mark.gpu
@pytest.mark.parametrize("multicast", [False, True])
@pytest.mark.parametrize(
    ("epilogue", "columns", "depth"),
    [("project", 3072, 1024), ("residual", 1024, 1024), ("gelu", 4096, 1024), ("residual", 1024, 4096)],
)
def test_products_of_bert_large_agree_with_float64(
    epilogue: str, columns: int, depth: int, multicast: bool
) -> None:
    from buzzer.engine.kernels.cuda.layout import cut_of

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = case(epilogue, columns, depth, cut_of(columns, depth, multicast), "cuda", tiles=16)
    for _ in range(20):  # a race is seldom
        x.run()
        check(x, TOLERANCE["cuda"])


def test_results_do_not_depend_on_the_order_of_events(device: str) -> None:
    """Shares are added in the same order, whatever arrives first."""
    x = case("residual", 64, 1024, Cut(8), device)
    outputs = []
    for _ in range(3):
        x.run()
        assert x.out is not None
        outputs.append(x.out.clone())
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def sanitised(path: Path, source: str) -> subprocess.CompletedProcess[str]:
    """Run all kernels of a source under ThreadSanitizer."""
    (path / "gemm.cu").write_text(source)
    options = ("-O1", "-g", "-fsanitize=thread", "-DPROGRAM", "-UGEMM", f'-DGEMM="{path / "gemm.cu"}"')
    program = host.compile_host(path / "program", *options)
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(
        [program], check=False, capture_output=True, text=True, timeout=300, env=environment
    )


@pytest.mark.slow
def test_kernels_have_no_data_race(tmp_path: Path) -> None:
    done = sanitised(tmp_path, (host.FOLDER / "gemm.cu").read_text())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("share") == 21


# Each is a line of gemm.cu without which a kernel would be wrong.
BROKEN = {
    "no wait for copies": "        barrier_wait(shared.barriers + chunk);\n",
    "no barrier after the products": "    sync_block();  // all products of the block have read shared memory\n",
    "no wait for the others' sums": "    cluster_arrive();\n    cluster_wait();\n\n    PerLane<float4[GROUPS]> values;",
    "no barrier before the end": "    cluster_arrive_relaxed();\n    cluster_wait();\n",
    "no wait for the products": "    products_wait(sums);\n",
    "no wait for the previous kernel": "    wait_for_previous();\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BROKEN)
def test_a_missing_barrier_is_noticed(tmp_path: Path, what: str) -> None:
    """By ThreadSanitizer, or by a check of the stand-in."""
    source, line = (host.FOLDER / "gemm.cu").read_text(), BROKEN[what]
    assert source.count(line) == 1
    kept = line.splitlines()[-1] if not line.endswith("\n") else ""
    done = sanitised(tmp_path, source.replace(line, kept))
    assert done.returncode != 0
    assert "data race" in done.stderr or "host: " in done.stderr
