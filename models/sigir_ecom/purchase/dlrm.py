"""An embedding network for carts: DLRM (Naumov et al., 2019), as the winners' second model of the task."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buzzer.models.sigir_ecom.purchase.odds import Rows
from buzzer.models.sigir_ecom.sessions.events import KINDS, batches

FAR = 5.0  # deviations beyond which a scaled column is cut


class Dlrm(nn.Module):
    """Numbers through a dense layer, codes through tables; dot products of all pairs and a second dense net, which sees
    the dense layer whole: what the products see of it is too narrow for all columns.

    forward(numbers float32 [rows, columns], codes int64 [rows, n]) gives probabilities [rows]. The first `kinds` codes are kinds of
    events, the rest items, which share a table.
    """

    def __init__(
        self, numbers: int, codes: int, kinds: int, items: int, dim: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.kinds = kinds
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("deviation", torch.ones(numbers))
        self.kind, self.item = nn.Embedding(KINDS, dim), nn.Embedding(items, dim)
        for table in (self.kind, self.item):
            nn.init.normal_(table.weight, std=0.05)
        self.drop = nn.Dropout(dropout)
        self.dense = nn.Sequential(nn.Linear(numbers, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.narrow = nn.Linear(hidden, dim)
        pairs = torch.triu_indices(codes + 1, codes + 1, 1)
        self.register_buffer("pairs", pairs[0] * (codes + 1) + pairs[1], persistent=False)
        self.top = nn.Sequential(
            nn.Linear(hidden + pairs.shape[1], hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 1)
        )

    def fit_scale(self, numbers: Tensor) -> None:
        """Mean and deviation of the columns; missing values count as the mean."""
        there = torch.nan_to_num(numbers)
        deviation = there.std(dim=0)
        self.mean = there.mean(dim=0)
        self.deviation = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))

    def logits(self, numbers: Tensor, codes: Tensor) -> Tensor:
        scaled = (numbers - self.mean) / self.deviation
        x = self.dense(scaled.clamp(-FAR, FAR))
        tables = torch.cat([self.kind(codes[:, : self.kinds]), self.item(codes[:, self.kinds :])], dim=1)
        parts = torch.cat([self.narrow(x)[:, None], self.drop(tables)], dim=1)
        dots = (parts @ parts.transpose(1, 2)).flatten(1)[:, cast(Tensor, self.pairs)]
        return self.top(torch.cat([x, dots], dim=1))[:, 0]

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        return self.logits(numbers, codes).sigmoid()


def fit(network: Dlrm, rows: Rows, params: Mapping[str, Any], job: Any) -> Iterator[dict[str, float]]:
    """Train on the rows that are not held out, and keep the epoch of the least loss on those that are; yields each epoch's losses.

    Winners: Adam 1e-3, batch 4096, 3 epochs.
    """
    arrays = (rows.numbers, rows.codes, rows.y.astype(np.float32), rows.weights.astype(np.float32))
    inputs = [torch.from_numpy(a).to(job.device) for a in arrays]
    learn, valid = (torch.from_numpy(np.flatnonzero(r)).to(job.device) for r in (~rows.held, rows.held))
    network.to(job.device).fit_scale(inputs[0][learn])
    optimizer = torch.optim.AdamW(network.parameters(), lr=params["lr"], weight_decay=0.05, fused=True)
    steps = -(-len(learn) // params["batch"]) * params["epochs"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, params["lr"], total_steps=steps + 1, pct_start=0.1
    )
    best, weights = float("inf"), copy.deepcopy(network.state_dict())
    for epoch in range(params["epochs"]):
        torch.manual_seed(job.seed * 1000 + epoch)
        network.train()
        order, total, steps = learn[torch.randperm(len(learn)).to(job.device)], 0.0, 0
        for part in batches(len(order), params["batch"]):
            loss = loss_of(network, inputs, order[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total, steps = total + float(loss.detach()), steps + 1
        with torch.no_grad():
            held_loss = float(loss_of(network.eval(), inputs, valid)) if len(valid) else total / steps
        if held_loss < best:
            best, weights = held_loss, copy.deepcopy(network.state_dict())
        yield {"epoch": epoch + 1, "loss": total / steps, "valid_loss": held_loss}
    network.load_state_dict(weights)


def loss_of(network: Dlrm, inputs: list[Tensor], rows: Tensor) -> Tensor:
    """Weighted binary cross-entropy over some rows."""
    numbers, codes, target, weights = (tensor[rows] for tensor in inputs)
    losses = F.binary_cross_entropy_with_logits(network.logits(numbers, codes), target, reduction="none")
    return (losses * weights).sum() / weights.sum()
