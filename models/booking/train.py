"""Trains one model of the `booking` task."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from buzzer.engine.frames.base import Array
from buzzer.models.booking.ensemble import accuracy, best_four
from buzzer.models.booking.features import GUESSES, Inputs
from buzzer.models.booking.params import Context, Member
from buzzer.models.epochs import Epochs, one_cycle

VALID_BATCH = 2048


class Trainer(Epochs):
    """Adam with a one-cycle schedule. The winners use a peak of 3e-3, a tenth of the steps to rise, batch 1024 and 12 epochs."""

    metric = "accuracy@4"

    def __init__(
        self,
        context: Context,
        member: Member,
        network: nn.Module,
        train: Inputs,
        valid: Inputs,
        checkpoint: Path,
    ) -> None:
        super().__init__(network, context.device, checkpoint)
        params = context.params.of(member.network)
        self.train, self.valid, self.size = train, valid, params.batch
        self.seed = member.seed(context.seed)
        self.rows = np.flatnonzero(train.target >= 0)
        self.steps = max(len(self.rows) // self.size, 1)
        optimizer = torch.optim.Adam(network.parameters(), lr=params.lr, fused=True)
        steps = self.steps * params.epochs
        self.optimise([optimizer], [one_cycle(optimizer, params.lr, steps, pct_start=0.1, div_factor=1e3)])

    def batches(self, epoch: int) -> Iterator[Array]:
        """Rows with a target in random order. An incomplete last batch is left out."""
        torch.manual_seed(self.seed * 1000 + epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        for step in range(self.steps):
            yield order[step * self.size :][: self.size]

    def loss(self, batch: Array) -> Tensor:
        """The network's loss on rows, int64 [batch]."""
        target = torch.from_numpy(self.train.target[batch]).to(self.device)
        return self.network.loss(target, *self._tensors(self.train, batch))  # type: ignore[operator]

    def _tensors(self, inputs: Inputs, rows: Array | slice) -> list[Tensor]:
        return [torch.from_numpy(array).to(self.device) for array in inputs.batch(rows).values()]

    @torch.inference_mode()
    def validate(self) -> float:
        """Accuracy@4 over the held-out trips; a rare or unseen last city counts as a miss."""
        self.network.eval()
        guesses: list[Array] = []
        for start in range(0, len(self.valid), VALID_BATCH):
            p = self.network(*self._tensors(self.valid, slice(start, start + VALID_BATCH)))
            best = p.topk(min(GUESSES, p.shape[1]), dim=1)
            guesses.append(best_four([best.values.cpu().numpy()], [best.indices.cpu().numpy()], [1.0]))
        return accuracy(self.valid.target, np.concatenate(guesses)) if guesses else 0.0
