"""Trains the networks, and opens trained ones as sessions."""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from buzzer.engine.frames.base import Array
from buzzer.errors import DataError
from buzzer.models.epochs import Epochs, one_cycle
from buzzer.models.recsys2021 import fast_networks, user_vectors
from buzzer.models.recsys2021.networks import NETWORKS, VOCABULARY, Network, Sizes, TextAndUsers
from buzzer.models.recsys2021.open_network import OpenNetwork
from buzzer.models.recsys2021.params import Context

# Not saved with the other weights: the token vectors are in VECTORS, the users' vectors in their own file (`user_vectors`).
FROZEN, USERS = "text.words.weight", "users.weight"
SIZES, VECTORS = "networks.json", "token_vectors.npy"
SCALED_ROWS = 200_000  # rows from which the columns' mean and deviation are computed


def path(folder: Path, name: str) -> Path:
    """The file of a network's weights."""
    return folder / f"network-{name}.pt"


def token_vectors(file: str, dim: int, seed: int) -> tuple[Array, str]:
    """Frozen vectors of the tokens, float32 [VOCABULARY, dim], and a description of them for the record.

    file: an .npy file with the rows of bert-base-multilingual-cased's word table, or "" for random vectors of deviation 1 / sqrt(dim).
    Raises DataError for a file that is missing or has another shape or type.
    """
    if not file:
        random = np.random.default_rng([seed, 7]).standard_normal((VOCABULARY, dim), dtype=np.float32)
        return random / np.float32(dim**0.5), f"token vectors: random, seed {seed}, {dim} dimensions"
    try:
        vectors = np.load(file)
    except (OSError, ValueError) as error:
        raise DataError(f"token_vectors {file}: {error}", "use an .npy file of float32") from error
    if vectors.ndim != 2 or len(vectors) != VOCABULARY or vectors.dtype.kind != "f":
        raise DataError(
            f"token_vectors {file}: {vectors.dtype} {list(vectors.shape)}, not floats [{VOCABULARY}, dimensions]",
            "use the rows of bert-base-multilingual-cased's word table",
        )
    return vectors.astype(np.float32), f"token vectors: {file}, {vectors.shape[1]} dimensions"


def prepare(context: Context, users: int) -> str:
    """Write the sizes and token vectors that all networks share. Returns the description of the vectors.

    users: rows of the user table.
    """
    params = context.params
    vectors, description = token_vectors(params.token_vectors, params.token_dim, context.seed)
    np.save(context.work / VECTORS, vectors)
    sizes = Sizes(users, params.user_dim, vectors.shape[1], params.hidden, params.dropout)
    (context.work / SIZES).write_text(json.dumps(asdict(sizes)))
    return description


def sizes_of(folder: Path) -> Sizes:
    """The sizes that `prepare` wrote."""
    return Sizes(**json.loads((folder / SIZES).read_text()))


def build(name: str, folder: Path) -> Network:
    """An untrained network with the sizes and token vectors that `prepare` wrote."""
    return NETWORKS[name](sizes_of(folder), torch.from_numpy(np.load(folder / VECTORS)))


