"""First vectors of products and pages, from which ones stand near each other in sessions."""

import numpy as np
import torch
from torch import Tensor

from buzzer.engine.frames.base import Array
from buzzer.models.sigir_ecom.events import Flat

WINDOW = 3  # events apart, at most; a pair counts 1 / distance


def pairs(flat: Flat, held: Array) -> tuple[Tensor, Tensor]:
    """Codes of pairs of events of sessions not held out, in both orders, int64 [2, pairs], and their weights float32 [pairs]."""
    session = np.repeat(np.arange(len(flat)), np.diff(flat.starts))
    both, weights = [], []
    for distance in range(1, WINDOW + 1):
        a, b = flat.items[:-distance], flat.items[distance:]
        same = (session[:-distance] == session[distance:]) & ~held[session[distance:]]
        near = same & (a > 0) & (b > 0) & (a != b)
        both += [np.stack([a[near], b[near]]), np.stack([b[near], a[near]])]
        weights.append(np.full(2 * int(near.sum()), 1 / distance, dtype=np.float32))
    return torch.from_numpy(np.concatenate(both, axis=1)), torch.from_numpy(np.concatenate(weights))


def item_vectors(flat: Flat, held: Array, codes: int, dim: int, norm: float) -> Tensor:
    """Vectors float32 [codes, dim] of mean length `norm` whose products come near the positive pointwise mutual information of the
    pairs, which is what word2vec tends to (Levy and Goldberg, NeurIPS 2014); by a randomised decomposition."""
    at, weights = pairs(flat, held)
    counts = torch.sparse_coo_tensor(at, weights, (codes, codes), check_invariants=False).coalesce()
    at, weights = counts.indices(), counts.values()
    totals = torch.zeros(codes).index_add_(0, at[0], weights)
    information = torch.log(weights * totals.sum() / (totals[at[0]] * totals[at[1]])).clamp(min=0)
    matrix = torch.sparse_coo_tensor(at, information, (codes, codes), check_invariants=False).coalesce()
    rank = min(dim, codes)
    left, singular, _ = torch.svd_lowrank(matrix, q=rank, niter=4)
    vectors = torch.zeros(codes, dim)
    vectors[:, :rank] = left * singular.sqrt()
    lengths = vectors.norm(dim=1)
    some = lengths[lengths > 0]
    return vectors * (norm / some.mean() if len(some) else 0.0)
