"""The networks' inference form gives the plain network's probabilities, on every backend, and reads only the rows that it needs."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from buzzer.engine import infer
from buzzer.errors import UnsupportedError
from buzzer.models.recsys2021 import feature_sets, user_vectors
from buzzer.models.recsys2021.batches import Batches
from buzzer.models.recsys2021.open_network import OpenNetwork
from buzzer.models.recsys2021.params import ALL_NETWORKS

SLOW = pytest.param("torch_compile", marks=pytest.mark.slow)
BACKENDS = ("torch_eager", SLOW, "onnxruntime", "openvino")
WORDS, USERS, TOKENS, ROWS = 500, 30, 11, 60
SET = feature_sets.named("basic")


@pytest.fixture
def vectors(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("buzzer.models.recsys2021.networks.VOCABULARY", WORDS)
    return np.random.default_rng(0).standard_normal((WORDS, 12), dtype=np.float32)


def network_of(name: str, vectors: Any) -> Any:
    """A network in evaluation mode with random weights, norms and scales."""
    import torch

    from buzzer.models.recsys2021.networks import NETWORKS, Sizes

    torch.manual_seed(3)
    network = NETWORKS[name](
        Sizes(USERS, 6, 5, 16, 0.2, "basic"), torch.from_numpy(vectors), SET.network(name)
    )
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            for values in (module.running_mean, module.weight.data, module.bias.data):
                values.normal_()
            module.running_var.uniform_(0.5, 2)
    network.columns.mean.normal_(3)
    network.columns.deviation.uniform_(1, 3)
    return network.eval()


@pytest.fixture(scope="module")
def rows() -> dict[str, Any]:
    """Rows of texts of every length, an empty text, and texts that several rows share."""
    rng = np.random.default_rng(1)
    many = np.array([*range(TOKENS + 1), *rng.integers(0, TOKENS + 1, 12)])
    texts = rng.integers(1, WORDS, (len(many), TOKENS)).astype(np.int32)
    texts[np.arange(TOKENS) >= many[:, None]] = 0
    tokens = texts[rng.permutation(np.resize(np.arange(len(many)), ROWS))]
    x = rng.exponential(50, (ROWS, len(SET.names()))).astype(np.float32)
    return {"features": x, "tokens": tokens, "users": rng.integers(0, USERS, (ROWS, 2))}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ALL_NETWORKS)
def test_the_inference_form_predicts_as_the_network(
    name: str, backend: str, vectors: Any, rows: dict[str, Any], tmp_path: Path
) -> None:
    import torch

    from buzzer.models.recsys2021 import fast_networks

    if not infer.installed(backend):
        pytest.skip(f"{backend} is not installed")
    network = network_of(name, vectors)
    with torch.inference_mode():
        want = network(*map(torch.from_numpy, rows.values())).numpy()
    assert want.std() > 0.02  # the weights matter
    table, sides = None, getattr(network, "sides", ())
    if sides:
        weight = network.users.weight.detach().numpy()
        user_vectors.write(tmp_path / "users.npy", weight.shape, "float32", [weight[:7], weight[7:]])
        table = user_vectors.UserTable(tmp_path / "users.npy")
    form = fast_networks.inference_form(network, vectors)
    example = fast_networks.example(form, len(SET.names()), TOKENS, 6)
    axes = {key: fast_networks.AXES[key] for key in example}
    try:
        session = infer.prepare(
            form, backend=backend, example=example, outputs=("probability",), dynamic=axes
        )
    except UnsupportedError as error:
        pytest.skip(str(error))
    with session:
        opened = OpenNetwork(session, tuple(example), TOKENS, table, sides)
        for size in (7, ROWS):  # batches of one length and of several; texts shared within a batch
            got = opened.predict(Batches(*rows.values(), size))
            np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)
        alone = [opened.predict(Batches(*(each[i : i + 1] for each in rows.values()), 1)) for i in range(9)]
    np.testing.assert_allclose(np.concatenate(alone), want[:9], atol=1e-5, rtol=0)


def test_a_network_reads_its_own_tokens_and_users(vectors: Any, rows: dict[str, Any], tmp_path: Path) -> None:
    """The first 4 tokens, and as the second of two bags every second user."""
    import torch

    from buzzer.engine.frames.base import FIRST_CODE
    from buzzer.models.recsys2021 import fast_networks

    network = network_of("gru128", vectors)
    numbers = rows["users"] - FIRST_CODE
    own = np.where((numbers >= 0) & (numbers % 2 == 1), numbers // 2 + FIRST_CODE, 0)
    plain = (rows["features"], rows["tokens"][:, :4], own)
    with torch.inference_mode():
        want = network(*map(torch.from_numpy, plain)).numpy()
    weight = network.users.weight.detach().numpy()
    user_vectors.write(tmp_path / "users.npy", weight.shape, "float32", [weight])
    form = fast_networks.inference_form(network, vectors)
    example = fast_networks.example(form, len(SET.names()), 4, 6)
    axes = {key: fast_networks.AXES[key] for key in example}
    session = infer.prepare(
        form, backend="torch_eager", example=example, outputs=("probability",), dynamic=axes
    )
    table = user_vectors.UserTable(tmp_path / "users.npy")
    opened = OpenNetwork(session, tuple(example), 4, table, (0, 1), bag=1, bags=2)
    np.testing.assert_allclose(opened.predict(Batches(*rows.values(), 16)), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_a_table_is_read_by_row(kind: str, tmp_path: Path) -> None:
    """Rows of several blocks, in the file's type rounded once."""
    rng, users = np.random.default_rng(2), 3 * user_vectors.BLOCK + 5
    whole = rng.standard_normal((users, 3), dtype=np.float32)

    def blocks() -> Iterator[Any]:
        yield from np.array_split(whole, 4)

    user_vectors.write(tmp_path / "t.npy", whole.shape, kind, blocks())
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), whole.astype(kind))
    codes = np.stack([rng.integers(0, users, 9000), np.full(9000, users - 1)], axis=1)
    vectors = user_vectors.UserTable(tmp_path / "t.npy").of_piece(codes)
    assert len(vectors.vectors) == len(np.unique(codes))
    picked = rng.integers(0, 9000, 50)
    got = vectors.of(picked)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, whole.astype(kind).astype(np.float32)[codes[picked]])


PEAK = """
import resource, sys
import numpy as np
from buzzer.models.recsys2021.user_vectors import UserTable
table, before = UserTable(sys.argv[1]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
users = len(np.load(sys.argv[1], mmap_mode="r"))
vectors = table.of_piece(np.arange(0, users, 16)[:, None]).vectors  # a row of every other page
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before - vectors.nbytes // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux")
def test_a_large_table_needs_little_memory(tmp_path: Path) -> None:
    """A sparse file of 1 GiB: reading rows all over it adds less than 300 MiB to the peak, beside the rows."""
    shape = (2**21, 128)
    np.lib.format.open_memmap(tmp_path / "t.npy", mode="w+", dtype=np.float32, shape=shape).flush()
    script = [sys.executable, "-c", PEAK, str(tmp_path / "t.npy")]
    peak = int(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    assert peak < 300 * 1024
