"""What the fused backend takes: an encoder, said in its parts by the module itself. Either BERT-like, whole; or pre-norm layers
on vectors that the module makes of its inputs, with a head of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from buzzer.engine.infer.session import Array


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


@dataclass(frozen=True)
class StackLayer:
    """A pre-norm transformer layer. distances [heads, 2 * longest - 1]: what is added to the score of a key
    longest - 1 tokens after the token, ..., longest - 1 before it."""

    before: nn.LayerNorm
    qkv: nn.Linear  # queries, keys and values side by side
    distances: Tensor
    out: nn.Linear
    between: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear


@dataclass(frozen=True)
class StackSpec:
    """Pre-norm layers and the norm after the last; act: as of `EncoderSpec`; causal: a token sees those before it only."""

    layers: Sequence[StackLayer]
    end: nn.LayerNorm
    heads: int
    act: str
    causal: bool


@runtime_checkable
class Stack(Protocol):
    """A torch module around pre-norm layers, of which rows begin with padding and end with the token whose state counts.

    Its forward is `outputs(the layers' states of vectors(*inputs) at each row's last token, *inputs)`.
    """

    def stack_spec(self) -> StackSpec:
        """The layers. Raises UnsupportedError for a module that has none of this form."""
        ...

    def attended(self, *inputs: Array) -> Array:
        """Which tokens are no padding: bool [rows, length]."""
        ...

    def vectors(self, *inputs: Tensor) -> Tensor:
        """What the layers take: [rows, length, size]."""
        ...

    def outputs(self, states: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the module gives, from the last tokens' states [rows, size]."""
        ...
