"""What the fused backend takes: a BERT-like encoder, said in its parts by the module itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@dataclass(frozen=True)
class EncoderLayer:
    """A post-norm transformer layer; each linear is an nn.Linear, or a QuantLinear of `buzzer.engine.quant`."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module
    attention_norm: nn.LayerNorm
    up: nn.Module
    down: nn.Module
    norm: nn.LayerNorm


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder by its parts.

    words [vocabulary, size], positions [longest, size], types [types, size]: embedding tables, summed and normed.
    inputs: what the module's forward takes, by role: `ids`, `mask` and perhaps `types` of padded rows, or `ids`,
        `positions` and `segments` of packed ones.
    act: name of the feed-forward activation (see `kernels.jit.ACTIVATIONS`).
    pooling: "none" (the output is every token's state), "first" or "mean" token; unit: divided by its length.
    tail: linear layers on the pooled vector, each with its activation.
    """

    words: Tensor
    positions: Tensor
    types: Tensor
    norm: nn.LayerNorm
    layers: Sequence[EncoderLayer]
    heads: int
    act: str
    inputs: tuple[str, ...]
    pooling: str = "none"
    unit: bool = False
    tail: Sequence[tuple[nn.Module, str]] = ()


@runtime_checkable
class Encoder(Protocol):
    """A torch module that can say its parts."""

    def encoder_spec(self) -> EncoderSpec: ...
