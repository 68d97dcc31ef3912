"""Descriptions of the modules that the fused backend runs. A module returns its own description.

`EncoderSpec` describes a whole BERT-like encoder. `StackSpec` describes pre-norm layers; the other parts of the module, the
embedding of its inputs and its head, run in torch.
"""

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
    """The parts of an encoder.

    words [vocabulary, size], positions [longest, size], types [types, size]: embedding tables; their sum is normed.
    heads: number of attention heads.
    inputs: role of each argument of the module's forward: `ids`, `mask` and optionally `types` for padded rows, or `ids`,
        `positions` and `segments` for packed rows.
    act: name of the feed-forward activation (see `kernels.jit.ACTIVATIONS`).
    pooling: "none" (the output is the state of every token), "first" (the state of a sequence's first token) or "mean" (the
        mean of its tokens' states).
    unit: whether the pooled vector is normalised to length 1.
    tail: linear layers on the pooled vector, or without pooling on every token, each with the name of its activation.
    project: a linear layer on the normed embeddings, if the tables have another size than the layers.
    distances [heads, 2 * longest - 1]: as in `StackLayer`, for every layer.
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
    project: nn.Module | None = None
    distances: Tensor | None = None


@runtime_checkable
class Encoder(Protocol):
    """A torch module that describes itself as a BERT-like encoder."""

    def encoder_spec(self) -> EncoderSpec:
        """The module's parts."""
        ...


@dataclass(frozen=True)
class StackLayer:
    """A pre-norm transformer layer.

    distances [heads, 2 * longest - 1]: terms added to attention scores by distance, from a key `longest - 1` tokens after
    the token to a key `longest - 1` tokens before it.
    """

    before: nn.LayerNorm
    qkv: nn.Linear  # queries, keys and values side by side
    distances: Tensor
    out: nn.Linear
    between: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear


@dataclass(frozen=True)
class StackSpec:
    """Pre-norm layers and the norm after the last layer. heads, act: as in `EncoderSpec`. causal: a token attends only to itself
    and to earlier tokens."""

    layers: Sequence[StackLayer]
    end: nn.LayerNorm
    heads: int
    act: str
    causal: bool


@runtime_checkable
class Stack(Protocol):
    """A torch module around pre-norm layers. Rows are padded at the start, and only the state of each row's last token is used.

    Its forward is `outputs(states, *inputs)`; `states` are the layers' outputs for `vectors(*inputs)` at each row's last
    token.
    """

    def stack_spec(self) -> StackSpec:
        """The layers. Raises UnsupportedError for a module without such layers."""
        ...

    def attended(self, *inputs: Array) -> Array:
        """Which tokens are not padding, bool [rows, length]."""
        ...

    def vectors(self, *inputs: Tensor) -> Tensor:
        """The input of the layers, [rows, length, size]."""
        ...

    def outputs(self, states: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The module's outputs, from the states of the last tokens [rows, size]."""
        ...
