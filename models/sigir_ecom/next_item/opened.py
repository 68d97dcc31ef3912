"""The fitted models as inference sessions, and their predictions for test sessions.

All sessions are open at once, or one after the other (parameter `open_in_turn`). In the latter case the memory is that of one network and of
the lists of a piece of test sessions.
"""

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine import infer
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import FIRST_CODE, Array
from buzzer.engine.infer import Session
from buzzer.models.blend import best_of
from buzzer.models.sigir_ecom.next_item import counts
from buzzer.models.sigir_ecom.next_item.params import (
    Context,
    NetworkSettings,
    Params,
    networks_of,
)
from buzzer.models.sigir_ecom.next_item.sizes import Sizes
from buzzer.models.sigir_ecom.sessions.events import EventArrays, Vocabulary, batches
from buzzer.models.sigir_ecom.sessions.products import Products
from buzzer.models.weights import RANDOM

GUESSES = 20
BASELINE = "counts"
ENSEMBLE = "ensemble"
BLEND, SIZES = "weights.json", "sizes.json"
OUTPUTS = ("value", "product")
Guesses = dict[str, Array]  # by model and of the ensemble: product codes, int32 [rows, GUESSES]
Lists = dict[str, tuple[Array, Array]]  # by model: values float32 and product codes int32, [rows, n] each


class Models:
    """The counts and networks that `fit` saved. Sessions are opened when they are first used."""

    def __init__(self, e: Engine, context: Context, vocabulary: Vocabulary, catalogue: Products) -> None:
        """Open all sessions, unless they are opened in turn."""
        self.params = context.params
        self.sizes = sizes_by_network(context)
        self.openers: dict[str, Callable[[], Session]] = {
            BASELINE: partial(open_counts, e, context, vocabulary)
        }
        for settings in networks_of(context.params):
            opener = partial(open_network, settings, context, self.sizes[settings.name], catalogue)
            self.openers[settings.name] = opener
        self.weights: dict[str, float] = json.loads((context.work / BLEND).read_text())
        self.described: dict[str, Any] = {}
        self.sessions: dict[str, Session] = {}
        if not self.params.open_in_turn:
            self.sessions = {name: opener() for name, opener in self.openers.items()}

    def guesses(self, arrays: EventArrays, ends: Array) -> Generator[str, None, Guesses]:
        """The best products after each of `ends`, int64 [rows]. Yields its phases."""
        each = self._in_turn(arrays, ends) if self.params.open_in_turn else self._together(arrays, ends)
        parts = yield from each
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _together(self, arrays: EventArrays, ends: Array) -> Generator[str, None, list[Guesses]]:
        parts = []
        for rows in batches(len(ends), self.params.predict_batch):
            yield "predict"
            parts.append(self.best(arrays.windows(ends[rows], self.params.length)))
        return parts

    def _in_turn(self, arrays: EventArrays, ends: Array) -> Generator[str, None, list[Guesses]]:
        slices = list(batches(len(ends), self.params.predict_batch))
        lists: list[Lists] = [{} for _ in slices]
        for name, opener in self.openers.items():
            yield "load"
            session = opener()
            for rows, row_lists in zip(slices, lists, strict=True):
                yield "predict"
                row_lists[name] = lists_of(session, arrays.windows(ends[rows], self.params.length))
            self._close(name, session)
        yield "predict"
        return [blended(row_lists, self.weights) for row_lists in lists]

    def best(self, batch: Mapping[str, Array]) -> Guesses:
        """The best products of a batch by each open session and by the ensemble."""
        return blended({name: lists_of(s, batch) for name, s in self.sessions.items()}, self.weights)

    def close(self) -> dict[str, Any]:
        """Close the open sessions. Returns the description of each model's session, by model."""
        for name, session in self.sessions.items():
            self._close(name, session)
        return self.described

    def _close(self, name: str, session: Session) -> None:
        self.described[name] = vars(session.describe())
        session.close()


def lists_of(session: Session, batch: Mapping[str, Array]) -> tuple[Array, Array]:
    """A model's values and product codes for a batch."""
    out = session.run(batch)
    return out["value"], out["product"].astype(np.int32)


def blended(lists: Lists, weights: Mapping[str, float]) -> Guesses:
    """The best products of each model's lists, and of their weighted sum."""
    guesses = {
        name: best_of([value], [code], [1.0], GUESSES).astype(np.int32)
        for name, (value, code) in lists.items()
    }
    values, codes = (list(part) for part in zip(*lists.values(), strict=True))
    ensemble = best_of(values, codes, [weights[name] for name in lists], GUESSES)
    return guesses | {ENSEMBLE: ensemble.astype(np.int32)}


