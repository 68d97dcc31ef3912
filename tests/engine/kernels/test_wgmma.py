"""The matrix products of BERT-Large at 128 tokens against float64, on tiles of at least 64 rows.

Only such tiles use Hopper's tensor core instruction wgmma; the smaller tiles of the other tests use mma. On a GPU the
products are run; on a CPU the compiled code is checked for wgmma.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

F8, I8, HALF = torch.float8_e4m3fn, torch.int8, torch.float16
SHAPES = {"qkv": (3072, 1024, 1), "out": (1024, 1024, 4), "up": (4096, 1024, 1), "down": (1024, 4096, 8)}
TILES = [(64, 32, 4), (64, 64, 4), (128, 64, 4), (128, 128, 8), (128, 256, 8)]  # rows, columns, warps
EARLY = (0, 0, 0)  # stands for the tile of `early_tile`
# Relative error by norm, and the largest in deviations of the product. INT8 is exact. FP8's tensor cores add with about
# 14 bits (DeepSeek-AI, arXiv 2412.19437, section 3.3.2): emulated, that is 1.4e-3 and 1.2e-2 at K = 4096.
ERROR = {HALF: (1e-4, 1e-3), F8: (5e-3, 5e-2), I8: (0.0, 0.0)}


def product(
    shape: str, cut: tuple[int, int, int], dtype: torch.dtype, device: str
) -> tuple[Any, Tensor, Tensor]:
    """The launch, its output and the float64 product."""
    from buzzer.engine.kernels.gemm import Tile, Weights, early_tile, linear
    from buzzer.engine.kernels.tune import random

    torch.manual_seed(0)
    (n, k, split), (rows, columns, warps) = SHAPES[shape], cut
    a, w = (random(size, k, dtype, device) for size in (128, n))
    scale = torch.full((n,), 1 / 1024, device=device) if dtype in (F8, I8) else None
    tile = Tile(rows, columns, 128 // dtype.itemsize, split, warps, 3 if columns == 256 else 4)
    if cut == EARLY:
        early = early_tile(128, n, k, dtype, split > 1)
        assert early, "no tile has its weights whole"
        tile, split = early, early.split
    out = torch.full((split, 128, n), float("nan"), device=device)
    want = a.double() @ w.double().T * (1.0 if scale is None else 1 / 1024)
    return linear(shape, a, Weights(w, scale, None), out, tile), out, want


def check(launch: Any, out: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    """Run the launch, and check its output and that its code uses wgmma."""
    code = launch()
    error = out.double().sum(0) - want
    norm, largest = ERROR[dtype]
    assert float(error.norm() / want.norm()) <= norm
    assert float(error.abs().max() / want.std()) <= largest
    assert "wgmma.mma_async" in code.asm["ptx"]


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
@pytest.mark.parametrize("dtype", [F8, I8, HALF])
@pytest.mark.parametrize("cut", TILES)
@pytest.mark.parametrize("shape", SHAPES)
def test_wgmma_products(device: str, shape: str, cut: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(*product(shape, cut, dtype, device), dtype)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
@pytest.mark.parametrize("dtype", [F8, I8])
@pytest.mark.parametrize("shape", SHAPES)
def test_wgmma_products_of_early_weights(device: str, shape: str, dtype: torch.dtype) -> None:
    check(*product(shape, EARLY, dtype, device), dtype)


CODE = r"""
import json, re, sys
sys.path.insert(0, "tests/engine/kernels")
import torch
from test_wgmma import EARLY, F8, HALF, I8, SHAPES, TILES, product
from buzzer.engine.kernels.offline import compiled

cases = [(list(SHAPES)[(number + turn) % len(SHAPES)], cut, dtype)
         for number, cut in enumerate(TILES) for turn, dtype in enumerate((F8, I8, HALF))]
for shape, cut, dtype in cases + [(shape, EARLY, F8) for shape in SHAPES]:
    code = compiled(product(shape, cut, dtype, "meta")[0])
    print(json.dumps(code.facts().as_json() | {
        "shape": shape,
        "issued": code.ptx.count("wgmma.mma_async"),
        "compiled": len(re.findall(r"\b(?:HGMMA|IGMMA|QGMMA)\.", code.sass)),
        "small": len(re.findall(r"\b(?:HMMA|IMMA|QMMA)\.", code.sass)),
    }))
"""


@pytest.mark.slow
def test_the_code_of_these_products_uses_wgmma_and_spills_nothing(
    compiles: Callable[[str], list[dict[str, Any]]],
) -> None:
    """Every tile in every dtype, with the shapes in turn, since the instruction does not depend on the shape."""
    compiled = compiles(CODE)
    assert len(compiled) == 3 * len(TILES) + len(SHAPES)
    assert {x["shape"] for x in compiled} == set(SHAPES)
    for x in compiled:
        assert x["tensor_cores"] == "wgmma"
        assert x["issued"] >= 2
        assert x["compiled"] >= x["issued"]
        assert x["small"] == 0
        assert x["local"] == 0
