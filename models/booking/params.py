"""The parameters of the `booking` task, and the models that they define.

A parameter of a network's sizes or training is one value for all networks, or a mapping with a value for each network.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from buzzer.errors import UsageError, unknown_name
from buzzer.models.booking.features import GUESSES
from buzzer.models.by_model import ByModel, check_complete, check_names, of
from buzzer.models.dataset_task import TaskContext, TaskParams
from buzzer.models.ranges import Rows, Share
from buzzer.models.weights import Weights


class Params(TaskParams):
    """See configs/tasks/booking.yaml."""

    networks: list[str]
    weights: Weights
    lags: PositiveInt
    rare: NonNegativeInt
    classes: ByModel[NonNegativeInt]
    dim: ByModel[PositiveInt]
    hidden: ByModel[PositiveInt]
    layers: ByModel[PositiveInt]
    heads: ByModel[PositiveInt]
    dropout: ByModel[Share]
    candidates: Annotated[int, Field(ge=GUESSES)]
    folds: ByModel[PositiveInt]
    bags: ByModel[PositiveInt]
    epochs: ByModel[PositiveInt]
    patience: NonNegativeInt
    batch: ByModel[Rows]
    lr: ByModel[PositiveFloat]
    valid: Share
    predict_batch: PositiveInt

    def of(self, network: str) -> "NetworkParams":
        """The parameters of one network. Raises UsageError for a mapping without it, or with a name that is no network."""
        its = NetworkParams(
            **{field.name: self._value(field.name, network) for field in fields(NetworkParams)}
        )
        if network == "encoder" and its.dim % its.heads:
            raise UsageError(f"parameter dim={its.dim} of the encoder is not a multiple of heads={its.heads}")
        return its

    def _value(self, key: str, network: str) -> Any:
        value = getattr(self, key)
        if isinstance(value, dict):
            check_names(key, "network", value, tuple(WEIGHTS))
            check_complete(key, "network", value, (network,))
        return of(value, network)


@dataclass(frozen=True)
class NetworkParams:
    """The sizes and the training of one network; the fields of `Params` that may differ by network."""

    classes: int
    dim: int
    hidden: int
    layers: int
    heads: int
    dropout: float
    folds: int
    bags: int
    epochs: int
    batch: int
    lr: float


@dataclass(frozen=True)
class Member:
    """One trained model of a network: the fold that it does not train on, and its repetition, both counted from 0."""

    network: str
    bag: int
    fold: int
    folds: int  # of the network

    @property
    def number(self) -> int:
        """Its position among the members of its network."""
        return self.bag * self.folds + self.fold

    @property
    def name(self) -> str:
        """The name of its files: that of the network for member 0."""
        return f"{self.network}-{self.number}" if self.number else self.network

    def seed(self, seed: int) -> int:
        """The seed of its weights and batches in a run with `seed`, which member 0 uses itself."""
        return seed + 7919 * self.number


@dataclass(frozen=True)
class Bag:
    """One repetition of a network: a member for each fold. Its members run in one session."""

    network: str
    number: int
    folds: int

    @property
    def name(self) -> str:
        """The network's name for bag 0."""
        return f"{self.network}-bag{self.number}" if self.number else self.network

    @property
    def members(self) -> list[Member]:
        """Its models, one for each fold."""
        return [Member(self.network, self.number, fold, self.folds) for fold in range(self.folds)]


# Weights of the winning submission.
WEIGHTS = {"gru": 0.32, "encoder": 0.34, "mlp": 0.34}
Context = TaskContext[Params]


def network_names(params: Params) -> list[str]:
    """The networks to run. Raises UsageError for an unknown network, or if there is none."""
    for name in params.networks:
        if name not in WEIGHTS:
            raise unknown_name("network", name, WEIGHTS)
    if not params.networks:
        raise UsageError("no network to run", f"--set networks=[{','.join(WEIGHTS)}]")
    return list(params.networks)


def bags_of(params: Params) -> list[Bag]:
    """The bags of a run, network by network."""
    its = {name: params.of(name) for name in network_names(params)}
    return [Bag(name, number, of.folds) for name, of in its.items() for number in range(of.bags)]
