"""Trains the session networks: each epoch cuts every session anew, as the organisers cut the test's."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from buzzer.engine.frames.base import FIRST_CODE, Array
from buzzer.models.blend import best_of
from buzzer.models.epochs import Epochs, one_cycle
from buzzer.models.sigir_ecom.next_item.networks import Network, TopK
from buzzer.models.sigir_ecom.sessions.events import EventArrays, batches

VALID_BATCH = 512
SORTED = 16  # batches whose sessions are sorted by length together
GUESSES = 20
HELD_CUTS, MOST_HELD = 4, 20_000  # of a session that is held out, and of all


def cuts(flat: EventArrays, next_products: Array, sessions: Array, rng: np.random.Generator) -> Array:
    """One random cut a session, behind any of its events that a product follows; sessions without one have none: int64 [rows]."""
    useful = np.concatenate([[0], np.cumsum(next_products >= FIRST_CODE)])
    low, high = useful[flat.starts[sessions]], useful[flat.starts[sessions + 1]]
    some = high > low
    nth = low[some] + (rng.random(int(some.sum())) * (high - low)[some]).astype(np.int64)
    return np.searchsorted(useful, nth + 1, side="left")  # the event's number + 1


def held_cuts(flat: EventArrays, next_products: Array, held: Array, seed: int) -> Array:
    """Several cuts of each session that is held out, the same for all models: int64 [rows]."""
    rng, sessions = np.random.default_rng([seed, 99]), np.flatnonzero(held)
    ends = np.unique(np.concatenate([cuts(flat, next_products, sessions, rng) for _ in range(HELD_CUTS)]))
    return np.sort(rng.permutation(ends)[:MOST_HELD])


@torch.no_grad()
def lists(
    module: torch.nn.Module, flat: EventArrays, ends: Array, length: int, device: str
) -> tuple[Array, Array]:
    """What a module answers at each end: values and codes, [rows, n]."""
    found = []
    for rows in batches(len(ends), VALID_BATCH):
        window = flat.windows(ends[rows], length)
        out = module(*(torch.from_numpy(array).to(device) for array in window.values()))
        found.append([tensor.cpu().numpy() for tensor in out])
    values, codes = zip(*found, strict=True) if found else ([np.zeros((0, 1))], [np.zeros((0, 1), int)])
    return np.concatenate(values), np.concatenate(codes)


class Trainer(Epochs):
    """AdamW under a one-cycle schedule (winners: AdamW 5e-4 to 2e-3, falling, batch 256 to 512, 3 epochs)."""

    metric = "MRR@20"

    def __init__(
        self,
        network: Network,
        flat: EventArrays,
        next_products: Array,
        held: Array,
        valid: Array,
        context: Any,
        checkpoint: Path,
    ) -> None:
        """next_products: of `flat`; held: bool [sessions]; valid: their `held_cuts`."""
        super().__init__(network, context.device, checkpoint)
        params = context.params
        self.model, self.flat, self.seed, self.size = network, flat, context.seed, params["batch"]
        self.next, self.valid = next_products, valid
        self.sessions = np.flatnonzero(~held)
        rows = len(cuts(flat, self.next, self.sessions, np.random.default_rng(0)))
        steps = max(-(-rows // self.size), 1) * params["epochs"]
        optimizer = torch.optim.AdamW(network.parameters(), params["lr"], weight_decay=1e-5, fused=True)
        self.optimise([optimizer], [one_cycle(optimizer, params["lr"], steps, pct_start=0.1)])

    def batches(self, epoch: int) -> list[Array]:
        """Every session cut once at random, in batches of about the same length and in random order: less padding to compute with."""
        torch.manual_seed(self.seed * 1000 + epoch)
        rng = np.random.default_rng([self.seed, epoch])
        ends = rng.permutation(cuts(self.flat, self.next, self.sessions, rng))
        lengths, alike = self.flat.lengths(ends), list[Array]()
        for part in batches(len(ends), SORTED * self.size):
            ordered = ends[part][np.argsort(lengths[part], kind="stable")]
            alike += [ordered[rows] for rows in batches(len(ordered), self.size)]
        return [alike[i] for i in rng.permutation(len(alike))]

    def loss(self, batch: Array) -> torch.Tensor:
        """The network's loss on the windows before cuts, int64 [batch]."""
        return self.model.loss(*self._tensors(batch))

    def _tensors(self, ends: Array) -> list[torch.Tensor]:
        length = min(self.model.sizes.length, int(self.flat.lengths(ends).max()))
        window = self.flat.windows(ends, length)
        at = np.maximum(ends[:, None] - length + np.arange(length), 0)
        arrays = [np.where(window["kinds"] > 0, self.next[at], 0), *window.values()]
        return [torch.from_numpy(array).to(self.device) for array in arrays]

    def answers(self, k: int) -> tuple[Array, Array]:
        """The network's k likeliest products at the held-out cuts."""
        return lists(TopK(self.model, k), self.flat, self.valid, self.model.sizes.length, self.device)

    def validate(self) -> float:
        """MRR@20 of the next product over the held-out cuts."""
        values, codes = self.answers(GUESSES)
        return mrr(self.next[self.valid - 1], best_of([values], [codes], [1.0], GUESSES))


def mrr(truth: Array, guesses: Array) -> float:
    """Mean reciprocal rank of truth [rows] among guesses [rows, n], 0 where it is not among them."""
    hit = guesses == truth[:, None]
    return float((hit.any(axis=1) / (hit.argmax(axis=1) + 1)).mean())
