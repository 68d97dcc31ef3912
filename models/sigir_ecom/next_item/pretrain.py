"""First vectors of products and pages, from which ones stand near each other in sessions."""

import math

import numpy as np
import torch
from torch import Tensor

from buzzer.engine.frames.base import Array
from buzzer.models.sigir_ecom.sessions.events import EventArrays

WINDOW = 3  # events apart, at most; a pair counts 1 / distance
WHOLE = math.lcm(
    *range(1, WINDOW + 1)
)  # weights are kept as whole numbers, so that sums are exact in any order
STEP = 1 << 21  # events whose pairs are there at a time


def pairs(flat: EventArrays, held: Array, codes: int, step: int = STEP) -> tuple[Tensor, Tensor]:
    """Pairs of codes of events near each other in sessions not held out, int64 [2, pairs], in both orders, sorted, each once; and the
    sums of their weights, float32 [pairs]."""
    keys, weights = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for start in range(0, len(flat.items), step):
        new = summed(*pairs_from(flat, held, codes, start, start + step))
        keys, weights = summed(np.concatenate([keys, new[0]]), np.concatenate([weights, new[1]]))
    at = np.stack(np.divmod(keys, codes))
    return torch.from_numpy(at), torch.from_numpy((weights / WHOLE).astype(np.float32))


def pairs_from(flat: EventArrays, held: Array, codes: int, start: int, end: int) -> tuple[Array, Array]:
    """The pairs whose earlier event is one of start .. end - 1: code * codes + other code, and weights times WHOLE."""
    items = flat.items[start : end + WINDOW].astype(np.int64)
    events = np.arange(start, start + len(items))
    session = np.searchsorted(flat.starts, events, side="right") - 1
    learned = ~held[session]
    keys, weights = [], []
    for distance in range(1, WINDOW + 1):
        n = min(end - start, max(len(items) - distance, 0))
        a, b = items[:n], items[distance:][:n]
        together = (session[:n] == session[distance:][:n]) & learned[:n]
        near = together & (a > 0) & (b > 0) & (a != b)
        keys += [a[near] * codes + b[near], b[near] * codes + a[near]]
        weights.append(np.full(2 * int(near.sum()), WHOLE // distance, dtype=np.int64))
    return np.concatenate(keys), np.concatenate(weights)


def summed(keys: Array, weights: Array) -> tuple[Array, Array]:
    """Each key once, ascending, with the sum of its weights."""
    found, at = np.unique(keys, return_inverse=True)
    return found, np.bincount(at, weights, len(found)).astype(np.int64)  # exact: whole numbers below 2**53


def item_vectors(flat: EventArrays, held: Array, codes: int, dim: int, norm: float) -> Tensor:
    """Vectors float32 [codes, dim] of mean length `norm` whose products come near the positive pointwise mutual information of the
    pairs, which is what word2vec tends to (Levy and Goldberg, NeurIPS 2014); by a randomised decomposition."""
    at, weights = pairs(flat, held, codes)
    totals = torch.zeros(codes).index_add_(0, at[0], weights)
    information = torch.log(weights * totals.sum() / (totals[at[0]] * totals[at[1]])).clamp(min=0)
    matrix = torch.sparse_coo_tensor(
        at, information, (codes, codes), check_invariants=False, is_coalesced=True
    )
    rank = min(dim, codes)
    left, singular, _ = torch.svd_lowrank(matrix, q=rank, niter=4)
    vectors = torch.zeros(codes, dim)
    vectors[:, :rank] = left * singular.sqrt()
    lengths = vectors.norm(dim=1)
    some = lengths[lengths > 0]
    return vectors * (norm / some.mean() if len(some) else 0.0)
