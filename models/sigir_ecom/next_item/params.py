"""The parameters of the `sigir-ecom-task1` task."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from buzzer.errors import UsageError, unknown_name
from buzzer.models.dataset_task import TaskContext
from buzzer.models.sigir_ecom.sessions.params import SessionParams
from buzzer.models.weights import Weights

KINDS = ("gru", "causal", "masked")
# Between the seeds of networks with entries in `models`, and of a network's bags.
SEED_STEP, BAG_STEP = 104_729, 7_919


class Params(SessionParams):
    """See configs/tasks/sigir-ecom-task1.yaml."""

    networks: list[str]
    models: dict[str, dict[str, Any]]
    bags: int
    weights: Weights
    open_in_turn: bool
    length: int
    scored: Literal["products", "all"]
    followers: int
    item_dim: int
    first_norm: float
    layers: int
    heads: int
    smoothing: float
    mask: float
    patience: int
    sessions: int
    sampled_softmax: int
    tune_epochs: int
    tune_lr: float
    candidates: int


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
POSITIVE = ("dim", "item_dim", "layers", "heads", "batch")
OWN = tuple(field.name for field in fields(NetworkSettings) if field.name not in FIXED)


def networks_of(params: Params) -> list[NetworkSettings]:
    """The networks to run, each in all its bags; the counts always run too.

    Raises UsageError for an unknown network or setting, and for values that no network can have.
    """
    if params.length < 4:
        raise UsageError(f"length {params.length} is below 4", "--set length=20")
    if params.sampled_softmax == 1 or params.sampled_softmax < 0:
        raise UsageError(f"sampled_softmax {params.sampled_softmax} is no sample", "0 = all, or at least 2")
    if params.bags < 1:
        raise UsageError(f"bags {params.bags} is below 1", "--set bags=1")
    if params.sessions < 0:
        raise UsageError(f"sessions {params.sessions} is below 0", "0 = all")
    if params.open_in_turn and params.latency:
        raise UsageError("networks that are opened in turn have no latency", "--set latency=0")
    for name in params.networks:
        if params.networks.count(name) > 1:
            raise UsageError(f"network {name} is named twice", "bags=2 trains it twice")
    return [settings_of(params, name, bag) for name in params.networks for bag in range(params.bags)]


def settings_of(params: Params, name: str, bag: int) -> NetworkSettings:
    """The settings of a bag of a network."""
    own = entry_of(params, name)
    values = {field: own.get(field, getattr(params, field)) for field in OWN}
    values["item_dim"] = values["item_dim"] or values["dim"]
    for field in POSITIVE:
        if values[field] < 1:
            raise UsageError(f"network {name}: {field} {values[field]} is below 1", f"--set {field}=1")
    if values["dim"] % values["heads"]:
        raise UsageError(f"network {name}: dim {values['dim']} is no multiple of heads {values['heads']}")
    place = params.networks.index(name) if name in params.models else 0
    shown = f"{name}-{bag + 1}" if bag else name
    return NetworkSettings(shown, own.get("network", name), bag, place, **values)


def entry_of(params: Params, name: str) -> Mapping[str, Any]:
    """The entry of a network in `models`; empty for one of KINDS without an entry. Raises UsageError for an invalid entry."""
    own = params.models.get(name, {})
    if (kind := own.get("network", name)) not in KINDS:
        raise unknown_name("network", kind, [*KINDS, *params.models])
    for key, value in own.items():
        if key not in (*OWN, "network"):
            raise unknown_name(f"setting of network {name}", key, OWN)
        wanted = type(getattr(params, key, ""))
        if type(value) is not wanted and (type(value), wanted) != (int, float):
            raise UsageError(f"network {name}: {key}={value} is not of type {wanted.__name__}")
    return own
