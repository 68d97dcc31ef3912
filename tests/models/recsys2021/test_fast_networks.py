"""The networks' inference form gives the plain network's probabilities, on every backend, and reads only the rows that it needs."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from buzzer.engine import infer
from buzzer.errors import DataError, UnsupportedError, UsageError
from buzzer.models.recsys2021 import feature_sets, network_files, user_vectors
from buzzer.models.recsys2021.batches import Batches
from buzzer.models.recsys2021.open_network import OpenNetwork
from buzzer.models.recsys2021.params import ALL_NETWORKS

FORMS = [(name, backend) for name in ALL_NETWORKS for backend in ("torch_eager", "onnxruntime", "openvino")]
WORDS, USERS, USER_DIM, TOKENS, ROWS = 500, 30, 6, 11, 60
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
        Sizes(USERS, USER_DIM, 5, 16, 0.2, "basic"), torch.from_numpy(vectors), SET.network(name)
    )
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            assert module.running_mean is not None and module.running_var is not None
            for values in (module.running_mean, module.weight.data, module.bias.data):
                values.normal_()
            module.running_var.uniform_(0.5, 2)
    network.columns.mean.normal_(3)
    network.columns.deviation.uniform_(1, 3)
    return network.eval()


def example_of(form: Any, tokens: int) -> dict[str, Any]:
    """Two rows and two texts as a form's inputs."""
    sides = getattr(form.network, "sides", ())
    return network_files.example(len(SET.names()), tokens, sides, USER_DIM)


def interface_of(form: Any, tokens: int) -> tuple[dict[str, Any], dict[str, dict[int, str]]]:
    """The example of a form, and the axes that may change."""
    example = example_of(form, tokens)
    return example, {key: network_files.AXES[key] for key in example}


def session_of(form: Any, backend: str, tokens: int, precision: str = "fp32") -> infer.Session:
    """A session of an inference form; skips a backend that this machine cannot run."""
    example, axes = interface_of(form, tokens)
    try:
        return infer.prepare(
            form,
            backend=backend,
            example=example,
            outputs=("probability",),
            dynamic=axes,
            precision=precision,
        )
    except UnsupportedError as error:
        pytest.skip(str(error))


def inputs_of(form: Any) -> tuple[str, ...]:
    """The names of a form's inputs."""
    return tuple(example_of(form, TOKENS))


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


