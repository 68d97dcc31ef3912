"""An embedding network for purchases: DLRM (Naumov et al., 2019), the winners' second model of the task."""

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buzzer.models.epochs import Epochs, one_cycle
from buzzer.models.sigir_ecom.purchase.blending import Rows
from buzzer.models.sigir_ecom.purchase.params import Context
from buzzer.models.sigir_ecom.sessions.events import KINDS, batches

FAR = 5.0  # scaled columns are clipped at this many deviations


class Dlrm(nn.Module):
    """A dense layer for numbers, tables for codes, dot products of all pairs, and a second dense net.

    The second net also reads the output of the dense layer: its projection in the dot products is too narrow for all columns.
    The first `kinds` codes are kinds of events, the others items, which share a table.
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
        """Set mean and deviation of the columns from rows, float32 [rows, columns]; missing values count as 0."""
        filled = torch.nan_to_num(numbers)
        deviation = filled.std(dim=0)
        self.mean = filled.mean(dim=0)
        self.deviation = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))

    def logits(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Log odds [rows] of numbers float32 [rows, columns] and codes int64 [rows, n]."""
        scaled = (numbers - self.mean) / self.deviation
        x = self.dense(scaled.clamp(-FAR, FAR))
        tables = torch.cat([self.kind(codes[:, : self.kinds]), self.item(codes[:, self.kinds :])], dim=1)
        parts = torch.cat([self.narrow(x)[:, None], self.drop(tables)], dim=1)
        dots = (parts @ parts.transpose(1, 2)).flatten(1)[:, cast(Tensor, self.pairs)]
        return self.top(torch.cat([x, dots], dim=1))[:, 0]

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Probabilities [rows]."""
        return self.logits(numbers, codes).sigmoid()


class Trainer(Epochs):
    """Trains on the rows that are not held out and keeps the epoch with the least loss on the held-out rows.

    Winners: Adam 1e-3, batch 4096, 3 epochs.
    """

    metric = "valid_loss"
    lower_is_better = True

    def __init__(self, context: Context, network: Dlrm, rows: Rows) -> None:
        super().__init__(network, context.device)
        params = context.params
        self.model, self.seed, self.size = network, context.seed, params.batch
        arrays = (rows.numbers, rows.codes, rows.y.astype(np.float32), rows.weights.astype(np.float32))
        self.inputs = [torch.from_numpy(array).to(self.device) for array in arrays]
        self.train, self.valid = (
            torch.from_numpy(np.flatnonzero(chosen)).to(self.device) for chosen in (~rows.held, rows.held)
        )
        network.fit_scale(self.inputs[0][self.train])
        optimizer = torch.optim.AdamW(network.parameters(), lr=params.lr, weight_decay=0.05, fused=True)
        self.steps = -(-len(self.train) // self.size)
        steps = self.steps * params.epochs
        self.optimise([optimizer], [one_cycle(optimizer, params.lr, steps, pct_start=0.1)])

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """The training rows in random order."""
        torch.manual_seed(self.seed * 1000 + epoch)
        order = self.train[torch.randperm(len(self.train)).to(self.device)]
        for part in batches(len(order), self.size):
            yield order[part]

    def loss(self, batch: Tensor) -> Tensor:
        """Weighted binary cross-entropy of rows, int64 [batch]."""
        numbers, codes, target, weights = (tensor[batch] for tensor in self.inputs)
        losses = F.binary_cross_entropy_with_logits(
            self.model.logits(numbers, codes), target, reduction="none"
        )
        return (losses * weights).sum() / weights.sum()

    @torch.no_grad()
    def validate(self) -> float | None:
        """The loss on the held-out rows."""
        self.network.eval()
        return float(self.loss(self.valid)) if len(self.valid) else None
