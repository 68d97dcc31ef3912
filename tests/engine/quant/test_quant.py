"""Quantised layers, calibration, SmoothQuant, 2:4 masks and checkpoints: by hand, by properties, and on every backend."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from buzzer.engine import infer, quant
from buzzer.engine.infer.onnx.export import export
from buzzer.engine.quant import calibrate
from buzzer.engine.quant.layer import encode, fake_quantise
from buzzer.errors import DataError, UnsupportedError, UsageError

Batch = dict[str, Any]
ZERO = torch.tensor(0, dtype=torch.int32)
# No denormals: another test may have set them to be flushed in this process, and hypothesis warns then.
floats = st.floats(-50, 50, width=32, allow_subnormal=False)
arrays = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=2, max_side=12), elements=floats)


class Block(nn.Module):
    """Two linear layers on a norm that nothing else uses, a product of them, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.left, self.right = nn.Linear(16, 24), nn.Linear(16, 24)
        self.down = nn.Linear(24, 16, bias=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.head(x + self.down(torch.nn.functional.gelu(self.left(y)) * self.right(y)))


@pytest.fixture
def model() -> Block:
    torch.manual_seed(0)
    block = Block().eval()
    for weight in block.norm.parameters():
        nn.init.normal_(weight, 1.0, 0.5)
    return block


def batch(rows: int, seed: int = 0) -> Batch:
    """Random inputs; one channel is fifty times as large as the others."""
    x = np.random.default_rng(seed).normal(size=(rows, 3, 16)).astype("float32")
    x[..., 3] *= 50
    return {"x": x}


def run(module: nn.Module, inputs: Batch) -> Any:
    with torch.inference_mode():
        return module(torch.from_numpy(inputs["x"])).numpy()


# ---- rounding ----------------------------------------------------------------------------------------------------


def test_int8_by_hand() -> None:
    x = torch.tensor([-10.0, -1.26, -0.24, 0.0, 0.26, 1.0, 100.0])
    got = fake_quantise(x, torch.tensor(0.5), torch.tensor(-120, dtype=torch.int32), "int8")
    # q = clamp(round(x / 0.5) - 120, -128, 127): -128, -123, -120, -120, -119, -118, 80; at 100: round(200) - 120
    assert got.tolist() == [-4.0, -1.5, 0.0, 0.0, 0.5, 1.0, 100.0]


def test_fp8_by_hand() -> None:
    """E4M3 has three bits after the leading one: steps of 1/8 in [1, 2), of 32 in [256, 448]; it saturates."""
    x = torch.tensor([0.0, 1.0, 1.06, 1.07, 300.0, 1000.0, -1000.0])
    got = fake_quantise(x, torch.tensor(1.0), ZERO, "fp8")
    assert got.tolist() == [0.0, 1.0, 1.0, 1.125, 288.0, 448.0, -448.0]


def test_a_range_becomes_a_scale_and_a_zero_point() -> None:
    assert calibrate.affine(-1.0, 1.55, "int8") == (pytest.approx(0.01), -28)
    assert calibrate.affine(0.5, 2.55, "int8") == (pytest.approx(0.01), -128)  # extended to contain 0
    assert calibrate.affine(-2.24, 1.0, "fp8") == (pytest.approx(0.005), 0)
    assert calibrate.affine(0.0, 0.0, "int8")[0] > 0


@settings(max_examples=100)
@given(x=arrays)
def test_rounding_errs_by_at_most_half_a_step_and_is_idempotent(x: Any) -> None:
    tensor = torch.from_numpy(x)
    scale, zero = calibrate.affine(float(x.min()), float(x.max()), "int8")
    assert scale > 0
    parameters = torch.tensor(scale), torch.tensor(zero, dtype=torch.int32), "int8"
    once = fake_quantise(tensor, *parameters)
    assert (once - tensor).abs().max() <= scale * 0.5001
    torch.testing.assert_close(fake_quantise(once, *parameters), once, rtol=0, atol=0)
    assert fake_quantise(torch.zeros(1), *parameters).item() == 0  # padding stays exact


@settings(max_examples=60)
@given(
    w=hnp.arrays(np.float32, (3, 8), elements=floats),
    precision=st.sampled_from(quant.PRECISIONS),
    method=st.sampled_from(quant.METHODS),
)
def test_weights_are_quantised_by_channel(w: Any, precision: str, method: str) -> None:
    weight = torch.from_numpy(w)
    scale = calibrate.weight_scale(weight, precision, method)
    assert scale.shape == (3,)
    assert (scale > 0).all()
    fake = fake_quantise(weight, scale, torch.zeros(3, dtype=torch.int32), precision)
    torch.testing.assert_close(encode(weight, scale, precision).float() * scale[:, None], fake)
    whole = calibrate.weight_scale(weight, precision, "absmax")
    near = fake_quantise(weight, whole, torch.zeros(3, dtype=torch.int32), precision)
    assert (fake - weight).square().sum() <= (near - weight).square().sum() + 1e-6
    if precision == "int8":
        assert ((near - weight).abs() <= whole[:, None] * 0.5001).all()


@pytest.mark.parametrize("precision", quant.PRECISIONS)
def test_the_gradient_passes_only_inside_the_range(precision: str) -> None:
    limit = {"int8": 127.0, "fp8": 448.0}[precision]
    x = torch.tensor([0.3, limit - 1, limit + 9, -limit - 9], requires_grad=True)
    fake_quantise(x, torch.tensor(1.0), ZERO, precision).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]


