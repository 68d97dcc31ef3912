"""Every backend against a float64 reference, on small models of the tasks' kinds."""

import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from buzzer.engine import device, infer
from buzzer.engine.infer import Array
from buzzer.errors import UnsupportedError, UsageError

Make = Callable[[], tuple[torch.nn.Module, Callable[[int], dict[str, Array]], tuple[str, ...]]]
SEQ, VOCAB = 7, 50


class TiedMlp(torch.nn.Module):
    """Embeddings, batch norm, and a head that shares the embedding's weights; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(VOCAB, 16)
        self.body = torch.nn.Sequential(
            torch.nn.Linear(16 * SEQ, 16), torch.nn.BatchNorm1d(16), torch.nn.PReLU()
        )

    def forward(self, ids: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.body(self.table(ids).flatten(1) + numbers.sum(1, keepdim=True))
        return x @ self.table.weight.T, x


class Gru(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(VOCAB, 16)
        self.gru = torch.nn.GRU(16, 24, batch_first=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.gru(self.table(ids))[0][:, -1]


class Attention(torch.nn.Module):
    """One masked self-attention layer with residual and layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(VOCAB, 16)
        self.qkv = torch.nn.Linear(16, 48)
        self.norm = torch.nn.LayerNorm(16)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        q, k, v = (part.unsqueeze(1) for part in self.qkv(x).chunk(3, -1))
        bias = torch.zeros_like(mask, dtype=x.dtype).masked_fill(mask == 0, -1e4)[:, None, None]
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.norm(x + y.squeeze(1))


def ids(rows: int, rng: np.random.Generator) -> Array:
    return rng.integers(0, VOCAB, (rows, SEQ))


def mlp() -> Any:
    rng = np.random.default_rng(0)
    make = lambda n: {"ids": ids(n, rng), "numbers": rng.normal(size=(n, 3)).astype("float32")}
    return TiedMlp(), make, ("logits", "hidden")


def gru() -> Any:
    rng = np.random.default_rng(0)
    return Gru(), lambda n: {"ids": ids(n, rng)}, ("state",)


def attention() -> Any:
    rng = np.random.default_rng(0)

    def make(n: int) -> dict[str, Array]:
        lengths = rng.integers(1, SEQ + 1, (n, 1))
        return {"ids": ids(n, rng), "mask": (np.arange(SEQ) < lengths).astype("int64")}

    return Attention(), make, ("states",)


def expected(model: torch.nn.Module, batch: dict[str, Array]) -> list[Array]:
    """The module's outputs in float64."""
    doubles = [torch.from_numpy(a.astype("float64") if a.dtype == np.float32 else a) for a in batch.values()]
    with torch.inference_mode():
        out = model.double().eval()(*doubles)
    model.float()
    return [t.numpy() for t in (out if isinstance(out, tuple) else (out,))]


# torch_compile takes long to compile each model; it has its own slow test. Some backends run on a GPU only.
ON_CPU = [
    b for b in sorted(infer.BACKENDS) if infer.runs(b, infer.NETWORKS) and "cpu" in infer.info(b).devices
]


@pytest.fixture(params=[b for b in ON_CPU if b != "torch_compile"])
def backend(request: pytest.FixtureRequest) -> str:
    try:
        infer.load(request.param)
    except UnsupportedError as error:
        pytest.skip(error.message)
    return str(request.param)


@pytest.mark.parametrize("rows", [1, 2, 13])
@pytest.mark.parametrize("make", [mlp, gru, attention])
def test_a_backend_agrees_with_float64(backend: str, make: Make, rows: int) -> None:
    torch.manual_seed(0)
    model, batch_of, names = make()
    reference = expected(model, batch := batch_of(rows))
    with infer.prepare(model, backend=backend, example=batch_of(4), outputs=names) as session:
        outputs = session.run(batch)
    assert tuple(outputs) == names
    for name, want in zip(names, reference, strict=True):
        got = outputs[name]
        assert got.shape == want.shape
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        cosine = (got * want).sum(-1) / np.linalg.norm(got, axis=-1) / np.linalg.norm(want, axis=-1)
        assert cosine.min() > 1 - 1e-6
        assert (got.argmax(-1) == want.argmax(-1)).mean() > 0.99


def test_outputs_belong_to_the_caller(backend: str) -> None:
    model, batch_of, names = gru()
    with infer.prepare(model, backend=backend, example=batch_of(4), outputs=names) as session:
        first = session.run(batch_of(3))["state"]
        kept = first.copy()
        session.run(batch_of(3))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: {"wrong": b["ids"], "numbers": b["numbers"]}, "the model takes"),
        (lambda b: b | {"ids": b["ids"].astype("int32")}, "input ids has dtype int32"),
        (lambda b: b | {"ids": b["ids"][:, :3]}, "input ids: axis 1 has size 3"),
        (lambda b: b | {"numbers": b["numbers"][0]}, "input numbers has 1 axes"),
    ],
)
def test_a_wrong_batch_is_refused(backend: str, change: Callable[[Any], Any], message: str) -> None:
    model, batch_of, names = mlp()
    with (
        infer.prepare(model, backend=backend, example=batch_of(4), outputs=names) as session,
        pytest.raises(UsageError, match=message),
    ):
        session.run(change(batch_of(2)))


