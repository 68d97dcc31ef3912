"""Every kernel against float64 torch: odd shapes, all dtypes, outputs filled with NaN before each run."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

F8, I8, HALF, FULL = torch.float8_e4m3fn, torch.int8, torch.float16, torch.float32
# BF16 only on a GPU: Triton's interpreter computes it wrongly.
FLOATS = [HALF, FULL, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
OUTPUTS = [*FLOATS, F8, I8]
TOLERANCE = {HALF: 2e-3, FULL: 2e-5, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def bf16_needs_a_gpu(request: pytest.FixtureRequest, device: str) -> None:
    parameters = request.node.callspec.params.values()
    if torch.bfloat16 in parameters and device == "cpu":
        pytest.skip("the interpreter's BF16 is wrong")


def values(*shape: int, dtype: torch.dtype, device: str, spread: float = 1.0) -> Tensor:
    """Normal random values of a dtype; for int8, rounded after multiplication by 40."""
    x = torch.randn(*shape) * spread
    if dtype == I8:
        x = (x * 40).round().clamp(-128, 127)
    return x.to(dtype).to(device)


def poisoned(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    """A tensor filled with NaN; -1 for int8."""
    out = torch.empty(*shape, dtype=dtype, device=device)
    out.view(torch.uint8).fill_(255)
    return out


def check(got: Tensor, want: Tensor, quantiser: Any = None) -> None:
    """Check that `got` equals the float64 `want` to the rounding of its dtype.

    Eight-bit values, quantised by `quantiser`, may differ by one step, but few do.
    """
    if got.dtype in TOLERANCE:
        tolerance = TOLERANCE[got.dtype]
        torch.testing.assert_close(
            got.double(), want, rtol=tolerance, atol=tolerance * float(want.abs().max())
        )
        return
    scaled = want * quantiser.inverse.double() + quantiser.zero
    if got.dtype == I8:
        nearest, step = scaled.round().clamp(-128, 127), 1.0
    else:
        nearest = scaled.clamp(-448, 448).float().to(F8).double()
        # E4M3's step is at most an eighth of the value; 0.5 allows for the rounding of floats up to 448.
        step = nearest.abs() / 8 + 0.5
    difference = (got.double() - nearest).abs()
    assert (difference <= step).all()
    assert (difference > 0.5).double().mean() < 0.03


def quantiser_of(want: Tensor, dtype: torch.dtype) -> Any:
    """A Quantiser by column that saturates a few values, with a zero point for int8; None for floats."""
    from buzzer.engine.kernels.gemm import Quantiser

    if dtype in TOLERANCE:
        return None
    limit = 127.0 if dtype == I8 else 448.0
    inverse = limit * 1.1 / want.abs().amax(0).clamp(min=1e-6).float()
    return Quantiser(inverse, -7 if dtype == I8 else 0)


@pytest.mark.parametrize("dtype", [*FLOATS, F8, I8])
@pytest.mark.parametrize("shape", [(1, 7, 20), (17, 50, 96), (40, 64, 130)])
def test_a_linear_layer(device: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    from buzzer.engine.kernels.gemm import Tile, Weights, linear

    torch.manual_seed(0)
    m, n, k = shape
    a, w = (values(size, k, dtype=dtype, device=device) for size in (m, n))
    scale = torch.rand(n, device=device) * 0.1 + 0.05 if dtype in (F8, I8) else None
    bias = torch.randn(n, device=device)
    want = a.double() @ w.double().T * (1.0 if scale is None else scale.double()) + bias.double()
    out = poisoned(m, n, dtype=FULL, device=device)
    linear("test", a, Weights(w, scale, bias), out, Tile(16, 32, 32))()
    check(out, want)


@pytest.mark.parametrize("dtype", [HALF, F8, I8])
@pytest.mark.parametrize("split", [1, 4])
def test_a_share_of_k_in_one_step(device: str, split: int, dtype: torch.dtype) -> None:
    """With rows and columns that are not multiples of the tile."""
    from buzzer.engine.kernels.gemm import Tile, Weights, linear

    torch.manual_seed(6)
    m, n, k = 19, 40, 256
    a, w = (values(size, k, dtype=dtype, device=device) for size in (m, n))
    scale = torch.rand(n, device=device) * 0.01 if dtype in (F8, I8) else None
    want = a.double() @ w.double().T * (1.0 if scale is None else scale.double())
    out = poisoned(split, m, n, dtype=FULL, device=device)
    linear("test", a, Weights(w, scale, None), out, Tile(16, 32, k // split, split, 4, 1, whole=True))()
    check(out.double().sum(0).float(), want)


@pytest.mark.parametrize("out_dtype", OUTPUTS)
@pytest.mark.parametrize("act", ["none", "gelu", "gelu_tanh", "relu", "tanh"])
def test_epilogues(device: str, act: str, out_dtype: torch.dtype) -> None:
    from buzzer.engine.kernels.gemm import Tile, Weights, linear

    torch.manual_seed(1)
    m, n, k = 37, 45, 48
    a, w = (values(size, k, dtype=HALF, device=device, spread=0.5) for size in (m, n))
    bias, residual = torch.randn(n, device=device), values(m, n, dtype=HALF, device=device)
    y = a.double() @ w.double().T + bias.double() + residual.double()
    activations = {
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "relu": F.relu,
        "tanh": torch.tanh,
    }
    want = activations[act](y) if act in activations else y
    quantiser = quantiser_of(want, out_dtype)
    out = poisoned(m, n, dtype=out_dtype, device=device)
    linear(
        "test",
        a,
        Weights(w, None, bias),
        out,
        Tile(32, 16, 16),
        residual=residual,
        act=act,
        quantiser=quantiser,
    )()
    check(out, want, quantiser)


@pytest.mark.parametrize("split", [2, 4])
@pytest.mark.parametrize("dtype", [HALF, I8])
def test_the_norm_adds_partial_sums(device: str, split: int, dtype: torch.dtype) -> None:
    """K is not a multiple of the shares."""
    from buzzer.engine.kernels.gemm import Tile, Weights, linear
    from buzzer.engine.kernels.rows import Norm, residual_norm

    torch.manual_seed(2)
    m, n, k = 19, 40, 150
    a, w = (values(size, k, dtype=dtype, device=device) for size in (m, n))
    scale = torch.rand(n, device=device) * 0.01 if dtype == I8 else None
    bias, residual = torch.randn(n, device=device), values(m, n, dtype=HALF, device=device)
    norm = Norm(torch.rand(n, device=device) + 0.5, torch.randn(n, device=device), 1e-5)
    parts = poisoned(split, m, n, dtype=FULL, device=device)
    out = poisoned(m, n, dtype=HALF, device=device)
    linear("test", a, Weights(w, scale, bias), parts, Tile(16, 32, 32, split))()
    residual_norm("test", parts, norm, out, bias=bias, residual=residual)()
    product = a.double() @ w.double().T * (1.0 if scale is None else scale.double())
    check(parts.double().sum(0).float(), product)
    x = product + bias.double() + residual.double()
    check(out, F.layer_norm(x, (n,), norm.gamma.double(), norm.beta.double(), norm.eps))


@pytest.mark.parametrize("eight", [None, F8, I8])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kernel", ["embedding", "norm"])
def test_rows(device: str, kernel: str, dtype: torch.dtype, eight: torch.dtype | None) -> None:
    """Embedding and norm, and residual and norm, for an odd row size, with and without the eight-bit output."""
    from buzzer.engine.kernels.rows import Eight, Norm, embedding, residual_norm

    torch.manual_seed(3)
    m, n = 11, 75
    norm = Norm(torch.rand(n, device=device) + 0.5, torch.randn(n, device=device), 1e-12)
    if kernel == "embedding":
        tables = tuple(values(size, n, dtype=dtype, device=device) for size in (30, 12, 2))
        ids = torch.stack([torch.randint(0, t.shape[0], (m,)) for t in tables]).int().to(device)
        x = sum(t.double()[i.long()] for t, i in zip(tables, ids, strict=True))
    else:
        first, second = (values(m, n, dtype=dtype, device=device) for _ in range(2))
        x = first.double() + second.double()
    assert isinstance(x, Tensor)
    want = F.layer_norm(x, (n,), norm.gamma.double(), norm.beta.double(), norm.eps)
    out, copy = poisoned(m, n, dtype=dtype, device=device), None
    if eight is not None:
        copy = Eight(poisoned(m, n, dtype=eight, device=device), quantiser_of(want, eight))
    if kernel == "embedding":
        embedding("test", ids, tables, norm, out, copy)()  # type: ignore[arg-type]
    else:
        residual_norm("test", first, norm, out, copy, residual=second)()
    check(out, want)
    if copy is not None:
        check(copy.out, want, copy.quantiser)


@pytest.mark.parametrize("out_dtype", OUTPUTS)
@pytest.mark.parametrize(("heads", "width"), [(2, 64), (3, 32), (2, 5)])
def test_attention_stays_within_a_sequence(
    device: str, heads: int, width: int, out_dtype: torch.dtype
) -> None:
    """Adjacent sequences that are shorter and longer than a block of rows or keys."""
    from buzzer.engine.kernels.attention import self_attention

    torch.manual_seed(4)
    lengths, size = [1, 3, 40, 17, 2], heads * width
    m = sum(lengths)
    dtype = HALF if out_dtype in (F8, I8) else out_dtype
    qkv = values(m, 3 * size, dtype=dtype, device=device)
    ends = torch.tensor(lengths).cumsum(0)
    spans = torch.stack([(ends - torch.tensor(lengths)), ends]).repeat_interleave(torch.tensor(lengths), 1)
    parts = []
    for sequence in qkv.double().split(lengths):
        q, k, v = (x.unflatten(1, (heads, width)).transpose(0, 1) for x in sequence.chunk(3, 1))
        parts.append(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))
    want = torch.cat(parts)
    quantiser = quantiser_of(want, out_dtype)
    for keys in (16, 64):  # several passes, and one
        out = poisoned(m, size, dtype=out_dtype, device=device)
        self_attention("test", qkv, spans.int().to(device), out, heads, quantiser, cut=(16, keys))()
        check(out, want, quantiser)


@pytest.mark.parametrize("out_dtype", OUTPUTS)
@pytest.mark.parametrize(("mean", "unit"), [(True, True), (True, False), (False, False)])
def test_pooling(device: str, mean: bool, unit: bool, out_dtype: torch.dtype) -> None:
    """A sequence without tokens pools to zeros."""
    from buzzer.engine.kernels.rows import pooling

    torch.manual_seed(5)
    lengths, n = [3, 0, 9, 1], 50
    x = values(sum(lengths), n, dtype=HALF, device=device)
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0)]).int().to(device)
    rows = [s.double() for s in x.split(lengths)]
    pick: Callable[[Tensor], Tensor] = (lambda s: s.mean(0)) if mean else (lambda s: s[0])
    want = torch.stack(
        [pick(s) if len(s) else torch.zeros(n, dtype=torch.float64, device=device) for s in rows]
    )
    want = F.normalize(want, dim=1) if unit else want
    quantiser = quantiser_of(want, out_dtype)
    out = poisoned(len(lengths), n, dtype=out_dtype, device=device)
    pooling("test", x, starts, out, quantiser, mean=mean, unit=unit)()
    check(out, want, quantiser)
