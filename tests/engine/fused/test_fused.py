"""Whole models on the fused backend against float64 torch, in the interpreter and on a GPU; packing, modes and tuning."""

import dataclasses
import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buzzer.engine import infer, quant
from buzzer.engine.fused.packing import bucket, pack
from buzzer.engine.infer import Array, Session
from buzzer.errors import UnsupportedError, UsageError
from buzzer.models.bert.encoder import Bert, BertConfig, Classifier, SentenceClassifier, TokenClassifier
from buzzer.models.bert.packing import Packed

SHAPES = {
    "odd": BertConfig(50, 36, 2, 3, 52, 40),
    "minilm": BertConfig(60, 64, 1, 2, 128, 40, hidden_act="gelu_new"),
    "large": BertConfig(70, 128, 1, 2, 192, 40, hidden_act="relu"),
}
NAMES = ("input_ids", "attention_mask", "token_type_ids")
TOLERANCE = {"fp32": 2e-6, "fp16": 4e-3, "bf16": 3e-2}


def model(kind: str, shape: str) -> torch.nn.Module:
    torch.manual_seed(0)
    bert = Bert(SHAPES[shape])
    kinds = {
        "bert": lambda: bert,
        "sentence": lambda: SentenceClassifier(bert, 5),
        "packed": lambda: Packed(bert),
        "tokens": lambda: TokenClassifier(bert, 2),
    }
    module = (kinds | {"classifier": lambda: Classifier(bert, 4)})[kind]()
    for weight in module.parameters():  # far from the initial values 0 and 1, so that each one matters
        torch.nn.init.normal_(weight, std=0.2)
    return module.eval()


