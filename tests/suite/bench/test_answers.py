"""The cache of `buzzer bench`: entries are computed once for a model and its sizes, and never used for another."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from buzzer import manifest
from buzzer.engine import quant
from buzzer.engine.infer.cost import Cost
from buzzer.engine.infer.roofline import Roof
from buzzer.errors import DataError
from buzzer.models.api.bench import BenchModel, BenchSpec, outputs_of, stamp
from buzzer.models.api.context import Result, RunContext
from buzzer.models.bert import bench as bert
from buzzer.models.bert import encoder
from buzzer.suite.bench import answers, answers_cache, identity
from buzzer.suite.bench.answers_cache import Answers
from buzzer.suite.bench.protocol import BENCH, COMPILED
from buzzer.suite.bench.settings import ROOF, Settings

TINY = encoder.BertConfig(60, 16, 2, 2, 32, 40)


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunContext:
    """The run of a small BERT with random weights and ids."""
    monkeypatch.setitem(encoder.SPECS, "tiny", TINY)
    monkeypatch.setattr(bert, "tokens_folder", no_tokenizer)
    monkeypatch.setattr(
        "buzzer.engine.infer.roofline.measure", lambda threads, device: Roof(1e9, {"int8": 1e9})
    )
    params = {"target": "buzzer.models.bert.bench:TARGET", "model": {"spec": "tiny"}, "batch": 2, "seq": 8}
    params |= {"inputs": 3, "lengths": "fixed", "packing": "padded", "scenario": ""}
    params |= {"count": 4, "seconds": 0.0, "at_most": 0.0}
    for name in ("work", "out"):
        (tmp_path / name).mkdir()
    folders = {"data": tmp_path / "kept", "work": tmp_path / "work", "out": tmp_path / "out"}
    return RunContext(
        "tiny", "none", "torch_eager", "int8", "cpu", **folders, scale=1.0, seed=3, threads=1, params=params
    )


def no_tokenizer(spec: BenchSpec) -> Path:
    from buzzer.errors import UnsupportedError

    raise UnsupportedError("no weights here")


def run(context: RunContext, verb: str) -> tuple[list[str], Result]:
    """Run a verb of the bench task. Returns its phases and its result."""
    steps, phases = getattr(BENCH, verb)(context), []
    while True:
        try:
            phases.append(next(steps))
        except StopIteration as end:
            return phases, end.value


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("computed again")


def test_all_is_computed_once(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    phases, first = run(context, "fit")
    assert phases == ["load", "predict", "roof"]
    _, computed = run(context, "bench")
    monkeypatch.setattr(quant, "quantise", never)
    monkeypatch.setattr("buzzer.suite.bench.answers.compute", never)
    phases, again = run(context, "fit")
    assert phases == ["load"]
    (context.work / ROOF).unlink()
    assert run(context, "fit")[0] == ["load", "roof"]
    assert again.details == first.details
    _, read = run(context, "bench")
    assert read.scores == computed.scores
    assert 0.9 < read.scores["cosine"] < 1.0
    assert read.bench is not None and computed.bench is not None
    assert read.bench.flops == computed.bench.flops and computed.bench.flops
    assert read.details["session"]["parameters"] == sum(w.numel() for w in encoder.Bert(TINY).parameters())


@pytest.mark.parametrize(("backend", "separate"), [("torch_compile", True), ("fused", False)])
def test_only_torch_compile_has_a_new_cache_in_each_run(
    backend: str, separate: bool, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in COMPILED:
        monkeypatch.setenv(name, "shared")
    next(BENCH.bench(replace(context, backend=backend)))
    assert [Path(os.environ[name]).is_relative_to(context.out) for name in COMPILED] == [separate, separate]


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 4},
        {"device": "cuda"},
        {"params": {"batch": 3}},
        {"params": {"seq": 9}},
        {"params": {"inputs": 2}},
        {"params": {"lengths": "real"}},
        {"params": {"model": {"spec": "bert-base"}}},
    ],
)
def test_another_model_or_size_has_another_folder(context: RunContext, changed: dict[str, Any]) -> None:
    other = replace(context, **changed | {"params": context.params | changed.get("params", {})})
    assert Settings.of(other).cached != Settings.of(context).cached


def test_precision_and_backend_share_a_folder(context: RunContext) -> None:
    assert (
        Settings.of(replace(context, precision="fp8", backend="fused")).cached == Settings.of(context).cached
    )


def test_a_model_without_an_identity_is_not_cached_beyond_the_call(context: RunContext) -> None:
    setting = Settings.of(
        replace(context, params=context.params | {"target": "buzzer.models.onnx_file:TARGET"})
    )
    assert setting.cached.is_relative_to(context.work)


def some_answers() -> Answers:
    outputs = [{"y": np.arange(6.0).reshape(2, 3) + i} for i in range(2)]
    return Answers(outputs, "f" * 64, "abc", "generated", ("a note",), Cost(1, 2, 3))


def test_answers_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert answers_cache.read_answers(tmp_path) is None
    for _ in range(2):  # the second call meets the folder of the first
        answers_cache.write_answers(some_answers(), tmp_path)
    read = answers_cache.read_answers(tmp_path)
    assert read is not None
    np.testing.assert_equal(read.expected, some_answers().expected)
    assert replace(read, expected=[]) == replace(some_answers(), expected=[])
    assert [path.name for path in tmp_path.iterdir()] == ["answers"]


@pytest.mark.parametrize("file", ["facts.json", "1.npz"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_broken_answers_are_computed_again(tmp_path: Path, file: str, share: float) -> None:
    answers_cache.write_answers(some_answers(), tmp_path)
    path = tmp_path / "answers" / file
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert answers_cache.read_answers(tmp_path) is None
    answers_cache.write_answers(some_answers(), tmp_path)
    assert answers_cache.read_answers(tmp_path) is not None


def test_answers_of_other_inputs_are_refused(context: RunContext) -> None:
    run(context, "fit")
    setting = Settings.of(context)
    kept = answers_cache.read_answers(setting.cached)
    assert kept is not None
    loaded = setting.load()
    answers_cache.check_origin(kept, loaded, setting.cached)
    loaded.batches[0]["input_ids"][0, 0] += 1
    with pytest.raises(DataError, match="of other inputs"):
        answers_cache.check_origin(kept, loaded, setting.cached)


def test_answers_of_other_weights_are_refused(context: RunContext) -> None:
    _, result = run(context, "fit")
    setting = Settings.of(context)
    kept = answers_cache.read_answers(setting.cached)
    assert kept is not None and kept.model_hash == result.details["model_hash"]
    loaded = setting.load()
    with torch.no_grad():
        next(loaded.model.parameters())[0, 0] += 1
    with pytest.raises(DataError, match=f"of model {kept.model_hash}, not "):
        answers_cache.check_origin(kept, loaded, setting.cached)


def test_a_model_is_identified_by_weights_and_configuration() -> None:
    def hash_of(config: encoder.BertConfig, seed: int = 0) -> str:
        return identity.of_module(encoder.random(config, seed))

    assert hash_of(TINY) == hash_of(TINY)
    others = [
        replace(TINY, layer_norm_eps=1e-5),
        replace(TINY, hidden_act="relu"),
        replace(TINY, num_attention_heads=4),
    ]
    assert len({hash_of(TINY), hash_of(TINY, seed=1), *map(hash_of, others)}) == 5


def test_packing_does_not_make_another_model(context: RunContext) -> None:
    def hash_of(packing: str) -> str:
        params = context.params | {"lengths": "real", "packing": packing}
        return identity.of_model(Settings.of(replace(context, params=params)).load())

    assert hash_of("padded") == hash_of("sorted") == hash_of("packed")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "trees.ubj"
    hashes = [path.write_bytes(text) and identity.of_path(path) for text in (b"one", b"two, longer", b"one")]
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def write(aside: Path) -> None:
        aside.mkdir()
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        manifest.save(tmp_path / "folder", write)
    assert not list(tmp_path.iterdir())


def test_stamps_distinguish_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"a")
    two.write_bytes(b"b")
    first = stamp([one])
    assert stamp([two]) != first
    assert stamp([two, one]) == stamp([one, two])
    one.write_bytes(b"c")
    assert stamp([one]) != first
    one.write_bytes(b"a")
    assert stamp([one]) == first


def test_a_reference_output_must_be_finite() -> None:
    def reference(batch: Any) -> dict[str, Any]:
        return {"y": np.log(batch["x"])}

    batches = [{"x": np.array([[1.0]])}, {"x": np.array([[-1.0]])}]
    with np.errstate(invalid="ignore"), pytest.raises(DataError, match="not finite: output y, input 1"):
        answers.compute(BenchModel(Path("none"), ("y",), batches, reference, [1, 1]), "cpu")


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (1.0005, True), (1.01, False), (np.nan, False)])
def test_a_gpu_with_other_results_is_detected(factor: float, right: bool) -> None:
    cpu = {"y": np.array([[1.0, -2.0]])}
    if right:
        answers.check_devices(cpu, {"y": cpu["y"] * factor})
        return
    with pytest.raises(RuntimeError, match="differs from the CPU's"):
        answers.check_devices(cpu, {"y": cpu["y"] * factor})


@pytest.mark.parametrize("precision", quant.PRECISIONS)
def test_calibration_and_packing_stay_on_the_models_device(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tested on the device "meta", which refuses tensors of other devices, as a GPU does."""
    pytest.importorskip("triton")
    from buzzer.engine.fused import weights
    from buzzer.engine.quant import calibrate

    def widen(seen: calibrate.Observed, x: torch.Tensor) -> None:
        assert x.device.type == "meta"
        seen.low, seen.high = -1.0, 2.0

    monkeypatch.setattr(calibrate.Observed, "widen", widen)
    module = encoder.Bert(TINY).to("meta").eval()
    batches = [{name: np.ones((2, 8), "int64") for name in ("input_ids", "attention_mask")}]
    module = quant.quantise(module, batches, precision=precision)
    packed = weights.pack(module.encoder_spec(), precision, "meta")  # type: ignore[operator]
    assert {tensor.device.type for tensor in packed.tensors()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", quant.PRECISIONS)
def test_a_model_is_calibrated_where_it_is(precision: str) -> None:
    """Calibration on the GPU gives the same scales and eight-bit weights as on the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    module = encoder.random(TINY, 0)
    rng = np.random.default_rng(0)
    batches = [
        {"input_ids": rng.integers(0, 60, (2, 8)), "attention_mask": np.ones((2, 8), "int64")} for _ in "ab"
    ]
    on_cpu = quant.quantise(module, batches, precision=precision, method="mse")
    on_gpu = quant.quantise(module.to("cuda"), batches, precision=precision, method="mse").to("cuda")
    got = outputs_of(on_gpu, batches[0], ("h",))["h"]
    want = outputs_of(on_cpu, batches[0], ("h",))["h"]
    np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())
