"""The self-attention layer of the session encoders."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from buzzer.engine.fused.spec import StackLayer


class Attention(nn.Module):
    """Pre-norm self-attention with a learned bias for each head and distance, and a feed-forward layer."""

    def __init__(self, dim: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.distance = nn.Parameter(torch.zeros(heads, 2 * length - 1))
        steps = torch.arange(length)
        self.register_buffer("at", steps[:, None] - steps[None] + length - 1, persistent=False)
        self.feed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, hide: Tensor) -> Tensor:
        """The layer's output, of the shape of x, [rows, up to length, dim].

        hide: broadcast to [rows, heads, length, length], very negative where a key is hidden, else 0.
        """
        rows, length, dim = x.shape
        split = self.qkv(self.before(x)).view(rows, length, 3, self.heads, dim // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        at = cast(Tensor, self.at)[:length, :length]
        scores = q @ k.transpose(2, 3) / math.sqrt(dim // self.heads)
        weights = (scores + self.distance[:, at] + hide).softmax(dim=3)
        x = x + self.drop(self.out((weights @ v).transpose(1, 2).reshape(rows, length, dim)))
        return x + self.drop(self.feed(self.between(x)))

    def stack_layer(self) -> StackLayer:
        """The parts, for the fused backend."""
        up, down = cast(nn.Linear, self.feed[0]), cast(nn.Linear, self.feed[2])
        return StackLayer(self.before, self.qkv, self.distance, self.out, self.between, up, down)
