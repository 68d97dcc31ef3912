"""Session encoders on the fused backend against torch: the networks of SIGIR eCom's first task, in the interpreter and on a GPU."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from buzzer.engine import infer, quant
from buzzer.engine.infer import Array, Session
from buzzer.errors import UnsupportedError, UsageError
from buzzer.models.sigir_ecom.next_item.networks import NETWORKS, TopK
from buzzer.models.sigir_ecom.next_item.sizes import Sizes

STACKS = ("causal", "masked")
TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 6e-2}
PRODUCTS, CODES, LENGTH, NUMBERS = 60, 90, 7, 4
SHAPES = {  # heads of 5 and 32 values, one to three layers, a width that is not a power of two
    "odd": {"dim": 10, "layers": 2, "heads": 2},
    "task": {"dim": 64, "layers": 1, "heads": 2},
    "deep": {"dim": 48, "layers": 3, "heads": 3},
}


def top(name: str, shape: str, k: int = 12) -> TopK:
    """A network whose weights are far from their initial values 0 and 1, so that each one matters."""
    torch.manual_seed(0)
    dims = {"item_dim": SHAPES[shape]["dim"], "scored": PRODUCTS, "mask": 0.4}
    sizes = Sizes(PRODUCTS, CODES, LENGTH, NUMBERS, 5, 8, dropout=0.1, smoothing=0.0, **SHAPES[shape], **dims)
    content = torch.randint(0, 5, (PRODUCTS,)), torch.randint(0, 11, (PRODUCTS,)), torch.randn(PRODUCTS, 8)
    network = NETWORKS[name](sizes, *content)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return TopK(network, k).eval()


def batch(lengths: list[int], seed: int = 0) -> dict[str, Array]:
    """Sessions of these lengths, padded with zeros before the first event. The last one has no known item."""
    rng = np.random.default_rng(seed)
    there = np.arange(LENGTH) >= LENGTH - np.array(lengths)[:, None]
    items, kinds = rng.integers(2, CODES, there.shape), rng.integers(1, 7, there.shape)
    items[-1] = 0
    numbers = rng.normal(size=(*there.shape, NUMBERS)).astype("float32")
    return {"items": items * there, "kinds": kinds * there, "numbers": numbers * there[:, :, None]}


def prepare(module: torch.nn.Module, backend: str, device: str, precision: str) -> Session:
    """A session on a copy of the module, since a session may move it to another device."""
    example = batch([3, 5])
    return infer.prepare(
        copy.deepcopy(module),
        backend=backend,
        example=example,
        outputs=("value", "product"),
        precision=precision,
        device=device,
    )


def by_product(outputs: dict[str, Array]) -> Array:
    """Values by product, [rows, products], so that the order of products with equal values does not matter."""
    out = np.zeros((len(outputs["value"]), PRODUCTS))
    np.put_along_axis(out, outputs["product"], outputs["value"], axis=1)
    return out


@pytest.mark.parametrize(
    ("shape", "precision"),
    [
        ("odd", "fp32"),
        ("task", "fp32"),
        ("deep", "fp32"),
        ("task", "fp16"),
        pytest.param("task", "bf16", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("name", STACKS)
def test_session_encoders_agree_with_torch(device: str, name: str, shape: str, precision: str) -> None:
    """The value of every product, for batches of different sizes in one session. Buffers are filled with NaN before each run."""
    if precision == "bf16" and device == "cpu":
        pytest.skip("the interpreter's BF16 is wrong")
    module = top(name, shape, PRODUCTS - 2)
    with (
        prepare(module, "torch_eager", "cpu", "fp32") as eager,
        prepare(module, "fused", device, precision) as fused,
    ):
        for seed, lengths in enumerate(([7, 1, 4, 3], [2, 7], [5], [1] * 9 + [7])):
            given = batch(lengths, seed)
            want = eager.run(given)
            fused.poison()
            got = fused.run(given)
            assert got["value"].dtype == np.float32 and got["value"].shape == want["value"].shape
            error = np.abs(by_product(got) - by_product(want)).max()
            assert error < TOLERANCE[precision] * want["value"].max()
        layers = SHAPES[shape]["layers"]
        assert fused.describe().kernels == 7 * layers + 1
        assert fused.describe(given).flops == eager.describe(given).flops


@pytest.mark.parametrize("name", STACKS)
def test_products_are_ordered_by_value(device: str, name: str) -> None:
    module, given = top(name, "task"), batch([7, 2, 1])
    with (
        prepare(module, "torch_eager", "cpu", "fp32") as eager,
        prepare(module, "fused", device, "fp32") as fused,
    ):
        want, got = eager.run(given), fused.run(given)
    np.testing.assert_array_equal(got["product"], want["product"])
    assert (np.diff(got["value"]) <= 0).all()


def test_poison_fills_the_last_norm_and_a_run_overwrites_it(device: str) -> None:
    module, given = top("masked", "task"), batch([7, 2, 1])
    with prepare(module, "fused", device, "fp16") as ready:
        first = ready.run(given)["value"]
        ready.poison()
        staged = ready.stage(given)  # type: ignore[attr-defined]
        assert torch.isnan(staged.bucket.program.output).all()
        ready.replay(staged)  # type: ignore[attr-defined]
        assert not torch.isnan(staged.bucket.program.output).any()
        np.testing.assert_array_equal(ready.fetch(staged)["value"], first)  # type: ignore[attr-defined]


def test_unsupported_networks_and_precisions_are_refused(device: str) -> None:
    with pytest.raises(UnsupportedError, match="a gru has none") as caught:
        prepare(top("gru", "task"), "fused", device, "fp16")
    assert "networks=[causal,masked]" in str(caught.value.hint)
    eight = quant.quantise(
        top("masked", "task"), [batch([3, 5])], precision="int8", skip=["network.items.project"]
    )
    with pytest.raises(UnsupportedError, match="not in int8"):
        prepare(eight, "fused", device, "int8")


def test_rows_that_are_not_padded_at_the_start_are_refused(device: str) -> None:
    with prepare(top("causal", "task"), "fused", device, "fp16") as ready:
        hole, behind, none = (batch([7, 7]) for _ in range(3))
        hole["kinds"][0, 3] = 0
        behind["kinds"][1, -1] = 0
        none["kinds"][0] = 0
        for given in (hole, behind, none):
            with pytest.raises(UsageError, match="padding, followed by at least one event"):
                ready.run(given)


def test_without_a_gpu_every_network_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from buzzer.engine.infer.backends import fused

    monkeypatch.setattr(fused, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in NETWORKS:
        for where, message in (("cpu", "CUDA devices only"), ("cuda", "no CUDA device")):
            with pytest.raises(UnsupportedError, match=message):
                prepare(top(name, "task"), "fused", where, "fp16")


COMPILE = r"""
import json, sys
sys.path.insert(0, "tests/engine/fused")
from test_stack import top
from buzzer.engine.fused.stack import StackProgram, pack
from buzzer.engine.kernels.offline import compiled
from buzzer.engine.kernels.tune import Tuned

for name, precision in (("masked", "fp16"), ("causal", "bf16"), ("masked", "fp32")):
    weights = pack(top(name, "task").stack_spec(), precision, "meta")
    for launch in StackProgram(weights, 4096, 256, Tuned().tile).launches:
        facts = launch.facts().as_json() | compiled(launch).facts().as_json()
        print(json.dumps(facts | {"precision": precision}))
"""


@pytest.mark.slow
def test_the_code_for_an_h100_uses_tensor_cores_and_spills_nothing(
    compiles: Callable[[str], list[dict[str, Any]]],
) -> None:
    compiled = compiles(COMPILE)
    assert len(compiled) == 3 * 8
    assert max(x["local"] for x in compiled) == 0
    half = [x for x in compiled if x["precision"] != "fp32" and ("depth" in x or "keys" in x)]
    assert len(half) == 2 * 5
    assert all(x["tensor_cores"] in ("wgmma", "mma") for x in half)
