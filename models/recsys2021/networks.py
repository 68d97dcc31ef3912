"""The winners' three networks (Schifferer et al., RecSys Challenge 2021, table 4), and a logistic regression as a baseline.

Each has `forward(features, tokens, users)`, which returns probabilities [rows, targets], and `logits` with the same inputs: features
float32 [rows, columns of the first stage]; tokens int32 [rows, length], padded with 0; users int64 [rows, 2], codes of author and reader,
0 = rare.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buzzer.models.recsys2021.feature_sets import TARGETS, NetworkColumns
from buzzer.models.recsys2021.params import SIDES

VOCABULARY = 119_547  # tokens of bert-base-multilingual-cased
CATEGORY_DIM = 4  # winners: 2 to 10
USER_DEVIATION = 0.05  # of the initial vectors of users
AUXILIARY = 0.1  # weight of the loss of each tower (winners' second network)
FAR = 5.0  # scaled columns are clipped at this many deviations


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network's layers and tables."""

    users: int  # rows of the user table
    user_dim: int
    word_dim: int  # of the token vectors that `Pooled` learns
    hidden: int
    dropout: float
    features: str  # name of the feature set


class Columns(nn.Module):
    """The network's columns as signed logarithms with mean 0 and deviation 1, and embeddings of its columns of codes."""

    def __init__(self, columns: NetworkColumns) -> None:
        super().__init__()
        given, scaled, categories = list(columns.given), list(columns.scaled), columns.categories
        width = len(scaled)
        # Without a selection if all columns are read.
        self.chosen = None if scaled == given else [given.index(name) for name in scaled]
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.at = [given.index(name) for name in categories]
        self.tables = nn.ModuleList(nn.Embedding(n, CATEGORY_DIM) for n in categories.values())
        self.width = width + CATEGORY_DIM * len(categories)

    def logs(self, features: Tensor) -> Tensor:
        """sign(x) * log(1 + |x|) of the columns that are scaled."""
        if self.chosen is not None:
            features = features[:, self.chosen]
        return features.sign() * features.abs().log1p()

    def fit(self, features: Tensor) -> None:
        """Compute mean and deviation from rows; a constant column gets deviation 1."""
        logs = self.logs(features)
        deviation = logs.std(dim=0)
        self.mean = logs.mean(dim=0)
        self.deviation = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))

    def scaled(self, features: Tensor) -> Tensor:
        """Logarithms of mean 0 and deviation 1, clipped at FAR."""
        return ((self.logs(features) - self.mean) / self.deviation).clamp(-FAR, FAR)

    def forward(self, features: Tensor) -> Tensor:
        """The input of the dense layers, [rows, width]."""
        parts = [self.scaled(features)]
        for at, table in zip(self.at, self.tables, strict=True):
            most = cast(nn.Embedding, table).num_embeddings - 1
            parts.append(table(features[:, at].long().clamp(0, most)))
        return torch.cat(parts, dim=1)


class Network(nn.Module):
    """The base of all networks: the columns, and probabilities and a loss from logits."""

    out: nn.Linear  # the last layer, to the logits

    def __init__(self, columns: NetworkColumns) -> None:
        super().__init__()
        self.columns = Columns(columns)

    def begin(self, features: Tensor, rates: Tensor) -> None:
        """Fit the scaling of the columns to these rows, and set the output bias to the log odds of the labels' rates [targets]. Adam would
        need thousands of steps to reach the log odds of a rare label."""
        self.columns.fit(features)
        with torch.no_grad():
            self.out.bias.copy_(rates.clamp(1e-5, 1 - 1e-5).logit())

    def logits(self, features: Tensor, tokens: Tensor, users: Tensor) -> Tensor:
        """Log odds [rows, targets]."""
        raise NotImplementedError

    def forward(self, features: Tensor, tokens: Tensor, users: Tensor) -> Tensor:
        """Probabilities [rows, targets]."""
        return self.logits(features, tokens, users).sigmoid()

    def loss(self, target: Tensor, features: Tensor, tokens: Tensor, users: Tensor) -> Tensor:
        """Binary cross-entropy over the four engagements. target: float32 [rows, targets]."""
        return F.binary_cross_entropy_with_logits(self.logits(features, tokens, users), target)


