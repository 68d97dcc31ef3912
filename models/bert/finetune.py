"""Fine-tunes a sentence classifier end to end."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from buzzer.engine.quant import Sparsity
from buzzer.models.bert import tokenizer
from buzzer.models.bert.tokenizer import Labelled
from buzzer.models.epochs import Epochs

WARMUP = 0.1  # share of the steps during which the learning rate rises (Devlin et al., appendix A.2)
DECAY = 0.01  # weight decay (Devlin et al., appendix A.2)


class Tuner(Epochs):
    """AdamW on cross-entropy with a learning rate that rises and falls linearly. Embedding tables are not trained.

    There is no validation: the weights of the last epoch are kept.
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
        checkpoint: Path,
        bf16: bool = False,
        sparsity: Sparsity | None = None,
    ) -> None:
        """bf16: multiply in BF16 (autocast). sparsity: the weights that stay zero."""
        super().__init__(model, "cpu", checkpoint)
        self.train, self.size, self.seed = train, batch, seed
        self.bf16, self.sparsity = bf16, sparsity
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        tuned = [p for p in model.parameters() if id(p) not in tables]
        optimizer = torch.optim.AdamW(tuned, lr, weight_decay=DECAY, fused=True)
        self.steps = -(-len(train.ids) // batch)
        steps = epochs * self.steps
        rise = max(int(WARMUP * steps), 1)
        share = lambda step: min((step + 1) / rise, (steps - step) / max(steps - rise, 1))
        self.optimise([optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, share)])

    def batches(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """Batches of rows of similar length, in random order. Each epoch draws new batches and a new order."""
        rng = np.random.default_rng([self.seed, epoch])
        drawn = rng.permutation(len(self.train.ids))
        lengths = np.array([len(x) for x in self.train.ids])
        rows = np.lexsort((drawn, lengths))
        batches = [rows[start : start + self.size] for start in range(0, len(rows), self.size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def loss(self, batch: npt.NDArray[np.int64]) -> torch.Tensor:
        """Mean cross-entropy of rows, int64 [batch]."""
        inputs, targets = self.train.batch(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.network(*(torch.from_numpy(array) for array in inputs.values()))
        return F.cross_entropy(logits.float(), torch.from_numpy(targets))

    def after_step(self) -> None:
        """Sets pruned weights back to zero."""
        if self.sparsity is not None:
            self.sparsity.apply()


@torch.inference_mode()
def accuracy(model: nn.Module, data: Labelled, batch: int) -> float:
    """Share of sentences whose class is predicted correctly. batch: sentences per batch."""
    model.eval()
    hits = 0
    for rows in tokenizer.batches(data.ids, batch):
        inputs, targets = data.batch(rows)
        logits = model(*(torch.from_numpy(array) for array in inputs.values()))
        hits += int((logits.argmax(1).numpy() == targets).sum())
    return hits / len(data.ids)
