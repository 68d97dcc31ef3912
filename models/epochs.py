"""The training loop of all networks: epochs of seeded batches, optional validation, early stopping and checkpoints."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from buzzer.models.api import progress
from buzzer.models.kept_pieces import KeptPieces

STATE = "state.pt"  # file of a checkpoint


@dataclass
class State:
    """Progress of a training run. It is part of a checkpoint."""

    epoch: int = 0  # epochs that have ended
    best: float = math.nan  # best validation score so far; nan before the first
    best_epoch: int = 0  # counted from 1; 0 before the first validation
    weights: dict[str, Any] = field(default_factory=dict)  # weights of the best epoch
    history: list[dict[str, float]] = field(default_factory=list)  # one entry per epoch: epoch, loss, score


class Epochs(ABC):
    """Trains a network epoch by epoch.

    A subclass defines the batches of an epoch, the loss of a batch and, optionally, a validation score. `__init__` moves the network to
    its device. After it, the subclass builds the optimizers and passes them to `optimise`.
    """

    metric = ""  # name of the validation score in `State.history`
    lower_is_better = False
    steps = 0  # batches of an epoch, if known; for the reports of progress

    def __init__(self, network: nn.Module, device: str, checkpoint: Path | None = None) -> None:
        """checkpoint: folder that is written after each epoch; training resumes from it. None = no checkpoints."""
        self.network, self.device, self.checkpoint = network.to(device), device, checkpoint
        self.optimizers: Sequence[Optimizer] = ()
        self.schedules: Sequence[LRScheduler] = ()
        self.state = State()

    @abstractmethod
    def batches(self, epoch: int) -> Iterable[Any]:
        """The batches of an epoch, counted from 0. Seeds the random numbers of the epoch."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch, a scalar."""

    def after_step(self) -> None:  # noqa: B027  optional hook
        """Runs after each optimizer step."""

    def validate(self) -> float | None:
        """Score on held-out data; None without held-out data, so that the last epoch's weights are kept."""
        return None

    def optimise(self, optimizers: Sequence[Optimizer], schedules: Sequence[LRScheduler]) -> None:
        """Set the optimizers and, in the same order, their schedules; then resume from the checkpoint, if there is one. A damaged
        checkpoint is removed with a notice, and training begins anew."""
        self.optimizers, self.schedules = optimizers, schedules
        if self.checkpoint is None or self.checkpoint.name not in KeptPieces(self.checkpoint.parent):
            return
        saved = torch.load(self.checkpoint / STATE, map_location=self.device, weights_only=True)
        self.state = State(**saved["state"])
        self.network.load_state_dict(saved["network"])
        for part in ("optimizers", "schedules"):
            for target, values in zip(getattr(self, part), saved[part], strict=True):
                target.load_state_dict(values)

    def run(self, epochs: int, patience: int | None = None) -> Iterator[State]:
        """The state after each epoch. At the end the network is in evaluation mode and has the weights of the best epoch, or of the
        last epoch if there is no validation.

        patience: stop after this many epochs without a better score; None for no early stopping.
        """
        state = self.state
        for _ in progress.over(range(state.epoch, epochs)):
            if patience is not None and state.epoch - state.best_epoch > patience:
                break
            loss = self._train(state.epoch)
            score = self.validate()
            state.epoch += 1
            state.history.append({"epoch": state.epoch, "loss": loss})
            if score is not None:
                state.history[-1][self.metric] = score
                self._keep_best(score)
            self._save()
            yield state
        if state.weights:
            self.network.load_state_dict(state.weights)
        self.network.eval()

    def _train(self, epoch: int) -> float:
        """One pass over the batches; the mean loss."""
        self.network.train()
        total, steps = 0.0, 0
        for batch in self.batches(epoch):
            loss = self.loss(batch)
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
                optimizer.step()
                schedule.step()
            self.after_step()
            total, steps = total + float(loss.detach()), steps + 1
            progress.report(min(steps / self.steps, 1.0) if self.steps else 0.0)
        return total / max(steps, 1)

    def _keep_best(self, score: float) -> None:
        state = self.state
        better = score < state.best if self.lower_is_better else score > state.best
        if better or math.isnan(state.best):
            state.best, state.best_epoch = score, state.epoch
            state.weights = copy.deepcopy(self.network.state_dict())

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        saved = {
            "state": vars(self.state),
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
        }
        with KeptPieces(self.checkpoint.parent).making(self.checkpoint.name) as folder:
            torch.save(saved, folder / STATE)


def one_cycle(optimizer: Optimizer, rate: float, steps: int, **options: Any) -> OneCycleLR:
    """A one-cycle schedule with the peak `rate` over `steps` optimizer steps."""
    total = steps + 1
    if total * options.get("pct_start", 0.3) == 1:
        total += 1  # the rise would have no step, and OneCycleLR divides by their number
    return OneCycleLR(optimizer, rate, total_steps=total, **options)
