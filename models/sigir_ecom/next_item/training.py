"""Trains the session networks. Each epoch cuts every session at a random place, as the organisers cut the test sessions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from buzzer.engine.frames.base import FIRST_CODE, Array
from buzzer.models.blend import best_of
from buzzer.models.epochs import Epochs, one_cycle
from buzzer.models.sigir_ecom.next_item.networks import Network, TopK
from buzzer.models.sigir_ecom.next_item.params import Context, NetworkSettings
from buzzer.models.sigir_ecom.next_item.pretrain import item_vectors
from buzzer.models.sigir_ecom.next_item.sampled_softmax import Sampler
from buzzer.models.sigir_ecom.sessions.events import EventArrays, batches
from buzzer.models.sigir_ecom.sessions.shared import held_out

VALID_BATCH = 512
SORTED = 16  # batches over which sessions are sorted by length
GUESSES = 20
HELD_CUTS, MOST_HELD = 4, 20_000  # cuts of each held-out session, and the maximum number of cuts in total


def cuts(arrays: EventArrays, next_products: Array, sessions: Array, rng: np.random.Generator) -> Array:
    """One random cut of each session, after an event that a product follows: event numbers, int64 [rows]. Sessions without such an event
    have no cut."""
    useful = np.concatenate([[0], np.cumsum(next_products >= FIRST_CODE)])
    low, high = useful[arrays.starts[sessions]], useful[arrays.starts[sessions + 1]]
    some = high > low
    nth = low[some] + (rng.random(int(some.sum())) * (high - low)[some]).astype(np.int64)
    return np.searchsorted(useful, nth + 1, side="left")  # number of the event + 1


def held_cuts(arrays: EventArrays, next_products: Array, held: Array, seed: int) -> Array:
    """Several cuts of each held-out session, the same for all models: int64 [rows]."""
    rng, sessions = np.random.default_rng([seed, 99]), np.flatnonzero(held)
    ends = np.unique(np.concatenate([cuts(arrays, next_products, sessions, rng) for _ in range(HELD_CUTS)]))
    return np.sort(rng.permutation(ends)[:MOST_HELD])


@dataclass(frozen=True)
class TrainingSessions:
    """The sessions on which networks are trained and validated."""

    arrays: EventArrays
    next_products: Array  # int64 [events]: `EventArrays.next_products`
    held: Array  # bool [sessions]: held out
    ends: Array  # int64 [rows]: cuts of the held-out sessions
    targets: Array  # int64 [events]: the code to predict after each event, 0 for none

    @property
    def truth(self) -> Array:
        """The next product after each of `ends`, int64 [rows]."""
        return self.next_products[self.ends - 1]

    @property
    def learned(self) -> Array:
        """The sessions that are not held out, int64 [sessions]."""
        return np.flatnonzero(~self.held)

    def counts(self, codes: int) -> Array:
        """Events of each code in the sessions that are not held out, int64 [codes]."""
        events = np.repeat(~self.held, np.diff(self.arrays.starts))
        return np.bincount(self.arrays.items[events], minlength=codes)[:codes]


def training_sessions(
    context: Context, arrays: EventArrays, products: int, scored: int, held: Array | None = None
) -> TrainingSessions:
    """The sessions, some of them held out and cut. held: bool [sessions]; None = by the parameter `valid`.

    products: codes of products; scored: codes that the networks score.
    """
    held = held_out(arrays.session, context.params.valid) if held is None else held
    following = arrays.next_products(products)
    targets = arrays.next_items() if scored > products else following
    return TrainingSessions(
        arrays, following, held, held_cuts(arrays, following, held, context.seed), targets
    )


def first_vectors(context: Context, sessions: TrainingSessions, codes: int, dim: int) -> torch.Tensor | None:
    """The items' first vectors, float32 [codes, dim], from the sessions that are not held out; None with `first_norm: 0`, for random ones.
    Sets torch's threads and seed."""
    torch.set_num_threads(context.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(context.seed)
    norm = context.params.first_norm
    return item_vectors(sessions.arrays, sessions.held, codes, dim, norm) if norm else None


def narrowed(vectors: torch.Tensor, dim: int) -> torch.Tensor:
    """The first `dim` columns of vectors [codes, columns], scaled to their mean length."""
    if dim == vectors.shape[1]:
        return vectors
    part = vectors[:, :dim]
    return part * (vectors.norm(dim=1).mean() / part.norm(dim=1).mean().clamp(min=1e-9))


@torch.no_grad()
def answers_of(
    module: torch.nn.Module, arrays: EventArrays, ends: Array, length: int, device: str
) -> tuple[Array, Array]:
    """A module's outputs for the windows before `ends`: values and codes, [rows, n] each."""
    outputs = []
    for rows in batches(len(ends), VALID_BATCH):
        window = arrays.windows(ends[rows], length)
        out = module(*(torch.from_numpy(array).to(device) for array in window.values()))
        outputs.append([tensor.cpu().numpy() for tensor in out])
    values, codes = zip(*outputs, strict=True) if outputs else ([np.zeros((0, 1))], [np.zeros((0, 1), int)])
    return np.concatenate(values), np.concatenate(codes)


class Trainer(Epochs):
    """AdamW with a one-cycle schedule. The winners use AdamW with a falling rate, 5e-4 to 2e-3, batch 256 to 512, and 3 epochs.

    With sampled softmax a step reads and writes only the items of its batch and sample, so its time does not grow with the catalogue:
    SparseAdam updates their vectors, without weight decay.
    """

    metric = "MRR@20"

    def __init__(
        self,
        context: Context,
        settings: NetworkSettings,
        network: Network,
        sessions: TrainingSessions,
        checkpoint: Path | None,
        epochs: int,
        rate: float,
    ) -> None:
        """rate: the peak of the learning rate."""
        super().__init__(network, context.device, checkpoint)
        params = context.params
        self.model, self.seed, self.size = network, settings.seed(context.seed), settings.batch
        self.data, self.arrays, self.sampler = sessions, sessions.arrays, None
        if params.sampled_softmax:
            self.sampler = Sampler(sessions.counts(network.sizes.scored), params.sampled_softmax)
        rows = len(self._cuts(np.random.default_rng(0)))
        self.steps = max(-(-rows // self.size), 1)
        self.learn(rate, epochs)

    def learn(self, rate: float, epochs: int) -> None:
        """Make the optimizers of all weights, for this many epochs with the peak `rate`."""
        items = [self.model.items.own.weight] if self.sampler else []
        others = [w for w in self.model.parameters() if all(w is not item for item in items)]
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, rate, weight_decay=1e-5, fused=True)
        ]
        optimizers += [torch.optim.SparseAdam(items, rate)] if items else []
        steps = self.steps * epochs
        self.optimise(optimizers, [one_cycle(o, rate, steps, pct_start=0.1) for o in optimizers])

    def _cuts(self, rng: np.random.Generator) -> Array:
        return cuts(self.arrays, self.data.next_products, self.data.learned, rng)

    def batches(self, epoch: int) -> list[Array]:
        """Cuts of all sessions in random order. A batch has sessions of similar length, so that there is little padding."""
        torch.manual_seed(self.seed * 1000 + epoch)
        rng = np.random.default_rng([self.seed, epoch])
        ends = rng.permutation(self._cuts(rng))
        lengths, alike = self.arrays.lengths(ends), list[Array]()
        for part in batches(len(ends), SORTED * self.size):
            ordered = ends[part][np.argsort(lengths[part], kind="stable")]
            alike += [ordered[rows] for rows in batches(len(ordered), self.size)]
        return [alike[i] for i in rng.permutation(len(alike))]

    def loss(self, batch: Array) -> torch.Tensor:
        """The network's loss on the windows before cuts, int64 [batch]."""
        sample = self.sampler.draw().to(self.device) if self.sampler else None
        target, items, kinds, numbers = self._tensors(batch)
        return self.model.loss(target, items, kinds, numbers, sample)

    def _tensors(self, ends: Array) -> list[torch.Tensor]:
        length = min(self.model.sizes.length, int(self.arrays.lengths(ends).max()))
        window = self.arrays.windows(ends, length)
        at = np.maximum(ends[:, None] - length + np.arange(length), 0)
        arrays = [np.where(window["kinds"] > 0, self.data.targets[at], 0), *window.values()]
        return [torch.from_numpy(array).to(self.device) for array in arrays]

    def answers(self, k: int) -> tuple[Array, Array]:
        """Probabilities and codes of the network's k most probable products at the held-out cuts, [rows, k] each."""
        return answers_of(
            TopK(self.model, k), self.arrays, self.data.ends, self.model.sizes.length, self.device
        )

    def validate(self) -> float | None:
        """MRR@20 of the next product at the held-out cuts."""
        values, codes = self.answers(GUESSES)
        return mrr(self.data.truth, best_of([values], [codes], [1.0], GUESSES))


class Tuner(Trainer):
    """Trains only the table of items further, on other sessions. Keeps the weights of the last epoch."""

    def learn(self, rate: float, epochs: int) -> None:
        """Make the optimizer of the items' learned vectors."""
        items = [self.model.items.own.weight]
        optimizer = (
            torch.optim.SparseAdam(items, rate)
            if self.sampler
            else torch.optim.AdamW(items, rate, weight_decay=0.0)
        )
        self.optimise([optimizer], [one_cycle(optimizer, rate, self.steps * epochs, pct_start=0.1)])

    def validate(self) -> float | None:
        """None: the sessions have no held-out part."""
        return None


def mrr(truth: Array, guesses: Array) -> float:
    """Mean reciprocal rank of truth [rows] among guesses [rows, n]; 0 for rows whose truth is not among them."""
    hit = guesses == truth[:, None]
    return float((hit.any(axis=1) / (hit.argmax(axis=1) + 1)).mean())
