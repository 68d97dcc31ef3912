"""A trained network that is ready to predict."""

from dataclasses import dataclass

import numpy as np

from buzzer.engine import infer
from buzzer.engine.frames.base import Array
from buzzer.models.recsys2021.batches import Batches
from buzzer.models.recsys2021.features import TARGETS
from buzzer.models.recsys2021.user_vectors import UserTable


@dataclass(frozen=True)
class OpenNetwork:
    """The session of a network's inference form (`fast_networks`), and its table of users."""

    session: infer.Session
    inputs: tuple[str, ...]  # names of the session's inputs
    tokens: int = 0  # most tokens of a text that the network reads
    users: UserTable | None = None  # None for a network that reads no users
    sides: tuple[int, ...] = ()  # see `TextAndUsers`

    def predict(self, batches: Batches) -> Array:
        """Probabilities float32 [rows, targets], on the host."""
        probabilities = np.empty((len(batches), len(TARGETS)), dtype=np.float32)
        vectors = self.users and self.users.of_piece(batches.users[:, list(self.sides)])
        for batch in batches:
            given = {"features": batch.features, "tokens": batch.tokens[:, : self.tokens], "text": batch.text}
            if vectors:
                given["users"] = vectors.of(batch.rows)
            run = self.session.run({name: given[name] for name in self.inputs})
            probabilities[batch.places] = run["probability"]
        return probabilities
