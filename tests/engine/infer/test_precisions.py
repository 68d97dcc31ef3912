"""Every backend in every precision against the FP32 reference, on real weights and sentences if they are installed."""

from functools import cache
from typing import Any

import numpy as np
import pytest

from buzzer.engine import infer, quant
from buzzer.errors import UnsupportedError
from buzzer.models.api.bench import BenchModel, BenchSpec
from buzzer.models.bert.bench import TARGET

# backend, precision, least cosine of a token's vector, largest error relative to the largest value, least argmax agreement
CASES = [
    ("torch_eager", "fp32", 0.999999, 1e-5, 1.0),
    ("torch_eager", "bf16", 0.999, 0.05, 0.95),
    ("torch_eager", "int8", 0.9, 0.3, 0.8),
    ("torch_eager", "fp8", 0.9, 0.3, 0.8),
    ("torch_eager", "int8-dynamic", 0.9, 0.3, 0.7),
    ("onnxruntime", "fp32", 0.999999, 1e-5, 1.0),
    ("onnxruntime", "int8", 0.9, 0.3, 0.8),
    ("onnxruntime", "fp8", 0.9, 0.3, 0.8),
    ("onnxruntime", "int8-dynamic", 0.9, 0.3, 0.8),
    ("openvino", "fp32", 0.999999, 1e-5, 1.0),
    ("openvino", "bf16", 0.999, 0.05, 0.95),
    ("openvino", "int8", 0.9, 0.3, 0.8),
]


@cache
def loaded() -> BenchModel:
    try:
        return TARGET.load(BenchSpec(2, 32, 3, "fixed", "padded", 0, {"weights": "minilm-l6"}))
    except UnsupportedError as error:
        pytest.skip(error.message)


@cache
def quantised(precision: str) -> Any:
    return quant.quantise(loaded().model, loaded().calibration, precision=precision)


@pytest.mark.parametrize(("backend", "precision", "cosine", "error", "agreement"), CASES)
def test_outputs_agree_with_the_reference(
    backend: str, precision: str, cosine: float, error: float, agreement: float, has_bf16: bool
) -> None:
    from buzzer.suite.bench.checks import Check

    try:
        infer.load(backend)
    except UnsupportedError as missing:
        pytest.skip(missing.message)
    if (backend, precision) == ("openvino", "bf16") and not has_bf16:
        pytest.skip("this processor has no bfloat16 instructions")
    target = loaded()
    expected = [{k: np.array(v) for k, v in target.reference(batch).items()} for batch in target.batches]
    check = Check(target, expected)
    model = quantised(precision) if precision in quant.PRECISIONS else target.model
    fixed: dict[str, dict[int, str]] = {name: {} for name in target.batches[0]}
    with infer.prepare(
        model,
        backend=backend,
        example=target.batches[0],
        outputs=target.outputs,
        dynamic=fixed,
        precision=precision,
    ) as session:
        for index, batch in enumerate(target.batches):
            session.poison()
            check.add(index, session.run(batch))
        description = session.describe(target.batches[0])
    scores = check.scores()
    assert check.bad == 0
    assert scores["cosine"] >= cosine
    assert scores["max_relative_error"] <= error
    assert scores["argmax_agreement"] >= agreement
    # 64 tokens through 6 layers: 4 h^2 + 2 h f weights per layer, and two products of 32 x 32 x h for each row
    assert description.flops == 64 * 6 * 2 * (4 * 384**2 + 2 * 384 * 1536) + 6 * 2 * 2 * 2 * 32 * 32 * 384


def test_every_precision_is_among_the_cases() -> None:
    covered = {(backend, precision) for backend, precision, *_ in CASES}
    for backend in {case[0] for case in CASES}:
        try:
            offered = infer.load(backend).PRECISIONS
        except UnsupportedError:
            continue
        assert {(backend, precision) for precision in offered} <= covered
