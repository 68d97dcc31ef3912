"""Several models on the same inputs, for backends whose sessions have one model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from buzzer.engine.infer.session import Array, Description, Session
from buzzer.errors import UsageError

MARGINS = "base_margin"  # the only input of which each model has its own column


class Several:
    """A session for each model. `base_margin` is [rows, models]; all models read the other inputs."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        self.sessions = sessions

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        outputs: dict[str, Array] = {}
        for i, session in enumerate(self.sessions):
            outputs |= session.run(own_inputs(batch, i, len(self.sessions)))
        return outputs

    def describe(self, batch: Mapping[str, Array] | None = None) -> Description:
        """The description of the first session, with the weights of all."""
        each = [session.describe() for session in self.sessions]
        sizes = [facts.weight_bytes for facts in each if facts.weight_bytes is not None]
        return replace(each[0], weight_bytes=sum(sizes) if len(sizes) == len(each) else None)

    def poison(self) -> None:
        for session in self.sessions:
            session.poison()

    def close(self) -> None:
        for session in self.sessions:
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def own_inputs(batch: Mapping[str, Array], number: int, models: int) -> dict[str, Array]:
    """The inputs of one model. Raises UsageError unless the base margins are [rows, models]."""
    inputs = dict(batch)
    if (margins := inputs.get(MARGINS)) is not None:
        if margins.ndim != 2 or margins.shape[1] != models:
            raise UsageError(f"{MARGINS} is {list(margins.shape)}, not [rows, {models}], for {models} models")
        inputs[MARGINS] = margins[:, number].copy()
    return inputs