@pytest.mark.parametrize(("name", "backend"), FORMS)
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
    with session_of(form, backend, TOKENS) as session:
        opened = OpenNetwork(session, inputs_of(form), TOKENS, table, sides)
        for size in (7, ROWS):  # batches of one length and of several; texts shared within a batch
            got = opened.predict(Batches(**rows, size=size))
            np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)
        alone = [
            opened.predict(Batches(**{key: values[i : i + 1] for key, values in rows.items()}, size=1))
            for i in range(9)
        ]
    np.testing.assert_allclose(np.concatenate(alone), want[:9], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dim", [12, 300])  # less and more than the 192 columns of the tables
def test_a_graph_has_the_tables_of_a_recurrence_or_what_is_smaller(
    dim: int, vectors: Any, rows: dict[str, Any], tmp_path: Path
) -> None:
    """Its size is near that of the tables or of the token vectors, and it predicts as the network."""
    import torch

    from buzzer.models.recsys2021 import fast_networks

    wide = np.resize(vectors, (WORDS, dim))
    network = network_of("gru64", wide)
    with torch.inference_mode():
        want = network(*map(torch.from_numpy, rows.values())).numpy()
    users = network.users.weight.detach().numpy()[rows["users"][:, list(network.sides)]]
    form = fast_networks.inference_form(network, wide)
    (example, axes), graph = interface_of(form, TOKENS), tmp_path / "gru64.onnx"
    infer.store(form, graph, example, network_files.OUTPUTS, axes)
    others = sum(weight.nbytes for weight in form.network.parameters()) + 4 * 64 * 192
    assert 0 <= graph.stat().st_size - 4 * WORDS * min(dim, 192) - others < 60_000
    batch = {"features": rows["features"], "tokens": rows["tokens"], "text": np.arange(ROWS), "users": users}
    with infer.prepare(
        graph, backend="onnxruntime", example=example, outputs=network_files.OUTPUTS, dynamic=axes
    ) as session:
        got = session.run(batch)["probability"]
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["pooled", "gru64"])
def test_int8_layers_predict_nearly_as_the_network(name: str, vectors: Any, rows: dict[str, Any]) -> None:
    """ONNX Runtime with integer products in the dense layers. The loop over the text, a graph inside the graph, is kept."""
    import torch

    from buzzer.models.recsys2021 import fast_networks

    network = network_of(name, vectors)
    weight = network.users.weight.detach().numpy()
    with torch.inference_mode():
        want = network(*map(torch.from_numpy, rows.values())).numpy()
    form = fast_networks.inference_form(network, vectors)
    vectors_of_users = weight[rows["users"][:, list(network.sides)]]
    batch = {"features": rows["features"], "tokens": rows["tokens"], "text": np.arange(ROWS)}
    with session_of(form, "onnxruntime", TOKENS, "int8-dynamic") as session:
        error = np.abs(session.run(batch | {"users": vectors_of_users})["probability"] - want)
    assert 0 < error.max() < 0.15
    assert error.mean() < 0.02


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
    session, inputs = session_of(form, "torch_eager", 4), inputs_of(form)
    table = user_vectors.UserTable(tmp_path / "users.npy")
    opened = OpenNetwork(session, inputs, 4, table, (0, 1), bag=1, bags=2)
    np.testing.assert_allclose(opened.predict(Batches(**rows, size=16)), want, atol=1e-5, rtol=0)


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


@pytest.mark.parametrize(
    ("free", "memory", "resident"), [(400, None, True), (399, None, False), (10**6, 399, False)]
)
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_a_table_stays_on_a_device_that_has_room(
    free: int, memory: int | None, resident: bool, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cpu:0` stands in for a GPU. The table has 50 bytes of float16 or 100 of float32, and room is a quarter of the memory."""
    import torch

    share = np.dtype(kind).itemsize / 4
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free * share, 10**9))
    whole = np.random.default_rng(4).standard_normal((5, 5)).astype(kind)
    user_vectors.write(tmp_path / "t.npy", whole.shape, kind, [whole])
    limit = None if memory is None else int(memory * share)
    table = user_vectors.UserTable(tmp_path / "t.npy", "cpu:0", limit)
    assert (table.resident is not None) == resident
    codes = np.array([[4, 1], [0, 4], [3, 3]])
    got = table.of_piece(codes).of(np.array([2, 0]))
    assert isinstance(got, torch.Tensor) and got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), whole[codes[[2, 0]]].astype(np.float32))


def test_sessions_take_vectors_that_are_on_the_device(vectors: Any) -> None:
    """A torch tensor in place of an array, and the error for one of another type."""
    import torch

    from buzzer.models.recsys2021 import fast_networks

    form = fast_networks.inference_form(network_of("gru64", vectors), vectors)
    example = example_of(form, TOKENS)
    tensor: Any = torch.from_numpy(example["users"])
    with session_of(form, "torch_eager", TOKENS) as session:
        want = session.run(example)["probability"]
        np.testing.assert_array_equal(session.run(example | {"users": tensor})["probability"], want)
        with pytest.raises(UsageError, match=r"users has dtype torch\.float16"):
            session.run(example | {"users": tensor.half()})


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


def test_vectors_that_do_not_fit_on_the_disk_are_refused(tmp_path: Path) -> None:
    users = 10**15
    with pytest.raises(DataError, match=f"{users:,} users need 16,000,000.0 GB of disk"):
        user_vectors.write(tmp_path / "t.npy", (users, 8), "float16", [])
    assert list(tmp_path.iterdir()) == []
