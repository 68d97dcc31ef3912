"""Trained networks in the form that predicts: the same probabilities, up to float rounding, with less work.

- The token vectors are frozen, so a GRU's input product is one table of the tokens, computed once (`Recurrence`).
- A text's vector is computed once for all rows of a batch that share the text.
- Batch norms are folded into the linear layers before them, and dropout is left out.
- The network does not hold the table of users. It gets the vectors of a batch's users (`user_vectors.UserTable`).
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_linear_bn_eval

from buzzer.engine.frames.base import Array
from buzzer.models.recsys2021.networks import Mean, Network, Text, TextAndUsers

CLOSED = 100.0  # a pre-activation whose sigmoid is 1 in float32


class Plain(nn.Module):
    """The inference form of a network that reads neither text nor users."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        """Probabilities [rows, targets]. features: float32 [rows, columns of the first stage]."""
        none = features.new_zeros(0)
        return self.network.logits(features, none, none).sigmoid()


class OnceAText(nn.Module):
    """The inference form of a network that reads text and users."""

    def __init__(self, network: TextAndUsers) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, tokens: Tensor, text: Tensor, users: Tensor) -> Tensor:
        """Probabilities [rows, targets].

        features: float32 [rows, columns of the first stage].  tokens: int32 [texts, length], padded with 0.  text: int64 [rows], the place of
        each row's text in `tokens`.  users: float32 [rows, sides, user_dim], see `TextAndUsers.combined`.
        """
        tweet = self.network.text(tokens).index_select(0, text)
        return self.network.combined(features, tweet, users).sigmoid()


def inference_form(network: Network, vectors: Array) -> Plain | OnceAText:
    """The inference form of a trained network, which is changed: its layers become parts of the form.

    vectors: the frozen token vectors, float32 [VOCABULARY, token_dim]; may be a memory map.
    """
    network.eval()
    fold_norms(network)
    if not isinstance(network, TextAndUsers):
        return Plain(network)
    network.users = nn.Embedding(1, 1)  # frees the table: the form gets vectors
    if isinstance(network.text, Text):
        network.text = Recurrence(network.text.gru, vectors)
    if isinstance(network.text, Mean):
        network.text = Sum(network.text)
    return OnceAText(network)


def fold_norms(module: nn.Module) -> None:
    """Replace linear layer, batch norm, activation and dropout by linear layer and activation, in all sequences of a module."""
    for name, part in module.named_children():
        kinds = [type(layer) for layer in part.children()]
        if isinstance(part, nn.Sequential) and kinds[:2] == [nn.Linear, nn.BatchNorm1d]:
            linear, norm, *rest = part.children()
            folded = fuse_linear_bn_eval(cast(nn.Linear, linear), cast(nn.BatchNorm1d, norm))
            kept = [layer for layer in rest if not isinstance(layer, nn.Dropout)]
            setattr(module, name, nn.Sequential(folded, *kept))
        else:
            fold_norms(part)


class Recurrence(nn.Module):
    """`networks.Text`, with the input products of all tokens computed beforehand.

    A GRU's step from state h with input x is, in torch's order of gates (torch.nn.GRU, equations of r, z, n and h'):
    r, z = sigmoid(W_i x + b_i + W_h h + b_h); n = tanh(W_in x + b_in + r (W_hn h + b_hn)); h' = (1 - z) n + z h. This module holds
    W_i x + b_i for every token.

    It computes the state u = (h + 1) / 2, so that tanh(a) = 2 sigmoid(2 a) - 1 becomes a sigmoid, which is several times as fast as tanh
    in torch on CPUs: u' = (1 - z) c + z u with c = sigmoid(2 a). The factors and the shift are part of the weights.

    Padding, token 0, has a table row with z = 1, so that it keeps the state: no mask is needed.
    """

    gates: Tensor  # W_i x + b_i of r and z, [VOCABULARY + 1, 2 hidden]
    candidates: Tensor  # W_i x + b_i of c, [VOCABULARY + 1, hidden]
    words: Tensor | None  # `marked` vectors, if they are narrower than the tables
    of_gates: Tensor
    of_candidates: Tensor

    def __init__(self, gru: nn.GRU, vectors: Array) -> None:
        super().__init__()
        hidden, size = gru.hidden_size, 2 * gru.hidden_size
        w_i, w_h, b_i, b_h = (weight.detach() for weight in gru.all_weights[0])
        scale = torch.cat([torch.ones(size), torch.full((hidden,), 2.0)])  # c reads twice its input
        shift = b_h - w_h.sum(dim=1)  # of W_h h + b_h = 2 W_h u + shift
        bias = b_i + torch.cat([shift[:size], torch.zeros(hidden)])  # n's shift is multiplied by r
        closed = torch.cat([torch.zeros(hidden), torch.full((hidden,), CLOSED), torch.zeros(hidden)])
        words = marked(vectors)
        products = torch.cat([scale * w_i.t(), (scale * bias)[None], closed[None]])
        self.empty = len(words) - 1
        self.register_buffer("of_gates", products[:, :size].contiguous())  # r and z
        self.register_buffer("of_candidates", products[:, size:].contiguous())  # c
        self.register_buffer("gates", words @ self.of_gates)
        self.register_buffer("candidates", words @ self.of_candidates)
        self.register_buffer("words", words if words.shape[1] < 3 * hidden else None)
        self.register_buffer("to_gates", (2 * w_h[:size]).t().contiguous())
        self.register_buffer("to_candidates", (4 * w_h[size:]).t().contiguous())
        self.register_buffer("bias", 2 * shift[size:])

    def forward(self, tokens: Tensor) -> Tensor:
        """The vector of a text, [texts, hidden]. tokens: int32 [texts, length], padded with 0."""
        first = tokens[:, :1]
        first = torch.where(first > 0, first, torch.full_like(first, self.empty))
        steps = torch.cat([first, tokens[:, 1:]], dim=1).t().contiguous()
        weights = (self.to_gates, self.to_candidates, self.bias)
        return looped(recur)(steps, *self.tables(), *weights)

    def tables(self) -> tuple[Tensor, Tensor]:
        """The tables of the gates and of the candidate. An ONNX graph has their factors instead if these are smaller: a runtime multiplies
        them once, when it loads the graph."""
        if torch.onnx.is_in_onnx_export() and self.words is not None:
            return self.words @ self.of_gates, self.words @ self.of_candidates
        return self.gates, self.candidates


def marked(vectors: Array) -> Tensor:
    """The token vectors with two more columns, float32 [VOCABULARY + 1, token_dim + 2]: 1 for a token, 1 for padding. So one product
    gives W x + b of all tokens, and a row of its own for padding. The last row is token 0 as the only token of an empty text."""
    words = np.zeros((len(vectors) + 1, vectors.shape[1] + 2), dtype=np.float32)
    words[1:-1, :-2] = vectors[1:]
    words[-1, :-2] = vectors[0]
    words[1:, -2] = 1
    words[0, -1] = 1
    return torch.from_numpy(words)


def recur(
    steps: Tensor, gates: Tensor, candidates: Tensor, to_gates: Tensor, to_candidates: Tensor, bias: Tensor
) -> Tensor:
    """The last state [texts, hidden] of `Recurrence`. steps: the tokens [length, texts].  The others: its tables and weights."""
    hidden = to_candidates.shape[0]
    u = torch.full([steps.shape[1], hidden], 0.5, dtype=gates.dtype, device=gates.device)
    for step in range(steps.shape[0]):
        tokens = steps[step]
        both = torch.sigmoid(gates.index_select(0, tokens) + u @ to_gates)
        r, z = both[:, :hidden], both[:, hidden:]
        c = torch.sigmoid(candidates.index_select(0, tokens) + r * (u @ to_candidates + bias))
        u = c + z * (u - c)
    return 2 * u - 1


class Sum(nn.Module):
    """`networks.Mean`, without a copy of all vectors of a text."""

    def __init__(self, mean: Mean) -> None:
        super().__init__()
        weight = mean.table.weight.detach()
        weight[0] = 0  # padding
        self.table = nn.Embedding.from_pretrained(weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """The vector of a text, [texts, dim]. tokens: int32 [texts, length], padded with 0."""
        count = (tokens > 0).sum(dim=1, keepdim=True).clamp(min=1)
        if torch.onnx.is_in_onnx_export():
            return looped(summed)(tokens.t().contiguous(), self.table.weight) / count
        return F.embedding_bag(tokens, self.table.weight, mode="sum") / count


def summed(steps: Tensor, table: Tensor) -> Tensor:
    """The sum of each text's vectors [texts, dim]. steps: the tokens [length, texts].  table: [VOCABULARY, dim]."""
    total = torch.zeros([steps.shape[1], table.shape[1]], dtype=table.dtype, device=table.device)
    for step in range(steps.shape[0]):
        total = total + table.index_select(0, steps[step])
    return total


def looped(function: Callable[..., Tensor]) -> Any:
    """The function in the form that keeps its loop in an ONNX graph, for texts of any length."""
    return torch.jit.script(function) if torch.onnx.is_in_onnx_export() else function
