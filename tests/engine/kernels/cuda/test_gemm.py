"""The kernels of gemm.cu against float64: compiled for the CPU, and on a GPU. And under ThreadSanitizer on the CPU."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from buzzer.engine.kernels.cuda import driver
from buzzer.engine.kernels.cuda.launch import (
    STAMPS,
    CudaLaunch,
    Norms,
    TiledWeights,
    gelu,
    project,
    residual,
)
from buzzer.engine.kernels.cuda.layout import COLUMNS, KINDS, ROWS, Cut, tiled

host = pytest.importorskip("tests.engine.kernels.cuda.host", reason="run from the root of the repository")
EPILOGUES = ("project", "gelu", "residual")
EPS = 1e-3
ZERO = -30  # the zero point of outputs in INT8
FP8, INT8, FP16 = torch.float8_e4m3fn, torch.int8, torch.float16
# FP8 tensor cores add with about 14 bits (DeepSeek-AI, arXiv 2412.19437, section 3.3.2).
TOLERANCE = {"cpu": 1e-6, "cuda": 5e-3}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param == "cpu":
        machine = host.Host(request.getfixturevalue("host_library"))
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


def case(
    epilogue: str, columns: int, depth: int, cut: Cut, device: str, tiles: int = 3, dtype: torch.dtype = FP8
) -> Case:
    """Rows that are normed have `tiles` tiles of 64 values; for `residual`, as many as there are columns."""
    torch.manual_seed(0)

    def normal(*shape: int, spread: float = 1.0) -> Tensor:
        return torch.randn(*shape, device=device) * spread

    def operand(*shape: int, spread: float) -> Tensor:
        x = normal(*shape, spread=spread)
        return x.round().clamp(-128, 127).to(dtype) if dtype == INT8 else x.clamp(-448, 448).to(dtype)

    activations, weight = operand(ROWS, depth, spread=30.0), operand(columns, depth, spread=90.0)
    vectors = normal(6, columns)
    vectors[0] = vectors[0].abs() / (30.0 * 90.0 * depth**0.5)
    vectors[3] = vectors[3].abs() * (20 if dtype == INT8 else 60) + 10
    normed = normal(ROWS, columns if epilogue == "residual" else tiles * COLUMNS, spread=2.0).half() + 0.7
    tile_means = normed.double().unflatten(1, (-1, COLUMNS)).mean(2)
    squares = normed.double().unflatten(1, (-1, COLUMNS)).sub(tile_means[..., None]).square().sum(2)
    norms = Norms(torch.stack([tile_means, squares], 2).transpose(0, 1).float().contiguous(), EPS)

    scale, of_mean, bias, factor, gamma, beta = vectors.double()
    sums = activations.double() @ weight.double().T * scale
    mean = normed.double().mean(1, keepdim=True)
    inverse = 1 / (normed.double().var(1, correction=0, keepdim=True) + EPS).sqrt()
    out = torch.empty(ROWS, columns, dtype=torch.float16, device=device)
    eight = torch.empty(ROWS, columns, dtype=INT8 if dtype == INT8 else FP8, device=device)
    out_norms = torch.empty(columns // COLUMNS, ROWS, 2, device=device)
    weights = TiledWeights(tiled(weight), vectors)
    if epilogue == "residual":
        second, third = eight if dtype == FP8 else None, None if dtype == INT8 else out_norms
        launch = residual("x", activations, weights, cut, normed, norms, out, second, third)
        want = sums + bias + (normed.double() - mean) * inverse * gamma + beta
        return Case(launch, out, second, third, want, factor)
    want = (sums - mean * of_mean) * inverse + bias
    if epilogue == "project":
        return Case(project("x", activations, weights, cut, norms, out), out, None, None, want, factor)
    if dtype == FP16:
        return Case(gelu("x", activations, weights, cut, norms, out), out, None, None, F.gelu(want), factor)
    launch = gelu("x", activations, weights, cut, norms, eight, zero=ZERO if dtype == INT8 else 0)
    return Case(launch, None, eight, None, F.gelu(want), factor)


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
    if case.eight is not None and case.eight.dtype == INT8:
        exact = (case.want * case.factor + ZERO).clamp(-128, 127)
        assert float((case.eight.double() - exact).abs().max()) < 0.5 + 448 * tolerance
        assert len(case.eight.unique()) > 100
    elif case.eight is not None:
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


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize(
    ("dtype", "split", "share"), [(INT8, 1, 1), (INT8, 2, 2), (INT8, 8, 1), (FP16, 2, 2), (FP16, 8, 1)]
)
def test_kernels_in_int8_and_fp16_agree_with_float64(
    device: str, dtype: torch.dtype, split: int, share: int, epilogue: str
) -> None:
    x = case(epilogue, 64 * share, split * 2 * 128 // dtype.itemsize, Cut(split, share), device, dtype=dtype)
    x.run()
    check(x, 2e-6 if dtype == FP16 else 1e-6)


@pytest.mark.parametrize(("epilogue", "depth", "split"), [("gelu", 1024, 2), ("residual", 4096, 8)])
def test_tolerances_hold_for_the_sums_of_fp8_tensor_cores(
    device: str, epilogue: str, depth: int, split: int
) -> None:
    """With the sums of 14 bits that a GPU's tensor cores have, which the stand-in emulates, and BERT-Large's depths."""
    if device == "cuda":
        pytest.skip("a GPU has them")
    x = case(epilogue, 64, depth, Cut(split), device)
    machine = driver.active()
    machine.sum_bits(14)  # type: ignore[attr-defined]
    try:
        x.run()
    finally:
        machine.sum_bits(24)  # type: ignore[attr-defined]
    check(x, TOLERANCE["cuda"])
    with pytest.raises(AssertionError):
        check(x, TOLERANCE["cpu"])


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
@pytest.mark.parametrize("dtype", [FP8, INT8, FP16])
def test_products_of_bert_large_agree_with_float64(
    dtype: torch.dtype, epilogue: str, columns: int, depth: int, multicast: bool
) -> None:
    from buzzer.engine.kernels.cuda.layout import cut_of

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = case(epilogue, columns, depth, cut_of(columns, depth, multicast, dtype), "cuda", 16, dtype)
    for _ in range(20):  # a race is seldom
        x.run()
        check(x, TOLERANCE["cuda"] if dtype == FP8 else 2e-5)


@pytest.mark.parametrize(("epilogue", "split", "share"), [("project", 2, 2), ("residual", 8, 1)])
def test_blocks_take_their_times_in_the_order_of_their_stages(
    device: str, epilogue: str, split: int, share: int
) -> None:
    x = case(epilogue, 64 * share, split * 128, Cut(split, share), device)
    stamps = torch.zeros(split * share, STAMPS + 1, 2, dtype=torch.int32, device=device)
    x.launch = dataclasses.replace(x.launch, stamps=stamps)
    x.run()
    check(x, TOLERANCE[device])
    cycles, times = stamps[:, :STAMPS].diff(dim=1).unbind(2)  # a difference of integers that wrap is right
    assert (cycles > 0).all()
    assert (times >= 0).all()
    assert (times.sum(1) < 1_000_000_000).all()
    if device == "cpu":  # the stand-in names a block's multiprocessor by the block
        assert stamps[:, STAMPS, 0].tolist() == [1000 + block for block in range(split * share)]


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


def sanitised(folder: Path, source: str, splits: Mapping[torch.dtype, Sequence[int]]) -> Path:
    """The program of host.cpp with a source's kernels of these types and shares of the depth, under ThreadSanitizer."""
    chosen = [(KINDS[dtype].name, n) for dtype, numbers in splits.items() for n in numbers]
    kernels = " ".join(f"DO({kind}, {kind.upper()}, {n})" for kind, n in chosen)
    source, count = re.subn(
        r"#define FOR_EACH_SPLIT\(DO\).*?\n\n",
        f"#define FOR_EACH_SPLIT(DO) {kernels}\n\n",
        source,
        flags=re.DOTALL,
    )
    assert count == 1
    (folder / "gemm.cu").write_text(source)
    options = ("-O1", "-g", "-fsanitize=thread", "-DPROGRAM", "-UGEMM", f'-DGEMM="{folder / "gemm.cu"}"')
    return Path(host.compile_host(folder / "program", *options))


