"""Trains one network: seeded, on CPU or GPU, with early stopping, and checkpoints that an ended run is taken up from."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from buzzer.engine.frames.base import Array
from buzzer.models.booking.ensemble import accuracy, best_four
from buzzer.models.booking.features import GUESSES, Inputs
from buzzer.models.epochs import Epochs

VALID_BATCH = 2048


class Trainer(Epochs):
    """Adam under a one-cycle schedule (winners: peak 3e-3, a tenth of the steps to rise, batch 1024, 12 epochs)."""

    def __init__(
        self,
        network: nn.Module,
        train: Inputs,
        valid: Inputs,
        params: Any,
        seed: int,
        device: str,
        file: Path,
    ) -> None:
        super().__init__(network, file, device, "accuracy@4")
        self.train, self.valid, self.params, self.seed = train, valid, params, seed
        self.rows = np.flatnonzero(train.target >= 0)
        self.steps = max(len(self.rows) // params["batch"], 1)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=params["lr"], fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            params["lr"],
            total_steps=self.steps * params["epochs"] + 1,
            pct_start=0.1,
            div_factor=1e3,
        )
        self.resume()

    def train_epoch(self, epoch: int) -> float:
        torch.manual_seed(self.seed * 1000 + epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        self.network.train()
        total = 0.0
        for step in range(self.steps):
            rows = order[step * self.params["batch"] :][: self.params["batch"]]
            inputs = [torch.from_numpy(a).to(self.device) for a in self.train.batch(rows).values()]
            target = torch.from_numpy(self.train.target[rows]).to(self.device)
            loss = self.network.loss(target, *inputs)  # type: ignore[operator]
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total += float(loss.detach())
        return total / self.steps

    @torch.inference_mode()
    def validate(self) -> float:
        """Accuracy@4 over the held-out trips, whose rare and unseen last cities count as misses."""
        self.network.eval()
        guesses: list[Array] = []
        for start in range(0, len(self.valid), VALID_BATCH):
            batch = self.valid.batch(slice(start, start + VALID_BATCH))
            p = self.network(*(torch.from_numpy(a).to(self.device) for a in batch.values()))
            best = p.topk(min(GUESSES, p.shape[1]), dim=1)
            guesses.append(best_four([best.values.cpu().numpy()], [best.indices.cpu().numpy()], [1.0]))
        return accuracy(self.valid.target, np.concatenate(guesses)) if guesses else 0.0
