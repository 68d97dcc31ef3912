"""An embedding network for carts: DLRM (Naumov et al., 2019), as the winners' second model of the task."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buzzer.models.epochs import Epochs, one_cycle
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


class Trainer(Epochs):
    """Trains on the rows that are not held out and keeps the epoch with the least loss on the held-out rows.

    Winners: Adam 1e-3, batch 4096, 3 epochs.
    """

    metric = "valid_loss"
    lower_is_better = True

    def __init__(self, network: Dlrm, rows: Rows, params: Mapping[str, Any], context: Any) -> None:
        super().__init__(network, context.device)
        self.model, self.seed, self.size = network, context.seed, params["batch"]
        arrays = (rows.numbers, rows.codes, rows.y.astype(np.float32), rows.weights.astype(np.float32))
        self.inputs = [torch.from_numpy(array).to(self.device) for array in arrays]
        self.train, self.valid = (
            torch.from_numpy(np.flatnonzero(chosen)).to(self.device) for chosen in (~rows.held, rows.held)
        )
        network.fit_scale(self.inputs[0][self.train])
        optimizer = torch.optim.AdamW(network.parameters(), lr=params["lr"], weight_decay=0.05, fused=True)
        steps = -(-len(self.train) // self.size) * params["epochs"]
        self.optimise([optimizer], [one_cycle(optimizer, params["lr"], steps, pct_start=0.1)])

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
