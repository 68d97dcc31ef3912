"""A trained network that is ready to predict."""

from dataclasses import dataclass

import numpy as np

from buzzer.engine import infer
from buzzer.engine.frames.base import FIRST_CODE, Array
from buzzer.models.recsys2021.batches import Batches
from buzzer.models.recsys2021.feature_sets import TARGETS
from buzzer.models.recsys2021.user_vectors import UserTable


@dataclass(frozen=True)
class OpenNetwork:
    """The session of a network's inference form (`fast_networks`), and its table of users."""

    session: infer.Session
    inputs: tuple[str, ...]  # names of the session's inputs
    tokens: int  # most tokens of a text that the network reads
    users: UserTable | None = None  # None for a network that reads no users
    sides: tuple[int, ...] = ()  # see `TextAndUsers`
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


def own_users(users: Array, bag: int, bags: int) -> Array:
    """The codes of users in the table of one of `bags` networks. The users of the other networks have code 0, like rare users.

    users: int64 [rows, 2], codes from FIRST_CODE, 0 = rare, on the host or the device.
    """
    if bags == 1:
        return users
    numbers = users - FIRST_CODE
    return (numbers // bags + FIRST_CODE) * ((numbers >= 0) & (numbers % bags == bag))
