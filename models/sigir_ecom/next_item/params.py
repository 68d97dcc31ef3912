"""The parameters of the `sigir-ecom-task1` task."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from buzzer.errors import UsageError, unknown_name
from buzzer.models.dataset_task import TaskContext
from buzzer.models.ranges import Share
from buzzer.models.sigir_ecom.sessions.params import SessionParams
from buzzer.models.weights import Weights

KINDS = ("gru", "causal", "masked")
# Between the seeds of networks with entries in `models`, and of a network's bags.
SEED_STEP, BAG_STEP = 104_729, 7_919


class Params(SessionParams):
    """See configs/tasks/sigir-ecom-task1.yaml."""

    networks: list[str]
    models: dict[str, dict[str, Any]]
    bags: PositiveInt
    weights: Weights
    open_in_turn: bool
    length: Annotated[int, Field(ge=4)]  # the counts read the last four products
    scored: Literal["products", "all"]
    followers: PositiveInt
    item_dim: NonNegativeInt
    first_norm: NonNegativeFloat
    layers: PositiveInt
    heads: PositiveInt
    smoothing: Share
    mask: Share
    patience: NonNegativeInt
    sessions: NonNegativeInt
    sampled_softmax: NonNegativeInt
    tune_epochs: NonNegativeInt
    tune_lr: PositiveFloat
    candidates: PositiveInt


Context = TaskContext[Params]


@dataclass(frozen=True)
class NetworkSettings:
    """The settings of one network: the task's parameters, with those of its entry in `models`."""

    name: str  # in results and file names; bags after the first end in their number
    network: str  # one of KINDS
    bag: int  # from 0
    place: int  # its place in `networks` if it has an entry in `models`, else 0; entries of equal sizes get different seeds
    dim: int
    item_dim: int
    layers: int
    heads: int
    dropout: float
    smoothing: float
    mask: float
    batch: int
    lr: float
    tune_epochs: int
    tune_lr: float

    def seed(self, seed: int) -> int:
        """The seed of this network in a run with `seed`."""
        return seed + SEED_STEP * self.place + BAG_STEP * self.bag


FIXED = ("name", "network", "bag", "place")
OWN = tuple(field.name for field in fields(NetworkSettings) if field.name not in FIXED)


def networks_of(params: Params) -> list[NetworkSettings]:
    """The networks to run, each in all its bags; the counts always run too.

    Raises UsageError for an unknown network or setting, and for values that no network can have.
    """
    if params.sampled_softmax == 1:
        raise UsageError("sampled_softmax 1 is no sample", "0 = all, or at least 2")
    if params.open_in_turn and params.latency:
        raise UsageError("networks that are opened in turn have no latency", "--set latency=0")
    return [settings_of(params, name, bag) for name in params.networks for bag in range(params.bags)]


def settings_of(params: Params, name: str, bag: int) -> NetworkSettings:
    """The settings of a bag of a network."""
    own = dict(entry_of(params, name))
    kind = own.pop("network", name)
    try:
        its = Params.read(f"network {name}", params.model_dump() | own)
    except UsageError as error:
        raise UsageError(error.message, f"see the entry of {name} in `models`") from error
    if its.dim % its.heads:
        raise UsageError(f"network {name}: dim {its.dim} is no multiple of heads {its.heads}")
    values = {field: getattr(its, field) for field in OWN} | {"item_dim": its.item_dim or its.dim}
    place = params.networks.index(name) if name in params.models else 0
    shown = f"{name}-{bag + 1}" if bag else name
    return NetworkSettings(shown, kind, bag, place, **values)


def entry_of(params: Params, name: str) -> Mapping[str, Any]:
    """The entry of a network in `models`; empty for one of KINDS without an entry. Raises UsageError for an invalid entry."""
    own = params.models.get(name, {})
    if (kind := own.get("network", name)) not in KINDS:
        raise unknown_name("network", kind, [*KINDS, *params.models])
    for key in own:
        if key not in (*OWN, "network"):
            raise unknown_name(f"setting of network {name}", key, OWN)
    return own
