"""Trains one network: seeded, on CPU or GPU, with early stopping, and checkpoints that an ended run is taken up from."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from buzzer.engine.frames.base import Array
from buzzer.models.booking.ensemble import accuracy, best_four
from buzzer.models.booking.features import GUESSES, Inputs

VALID_BATCH = 2048


@dataclass
class State:
    """Where training stands; the checkpoint is this."""

    epoch: int = 0
    best: float = -1.0  # accuracy@4 on the held-out trips' last cities
    best_epoch: int = 0
    weights: dict[str, Any] = field(default_factory=dict)  # of the best epoch
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
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
        self.network, self.train, self.valid, self.params, self.file = (
            network.to(device),
            train,
            valid,
            params,
            file,
        )
        self.seed, self.device = seed, device
        self.rows = np.flatnonzero(train.target >= 0)
        self.steps = max(len(self.rows) // params["batch"], 1)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=params["lr"])
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            params["lr"],
            total_steps=self.steps * params["epochs"] + 1,
            pct_start=0.1,
            div_factor=1e3,
        )
        self.state = State()
        if file.exists():
            self._resume()

    def _resume(self) -> None:
        saved = torch.load(self.file, map_location=self.device, weights_only=True)
        self.state = State(**saved["state"])
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])

    def _save(self) -> None:
        parts = {part: getattr(self, part).state_dict() for part in ("network", "optimizer", "schedule")}
        aside = self.file.with_suffix(".tmp")
        torch.save(parts | {"state": vars(self.state)}, aside)
        aside.replace(self.file)

    def run(self) -> Iterator[State]:
        """The state after each epoch; ends at the last, or when `patience` epochs brought nothing."""
        state = self.state
        while (
            state.epoch < self.params["epochs"] and state.epoch - state.best_epoch <= self.params["patience"]
        ):
            loss = self._epoch(state.epoch)
            score = self.validate()
            state.epoch += 1
            state.history.append({"epoch": state.epoch, "loss": loss, "accuracy@4": score})
            if score > state.best:
                state.best, state.best_epoch = score, state.epoch
                state.weights = copy.deepcopy(self.network.state_dict())
            self._save()
            yield state
        self.network.load_state_dict(state.weights)

    def _epoch(self, epoch: int) -> float:
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
