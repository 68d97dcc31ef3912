"""Fine-tunes a sentence classifier end to end: seeded, and taken up from its last epoch where a run was ended."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from buzzer.models.bert import tokenizer

WARMUP = 0.1  # share of the steps in which the learning rate rises (Devlin et al., appendix A.2)
DECAY = 0.01  # weight decay (ibid.)


@dataclass(frozen=True)
class Labelled:
    """Sentences as token ids, with their classes int64 [rows]."""

    ids: Sequence[Sequence[int]]
    targets: npt.NDArray[np.int64]

    def batch(self, rows: npt.NDArray[np.int64]) -> tuple[dict[str, Any], torch.Tensor]:
        return tokenizer.pad([self.ids[row] for row in rows], 4), torch.from_numpy(self.targets[rows])


class Tuner:
    """AdamW on cross-entropy under a linear rise and fall of the rate; tables of words and positions stay as they are.

    after_step: called after each step (a sparsity puts its zeros back there).
    """

    def __init__(
        self,
        model: nn.Module,
        train: Labelled,
        *,
        epochs: int,
        lr: float,
        batch: int,
        seed: int,
        file: Path,
        bf16: bool = False,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.train, self.epochs, self.batch = model, train, epochs, batch
        self.seed, self.file, self.bf16, self.after_step = seed, file, bf16, after_step
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        tuned = [p for p in model.parameters() if id(p) not in tables]
        self.optimizer = torch.optim.AdamW(tuned, lr, weight_decay=DECAY, fused=True)
        steps = epochs * -(-len(train.ids) // batch)
        rise = max(int(WARMUP * steps), 1)
        share = lambda step: min((step + 1) / rise, (steps - step) / max(steps - rise, 1))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, share)
        self.losses: list[float] = []
        if file.exists():
            self._resume()

    def _resume(self) -> None:
        saved = torch.load(self.file, weights_only=True)
        self.losses = saved["losses"]
        for part in ("model", "optimizer", "schedule"):
            getattr(self, part).load_state_dict(saved[part])

    def _save(self) -> None:
        parts = {part: getattr(self, part).state_dict() for part in ("model", "optimizer", "schedule")}
        aside = self.file.with_suffix(".tmp")
        torch.save(parts | {"losses": self.losses}, aside)
        aside.replace(self.file)

    def run(self) -> Iterator[float]:
        """The mean loss of each epoch as it ends."""
        while len(self.losses) < self.epochs:
            self.losses.append(self._epoch(len(self.losses)))
            self._save()
            yield self.losses[-1]
        self.model.eval()

    def _epoch(self, epoch: int) -> float:
        self.model.train()
        total, batches = 0.0, self.order(epoch)
        for rows in batches:
            inputs, targets = self.train.batch(rows)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                logits = self.model(*(torch.from_numpy(array) for array in inputs.values()))
            loss = F.cross_entropy(logits.float(), targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.after_step()
            total += float(loss.detach())
        return total / len(batches)

    def order(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """Batches of like length in random order, drawn anew each epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        drawn = rng.permutation(len(self.train.ids))
        lengths = np.array([len(x) for x in self.train.ids])
        rows = np.lexsort((drawn, lengths))
        batches = [rows[start : start + self.batch] for start in range(0, len(rows), self.batch)]
        return [batches[i] for i in rng.permutation(len(batches))]


@torch.inference_mode()
def accuracy(model: nn.Module, data: Labelled, batch: int) -> float:
    """Share of sentences whose class is found."""
    model.eval()
    hits = 0
    for rows in tokenizer.batches(data.ids, batch):
        inputs, targets = data.batch(rows)
        logits = model(*(torch.from_numpy(array) for array in inputs.values()))
        hits += int((logits.argmax(1) == targets).sum())
    return hits / len(data.ids)