def sizes_by_network(context: Context) -> dict[str, Sizes]:
    """The `Sizes` of each network that `fit` saved."""
    saved = json.loads((context.work / SIZES).read_text())
    return {name: Sizes(**fields) for name, fields in saved.items()}


def content_of(catalogue: Products) -> list[Any]:
    """Category, price and vectors as tensors, for the table of items."""
    import torch

    return [torch.from_numpy(array) for array in (catalogue.category, catalogue.price, catalogue.vectors)]


def counts_of(e: Engine, tables: Mapping[str, Frame], vocabulary: Vocabulary, params: Params) -> Any:
    """The `networks.Counts` of tables."""
    import torch

    from buzzer.models.sigir_ecom.next_item.networks import Counts

    pairs = []
    for name, keys in (("next", vocabulary.codes), ("near", vocabulary.products)):
        codes, shares = counts.dense(e, tables[name], keys, params.followers)
        pairs.append((torch.from_numpy(codes), torch.from_numpy(shares)))
    return Counts(pairs[0], pairs[1], vocabulary.products, GUESSES)


def saved_counts(e: Engine, context: Context, vocabulary: Vocabulary) -> Any:
    """The `networks.Counts` of the tables that `fit` saved."""
    tables = {name: e.read_parquet(context.work / f"counts-{name}.parquet") for name in counts.TABLES}
    return counts_of(e, tables, vocabulary, context.params)


def open_counts(e: Engine, context: Context, vocabulary: Vocabulary) -> Session:
    """A session of the saved counts, on the backend of `for_counts`."""
    model = infer.Stored(graph(BASELINE, context), partial(saved_counts, e, context, vocabulary))
    return session_of(model, for_counts(context), vocabulary.axes.shape[1])


def for_counts(context: Context) -> Context:
    """The settings of the counts' session. A backend that runs only encoder layers cannot look them up, so torch does, on the same
    device."""
    if infer.runs(context.backend, infer.NETWORKS):
        return context
    return replace(context, backend="torch_eager", precision="fp32")


def new_network(settings: NetworkSettings, sizes: Any, catalogue: Products, seed: int) -> Any:
    """An untrained network. seed: of the run."""
    import torch

    from buzzer.models.sigir_ecom.next_item.networks import NETWORKS

    torch.manual_seed(settings.seed(seed))
    return NETWORKS[settings.network](sizes, *content_of(catalogue))


def fitted_network(settings: NetworkSettings, context: Context, sizes: Sizes, catalogue: Products) -> Any:
    """The fitted network, with random weights if the run has them. It returns only the most probable products."""
    import torch

    from buzzer.models.sigir_ecom.next_item.networks import TopK

    network = new_network(settings, sizes, catalogue, context.seed)
    if context.params.weights != RANDOM:
        network.load_state_dict(torch.load(context.work / f"{settings.name}.pt", weights_only=True))
    k = min(context.params.candidates, sizes.products - FIRST_CODE)
    return TopK(network, k)


def open_network(settings: NetworkSettings, context: Context, sizes: Sizes, catalogue: Products) -> Session:
    """A session of the fitted network on the run's backend."""
    load = partial(fitted_network, settings, context, sizes, catalogue)
    # Random weights have no file: they are those of the seed.
    random = context.params.weights == RANDOM
    model = load() if random else infer.Stored(graph(settings.name, context), load)
    return session_of(model, context, sizes.numbers - 1)


def graph(model: str, context: Context) -> Path:
    """The file of a model's graph."""
    return context.work / f"{model}.onnx"


def store_models(
    e: Engine, context: Context, sizes: Mapping[str, Sizes], vocabulary: Vocabulary, catalogue: Products
) -> None:
    """Save the graphs of the counts and of all trained networks. Their tables and weights are saved before."""
    example = example_of(context.params.length, vocabulary.axes.shape[1])
    infer.store(saved_counts(e, context, vocabulary), graph(BASELINE, context), example, OUTPUTS)
    for settings in networks_of(context.params) if context.params.weights != RANDOM else ():
        network = fitted_network(settings, context, sizes[settings.name], catalogue)
        infer.store(network, graph(settings.name, context), example, OUTPUTS)


def example_of(length: int, dims: int) -> dict[str, Array]:
    """Two windows of events. dims: axes of search vectors."""
    return {
        "items": np.full((2, length), 2, dtype=np.int64),
        "kinds": np.full((2, length), 2, dtype=np.int64),
        "numbers": np.zeros((2, length, 1 + dims), dtype=np.float32),
    }


def session_of(model: Any, context: Context, dims: int) -> Session:
    """A session of a model that takes windows of events. dims: axes of search vectors."""
    return infer.prepare(
        model,
        backend=context.backend,
        example=example_of(context.params.length, dims),
        outputs=OUTPUTS,
        precision=context.precision,
        device=context.device,
        threads=context.threads,
    )
