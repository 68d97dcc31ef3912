"""Trained networks that are ready to predict."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine import infer
from buzzer.engine.frames.base import Array
from buzzer.models.by_model import of
from buzzer.models.recsys2021 import user_vectors
from buzzer.models.recsys2021.batches import Batches
from buzzer.models.recsys2021.feature_sets import TARGETS
from buzzer.models.recsys2021.network_files import OUTPUTS, graph, interface, own_users, path
from buzzer.models.recsys2021.params import SIDES, Context
from buzzer.models.recsys2021.user_vectors import UserTable


@dataclass(frozen=True)
class OpenNetwork:
    """The session of a network's inference form (`fast_networks`), and its table of users."""

    session: infer.Session
    inputs: tuple[str, ...]  # names of the session's inputs
    tokens: int  # most tokens of a text that the network reads
    users: UserTable | None = None  # None for a network that reads no users
    sides: tuple[int, ...] = ()  # see `SIDES`
    bag: int = 0
    bags: int = 1  # networks that divide the users among themselves

    def predict(self, batches: Batches) -> Array:
        """Probabilities float32 [rows, targets], on the host."""
        probabilities = np.empty((len(batches), len(TARGETS)), dtype=np.float32)
        codes = own_users(batches.users, self.bag, self.bags)
        vectors = self.users and self.users.of_piece(codes[:, list(self.sides)])
        for batch in batches:
            given = {"features": batch.features, "tokens": batch.tokens[:, : self.tokens], "text": batch.text}
            if vectors:
                given["users"] = vectors.of(batch.rows)
            run = self.session.run({name: given[name] for name in self.inputs})
            probabilities[batch.places] = run["probability"]
        return probabilities


def open_networks(names: Sequence[str], context: Context) -> dict[str, list[OpenNetwork]]:
    """The bags of each trained network on the run's backend."""
    return {
        name: [opened(name, bag, context) for bag in range(context.params.bags_of(name))] for name in names
    }


def opened(name: str, bag: int, context: Context) -> OpenNetwork:
    """A trained network on the run's backend. The numbers of rows and texts and the texts' length may differ between runs."""
    params, backend = context.params, infer.split_backend(context.backend)[0]
    load = partial(form_of, name, bag, context.work)
    inputs, axes = interface(name, context)
    session = infer.prepare(
        infer.Stored(graph(context.work, name, bag), load),
        backend=backend,
        example=inputs,
        outputs=OUTPUTS,
        dynamic=axes,
        precision=context.precision,
        device=context.device,
        threads=context.threads,
    )
    tokens, sides = of(params.tokens, name), SIDES.get(name, ())
    if not sides:
        return OpenNetwork(session, tuple(inputs), tokens)
    device = context.device if infer.info(backend).takes_gpu_arrays else "cpu"
    file = user_vectors.path(path(context.work, name, bag))
    table = UserTable(file, device, context.gpu_memory_bytes)
    return OpenNetwork(session, tuple(inputs), tokens, table, sides, bag, params.bags_of(name))


def form_of(name: str, bag: int, folder: Path) -> Any:
    """The inference form of a trained network as a torch module."""
    from buzzer.models.recsys2021 import network_training

    return network_training.form_of(name, bag, folder)
