"""First vectors of products and pages, from their co-occurrence in sessions."""

import math

import numpy as np
import torch
from torch import Tensor

from buzzer.engine.frames.base import Array
from buzzer.models.sigir_ecom.sessions.events import EventArrays

WINDOW = 3  # largest distance of a pair, in events; a pair weighs 1 / distance
WHOLE = math.lcm(
    *range(1, WINDOW + 1)
)  # weights are stored times this, as integers, so that sums are exact in any order
STEP = 1 << 21  # events whose pairs are in memory at a time


def pairs(arrays: EventArrays, held: Array, codes: int, step: int = STEP) -> tuple[Tensor, Tensor]:
    """Pairs of codes of events near each other in sessions that are not held out, and the sums of their weights.

    The pairs, int64 [2, pairs], are unique, sorted and in both orders; the weights are float32 [pairs].
    """
    keys, weights = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for start in range(0, len(arrays.items), step):
        new = summed(*pairs_from(arrays, held, codes, start, start + step))
        keys, weights = summed(np.concatenate([keys, new[0]]), np.concatenate([weights, new[1]]))
    at = np.stack(np.divmod(keys, codes))
    return torch.from_numpy(at), torch.from_numpy((weights / WHOLE).astype(np.float32))


def pairs_from(arrays: EventArrays, held: Array, codes: int, start: int, end: int) -> tuple[Array, Array]:
    """The pairs whose earlier event is one of start, ..., end - 1: code * codes + other code, and weights times WHOLE, int64."""
    items = arrays.items[start : end + WINDOW].astype(np.int64)
    events = np.arange(start, start + len(items))
    session = np.searchsorted(arrays.starts, events, side="right") - 1
    learned = ~held[session]
    keys, weights = [], []
    for distance in range(1, WINDOW + 1):
        n = min(end - start, max(len(items) - distance, 0))
        a, b = items[:n], items[distance:][:n]
        same_session = (session[:n] == session[distance:][:n]) & learned[:n]
        near = same_session & (a > 0) & (b > 0) & (a != b)
        keys += [a[near] * codes + b[near], b[near] * codes + a[near]]
        weights.append(np.full(2 * int(near.sum()), WHOLE // distance, dtype=np.int64))
    return np.concatenate(keys), np.concatenate(weights)


def summed(keys: Array, weights: Array) -> tuple[Array, Array]:
    """Unique keys, ascending, and the sums of their weights."""
    unique, at = np.unique(keys, return_inverse=True)
    sums = np.bincount(at, weights, len(unique))  # exact: integers below 2**53
    return unique, sums.astype(np.int64)


def item_vectors(arrays: EventArrays, held: Array, codes: int, dim: int, norm: float) -> Tensor:
    """Vectors float32 [codes, dim] of mean length `norm`, whose dot products approximate the positive pointwise mutual information of the
    pairs: the limit of word2vec (Levy and Goldberg, NeurIPS 2014). Computed by a randomised decomposition."""
    at, weights = pairs(arrays, held, codes)
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
