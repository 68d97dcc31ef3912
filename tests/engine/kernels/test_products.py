"""The products that `probe` times: the operands, and each kernel or library against float64 where it runs."""

import pytest
import torch

pytest.importorskip("triton")
from buzzer.engine.kernels import products
from buzzer.engine.kernels.products import LIMIT, MAKERS, SPARSE, operand

ON_CPU = ("triton fp8", "cublas fp16", "cublaslt fp8", "cublaslt fp8, scales of columns")


def test_sparse_operands_have_two_zeros_in_each_four_values() -> None:
    x = operand(64, 256, "cpu", sparse=True).float().unflatten(1, (-1, 4))
    assert ((x == 0).sum(2) >= 2).all()
    assert 0.45 < float((x != 0).double().mean()) <= 0.5  # a few of the others round to zero, or none
    assert float((operand(64, 256, "cpu").float() != 0).double().mean()) > 0.95


@pytest.mark.parametrize("by", MAKERS)
def test_a_product_agrees_with_float64(device: str, by: str) -> None:
    if device == "cpu" and by not in ON_CPU:
        pytest.skip("needs a GPU")
    torch.manual_seed(0)
    rows, columns, depth = (128, 1024, 1024) if device == "cuda" else (32, 64, 128)
    a, w = operand(rows, depth, device), operand(columns, depth, device, by in SPARSE)
    try:
        got = MAKERS[by](a, w)()
    except RuntimeError as error:
        pytest.skip(f"not available here: {error}")
    want = a.double() @ w.double().T
    assert got.shape == want.shape
    assert float((got.double() - want).norm() / want.norm()) < LIMIT


def test_the_cuda_kernel_is_timed_with_every_cut() -> None:
    """BERT-Large's products in one wave of blocks, each with at most 227 KiB of shared memory."""
    cuts = {name: [by for by in products.makers_of(name, 128) if "cut" in by] for name in products.SHAPES}
    assert {name: len(each) for name, each in cuts.items()} == {"qkv": 6, "out": 9, "up": 6, "down": 3}
    assert cuts["down"] == [f"cuda fp8, cut {cut}" for cut in ("8 x 1", "4 x 1", "4 x 2")]
    assert not [by for by in products.makers_of("out", 16384) if "cuda" in by]


@pytest.mark.gpu
def test_a_product_is_timed_or_refused_with_a_reason(device: str) -> None:
    if device == "cpu":
        pytest.skip("it measures")
    for by, maker in products.makers_of("up", 128).items():
        facts = products.timed_product(by, maker, "up", 128)
        assert (facts.us is None) == (facts.refused is not None), facts
        assert facts.us or by != "cublas fp16"
