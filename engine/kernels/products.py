"""Times BERT-Large's four products by this project's kernels and by NVIDIA's libraries: what a kernel has to beat.

Weights of 2:4 sparsity have two zeros in each four values, which tensor cores skip.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from buzzer.engine.kernels.cuda.launch import Norms, TiledWeights, project
from buzzer.engine.kernels.cuda.layout import COLUMNS, ROWS, VECTORS, Cut, cut_of, cuts, tiled
from buzzer.engine.kernels.facts import Facts
from buzzer.engine.kernels.gemm import Weights, default_tile, linear
from buzzer.engine.kernels.timing import microseconds, require_gpu
from buzzer.errors import UnsupportedError

SHAPES = {"qkv": (3072, 1024), "out": (1024, 1024), "up": (4096, 1024), "down": (1024, 4096)}
SPREAD_BYTES = (
    128 << 20
)  # weights that one timing reads, so that they come from memory and not from the L2 cache
REPLAYS = 20
LIMIT = 2e-2  # largest relative error: the results are float16, and FP8 tensor cores add with about 14 bits
F8, HALF = torch.float8_e4m3fn, torch.float16

# Makes a function without arguments that computes a [m, k] @ w.T, w [n, k], into a tensor [m, n], from operands in E4M3.
Maker = Callable[[Tensor, Tensor], Callable[[], Tensor]]


@dataclass(frozen=True)
class ProductFacts(Facts):
    """The time of a product in microseconds. error: relative distance from the product in float64. refused: why there is no time."""

    probe: str
    by: str
    product: str
    tokens: int
    us: float | None = None
    error: float | None = None
    refused: str | None = None


def by_triton(a: Tensor, w: Tensor) -> Callable[[], Tensor]:
    """The Triton kernel with its default tile."""
    out = torch.empty(len(a), len(w), dtype=HALF, device=a.device)
    columns, depth = w.shape
    tile = default_tile(len(a), columns, depth, F8, False)
    launch = linear("product", a, Weights(w, None, None), out, tile)

    def run() -> Tensor:
        launch()
        return out

    return run


def by_cuda(a: Tensor, w: Tensor, cut: Cut | None = None) -> Callable[[], Tensor]:
    """The kernel `project` of gemm.cu, without a norm: mean 0, variance 1. Without a cut, as the mode "cuda" cuts the product."""
    vectors = torch.zeros(VECTORS, len(w), device=a.device)
    vectors[0] = 1.0
    norms = torch.zeros(1, ROWS, 2, device=a.device)
    norms[..., 1] = COLUMNS
    out = torch.empty(ROWS, len(w), dtype=HALF, device=a.device)
    columns, depth = w.shape
    cut = cut or cut_of(columns, depth, multicast=False)
    launch = project("product", a, TiledWeights(tiled(w), vectors), cut, Norms(norms, 0.0), out)

    def run() -> Tensor:
        launch()
        return out

    return run


def by_cublaslt(a: Tensor, w: Tensor) -> Callable[[], Tensor]:
    """cuBLASLt in FP8."""
    one = torch.ones((), device=a.device)
    return lambda: torch._scaled_mm(a, w.t(), scale_a=one, scale_b=one, out_dtype=HALF, use_fast_accum=True)


def by_cublaslt_rows(a: Tensor, w: Tensor) -> Callable[[], Tensor]:
    """cuBLASLt in FP8 with a scale for each column, as the mode "library" uses it."""
    ones, scale = torch.ones(len(a), 1, device=a.device), torch.ones(1, len(w), device=a.device)
    return lambda: torch._scaled_mm(
        a, w.t(), scale_a=ones, scale_b=scale, out_dtype=HALF, use_fast_accum=True
    )


def by_cublas(a: Tensor, w: Tensor) -> Callable[[], Tensor]:
    """cuBLAS in fp16."""
    a_half, w_half = a.to(HALF), w.to(HALF)
    return lambda: F.linear(a_half, w_half)


def by_sparse_fp16(a: Tensor, w: Tensor) -> Callable[[], Tensor]:
    """cuSPARSELt in fp16 on 2:4 sparse weights."""
    from torch.sparse import to_sparse_semi_structured

    a_half, sparse = a.to(HALF), to_sparse_semi_structured(w.to(HALF))
    return lambda: F.linear(a_half, sparse)


def by_sparse_fp8(a: Tensor, w: Tensor) -> Callable[[], Tensor]:
    """cuSPARSELt in FP8 on 2:4 sparse weights."""
    sparse = torch._cslt_compress(w)
    return lambda: torch._cslt_sparse_mm(sparse, a.t(), out_dtype=HALF).t()


MAKERS: dict[str, Maker] = {
    "triton fp8": by_triton,
    "cuda fp8": by_cuda,
    "cublaslt fp8": by_cublaslt,
    "cublaslt fp8, scales of columns": by_cublaslt_rows,
    "cublas fp16": by_cublas,
    "2:4 fp16": by_sparse_fp16,
    "2:4 fp8": by_sparse_fp8,
}
SPARSE = ("2:4 fp16", "2:4 fp8")
LIBRARIES = ("cublaslt fp8", "cublaslt fp8, scales of columns", "cublas fp16", *SPARSE)
# Number of tokens -> what is timed. At 128 tokens, `tune` times the Triton kernel; the CUDA kernels take no other number.
TIMED = {128: ("cuda fp8", *LIBRARIES), 16384: ("triton fp8", *LIBRARIES)}


def operand(rows: int, depth: int, device: str, sparse: bool = False) -> Tensor:
    """Random values in E4M3 whose products of a depth of 4096 are within the range of float16. sparse: two of each four are 0."""
    x = torch.randn(rows, depth, device=device) * 2
    if sparse:
        x.unflatten(1, (-1, 4))[..., torch.randperm(4, device=device)[:2]] = 0
    return x.to(F8)


def makers_of(name: str, tokens: int) -> dict[str, Maker]:
    """What is timed for a product: `TIMED`, and the CUDA kernel with every cut, by shares of the depth and blocks of a multicast."""
    makers = {by: MAKERS[by] for by in TIMED[tokens]}
    if "cuda fp8" in makers:
        makers |= {
            f"cuda fp8, cut {cut.split} x {cut.share}": partial(by_cuda, cut=cut)
            for cut in cuts(*SHAPES[name])
        }
    return makers


def timed_product(by: str, maker: Maker, name: str, tokens: int) -> ProductFacts:
    """The time of a product on as many copies of the weights as do not fit in the L2 cache together."""
    columns, depth = SHAPES[name]
    torch.manual_seed(0)
    a, w = operand(tokens, depth, "cuda"), operand(columns, depth, "cuda", by in SPARSE)
    want = a.double() @ w.double().T
    try:
        runs = [maker(a, w.clone()) for _ in range(max(2, SPREAD_BYTES // w.numel()))]
        error = float((runs[0]().double() - want).norm() / want.norm())
        if not error < LIMIT:
            return ProductFacts("product", by, name, tokens, error=error, refused="its result is wrong")
        return ProductFacts("product", by, name, tokens, microseconds(runs, REPLAYS) / len(runs), error)
    except UnsupportedError as reason:
        return ProductFacts("product", by, name, tokens, refused=reason.message)
    except RuntimeError as reason:  # a library that lacks the product
        first = str(reason).partition("\n")[0]
        return ProductFacts("product", by, name, tokens, refused=f"{type(reason).__name__}: {first}")


def products() -> Iterator[ProductFacts]:
    """Every product at 128 tokens and at 128 sequences of 128 tokens. Raises UnsupportedError without a GPU."""
    require_gpu()
    for tokens in TIMED:
        for name in SHAPES:
            for by, maker in makers_of(name, tokens).items():
                yield timed_product(by, maker, name, tokens)