def run_by(program: Path, x: Case, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the program run a case. Returns how it ended."""
    read = (x.launch.activations, x.launch.weights.values, x.launch.weights.vectors, x.launch.norms.values)
    machine = host.Recorded(program, (*read, x.launch.residual, x.out, x.eight, x.out_norms))
    monkeypatch.setattr(driver, "active", lambda: machine)
    x.run()
    return machine.done


SANITISED = {FP8: (1, 2, 4, 8), INT8: (2,), FP16: (2,)}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = (host.FOLDER / "gemm.cu").read_text()
    return sanitised(tmp_path_factory.mktemp("sanitised"), source, SANITISED)


@pytest.mark.slow
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize(
    ("dtype", "split"), [(dtype, n) for dtype, splits in SANITISED.items() for n in splits]
)
@pytest.mark.parametrize("share", [1, 2])
def test_kernels_have_no_data_race_and_agree_with_float64(
    program: Path, dtype: torch.dtype, split: int, share: int, epilogue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if split * share > 8:
        pytest.skip("a cluster has at most eight blocks")
    x = case(epilogue, 128 * share, split * 2 * 128 // dtype.itemsize, Cut(split, share), "cpu", dtype=dtype)
    done = run_by(program, x, monkeypatch)
    assert done.returncode == 0, done.stderr
    check(x, 2e-6 if dtype == FP16 else 1e-6)


# Each is a line of gemm.cu without which a kernel would be wrong.
BROKEN = {
    "no wait for copies": "        barrier_wait(shared.barriers + chunk);\n",
    "no barrier after the products": "    sync_block();  // all products of the block have read shared memory\n",
    "no wait for the others' sums": "    cluster_arrive();\n    cluster_wait();\n    stamps.take(EXCHANGED);",
    "no barrier before the end": "    cluster_arrive_relaxed();\n    cluster_wait();\n",
    "no wait for the products": "    products_wait(sums);\n",
    "no wait for the previous kernel": "    wait_for_previous();\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BROKEN)
def test_a_missing_barrier_is_noticed(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By ThreadSanitizer, or by a check of the stand-in."""
    source, line = (host.FOLDER / "gemm.cu").read_text(), BROKEN[what]
    assert source.count(line) == 1
    kept = line.splitlines()[-1] if not line.endswith("\n") else ""
    program = sanitised(tmp_path, source.replace(line, kept), {FP8: (2,)})
    for epilogue in EPILOGUES:
        done = run_by(program, case(epilogue, 128, 512, Cut(2, 2), "cpu"), monkeypatch)
        if done.returncode != 0:
            assert "data race" in done.stderr or "host: " in done.stderr
            return
    pytest.fail("ThreadSanitizer and the stand-in saw nothing")
