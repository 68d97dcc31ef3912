"""Trains a network, and opens trained ones as sessions."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from buzzer.engine.frames.base import Array
from buzzer.errors import DataError
from buzzer.models.api.context import RunContext
from buzzer.models.recsys2021 import features
from buzzer.models.recsys2021.networks import NETWORKS, VOCABULARY, Network, Sizes

SIZES, VECTORS = "networks.json", "token_vectors.npy"
SCALED_ROWS = 200_000  # that the columns' mean and deviation are taken from


def path(folder: Path, name: str) -> Path:
    return folder / f"network-{name}.pt"


def token_vectors(given: str, dim: int, seed: int) -> tuple[Array, str]:
    """Frozen vectors of the tokens, float32 [VOCABULARY, dim], and what they are, in words.

    given: an .npy file of that form (rows of bert-base-multilingual-cased's word table), or "" for random ones of deviation 1 / sqrt(dim).
    Raises DataError for a file that is missing or of another form.
    """
    if not given:
        random = np.random.default_rng([seed, 7]).standard_normal((VOCABULARY, dim), dtype=np.float32)
        return random / np.float32(dim**0.5), f"token vectors: random, seed {seed}, {dim} dimensions"
    try:
        found = np.load(given)
    except (OSError, ValueError) as error:
        raise DataError(f"token_vectors {given}: {error}", "an .npy file of float32") from error
    if found.ndim != 2 or len(found) != VOCABULARY or found.dtype.kind != "f":
        raise DataError(
            f"token_vectors {given}: {found.dtype} {list(found.shape)}, not floats [{VOCABULARY}, dimensions]",
            "the rows of bert-base-multilingual-cased's word table",
        )
    return found.astype(np.float32), f"token vectors: {given}, {found.shape[1]} dimensions"


def prepare(job: RunContext, users: int) -> tuple[Sizes, str]:
    """Write what all networks share: their sizes and the token vectors; returns those sizes and what the vectors are."""
    vectors, told = token_vectors(job.params["token_vectors"], job.params["token_dim"], job.seed)
    np.save(job.work / VECTORS, vectors)
    wanted = {key: job.params[key] for key in ("user_dim", "hidden", "dropout")}
    sizes = Sizes(users=users, token_dim=vectors.shape[1], **wanted)
    (job.work / SIZES).write_text(json.dumps(asdict(sizes)))
    return sizes, told


def build(name: str, folder: Path) -> Network:
    """A network of the sizes that `prepare` wrote, untrained but for the frozen vectors."""
    sizes = Sizes(**json.loads((folder / SIZES).read_text()))
    return NETWORKS[name](sizes, torch.from_numpy(np.load(folder / VECTORS)))


def fit(job: RunContext, name: str, batch: Mapping[str, Array], y: Array) -> Iterator[dict[str, float]]:
    """Train and save a network; yields each epoch's mean loss.

    batch: the network's inputs, all rows; y: 0 or 1 [rows, targets]. Adam under a one-cycle schedule, sparse for the tables of users
    and words (winners: Adam 1e-3, batches of 1024 to 8192, 2 epochs).
    """
    torch.manual_seed(job.seed)
    torch.set_num_threads(job.threads)
    torch.set_flush_denormal(True)
    network = build(name, job.work)
    rows = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in batch.items()}
    target = torch.from_numpy(y.astype(np.float32))
    network.begin(rows["features"][:SCALED_ROWS], target.mean(dim=0))
    network.to(job.device)
    size, epochs = min(job.params["batch"], len(y)), job.params["epochs"]
    steps = max(len(y) // size, 1)
    optimizers = optimizers_of(network, job.params["lr"])
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            o, job.params["lr"], total_steps=steps * epochs + 1, cycle_momentum=False
        )
        for o in optimizers
    ]
    for epoch in range(epochs):
        network.train()
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(job.seed * 1000 + epoch))
        total = 0.0
        for step in range(steps):
            chosen = order[step * size :][:size]
            inputs = [values[chosen].to(job.device) for values in rows.values()]
            loss = network.loss(target[chosen].to(job.device), *inputs)
            total += descend(loss, optimizers, schedules)
        yield {"epoch": epoch + 1, "loss": total / steps}
    aside = path(job.work, name).with_suffix(".tmp")
    torch.save(
        {key: value.cpu() for key, value in network.state_dict().items() if key != "text.words.weight"}, aside
    )
    aside.replace(path(job.work, name))


def optimizers_of(network: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Adam for the dense weights, and its lazy form for tables of which a batch touches few rows."""
    tables = [m.weight for m in network.modules() if isinstance(m, nn.Embedding) and m.sparse]
    sparse = {id(weight) for weight in tables}
    others = [w for w in network.parameters() if w.requires_grad and id(w) not in sparse]
    lazy: list[torch.optim.Optimizer] = [torch.optim.SparseAdam(tables, lr=lr)] if tables else []
    return [torch.optim.Adam(others, lr=lr, fused=True), *lazy]


def descend(loss: Tensor, optimizers: Sequence[torch.optim.Optimizer], schedules: Sequence[Any]) -> float:
    """One step of all optimizers; the loss."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer, schedule in zip(optimizers, schedules, strict=True):
        optimizer.step()
        schedule.step()
    return float(loss.detach())


def trained(name: str, folder: Path) -> Network:
    """A network as `fit` saved it."""
    network = build(name, folder)
    missing, extra = network.load_state_dict(torch.load(path(folder, name), weights_only=True), strict=False)
    assert not extra and set(missing) <= {"text.words.weight"}
    return network.eval()


def open_sessions(names: Sequence[str], job: RunContext) -> dict[str, Any]:
    """The trained networks on the job's backend. Rows and text length may change from run to run."""
    from buzzer.engine import infer

    example = {
        "features": np.zeros((2, len(features.names())), dtype=np.float32),
        "tokens": np.ones((2, job.params["tokens"]), dtype=np.int32),
        "users": np.zeros((2, 2), dtype=np.int64),
    }
    return {
        name: infer.prepare(
            trained(name, job.work),
            backend=infer.split_backend(job.backend)[0],
            example=example,
            outputs=("probability",),
            dynamic={"tokens": {0: "batch", 1: "length"}},
            precision=job.precision,
            device=job.device,
            threads=job.threads,
        )
        for name in names
    }
