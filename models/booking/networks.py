"""The three networks: MLP-SMF and multi-stage GRU as the winners describe them, and an XLNet-type encoder, whose code
they did not publish. All end in a session-based matrix factorisation (SMF) head: the score of a city is the dot product
of the network's vector for the trip with the city's embedding. The same table embeds the cities of the trip.

In addition to the winners' networks, a trip returns to its first city with a probability that the network computes: the probability
of a city is (1 - r) times that of the head, plus r for the first city, like the copy distribution of a pointer-generator network
(See et al., ACL 2017). Whether a trip returns does not depend on where its last city leads, so no dot product can express it.

Each network has `forward(cities, countries, context, numbers)`, which returns probabilities [rows, classes], and
`loss(target, *inputs)` with target int64 [rows]. The inputs are the fields of `features.Inputs`.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buzzer.models.attention import Attention
from buzzer.models.booking.features import FIRST_CITY, NUMBERS
from buzzer.models.booking.sizes import Sizes

RARE_RETURN = -3.0  # log odds of a return with which training starts
NEVER = -1e9  # logarithm of a probability of 0


class Trip(nn.Module):
    """The embeddings of cities, countries and the other facts of a stay, and the head. All networks use them."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.city = nn.Embedding(sizes.cities, sizes.dim)
        self.country = nn.Embedding(sizes.countries, sizes.dim)
        self.context = nn.ModuleList(nn.Embedding(n, sizes.dim) for n in sizes.context)
        self.scale = nn.Parameter(torch.randn(len(NUMBERS), sizes.dim) * 0.1)
        self.norm = nn.BatchNorm1d(len(NUMBERS) * sizes.dim)
        self.bias = nn.Parameter(torch.zeros(sizes.classes))
        self.point = nn.Linear(sizes.dim, sizes.lags + 1)
        self.back = nn.Linear(sizes.dim, 1)
        for layer in (self.point, self.back):
            nn.init.zeros_(layer.weight)
        nn.init.constant_(self.back.bias, RARE_RETURN)
        for table in (self.city, self.country, *self.context):
            nn.init.normal_(cast(nn.Embedding, table).weight, std=0.05)

    def query_context(self, cities: Tensor, countries: Tensor, context: Tensor, numbers: Tensor) -> Tensor:
        """The facts of the stay whose city is predicted, embedded and summed: [rows, dim]."""
        scaled = F.relu(self.norm((numbers[:, :, None] * self.scale).flatten(1)))
        total = scaled.view(-1, *self.scale.shape).sum(dim=1)
        for i, table in enumerate(self.context):
            total = total + table(context[:, i])
        return total + self.city(cities[:, 0]) + self.country(countries[:, 0])

    def scores(self, vectors: Tensor, cities: Tensor) -> Tensor:
        """The SMF head: [rows, dim] to logits [rows, classes]; rare and unseen cities have no class.

        In addition to the winners' networks, each city of the trip gets a positive or negative bonus by its position, like the copy score
        of a pointer network (Vinyals et al., NeurIPS 2015). A dot product cannot express that a trip avoids its own cities.
        """
        has_class = cities >= FIRST_CITY
        logits = vectors @ self.city.weight[FIRST_CITY:].T + self.bias
        bonus = (self.point(vectors) * has_class).to(logits.dtype)  # under autocast the types differ
        return logits.scatter_add(1, classes_of(cities), bonus)

    def returns(self, vectors: Tensor, cities: Tensor) -> Tensor:
        """The probability that each trip returns to its first city, [rows, 1]; 0 if that city has no class."""
        return torch.sigmoid(self.back(vectors)) * (cities[:, :1] >= FIRST_CITY)

    def mixture(self, probabilities: Tensor, vectors: Tensor, cities: Tensor) -> Tensor:
        """Probabilities [rows, classes] of trips that do not return, mixed with those of a return."""
        returns = self.returns(vectors, cities).to(probabilities.dtype)
        return (probabilities * (1 - returns)).scatter_add(1, classes_of(cities[:, :1]), returns)

    def loss(self, log_probability: Tensor, vectors: Tensor, cities: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of the mixture. log_probability: of the target if the trip does not return, [rows]."""
        chance, has_class = self.back(vectors)[:, 0], cities[:, 0] >= FIRST_CITY
        hit = has_class & (classes_of(cities[:, 0]) == target)
        goes_on = log_probability + F.logsigmoid(-chance) * has_class
        return -torch.logaddexp(goes_on, F.logsigmoid(chance).masked_fill(~hit, NEVER)).mean()


def classes_of(cities: Tensor) -> Tensor:
    """The classes of city codes, of any shape; class 0 for a code that has none."""
    return (cities - FIRST_CITY).clamp(min=0)


def dense(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    """A linear layer with batch norm, PReLU and dropout."""
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.PReLU(), nn.Dropout(dropout))


class OneHead(nn.Module):
    """A network that ends in the head. A subclass defines `vectors`."""

    trip: Trip

    def vectors(self, cities: Tensor, countries: Tensor, context: Tensor, numbers: Tensor) -> Tensor:
        """The trips' vectors, [rows, dim]."""
        raise NotImplementedError

    def forward(self, cities: Tensor, countries: Tensor, context: Tensor, numbers: Tensor) -> Tensor:
        """Probabilities [rows, classes]."""
        vectors = self.vectors(cities, countries, context, numbers)
        return self.trip.mixture(self.trip.scores(vectors, cities).softmax(dim=1), vectors, cities)

    def loss(self, target: Tensor, *inputs: Tensor) -> Tensor:
        """Mean cross-entropy."""
        vectors, cities = self.vectors(*inputs), inputs[0]
        log_probability = -F.cross_entropy(self.trip.scores(vectors, cities), target, reduction="none")
        return self.trip.loss(log_probability, vectors, cities, target)


class Mlp(OneHead):
    """MLP-SMF: the last cities and countries concatenated, two dense layers (the second residual), the head."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.trip = Trip(sizes)
        self.first = dense((2 * sizes.lags + 1) * sizes.dim, sizes.hidden, sizes.dropout)
        self.second = dense(sizes.hidden, sizes.hidden, sizes.dropout)
        self.last = dense(sizes.hidden, sizes.dim, sizes.dropout)

    def vectors(self, cities: Tensor, countries: Tensor, context: Tensor, numbers: Tensor) -> Tensor:
        """The trips' vectors, [rows, dim]."""
        query = self.trip.query_context(cities, countries, context, numbers)
        lags = [self.trip.city(cities[:, 1:]).flatten(1), self.trip.country(countries[:, 1:]).flatten(1)]
        x = self.first(torch.cat([*lags, query], dim=1))
        return cast(Tensor, self.last(x + self.second(x)))


class Gru(nn.Module):
    """Multi-stage GRU: a softmax over all cities, two heads that rescore its best candidates, and a learned weighted mean."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.trip = Trip(sizes)
        self.candidates = min(sizes.candidates, sizes.classes)
        self.gru = nn.GRU(2 * sizes.dim, sizes.dim, batch_first=True)
        self.first = dense(2 * sizes.dim, sizes.hidden, sizes.dropout)
        self.second = dense(sizes.hidden, sizes.hidden, sizes.dropout)
        self.find = nn.Linear(sizes.hidden, sizes.dim)
        self.again = nn.ModuleList(nn.Linear(sizes.hidden, sizes.dim) for _ in range(2))
        self.mix = nn.Parameter(torch.zeros(2))

    def dense_layers(self, hidden: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of the dense layers, [rows, hidden] each. hidden: the last state of the recurrent layer, [rows, dim]."""
        x1 = self.first(torch.cat([hidden, self.trip.query_context(*inputs)], dim=1))
        return x1, self.second(x1)

    def rescore(self, logits: Tensor, *layers: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The best candidates of the first stage [rows, candidates], and their probabilities from each head: a softmax of dot products."""
        best = logits.detach().topk(self.candidates, dim=1).indices
        rows = self.trip.city(best + FIRST_CITY)
        heads = [
            (rows @ layer(x)[:, :, None]).squeeze(2).softmax(dim=1)
            for layer, x in zip(self.again, layers, strict=True)
        ]
        return best, heads

    def stages(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """The trips' vectors [rows, dim], the logits of the first stage [rows, classes], and the candidates and probabilities of
        `rescore`."""
        cities, countries = inputs[:2]
        lags = torch.cat([self.trip.city(cities[:, 1:]), self.trip.country(countries[:, 1:])], dim=2)
        hidden = self.gru(lags.flip(1))[0][:, -1]  # in the order of time
        x1, x2 = self.dense_layers(hidden, *inputs)
        vectors = self.find(x2)
        logits = self.trip.scores(vectors, cities)
        return vectors, logits, *self.rescore(logits, x1, x2)

    def forward(self, cities: Tensor, countries: Tensor, context: Tensor, numbers: Tensor) -> Tensor:
        """Probabilities [rows, classes]: the weighted mean of the first stage and the heads, mixed with those of a return. A head's
        probability of other classes is 0."""
        vectors, logits, best, heads = self.stages(cities, countries, context, numbers)
        weights = torch.sigmoid(self.mix)
        first = logits.softmax(dim=1)
        again = (weights[0] * heads[0] + weights[1] * heads[1]).to(first.dtype)
        mean = first.scatter_add(1, best, again) / (1 + weights.sum())
        return self.trip.mixture(mean, vectors, cities)

    def loss(self, target: Tensor, *inputs: Tensor) -> Tensor:
        """Sum of the cross-entropies of the first stage, the heads and their mean. The mean's term does not train its parts."""
        vectors, logits, best, heads = self.stages(*inputs)
        first = -F.cross_entropy(logits, target, reduction="none")
        hit = best == target[:, None]
        again = [(p * hit).sum(dim=1) for p in heads]
        weights = torch.sigmoid(self.mix)
        mean = first.detach().exp() + sum(w * p.detach() for w, p in zip(weights, again, strict=True))
        logs = [first, *(torch.log(p + 1e-6) for p in (*again, mean / (1 + weights.sum())))]
        return torch.stack([self.trip.loss(log, vectors, inputs[0], target) for log in logs]).sum()


class Encoder(OneHead):
    """XLNet-type: bidirectional attention with relative positions over the last stays and the predicted stay, whose city is masked.
    It does not use XLNet's two-stream permutation training."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.trip = Trip(sizes)
        self.layers = nn.ModuleList(
            Attention(sizes.dim, sizes.heads, sizes.lags + 1, sizes.dropout) for _ in range(sizes.layers)
        )
        self.last = nn.Sequential(nn.LayerNorm(sizes.dim), dense(sizes.dim, sizes.dim, sizes.dropout))

    def vectors(self, cities: Tensor, countries: Tensor, context: Tensor, numbers: Tensor) -> Tensor:
        """The trips' vectors, [rows, dim]."""
        stays = self.trip.city(cities[:, 1:]) + self.trip.country(countries[:, 1:])
        query = self.trip.query_context(cities, countries, context, numbers)
        x = torch.cat([query[:, None], stays], dim=1)
        padding = torch.cat([torch.zeros_like(cities[:, :1]), (cities[:, 1:] == 0).long()], dim=1)
        hide = padding[:, None, None].to(x.dtype) * -1e9
        for layer in self.layers:
            x = layer(x, hide)
        return cast(Tensor, self.last(x[:, 0]))


NETWORKS: dict[str, type[Mlp] | type[Gru] | type[Encoder]] = {"mlp": Mlp, "gru": Gru, "encoder": Encoder}