# ---- calibration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", quant.PRECISIONS)
@pytest.mark.parametrize("method", quant.METHODS)
@pytest.mark.parametrize("smooth", [None, 0.5])
def test_a_quantised_model_is_close_to_the_float_model(
    model: Block, precision: str, method: str, smooth: float | None
) -> None:
    before = copy.deepcopy(model.state_dict())
    quantised = quant.quantise(
        model, [batch(40), batch(40, 1)], precision=precision, method=method, smooth=smooth, skip=["head"]
    )
    want, got = run(model, batch(20, 2)), run(quantised, batch(20, 2))
    assert np.abs(got - want).mean() < 0.05 * np.abs(want).mean()
    assert quant.precision_of(quantised) == precision
    assert isinstance(quantised.head, nn.Linear)
    for name, value in model.state_dict().items():  # the model itself is unchanged
        assert torch.equal(value, before[name])


def test_layers_that_share_an_input_share_its_scale(model: Block) -> None:
    quantised: Any = quant.quantise(model, [batch(40)])
    assert quantised.left.input_scale == quantised.right.input_scale != quantised.down.input_scale


def test_methods_by_hand() -> None:
    """100,000 values in -1..1 and one at 9: "percentile" cuts it off, and "mse" has the least error."""
    seen = calibrate.Observed()
    x = torch.cat([torch.linspace(-1, 1, 100_000), torch.tensor([9.0])])
    seen.widen(x)
    seen.count(x)
    assert calibrate.bounds(seen, "int8", "absmax") == (-1, 9)
    low, high = calibrate.bounds(seen, "int8", "percentile")
    assert low == pytest.approx(-1, abs=0.01)
    assert high == pytest.approx(1, abs=0.01)
    ends = [calibrate.bounds(seen, "int8", method) for method in quant.METHODS]
    errors = [calibrate.squared_error(seen, *calibrate.affine(*e, "int8"), "int8") for e in ends]
    assert errors[2] == min(errors)


