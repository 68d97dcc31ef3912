"""A linear softmax head on the sentence vectors of a frozen encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from buzzer.models.api import progress
from buzzer.models.bert import tokenizer
from buzzer.models.bert.encoder import SentenceClassifier
from buzzer.models.bert.tokenizer import Labelled

SCALE = 10.0  # vectors are multiplied by this for the fit; length 1 would need large weights, which is badly conditioned


@dataclass(frozen=True)
class Head:
    """A fitted head: weight [classes, dim] and bias [classes], for vectors of length 1."""

    weight: Tensor
    bias: Tensor
    l2: float  # penalty
    accuracy: float  # on the validation split


@torch.inference_mode()
def embed(model: SentenceClassifier, batch: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Sentence vectors of a padded batch, float32 [batch, dim]."""
    vectors: npt.NDArray[Any] = model.embed(*(torch.from_numpy(array) for array in batch.values())).numpy()
    return vectors


def vectors(model: SentenceClassifier, ids: Sequence[Sequence[int]], size: int) -> Tensor:
    """Sentence vectors of all rows, float32 [rows, dim], computed in batches of at most `size`."""
    embedded = torch.empty(len(ids), model.bert.config.hidden_size)
    for rows in progress.over(list(tokenizer.batches(ids, size))):
        embedded[rows] = torch.from_numpy(embed(model, tokenizer.pad([ids[row] for row in rows])))
    return embedded


def embedded(model: SentenceClassifier, parts: Sequence[Labelled], size: int) -> list[tuple[Tensor, Tensor]]:
    """Sentence vectors float32 [rows, dim] and classes int64 [rows] of each part. Reports the share that is done."""
    sizes = [len(part.ids) for part in parts]
    return [
        (vectors(model, part.ids, size), torch.from_numpy(part.targets))
        for part in progress.over(parts, sizes)
    ]


def fit(
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    classes: int,
    penalties: Sequence[float],
    seed: int,
) -> Head:
    """Fits a multinomial logistic regression with each L2 penalty, and returns the most accurate one on `valid`.

    train, valid: vectors float32 [rows, dim] and classes int64 [rows]. Each is fitted by L-BFGS to convergence.
    """
    heads = [solve(train, classes, penalty, seed) for penalty in penalties]
    scored = []
    for (weight, bias), penalty in zip(heads, penalties, strict=True):
        hits = (valid[0] @ weight.T + bias).argmax(dim=1) == valid[1]
        scored.append(Head(weight, bias, penalty, float(hits.float().mean())))
    return max(scored, key=lambda head: head.accuracy)


def solve(train: tuple[Tensor, Tensor], classes: int, penalty: float, seed: int) -> tuple[Tensor, Tensor]:
    """Weight [classes, dim] and bias [classes] that minimise the penalised cross-entropy."""
    torch.manual_seed(seed)
    x, y = train[0] * SCALE, train[1]
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, y) + penalty * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return weight.detach() * SCALE, bias.detach()