class Trainer(Epochs):
    """Adam with a one-cycle schedule, and SparseAdam for the tables of users and words. The winners use Adam 1e-3, batches of 1024 to
    8192, and 2 epochs.

    There is no validation: the weights of the last epoch are kept.
    """

    def __init__(self, context: Context, network: Network, batch: Mapping[str, Array], y: Array) -> None:
        """batch: the network's inputs for all rows.  y: 0 or 1 [rows, targets]."""
        self.model, self.seed = network, context.seed
        self.inputs = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in batch.items()}
        self.target = torch.from_numpy(y.astype(np.float32))
        network.begin(self.inputs["features"][:SCALED_ROWS], self.target.mean(dim=0))
        super().__init__(network, context.device)
        self.size = min(context.params.batch, len(y))
        self.steps = max(len(y) // self.size, 1)
        rate, steps = context.params.lr, self.steps * context.params.epochs
        optimizers = optimizers_of(network, rate)
        self.optimise(optimizers, [one_cycle(o, rate, steps, cycle_momentum=False) for o in optimizers])

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """All rows in random order. An incomplete last batch is left out."""
        random = torch.Generator().manual_seed(self.seed * 1000 + epoch)
        order = torch.randperm(len(self.target), generator=random)
        for step in range(self.steps):
            yield order[step * self.size :][: self.size]

    def loss(self, batch: Tensor) -> Tensor:
        """The network's loss on rows, int64 [batch]."""
        inputs = [values[batch].to(self.device) for values in self.inputs.values()]
        return self.model.loss(self.target[batch].to(self.device), *inputs)


def fit(
    context: Context, name: str, batch: Mapping[str, Array], y: Array
) -> Generator[str, None, list[dict[str, float]]]:
    """Train a network and save its weights, without the frozen token vectors.

    Yields the phase after each epoch. Returns the history: `epoch` and `loss` of each epoch. batch: the network's inputs for all rows.
    y: 0 or 1 [rows, targets].
    """
    torch.manual_seed(context.seed)
    torch.set_num_threads(context.threads)
    torch.set_flush_denormal(True)
    network = build(name, context.work)
    trainer = Trainer(context, network, batch, y)
    for _ in trainer.run(context.params.epochs):
        yield "networks"
    save(network, path(context.work, name), context.params.user_type)
    return trainer.state.history


def save(network: Network, file: Path, user_type: str) -> None:
    """Write the weights without the token vectors, and the table of users as `user_type`."""
    weights = {key: w.cpu() for key, w in network.state_dict().items() if key != FROZEN}
    if (table := weights.pop(USERS, None)) is not None:
        rows, dim = table.shape
        blocks = (block.numpy() for block in table.split(user_vectors.BLOCK))
        user_vectors.write(user_vectors.path(file), (rows, dim), user_type, blocks)
    partial = file.with_suffix(".tmp")
    torch.save(weights, partial)
    partial.replace(file)


def optimizers_of(network: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Adam for the dense weights, and SparseAdam for tables of which a batch reads few rows."""
    tables = [m.weight for m in network.modules() if isinstance(m, nn.Embedding) and m.sparse]
    sparse = {id(weight) for weight in tables}
    others = [w for w in network.parameters() if w.requires_grad and id(w) not in sparse]
    lazy: list[torch.optim.Optimizer] = [torch.optim.SparseAdam(tables, lr=lr)] if tables else []
    return [torch.optim.Adam(others, lr=lr, fused=True), *lazy]


def trained(name: str, folder: Path) -> Network:
    """A network with the weights that `fit` saved, in evaluation mode, with the whole tables of tokens and users."""
    network = loaded(build(name, folder), path(folder, name))
    if isinstance(network, TextAndUsers):
        table = np.load(user_vectors.path(path(folder, name)))
        network.users.weight.data.copy_(torch.from_numpy(table))
    return network


def without_tables(name: str, folder: Path) -> Network:
    """As `trained`, but with tables of one row in place of those of frozen tokens and of users."""
    sizes = sizes_of(folder)
    network = NETWORKS[name](replace(sizes, users=1), torch.zeros(1, sizes.token_dim))
    return loaded(network, path(folder, name))


def loaded(network: Network, file: Path) -> Network:
    """The network with the weights of a file, in evaluation mode."""
    missing, extra = network.load_state_dict(torch.load(file, weights_only=True), strict=False)
    assert not extra and set(missing) <= {FROZEN, USERS}
    return network.eval()


def open_networks(names: Sequence[str], context: Context) -> dict[str, OpenNetwork]:
    """The trained networks on the run's backend. The numbers of rows and texts and the texts' length may differ between runs."""
    return {name: opened(name, context) for name in names}


def opened(name: str, context: Context) -> OpenNetwork:
    """A trained network on the run's backend."""
    from buzzer.engine import infer

    backend = infer.split_backend(context.backend)[0]
    network = without_tables(name, context.work)
    form = fast_networks.inference_form(network, np.load(context.work / VECTORS, mmap_mode="r"))
    example = fast_networks.example(form, context.params.tokens, sizes_of(context.work).user_dim)
    session = infer.prepare(
        form,
        backend=backend,
        example=example,
        outputs=("probability",),
        dynamic={key: fast_networks.AXES[key] for key in example},
        precision=context.precision,
        device=context.device,
        threads=context.threads,
    )
    if not isinstance(network, TextAndUsers):
        return OpenNetwork(session, tuple(example))
    device = context.device if infer.info(backend).takes_gpu_arrays else "cpu"
    table = user_vectors.UserTable(
        user_vectors.path(path(context.work, name)), device, context.gpu_memory_bytes
    )
    return OpenNetwork(session, tuple(example), context.params.tokens, table, network.sides)