class Logistic(Network):
    """Logistic regression on the scaled columns and codes; it does not use text or user vectors."""

    def __init__(self, sizes: Sizes, vectors: Tensor, columns: NetworkColumns) -> None:
        super().__init__(columns)
        self.out = nn.Linear(self.columns.width, len(TARGETS))

    def logits(self, features: Tensor, tokens: Tensor, users: Tensor) -> Tensor:
        """Log odds [rows, targets]."""
        return self.out(self.columns(features))


class TextAndUsers(Network):
    """The base of the networks that read the text and the users: `text` gives a vector of each text, `users` a vector of each user."""

    text: nn.Module
    users: nn.Embedding
    sides: tuple[int, ...]  # see `SIDES`

    def combined(self, features: Tensor, tweet: Tensor, users: Tensor) -> Tensor:
        """Log odds [rows, targets]. tweet: the texts' vectors [rows, width].  users: their vectors [rows, sides, user_dim]."""
        raise NotImplementedError

    def logits(self, features: Tensor, tokens: Tensor, users: Tensor) -> Tensor:
        """Log odds [rows, targets]."""
        vectors = torch.stack([self.users(users[:, side]) for side in self.sides], dim=1)
        return self.combined(features, self.text(tokens), vectors)


def dense(
    inputs: int, outputs: int, activation: Callable[[], nn.Module], dropout: float = 0.0
) -> nn.Sequential:
    """A linear layer with batch norm, activation and dropout."""
    return nn.Sequential(
        nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), activation(), nn.Dropout(dropout)
    )


def user_table(sizes: Sizes) -> nn.Embedding:
    """Vectors of users by code, with sparse gradients. Rare users, code 0, have the zero vector."""
    table = nn.Embedding(sizes.users, sizes.user_dim, padding_idx=0, sparse=True)
    nn.init.normal_(table.weight, std=USER_DEVIATION)
    with torch.no_grad():
        table.weight[0] = 0
    return table