def test_bad_calibration_is_refused(model: Block) -> None:
    with pytest.raises(UsageError, match="no batches"):
        quant.quantise(model, [])
    with pytest.raises(UsageError, match="unknown module to skip 'hed'") as error:
        quant.quantise(model, [batch(2)], skip=["hed"])
    assert "head" in error.value.hint
    with pytest.raises(UsageError, match="unknown calibration method"):
        quant.quantise(model, [batch(2)], method="median")
    with pytest.raises(UsageError, match="unknown quantised precision"):
        quant.quantise(model, [batch(2)], precision="int4")
    broken = batch(2)
    broken["x"][0, 0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        quant.quantise(model, [broken])


# ---- SmoothQuant -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [None, {"norm": ["left", "right"]}])
def test_smoothing_does_not_change_outputs(model: Block, folds: Any) -> None:
    quantised: Any = copy.deepcopy(model)
    left = quant.smooth(quantised, [batch(40)], 0.5, folds=folds)
    assert ("left" in left) is (folds is None)
    for name, divisor in left.items():
        quantised.get_submodule(name).register_forward_pre_hook(lambda m, x, d=divisor: (x[0] / d,))
    np.testing.assert_allclose(run(quantised, batch(20, 1)), run(model, batch(20, 1)), rtol=1e-5, atol=1e-5)
    assert not torch.equal(quantised.left.weight, model.left.weight)


def test_smoothing_by_hand() -> None:
    """s = max|x|^0.5 / max|w|^0.5 (equation 4): 16 and 4 over 4 and 1 give 2 and 2."""
    layer = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        layer[0].weight.copy_(torch.tensor([[4.0, 0.5], [-1.0, 1.0]]))
    divisors = quant.smooth(layer, [{"x": np.array([[16, -2], [3, 4]], dtype="float32")}], 0.5)
    assert divisors["0"].tolist() == [2.0, 2.0]
    assert layer[0].weight.tolist() == [[8.0, 1.0], [-2.0, 2.0]]


def test_smoothing_reduces_the_error_of_a_large_channel(model: Block) -> None:
    model.norm = nn.Identity()  # type: ignore[assignment]
    want = run(model, batch(40, 5))
    errors = [
        np.abs(run(quant.quantise(model, [batch(40)], smooth=s), batch(40, 5)) - want).mean()
        for s in (None, 0.5)
    ]
    assert errors[1] < errors[0]


def test_wrong_folds_are_refused(model: Block) -> None:
    with pytest.raises(UsageError, match="not all layers that share an input"):
        quant.smooth(model, [batch(2)], 0.5, folds={"norm": ["left"]})
    with pytest.raises(UsageError, match="unknown layer to fold"):
        quant.smooth(model, [batch(2)], 0.5, folds={"nrm": ["left", "right"]})
    with pytest.raises(UsageError, match=r"not in 0\.\.1"):
        quant.smooth(model, [batch(2)], 1.5)


# ---- 2:4 ---------------------------------------------------------------------------------------------------------


def kept_by_four(weight: Tensor) -> Tensor:
    return (weight != 0).unflatten(1, (-1, 4)).sum(2)


def test_mask_by_hand() -> None:
    mask = quant.mask_2_4(torch.tensor([[1.0, -3.0, 2.0, 0.5, 0.0, 0.0, 0.0, -1.0]]))
    assert mask[0, :4].tolist() == [False, True, True, False]
    assert mask[0, 7]
    with pytest.raises(UsageError, match="multiple of 4"):
        quant.mask_2_4(torch.ones(2, 6))


@settings(max_examples=60)
@given(w=hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.sampled_from([4, 8, 12])), elements=floats))
def test_the_two_largest_of_each_four_are_kept(w: Any) -> None:
    weight = torch.from_numpy(w)
    mask = quant.mask_2_4(weight).unflatten(1, (-1, 4))
    assert (mask.sum(2) == 2).all()
    size = weight.abs().unflatten(1, (-1, 4))
    kept = size.masked_fill(~mask, torch.inf).amin(2)
    gone = size.masked_fill(mask, -torch.inf).amax(2)
    assert (kept >= gone).all()


