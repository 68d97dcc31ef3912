"""Trains the networks, and loads trained ones."""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from buzzer.engine import infer
from buzzer.engine.frames.base import FIRST_CODE, Array
from buzzer.errors import DataError
from buzzer.models.api import progress
from buzzer.models.by_model import of
from buzzer.models.epochs import Epochs, one_cycle
from buzzer.models.recsys2021 import fast_networks, feature_sets, user_vectors
from buzzer.models.recsys2021.network_files import OUTPUTS, SIZES, graph, interface, own_users, path
from buzzer.models.recsys2021.networks import (
    NETWORKS,
    USER_DEVIATION,
    VOCABULARY,
    Network,
    Sizes,
    TextAndUsers,
)
from buzzer.models.recsys2021.params import Context
from buzzer.models.recsys2021.trees import seed_of
from buzzer.models.weights import RANDOM

# Not saved with the other weights: the token vectors are in VECTORS, the users' vectors in their own file (`user_vectors`).
FROZEN, USERS = "text.words.weight", "users.weight"
VECTORS = "token_vectors.npy"
SCALED_ROWS = 200_000  # rows from which the columns' mean and deviation are computed


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


def prepare(context: Context, names: Sequence[str], users: int) -> str:
    """Write the networks' sizes, and the token vectors that they share. Returns the description of the vectors.

    users: number of users with a vector. The bags of a network divide them among themselves. A table has rows for `user_table_rows` users
    if that is more.
    """
    params = context.params
    users = max(users, params.user_table_rows)
    vectors, description = token_vectors(params.token_vectors, params.token_dim, context.seed)
    np.save(context.work / VECTORS, vectors)
    sizes = {
        name: Sizes(
            table_rows(users, params.bags_of(name)),
            of(params.user_dim, name),
            params.word_dim,
            of(params.hidden, name),
            of(params.dropout, name),
            params.features,
        )
        for name in names
    }
    (context.work / SIZES).write_text(json.dumps({name: asdict(own) for name, own in sizes.items()}))
    return description