def test_signals_are_handled_after_sessions_are_closed(backend: str) -> None:
    """A library may set a stack for signal handlers and free it. The signal goes to a child, which it would end."""
    model, batch_of, names = mlp()
    sessions = [infer.prepare(model, backend=backend, example=batch_of(4), outputs=names) for _ in range(2)]
    while sessions:
        sessions.pop(0).close()
    handled: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: handled.append(number))
    if not (child := os.fork()):
        signal.raise_signal(signal.SIGUSR1)
        os._exit(handled != [signal.SIGUSR1])
    signal.signal(signal.SIGUSR1, before)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_wrong_number_of_output_names_is_refused() -> None:
    model, batch_of, _ = mlp()
    with (
        infer.prepare(model, backend="torch_eager", example=batch_of(2), outputs=("one",)) as session,
        pytest.raises(UsageError, match="2 outputs, but 1 are named"),
    ):
        session.run(batch_of(2))


def test_a_session_describes_itself(backend: str) -> None:
    model, batch_of, names = gru()
    with infer.prepare(model, backend=backend, example=batch_of(2), outputs=names, threads=2) as session:
        description = session.describe()
    assert (description.backend, description.precision, description.device, description.threads) == (
        backend,
        "fp32",
        "cpu",
        2,
    )
    assert description.parameters == sum(p.numel() for p in model.parameters())
    assert description.weight_bytes is None or description.weight_bytes >= 4 * description.parameters
    kept = backend == "openvino" and not device.simd().startswith(("AVX-512", "AMX"))
    assert description.denormals == ("kept" if kept else "flushed")
    assert set(description.affinity) <= set(range(1024))
    assert (description.flops, description.bytes_moved) == (None, None)  # no batch was given


def test_bf16_agrees_within_its_precision(backend: str, has_bf16: bool) -> None:
    model, batch_of, names = mlp()
    if "bf16" not in infer.load(backend).PRECISIONS:
        with pytest.raises(UsageError, match=f"unknown precision of {backend} 'bf16'"):
            infer.prepare(model, backend=backend, example=batch_of(2), outputs=names, precision="bf16")
        return
    want = expected(model, batch := batch_of(64))[0]
    if backend == "openvino" and not has_bf16:
        with pytest.raises(UnsupportedError, match="no bfloat16 instructions"):
            infer.prepare(model, backend=backend, example=batch, outputs=names, precision="bf16")
        return
    with infer.prepare(model, backend=backend, example=batch, outputs=names, precision="bf16") as session:
        got = session.run(batch)["logits"]
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UsageError) as caught:
        infer.prepare(Gru(), backend="onnx", example={})
    assert "did you mean onnxruntime" in caught.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_no_gpu_is_unsupported(backend: str) -> None:
    model, batch_of, names = gru()
    with pytest.raises(UnsupportedError):
        infer.prepare(model, backend=backend, example=batch_of(2), outputs=names, device="cuda")


@pytest.mark.slow
@pytest.mark.parametrize("open_batch", [True, False])
def test_compiled_torch_agrees_with_float64(open_batch: bool) -> None:
    model, batch_of, names = attention()
    reference = expected(model, batch := batch_of(5))
    axes = {name: {0: "batch"} if open_batch else {} for name in batch}
    with infer.prepare(model, backend="torch_compile", example=batch, outputs=names, dynamic=axes) as session:
        np.testing.assert_allclose(session.run(batch)["states"], reference[0], rtol=1e-4, atol=1e-5)
        if open_batch:
            np.testing.assert_allclose(session.run(batch_of(3))["states"].shape, (3, SEQ, 16))
        else:
            with pytest.raises(UsageError, match="axis 0 has size 3"):
                session.run(batch_of(3))


@pytest.mark.parametrize("way", ["TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"])
def test_a_compiler_that_is_switched_off_is_refused(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo

    monkeypatch.setenv(way, "1")
    read_at_import = torch._dynamo.config.patch(disable=way == "TORCH_COMPILE_DISABLE")
    model, batch_of, names = attention()
    with read_at_import, pytest.raises(UnsupportedError, match=r"torch.compile (is switched off|needs a C)"):
        infer.prepare(model, backend="torch_compile", example=batch_of(2), outputs=names)


@pytest.mark.slow
def test_a_module_that_the_compiler_cannot_compile_is_refused() -> None:
    model, batch_of, names = gru()
    session = infer.prepare(model, backend="torch_compile", example=batch_of(2), outputs=names)
    with session, pytest.raises(UnsupportedError, match="could not compile any part of this module"):
        session.run(batch_of(2))


def test_tensorrt_is_refused_without_package_or_device() -> None:
    """The same type of error if it is not installed, and if there is no device."""
    lacking = "no CUDA device here" if infer.installed("tensorrt") else "needs the package tensorrt"
    model, batch_of, names = gru()
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with pytest.raises(UnsupportedError, match=lacking):
        infer.prepare(model, backend="tensorrt", example=batch_of(2), outputs=names, device="cuda")


@pytest.mark.parametrize("backend", infer.BACKENDS)
def test_installed_backends_can_be_loaded(backend: str) -> None:
    try:
        infer.load(backend)
    except UnsupportedError as error:
        assert not infer.installed(backend) or "compiler" in error.message
    else:
        assert infer.installed(backend)