@pytest.mark.parametrize("quantised", [False, True])
def test_training_keeps_the_sparse_pattern(model: Block, quantised: bool) -> None:
    sparse = quant.Sparsity(model, skip=["head"])
    trained: nn.Module = model
    if quantised:
        trained = quant.quantise(model, [batch(40)], skip=["head"])
        sparse = quant.Sparsity(trained, skip=["head"])
    optimizer = torch.optim.AdamW(trained.parameters(), 0.01)
    before = {name: weight.clone() for name, weight in sparse.weights.items()}
    losses = []
    for _ in range(20):
        loss = trained(torch.from_numpy(batch(20)["x"])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sparse.apply()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    for name, weight in sparse.weights.items():
        assert (kept_by_four(weight) <= 2).all()
        assert not torch.equal(weight, before[name])
    assert set(sparse.weights) == {"left", "right", "down"}


# ---- checkpoints and backends ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [*quant.PRECISIONS, None])
def test_checkpoint_round_trip(model: Block, tmp_path: Path, precision: str | None) -> None:
    saved = (
        model
        if precision is None
        else quant.quantise(
            model, [batch(40)], precision=precision, smooth=0.5, folds={"norm": ["left", "right"]}
        )
    )
    quant.save(saved, tmp_path / "kept")
    again = quant.load(tmp_path / "kept", Block())
    np.testing.assert_array_equal(run(again, batch(9, 1)), run(saved, batch(9, 1)))
    assert quant.precision_of(again) == precision


def test_bad_checkpoints_are_refused(model: Block, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no model checkpoint"):
        quant.load(tmp_path / "none", model)
    quant.save(quant.quantise(model, [batch(4)]), tmp_path / "kept")
    with pytest.raises(DataError, match="not a checkpoint of this model"):
        quant.load(tmp_path / "kept", nn.Linear(3, 3))
    facts = tmp_path / "kept" / "quant.json"
    text = facts.read_text()
    for wrong in (text.replace("input_zero", "zero"), '{"format": 1}', '{"format": 1, "layers": [1]}'):
        facts.write_text(wrong)
        with pytest.raises(DataError, match="does not describe quantised layers"):
            quant.load(tmp_path / "kept", model)
    facts.write_text(text)
    file = tmp_path / "kept" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match="truncated or damaged"):
        quant.load(tmp_path / "kept", model)


@pytest.mark.parametrize("precision", quant.PRECISIONS)
@pytest.mark.parametrize("backend", ["torch_eager", "onnxruntime", "openvino"])
def test_backends_agree_with_the_layers(
    model: Block, backend: str, precision: str, request: pytest.FixtureRequest
) -> None:
    """And the layers agree with the integer arithmetic of `Packed`."""
    if backend != "torch_eager" and precision.startswith("int8"):
        request.getfixturevalue("whole_sums")
    try:
        offered = infer.load(backend).PRECISIONS
    except UnsupportedError as error:
        pytest.skip(error.message)
    if precision not in offered:
        pytest.skip(f"{backend} has no {precision}")
    quantised: Any = quant.quantise(model, [batch(40)], precision=precision, smooth=0.5)
    x = batch(9, 1)
    with infer.prepare(quantised, backend=backend, example=batch(4), precision=precision) as session:
        got = session.run(x)["output"]
    want = run(quantised, x)
    step = 0.02 * np.abs(want).max()  # a value between two steps may be rounded either way
    assert np.abs(got - want).max() < step
    assert np.abs(got - want).mean() < 0.1 * step
    packed = quantised.left.packed()
    y = quantised.norm(torch.from_numpy(x["x"])).detach() / packed.smooth
    if precision == "int8":
        q = (y / packed.input_scale).round().add(packed.input_zero).clamp(-128, 127).double()
    else:
        q = (y / packed.input_scale).clamp(-448, 448).to(torch.float8_e4m3fn).double()
    by_hand = packed.input_scale * packed.weight_scale * (q @ packed.weight.double().T) + packed.bias
    with torch.inference_mode():
        layer = quantised.left(quantised.norm(torch.from_numpy(x["x"]))).numpy()
    np.testing.assert_allclose(by_hand.numpy(), layer, rtol=1e-3, atol=1e-2)


def test_onnx_runtime_uses_integer_products(model: Block, tmp_path: Path) -> None:
    """For every quantised layer: none falls back to float."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    quantised = quant.quantise(model, [batch(40)], skip=["head"])
    plan = infer.Plan(quantised, batch(4), ("output",), {"x": {0: "batch"}}, "int8", "cpu", 1)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(export(plan), options)
    nodes = [node.op_type for node in onnx.load(str(tmp_path / "o.onnx")).graph.node]
    assert nodes.count("MatMulIntegerToFloat") == 3
    assert nodes.count("MatMul") + nodes.count("Gemm") == 1  # the head, which was skipped
    assert nodes.count("QuantizeLinear") == 2  # left and right share one


def test_a_session_in_another_precision_is_refused(model: Block) -> None:
    with pytest.raises(UsageError, match="needs a quantised model"):
        infer.prepare(model, backend="onnxruntime", example=batch(2), precision="int8")
    quantised = quant.quantise(model, [batch(4)])
    with pytest.raises(UsageError, match="quantised to int8, but the requested precision is fp32"):
        infer.prepare(quantised, backend="onnxruntime", example=batch(2))


def test_importing_backends_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, buzzer.engine.infer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