def table_rows(users: int, bags: int) -> int:
    """Rows of the user table of one of `bags` networks: its share of the users, and the codes below FIRST_CODE."""
    return -(-users // bags) + FIRST_CODE


def own_batch(context: Context, name: str, bag: int, batch: Mapping[str, Array]) -> dict[str, Array]:
    """A batch as a network reads it: its number of tokens, and the codes of its own users."""
    params = context.params
    return {
        **batch,
        "tokens": batch["tokens"][:, : of(params.tokens, name)],
        "users": own_users(batch["users"], bag, params.bags_of(name)),
    }


def sizes_of(name: str, folder: Path) -> Sizes:
    """The sizes that `prepare` wrote for a network."""
    return Sizes(**json.loads((folder / SIZES).read_text())[name])


def built(name: str, sizes: Sizes, vectors: Tensor) -> Network:
    """An untrained network."""
    return NETWORKS[name](sizes, vectors, feature_sets.named(sizes.features).network(name))


def build(name: str, folder: Path) -> Network:
    """An untrained network with the sizes and token vectors that `prepare` wrote."""
    return built(name, sizes_of(name, folder), torch.from_numpy(np.load(folder / VECTORS)))


def without_tables(name: str, folder: Path) -> Network:
    """As `build`, but with tables of one row in place of those of frozen tokens and of users."""
    token_dim = np.load(folder / VECTORS, mmap_mode="r").shape[1]
    return built(name, replace(sizes_of(name, folder), users=1), torch.zeros(1, token_dim))


def outline(name: str, folder: Path) -> Network:
    """`build` without memory for the weights, for questions about the network's layers."""
    shape = np.load(folder / VECTORS, mmap_mode="r").shape
    with torch.device("meta"):
        return built(name, sizes_of(name, folder), torch.empty(shape))


class Trainer(Epochs):
    """Adam with a one-cycle schedule, and SparseAdam for the tables of users and words. The winners use Adam 1e-3, batches of 1024 to
    8192, and 2 epochs.

    There is no validation: the weights of the last epoch are kept.
    """

    def __init__(
        self, context: Context, name: str, network: Network, batch: Mapping[str, Array], y: Array, seed: int
    ) -> None:
        """batch: the network's inputs for all rows.  y: 0 or 1 [rows, targets]."""
        params = context.params
        self.model, self.seed = network, seed
        self.inputs = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in batch.items()}
        self.target = torch.from_numpy(y.astype(np.float32))
        network.begin(self.inputs["features"][:SCALED_ROWS], self.target.mean(dim=0))
        super().__init__(network, context.device)
        self.size = min(of(params.batch, name), len(y))
        self.steps = max(len(y) // self.size, 1)
        rate, steps = of(params.lr, name), self.steps * params.epochs
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
    """Train the bags of a network and save their weights, without the frozen token vectors.

    With random weights nothing is trained; only the scaling of the columns and the output bias follow from the rows.

    Yields the phase after each epoch. Returns the history: `epoch` and `loss` of each epoch of each bag. batch: inputs for all rows.
    y: 0 or 1 [rows, targets].
    """
    torch.set_num_threads(context.threads)
    torch.set_flush_denormal(True)
    history = []
    for bag in progress.over(range(context.params.bags_of(name))):
        seed = seed_of(context.seed, bag)
        torch.manual_seed(seed)
        file = path(context.work, name, bag)
        if context.params.weights == RANDOM:
            network = without_tables(name, context.work)
            network.begin(torch.from_numpy(batch["features"][:SCALED_ROWS]), torch.from_numpy(y.mean(axis=0)))
            save(network, file)
            if isinstance(network, TextAndUsers):
                save_random_users(sizes_of(name, context.work), file, context.params.user_type)
            continue
        network = build(name, context.work)
        trainer = Trainer(context, name, network, own_batch(context, name, bag, batch), y, seed)
        for _ in trainer.run(context.params.epochs):
            yield "networks"
        save(network, file)
        if isinstance(network, TextAndUsers):
            save_users(network.users.weight.detach().cpu(), file, context.params.user_type)
        history += trainer.state.history
    return history


def save(network: Network, file: Path) -> None:
    """Write the weights, without the vectors of tokens and users."""
    partial = file.with_suffix(".tmp")
    kept = {key: w.cpu() for key, w in network.state_dict().items() if key not in (FROZEN, USERS)}
    torch.save(kept, partial)
    partial.replace(file)


def save_users(table: Tensor, network: Path, user_type: str) -> None:
    """Write a table [users, user_dim] beside its network's file."""
    blocks = (block.numpy() for block in table.split(user_vectors.BLOCK))
    user_vectors.write(user_vectors.path(network), (len(table), table.shape[1]), user_type, blocks)


def save_random_users(sizes: Sizes, network: Path, user_type: str) -> None:
    """Write a table with the values of an untrained network, one block after the other."""

    def blocks() -> Iterator[Array]:
        for start in range(0, sizes.users, user_vectors.BLOCK):
            rows = min(user_vectors.BLOCK, sizes.users - start)
            block = torch.empty(rows, sizes.user_dim).normal_(std=USER_DEVIATION)
            if start == 0:
                block[0] = 0  # rare users
            yield block.numpy()

    user_vectors.write(user_vectors.path(network), (sizes.users, sizes.user_dim), user_type, blocks())


def optimizers_of(network: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Adam for the dense weights, and SparseAdam for tables of which a batch reads few rows."""
    tables = [m.weight for m in network.modules() if isinstance(m, nn.Embedding) and m.sparse]
    sparse = {id(weight) for weight in tables}
    others = [w for w in network.parameters() if w.requires_grad and id(w) not in sparse]
    lazy: list[torch.optim.Optimizer] = [torch.optim.SparseAdam(tables, lr=lr)] if tables else []
    return [torch.optim.Adam(others, lr=lr, fused=True), *lazy]


def trained(name: str, folder: Path, bag: int = 0) -> Network:
    """A network with the weights that `fit` saved, in evaluation mode, with the whole tables of tokens and users."""
    file = path(folder, name, bag)
    network = loaded(build(name, folder), file)
    if isinstance(network, TextAndUsers):
        network.users.weight.data.copy_(torch.from_numpy(np.load(user_vectors.path(file))))
    return network


def loaded(network: Network, file: Path) -> Network:
    """The network with the weights of a file, in evaluation mode."""
    missing, extra = network.load_state_dict(torch.load(file, weights_only=True), strict=False)
    assert not extra and set(missing) <= {FROZEN, USERS}
    return network.eval()


def form_of(name: str, bag: int, folder: Path) -> Any:
    """The inference form of a trained network."""
    network = loaded(without_tables(name, folder), path(folder, name, bag))
    return fast_networks.inference_form(network, np.load(folder / VECTORS, mmap_mode="r"))


def store_graphs(names: Sequence[str], context: Context) -> None:
    """Save the graphs of the networks, of all bags."""
    for name in names:
        example, axes = interface(name, context)
        for bag in range(context.params.bags_of(name)):
            form = form_of(name, bag, context.work)
            infer.store(form, graph(context.work, name, bag), example, OUTPUTS, axes)
