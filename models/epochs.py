"""Training epoch by epoch: the best is kept, and an ended run is taken up from its checkpoint."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass
class State:
    """Where training stands; the checkpoint is this."""

    epoch: int = 0
    best: float = -1.0  # score on what is held out
    best_epoch: int = 0
    weights: dict[str, Any] = field(default_factory=dict)  # of the best epoch
    history: list[dict[str, float]] = field(default_factory=list)


class Epochs:
    """`train_epoch` and `validate` are the subclass's, as are `optimizer` and `schedule`, which it sets before `resume`."""

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler

    def __init__(self, network: nn.Module, file: Path, device: str, metric: str) -> None:
        self.network, self.file, self.device, self.metric = network.to(device), file, device, metric
        self.state = State()

    def train_epoch(self, epoch: int) -> float:
        """One epoch, from 0; its mean loss."""
        raise NotImplementedError

    def validate(self) -> float:
        """Score on what is held out, higher is better."""
        raise NotImplementedError

    def resume(self) -> None:
        """Take the checkpoint up, where there is one."""
        if not self.file.exists():
            return
        saved = torch.load(self.file, map_location=self.device, weights_only=True)
        self.state = State(**saved["state"])
        for part in ("network", "optimizer", "schedule"):
            getattr(self, part).load_state_dict(saved[part])

    def _save(self) -> None:
        parts = {part: getattr(self, part).state_dict() for part in ("network", "optimizer", "schedule")}
        aside = self.file.with_suffix(".tmp")
        torch.save(parts | {"state": vars(self.state)}, aside)
        aside.replace(self.file)

    def run(self, epochs: int, patience: int) -> Iterator[State]:
        """The state after each epoch; ends at the last, or when `patience` epochs brought nothing. Then the network has the best
        epoch's weights."""
        state = self.state
        while state.epoch < epochs and state.epoch - state.best_epoch <= patience:
            loss = self.train_epoch(state.epoch)
            score = self.validate()
            state.epoch += 1
            state.history.append({"epoch": state.epoch, "loss": loss, self.metric: score})
            if score > state.best:
                state.best, state.best_epoch = score, state.epoch
                state.weights = copy.deepcopy(self.network.state_dict())
            self._save()
            yield state
        self.network.load_state_dict(state.weights)
