"""Trains the session networks. Each epoch cuts every session at a random place, as the organisers cut the test sessions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from buzzer.engine.frames.base import FIRST_CODE, Array
from buzzer.models.blend import best_of
from buzzer.models.epochs import Epochs, one_cycle
from buzzer.models.sigir_ecom.next_item.networks import Network, Sizes, TopK
from buzzer.models.sigir_ecom.next_item.params import Context
from buzzer.models.sigir_ecom.next_item.pretrain import item_vectors
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
    item_vectors: torch.Tensor  # float32 [codes, dim]: first vectors of the items

    @property
    def truth(self) -> Array:
        """The next product after each of `ends`, int64 [rows]."""
        return self.next_products[self.ends - 1]


def training_sessions(context: Context, arrays: EventArrays, sizes: Sizes) -> TrainingSessions:
    """Hold out sessions, cut them, and compute the items' first vectors."""
    torch.set_num_threads(context.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(context.seed)
    held = held_out(arrays.session, context.params.valid)
    vectors = item_vectors(arrays, held, sizes.codes, sizes.dim, context.params.first_norm)
    following = arrays.next_products(sizes.products)
    return TrainingSessions(
        arrays, following, held, held_cuts(arrays, following, held, context.seed), vectors
    )


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
    """AdamW with a one-cycle schedule. The winners use AdamW with a falling rate, 5e-4 to 2e-3, batch 256 to 512, and 3 epochs."""

    metric = "MRR@20"

    def __init__(
        self, context: Context, network: Network, sessions: TrainingSessions, checkpoint: Path
    ) -> None:
        super().__init__(network, context.device, checkpoint)
        params = context.params
        self.model, self.seed, self.size = network, context.seed, params.batch
        self.data, self.arrays = sessions, sessions.arrays
        self.learned = np.flatnonzero(~sessions.held)
        rows = len(self._cuts(np.random.default_rng(0)))
        steps = max(-(-rows // self.size), 1) * params.epochs
        optimizer = torch.optim.AdamW(network.parameters(), params.lr, weight_decay=1e-5, fused=True)
        self.optimise([optimizer], [one_cycle(optimizer, params.lr, steps, pct_start=0.1)])

    def _cuts(self, rng: np.random.Generator) -> Array:
        return cuts(self.arrays, self.data.next_products, self.learned, rng)

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
        return self.model.loss(*self._tensors(batch))

    def _tensors(self, ends: Array) -> list[torch.Tensor]:
        length = min(self.model.sizes.length, int(self.arrays.lengths(ends).max()))
        window = self.arrays.windows(ends, length)
        at = np.maximum(ends[:, None] - length + np.arange(length), 0)
        arrays = [np.where(window["kinds"] > 0, self.data.next_products[at], 0), *window.values()]
        return [torch.from_numpy(array).to(self.device) for array in arrays]

    def answers(self, k: int) -> tuple[Array, Array]:
        """Probabilities and codes of the network's k most probable products at the held-out cuts, [rows, k] each."""
        return answers_of(
            TopK(self.model, k), self.arrays, self.data.ends, self.model.sizes.length, self.device
        )

    def validate(self) -> float:
        """MRR@20 of the next product at the held-out cuts."""
        values, codes = self.answers(GUESSES)
        return mrr(self.data.truth, best_of([values], [codes], [1.0], GUESSES))


def mrr(truth: Array, guesses: Array) -> float:
    """Mean reciprocal rank of truth [rows] among guesses [rows, n]; 0 for rows whose truth is not among them."""
    hit = guesses == truth[:, None]
    return float((hit.any(axis=1) / (hit.argmax(axis=1) + 1)).mean())
