"""The networks of a run: their sizes, their weights, and the inference session of a bag."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine import infer
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array
from buzzer.engine.infer import Session
from buzzer.models.booking import features
from buzzer.models.booking.features import CODED, FIRST_CITY
from buzzer.models.booking.params import Bag, Context, Member, Params
from buzzer.models.booking.sizes import Sizes
from buzzer.models.weights import RANDOM

SIZES = "sizes.json"
OUTPUTS = ("probability", "city")


def sizes_of(e: Engine, tables: Mapping[str, Frame], cities: int, params: Params, network: str) -> Sizes:
    """The sizes of a network. A table has a row for every code that can occur.

    cities: number of cities that have a code of their own. A trained network has no more classes; one with random weights has the number
    of classes that the parameters name.
    """

    def codes(name: str) -> int:
        return int(e.height(tables[name])) + FIRST_CITY

    calendar = {"month": 13, "weekday_in": 7, "weekday_out": 7}
    its = params.of(network)
    classes = its.classes or cities
    return Sizes(
        cities=(classes if params.weights == RANDOM else min(classes, cities)) + FIRST_CITY,
        countries=codes("hotel_country"),
        context=tuple(codes(name) if name in CODED else calendar[name] for name in features.CONTEXT),
        lags=params.lags,
        dim=its.dim,
        hidden=its.hidden,
        layers=its.layers,
        heads=its.heads,
        dropout=its.dropout,
        candidates=params.candidates,
    )


def save_sizes(sizes: Mapping[str, Sizes], folder: Path) -> None:
    """Write the sizes of each network."""
    (folder / SIZES).write_text(json.dumps({name: its.as_dict() for name, its in sizes.items()}))


def read_sizes(folder: Path) -> dict[str, Sizes]:
    """The sizes of each network that `fit` saved."""
    saved = json.loads((folder / SIZES).read_text())
    return {name: Sizes(**its | {"context": tuple(its["context"])}) for name, its in saved.items()}


def initial(member: Member, sizes: Sizes, seed: int) -> Any:
    """A network with the random weights with which its training starts."""
    import torch

    from buzzer.models.booking.networks import NETWORKS

    torch.manual_seed(member.seed(seed))
    return NETWORKS[member.network](sizes)


def fitted(member: Member, sizes: Sizes, folder: Path) -> Any:
    """A network with the weights that `fit` saved, in evaluation mode."""
    import torch

    from buzzer.models.booking.networks import NETWORKS

    network = NETWORKS[member.network](sizes)
    network.load_state_dict(torch.load(folder / f"{member.name}.pt", weights_only=True))
    return network.eval()


def network_of(bag: Bag, sizes: Sizes, context: Context) -> Any:
    """A bag as one network. It returns only the most probable cities."""
    from buzzer.models.booking.bags import BagNetwork

    if context.params.weights == RANDOM:
        networks = [initial(member, sizes, context.seed).eval() for member in bag.members]
    else:
        networks = [fitted(member, sizes, context.work) for member in bag.members]
    return BagNetwork(networks, min(sizes.candidates, sizes.classes))


def graph(bag: Bag, folder: Path) -> Path:
    """The file of a trained bag's graph."""
    return folder / f"{bag.name}.onnx"


def store_bag(bag: Bag, sizes: Sizes, context: Context) -> None:
    """Save the graph of a bag of trained networks."""
    infer.store(network_of(bag, sizes, context), graph(bag, context.work), example(sizes), OUTPUTS)


def open_bag(bag: Bag, sizes: Sizes, context: Context) -> Session:
    """A session of a bag on the run's backend."""
    load = partial(network_of, bag, sizes, context)
    # Random weights have no file: they are those of the seed.
    random = context.params.weights == RANDOM
    return infer.prepare(
        load() if random else infer.Stored(graph(bag, context.work), load),
        backend=context.backend,
        example=example(sizes),
        outputs=OUTPUTS,
        precision=context.precision,
        device=context.device,
        threads=context.threads,
    )


def example(sizes: Sizes) -> dict[str, Array]:
    """Two rows of the networks' inputs."""
    return {
        "cities": np.ones((2, sizes.lags + 1), dtype=np.int64),
        "countries": np.ones((2, sizes.lags + 1), dtype=np.int64),
        "context": np.zeros((2, len(sizes.context)), dtype=np.int64),
        "numbers": np.zeros((2, len(features.NUMBERS)), dtype=np.float32),
    }