def batch(kind: str, lengths: list[int], seed: int = 0) -> dict[str, Array]:
    """Sentences of these lengths, padded to the longest, or packed in rows of two."""
    rng = np.random.default_rng(seed)
    width = max(lengths)
    if kind == "packed":
        width, at = 2 * width, np.arange(2 * width)
        second = at >= width // 2
        length = np.array(lengths)[np.arange(len(lengths) // 2 * 2).reshape(-1, 2)]
        places = at % (width // 2)
        inside = places < length[:, second.astype(int)]
        segments = np.where(inside, 1 + second, 0)
        ids = rng.integers(0, 50, segments.shape)
        return {"input_ids": ids, "positions": np.tile(places, (len(ids), 1)), "segments": segments}
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype("int64")
    inputs = [rng.integers(0, 50, mask.shape) * mask, mask, rng.integers(0, 2, mask.shape)]
    return dict(zip(NAMES[: 2 if kind == "sentence" else 3], inputs, strict=False))


def by_torch(module: torch.nn.Module, given: dict[str, Array], double: bool = True) -> Array:
    """The module's output by torch, in float64 or float32."""
    module = module.double() if double else module
    with torch.inference_mode():
        output = module(*(torch.from_numpy(x) for x in given.values())).numpy()
    module.float()
    return output


def session(module: torch.nn.Module, example: dict[str, Array], device: str, precision: str) -> Session:
    axes = {name: {0: "batch", 1: "sequence"} for name in example}
    return infer.prepare(
        module, backend="fused", example=example, dynamic=axes, precision=precision, device=device
    )


def attended(output: Array, given: dict[str, Array]) -> Array:
    """The states of attended tokens; a pooled output as it is."""
    mask = given.get("attention_mask", given.get("segments"))
    return output[mask != 0] if output.ndim == 3 else output


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("bert", "odd"),
        ("sentence", "minilm"),
        ("classifier", "large"),
        ("packed", "odd"),
        ("bert", "large"),
        ("tokens", "minilm"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", pytest.param("bf16", marks=pytest.mark.gpu)])
def test_whole_models_agree_with_float64(device: str, kind: str, shape: str, precision: str) -> None:
    """With batches of different lengths in one session, and outputs filled with NaN before each run."""
    if precision == "bf16" and device == "cpu":
        pytest.skip("the interpreter's BF16 is wrong")
    module = model(kind, shape)
    with session(module, batch(kind, [3, 5]), device, precision) as ready:
        for seed, lengths in enumerate(([7, 1, 12, 3], [7, 2], [30, 4])):
            given = batch(kind, lengths, seed)
            ready.poison()
            got, want = ready.run(given)["output"], by_torch(module, given)
            assert got.dtype == np.float32
            assert got.shape == want.shape
            error = np.linalg.norm(attended(got - want, given)) / np.linalg.norm(attended(want, given))
            assert error < TOLERANCE[precision]


@pytest.mark.parametrize(
    ("kind", "options"),
    [("sentence", {}), ("sentence", {"smooth": 0.5}), ("sentence", {"skip": ["head"]}), ("tokens", {})],
    ids=["plain", "smooth", "skip", "tokens"],
)
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantised_models_agree_with_the_simulation(
    device: str, precision: str, kind: str, options: dict[str, Any]
) -> None:
    """Within the error of quantisation. States between kernels are fp16, so a value between two eight-bit steps may be rounded
    to the other one."""
    module, given = model(kind, "large"), batch(kind, [7, 1, 12, 3])
    quantised = quant.quantise(module, [given], precision=precision, **options)
    want, exact = by_torch(quantised, given, double=False), by_torch(module, given)
    with session(quantised, given, device, precision) as ready:
        ready.poison()
        got = ready.run(given)["output"]
        ready.poison()
        np.testing.assert_array_equal(ready.run(given)["output"], got)
    got, want, exact = (attended(x, given) for x in (got, want, exact))
    noise = np.linalg.norm(want - exact)
    assert np.linalg.norm(got - want) < 1.5 * noise
    assert np.linalg.norm(got - exact) < 1.5 * noise
    assert noise < 0.05 * np.linalg.norm(exact)


def test_outputs_belong_to_the_caller_and_poison_fills_buffers(device: str) -> None:
    module, given = model("sentence", "minilm"), batch("sentence", [4, 6])
    with session(module, given, device, "fp16") as ready:
        first = ready.run(given)["output"]
        kept = first.copy()
        ready.poison()
        staged = ready.stage(batch("sentence", [5, 2], 1))  # type: ignore[attr-defined]
        assert torch.isnan(staged.bucket.program.output).any()
        ready.replay(staged)  # type: ignore[attr-defined]
        assert not torch.isnan(staged.bucket.program.output).any()
    np.testing.assert_array_equal(first, kept)


def test_a_session_describes_its_kernels(device: str) -> None:
    module, given = model("sentence", "odd"), batch("sentence", [9, 3])
    with session(module, given, device, "fp16") as ready:
        launches = ready.launches(given)  # type: ignore[attr-defined]
        ready.run(given)
        description = ready.describe(given)
    assert description.kernels == len(launches) == 1 + 7 * 2 + 2
    config = SHAPES["odd"]
    layer = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    products = [x for x in launches if "DEPTH" in x.constants and not x.name.startswith("tail")]
    assert sum(x.flops for x in products) == 2 * 16 * 2 * layer  # 12 tokens in a bucket of 16, 2 layers
    assert sum(x.constant_bytes for x in products) > 2 * 2 * layer  # fp16, and the biases
    assert description.parameters == sum(p.numel() for p in module.parameters())


def test_unsupported_models_and_precisions_are_refused(device: str) -> None:
    given = batch("sentence", [4, 6])
    with pytest.raises(UnsupportedError, match="encoders only"):
        session(torch.nn.Linear(3, 3), given, device, "fp16")
    mixed = quant.quantise(model("sentence", "odd"), [given], precision="int8")
    mixed.bert.layers[0].up.precision = "fp8"
    with pytest.raises(UnsupportedError, match="quantised to"):
        session(mixed, given, device, "int8")
    part = quant.quantise(model("sentence", "odd"), [given], precision="int8", skip=["bert.layers.0.key"])
    with pytest.raises(UnsupportedError, match="only some of the layers"):
        session(part, given, device, "int8")


def test_no_gpu_means_no_run(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from buzzer.engine.infer.backends import fused

    given = batch("sentence", [4, 6])
    monkeypatch.setattr(fused, "interpreted", lambda: False)
    with pytest.raises(UnsupportedError, match="CUDA devices only"):
        session(model("sentence", "odd"), given, "cpu", "fp16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match="no CUDA device"):
        session(model("sentence", "odd"), given, "cuda", "fp16")


def test_ids_outside_their_tables_are_refused() -> None:
    roles = {"ids": np.array([[1, 2, 9]]), "mask": np.array([[1, 1, 0]])}
    assert pack(roles, 9, 3, 1).ids.tolist() == [[1, 2], [0, 1], [0, 0]]  # masked tokens are not checked
    with pytest.raises(UsageError, match="token id is outside 0 to 1"):
        pack(roles, 2, 3, 1)
    with pytest.raises(UsageError, match="position is outside 0 to 0"):
        pack(roles, 9, 1, 1)
    split = {
        "ids": np.ones((1, 3), int),
        "positions": np.zeros((1, 3), int),
        "segments": np.array([[1, 2, 1]]),
    }
    with pytest.raises(UsageError, match="not contiguous"):
        pack(split, 9, 3, 1)


@settings(max_examples=60)
@given(rows=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=9))
def test_packed_tokens_keep_their_position_and_sequence(rows: list[list[bool]]) -> None:
    mask = np.array(rows).astype("int64")
    ids = np.arange(mask.size).reshape(mask.shape)
    tokens = pack({"ids": ids, "mask": mask}, mask.size, 6, 1)
    size, sequences = bucket(len(tokens.places), 16), bucket(tokens.sequences, 1)
    out = np.full(5 * size + sequences + 1, -1, dtype=np.int32)
    tokens.write(out, size)
    words, at = out[:size], out[size : 2 * size]
    first, last = out[3 * size : 4 * size], out[4 * size : 5 * size]
    starts = out[5 * size :]
    count = int(mask.sum())
    assert words[:count].tolist() == ids[mask == 1].tolist()
    assert at[:count].tolist() == np.nonzero(mask)[1].tolist()
    for token in range(size):
        own = range(first[token], last[token])
        assert token in own
        row = lambda t: ids.ravel()[words[t]] // 6
        assert token >= count or (
            {row(t) for t in own} == {row(token)} and len(own) == mask[row(token)].sum()
        )
    assert np.diff(starts)[: len(rows)].tolist() == mask.sum(1).tolist()
    assert (np.diff(starts)[len(rows) :] == 0).all()


@given(count=st.integers(0, 100_000))
def test_a_bucket_is_at_most_half_larger_than_its_tokens(count: int) -> None:
    size = bucket(count, 16)
    assert count <= size
    assert size == 16 or size * 2 < count * 3


def test_a_stored_tile_is_used(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from buzzer.engine.kernels.gemm import Tile
    from buzzer.engine.kernels.tune import Shape, Tuned

    module, given = model("bert", "odd"), batch("bert", [9, 3])
    tile = Tile(16, 16, 32, split=2, stages=2)
    shape = Shape(16, 36, 36, torch.float16, True)
    monkeypatch.setattr(Tuned, "load", classmethod(lambda cls, device: cls(tiles={str(shape): tile})))
    with session(module, given, device, "fp16") as ready:
        launches = {x.name: x for x in ready.launches(given)}  # type: ignore[attr-defined]
        got, want = ready.run(given)["output"], by_torch(module, given)
    taken = launches["layer 1 out"].constants
    assert {key.lower(): taken[key] for key in ("ROWS", "COLUMNS", "DEPTH", "SPLIT")}.items() <= (
        dataclasses.asdict(tile).items()
    )
    assert np.linalg.norm(attended(got - want, given)) < 4e-3 * np.linalg.norm(attended(want, given))


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
@pytest.mark.parametrize("mode", ["pdl", "persistent"])
def test_other_modes_compute_the_same(
    device: str, mode: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in a row, since the barriers' counters must be 0 again."""
    from buzzer.engine.kernels.tune import Tuned

    if mode == "pdl" and device == "cpu":
        pytest.skip("the interpreter runs one kernel after the other")
    module, given = model("sentence", "minilm"), batch("sentence", [7, 1, 3])
    exact = by_torch(module, given)
    if precision != "fp16":
        module = quant.quantise(module, [given], precision=precision)
    want = by_torch(module, given, double=False)
    monkeypatch.setattr(Tuned, "mode", lambda self, program: mode)
    with session(module, given, device, precision) as ready:
        for _ in range(2):
            ready.poison()
            got = ready.run(given)["output"]
            tolerance = (
                4e-3 * np.linalg.norm(exact) if precision == "fp16" else 1.5 * np.linalg.norm(want - exact)
            )
            assert np.linalg.norm(got - want) < tolerance
        assert ready.describe().kernels == (4 if mode == "persistent" else 1 + 7 + 2)


def reference(program: Any, weights: Any, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of the layers in float64 for one sequence, with quantised inputs of linear layers; and the scores of the first layer."""
    from torch.nn import functional as F

    def norm(x: torch.Tensor, by: Any) -> torch.Tensor:
        return F.layer_norm(x, x.shape[1:], by.gamma.double(), by.beta.double(), by.eps)

    def linear(x: torch.Tensor, layer: Any) -> torch.Tensor:
        packed = layer.weights
        if layer.quantiser is not None:
            y = x * layer.quantiser.inverse.double() + layer.quantiser.zero
            eight = weights.eight
            x = y.round().clamp(-128, 127) if eight == torch.int8 else y.clamp(-448, 448).to(eight).double()
        scale = 1.0 if packed.scale is None else packed.scale.double()
        return x @ packed.weight.double().T * scale + packed.bias.double()

    x = norm(
        sum(t.double()[i.long()] for t, i in zip(weights.tables, program.inputs.ids, strict=True)),
        weights.norm,
    )
    scores = []
    for layer in weights.layers:
        parts = linear(x, layer.qkv).unflatten(1, (3, weights.heads, -1)).permute(1, 2, 0, 3)
        scores.append(parts[0] @ parts[1].transpose(1, 2) / parts.shape[-1] ** 0.5)
        context = (scores[-1].softmax(-1) @ parts[2]).transpose(0, 1).flatten(1)
        x = norm(x + linear(context, layer.out), layer.attention_norm)
        x = norm(x + linear(F.gelu(linear(x, layer.up)), layer.down), layer.norm)
    return x, scores[0]


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
@pytest.mark.parametrize("mode", ["plain", "pdl", "early", "persistent", "library"])
def test_modes_on_weights_of_a_shape_against_float64(
    device: str, mode: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, two layers of BERT-Large, whose products use wgmma. Attention scores are as flat as trained ones."""
    from buzzer.engine.fused.tune import random_program
    from buzzer.engine.fused.weights import random
    from buzzer.engine.kernels.library import LibraryLaunch
    from buzzer.engine.kernels.tune import Tuned

    if mode in ("pdl", "early") and device == "cpu":
        pytest.skip("the interpreter runs one kernel after the other")
    shape, tokens = ((2, 1024, 4096, 16), 128) if device == "cuda" else ((2, 64, 128, 2), 32)
    torch.manual_seed(0)
    weights = random(*shape, precision, device)
    tile = Tuned.tile
    if mode == "library":
        monkeypatch.setattr(Tuned, "tile", lambda *x: dataclasses.replace(tile(*x), library=True))
    program = random_program(weights, tokens, Tuned(), mode)
    assert sum(isinstance(x, LibraryLaunch) for x in program.launches) == (8 if mode == "library" else 0)
    program.output.fill_(float("nan"))
    codes = [launch() for launch in program.launches]
    program.check()
    want, scores = reference(program, weights, tokens)
    assert 0.3 < float(scores.std()) < 0.7
    error = float((program.output.double() - want).norm() / want.norm())
    assert error < (4e-3 if precision == "fp16" else 2e-2)
    if device == "cuda":
        products = [code for code in codes if code and code.name in ("gemm", "layers")]
        assert all("wgmma.mma_async" in code.asm["ptx"] for code in products)


@pytest.mark.parametrize(("tokens", "longest"), [(128, 128), (512, 512), (640, 128), (700, 128)])
def test_the_tuner_measures_many_tokens_as_sequences_of_128(tokens: int, longest: int) -> None:
    pytest.importorskip("triton")
    from buzzer.engine.fused.tune import random_program
    from buzzer.engine.fused.weights import random
    from buzzer.engine.kernels.tune import Tuned

    program = random_program(random(1, 16, 16, 1, "fp16", "cpu", vocabulary=50), tokens, Tuned(), "plain")
    (first, last), positions = program.inputs.spans.tolist(), program.inputs.ids[1].tolist()
    assert [at - start for at, start in enumerate(first)] == positions
    assert all(start <= at < end <= tokens for at, (start, end) in enumerate(zip(first, last, strict=True)))
    assert max(end - start for start, end in zip(first, last, strict=True)) == longest


def test_a_mode_that_cannot_run_is_refused_by_the_tuner(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver refuses it, or it needs too much shared memory, or it gives up a barrier. Plain launches must run."""
    from buzzer.engine.fused import tune as fused_tune
    from buzzer.engine.fused.lowering import Program
    from buzzer.engine.fused.weights import random
    from buzzer.engine.kernels.jit import triton
    from buzzer.engine.kernels.tune import Tuned

    if device == "cpu":

        class Graph:
            def __init__(self, run: Any) -> None:
                self.replay = run

        monkeypatch.setattr(fused_tune, "capture", Graph)
        monkeypatch.setattr(fused_tune, "replays", lambda graph, count, cold: [graph.replay() or 7.0])
    weights = random(1, 32, 32, 1, "fp16", device, vocabulary=50)
    facts = fused_tune.measured(weights, 16, Tuned(), "persistent")
    assert facts.refused is None
    assert facts.error < 4e-3
    assert list(facts.as_json()) == ["mode", "microseconds", "error"]
    broken: list[Exception] = [
        triton.runtime.errors.OutOfResources(1 << 20, 1 << 17, "shared memory"),
        RuntimeError("Triton Error [CUDA]: too many blocks in cooperative launch"),
    ]
    run = Program.run
    for error in broken:

        def raises(self: Program, error: Exception = error) -> None:
            if self.counters is not None:
                raise error
            run(self)

        monkeypatch.setattr(Program, "run", raises)
        refused = fused_tune.measured(weights, 16, Tuned(), "persistent").refused
        assert refused
        assert str(error) in refused

    def gives_up(self: Program) -> None:
        run(self)
        if self.counters is not None:
            self.counters[2] = 1

    monkeypatch.setattr(Program, "run", gives_up)
    assert "timed out" in str(fused_tune.measured(weights, 16, Tuned(), "persistent").refused)

    def fails(self: Program) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(Program, "run", fails)
    with pytest.raises(RuntimeError, match="no"):
        fused_tune.measured(weights, 16, Tuned(), "plain")


@pytest.mark.parametrize("in_time", [True, False])
def test_the_tuner_stores_its_choices(
    device: str, in_time: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a GPU it measures. In the interpreter, every launch runs once and counts as one microsecond."""
    from buzzer.engine.fused import tune as fused_tune
    from buzzer.engine.kernels import tune
    from buzzer.engine.kernels.library import LibraryLaunch
    from buzzer.engine.kernels.offline import Compiler

    class Ahead:
        def __init__(self, *_: int) -> None: ...

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def start(self, *_: Any) -> Any:
            compiled: Any = Future()
            if in_time:
                compiled.set_result(None)
            return compiled

    class Graph:
        def __init__(self, run: Any) -> None:
            self.replay = run

    def microseconds(launches: list[Any], count: int) -> float:
        for launch in launches:
            launch()
        return 0.5 if any(isinstance(launch, LibraryLaunch) for launch in launches) else 1.0

    monkeypatch.setenv("BUZZER_CACHE", str(tmp_path))
    if device == "cpu":
        bench, random = tune.Bench, fused_tune.random
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
        monkeypatch.setattr(tune, "gpu_name", lambda: "a-gpu")
        monkeypatch.setattr(tune, "microseconds", microseconds)
        monkeypatch.setattr(tune, "TRIED", 3)
        monkeypatch.setattr(tune, "Bench", lambda shape, device: bench(shape, "cpu"))
        for name, fake in {
            "require_gpu": lambda: None,
            "gpu_name": lambda: "a-gpu",
            "Ahead": Ahead,
            "random": lambda *form: random(*form[:-1], "cpu", vocabulary=50),
            "capture": Graph,
            "replays": lambda graph, count, cold: [graph.replay() or 7.0],
        }.items():
            monkeypatch.setattr(fused_tune, name, fake)
        with Compiler(80):  # which has the GPU's shared memory
            facts = list(fused_tune.tune_encoder((1, 64, 128, 2, "int8"), 16, 600.0 if in_time else 0.0))
    else:
        facts = list(fused_tune.tune_encoder((1, 64, 128, 2, "int8"), 16, 600.0 if in_time else 0.0))
    lines: list[Any] = [each.as_json() for each in facts]
    json.loads(json.dumps(lines), parse_constant=pytest.fail)
    *_, last = lines
    stored = list(tmp_path.glob("kernels/*.json"))
    assert last["in_time"] == in_time
    if not in_time:
        assert last["taken"] == "plain"
        assert [x["tile"] for x in lines[:4]] == [None] * 4
        assert not stored
        return
    kept = tune.Tuned.read(stored[0])
    assert {shape: x.columns for shape, x in kept.tiles.items()} == {
        x["shape"]: x["tile"]["columns"] for x in lines[:4]
    }
    assert len(kept.tiles) == 4
    assert kept.modes == {last["program"]: last["taken"]}
    modes = {x["mode"]: x for x in lines[4:-1]}
    assert {"plain", "persistent", "library"} <= set(modes)
    assert all(("library_us" in x) != ("library_refused" in x) for x in lines[:4])
    if device == "cpu":
        assert [x["library_us"] for x in lines[:4]] == [0.5] * 4
        assert all(tile.library for tile in kept.tiles.values())
        assert "refused" not in modes["library"]
    assert all(x["error"] < 0.05 for x in modes.values() if "refused" not in x)


def test_a_run_whose_barrier_was_given_up_raises(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from buzzer.engine.kernels.tune import Tuned

    module, given = model("bert", "minilm"), batch("bert", [7, 1, 3])
    monkeypatch.setattr(Tuned, "mode", lambda self, program: "persistent")
    with session(module, given, device, "fp16") as ready:
        with torch.inference_mode():
            ready.stage(given).bucket.program.counters[2] = 1  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match="timed out"):
            ready.run(given)