class Mean(nn.Module):
    """The mean of a text's learned token vectors; zero for a text without tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, dim, padding_idx=0, sparse=True)
        nn.init.normal_(self.table.weight, std=0.05)

    def forward(self, tokens: Tensor) -> Tensor:
        """The vector of a text, [rows, dim]."""
        vectors = self.table(tokens)
        present = (tokens > 0).to(vectors.dtype)[:, :, None]
        return (vectors * present).sum(dim=1) / present.sum(dim=1).clamp(min=1.0)


class Pooled(TextAndUsers):
    """The winners' first network: the mean of learned token vectors, author and reader from one table, the cosines of their projections
    as matrix-factorisation terms, and three dense layers."""

    text: Mean
    sides = SIDES["pooled"]

    def __init__(self, sizes: Sizes, vectors: Tensor, columns: NetworkColumns) -> None:
        super().__init__(columns)
        words, dim = sizes.word_dim, sizes.user_dim
        self.text, self.users = Mean(words), user_table(sizes)
        self.project = nn.ModuleList(nn.Linear(width, dim) for width in (dim, dim, words))
        widths = [self.columns.width + words + 2 * dim + 2, *[sizes.hidden] * 3]
        self.layers = nn.Sequential(*(dense(a, b, nn.ReLU) for a, b in pairwise(widths)))
        self.out = nn.Linear(sizes.hidden, len(TARGETS))

    def combined(self, features: Tensor, tweet: Tensor, users: Tensor) -> Tensor:
        """Log odds [rows, targets]. tweet: [rows, word_dim].  users: authors and readers [rows, 2, user_dim]."""
        author, reader = users.unbind(dim=1)
        a, b, t = (torch.tanh(p(v)) for p, v in zip(self.project, (author, reader, tweet), strict=True))
        cosines = [F.cosine_similarity(x, b, dim=1, eps=1e-6)[:, None] for x in (a, t)]
        parts = [self.columns(features), tweet, author, reader, *cosines]
        return self.out(self.layers(torch.cat(parts, dim=1)))


class Text(nn.Module):
    """A GRU over frozen token vectors. The output is its state at the last token, so that padding has no effect."""

    def __init__(self, vectors: Tensor, hidden: int) -> None:
        super().__init__()
        self.words = nn.Embedding.from_pretrained(vectors, freeze=True, padding_idx=0)
        self.gru = nn.GRU(vectors.shape[1], hidden, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """The vector of a text, [rows, hidden]."""
        states = self.gru(self.words(tokens))[0]
        last = ((tokens > 0).long().sum(dim=1) - 1).clamp(min=0)
        return states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)


class Gru64(TextAndUsers):
    """The winners' second network: GRU 64 over the text, a table of readers, two towers and their product. Each tower has its own loss."""

    sides = SIDES["gru64"]

    def __init__(self, sizes: Sizes, vectors: Tensor, columns: NetworkColumns) -> None:
        super().__init__(columns)
        self.text, self.users = Text(vectors, 64), user_table(sizes)
        self.tweet = dense(64 + self.columns.width, sizes.hidden, nn.ReLU)
        self.reader = dense(sizes.user_dim + self.columns.width, sizes.hidden, nn.ReLU)
        self.mixed = dense(3 * sizes.hidden, sizes.hidden, nn.ReLU, sizes.dropout)
        self.heads = nn.ModuleList(nn.Linear(sizes.hidden, len(TARGETS)) for _ in range(2))
        self.out = nn.Linear(sizes.hidden, len(TARGETS))

    def towers(self, features: Tensor, tweet: Tensor, reader: Tensor) -> tuple[Tensor, Tensor]:
        """The tweet's and the reader's tower, [rows, hidden] each. tweet: [rows, 64].  reader: [rows, user_dim]."""
        columns = self.columns(features)
        return self.tweet(torch.cat([tweet, columns], dim=1)), self.reader(
            torch.cat([reader, columns], dim=1)
        )

    def mix(self, tweet: Tensor, reader: Tensor) -> Tensor:
        """Log odds [rows, targets] from the towers' vectors."""
        return self.out(self.mixed(torch.cat([tweet, reader, tweet * reader], dim=1)))

    def combined(self, features: Tensor, tweet: Tensor, users: Tensor) -> Tensor:
        """Log odds [rows, targets]. tweet: [rows, 64].  users: readers [rows, 1, user_dim]."""
        return self.mix(*self.towers(features, tweet, users[:, 0]))

    def loss(self, target: Tensor, features: Tensor, tokens: Tensor, users: Tensor) -> Tensor:
        """Binary cross-entropy of the output, plus AUXILIARY times that of each tower. target: float32 [rows, targets]."""
        towers = self.towers(features, self.text(tokens), self.users(users[:, 1]))
        total = F.binary_cross_entropy_with_logits(self.mix(*towers), target)
        for head, tower in zip(self.heads, towers, strict=True):
            total = total + AUXILIARY * F.binary_cross_entropy_with_logits(head(tower), target)
        return total


class Gru128(TextAndUsers):
    """The winners' third network: GRU 128 over the text, author and reader from one table, and narrowing swish layers with dropout."""

    sides = SIDES["gru128"]

    def __init__(self, sizes: Sizes, vectors: Tensor, columns: NetworkColumns) -> None:
        super().__init__(columns)
        self.text, self.users = Text(vectors, 128), user_table(sizes)
        widths = [
            128 + 3 * sizes.user_dim + self.columns.width,
            4 * sizes.hidden,
            sizes.hidden,
            sizes.hidden // 4,
        ]
        layers = [dense(a, b, nn.SiLU, sizes.dropout) for a, b in pairwise(widths)]
        self.layers, self.out = nn.Sequential(*layers), nn.Linear(widths[-1], len(TARGETS))

    def combined(self, features: Tensor, tweet: Tensor, users: Tensor) -> Tensor:
        """Log odds [rows, targets]. tweet: [rows, 128].  users: authors and readers [rows, 2, user_dim]."""
        author, reader = users.unbind(dim=1)
        parts = [tweet, author, reader, author * reader, self.columns(features)]
        return self.out(self.layers(torch.cat(parts, dim=1)))


NETWORKS: dict[str, type[Logistic] | type[Pooled] | type[Gru64] | type[Gru128]] = {
    "pooled": Pooled,
    "gru64": Gru64,
    "gru128": Gru128,
    "logistic": Logistic,
}
